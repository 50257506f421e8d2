//! Filters of system calls (seccomp(2)).
//!
//! A call that is not on the list ends with ENOSYS, as on a kernel that does not have it: newer C
//! libraries then fall back to what older kernels have, and a call that nobody thought of costs
//! one feature and not every VM its network. The kernel's log names it.

use std::io;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use super::calls::List;
use crate::sys::{self, Log};

/// Makes a filter of a list.
pub(super) fn compile(list: &List) -> io::Result<BpfProgram> {
    let refuse = SeccompAction::Errno(libc::ENOSYS as u32);
    program(list, refuse, SeccompAction::Allow)
}

fn program(list: &List, otherwise: SeccompAction, listed: SeccompAction) -> io::Result<BpfProgram> {
    let arch = std::env::consts::ARCH
        .try_into()
        .map_err(io::Error::other)?;
    let filter = SeccompFilter::new(list.clone(), otherwise, listed, arch);
    let filter = filter.map_err(io::Error::other)?;
    filter.try_into().map_err(io::Error::other)
}

/// Restricts the calling thread, and those it starts, to a list; false if the kernel cannot.
pub(super) fn install(list: &List) -> io::Result<bool> {
    supported(sys::install_filter(&compile(list)?, Log::Refusals))
}

/// A filter that refuses calls without a word in the log; those that are refused anyway, and that
/// the C library is known to try.
pub(super) fn quiet(calls: &[libc::c_long]) -> io::Result<BpfProgram> {
    let list = calls.iter().map(|call| (*call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::ENOSYS as u32);
    program(&list, SeccompAction::Allow, refuse)
}

/// Restricts the calling thread, and those it starts, by a filter: [`quiet`], and so newer than
/// the one that would refuse the same calls and log that: the newer one's word counts.
pub(super) fn install_quiet(filter: &BpfProgram) -> io::Result<bool> {
    supported(sys::install_filter(filter, Log::Nothing))
}

fn supported(installed: io::Result<()>) -> io::Result<bool> {
    match installed {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
