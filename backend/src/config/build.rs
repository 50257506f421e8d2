//! From what the sources say to what is: defaults, file, API and command line, in this order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::layer::place_of;
use super::{
    Config, DEFAULT_SWITCH, File, Layer, Overlay, PortConfig, Problem, SwitchConfig, check,
};

/// Puts the sources together. What is set over the API stands in the file's place; the command line
/// wins key by key. `run_dir` is where relative sockets are.
///
/// # Errors
/// All problems: of values, of keys that contradict each other, and of ports that do.
pub fn build(
    file: &File,
    overlay: &Overlay,
    line: &[Layer],
    run_dir: &Path,
) -> Result<Config, Vec<Problem>> {
    let mut switches = file.switches.clone();
    switches.entry(DEFAULT_SWITCH.to_owned()).or_default();
    let mut config = Config {
        switches,
        ports: BTreeMap::new(),
    };
    let mut problems = Vec::new();
    let names: BTreeSet<&str> = (file.ports.keys().chain(overlay.keys()).map(String::as_str))
        .chain(line.iter().map(|layer| layer.name.as_str()))
        .collect();
    for name in names {
        let base = match overlay.get(name) {
            Some(replaced) => replaced.as_ref(),
            None => file.ports.get(name),
        };
        let layers: Vec<&Layer> = base
            .into_iter()
            .chain(line.iter().filter(|layer| layer.name == name))
            .collect();
        if layers.is_empty() {
            continue;
        }
        match merge(&layers, &config.switches, &config.ports, run_dir) {
            Ok(port) => drop(config.ports.insert(name.to_owned(), port)),
            Err(wrong) => problems.extend(wrong),
        }
    }
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(problems)
    }
}

/// Makes one port of what one source says, checked against the `others`. One of the same name may
/// be among them, and is to be replaced.
///
/// # Errors
/// All problems of the port.
pub fn build_port(
    layer: &Layer,
    switches: &BTreeMap<String, SwitchConfig>,
    others: &BTreeMap<String, PortConfig>,
    run_dir: &Path,
) -> Result<PortConfig, Vec<Problem>> {
    merge(&[layer], switches, others, run_dir)
}

fn merge(
    layers: &[&Layer],
    switches: &BTreeMap<String, SwitchConfig>,
    others: &BTreeMap<String, PortConfig>,
    run_dir: &Path,
) -> Result<PortConfig, Vec<Problem>> {
    let name = layers.first().map_or("", |layer| layer.name.as_str());
    let mut port = PortConfig::new(name);
    let mut problems = Vec::new();
    for layer in layers {
        layer.apply(&mut port, &mut problems);
    }
    let mut crossed = check::port(&port, run_dir);
    crossed.extend(check::among(&port, others.values(), switches, run_dir));
    // A key that is wrong by itself has its default here: what follows from that would mislead.
    let known = |key: &Option<String>| problems.iter().any(|p: &Problem| p.refused.field == *key);
    crossed.retain(|refused| !known(&refused.field));
    problems.extend(crossed.into_iter().map(|refused| Problem {
        place: place_of(layers, refused.field.as_deref()).to_owned(),
        refused,
    }));
    if problems.is_empty() {
        Ok(port)
    } else {
        Err(problems)
    }
}
