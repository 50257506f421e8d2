//! What of its privileges the daemon keeps, and who does the rest.

use std::path::Path;
use std::sync::Arc;

use super::args::{Args, Sandbox};
use super::dirs::OwnDir;
use super::{CONFIG_FILE, system};
use crate::broker::Broker;
use crate::control::{Refused, RefusedKind};
use crate::sandbox::{self, Paths};

/// Refuses directories that are of use to this user only with privileges, before anything is in
/// them.
pub(super) fn check(args: &Args, own: &[&Path; 2]) -> Result<(), Refused> {
    if args.sandbox == Sandbox::Off {
        return Ok(());
    }
    let own = own.map(Path::to_owned);
    let unwritable = sandbox::unwritable(&own);
    match unwritable.map_err(|error| system("capabilities cannot be set", &error))? {
        None => Ok(()),
        Some((path, error)) => {
            let path = path.display();
            let reason = format!("{path} cannot be used without privileges: {error}");
            let remedy = "make the daemon's user its owner, or choose another";
            Err(Refused::new(RefusedKind::System, reason, remedy))
        }
    }
}

/// Who does what takes privilege: a process of its own, unless the daemon keeps its privileges.
pub(super) fn broker(args: &Args) -> Result<Arc<Broker>, Refused> {
    match args.sandbox {
        Sandbox::Off => Ok(Broker::in_process()),
        Sandbox::On => Broker::start().map_err(|error| {
            let reason = format!("the privileged process cannot be started: {error}");
            let remedy = "see that /proc is there and the limit on processes, or use --sandbox off";
            Refused::new(RefusedKind::System, reason, remedy)
        }),
    }
}

/// Gives up what the daemon does not need from now on. `taken` are its directories, whose paths
/// are `own`; `group` is the control group in which VMs get theirs.
pub(super) fn confine(
    args: &Args,
    taken: [Option<&OwnDir>; 2],
    own: &[&Path; 2],
    group: Option<&Path>,
) -> Result<(), Refused> {
    if args.sandbox == Sandbox::Off {
        log::info!("sandbox: off");
        return Ok(());
    }
    let made_in = taken.into_iter().flatten().flat_map(OwnDir::made_in);
    let mut read = config_dirs(args);
    // How fast the devices of uplinks are.
    read.push("/sys/devices".into());
    let paths = Paths {
        own: own.map(Path::to_owned).into(),
        read,
        made_in: made_in.map(Path::to_owned).collect(),
        group: group.map(Path::to_owned),
        connects: args.migration_keys.is_some(),
    };
    let report = sandbox::enter(&paths)
        .map_err(|error| system("the sandbox cannot be entered (see --sandbox off)", &error))?;
    if report.is_partial() {
        log::warn!("sandbox: {report}");
    } else {
        log::info!("sandbox: {report}");
    }
    Ok(())
}

/// Where the file is that SIGHUP reads again. Not the file alone: another one takes its place.
fn config_dirs(args: &Args) -> Vec<std::path::PathBuf> {
    let file = match &args.config {
        Some(file) => file,
        None if args.is_program() => return Vec::new(),
        None => Path::new(CONFIG_FILE),
    };
    let Ok(file) = std::path::absolute(file) else {
        return Vec::new();
    };
    // And where a link leads.
    let real = std::fs::canonicalize(&file).ok();
    let files = [Some(file), real];
    let dirs = files.iter().flatten().filter_map(|file| file.parent());
    dirs.map(Path::to_owned).collect()
}
