//! What goes wrong between Tandem and a VMM, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{ANSWER_TIME, MESSAGE_LEN};

/// Why a VMM has not done what it was asked, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VmmError {
    /// Nobody listens.
    #[error("no VMM answers on {}: start the VM, or name the socket of its monitor or API", .0.display())]
    NotRunning(PathBuf),
    /// The socket belongs to others.
    #[error("{} may not be opened by this user: use sudo, or the user that the VMM runs as", .0.display())]
    NotAllowed(PathBuf),
    /// The operating system's error.
    #[error("{} cannot be opened ({why}): check the path of the socket", .path.display())]
    Socket {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// QEMU serves one client at a time on a monitor.
    #[error(
        "{} does not greet within {} s: most likely another program, such as libvirt, is connected to this monitor; \
         give QEMU one more (-qmp unix:PATH,server=on,wait=off), or end the other",
        .0.display(), ANSWER_TIME.as_secs()
    )]
    Busy(PathBuf),
    /// It is no monitor of QEMU.
    #[error("{} is not a QMP socket: name the one that was given to QEMU as -qmp unix:PATH", .0.display())]
    NotQmp(PathBuf),
    /// It has ended, or closed the connection.
    #[error("the VMM is gone ({0}): see its log, and look on which of the hosts the VM runs")]
    Gone(String),
    /// It takes too long.
    #[error(
        "the VMM did not answer to {} within {} s: see its log, and whether its host is overloaded",
        .0, ANSWER_TIME.as_secs()
    )]
    Slow(String),
    /// A message that is too long.
    #[error(
        "the VMM sent a message of more than {MESSAGE_LEN} bytes: check that the socket is its monitor or \
         API, and its version"
    )]
    TooLong,
    /// What it says makes no sense.
    #[error(
        "what the VMM says to {what} makes no sense ({why}): check that the socket is its monitor or API, and its \
         version"
    )]
    Protocol {
        /// What it was asked.
        what: String,
        /// What is wrong with the answer.
        why: String,
    },
    /// It says no.
    #[error("the VMM refused {what}: {why}; see to that, and start the migration again")]
    Refused {
        /// What it was asked.
        what: String,
        /// Its words.
        why: String,
    },
    /// The VM would run on the other host before its memory is there.
    #[error(
        "post-copy is switched on, and a port cannot serve a VM whose memory is not there yet: switch it off on both \
         hosts (migrate-set-capabilities, postcopy-ram: false; virsh migrate without --postcopy), and start the \
         migration again"
    )]
    Postcopy,
    /// A capability with which a VM that is migrated goes on here, a snapshot or a copy being all that moves.
    #[error(
        "{0} is switched on, and the VM would stay here: switch it off (migrate-set-capabilities, {0}: false), and \
         start the migration again"
    )]
    Stays(String),
    /// Not with this VMM.
    #[error("{vmm} cannot {what}: {remedy}")]
    Unsupported {
        /// Which.
        vmm: String,
        /// What it was to do.
        what: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// It was not begun.
    #[error("there is no migration to follow: start one")]
    NotBegun,
    /// It cannot be run.
    #[error("{program} cannot be run ({why}): install it (libvirt-clients), or see to the PATH")]
    Program {
        /// Which.
        program: String,
        /// What the system said.
        why: String,
    },
    /// Its events cannot be read.
    #[error(
        "the events in {} cannot be read ({why}): name the file that was given to the VMM as --event-monitor path=PATH",
        .path.display()
    )]
    Events {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The operating system has run out of something.
    #[error(
        "the operating system refused what it takes to ask a VMM ({0}): see to that, and try again"
    )]
    System(String),
}

impl VmmError {
    /// A socket could not be opened.
    pub(super) fn unopened(path: &Path, error: &io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::NotRunning(path),
            io::ErrorKind::PermissionDenied => Self::NotAllowed(path),
            // As many wait already as there is room for.
            io::ErrorKind::WouldBlock => Self::Busy(path),
            _ => Self::Socket {
                path,
                why: error.to_string(),
            },
        }
    }

    pub(super) fn protocol(what: &str, why: impl ToString) -> Self {
        Self::Protocol {
            what: what.to_owned(),
            why: super::words(&why.to_string()),
        }
    }
}
