//! What split and packed rings have in common, from the driver's side.

use std::collections::VecDeque;
use std::sync::Arc;

use super::packed::Packed;
use super::split::Split;
use crate::frontend::memory::GuestRam;
use crate::frontend::spec;

/// A piece of guest memory for one descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Guest physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
}

/// A buffer to make available: `pieces`, all for the device to read or all to write.
#[derive(Debug, Clone)]
pub struct Buffer<'a> {
    /// One descriptor each.
    pub pieces: &'a [Piece],
    /// Receive buffers are writable.
    pub writable: bool,
    /// Where to put an indirect table, if one is wanted (room for all pieces).
    pub table: Option<u64>,
    /// The caller's name for it.
    pub slot: usize,
}

/// A buffer the device has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// The caller's name for it.
    pub slot: usize,
    /// Bytes written.
    pub len: u32,
}

/// A buffer the device has.
pub(super) struct Held {
    /// Head descriptor (split) or buffer id (packed).
    pub(super) id: u16,
    pub(super) slot: usize,
    /// Descriptors of the ring it takes.
    pub(super) descriptors: Vec<u16>,
    /// Bytes the device may write.
    pub(super) capacity: u32,
}

/// The buffers the device has, in the order they were made available.
///
/// Tandem promises that order for used buffers even where IN_ORDER was not
/// negotiated, so anything else is a failure.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) held: VecDeque<Held>,
    pub(super) done: VecDeque<Done>,
}

impl Ledger {
    /// The device used `id` and wrote `len` bytes. Gives back the buffers that are thereby the
    /// driver's: one, or with IN_ORDER a batch that ends with `id` (virtio 1.2, 2.7.9 and 2.8.9).
    pub(super) fn used(&mut self, id: u32, len: u32, in_order: bool) -> Vec<Held> {
        let position = self
            .held
            .iter()
            .position(|held| u32::from(held.id) == id)
            .unwrap_or_else(|| panic!("the device used {id}, which it does not have"));
        assert!(
            in_order || position == 0,
            "buffer {id} was used before {position} older ones"
        );
        let batch: Vec<Held> = self.held.drain(..=position).collect();
        for (i, held) in batch.iter().enumerate() {
            // A buffer skipped over in a batch counts as completely used.
            let len = if i == position { len } else { held.capacity };
            assert!(
                len <= held.capacity,
                "the device says it wrote {len} bytes into {} (buffer {id})",
                held.capacity
            );
            self.done.push_back(Done {
                slot: held.slot,
                len,
            });
        }
        batch
    }
}

/// `vring_need_event` (virtio 1.2, 2.7.7.2): whether going from `old` to `new` passes `event`.
pub(super) fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Where a ring's three parts are, guest physical.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    /// Descriptors.
    pub size: u16,
    /// Descriptor table, or the packed ring itself.
    pub desc: u64,
    /// Available ring, or driver event suppression.
    pub avail: u64,
    /// Used ring, or device event suppression.
    pub used: u64,
}

/// A virtqueue of either kind.
pub enum Ring {
    /// virtio 1.2, 2.7.
    Split(Split),
    /// virtio 1.2, 2.8.
    Packed(Packed),
}

/// Does the same for both kinds.
macro_rules! both {
    ($self:expr, $ring:ident => $do:expr) => {
        match $self {
            Ring::Split($ring) => $do,
            Ring::Packed($ring) => $do,
        }
    };
}

impl Ring {
    /// An empty ring of `size` descriptors in `region` of `ram`, for a driver that negotiated
    /// `features`.
    pub fn new(ram: Arc<GuestRam>, region: usize, size: u16, features: u64) -> Self {
        if features & spec::RING_PACKED != 0 {
            Ring::Packed(Packed::new(ram, region, size, features))
        } else {
            Ring::Split(Split::new(ram, region, size, features))
        }
    }

    /// Where it is.
    pub fn parts(&self) -> Parts {
        both!(self, r => r.parts())
    }

    /// Descriptors free.
    pub fn room(&self) -> usize {
        both!(self, r => r.room())
    }

    /// Buffers the device has.
    pub fn held(&self) -> usize {
        both!(self, r => r.ledger.held.len())
    }

    /// Writes a buffer into the ring; the device sees it at [`Self::publish`] at the latest.
    pub fn add(&mut self, buffer: &Buffer<'_>) {
        both!(self, r => r.add(buffer));
    }

    /// Makes what was added visible; true if the device wants to be told.
    pub fn publish(&mut self) -> bool {
        both!(self, r => r.publish())
    }

    /// Takes a buffer the device has used.
    pub fn pop(&mut self) -> Option<Done> {
        both!(self, r => r.pop())
    }

    /// Asks for a call when the next buffer is used; true if one is already.
    pub fn arm(&mut self) -> bool {
        both!(self, r => r.arm())
    }

    /// Asks for no calls.
    pub fn disarm(&mut self) {
        both!(self, r => r.disarm());
    }

    /// What SET_VRING_BASE says of a ring never started.
    pub fn fresh_base(&self) -> u32 {
        match self {
            Ring::Split(_) => 0,
            // Index 0, wrap counter 1, for both directions as QEMU has it.
            Ring::Packed(_) => 0x8000_8000,
        }
    }

    /// Where the driver makes available next: the base cloud-hypervisor sends without saved ones.
    pub fn avail_base(&self) -> u32 {
        both!(self, r => r.avail_base())
    }

    /// Where the driver looks for used buffers next, as the 16 bits GET_VRING_BASE should give.
    pub fn used_base(&self) -> u16 {
        both!(self, r => r.used_base())
    }

    /// For a failure: where the ring stands.
    pub fn describe(&self) -> String {
        both!(self, r => r.describe())
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
