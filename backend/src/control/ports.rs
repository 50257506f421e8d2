//! The ports as a whole: what is configured, what runs, and what is saved, kept in step.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use serde_json::{Map, Value};

use super::{Engine, Refused, RefusedKind};
use crate::config::{
    Config, Configured, Known, Layer, Origin, Overlay, PortConfig, Problem, Profiles, SwitchConfig,
    TeamConfig, build_port,
};
use crate::events::{Event, EventKind, Events};
use crate::status::Port;
use crate::store::Store;

mod fabric;
mod reload;
mod reports;
mod switches;
mod teams;

use fabric::Fabric;
pub use reload::Reloaded;

/// What a [`Control`] is made of.
pub struct Setup {
    /// The running switch, without ports.
    pub engine: Arc<dyn Engine>,
    /// What to begin with.
    pub config: Config,
    /// What is named elsewhere than over the API.
    pub base: Base,
    /// Who is told of changes.
    pub events: Arc<Events>,
    /// What was set over the API before.
    pub overlay: Overlay,
    /// Where that is saved.
    pub store: Store,
    /// Where sockets are; absolute.
    pub run_dir: PathBuf,
}

/// What is said where the API cannot change it, as it was last read.
#[derive(Clone, Debug, Default)]
pub struct Base {
    /// Switches of the configuration file.
    pub switches: BTreeMap<String, Layer<SwitchConfig>>,
    /// Teams of the configuration file.
    pub teams: BTreeMap<String, Layer<TeamConfig>>,
    /// Profiles of the configuration file.
    pub profiles: Profiles,
    /// Ports of the configuration file.
    pub file: BTreeMap<String, Layer>,
    /// Ports of the command line.
    pub line: BTreeMap<String, Layer>,
    /// The port of `--socket-path` or `--fd`.
    pub program: Option<PortConfig>,
}

impl Base {
    fn names(&self, port: &str) -> bool {
        self.file.contains_key(port) || self.is_on_line(port)
    }

    fn is_on_line(&self, port: &str) -> bool {
        let program = self.program.as_ref().map(|port| port.name.as_str());
        self.line.contains_key(port) || program == Some(port)
    }

    /// The port without what was set over the API; `None` if it is not named here.
    fn port(&self, name: &str, known: Known<'_>) -> Option<Result<PortConfig, Vec<Problem>>> {
        if let Some(program) = self.program.as_ref().filter(|port| port.name == name) {
            return Some(Ok(program.clone()));
        }
        let layers = self.file.get(name).into_iter().chain(self.line.get(name));
        let layers: Vec<&Layer> = layers.collect();
        (!layers.is_empty()).then(|| build_port(&layers, known))
    }
}

/// What a change depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    Always,
    /// There is none of that name.
    IsNew,
    /// There is one, with whatever settings.
    Exists,
    /// There is one, with the settings of one of these tags: see [`Configured::tag`].
    Is(Vec<String>),
}

impl Condition {
    /// Whether something of this kind and name meets it, by its tag or by not being there.
    fn check(&self, kind: &str, name: &str, tag: Option<String>) -> Result<(), Refused> {
        let stale = |reason: String, remedy: &str| {
            Err(Refused::new(RefusedKind::Stale, reason, remedy).about("name"))
        };
        match (self, tag) {
            (Self::Always, _) | (Self::IsNew, None) | (Self::Exists, Some(_)) => Ok(()),
            (Self::Is(tags), Some(tag)) if tags.contains(&tag) => Ok(()),
            (Self::IsNew, Some(_)) => {
                let reason = format!("there is a {kind} {name} already");
                stale(reason, "choose another name")
            }
            (Self::Is(_), Some(_)) => {
                let reason = format!("{kind} {name} has been changed meanwhile");
                stale(reason, "read it again, and repeat the change")
            }
            (Self::Exists | Self::Is(_), None) => {
                let reason = format!("there is no {kind} {name}");
                stale(reason, &format!("see tandem {kind} list"))
            }
        }
    }
}

/// What a successful [`Control::remove`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It stays away.
    ForGood,
    /// It is back at the next start, because the command line names it.
    UntilRestart,
}

/// What a successful [`Control::put`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// There was no such port.
    Created,
    /// There was one; it has the new settings.
    Replaced,
}

/// Changes ports one at a time, each whole or not at all, and answers questions about them.
pub struct Control {
    pub(super) engine: Arc<dyn Engine>,
    events: Arc<Events>,
    /// As `ports`.
    switches: RwLock<BTreeMap<String, SwitchConfig>>,
    /// As `ports`.
    teams: RwLock<BTreeMap<String, TeamConfig>>,
    base: RwLock<Base>,
    /// Ports of the command line that were removed since the start.
    removed_lines: Mutex<BTreeSet<String>>,
    store: Store,
    run_dir: PathBuf,
    started: Instant,
    /// Held for the whole of a change, so that changes come one after the other.
    overlay: Mutex<Overlay>,
    /// Held for moments only, so that questions are answered while a change is made.
    ports: RwLock<BTreeMap<String, PortConfig>>,
    /// Ports set over the API before the start that could not be made, and why; none of `ports`.
    aside: RwLock<BTreeMap<String, (PortConfig, Refused)>>,
}

impl Control {
    /// Makes the ports of the configuration. One that was set over the API and cannot be made is set
    /// aside with a warning: it can be seen, set again and removed.
    ///
    /// # Errors
    /// The first port of file or command line that could not be made, by name, and why; then none is
    /// left.
    pub fn start(setup: Setup) -> Result<Self, (String, Refused)> {
        let Setup {
            engine,
            config,
            base,
            events,
            overlay,
            store,
            run_dir,
        } = setup;
        let control = Self {
            engine,
            events,
            switches: RwLock::new(config.switches),
            teams: RwLock::new(config.teams),
            base: RwLock::new(base),
            removed_lines: Mutex::default(),
            store,
            run_dir,
            started: Instant::now(),
            overlay: Mutex::new(overlay),
            ports: RwLock::default(),
            aside: RwLock::default(),
        };
        for team in TeamConfig::all(&control).keys() {
            let event = Event::of_team(EventKind::TeamAdded, team);
            control.events.publish(event);
        }
        let (set, named): (Vec<_>, Vec<_>) =
            (config.ports.into_iter()).partition(|(_, port)| control.was_set(port));
        // What file and command line name comes first, and so gets what two ports ask for.
        for (name, port) in named {
            if let Err(refused) = control.add(&port) {
                control.stop();
                return Err((name, refused));
            }
        }
        for (_, port) in set {
            match control.add(&port) {
                Ok(()) if control.read_base().names(&port.name) => log::info!(
                    "port {}: its settings are those of the API, not of file or command line",
                    port.name
                ),
                Ok(()) => {}
                Err(refused) => control.set_aside(port, refused),
            }
        }
        for (port, refused) in config.set_aside {
            control.set_aside(port, refused);
        }
        Ok(control)
    }

    /// Whether the port's settings are those of the overlay.
    fn was_set(&self, port: &PortConfig) -> bool {
        let overlay = self.change();
        let entry = overlay.ports.get(&port.name).is_some_and(Option::is_some);
        let theirs = |origin: &Origin| matches!(origin, Origin::Api | Origin::Profile);
        entry && port.origin.values().all(theirs)
    }

    /// What happens.
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    fn publish(&self, kind: EventKind, port: &str) {
        self.events.publish(Event::of_port(kind, port));
    }

    fn add(&self, port: &PortConfig) -> Result<(), Refused> {
        self.engine.add_port(port, EventKind::PortAdded)?;
        log::info!("port {}: added, {}", port.name, self.whereabouts(port));
        self.write().insert(port.name.clone(), port.clone());
        Ok(())
    }

    fn set_aside(&self, port: PortConfig, mut refused: Refused) {
        let remedy = format!(
            "{}, and set the port again over the API, or: tandem port remove {}",
            refused.remedy, port.name
        );
        refused.remedy = remedy;
        log::warn!(
            "port {} was set over the API and is not started: {refused}",
            port.name
        );
        self.write_aside()
            .insert(port.name.clone(), (port, refused));
    }

    /// Ends all ports; their sockets are gone when this returns.
    pub fn stop(&self) {
        let _change = self.change();
        self.write_aside().clear();
        let ports = std::mem::take(&mut *self.write());
        for name in ports.keys() {
            if let Err(refused) = self.engine.remove_port(name) {
                log::error!("port {name}: {refused}");
            }
        }
    }

    /// Makes the port `name` with just these settings, in place of one of that name. Saved before this
    /// returns.
    ///
    /// # Errors
    /// All that is wrong with the settings, or why the port could not be made; then nothing changed.
    /// `Stale` if the condition is not met.
    pub fn put(
        &self,
        name: &str,
        settings: &Map<String, Value>,
        condition: &Condition,
    ) -> Result<(Put, Port), Vec<Refused>> {
        self.set(&mut self.change(), name, settings, condition)
    }

    /// Changes some settings of the port `name` (JSON Merge Patch, RFC 7396): those given; one that is
    /// null is set no more. The others stay what they are, wherever they came from. Saved
    /// before this returns.
    ///
    /// # Errors
    /// `NotFound`, or as for [`Control::put`].
    pub fn patch(
        &self,
        name: &str,
        changes: &Map<String, Value>,
        condition: &Condition,
    ) -> Result<Port, Vec<Refused>> {
        let mut overlay = self.change();
        let port = self.read().get(name).cloned();
        let Some(port) = port.or_else(|| self.aside(name)) else {
            return Err(vec![not_found(name)]);
        };
        let mut settings = port.settings();
        settings.extend(changes.clone());
        let (_, port) = self.set(&mut overlay, name, &settings, condition)?;
        Ok(port)
    }

    fn set(
        &self,
        overlay: &mut Overlay,
        name: &str,
        settings: &Map<String, Value>,
        condition: &Condition,
    ) -> Result<(Put, Port), Vec<Refused>> {
        let old = self.read().get(name).cloned();
        let aside = self.aside(name);
        let port = old.as_ref().or(aside.as_ref());
        let checked = self.checked(name, settings);
        let stale = condition.check("port", name, port.map(Configured::tag));
        let (layer, mut new) = unless_stale(checked, stale)?;
        // A socket that we were handed has no name to come back by.
        if let Some(fd) = old.as_ref().and_then(|old| old.socket_fd.as_ref())
            && new.socket.is_none()
            && new.tap.is_none()
        {
            new.socket_fd = Some(Arc::clone(fd));
        }
        let what = self.whereabouts(&new);
        let mut next = overlay.clone();
        next.ports.insert(name.to_owned(), Some(layer));
        self.commit(overlay, next, old.as_ref(), Some(new.clone()))
            .map_err(|refused| vec![refused])?;
        self.removed_lines().remove(name);
        let (put, verb) = match old {
            None if aside.is_none() => (Put::Created, "added"),
            _ => (Put::Replaced, "changed"),
        };
        log::info!("port {name}: {verb} over the API, {what}");
        Ok((put, self.port_of(&new, self.engine.port(name))))
    }

    fn checked(
        &self,
        name: &str,
        settings: &Map<String, Value>,
    ) -> Result<(Layer, PortConfig), Vec<Refused>> {
        let layer = Layer::from_json(name, Origin::Api, "", settings);
        let built = layer.and_then(|layer| {
            let port = self.with_known(|_, known| build_port(&[&layer], known))?;
            Ok((layer, port))
        });
        built.map_err(refusals)
    }

    /// Calls with what a port is checked against.
    fn with_known<R>(&self, call: impl FnOnce(&Base, Known<'_>) -> R) -> R {
        let (switches, teams) = (SwitchConfig::all(self), TeamConfig::all(self));
        let (base, ports) = (self.read_base(), self.read());
        let known = Known {
            switches: &switches,
            teams: &teams,
            profiles: &base.profiles,
            ports: &ports,
            run_dir: &self.run_dir,
        };
        call(&base, known)
    }

    /// Forgets what was set over the API for the port `name`, so that it is again what file and
    /// command line say, as they were last read; one that was removed comes back. Saved before this
    /// returns.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if neither file nor command line names it; `Stale` if the condition is
    /// not met; or why the port could not be made. Then nothing changed.
    pub fn reset(&self, name: &str, condition: &Condition) -> Result<Port, Vec<Refused>> {
        let mut overlay = self.change();
        let old = self.read().get(name).cloned();
        let aside = self.aside(name);
        let port = old.as_ref().or(aside.as_ref());
        let new = self.with_known(|base, known| base.port(name, known));
        let new = match (new, port) {
            (Some(new), _) => new.map_err(refusals)?,
            (None, None) => return Err(vec![not_found(name)]),
            (None, Some(_)) => {
                let reason = format!("port {name} is neither in the file nor on the command line");
                let remedy = format!("set it anew, or: tandem port remove {name}");
                let refused = Refused::new(RefusedKind::Conflict, reason, remedy);
                return Err(vec![refused.about("name")]);
            }
        };
        condition
            .check("port", name, port.map(Configured::tag))
            .map_err(|stale| vec![stale])?;
        let mut next = overlay.clone();
        next.ports.remove(name);
        self.commit(&mut overlay, next, old.as_ref(), Some(new.clone()))
            .map_err(|refused| vec![refused])?;
        self.removed_lines().remove(name);
        log::info!(
            "port {name}: reset over the API, {}",
            self.whereabouts(&new)
        );
        Ok(self.port_of(&new, self.engine.port(name)))
    }

    /// Ends the port `name`; one of the configuration file stays away at later starts, too.
    ///
    /// # Errors
    /// `NotFound`, `Stale` if the condition is not met, or why it could not be saved; then nothing
    /// changed.
    pub fn remove(&self, name: &str, condition: &Condition) -> Result<Removed, Refused> {
        let mut overlay = self.change();
        let old = self.read().get(name).cloned();
        let aside = self.aside(name);
        let port = old.as_ref().or(aside.as_ref());
        if port.is_none() {
            return Err(not_found(name));
        }
        condition.check("port", name, port.map(Configured::tag))?;
        let mut next = overlay.clone();
        next.ports.remove(name);
        if self.read_base().file.contains_key(name) {
            next.ports.insert(name.to_owned(), None);
        }
        self.commit(&mut overlay, next, old.as_ref(), None)?;
        self.write_aside().remove(name);
        log::info!("port {name}: removed over the API");
        Ok(if self.read_base().is_on_line(name) {
            self.removed_lines().insert(name.to_owned());
            Removed::UntilRestart
        } else {
            Removed::ForGood
        })
    }

    /// Makes a change in the engine, on disk and in our own list, or nowhere.
    fn commit(
        &self,
        overlay: &mut Overlay,
        next: Overlay,
        old: Option<&PortConfig>,
        new: Option<PortConfig>,
    ) -> Result<(), Refused> {
        self.exchange(old, new.as_ref())?;
        if let Err(refused) = self.store.save(&next) {
            self.roll_back(new.as_ref(), old);
            return Err(refused);
        }
        *overlay = next;
        let mut ports = self.write();
        match (new, old) {
            (Some(new), _) => {
                self.write_aside().remove(&new.name);
                ports.insert(new.name.clone(), new);
            }
            (None, Some(old)) => drop(ports.remove(&old.name)),
            (None, None) => {}
        }
        Ok(())
    }

    /// Puts `new` in the place of `old` in the engine. An error leaves `old`. Settings that are the
    /// same by value leave the running port alone, and those of policy its VM.
    fn exchange(&self, old: Option<&PortConfig>, new: Option<&PortConfig>) -> Result<(), Refused> {
        if let (Some(old), Some(new)) = (old, new)
            && self.engine.has_port(&old.name)
        {
            if old.is_same(new) {
                return Ok(());
            }
            if self.engine.change_port(new)? {
                self.publish(EventKind::PortChanged, &new.name);
                return Ok(());
            }
        }
        if let Some(old) = old {
            match self.engine.remove_port(&old.name) {
                Err(refused) if refused.kind != RefusedKind::NotFound => return Err(refused),
                _ if new.is_none() => self.publish(EventKind::PortRemoved, &old.name),
                _ => {}
            }
        }
        let Some(new) = new else { return Ok(()) };
        let event = match old {
            Some(_) => EventKind::PortChanged,
            None => EventKind::PortAdded,
        };
        self.engine.add_port(new, event).inspect_err(|_| {
            if let Some(old) = old
                && let Err(refused) = self.engine.add_port(old, EventKind::PortChanged)
            {
                log::error!("port {}: lost in a change that failed: {refused}", old.name);
                self.publish(EventKind::PortRemoved, &old.name);
            }
        })
    }

    fn roll_back(&self, new: Option<&PortConfig>, old: Option<&PortConfig>) {
        if let Err(refused) = self.exchange(new, old) {
            let name = new.or(old).map_or("", |port| &port.name);
            log::error!("port {name}: a change could not be taken back: {refused}");
        }
    }

    fn whereabouts(&self, port: &PortConfig) -> String {
        match (&port.tap, port.socket_path(&self.run_dir)) {
            (Some(tap), _) => format!("TAP {tap}"),
            (None, Some(path)) => format!("socket {}", path.display()),
            (None, None) => "an inherited socket".to_owned(),
        }
    }

    fn change(&self) -> MutexGuard<'_, Overlay> {
        self.overlay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, PortConfig>> {
        self.ports.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_aside(
        &self,
    ) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, (PortConfig, Refused)>> {
        self.aside.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The settings of a port that was set aside.
    fn aside(&self, name: &str) -> Option<PortConfig> {
        self.read_aside().get(name).map(|(port, _)| port.clone())
    }

    fn write_aside(
        &self,
    ) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, (PortConfig, Refused)>> {
        self.aside.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn removed_lines(&self) -> MutexGuard<'_, BTreeSet<String>> {
        (self.removed_lines.lock()).unwrap_or_else(PoisonError::into_inner)
    }

    fn read_base(&self) -> std::sync::RwLockReadGuard<'_, Base> {
        self.base.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_base(&self) -> std::sync::RwLockWriteGuard<'_, Base> {
        self.base.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, PortConfig>> {
        self.ports.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was checked, if it may be: what would be refused anyway does not depend on the condition
/// (RFC 9110, 13.2.1).
fn unless_stale<T>(
    checked: Result<T, Vec<Refused>>,
    condition: Result<(), Refused>,
) -> Result<T, Vec<Refused>> {
    let is_invalid = |all: &Vec<Refused>| all.iter().any(|one| one.kind == RefusedKind::Invalid);
    if !checked.as_ref().is_err_and(is_invalid) {
        condition.map_err(|stale| vec![stale])?;
    }
    checked
}

fn refusals(problems: Vec<Problem>) -> Vec<Refused> {
    problems
        .into_iter()
        .map(|problem| problem.refused)
        .collect()
}

fn not_found(name: &str) -> Refused {
    none_of("port", name)
}

fn none_of(kind: &str, name: &str) -> Refused {
    let reason = format!("there is no {kind} {name}");
    let remedy = format!("see tandem {kind} list");
    Refused::new(RefusedKind::NotFound, reason, remedy).about("name")
}
