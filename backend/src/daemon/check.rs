//! `--check`: what can be found wrong without making anything.

use std::path::{Path, PathBuf};

use super::{Sources, args::Args, data_cpus, one};
use crate::config::{Config, Overlay, PortConfig, Problem, SocketRole};
use crate::control::{Refused, RefusedKind};
use crate::store::Store;
use crate::sys::group_id;

/// Checks file, command line and what was set over the API, and prints how much there is.
///
/// # Errors
/// All that would keep the daemon from starting, as far as can be seen.
pub(super) fn run(args: &Args) -> Result<(), Vec<Problem>> {
    // Whoever checks may have no such directories, and needs none.
    let dirs = args.dirs().ok();
    let saved = dirs.as_ref().map(|(_, state)| Store::new(state).load());
    let run_dir = dirs.map_or_else(|| PathBuf::from("/run/tandem"), |(run, _)| run);
    let overlay: Overlay = saved.transpose()?.unwrap_or_default();
    let (config, _) = Sources::read(args)?.build(&overlay, &run_dir)?;
    data_cpus(args).map_err(one)?;
    let is_saved = |name: &str| matches!(overlay.ports.get(name), Some(Some(_)));
    let mut problems = Vec::new();
    let aside = config.set_aside.iter().cloned();
    let on_host = (config.ports.values())
        .flat_map(|port| on_host(port, &run_dir).map(|refused| (port.clone(), refused)));
    for (port, refused) in aside.chain(on_host) {
        let place = format!("port {}", port.name);
        if is_saved(&port.name) {
            eprintln!(
                "tandemd: warning: {place} was set over the API and would not start: {refused}"
            );
        } else {
            problems.push(Problem { place, refused });
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    println!("{}", summary(&config));
    Ok(())
}

fn summary(config: &Config) -> String {
    let count =
        |n: usize, one: &str, more: &str| format!("{n} {}", if n == 1 { one } else { more });
    let switches = count(config.switches.len(), "switch", "switches");
    let ports = config.ports.len() + config.set_aside.len();
    let teams = match config.teams.len() {
        0 => String::new(),
        teams => count(teams, "team, ", "teams, "),
    };
    let ports = count(ports, "port", "ports");
    format!("no problems: {switches}, {teams}{ports}")
}

/// What a port names on this host that is not there.
fn on_host(port: &PortConfig, run_dir: &Path) -> impl Iterator<Item = Refused> {
    let invalid = |key: &str, reason: String, remedy: &str| {
        Refused::new(RefusedKind::Invalid, reason, remedy).about(key)
    };
    let group = port.socket_group.as_ref();
    let no_group = group
        .filter(|group| group_id(group).is_none())
        .map(|group| {
            let reason = format!("there is no group {group}");
            invalid("socket_group", reason, "create it, or choose another")
        });
    let path = port
        .socket_path(run_dir)
        .filter(|_| port.socket_role == SocketRole::Listen);
    // The run directory itself is made at the start.
    let dir = path.as_deref().and_then(Path::parent);
    let no_dir = dir
        .filter(|dir| *dir != run_dir && !dir.is_dir())
        .map(|dir| {
            let reason = format!("there is no directory {}", dir.display());
            invalid("socket", reason, "make it, or choose another path")
        });
    no_group.into_iter().chain(no_dir)
}
