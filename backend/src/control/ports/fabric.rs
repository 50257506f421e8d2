//! What ports stand on, which comes and goes without them: switches and teams.
//!
//! One of them is named by the configuration file or over the API, whose word replaces the file's. It
//! is made as it is set, and is never set aside as a port may be.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Base, Condition, Control, Put, Removed, none_of, refusals, unless_stale};
use crate::config::{Configured, Layer, Origin, Overlay, build_one};
use crate::control::{Engine, Refused, RefusedKind, Resource};

/// A kind of what ports stand on.
pub trait Fabric: Configured + Default {
    /// What the API shows of one.
    type Object: Serialize;

    /// What it is called in commands and messages.
    const KIND: &'static str;

    /// The tag of one that is shown.
    fn tag_shown(object: &Self::Object) -> &str;

    /// Those there are.
    fn configs(control: &Control) -> &RwLock<BTreeMap<String, Self>>;

    /// Those of the file.
    fn in_file(base: &Base) -> &BTreeMap<String, Layer<Self>>;

    /// Those of the API.
    fn set_over_api(overlay: &mut Overlay) -> &mut BTreeMap<String, Layer<Self>>;

    /// Whether it is there without being configured.
    fn is_always_there(name: &str) -> bool;

    /// Why it must stay, if others need it.
    fn needed_by(control: &Control, name: &str) -> Result<(), Refused>;

    /// All, by name, with what they do.
    fn objects(control: &Control) -> Vec<(String, Self::Object)>;

    /// Makes it in the engine.
    fn add(&self, engine: &dyn Engine, name: &str) -> Result<(), Refused>;

    /// Gives it these settings in the engine.
    fn change(&self, engine: &dyn Engine, name: &str) -> Result<(), Refused>;

    /// Ends it in the engine.
    fn remove(engine: &dyn Engine, name: &str) -> Result<(), Refused>;

    /// Tells who listens that there is a new one, that it has changed, or that it is gone.
    fn publish(control: &Control, name: &str, old: Option<&Self>, new: Option<&Self>);

    /// These are those there are, from now on.
    fn replace_all(control: &Control, all: BTreeMap<String, Self>) {
        *Self::configs(control)
            .write()
            .unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// Those there are, as they are now.
    fn all(control: &Control) -> BTreeMap<String, Self> {
        let all = Self::configs(control).read();
        all.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<T: Fabric> Resource for T {
    type Shown = T::Object;

    fn shown_tag(shown: &T::Object) -> &str {
        T::tag_shown(shown)
    }

    fn list(control: &Control) -> Vec<T::Object> {
        let all = T::objects(control).into_iter();
        all.map(|(_, object)| object).collect()
    }

    fn show(control: &Control, name: &str) -> Result<T::Object, Refused> {
        let mut all = T::objects(control).into_iter();
        let named = all.find(|(other, _)| other == name);
        named
            .map(|(_, object)| object)
            .ok_or_else(|| none_of(T::KIND, name))
    }

    fn put(
        control: &Control,
        name: &str,
        settings: &Map<String, Value>,
        condition: &Condition,
    ) -> Result<(Put, T::Object), Vec<Refused>> {
        set::<T>(control, &mut control.change(), name, settings, condition)
    }

    fn patch(
        control: &Control,
        name: &str,
        changes: &Map<String, Value>,
        condition: &Condition,
    ) -> Result<T::Object, Vec<Refused>> {
        let mut overlay = control.change();
        let Some(old) = T::all(control).remove(name) else {
            return Err(vec![none_of(T::KIND, name)]);
        };
        let mut settings = old.settings();
        settings.extend(changes.clone());
        let (_, object) = set::<T>(control, &mut overlay, name, &settings, condition)?;
        Ok(object)
    }

    fn reset(
        control: &Control,
        name: &str,
        condition: &Condition,
    ) -> Result<T::Object, Vec<Refused>> {
        let mut overlay = control.change();
        let all = |refused| vec![refused];
        let Some(old) = T::all(control).remove(name) else {
            return Err(vec![none_of(T::KIND, name)]);
        };
        let base = T::in_file(&control.read_base()).get(name).cloned();
        let new = match base {
            Some(layer) => control
                .with_known(|_, known| build_one(&layer, known))
                .map_err(refusals)?,
            None if T::is_always_there(name) => T::default(),
            None => {
                let reason = format!("{} {name} is not in the configuration file", T::KIND);
                let remedy = format!("set it anew, or: tandem {} remove {name}", T::KIND);
                let refused = Refused::new(RefusedKind::Conflict, reason, remedy);
                return Err(vec![refused.about("name")]);
            }
        };
        condition
            .check(T::KIND, name, Some(old.tag()))
            .map_err(all)?;
        let mut next = overlay.clone();
        T::set_over_api(&mut next).remove(name);
        control
            .commit_fabric(&mut overlay, next, name, Some(&old), Some(new))
            .map_err(all)?;
        log::info!("{} {name}: reset over the API", T::KIND);
        T::show(control, name).map_err(all)
    }

    fn remove(control: &Control, name: &str, condition: &Condition) -> Result<Removed, Refused> {
        let mut overlay = control.change();
        let Some(old) = T::all(control).remove(name) else {
            return Err(none_of(T::KIND, name));
        };
        let conflict = |reason: String, remedy: &str| {
            Err(Refused::new(RefusedKind::Conflict, reason, remedy).about("name"))
        };
        if T::is_always_there(name) {
            let reason = format!("the {} {name} is always there", T::KIND);
            return conflict(reason, "leave it without ports");
        }
        if T::in_file(&control.read_base()).contains_key(name) {
            let reason = format!("{} {name} is in the configuration file", T::KIND);
            return conflict(reason, "take it out there, and reload");
        }
        T::needed_by(control, name)?;
        condition.check(T::KIND, name, Some(old.tag()))?;
        let mut next = overlay.clone();
        T::set_over_api(&mut next).remove(name);
        control.commit_fabric(&mut overlay, next, name, Some(&old), None)?;
        log::info!("{} {name}: removed over the API", T::KIND);
        Ok(Removed::ForGood)
    }
}

fn set<T: Fabric>(
    control: &Control,
    overlay: &mut Overlay,
    name: &str,
    settings: &Map<String, Value>,
    condition: &Condition,
) -> Result<(Put, T::Object), Vec<Refused>> {
    let layer = Layer::<T>::from_json(name, Origin::Api, "", settings);
    let checked = layer.and_then(|layer| {
        let new = control.with_known(|_, known| build_one(&layer, known))?;
        Ok((layer, new))
    });
    let old = T::all(control).remove(name);
    let stale = condition.check(T::KIND, name, old.as_ref().map(T::tag));
    let (layer, new) = unless_stale(checked.map_err(refusals), stale)?;
    let all = |refused| vec![refused];
    let mut next = overlay.clone();
    T::set_over_api(&mut next).insert(name.to_owned(), layer);
    control
        .commit_fabric(overlay, next, name, old.as_ref(), Some(new))
        .map_err(all)?;
    let (put, verb) = match old {
        None => (Put::Created, "added"),
        Some(_) => (Put::Replaced, "changed"),
    };
    log::info!("{} {name}: {verb} over the API", T::KIND);
    Ok((put, T::show(control, name).map_err(all)?))
}

impl Control {
    /// Makes a change in the engine, on disk and in our own list, or nowhere.
    fn commit_fabric<T: Fabric>(
        &self,
        overlay: &mut Overlay,
        next: Overlay,
        name: &str,
        old: Option<&T>,
        new: Option<T>,
    ) -> Result<(), Refused> {
        self.exchange_fabric(name, old, new.as_ref())?;
        if let Err(refused) = self.store.save(&next) {
            self.take_back(name, old, new.as_ref());
            return Err(refused);
        }
        *overlay = next;
        let mut all = (T::configs(self).write()).unwrap_or_else(PoisonError::into_inner);
        match new {
            Some(new) => all.insert(name.to_owned(), new),
            None => all.remove(name),
        };
        Ok(())
    }

    /// Puts `new` in the place of `old` in the engine.
    pub(super) fn exchange_fabric<T: Fabric>(
        &self,
        name: &str,
        old: Option<&T>,
        new: Option<&T>,
    ) -> Result<(), Refused> {
        let engine = &*self.engine;
        match (old, new) {
            (Some(old), Some(new)) if old.is_same(new) => return Ok(()),
            (Some(_), Some(new)) => new.change(engine, name)?,
            (None, Some(new)) => new.add(engine, name)?,
            (Some(_), None) => <T as Fabric>::remove(engine, name)?,
            (None, None) => return Ok(()),
        }
        T::publish(self, name, old, new);
        Ok(())
    }

    /// Puts `old` in the place of `new` again.
    pub(super) fn take_back<T: Fabric>(&self, name: &str, old: Option<&T>, new: Option<&T>) {
        if let Err(refused) = self.exchange_fabric(name, new, old) {
            let kind = T::KIND;
            log::error!("{kind} {name}: a change could not be taken back: {refused}");
        }
    }
}
