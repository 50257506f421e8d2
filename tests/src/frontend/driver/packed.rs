//! The packed virtqueue, driver's side (virtio 1.2, 2.8).
//!
//! ```text
//! ring         [ gpa | len | id | flags ] × size    16 bytes each
//! driver area  offset and wrap | flags              2 bytes each, when to call
//! device area  the same, when to kick
//! ```
//!
//! A descriptor is available when its AVAIL flag equals the driver's wrap
//! counter and its USED flag does not; used when both equal the device's.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::ring::{Buffer, Done, Held, Ledger, Parts, Piece, need_event};
use super::split::capacity;
use crate::frontend::memory::GuestRam;
use crate::frontend::spec;

/// Event suppression (2.8.10): always, never, or at one descriptor.
const EVENT_ENABLE: u16 = 0;
const EVENT_DISABLE: u16 = 1;
const EVENT_DESC: u16 = 2;

/// What stands in the id of descriptors whose id means nothing.
const TRAP_ID: u16 = 0xbad0;

/// A packed ring and the driver's own record of it.
pub struct Packed {
    ram: Arc<GuestRam>,
    parts: Parts,
    event_idx: bool,
    in_order: bool,
    free_ids: Vec<u16>,
    free: usize,
    next_avail: u16,
    avail_wrap: bool,
    last_used: u16,
    used_wrap: bool,
    /// Descriptors since the last [`Self::publish`].
    added: u16,
    /// The first of them: its flags are written last. (address, flags)
    head: Option<(u64, u16)>,
    pub(super) ledger: Ledger,
}

impl Packed {
    pub(super) fn new(ram: Arc<GuestRam>, region: usize, size: u16, features: u64) -> Self {
        let parts = Parts {
            size,
            desc: ram.alloc(region, 16 * u64::from(size), 16),
            avail: ram.alloc(region, 4, 4),
            used: ram.alloc(region, 4, 4),
        };
        Packed {
            ram,
            parts,
            event_idx: features & spec::EVENT_IDX != 0,
            in_order: features & spec::IN_ORDER != 0,
            free_ids: (0..size).collect(),
            free: usize::from(size),
            next_avail: 0,
            avail_wrap: true,
            last_used: 0,
            used_wrap: true,
            added: 0,
            head: None,
            ledger: Ledger::default(),
        }
    }

    pub(super) fn parts(&self) -> Parts {
        self.parts
    }

    pub(super) fn room(&self) -> usize {
        self.free
    }

    pub(super) fn add(&mut self, buffer: &Buffer<'_>) {
        let write = if buffer.writable { spec::DESC_WRITE } else { 0 };
        let id = self.free_ids.pop().expect("the caller asked room()");
        let count = match buffer.table {
            Some(table) => {
                for (i, piece) in buffer.pieces.iter().enumerate() {
                    let at = table + 16 * i as u64;
                    write_descriptor(&self.ram, at, *piece, TRAP_ID);
                    self.ram.store16(at + 14, write);
                }
                let len = 16 * buffer.pieces.len() as u32;
                let piece = Piece { gpa: table, len };
                self.append(piece, spec::DESC_INDIRECT, id);
                1
            }
            None => {
                for (i, piece) in buffer.pieces.iter().enumerate() {
                    let last = i + 1 == buffer.pieces.len();
                    let next = if last { 0 } else { spec::DESC_NEXT };
                    self.append(*piece, write | next, if last { id } else { TRAP_ID });
                }
                buffer.pieces.len()
            }
        };
        self.free -= count;
        self.ledger.held.push_back(Held {
            id,
            slot: buffer.slot,
            descriptors: vec![0; count],
            capacity: capacity(buffer),
        });
    }

    /// Writes the next descriptor; the first since the last publish stays invisible until then,
    /// and so, for a device that reads in order, do all after it.
    fn append(&mut self, piece: Piece, flags: u16, id: u16) {
        let at = self.parts.desc + 16 * u64::from(self.next_avail);
        write_descriptor(&self.ram, at, piece, id);
        let flags = flags
            | if self.avail_wrap {
                spec::DESC_AVAIL
            } else {
                spec::DESC_USED
            };
        if self.head.is_none() {
            self.head = Some((at + 14, flags));
        } else {
            self.ram.store16(at + 14, flags);
        }
        self.added += 1;
        self.next_avail += 1;
        if self.next_avail == self.parts.size {
            self.next_avail = 0;
            self.avail_wrap = !self.avail_wrap;
        }
    }

    pub(super) fn publish(&mut self) -> bool {
        let Some((at, flags)) = self.head.take() else {
            return false;
        };
        self.ram.store16(at, flags);
        let added = std::mem::take(&mut self.added);
        fence(Ordering::SeqCst);
        let (place, flags) = (
            self.ram.load16(self.parts.used),
            self.ram.load16(self.parts.used + 2),
        );
        match flags {
            EVENT_ENABLE => true,
            EVENT_DISABLE => false,
            EVENT_DESC => {
                assert!(self.event_idx, "event offsets without EVENT_IDX");
                let (index, wrap) = (place & 0x7fff, place >> 15 == 1);
                assert!(index < self.parts.size, "event offset {index}");
                let event = if wrap == self.avail_wrap {
                    index
                } else {
                    index.wrapping_sub(self.parts.size)
                };
                let new = self.next_avail;
                need_event(event, new, new.wrapping_sub(added))
            }
            _ => panic!("device event flags {flags:#x}"),
        }
    }

    fn is_used(&self) -> bool {
        let at = self.parts.desc + 16 * u64::from(self.last_used);
        let flags = self.ram.load16(at + 14);
        let (avail, used) = (flags & spec::DESC_AVAIL != 0, flags & spec::DESC_USED != 0);
        !self.ledger.held.is_empty() && avail == used && used == self.used_wrap
    }

    pub(super) fn pop(&mut self) -> Option<Done> {
        if let Some(done) = self.ledger.done.pop_front() {
            return Some(done);
        }
        if !self.is_used() {
            return None;
        }
        let at = self.parts.desc + 16 * u64::from(self.last_used);
        let wrote = self.ram.load16(at + 14) & spec::DESC_WRITE != 0;
        let (len, id) = (self.ram.load32(at + 8), self.ram.load16(at + 12));
        // Without the WRITE flag the length means nothing (2.8.6).
        let len = if wrote { len } else { 0 };
        let batch = self.ledger.used(u32::from(id), len, self.in_order);
        for held in batch {
            self.last_used += held.descriptors.len() as u16;
            if self.last_used >= self.parts.size {
                self.last_used -= self.parts.size;
                self.used_wrap = !self.used_wrap;
            }
            self.free += held.descriptors.len();
            self.free_ids.push(held.id);
        }
        self.ledger.done.pop_front()
    }

    pub(super) fn arm(&mut self) -> bool {
        if self.event_idx {
            let place = self.last_used | u16::from(self.used_wrap) << 15;
            self.ram.store16(self.parts.avail, place);
            self.ram.store16(self.parts.avail + 2, EVENT_DESC);
        } else {
            self.ram.store16(self.parts.avail + 2, EVENT_ENABLE);
        }
        fence(Ordering::SeqCst);
        self.is_used()
    }

    pub(super) fn disarm(&mut self) {
        self.ram.store16(self.parts.avail + 2, EVENT_DISABLE);
    }

    pub(super) fn avail_base(&self) -> u32 {
        let place = u32::from(self.next_avail | u16::from(self.avail_wrap) << 15);
        place | place << 16
    }

    pub(super) fn used_base(&self) -> u16 {
        self.last_used | u16::from(self.used_wrap) << 15
    }

    pub(super) fn describe(&self) -> String {
        let at = self.parts.desc + 16 * u64::from(self.last_used);
        format!(
            "packed ring of {}: next available {} wrap {}, waiting for {} wrap {} whose flags are \
             {:#x}, device has {}, driver area {:#x} {}, device area {:#x} {}",
            self.parts.size,
            self.next_avail,
            self.avail_wrap,
            self.last_used,
            self.used_wrap,
            self.ram.load16(at + 14),
            self.ledger.held.len(),
            self.ram.load16(self.parts.avail),
            self.ram.load16(self.parts.avail + 2),
            self.ram.load16(self.parts.used),
            self.ram.load16(self.parts.used + 2),
        )
    }
}

/// Writes all of a packed descriptor but its flags.
fn write_descriptor(ram: &GuestRam, at: u64, piece: Piece, id: u16) {
    ram.store64(at, piece.gpa);
    ram.store32(at + 8, piece.len);
    ram.store16(at + 12, id);
}
