//! The packed virtqueue (virtio 1.3, section 2.8).
//!
//! ```text
//!  one ring of descriptors, written by both sides
//!  ┌──────┬──────┬──────┬──────┬──────┬──────┐
//!  │ used │ used │ avail│ avail│ avail│ free │     AVAIL and USED bits are read relative to
//!  └──────┴──────┴──────┴──────┴──────┴──────┘     each side's wrap counter, which flips at
//!                 ▲                                the ring's end.
//!            next_used       between bursts next_avail is as much further as is given back
//!                            late, and no further when the ring stops
//!
//!  A staged burst is written when it is published, and becomes visible when the flags of its
//!  first descriptor are written, last. Its position is kept outside of us, see `journal.rs`.
//! ```
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::journal::{self, Entry, Found, Journal, MAX_STAGED};
use super::{MAX_CHAIN, Queue, RingConfig, RingError, SetupError, Taken, check_size, part};
use crate::memory::{CACHE_LINE, MAX_PARTS, Memory, load_descriptor, prefetch_read};
use crate::spec::*;

/// A place in the ring and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    fn from_base(base: u16) -> Self {
        Self {
            index: base & 0x7fff,
            wrap: base & 0x8000 != 0,
        }
    }

    fn base(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    #[inline]
    fn advance(&mut self, by: u16, size: u16) {
        // `by <= size`, so one wrap at most; the sum fits, as both are at most 32768.
        let next = u32::from(self.index) + u32::from(by);
        if next >= u32::from(size) {
            self.wrap = !self.wrap;
            self.index = (next - u32::from(size)) as u16;
        } else {
            self.index = next as u16;
        }
    }
}

/// A packed ring's position and where it lies.
pub struct PackedRing {
    /// `size` descriptors; aligned to 16.
    desc: *mut PackedDesc,
    /// Driver event suppression: `off_wrap, flags`; aligned to 4.
    driver: *const u16,
    /// Device event suppression: `off_wrap, flags`; aligned to 4.
    device: *mut u16,
    desc_addr: u64,
    device_addr: u64,
    size: u16,
    next_avail: Place,
    next_used: Place,
    /// Used chains that `publish` will write.
    pub(super) staged: Vec<Entry>,
    journal: Option<Journal>,
    /// `next_used` when the driver was last asked whether it wants a call; none after a start.
    called: Option<Place>,
    event_idx: bool,
    in_order: bool,
}

// SAFETY: as for `SplitRing`.
unsafe impl Send for PackedRing {}

impl PackedRing {
    pub(super) fn start(
        config: &RingConfig,
        memory: &Memory,
        base: u16,
    ) -> Result<Self, SetupError> {
        let place = Place::from_base(base);
        let mut ring = Self {
            desc: std::ptr::null_mut(),
            driver: std::ptr::null(),
            device: std::ptr::null_mut(),
            desc_addr: 0,
            device_addr: 0,
            size: config.size,
            next_avail: place,
            next_used: place,
            staged: Vec::with_capacity(MAX_STAGED),
            journal: None,
            called: None,
            event_idx: has(config.features, VIRTIO_F_EVENT_IDX),
            in_order: has(config.features, VIRTIO_F_IN_ORDER),
        };
        ring.remap(config, memory)?;
        if place.index >= config.size {
            return Err(SetupError::Base {
                index: place.index,
                size: config.size,
            });
        }
        Ok(ring)
    }

    /// Goes on where `journal` says this ring was left, and keeps its position there from now on.
    /// Without a word about it in the journal the ring stays where it is.
    pub(super) fn keep_position(&mut self, memory: &Memory, journal: Journal) {
        let key = journal::key(memory, self.desc_addr, self.size);
        let mut last = self.next_used.base();
        if let Some(found) = journal.find(key, self.size)
            && self.agrees(&found)
        {
            // The first entry becomes visible last: as long as it is not, nothing was taken up.
            let first = found.entries.first().map(|e| Place::from_base(e.place));
            if first.is_some_and(|place| self.available(place)) {
                self.write_all(memory, &found.entries);
            }
            last = found.last;
            self.next_used = Place::from_base(found.next);
            self.next_avail = self.next_used;
        }
        journal.open(key, self.next_used.base(), last);
        self.journal = Some(journal);
    }

    /// Tells whether the ring can be the one the journal is about, and is not a new one at the
    /// same place: the chain used last is still marked as used, or made available a lap later.
    fn agrees(&self, found: &Found) -> bool {
        let last = Place::from_base(found.last);
        if !found.entries.is_empty() || found.next == found.last {
            return true;
        }
        let flags = self.flags(last.index).load(Ordering::Acquire);
        (flags & PACKED_F_USED != 0) == last.wrap
    }

    pub(super) fn remap(&mut self, config: &RingConfig, memory: &Memory) -> Result<(), SetupError> {
        check_size(config.size, false)?;
        let n = u64::from(config.size);
        let desc = part(memory, "descriptor ring", config.desc, 16 * n, 16)?;
        let driver = part(memory, "driver event suppression", config.driver, 4, 4)?;
        let device = part(memory, "device event suppression", config.device, 4, 4)?;
        self.size = config.size;
        self.desc = desc.cast::<PackedDesc>();
        self.driver = driver.cast::<u16>();
        self.device = device.cast::<u16>();
        self.desc_addr = config.desc;
        self.device_addr = config.device;
        Ok(())
    }

    pub(super) fn base(&self) -> u16 {
        self.next_used.base()
    }

    pub(super) fn has_work(&mut self) -> bool {
        self.available(self.next_avail)
    }

    pub(super) fn set_kicks(&mut self, memory: &Memory, on: bool) {
        let flags = if !on {
            EVENT_FLAGS_DISABLE
        } else if self.event_idx {
            // SAFETY: `device` is 4 mapped bytes aligned to 4, checked by `remap`.
            unsafe { AtomicU16::from_ptr(self.device) }
                .store(self.next_avail.base(), Ordering::Relaxed);
            EVENT_FLAGS_DESC
        } else {
            EVENT_FLAGS_ENABLE
        };
        // SAFETY: as above.
        unsafe { AtomicU16::from_ptr(self.device.add(1)) }.store(flags, Ordering::Release);
        memory.mark(self.device_addr, 4);
        if on {
            // The driver must see this before we look at its descriptors again (2.8.21.3.1).
            fence(Ordering::SeqCst);
        }
    }

    #[inline]
    fn flags(&self, index: u16) -> &AtomicU16 {
        debug_assert!(index < self.size);
        // SAFETY: `index < size` always: a `Place` is kept below it. `remap` checked the ring.
        unsafe { AtomicU16::from_ptr(&raw mut (*self.desc.add(usize::from(index))).flags) }
    }

    #[inline]
    fn available(&self, at: Place) -> bool {
        let flags = self.flags(at.index).load(Ordering::Acquire);
        (flags & PACKED_F_AVAIL != 0) == at.wrap && (flags & PACKED_F_USED != 0) != at.wrap
    }

    #[inline]
    fn read(&self, index: u16) -> PackedDesc {
        debug_assert!(index < self.size);
        // SAFETY: as in `flags`.
        unsafe { read(self.desc.cast::<u8>(), index.into()) }
    }

    /// Writes used chains to the ring, the flags of the first one last.
    pub(super) fn write_all(&self, memory: &Memory, entries: &[Entry]) {
        let Some((first, rest)) = entries.split_first() else {
            return;
        };
        memory.mark_all();
        self.write_id(memory, first);
        for entry in rest {
            self.write_id(memory, entry);
            self.write_flags(memory, entry);
        }
        self.write_flags(memory, first);
        memory.mark_all();
    }

    #[inline]
    pub(super) fn write_id(&self, memory: &Memory, entry: &Entry) {
        let index = Place::from_base(entry.place).index;
        debug_assert!(index < self.size);
        // SAFETY: as in `flags`; the driver does not read these before it sees the flags.
        unsafe {
            let d = self.desc.add(usize::from(index));
            (&raw mut (*d).len).write_volatile(entry.len);
            (&raw mut (*d).id).write_volatile(entry.id);
        }
        memory.mark_later(self.desc_addr + 16 * u64::from(index), 16);
    }

    #[inline]
    pub(super) fn write_flags(&self, memory: &Memory, entry: &Entry) {
        let Place { index, wrap } = Place::from_base(entry.place);
        let used = if wrap {
            PACKED_F_AVAIL | PACKED_F_USED
        } else {
            0
        };
        let written = if entry.len != 0 { DESC_F_WRITE } else { 0 };
        self.flags(index).store(used | written, Ordering::Release);
        memory.mark_later(self.desc_addr + 16 * u64::from(index), 16);
    }

    #[inline]
    fn stage(&mut self, id: u16, len: u32) {
        debug_assert!(self.staged.len() < MAX_STAGED);
        self.staged.push(Entry {
            place: self.next_used.base(),
            id,
            len,
        });
    }

    fn walk_indirect(
        memory: &Memory,
        table: PackedDesc,
        each: &mut impl FnMut(u64, u32, bool),
    ) -> Result<(), RingError> {
        let bad = RingError::IndirectTable(table.addr);
        let entries = table.len / 16;
        // The table is used from start to end; NEXT has no meaning in it (2.8.7).
        if entries == 0 || !table.len.is_multiple_of(16) || table.flags & DESC_F_NEXT != 0 {
            return Err(bad);
        }
        if entries > u32::from(MAX_CHAIN) {
            return Err(RingError::ChainTooLong);
        }
        let host = memory.host(table.addr, u64::from(table.len)).ok_or(bad)?;
        for index in 0..entries as usize {
            // SAFETY: `index < entries`, and `host` has `entries` descriptors.
            let d = unsafe { read(host, index) };
            if d.flags & DESC_F_INDIRECT != 0 {
                return Err(bad);
            }
            each(d.addr, d.len, d.flags & DESC_F_WRITE != 0);
        }
        Ok(())
    }
}

/// # Safety
/// `table` must point to more than `index` mapped descriptors, of any alignment.
#[inline]
unsafe fn read(table: *const u8, index: usize) -> PackedDesc {
    // SAFETY: the caller vouches for this descriptor's bytes.
    let [addr, rest] = unsafe { load_descriptor(table.add(16 * index)) };
    PackedDesc {
        addr,
        len: rest as u32,
        id: (rest >> 32) as u16,
        flags: (rest >> 48) as u16,
    }
}

impl Queue for PackedRing {
    type Mark = Place;

    #[inline]
    fn poll(&mut self) -> Result<bool, RingError> {
        Ok(self.available(self.next_avail))
    }

    #[inline]
    fn prefetch(&self, n: u16) {
        // They follow each other. Those behind the ring's end are left to the hardware.
        let from = usize::from(self.next_avail.index);
        let to = usize::from(self.size).min(from + usize::from(n));
        for index in (from..to).step_by(CACHE_LINE / 16) {
            prefetch_read(self.desc.wrapping_add(index).cast());
        }
    }

    #[inline]
    fn take_buffer(&mut self, write: bool, need: u32) -> Option<(Taken, u64, u32)> {
        if !self.available(self.next_avail) {
            return None;
        }
        let d = self.read(self.next_avail.index);
        let kind = if write { DESC_F_WRITE } else { 0 };
        if d.flags & (DESC_F_WRITE | DESC_F_NEXT | DESC_F_INDIRECT) != kind || d.len < need {
            return None;
        }
        self.next_avail.advance(1, self.size);
        Some((Taken { id: d.id, slots: 1 }, d.addr, d.len))
    }

    #[inline]
    fn take(
        &mut self,
        memory: &Memory,
        mut each: impl FnMut(u64, u32, bool),
    ) -> Result<Option<Taken>, RingError> {
        if !self.available(self.next_avail) {
            return Ok(None);
        }
        let mut place = self.next_avail;
        let mut slots = 0;
        let limit = MAX_CHAIN.min(self.size);
        let id = loop {
            let d = self.read(place.index);
            slots += 1;
            place.advance(1, self.size);
            if d.flags & DESC_F_INDIRECT != 0 {
                Self::walk_indirect(memory, d, &mut each)?;
                break d.id;
            }
            each(d.addr, d.len, d.flags & DESC_F_WRITE != 0);
            if d.flags & DESC_F_NEXT == 0 {
                break d.id;
            }
            if slots == limit {
                return Err(RingError::ChainTooLong);
            }
        };
        self.next_avail = place;
        Ok(Some(Taken { id, slots }))
    }

    fn place(&self) -> u16 {
        self.next_avail.base()
    }

    #[inline]
    fn driver_polls(&self) -> bool {
        // SAFETY: `driver` is 4 mapped bytes aligned to 4, checked by `remap`.
        let flags =
            unsafe { AtomicU16::from_ptr(self.driver.cast_mut().add(1)) }.load(Ordering::Relaxed);
        flags & 3 == EVENT_FLAGS_DISABLE
    }

    #[inline]
    fn mark(&self) -> Place {
        self.next_avail
    }

    #[inline]
    fn rewind(&mut self, mark: Place) {
        self.next_avail = mark;
    }

    #[inline]
    fn use_one(&mut self, _memory: &Memory, taken: Taken, written: u32) {
        self.stage(taken.id, written);
        self.next_used.advance(taken.slots, self.size);
    }

    #[inline]
    fn use_all(&mut self, memory: &Memory, taken: &[Taken]) {
        if self.in_order {
            // One descriptor with the last buffer's id stands for the whole batch (2.8.8).
            if let Some(last) = taken.last() {
                self.stage(last.id, 0);
            }
            for t in taken {
                self.next_used.advance(t.slots, self.size);
            }
            return;
        }
        for t in taken {
            self.use_one(memory, *t, 0);
        }
    }

    #[inline]
    fn publish(&mut self, memory: &Memory) {
        if self.staged.is_empty() {
            return;
        }
        if let Some(journal) = &self.journal {
            let next = self.next_used.base();
            journal.begin(&self.staged, next);
            self.write_all(memory, &self.staged);
            journal.end(&self.staged, next);
        } else {
            self.write_all(memory, &self.staged);
        }
        self.staged.clear();
    }

    #[inline]
    fn must_publish(&self) -> bool {
        self.staged.len() + MAX_PARTS > MAX_STAGED
    }

    #[inline]
    fn wants_call(&mut self) -> bool {
        // What was published must be visible before the driver's wish is read (2.8.21.2.1).
        fence(Ordering::SeqCst);
        let new = self.next_used;
        let old = self.called.replace(new);
        // SAFETY: `driver` is 4 mapped bytes aligned to 4, checked by `remap`.
        let flags =
            unsafe { AtomicU16::from_ptr(self.driver.cast_mut().add(1)) }.load(Ordering::Acquire);
        match flags & 3 {
            EVENT_FLAGS_DISABLE => false,
            EVENT_FLAGS_DESC if self.event_idx => {
                let Some(old) = old else { return true };
                // SAFETY: as above.
                let off_wrap =
                    unsafe { AtomicU16::from_ptr(self.driver.cast_mut()) }.load(Ordering::Relaxed);
                passes(Place::from_base(off_wrap), new, old, self.size)
            }
            _ => true,
        }
    }
}

/// Tells whether going from `old` to `new` passes descriptor `event` (2.8.14, 2.8.21.2.1).
fn passes(event: Place, new: Place, old: Place, size: u16) -> bool {
    // Count from the lap that `new` is in: a place with another wrap counter is a lap behind.
    let lap = |p: Place| {
        let index = p.index;
        if p.wrap == new.wrap {
            index
        } else {
            index.wrapping_sub(size)
        }
    };
    super::passes_event(lap(event), new.index, lap(old))
}
