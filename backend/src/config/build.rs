//! From what the sources say to what is: the API's word on a port, else file and command line, in
//! this order; below these the profile that the port names, and the defaults.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::layer::{Configured, place_of};
use super::value::Bad;
use super::{
    Config, DEFAULT_SWITCH, File, Layer, Overlay, PortConfig, Problem, Profiles, SocketRole,
    SwitchConfig, TeamConfig, check,
};

/// What a port is checked against.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// The switches there are.
    pub switches: &'a BTreeMap<String, SwitchConfig>,
    /// The teams there are. As for ports, one of the same name is to be replaced.
    pub teams: &'a BTreeMap<String, TeamConfig>,
    /// The profiles there are, each sound.
    pub profiles: &'a Profiles,
    /// The ports there are. One of the same name may be among them, and is to be replaced.
    pub ports: &'a BTreeMap<String, PortConfig>,
    /// Where relative sockets are.
    pub run_dir: &'a Path,
}

/// Puts the file and the command line together, key by key; the command line wins. Ports that the
/// `overlay` sets are left to [`add_overlay`], and those that it removes have no file. `run_dir` is
/// where relative sockets are.
///
/// # Errors
/// All problems: of values, of keys that contradict each other, and of ports that do.
pub fn build(
    file: &File,
    overlay: &Overlay,
    line: &[Layer],
    run_dir: &Path,
) -> Result<Config, Vec<Problem>> {
    let mut problems = repeated(line);
    let mut config = Config {
        switches: [(DEFAULT_SWITCH.to_owned(), SwitchConfig::default())].into(),
        profiles: file.profiles.clone(),
        ..Config::default()
    };
    for layer in either(&file.teams, &overlay.teams) {
        let (team, wrong) = make(TeamConfig::default(), &[layer], config.known(run_dir));
        config.teams.insert(layer.name.clone(), team);
        problems.extend(wrong);
    }
    for layer in either(&file.switches, &overlay.switches) {
        let (switch, wrong) = make(SwitchConfig::default(), &[layer], config.known(run_dir));
        config.switches.insert(layer.name.clone(), switch);
        problems.extend(wrong);
    }
    for profile in file.profiles.values() {
        // Once here, and not again for each port that names it.
        let mut port = PortConfig::new(profile.name());
        profile.apply(&mut port, &mut problems);
        let crossed = check::port(&port, run_dir).into_iter();
        problems.extend(crossed.map(|refused| Problem {
            place: place_of(&[profile], refused.field.as_deref()).to_owned(),
            refused,
        }));
    }
    let names: BTreeSet<&str> = (file.ports.keys().map(String::as_str))
        .chain(line.iter().map(|layer| layer.name.as_str()))
        .filter(|name| !matches!(overlay.ports.get(*name), Some(Some(_))))
        .collect();
    for name in names {
        let layers: Vec<&Layer> = (file.ports.get(name))
            .filter(|_| !overlay.ports.contains_key(name))
            .into_iter()
            .chain(line.iter().filter(|layer| layer.name == name))
            .collect();
        if layers.is_empty() {
            continue;
        }
        let (port, wrong) = merge(&layers, config.known(run_dir));
        if wrong.is_empty() {
            config.ports.insert(name.to_owned(), port);
        }
        problems.extend(wrong);
    }
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(problems)
    }
}

/// What the file says, where the API does not say otherwise, and what the API says.
fn either<'a, T: Configured>(
    file: &'a BTreeMap<String, Layer<T>>,
    overlay: &'a BTreeMap<String, Layer<T>>,
) -> impl Iterator<Item = &'a Layer<T>> {
    let named = file.iter().filter(|(name, _)| !overlay.contains_key(*name));
    named.map(|(_, layer)| layer).chain(overlay.values())
}

/// Makes what is no port of what one source says of it.
///
/// # Errors
/// All problems of the settings.
pub fn build_one<T: Configured + Default>(
    layer: &Layer<T>,
    known: Known<'_>,
) -> Result<T, Vec<Problem>> {
    build_over(T::default(), layer, known)
}

/// The same over what `start` has of its own.
pub(crate) fn build_over<T: Configured>(
    start: T,
    layer: &Layer<T>,
    known: Known<'_>,
) -> Result<T, Vec<Problem>> {
    let (one, problems) = make(start, &[layer], known);
    if problems.is_empty() {
        Ok(one)
    } else {
        Err(problems)
    }
}

impl Config {
    /// What this has, to check a port against.
    pub(crate) fn known<'a>(&'a self, run_dir: &'a Path) -> Known<'a> {
        Known {
            switches: &self.switches,
            teams: &self.teams,
            profiles: &self.profiles,
            ports: &self.ports,
            run_dir,
        }
    }
}

/// A port given twice on the command line: which of the two is meant?
fn repeated(line: &[Layer]) -> Vec<Problem> {
    let mut seen = BTreeSet::new();
    line.iter()
        .filter(|layer| !seen.insert(&layer.name))
        .map(|layer| {
            let remedy = "give all its keys in one --port";
            Bad::new("the port is given twice", remedy).at(&layer.place, Some("name"))
        })
        .collect()
}

/// Adds the ports set over the API. Each replaces all that file and command line say of it, as it
/// did when it was set. Hosts change while a daemon is down: an entry that is no port any more goes
/// to [`Config::set_aside`] and keeps no other from starting.
pub fn add_overlay(config: &mut Config, overlay: &Overlay, run_dir: &Path) {
    for (name, layer) in &overlay.ports {
        // `--socket-path` and `--fd` are a contract with the VMM's manager.
        let Some(layer) = layer.as_ref().filter(|_| !config.ports.contains_key(name)) else {
            continue;
        };
        let (port, wrong) = merge(&[layer], config.known(run_dir));
        match wrong.into_iter().next() {
            None => drop(config.ports.insert(name.clone(), port)),
            Some(first) => config.set_aside.push((port, first.refused)),
        }
    }
}

/// Makes one port of what its sources say, those that win last.
///
/// # Errors
/// All problems of the port.
pub fn build_port(layers: &[&Layer], known: Known<'_>) -> Result<PortConfig, Vec<Problem>> {
    let (port, problems) = merge(layers, known);
    if problems.is_empty() {
        Ok(port)
    } else {
        Err(problems)
    }
}

/// Keys of a profile that mean nothing beside what the port has itself, which wins.
fn excluded(layers: &[&Layer]) -> Vec<&'static str> {
    let mut own = PortConfig::new("");
    for layer in layers {
        layer.apply(&mut own, &mut Vec::new());
    }
    let mut keys = Vec::new();
    if own.tap.is_some() {
        keys.extend(check::NOT_A_TAPS);
    }
    if own.socket_role == SocketRole::Connect {
        keys.extend(check::NOT_A_CONNECTORS);
    }
    if own.vlan.is_some() {
        keys.extend(["trunk_vlans", "native_vlan"]);
    }
    if own.trunk_vlans.is_some() {
        keys.push("vlan");
    }
    keys
}

/// The port as far as it can be made out, and all that is wrong with it.
fn merge(layers: &[&Layer], known: Known<'_>) -> (PortConfig, Vec<Problem>) {
    let name = layers.first().map_or("", |layer| layer.name.as_str());
    let mut port = PortConfig::new(name);
    let mut all = layers.to_vec();
    let profile = layers
        .iter()
        .rev()
        .find_map(|layer| layer.text_of("profile"));
    if let Some(profile) = profile.and_then(|name| known.profiles.get(name)) {
        // What is wrong with it was found where it is written.
        profile.apply_but(&excluded(layers), &mut port, &mut Vec::new());
        all.insert(0, profile);
    }
    make_over(port, layers, &all, known)
}

/// As far as it can be made out, what these layers say, and all that is wrong with it.
fn make<T: Configured>(start: T, layers: &[&Layer<T>], known: Known<'_>) -> (T, Vec<Problem>) {
    make_over(start, layers, layers, known)
}

/// The same over what `start` has of its own; `all` are all layers, those that win last.
fn make_over<T: Configured>(
    mut start: T,
    layers: &[&Layer<T>],
    all: &[&Layer<T>],
    known: Known<'_>,
) -> (T, Vec<Problem>) {
    let name = layers.first().map_or("", |layer| layer.name.as_str());
    let mut problems = Vec::new();
    for layer in layers {
        layer.apply(&mut start, &mut problems);
    }
    let mut crossed = start.check(name, known);
    // A key that is wrong by itself has its default here: what follows from that would mislead.
    let known = |key: &Option<String>| problems.iter().any(|p: &Problem| p.refused.field == *key);
    crossed.retain(|refused| !known(&refused.field));
    problems.extend(crossed.into_iter().map(|refused| Problem {
        place: place_of(all, refused.field.as_deref()).to_owned(),
        refused,
    }));
    (start, problems)
}
