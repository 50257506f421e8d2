//! What the daemon gives up once it has what it needs: see `docs/security.md`.
//!
//! All of it is given up by the only thread there is, and every thread started later inherits
//! that. Threads that carry frames give up more when they start.

mod calls;
mod capabilities;
mod filter;
mod paths;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::thread::CapabilitySet;
use seccompiler::BpfProgram;

use crate::sys::{self, Log};

pub(crate) use paths::Paths;

/// Capabilities that the broker keeps, of those it was started with.
const OF_THE_BROKER: CapabilitySet = CapabilitySet::NET_ADMIN // TAP devices, a link to be set up
    .union(CapabilitySet::NET_RAW) // packet sockets, AF_XDP
    .union(CapabilitySet::BPF) // AF_XDP
    .union(CapabilitySet::IPC_LOCK) // AF_XDP's memory
    .union(CapabilitySet::CHOWN) // sockets for a group that the daemon is not in
    .union(CapabilitySet::DAC_OVERRIDE) // sockets in the directories of other users
    .union(CapabilitySet::SYS_PTRACE); // how a VMM has mapped its memory

/// What is in force.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// System calls that are left; none: the kernel has no seccomp.
    calls: Option<usize>,
    /// Landlock's version; none: the kernel does not have it.
    landlock: Option<i32>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no capabilities")?;
        match self.calls {
            Some(calls) => write!(f, ", {calls} system calls")?,
            None => write!(f, ", all system calls: this kernel has no seccomp filters")?,
        }
        match self.landlock {
            Some(version) => write!(f, ", Landlock {version}"),
            None => write!(f, ", no limit on files: this kernel has no Landlock"),
        }
    }
}

impl Report {
    /// Is anything missing that a newer kernel has?
    pub(crate) fn is_partial(&self) -> bool {
        self.calls.is_none() || self.landlock.is_none()
    }
}

/// The filters of threads that carry frames, the second a quiet one; there are some once the process
/// has a filter.
static DATA_PATH: OnceLock<[BpfProgram; 2]> = OnceLock::new();

/// Gives up all privileges but `paths` and what the list of system calls has. Only while the
/// process has a single thread.
///
/// # Errors
/// A capability cannot be given up, or a path cannot be opened.
pub(crate) fn enter(paths: &Paths) -> io::Result<Report> {
    look_around();
    capabilities::keep(CapabilitySet::empty())?;
    rustix::thread::set_no_new_privs(true)?;
    let landlock = paths::restrict(paths)?;
    let list = calls::daemon(paths.connects);
    let quiet = filter::quiet(&[calls::NEW_THREAD])?;
    let installed = filter::install(&list)? && filter::install_quiet(&quiet)?;
    let calls = installed.then_some(list.len());
    if calls.is_some() {
        let list = filter::compile(&calls::data_path())?;
        let _ = DATA_PATH.set([list, filter::quiet(&[calls::SETTINGS])?]);
    }
    Ok(Report { calls, landlock })
}

/// Lets be looked up what is looked up once: where the clock is read without a system call.
fn look_around() {
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
}

/// Gives up what a broker does not need.
pub(crate) fn enter_broker() -> io::Result<()> {
    look_around();
    capabilities::keep(OF_THE_BROKER)?;
    rustix::thread::set_no_new_privs(true)?;
    filter::install(&calls::broker()).map(drop)
}

/// Gives up what a thread that carries frames does not need, if the process is in its sandbox.
pub(crate) fn enter_data_path() {
    static SAID: AtomicBool = AtomicBool::new(false);
    let Some([list, quiet]) = DATA_PATH.get() else {
        return;
    };
    let installed = sys::install_filter(list, Log::Refusals)
        .and_then(|()| sys::install_filter(quiet, Log::Nothing));
    if let Err(error) = installed
        && !SAID.swap(true, Ordering::Relaxed)
    {
        log::warn!("sandbox: threads that carry frames have the system calls of all: {error}");
    }
}

/// The first of these directories in which files cannot be kept without capabilities.
///
/// # Errors
/// Those of capset(2).
pub(crate) fn unwritable(paths: &[PathBuf]) -> io::Result<Option<(&PathBuf, io::Error)>> {
    capabilities::without(|| {
        paths.iter().find_map(|path| {
            let wanted = Access::WRITE_OK | Access::EXEC_OK;
            let denied = accessat(CWD, path, wanted, AtFlags::EACCESS).err()?;
            Some((path, denied.into()))
        })
    })
}

#[cfg(test)]
mod tests;
