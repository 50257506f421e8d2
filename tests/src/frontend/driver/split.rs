//! The split virtqueue, driver's side (virtio 1.2, 2.7).
//!
//! ```text
//! desc   [ gpa | len | flags | next ] × size         16 bytes each
//! avail  flags idx [ head ] × size  used_event        2 bytes each
//! used   flags idx [ id | len ] × size  avail_event   2 2 (4+4) 2
//! ```

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::ring::{Buffer, Done, Held, Ledger, Parts, need_event};
use crate::frontend::memory::GuestRam;
use crate::frontend::spec;

/// A split ring and the driver's own record of it.
pub struct Split {
    ram: Arc<GuestRam>,
    parts: Parts,
    event_idx: bool,
    in_order: bool,
    free: Vec<u16>,
    /// IN_ORDER: descriptors are taken in ring order (2.7.9).
    next_desc: u16,
    next_avail: u16,
    published: u16,
    last_used: u16,
    pub(super) ledger: Ledger,
}

impl Split {
    pub(super) fn new(ram: Arc<GuestRam>, region: usize, size: u16, features: u64) -> Self {
        let n = u64::from(size);
        let parts = Parts {
            size,
            desc: ram.alloc(region, 16 * n, 16),
            avail: ram.alloc(region, 6 + 2 * n, 2),
            used: ram.alloc(region, 6 + 8 * n, 4),
        };
        Split {
            ram,
            parts,
            event_idx: features & spec::EVENT_IDX != 0,
            in_order: features & spec::IN_ORDER != 0,
            free: (0..size).collect(),
            next_desc: 0,
            next_avail: 0,
            published: 0,
            last_used: 0,
            ledger: Ledger::default(),
        }
    }

    pub(super) fn parts(&self) -> Parts {
        self.parts
    }

    pub(super) fn room(&self) -> usize {
        self.free.len()
    }

    pub(super) fn add(&mut self, buffer: &Buffer<'_>) {
        let count = if buffer.table.is_some() {
            1
        } else {
            buffer.pieces.len()
        };
        let descriptors: Vec<u16> = (0..count).map(|_| self.take_descriptor()).collect();
        let write = if buffer.writable { spec::DESC_WRITE } else { 0 };
        if let Some(table) = buffer.table {
            for (i, piece) in buffer.pieces.iter().enumerate() {
                let last = i + 1 == buffer.pieces.len();
                let flags = write | if last { 0 } else { spec::DESC_NEXT };
                let at = table + 16 * i as u64;
                write_descriptor(&self.ram, at, piece.gpa, piece.len, flags, i as u16 + 1);
            }
            let len = 16 * buffer.pieces.len() as u32;
            let at = self.parts.desc + 16 * u64::from(descriptors[0]);
            write_descriptor(&self.ram, at, table, len, spec::DESC_INDIRECT, 0);
        } else {
            for (i, piece) in buffer.pieces.iter().enumerate() {
                let next = descriptors.get(i + 1);
                let flags = write | if next.is_some() { spec::DESC_NEXT } else { 0 };
                let at = self.parts.desc + 16 * u64::from(descriptors[i]);
                let next = next.copied().unwrap_or(0xffff);
                write_descriptor(&self.ram, at, piece.gpa, piece.len, flags, next);
            }
        }
        self.make_available(descriptors[0]);
        self.ledger.held.push_back(Held {
            id: descriptors[0],
            slot: buffer.slot,
            descriptors,
            capacity: capacity(buffer),
        });
    }

    fn take_descriptor(&mut self) -> u16 {
        if !self.in_order {
            return self.free.pop().expect("the caller asked room()");
        }
        let taken = self.next_desc;
        let position = self.free.iter().position(|&d| d == taken);
        self.free
            .swap_remove(position.expect("in order, the oldest are free first"));
        self.next_desc = (taken + 1) % self.parts.size;
        taken
    }

    fn make_available(&mut self, head: u16) {
        let entry = u64::from(self.next_avail % self.parts.size);
        self.ram.store16(self.parts.avail + 4 + 2 * entry, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    pub(super) fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published, self.next_avail);
        self.ram.store16(self.parts.avail + 2, self.next_avail);
        fence(Ordering::SeqCst);
        if old == self.next_avail {
            return false;
        }
        if self.event_idx {
            let event = self.ram.load16(self.avail_event());
            need_event(event, self.next_avail, old)
        } else {
            let flags = self.ram.load16(self.parts.used);
            assert!(flags <= 1, "used ring flags {flags:#x}");
            flags == 0
        }
    }

    pub(super) fn pop(&mut self) -> Option<Done> {
        if let Some(done) = self.ledger.done.pop_front() {
            return Some(done);
        }
        let used = self.ram.load16(self.parts.used + 2);
        let new = used.wrapping_sub(self.last_used);
        assert!(
            usize::from(new) <= self.ledger.held.len(),
            "used index {used}, but of the {} buffers the device has it can have used no {new}",
            self.ledger.held.len()
        );
        if new == 0 {
            return None;
        }
        let entry = self.parts.used + 4 + 8 * u64::from(self.last_used % self.parts.size);
        let (id, len) = (self.ram.load32(entry), self.ram.load32(entry + 4));
        let batch = self.ledger.used(id, len, self.in_order);
        assert!(
            batch.len() <= usize::from(new),
            "a batch of {} used, but the index moved by {new}",
            batch.len()
        );
        self.last_used = self.last_used.wrapping_add(batch.len() as u16);
        for held in batch {
            self.free.extend(held.descriptors);
        }
        self.ledger.done.pop_front()
    }

    pub(super) fn arm(&mut self) -> bool {
        if self.event_idx {
            self.ram.store16(self.used_event(), self.last_used);
        } else {
            self.ram.store16(self.parts.avail, 0);
        }
        fence(Ordering::SeqCst);
        self.ram.load16(self.parts.used + 2) != self.last_used
    }

    pub(super) fn disarm(&mut self) {
        if self.event_idx {
            let far = self.last_used.wrapping_sub(1);
            self.ram.store16(self.used_event(), far);
        } else {
            self.ram.store16(self.parts.avail, 1);
        }
    }

    fn used_event(&self) -> u64 {
        self.parts.avail + 4 + 2 * u64::from(self.parts.size)
    }

    fn avail_event(&self) -> u64 {
        self.parts.used + 4 + 8 * u64::from(self.parts.size)
    }

    pub(super) fn avail_base(&self) -> u32 {
        u32::from(self.next_avail)
    }

    pub(super) fn used_base(&self) -> u16 {
        self.last_used
    }

    pub(super) fn describe(&self) -> String {
        format!(
            "split ring of {}: made available {}, device says used {}, seen {}, device has {}, \
             used flags {}, avail_event {}, avail flags {}, used_event {}",
            self.parts.size,
            self.next_avail,
            self.ram.load16(self.parts.used + 2),
            self.last_used,
            self.ledger.held.len(),
            self.ram.load16(self.parts.used),
            self.ram.load16(self.avail_event()),
            self.ram.load16(self.parts.avail),
            self.ram.load16(self.used_event()),
        )
    }
}

/// Bytes the device may write into a buffer.
pub(super) fn capacity(buffer: &Buffer<'_>) -> u32 {
    if buffer.writable {
        buffer.pieces.iter().map(|p| p.len).sum()
    } else {
        0
    }
}

/// Writes a 16-byte descriptor of a split ring or of an indirect table.
pub fn write_descriptor(ram: &GuestRam, at: u64, gpa: u64, len: u32, flags: u16, next: u16) {
    ram.store64(at, gpa);
    ram.store32(at + 8, len);
    ram.store16(at + 12, flags);
    ram.store16(at + 14, next);
}
