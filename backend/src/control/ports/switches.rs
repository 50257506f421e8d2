//! The switches: they come and go without their ports.

use serde_json::{Map, Value};

use super::{Condition, Control, Put, none_of, refusals};
use crate::config::{
    DEFAULT_SWITCH, Layer, Origin, Overlay, SWITCH_KEYS, SwitchConfig, build_switch,
};
use crate::control::{Refused, RefusedKind};
use crate::status::Switch;

impl Control {
    /// All switches, by name.
    pub fn switches(&self) -> Vec<Switch> {
        let running = self.engine.status().switches.into_iter();
        let configs = self.read_switches();
        let both = running.map(|running| {
            let config = configs.get(&running.name).cloned().unwrap_or_default();
            let set = |key| config.origin.get(key).copied().unwrap_or(Origin::Default);
            let keys = SWITCH_KEYS.iter().map(|key| key.name);
            Switch {
                tag: config.tag(),
                origin: keys.map(|key| (key, set(key))).collect(),
                config,
                running,
            }
        });
        both.collect()
    }

    /// One switch.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn switch(&self, name: &str) -> Result<Switch, Refused> {
        let mut switches = self.switches().into_iter();
        let named = switches.find(|switch| switch.running.name == name);
        named.ok_or_else(|| none_of("switch", name))
    }

    /// Makes the switch `name` with just these settings, or gives them to the one there is. Its ports
    /// stay. Saved before this returns.
    ///
    /// # Errors
    /// All that is wrong with the settings; then nothing changed. `Stale` if the condition is not met.
    pub fn put_switch(
        &self,
        name: &str,
        settings: &Map<String, Value>,
        condition: &Condition,
    ) -> Result<(Put, Switch), Vec<Refused>> {
        self.set_switch(&mut self.change(), name, settings, condition)
    }

    /// Changes some settings of the switch `name`: see [`Control::patch`].
    ///
    /// # Errors
    /// `NotFound`, or as for [`Control::put_switch`].
    pub fn patch_switch(
        &self,
        name: &str,
        changes: &Map<String, Value>,
        condition: &Condition,
    ) -> Result<Switch, Vec<Refused>> {
        let mut overlay = self.change();
        let Some(switch) = self.read_switches().get(name).cloned() else {
            return Err(vec![none_of("switch", name)]);
        };
        let mut settings = switch.settings();
        settings.extend(changes.clone());
        let (_, switch) = self.set_switch(&mut overlay, name, &settings, condition)?;
        Ok(switch)
    }

    fn set_switch(
        &self,
        overlay: &mut Overlay,
        name: &str,
        settings: &Map<String, Value>,
        condition: &Condition,
    ) -> Result<(Put, Switch), Vec<Refused>> {
        let layer = Layer::from_json(name, Origin::Api, "", settings).map_err(refusals)?;
        let new = build_switch(&layer).map_err(refusals)?;
        let old = self.read_switches().get(name).cloned();
        let tag = old.as_ref().map(SwitchConfig::tag);
        let all = |refused| vec![refused];
        condition.check("switch", name, tag).map_err(all)?;
        let mut next = overlay.clone();
        next.switches.insert(name.to_owned(), layer);
        self.commit_switch(overlay, next, name, old.as_ref(), Some(new))
            .map_err(all)?;
        let (put, verb) = match old {
            None => (Put::Created, "added"),
            Some(_) => (Put::Replaced, "changed"),
        };
        log::info!("switch {name}: {verb} over the API");
        Ok((put, self.switch(name).map_err(all)?))
    }

    /// Ends the switch `name`, which has no ports.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if it has ports, is in the file or is the one that is always there;
    /// `Stale`; or why it could not be saved. Then nothing changed.
    pub fn remove_switch(&self, name: &str, condition: &Condition) -> Result<(), Refused> {
        let mut overlay = self.change();
        let Some(old) = self.read_switches().get(name).cloned() else {
            return Err(none_of("switch", name));
        };
        let conflict = |reason: String, remedy: &str| {
            Err(Refused::new(RefusedKind::Conflict, reason, remedy).about("name"))
        };
        if name == DEFAULT_SWITCH {
            let reason = format!("the switch {name} is always there");
            return conflict(reason, "leave it without ports");
        }
        if self.read_base().switches.contains_key(name) {
            let reason = format!("switch {name} is in the configuration file");
            return conflict(reason, "take it out there, and reload");
        }
        let ports = self.ports_on(name);
        if !ports.is_empty() {
            let reason = format!("switch {name} has ports: {}", ports.join(", "));
            return conflict(reason, "remove them, or move them to another switch");
        }
        condition.check("switch", name, Some(old.tag()))?;
        let mut next = overlay.clone();
        next.switches.remove(name);
        self.commit_switch(&mut overlay, next, name, Some(&old), None)?;
        log::info!("switch {name}: removed over the API");
        Ok(())
    }

    /// Forgets what was set over the API for the switch `name`: it is again what the file says.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if no file names it; `Stale`; or why it could not be saved. Then nothing
    /// changed.
    pub fn reset_switch(&self, name: &str, condition: &Condition) -> Result<Switch, Vec<Refused>> {
        let mut overlay = self.change();
        let all = |refused| vec![refused];
        let Some(old) = self.read_switches().get(name).cloned() else {
            return Err(vec![none_of("switch", name)]);
        };
        let base = self.read_base().switches.get(name).cloned();
        let new = match base {
            Some(layer) => build_switch(&layer).map_err(refusals)?,
            None if name == DEFAULT_SWITCH => SwitchConfig::default(),
            None => {
                let reason = format!("switch {name} is not in the configuration file");
                let remedy = format!("set it anew, or: tandem switch remove {name}");
                let refused = Refused::new(RefusedKind::Conflict, reason, remedy);
                return Err(vec![refused.about("name")]);
            }
        };
        condition
            .check("switch", name, Some(old.tag()))
            .map_err(all)?;
        let mut next = overlay.clone();
        next.switches.remove(name);
        self.commit_switch(&mut overlay, next, name, Some(&old), Some(new))
            .map_err(all)?;
        log::info!("switch {name}: reset over the API");
        self.switch(name).map_err(all)
    }

    /// The ports that name a switch, those that could not be made as well.
    fn ports_on(&self, switch: &str) -> Vec<String> {
        let (ports, aside) = (self.read(), self.read_aside());
        let all = ports.values().chain(aside.values().map(|(port, _)| port));
        let on_it = all.filter(|port| port.switch == switch);
        on_it.map(|port| port.name.clone()).collect()
    }

    /// Makes a change in the engine, on disk and in our own list, or nowhere.
    fn commit_switch(
        &self,
        overlay: &mut Overlay,
        next: Overlay,
        name: &str,
        old: Option<&SwitchConfig>,
        new: Option<SwitchConfig>,
    ) -> Result<(), Refused> {
        self.exchange_switch(name, old, new.as_ref())?;
        if let Err(refused) = self.store.save(&next) {
            if let Err(refused) = self.exchange_switch(name, new.as_ref(), old) {
                log::error!("switch {name}: a change could not be taken back: {refused}");
            }
            return Err(refused);
        }
        *overlay = next;
        let mut switches = self.write_switches();
        match new {
            Some(new) => switches.insert(name.to_owned(), new),
            None => switches.remove(name),
        };
        Ok(())
    }

    /// Puts `new` in the place of `old` in the engine.
    pub(super) fn exchange_switch(
        &self,
        name: &str,
        old: Option<&SwitchConfig>,
        new: Option<&SwitchConfig>,
    ) -> Result<(), Refused> {
        match (old, new) {
            (Some(old), Some(new)) if old.is_same(new) => Ok(()),
            (Some(_), Some(new)) => self.engine.change_switch(name, new),
            (None, Some(new)) => self.engine.add_switch(name, new),
            (Some(_), None) => self.engine.remove_switch(name),
            (None, None) => Ok(()),
        }
    }
}
