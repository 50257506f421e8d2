//! Virtqueues, a burst at a time: take chains, use them in the same order, publish once.
//!
//! Both layouts have the same life:
//!
//! ```text
//!            take            use_*             publish
//!   driver ───────► taken ──────────► staged ───────────► driver
//!            ▲                │
//!            └──── rewind ────┘ (nothing staged in between)
//! ```
//!
//! Nothing is held when a queue stops: what was taken has been used and published, so the one
//! index that is left says where to go on.

mod journal;
mod packed;
mod split;
#[cfg(test)]
mod tests;

pub use journal::{JOURNAL_BYTES, Journal};
pub use packed::PackedRing;
pub use split::SplitRing;

use thiserror::Error;

use crate::frame::BURST;
use crate::memory::Memory;
use crate::spec::{MAX_QUEUE_SIZE, VIRTIO_F_RING_PACKED, has};

/// How a guest broke the rules of its ring. The queue stops until its driver starts it anew.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RingError {
    /// The available index is further ahead than the ring is long (2.7.6).
    #[error("available index {avail} is {ahead} ahead of {next}, more than the ring's size")]
    AvailIndex {
        /// The index the driver published.
        avail: u16,
        /// The next entry we would take.
        next: u16,
        /// Their distance.
        ahead: u16,
    },
    /// A chain starts or goes on at a descriptor the table does not have (2.7.5).
    #[error("descriptor {0} is beyond the table's end")]
    DescriptorIndex(u16),
    /// A chain has more descriptors than a table could hold without a loop (2.7.5.1).
    #[error("descriptor chain is longer than {MAX_CHAIN} descriptors or loops")]
    ChainTooLong,
    /// An indirect table is nested, empty, cut or not in memory (2.7.5.3.1).
    #[error(
        "indirect table at {0:#x} is nested, empty, not a whole number of descriptors, too long or not in memory"
    )]
    IndirectTable(u64),
}

/// Why a ring could not be started.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SetupError {
    /// The size is not one the specification allows (2.7, 2.8).
    #[error("queue size {0} is not allowed (a split ring needs a power of two, at most 32768)")]
    Size(u16),
    /// A packed ring was to go on at a descriptor that it does not have (2.8).
    #[error("position {index} is beyond the end of a packed ring of {size}")]
    Base {
        /// The descriptor.
        index: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A part of the ring is not in guest memory, or not aligned (2.7, 2.8).
    #[error("{part} at guest address {addr:#x} is not in shared memory, or not aligned")]
    Address {
        /// Which part of the ring.
        part: &'static str,
        /// Its guest address.
        addr: u64,
    },
}

/// Longest descriptor chain that is followed.
pub const MAX_CHAIN: u16 = 1024;

/// Where a ring lies and what was negotiated for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingConfig {
    /// Entries.
    pub size: u16,
    /// Guest address of the descriptor table (split) or ring (packed).
    pub desc: u64,
    /// Guest address of the available ring (split) or driver event suppression (packed).
    pub driver: u64,
    /// Guest address of the used ring (split) or device event suppression (packed).
    pub device: u64,
    /// Negotiated features.
    pub features: u64,
}

/// A chain taken from a ring.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// What the driver wants back to recognise its buffer.
    pub id: u16,
    /// Descriptors of the ring or table that the chain takes, not counting indirect ones.
    pub slots: u16,
}

/// A ring of either layout.
pub enum Ring {
    /// 2.7.
    Split(SplitRing),
    /// 2.8.
    Packed(PackedRing),
}

impl Ring {
    /// Starts a ring. A split ring goes on at the used index it has in memory, whatever `base`
    /// says, because nothing is held when it stops; a packed ring starts at `base`: index in the low 15
    /// bits, wrap counter in the high one.
    pub fn start(config: &RingConfig, memory: &Memory, base: u16) -> Result<Self, SetupError> {
        if has(config.features, VIRTIO_F_RING_PACKED) {
            PackedRing::start(config, memory, base).map(Ring::Packed)
        } else {
            SplitRing::start(config, memory).map(Ring::Split)
        }
    }

    /// Keeps the position in `journal`, if the ring does not tell it by itself, and goes on where
    /// that says that this very ring was left. What of it had been delivered and not yet used is
    /// used now. True if it is that very ring.
    pub(crate) fn keep_position(
        &mut self,
        memory: &Memory,
        config: &RingConfig,
        journal: &Journal,
    ) -> bool {
        let key = journal::key(memory, config.desc, config.size);
        let known = journal.knows(key);
        let delivered = journal.delivered(key);
        match self {
            Ring::Split(_) => journal.open(key, 0, 0),
            Ring::Packed(r) => r.keep_position(memory, journal.clone()),
        }
        match (self, delivered) {
            (Ring::Split(r), Some(place)) => use_up_to(r, memory, place),
            (Ring::Packed(r), Some(place)) => use_up_to(r, memory, place),
            (_, None) => {}
        }
        known
    }

    /// Finds the ring again in new memory, at the position it has.
    pub fn remap(&mut self, config: &RingConfig, memory: &Memory) -> Result<(), SetupError> {
        match self {
            Ring::Split(r) => r.remap(config, memory),
            Ring::Packed(r) => r.remap(config, memory),
        }
    }

    /// The position to hand to whoever goes on: SET_VRING_BASE's value.
    pub fn base(&self) -> u16 {
        match self {
            Ring::Split(r) => r.base(),
            Ring::Packed(r) => r.base(),
        }
    }

    /// Asks the driver to notify, or not to notify, when it makes buffers available.
    pub fn set_kicks(&mut self, memory: &Memory, on: bool) {
        match self {
            Ring::Split(r) => r.set_kicks(memory, on),
            Ring::Packed(r) => r.set_kicks(memory, on),
        }
    }

    /// Tells whether a chain is available. A broken ring says yes, so that `take` can say why.
    pub fn has_work(&mut self) -> bool {
        match self {
            Ring::Split(r) => r.has_work(),
            Ring::Packed(r) => r.has_work(),
        }
    }
}

/// What the data path does with a ring. Generic over the layout, so that a burst is one loop
/// without a branch on it.
pub(crate) trait Queue {
    /// Where taking stands, to come back to by [`Queue::rewind`].
    type Mark: Copy;

    /// Looks how many chains are there to be taken; call once a burst, before [`Queue::take`].
    fn poll(&mut self) -> Result<bool, RingError>;

    /// Has the descriptors of the next chains, up to `n`, brought into the cache. After
    /// [`Queue::poll`].
    fn prefetch(&self, n: u16);

    /// Takes the next chain if it is a single buffer of at least `need` bytes, for the device to
    /// write or to read: what it is, address and bytes. Anything else, also none or a bad one, is
    /// left to [`Queue::take`].
    fn take_buffer(&mut self, write: bool, need: u32) -> Option<(Taken, u64, u32)>;

    /// Takes the next chain and shows its buffers in order: address, bytes, device-writable.
    fn take(
        &mut self,
        memory: &Memory,
        each: impl FnMut(u64, u32, bool),
    ) -> Result<Option<Taken>, RingError>;

    /// Where taking stands, for those who outlive the ring: SET_VRING_BASE's value, if all that
    /// was taken were used.
    fn place(&self) -> u16;

    /// Has the driver said that it does not want to be notified, and so looks by itself?
    fn driver_polls(&self) -> bool;

    /// Where taking stands.
    fn mark(&self) -> Self::Mark;

    /// Puts back what was taken since `mark`; nothing of it may have been used.
    fn rewind(&mut self, mark: Self::Mark);

    /// Stages a chain as used with `written` bytes.
    fn use_one(&mut self, memory: &Memory, taken: Taken, written: u32);

    /// Stages chains as used with nothing written to them: all of them in order.
    fn use_all(&mut self, memory: &Memory, taken: &[Taken]);

    /// Makes what was staged visible to the driver, at once.
    fn publish(&mut self, memory: &Memory);

    /// Tells whether what is staged must be published before more chains are used.
    fn must_publish(&self) -> bool {
        false
    }

    /// Tells whether the driver wants a notification for what was published since last asked.
    fn wants_call(&mut self) -> bool;

    /// Uses chains with nothing written to them, all of them in order, and publishes them. True if
    /// the driver wants a notification.
    fn give_back(&mut self, memory: &Memory, chains: &[Taken]) -> bool {
        if chains.is_empty() {
            return false;
        }
        self.use_all(memory, chains);
        self.publish(memory);
        self.wants_call()
    }
}

/// Most chains that a queue has delivered and not yet used: those of a burst, and of one before.
const MAX_DELIVERED: usize = 2 * BURST;

/// Uses the chains up to `place`, if that is where some of them end.
fn use_up_to<Q: Queue>(ring: &mut Q, memory: &Memory, place: u16) {
    let mark = ring.mark();
    let mut chains = Vec::new();
    let mut polled = ring.poll();
    while ring.place() != place {
        let chain = polled.and_then(|_| ring.take(memory, |_, _, _| {}));
        match chain {
            Ok(Some(chain)) if chains.len() < MAX_DELIVERED => chains.push(chain),
            _ => return ring.rewind(mark),
        }
        polled = Ok(true);
    }
    ring.use_all(memory, &chains);
    ring.publish(memory);
}

/// The host address of a part of a ring, if it is in memory and aligned.
fn part(
    memory: &Memory,
    part: &'static str,
    addr: u64,
    len: u64,
    align: usize,
) -> Result<*mut u8, SetupError> {
    memory
        .host(addr, len)
        .filter(|p| p.addr().is_multiple_of(align))
        .ok_or(SetupError::Address { part, addr })
}

/// Checks a queue size that comes from a VMM.
fn check_size(size: u16, power_of_two: bool) -> Result<(), SetupError> {
    if size == 0 || size > MAX_QUEUE_SIZE || (power_of_two && !size.is_power_of_two()) {
        return Err(SetupError::Size(size));
    }
    Ok(())
}

/// Tells whether going from `old` to `new` passes `event` (2.7.10.1).
fn passes_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
