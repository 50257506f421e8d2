//! The split virtqueue (virtio 1.3, section 2.7).
//!
//! ```text
//!  avail ring (driver writes)            used ring (device writes)
//!  ┌───────┬─────┬───────────────┬──┐    ┌───────┬─────┬────────────────────┬──┐
//!  │ flags │ idx │ head, head, … │ue│    │ flags │ idx │ {id,len},{id,len}… │ae│
//!  └───────┴──▲──┴───────────────┴──┘    └───────┴──▲──┴────────────────────┴──┘
//!             │ acquire, once a burst               │ release, once a burst
//!        avail_seen                             next_used
//!
//!  ue: used_event (2.7.7.1), ae: avail_event (2.7.10), only with EVENT_IDX.
//!  Between bursts next_used == used.idx; next_avail is as much further as is given back late,
//!  and no further when the ring stops.
//! ```
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::{MAX_CHAIN, Queue, RingConfig, RingError, SetupError, Taken, check_size, part};
use crate::memory::{Memory, load_descriptor, prefetch_read};
use crate::spec::*;

/// A split ring's position and where it lies.
pub struct SplitRing {
    /// `size` descriptors; aligned to 16.
    desc: *const u8,
    /// `flags, idx, ring[size], used_event`; aligned to 2.
    avail: *const u16,
    /// `flags, idx: u16, ring[size]: {id: u32, len: u32}, avail_event: u16`; aligned to 4.
    used: *mut u8,
    /// Guest address of `used`, for the dirty log.
    used_addr: u64,
    size: u16,
    next_avail: u16,
    avail_seen: u16,
    next_used: u16,
    /// `used.idx` when the driver was last asked whether it wants a call; none after a start.
    called: Option<u16>,
    event_idx: bool,
    in_order: bool,
}

// SAFETY: the pointers are into guest memory, which the queue that owns the ring keeps mapped;
// they are used under that queue's lock only.
unsafe impl Send for SplitRing {}

const fn avail_len(size: u16) -> u64 {
    4 + 2 * size as u64 + 2
}
const fn used_len(size: u16) -> u64 {
    4 + 8 * size as u64 + 2
}

impl SplitRing {
    pub(super) fn start(config: &RingConfig, memory: &Memory) -> Result<Self, SetupError> {
        let mut ring = Self {
            desc: std::ptr::null(),
            avail: std::ptr::null(),
            used: std::ptr::null_mut(),
            used_addr: 0,
            size: config.size,
            next_avail: 0,
            avail_seen: 0,
            next_used: 0,
            called: None,
            event_idx: has(config.features, VIRTIO_F_EVENT_IDX),
            in_order: has(config.features, VIRTIO_F_IN_ORDER),
        };
        ring.remap(config, memory)?;
        let at = ring.used_u16(1).load(Ordering::Acquire);
        ring.next_avail = at;
        ring.avail_seen = at;
        ring.next_used = at;
        Ok(ring)
    }

    pub(super) fn remap(&mut self, config: &RingConfig, memory: &Memory) -> Result<(), SetupError> {
        check_size(config.size, true)?;
        let n = config.size;
        let desc = part(
            memory,
            "descriptor table",
            config.desc,
            16 * u64::from(n),
            16,
        )?;
        let avail = part(memory, "available ring", config.driver, avail_len(n), 2)?;
        let used = part(memory, "used ring", config.device, used_len(n), 4)?;
        self.size = n;
        self.desc = desc;
        self.avail = avail.cast::<u16>();
        self.used = used;
        self.used_addr = config.device;
        Ok(())
    }

    pub(super) fn base(&self) -> u16 {
        self.next_used
    }

    pub(super) fn has_work(&mut self) -> bool {
        self.avail_u16(1).load(Ordering::Acquire) != self.next_avail
    }

    pub(super) fn set_kicks(&mut self, memory: &Memory, on: bool) {
        if self.event_idx {
            if on {
                let event = 4 + 8 * usize::from(self.size);
                self.used_u16(event / 2)
                    .store(self.next_avail, Ordering::Relaxed);
                memory.mark(self.used_addr + event as u64, 2);
            }
            // Off: the event index falls behind by itself.
        } else {
            let flags = if on { 0 } else { USED_F_NO_NOTIFY };
            if self.used_u16(0).load(Ordering::Relaxed) != flags {
                self.used_u16(0).store(flags, Ordering::Relaxed);
                memory.mark(self.used_addr, 2);
            }
        }
        if on {
            // The driver must see this before we look at its index again (2.7.7.2).
            fence(Ordering::SeqCst);
        }
    }

    /// The `at`th 16-bit word of the available ring.
    #[inline]
    fn avail_u16(&self, at: usize) -> &AtomicU16 {
        debug_assert!(2 * at as u64 + 2 <= avail_len(self.size));
        // SAFETY: `remap` checked that `avail` is aligned to 2 and has `avail_len(size)` bytes
        // in mapped guest memory, and every caller stays below that.
        unsafe { AtomicU16::from_ptr(self.avail.cast_mut().add(at)) }
    }

    /// The `at`th 16-bit word of the used ring.
    #[inline]
    fn used_u16(&self, at: usize) -> &AtomicU16 {
        debug_assert!(2 * at as u64 + 2 <= used_len(self.size));
        // SAFETY: as for `avail_u16`, with `used` and `used_len(size)`.
        unsafe { AtomicU16::from_ptr(self.used.cast::<u16>().add(at)) }
    }

    /// The first descriptor of the chain that is made available at place `at`.
    #[inline]
    fn head(&self, at: u16) -> u16 {
        let slot = usize::from(at & (self.size - 1));
        self.avail_u16(2 + slot).load(Ordering::Relaxed)
    }

    #[inline]
    fn write_used(&mut self, memory: &Memory, at: u16, id: u16, len: u32) {
        let offset = 4 + 8 * usize::from(at & (self.size - 1));
        let entry = u64::from(id) | u64::from(len) << 32;
        // SAFETY: the masked index is below `size`, so the entry is inside the used ring, which
        // `remap` checked. It is aligned to 4 only, hence the unaligned write.
        unsafe { self.used.add(offset).cast::<u64>().write_unaligned(entry) };
        memory.mark_later(self.used_addr + offset as u64, 8);
    }

    #[inline]
    fn direct(&self, index: u16) -> Result<Desc, RingError> {
        if index >= self.size {
            return Err(RingError::DescriptorIndex(index));
        }
        // SAFETY: `index < size`, and `remap` checked `size` descriptors.
        Ok(unsafe { read(self.desc, index.into()) })
    }

    fn walk_indirect(
        memory: &Memory,
        table: Desc,
        each: &mut impl FnMut(u64, u32, bool),
    ) -> Result<(), RingError> {
        let bad = RingError::IndirectTable(table.addr);
        let entries = table.len / 16;
        if entries == 0 || !table.len.is_multiple_of(16) || table.flags & DESC_F_NEXT != 0 {
            return Err(bad);
        }
        let host = memory.host(table.addr, u64::from(table.len)).ok_or(bad)?;
        let mut index = 0u16;
        for _ in 0..MAX_CHAIN {
            if u32::from(index) >= entries {
                return Err(RingError::DescriptorIndex(index));
            }
            // SAFETY: `index < entries`, and `host` has `entries` descriptors.
            let d = unsafe { read(host, index.into()) };
            if d.flags & DESC_F_INDIRECT != 0 {
                return Err(bad);
            }
            each(d.addr, d.len, d.flags & DESC_F_WRITE != 0);
            if d.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = d.next;
        }
        Err(RingError::ChainTooLong)
    }
}

/// # Safety
/// `table` must point to more than `index` mapped descriptors, of any alignment.
#[inline]
unsafe fn read(table: *const u8, index: usize) -> Desc {
    // SAFETY: the caller vouches for this descriptor's bytes.
    let [addr, rest] = unsafe { load_descriptor(table.add(16 * index)) };
    Desc {
        addr,
        len: rest as u32,
        flags: (rest >> 32) as u16,
        next: (rest >> 48) as u16,
    }
}

impl Queue for SplitRing {
    type Mark = u16;

    #[inline]
    fn poll(&mut self) -> Result<bool, RingError> {
        let avail = self.avail_u16(1).load(Ordering::Acquire);
        let ahead = avail.wrapping_sub(self.next_avail);
        if ahead > self.size {
            return Err(RingError::AvailIndex {
                avail,
                next: self.next_avail,
                ahead,
            });
        }
        self.avail_seen = avail;
        Ok(ahead != 0)
    }

    #[inline]
    fn prefetch(&self, n: u16) {
        let n = n.min(self.avail_seen.wrapping_sub(self.next_avail));
        for i in 0..n {
            let head = self.head(self.next_avail.wrapping_add(i)) & (self.size - 1);
            prefetch_read(self.desc.wrapping_add(16 * usize::from(head)));
        }
    }

    #[inline]
    fn take_buffer(&mut self, write: bool, need: u32) -> Option<(Taken, u64, u32)> {
        if self.next_avail == self.avail_seen {
            return None;
        }
        let id = self.head(self.next_avail);
        let d = self.direct(id).ok()?;
        let kind = if write { DESC_F_WRITE } else { 0 };
        if d.flags & (DESC_F_WRITE | DESC_F_NEXT | DESC_F_INDIRECT) != kind || d.len < need {
            return None;
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Some((Taken { id, slots: 1 }, d.addr, d.len))
    }

    #[inline]
    fn take(
        &mut self,
        memory: &Memory,
        mut each: impl FnMut(u64, u32, bool),
    ) -> Result<Option<Taken>, RingError> {
        if self.next_avail == self.avail_seen {
            return Ok(None);
        }
        let head = self.head(self.next_avail);
        let mut d = self.direct(head)?;
        let limit = MAX_CHAIN.min(self.size);
        let mut slots = 1;
        loop {
            if d.flags & DESC_F_INDIRECT != 0 {
                Self::walk_indirect(memory, d, &mut each)?;
                break;
            }
            each(d.addr, d.len, d.flags & DESC_F_WRITE != 0);
            if d.flags & DESC_F_NEXT == 0 {
                break;
            }
            if slots == limit {
                return Err(RingError::ChainTooLong);
            }
            slots += 1;
            d = self.direct(d.next)?;
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(Taken { id: head, slots }))
    }

    #[inline]
    fn place(&self) -> u16 {
        self.next_avail
    }

    #[inline]
    fn driver_polls(&self) -> bool {
        !self.event_idx && self.avail_u16(0).load(Ordering::Relaxed) & AVAIL_F_NO_INTERRUPT != 0
    }

    #[inline]
    fn mark(&self) -> u16 {
        self.next_avail
    }

    #[inline]
    fn rewind(&mut self, mark: u16) {
        self.next_avail = mark;
    }

    #[inline]
    fn use_one(&mut self, memory: &Memory, taken: Taken, written: u32) {
        self.write_used(memory, self.next_used, taken.id, written);
        self.next_used = self.next_used.wrapping_add(1);
    }

    #[inline]
    fn use_all(&mut self, memory: &Memory, taken: &[Taken]) {
        if self.in_order {
            // One entry with the last buffer's id stands for the whole batch (2.7.9).
            if let Some(last) = taken.last() {
                self.write_used(memory, self.next_used, last.id, 0);
                self.next_used = self.next_used.wrapping_add(taken.len() as u16);
            }
            return;
        }
        for t in taken {
            self.use_one(memory, *t, 0);
        }
    }

    #[inline]
    fn publish(&mut self, memory: &Memory) {
        memory.mark_all();
        self.used_u16(1).store(self.next_used, Ordering::Release);
        memory.mark(self.used_addr, 4);
    }

    #[inline]
    fn wants_call(&mut self) -> bool {
        // What was published must be visible before the driver's wish is read (2.7.7.2).
        fence(Ordering::SeqCst);
        let new = self.next_used;
        let old = self.called.replace(new);
        if !self.event_idx {
            return self.avail_u16(0).load(Ordering::Relaxed) & AVAIL_F_NO_INTERRUPT == 0;
        }
        let event = self
            .avail_u16(2 + usize::from(self.size))
            .load(Ordering::Relaxed);
        old.is_none_or(|old| super::passes_event(event, new, old))
    }
}
