//! Settings of one port as one source gives them: keys with values, and the place of each.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Serialize;
use serde_json::{Map, Value};

use super::keys::{self, Key, Kind, PORT_KEYS, SWITCH_KEYS, TEAM_KEYS};
use super::value::{self, Bad};
use super::{Known, Origin, PortConfig, Problem, SwitchConfig, TeamConfig, check};
use crate::control::{Refused, RefusedKind};

/// Something that is configured by keys. Serializes to what the API shows of its settings.
pub trait Configured: Clone + fmt::Debug + Serialize + Send + Sync + Sized + 'static {
    /// Its keys, in the order they are shown.
    fn keys() -> &'static [Key<Self>];

    /// Where the settings that are no defaults came from, by key.
    fn origin(&self) -> &BTreeMap<&'static str, Origin>;

    /// The same, to be written.
    fn origin_mut(&mut self) -> &mut BTreeMap<&'static str, Origin>;

    /// Checks the settings of the one that is called `name` against each other, and against what else
    /// there is.
    fn check(&self, name: &str, known: Known<'_>) -> Vec<Refused>;

    /// Where each setting came from.
    fn origins(&self) -> BTreeMap<&'static str, Origin> {
        let set = |key| self.origin().get(key).copied().unwrap_or(Origin::Default);
        let keys = Self::keys().iter().map(|key| key.name);
        keys.map(|key| (key, set(key))).collect()
    }

    /// An entity tag (RFC 9110, 8.8.3) of the settings and where each came from: the same for the same,
    /// and in all likelihood another for others. Counters and state are no part of it.
    fn tag(&self) -> String {
        let settings = serde_json::to_string(&(self, self.origin())).unwrap_or_default();
        let mut hasher = DefaultHasher::new();
        settings.hash(&mut hasher);
        format!("\"{:016x}\"", hasher.finish())
    }

    /// The settings that somebody set for this one, as the API takes them.
    fn settings(&self) -> Map<String, Value> {
        let all = serde_json::to_value(self).unwrap_or_default();
        let own = (self.origin().iter()).filter(|(_, origin)| **origin != Origin::Profile);
        own.map(|(key, _)| ((*key).to_owned(), all[*key].clone()))
            .collect()
    }

    /// Whether both ask for the same, whoever asked.
    fn is_same(&self, other: &Self) -> bool {
        let value = |config: &Self| serde_json::to_value(config).ok();
        value(self) == value(other)
    }
}

impl Configured for PortConfig {
    fn keys() -> &'static [Key<Self>] {
        PORT_KEYS
    }

    fn origin(&self) -> &BTreeMap<&'static str, Origin> {
        &self.origin
    }

    fn check(&self, _: &str, known: Known<'_>) -> Vec<Refused> {
        let mut wrong = check::port(self, known.run_dir);
        wrong.extend(check::among(self, known));
        wrong
    }

    fn is_same(&self, other: &Self) -> bool {
        let value = |port: &Self| serde_json::to_value(port).ok();
        let inherited = |port: &Self| port.socket_fd.is_some();
        inherited(self) == inherited(other) && value(self) == value(other)
    }

    fn origin_mut(&mut self) -> &mut BTreeMap<&'static str, Origin> {
        &mut self.origin
    }
}

impl Configured for SwitchConfig {
    fn keys() -> &'static [Key<Self>] {
        SWITCH_KEYS
    }

    fn origin(&self) -> &BTreeMap<&'static str, Origin> {
        &self.origin
    }

    fn check(&self, name: &str, known: Known<'_>) -> Vec<Refused> {
        check::switch(name, self, known)
    }

    fn origin_mut(&mut self) -> &mut BTreeMap<&'static str, Origin> {
        &mut self.origin
    }
}

impl Configured for TeamConfig {
    fn keys() -> &'static [Key<Self>] {
        TEAM_KEYS
    }

    fn origin(&self) -> &BTreeMap<&'static str, Origin> {
        &self.origin
    }

    fn check(&self, name: &str, known: Known<'_>) -> Vec<Refused> {
        let mut wrong = check::team(self);
        wrong.extend(check::team_among(name, self, known));
        wrong
    }

    fn origin_mut(&mut self) -> &mut BTreeMap<&'static str, Origin> {
        &mut self.origin
    }
}

/// One key and its value.
#[derive(Clone, Debug)]
pub(super) struct Setting<T: Configured> {
    pub(super) key: &'static Key<T>,
    pub(super) value: Value,
    /// Where a user finds it.
    pub(super) place: String,
}

/// What one source says of one port, or of something else that has keys.
#[derive(Clone, Debug)]
pub struct Layer<T: Configured = PortConfig> {
    pub(super) name: String,
    pub(super) origin: Origin,
    pub(super) place: String,
    pub(super) settings: Vec<Setting<T>>,
}

impl Bad {
    pub(super) fn refused(self, key: Option<&str>) -> Refused {
        let refused = Refused::new(RefusedKind::Invalid, self.reason, self.remedy);
        match key {
            Some(key) => refused.about(key),
            None => refused,
        }
    }

    pub(super) fn at(self, place: &str, key: Option<&str>) -> Problem {
        Problem {
            place: place.to_owned(),
            refused: self.refused(key),
        }
    }
}

impl Layer {
    /// Reads what follows `--port`: `NAME[,key=value…]`, lists joined with `+`.
    ///
    /// # Errors
    /// All that is wrong with keys and names; values are checked by [`super::build`].
    pub fn from_line(line: &str) -> Result<Self, Vec<Problem>> {
        let mut words = line.split(',');
        let name = words.next().unwrap_or_default();
        let mut layer = Self::empty(name, Origin::CommandLine, format!("--port {name}"))?;
        let mut problems = Vec::new();
        for word in words {
            let (key, text) = match word.split_once('=') {
                Some((key, text)) => (key, Some(text)),
                None => (word, None),
            };
            if let Err(bad) = layer.add_text(key, text) {
                problems.push(bad.at(&layer.place, Some(key)));
            }
        }
        if problems.is_empty() {
            Ok(layer)
        } else {
            Err(problems)
        }
    }

    /// Adds a setting whose value is text.
    fn add_text(&mut self, key: &str, text: Option<&str>) -> Result<(), Bad> {
        let key = keys::find(PORT_KEYS, key)?;
        if self.settings.iter().any(|other| other.key.name == key.name) {
            return Err(Bad::new(
                "it is given twice",
                "give it once; lists join with +",
            ));
        }
        let joined = match (key.kind, text) {
            (Kind::List, Some(text)) => Some(text.replace('+', ",")),
            (_, text) => text.map(str::to_owned),
        };
        let value = value::from_text(key.kind, joined.as_deref())?;
        self.push(key, value, self.place.clone());
        Ok(())
    }
}

impl<T: Configured> Layer<T> {
    /// The name of what it is about.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads the keys of a JSON object; `null` means that a key is not given.
    ///
    /// # Errors
    /// All that is wrong with keys and the name; values are checked by [`super::build`].
    pub fn from_json(
        name: &str,
        origin: Origin,
        place: &str,
        object: &Map<String, Value>,
    ) -> Result<Self, Vec<Problem>> {
        let mut layer = Self::empty(name, origin, place.to_owned())?;
        let mut problems = Vec::new();
        for (key, value) in object {
            match keys::find(T::keys(), key) {
                Ok(_) if value.is_null() => {}
                Ok(key) => layer.push(key, value.clone(), place.to_owned()),
                Err(bad) => problems.push(bad.at(place, Some(key))),
            }
        }
        if problems.is_empty() {
            Ok(layer)
        } else {
            Err(problems)
        }
    }

    pub(super) fn empty(name: &str, origin: Origin, place: String) -> Result<Self, Vec<Problem>> {
        value::check_name(name).map_err(|bad| vec![bad.at(&place, Some("name"))])?;
        Ok(Self {
            name: name.to_owned(),
            origin,
            place,
            settings: Vec::new(),
        })
    }

    pub(super) fn push(&mut self, key: &'static Key<T>, value: Value, place: String) {
        self.settings.push(Setting { key, value, place });
    }

    /// The value of a key, if it is text.
    pub(super) fn text_of(&self, key: &str) -> Option<&str> {
        let mut named = self
            .settings
            .iter()
            .filter(|setting| setting.key.name == key);
        named.next().and_then(|setting| setting.value.as_str())
    }

    /// The settings as a JSON object.
    pub fn to_json(&self) -> Map<String, Value> {
        self.settings
            .iter()
            .map(|s| (s.key.name.to_owned(), s.value.clone()))
            .collect()
    }

    /// Applies the settings to `config`, each checked by itself.
    pub(super) fn apply(&self, config: &mut T, problems: &mut Vec<Problem>) {
        self.apply_but(&[], config, problems);
    }

    /// The same without these keys.
    pub(super) fn apply_but(&self, but: &[&str], config: &mut T, problems: &mut Vec<Problem>) {
        let settings = self.settings.iter();
        for Setting { key, value, place } in settings.filter(|s| !but.contains(&s.key.name)) {
            match (key.set)(config, value) {
                Ok(()) => {
                    config.origin_mut().insert(key.name, self.origin);
                }
                Err(bad) => problems.push(bad.at(place, Some(key.name))),
            }
        }
    }
}

/// The value of the flag for `key`, as JSON.
///
/// # Errors
/// The reason, in words, if there is no such key or its value is missing.
pub fn flag_value<T>(key: &'static Key<T>, text: Option<&str>) -> Result<Value, Refused> {
    value::from_text(key.kind, text).map_err(|bad| bad.refused(Some(key.name)))
}

/// Where a key of one port, or of something else, was set: in the last of these layers that has it.
pub(super) fn place_of<'a, T: Configured>(layers: &[&'a Layer<T>], key: Option<&str>) -> &'a str {
    let settings = layers.iter().rev().flat_map(|layer| &layer.settings);
    let mut named = settings.filter(|setting| Some(setting.key.name) == key);
    match (named.next(), layers.last()) {
        (Some(setting), _) => &setting.place,
        (None, Some(layer)) => &layer.place,
        (None, None) => "",
    }
}

/// Profiles by name.
pub type Profiles = BTreeMap<String, Layer>;

/// What was set over the API.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    /// Settings that replace what file and command line say of a port, or `None` for a port of the
    /// file that was removed.
    pub ports: BTreeMap<String, Option<Layer>>,
    /// Settings that replace what the file says of a switch.
    pub switches: BTreeMap<String, Layer<SwitchConfig>>,
    /// Settings that replace what the file says of a team.
    pub teams: BTreeMap<String, Layer<TeamConfig>>,
}
