//! The directories of a daemon: where they are, and that no two daemons share one.

use std::env;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::control::{Refused, RefusedKind};

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The value of an environment variable that names an absolute path.
fn absolute(variable: &str) -> Option<PathBuf> {
    env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

/// The run directory when none is named: `/run/tandem` for root, else `$XDG_RUNTIME_DIR/tandem`.
///
/// # Errors
/// That there is no such variable, and what to do.
pub fn default_run_dir() -> Result<PathBuf, Refused> {
    if is_root() {
        return Ok("/run/tandem".into());
    }
    let dir = absolute("XDG_RUNTIME_DIR").map(|dir| dir.join("tandem"));
    dir.ok_or_else(|| {
        let reason = "XDG_RUNTIME_DIR is not set";
        Refused::new(
            RefusedKind::Invalid,
            reason,
            "set it, or give --run-dir (CLI: --api-socket)",
        )
    })
}

/// The state directory when none is named: `/var/lib/tandem` for root, else
/// `$XDG_STATE_HOME/tandem`, by default `~/.local/state/tandem`.
///
/// # Errors
/// That there is no such variable, and what to do.
pub(super) fn default_state_dir() -> Result<PathBuf, Refused> {
    if is_root() {
        return Ok("/var/lib/tandem".into());
    }
    let home = || absolute("HOME").map(|home| home.join(".local/state"));
    let dir = absolute("XDG_STATE_HOME")
        .or_else(home)
        .map(|dir| dir.join("tandem"));
    dir.ok_or_else(|| {
        let reason = "neither XDG_STATE_HOME nor HOME is set";
        Refused::new(RefusedKind::Invalid, reason, "set one, or give --state-dir")
    })
}

/// A directory of ours: made if it was not there, locked against other daemons. What was made is
/// removed again when dropped, if it is empty.
#[derive(Debug)]
pub(super) struct OwnDir {
    made: Made,
    _lock: File,
}

impl OwnDir {
    /// Makes or takes `path`; `option` is what a user sets it with.
    ///
    /// # Errors
    /// It cannot be made, is no directory, or another daemon has it.
    pub(super) fn take(path: &Path, mode: u32, option: &str) -> Result<Self, Refused> {
        let system = |error: io::Error| {
            let reason = format!("cannot use {}: {error}", path.display());
            let remedy = "check its owner and permissions, or choose another";
            Refused::new(RefusedKind::System, reason, remedy).about(option)
        };
        let made = make(path, mode).map_err(system)?;
        // The lock is on the directory itself, so that it leaves no file behind.
        let lock = File::open(path).map_err(system)?;
        if !lock.metadata().map_err(system)?.is_dir() {
            return Err(system(io::ErrorKind::NotADirectory.into()));
        }
        match lock.try_lock() {
            Ok(()) => Ok(Self { made, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                let reason = format!("another tandemd uses {}", path.display());
                let remedy = "stop it, or choose another directory";
                Err(Refused::new(RefusedKind::Conflict, reason, remedy).about(option))
            }
            Err(TryLockError::Error(error)) => Err(system(error)),
        }
    }

    /// The directories in which some were made that will be removed again.
    pub(super) fn made_in(&self) -> impl Iterator<Item = &Path> {
        self.made.0.iter().filter_map(|dir| dir.parent())
    }
}

/// Makes `path` and what leads to it, where missing.
fn make(path: &Path, mode: u32) -> io::Result<Made> {
    let mut attempts = 0;
    loop {
        let mut made = Made(Vec::new());
        let missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.exists()).collect();
        let result = missing.into_iter().rev().try_for_each(|dir| {
            match DirBuilder::new().mode(mode).create(dir) {
                Ok(()) => made.0.insert(0, dir.to_owned()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            Ok(())
        });
        attempts += 1;
        match result {
            Ok(()) => return Ok(made),
            // Another daemon that ended has just removed the parent, which it had made.
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempts < 5 => {}
            Err(error) => return Err(error),
        }
    }
}

/// Directories that were made, the innermost first; those that are empty go when dropped.
#[derive(Debug)]
struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        for dir in &self.0 {
            if fs::remove_dir(dir).is_err() {
                break;
            }
        }
    }
}
