//! What a vhost-user session drives: a network device seen through its rings.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tandem_virtio_net::memory::{DirtyLog, Memory};
use tandem_virtio_net::ring::{RingConfig, SetupError};

/// The device behind an [`Endpoint`](super::Endpoint).
///
/// All calls that change something come one after the other, never two at once. Each returns only
/// when nobody can still use what was there before: a ring that was stopped is quiet, and memory
/// that was replaced is not touched any more.
///
/// Rings are numbered as vhost-user does it: ring `2i` is `to_vm` of queue pair `i` (the guest's
/// RX queue), ring `2i + 1` is its `from_vm`. A ring carries frames while it is both started and
/// enabled. Numbers given are always below twice [`Device::queue_pairs`].
pub trait Device: Send + Sync + 'static {
    /// Number of queue pairs; constant.
    fn queue_pairs(&self) -> u16;

    /// Virtio features offered to the driver; constant while a VMM is connected. The two bits of
    /// vhost-user itself (VHOST_USER_F_PROTOCOL_FEATURES, VHOST_F_LOG_ALL) are added to them.
    fn features(&self) -> u64;

    /// The device configuration, `struct virtio_net_config` (virtio 5.1.4), in little endian.
    fn config(&self) -> Vec<u8>;

    /// A VMM has connected. Everything starts from nothing.
    fn connected(&self);

    /// The VMM is gone: stop all rings, let go of memory, log and descriptors.
    fn disconnected(&self);

    /// The driver has accepted these features, a subset of [`Device::features`]; with them
    /// VHOST_F_LOG_ALL (bit 26) while writes are to be recorded. [`Device::set_log`] follows. Rings
    /// that run keep what they were started with.
    fn set_features(&self, acked: u64);

    /// Replaces the guest's memory, on a live device too; it carries the dirty log in effect.
    ///
    /// # Errors
    /// A running ring is not in the new memory. The memory is replaced all the same, and that
    /// ring is stopped.
    fn set_memory(&self, memory: Memory) -> Result<(), SetupError>;

    /// Starts, replaces or ends the recording of writes to guest memory.
    fn set_log(&self, log: Option<DirtyLog>);

    /// Starts a ring at `base` (what SET_VRING_BASE said, or where it was stopped).
    ///
    /// # Errors
    /// The configuration is not possible; the ring stays stopped.
    fn start_ring(&self, ring: u16, config: RingConfig, base: u16) -> Result<(), SetupError>;

    /// Stops a ring. Where to go on, if it was running.
    fn stop_ring(&self, ring: u16) -> Option<u16>;

    /// Lets frames through a ring, or not.
    fn enable_ring(&self, ring: u16, on: bool);

    /// The eventfd (non-blocking) by which the guest says that it has made buffers available.
    fn set_kick(&self, ring: u16, kick: Option<OwnedFd>);

    /// The eventfd (non-blocking) by which the guest is notified; none: it polls.
    fn set_call(&self, ring: u16, call: Option<OwnedFd>);

    /// What the device takes along when its VM moves; the rings are stopped.
    ///
    /// # Errors
    /// In words, why it cannot.
    fn save(&self) -> Result<Vec<u8>, String>;

    /// Takes what the device was on another host, whole or not at all; the rings are stopped. It
    /// counts from the next start of a ring on: before, nobody knows whether the VM will run here.
    ///
    /// # Errors
    /// In words, why it is refused and what to do.
    fn load(&self, state: &[u8]) -> Result<(), String>;

    /// The VMM has waited so long for the answer to a message; of that our thread has waited `starved` for a CPU.
    fn answered(&self, _waited: Duration, _starved: Duration) {}

    /// Something that a report of the port says may be different now. Must not block.
    fn changed(&self) {}

    /// In words, what the guest has broken: a ring, or its memory.
    fn broken(&self) -> Option<String>;
}
