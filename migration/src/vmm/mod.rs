//! The VMM of a VM, as far as it moves the VM to another host.
//!
//! ```text
//!   connect ── migrate ──► follow … follow ──► Outcome
//!                             └── cancel ──► follow … ──► Cancelled
//! ```
//!
//! * [`Qmp`]: QEMU, by its monitor;
//! * [`CloudHypervisor`]: cloud-hypervisor, by its HTTP API;
//! * [`Libvirt`]: libvirt, by its program virsh.
//!
//! All calls block. They are for a process that does nothing else meanwhile, such as the CLI, and for a thread that
//! is none of a tokio runtime's: they would panic there. What a VMM says is not trusted: answers have limits of time
//! and size, and words of the VMM are cut to [`WORDS_LEN`] bytes without control characters, so that they can be shown.

mod cloud_hypervisor;
mod error;
mod events;
mod http;
mod libvirt;
mod monitor;
mod qmp;

use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::{Builder, Runtime};

pub use cloud_hypervisor::CloudHypervisor;
pub use error::VmmError;
pub use libvirt::{Libvirt, LibvirtOptions};
pub use qmp::Qmp;

/// Time that a VMM has to answer.
pub const ANSWER_TIME: Duration = Duration::from_secs(5);
/// From one look at the progress to the next.
pub const INTERVAL: Duration = Duration::from_millis(500);
/// Bytes of one message of a VMM.
pub const MESSAGE_LEN: usize = 1 << 20;
/// Bytes of a VMM's words that are kept.
pub const WORDS_LEN: usize = 1000;

/// What a migration is asked to keep to. What is not given stays as the VMM has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Bytes per second at most. cloud-hypervisor has no such limit, libvirt takes whole MiB.
    pub max_bandwidth: Option<u64>,
    /// Time for which the VM may be stopped, as the VMM plans it.
    pub downtime: Option<Duration>,
    /// Time after which the migration is given up. QEMU and libvirt are told so by [`Vmm::follow`] then;
    /// cloud-hypervisor sees to it by itself, in whole seconds, and has no other way to end a migration.
    pub time: Option<Duration>,
    /// Where the VMM pauses before it hands the VM over (QEMU with `pause-before-switchover`), have it go on at once.
    /// Else somebody else has to.
    pub go_on_at_switchover: bool,
}

/// How far a migration is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The VMM's own name for it; one that came after this was written is passed on. Empty, or `asked`: it has said
    /// nothing of it yet.
    pub state: String,
    /// Bytes of memory sent, if the VMM tells.
    pub transferred: Option<u64>,
    /// Bytes of memory left, if the VMM tells.
    pub remaining: Option<u64>,
    /// Bytes of memory in all, if the VMM tells.
    pub total: Option<u64>,
    /// Milliseconds for which the VM was stopped, or will be by the VMM's estimate, if it tells.
    pub downtime_ms: Option<u64>,
    /// When the VM was stopped on this host, if it was.
    pub stopped_at: Option<SystemTime>,
    /// When it ran again on this host, if it did after that.
    pub resumed_at: Option<SystemTime>,
}

/// How a migration has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The VM is on the other host.
    Completed {
        /// Milliseconds for which it was stopped by the source's clock, if the VMM tells.
        downtime_ms: Option<u64>,
        /// Milliseconds of the whole, if the VMM tells.
        total_ms: Option<u64>,
    },
    /// The VM has stayed here, as far as the VMM knows; with the reason in its words.
    Failed(String),
    /// Somebody has cancelled it; the VM has stayed here.
    Cancelled,
    /// The VMM has ended without a word. So does cloud-hypervisor when it has sent its VM, and when it crashes:
    /// whether the VM runs on the other host must be asked there.
    Ended,
}

/// A VMM that can send its VM to another host.
pub trait Vmm {
    /// Begins to send the VM to where `uri` says, such as `tcp:192.0.2.1:4444` or `unix:/run/vm`; the VMM there
    /// has to wait for it, unless it is libvirt's, such as `qemu+ssh://beta/system`.
    ///
    /// # Errors
    /// See [`VmmError`]. The migration has not begun then, unless it is [`VmmError::Slow`] or [`VmmError::Gone`].
    fn migrate(&mut self, uri: &str, wishes: &Wishes) -> Result<(), VmmError>;

    /// Follows the migration, no longer than `until`. Tells of each change of state, of the progress each
    /// [`INTERVAL`], and of how it stands in the end. None: it is still under way; to be called again.
    ///
    /// # Errors
    /// See [`VmmError`]. How the migration goes on is not known then.
    fn follow(
        &mut self,
        until: Instant,
        each: &mut dyn FnMut(&Progress),
    ) -> Result<Option<Outcome>, VmmError>;

    /// Asks the VMM to end the migration; [`Self::follow`] tells whether it was in time.
    ///
    /// # Errors
    /// See [`VmmError`]; some VMMs cannot.
    fn cancel(&mut self) -> Result<(), VmmError>;
}

/// What drives the I/O of one call after the other.
fn runtime() -> Result<Runtime, VmmError> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| VmmError::System(error.to_string()))
}

/// What a VMM said, fit to be shown on a terminal or written to a log.
fn words(text: &str) -> String {
    let shown = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .scan(0, |len, c| {
            *len += c.len_utf8();
            (*len <= WORDS_LEN).then_some(c)
        });
    shown.collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::{WORDS_LEN, words};

    #[test]
    fn words_are_short_and_do_nothing_to_a_terminal() {
        assert_eq!(words("no\x1b[2J way\r\n"), "no [2J way");
        assert_eq!(words("\u{9b}2J"), "2J");
        assert_eq!(words(&"ä".repeat(WORDS_LEN)).len(), WORDS_LEN);
    }
}
