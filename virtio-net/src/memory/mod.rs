//! Guest memory as the data path sees it: a flat table of mapped regions, and the dirty log.
//!
//! No reference to guest memory is ever made: the guest, and the VMM, write to it while we look.
//! All access is by raw copies, and every write goes through [`Memory::write`] or is followed by
//! [`Memory::mark`]: that is the one place that records pages for live migration.
//!
//! Theory of operation. Each queue holds its own `Memory` behind the queue's lock, so that control
//! can swap it there: once it has held the lock, nobody uses the old one. A [`Batch`] that points
//! into a sender's memory holds [`Memory::keep`], so that the mapping outlives the pointers.
//!
//! A page of a mapping can vanish under us: a VMM can truncate its memory file. The signal
//! handler that recovers (in the `tandem` crate) replaces the region by anonymous memory and sets
//! the region's [`Fault`]; queues look at it once a burst and stop.
//!
//! [`Batch`]: crate::frame::Batch

#![allow(unsafe_code)]

mod log;
mod payload;
mod scatter;

use std::any::Any;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

use log::Pending;
pub use log::{DirtyLog, LOG_PAGE};
pub(crate) use payload::Segments;
pub(crate) use scatter::{MAX_PARTS, Scatter};

/// What is wrong with a memory table a VMM sent.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MemoryError {
    /// A region has no bytes or its end is beyond 2^64.
    #[error("memory region at {0:#x} is empty or wraps around the address space")]
    BadRegion(u64),
    /// Two regions share addresses.
    #[error("memory regions at {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
}

/// Set once when a page of a session's memory could not be had.
#[derive(Debug, Default)]
pub struct Fault(AtomicBool);

impl Fault {
    /// Records a fault. Async-signal-safe.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Tells whether a fault was recorded.
    #[inline]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A contiguous range of guest memory mapped into this process.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    guest_addr: u64,
    len: u64,
    host: *mut u8,
    backing: u64,
}

impl Region {
    /// Describes a mapping.
    ///
    /// # Safety
    /// `host` must point to `len` bytes mapped readable and writable, for as long as the `keep`
    /// given to [`Memory::new`] with this region lives.
    pub unsafe fn new(guest_addr: u64, len: u64, host: *mut u8) -> Self {
        Self {
            guest_addr,
            len,
            host,
            backing: 0,
        }
    }

    /// Says what is behind the mapping's first byte, as a number that another process would find
    /// for the same memory, and for no other: of the file and the place in it.
    #[must_use]
    pub fn backed_by(self, backing: u64) -> Self {
        Self { backing, ..self }
    }
}

/// The guest memory of one session, as one queue uses it.
#[derive(Clone)]
pub struct Memory {
    regions: Box<[Region]>,
    /// The region that the last address was in: consecutive buffers are nearly always neighbours.
    last: Cell<usize>,
    log: Option<Pending>,
    fault: Arc<Fault>,
    keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the pointers are to mappings that `keep` (itself Send + Sync) keeps alive and that no
// reference is ever made to; `DirtyLog` is accessed by atomics only.
unsafe impl Send for Memory {}

impl Memory {
    /// Takes a session's regions, in any order.
    pub fn new(
        mut regions: Vec<Region>,
        fault: Arc<Fault>,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Result<Self, MemoryError> {
        regions.sort_by_key(|r| r.guest_addr);
        for r in &regions {
            if r.len == 0 || r.guest_addr.checked_add(r.len).is_none() {
                return Err(MemoryError::BadRegion(r.guest_addr));
            }
        }
        for pair in regions.windows(2) {
            if pair[0].guest_addr + pair[0].len > pair[1].guest_addr {
                return Err(MemoryError::Overlap(pair[0].guest_addr, pair[1].guest_addr));
            }
        }
        let regions = regions.into_boxed_slice();
        Ok(Self {
            regions,
            last: Cell::new(0),
            log: None,
            fault,
            keep,
        })
    }

    /// Memory without a byte: what a queue has before a VMM connects.
    pub fn empty() -> Self {
        Self {
            regions: Box::default(),
            last: Cell::new(0),
            log: None,
            fault: Arc::default(),
            keep: Arc::new(()),
        }
    }

    /// One region of these bytes, at address 0.
    #[cfg(test)]
    pub(crate) fn of_bytes(mut bytes: Vec<u8>) -> Self {
        let (host, len) = (bytes.as_mut_ptr(), bytes.len() as u64);
        // SAFETY: all of the vector, whose bytes `keep` keeps where they are.
        let region = unsafe { Region::new(0, len, host) };
        Self {
            regions: Box::new([region]),
            keep: Arc::new(bytes),
            ..Self::empty()
        }
    }

    /// Starts, replaces or ends logging of writes.
    pub fn set_log(&mut self, log: Option<DirtyLog>) {
        self.mark_all();
        self.log = log.map(Pending::new);
    }

    /// The fault flag of the session this memory belongs to.
    pub fn fault(&self) -> &Arc<Fault> {
        &self.fault
    }

    /// What keeps the mappings alive.
    pub fn keep(&self) -> Arc<dyn Any + Send + Sync> {
        Arc::clone(&self.keep)
    }

    /// Number of regions.
    pub fn regions(&self) -> usize {
        self.regions.len()
    }

    /// A number for what is behind `addr`, see [`Region::backed_by`]; none if nobody said.
    pub(crate) fn backing(&self, addr: u64) -> Option<u64> {
        let at = self.regions.partition_point(|r| r.guest_addr <= addr);
        let region = self.regions[..at].last()?;
        within(region, addr, 1)?;
        (region.backing != 0).then(|| region.backing.wrapping_add(addr - region.guest_addr))
    }

    /// The host address of `len` bytes of guest memory, if they lie within one region.
    ///
    /// The result is valid as long as [`Memory::keep`] is held.
    #[inline]
    pub fn host(&self, addr: u64, len: u64) -> Option<*mut u8> {
        let hit = self
            .regions
            .get(self.last.get())
            .and_then(|r| within(r, addr, len));
        if hit.is_some() {
            hit
        } else {
            self.host_slow(addr, len)
        }
    }

    /// Shows the pieces of a range that lies across regions, which a guest does not know of: guest
    /// address, host address, bytes. False: a part is in no region, or `each` said so.
    #[cold]
    fn across(
        &self,
        mut addr: u64,
        mut len: u32,
        mut each: impl FnMut(u64, *mut u8, u32) -> bool,
    ) -> bool {
        while len > 0 {
            let at = self.regions.partition_point(|r| r.guest_addr <= addr);
            let Some(region) = self.regions[..at].last() else {
                return false;
            };
            // No overflow: `new` has checked that regions end within the address space.
            let left = (region.guest_addr + region.len).saturating_sub(addr);
            let n = left.min(u64::from(len));
            match within(region, addr, n) {
                Some(host) if n > 0 && each(addr, host, n as u32) => {}
                _ => return false,
            }
            addr += n;
            len -= n as u32;
        }
        true
    }

    #[cold]
    fn host_slow(&self, addr: u64, len: u64) -> Option<*mut u8> {
        let at = self
            .regions
            .partition_point(|r| r.guest_addr <= addr)
            .checked_sub(1)?;
        self.last.set(at);
        within(&self.regions[at], addr, len)
    }

    /// Copies `src` to the host address `dst`, which is guest address `addr`, and takes note of it, see
    /// [`Memory::mark_later`].
    ///
    /// The ranges may overlap: a VMM can map one memory at two addresses, or give two queues the
    /// same. The bytes are then arbitrary.
    ///
    /// # Safety
    /// `dst` must come from [`Memory::host`] of this memory with `addr` and at least `len` bytes;
    /// `src` must be valid for reads of `len` bytes. Either may be changed by a guest meanwhile.
    #[inline]
    pub unsafe fn write(&self, addr: u64, dst: *mut u8, src: *const u8, len: usize) {
        // SAFETY: the caller vouches for both ranges. A concurrent writer can make the bytes
        // arbitrary, which nobody relies on.
        unsafe { std::ptr::copy(src, dst, len) };
        self.mark_later(addr, len as u64);
    }

    /// Records that `len` bytes at guest address `addr` were written.
    #[inline]
    pub fn mark(&self, addr: u64, len: u64) {
        if let Some(pending) = &self.log {
            pending.log().mark(addr, len);
        }
    }

    /// Takes note that `len` bytes at guest address `addr` were written. Whoever does that calls
    /// [`Memory::mark_all`] before the guest may use them, and before the queue is unlocked.
    #[inline]
    pub fn mark_later(&self, addr: u64, len: u64) {
        if let Some(pending) = &self.log {
            pending.add(addr, len);
        }
    }

    /// Records what was taken note of.
    #[inline]
    pub fn mark_all(&self) {
        if let Some(pending) = &self.log {
            pending.mark();
        }
    }
}

#[inline]
fn within(r: &Region, addr: u64, len: u64) -> Option<*mut u8> {
    let offset = addr.wrapping_sub(r.guest_addr);
    if offset < r.len && len <= r.len - offset {
        // SAFETY: `offset` is inside the region, which is one mapping of `r.len` bytes.
        Some(unsafe { r.host.add(offset as usize) })
    } else {
        None
    }
}

/// Bytes that caches move at once.
pub(crate) const CACHE_LINE: usize = 64;

/// Asks for the cache line at `at`, to be read soon.
#[inline]
pub(crate) fn prefetch_read(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch does not fault, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for the cache line at `at`, to be written soon: another CPU, in whose cache it is, has to
/// give it up.
#[inline]
pub(crate) fn prefetch_write(at: *const u8) {
    // Not by `_mm_prefetch`: for a processor as old as x86-64 itself that only asks to read.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch changes nothing and does not fault, whatever the address. Processors that
    // do not know this one pass over it.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Loads a descriptor's 16 bytes from guest memory as two words, each exactly once: what is
/// judged is what is used, whatever the guest writes meanwhile.
///
/// # Safety
/// `at` must be valid for reads of 16 bytes. It may have any alignment.
#[inline]
pub(crate) unsafe fn load_descriptor(at: *const u8) -> [u64; 2] {
    #[repr(C, packed)]
    #[derive(Clone, Copy)]
    struct Word(u64);
    let at = at.cast::<Word>();
    // SAFETY: the caller vouches for 16 bytes; a packed struct needs no alignment.
    unsafe { [at.read_volatile().0, at.add(1).read_volatile().0] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(ranges: &[(u64, u64)]) -> Result<Memory, MemoryError> {
        let mut buf = vec![0u8; 1 << 16];
        let base = buf.as_mut_ptr();
        // SAFETY: all test ranges are shorter than `buf`, which `keep` keeps alive.
        let regions = ranges
            .iter()
            .map(|(a, l)| unsafe { Region::new(*a, *l, base) })
            .collect();
        Memory::new(regions, Arc::default(), Arc::new(buf))
    }

    #[test]
    fn addresses_are_found_only_inside_one_region() {
        let m = memory(&[(0x10000, 0x1000), (0x1000, 0x1000), (0x2000, 0x1000)]).unwrap();
        assert!(m.host(0x1000, 0x1000).is_some());
        assert!(m.host(0x1fff, 1).is_some());
        assert!(
            m.host(0x1fff, 2).is_none(),
            "neighbours are separate mappings"
        );
        assert!(m.host(0x2fff, 1).is_some());
        assert!(m.host(0x3000, 1).is_none());
        assert!(m.host(0xfff, 1).is_none());
        assert!(m.host(0x10fff, 2).is_none());
        assert!(m.host(u64::MAX, 2).is_none());
        assert!(m.host(0x1000, u64::MAX).is_none());
        assert!(Memory::empty().host(0, 0).is_none());
    }

    #[test]
    fn a_range_across_regions_comes_in_pieces() {
        let m = memory(&[(0x1000, 0x1000), (0x2000, 0x1000), (0x4000, 0x1000)]).unwrap();
        let mut seen = Vec::new();
        let mut pieces = |addr, len| {
            seen.clear();
            let all = m.across(addr, len, |addr, _, n| {
                seen.push((addr, n));
                true
            });
            all.then(|| seen.clone())
        };
        assert_eq!(
            pieces(0x1ff0, 0x20),
            Some(vec![(0x1ff0, 0x10), (0x2000, 0x10)])
        );
        assert_eq!(pieces(0x2ff0, 0x20), None, "there is a hole");
        assert_eq!(pieces(0x4ff0, 0x20), None);
        assert_eq!(pieces(0xff0, 0x20), None);
        assert!(
            !m.across(0x1ff0, 0x20, |addr, _, _| addr < 0x2000),
            "told to stop"
        );
    }

    #[test]
    fn bad_tables_are_refused() {
        assert_eq!(
            memory(&[(0x1000, 0)]).err(),
            Some(MemoryError::BadRegion(0x1000))
        );
        assert!(memory(&[(u64::MAX - 10, 11)]).is_err());
        assert_eq!(
            memory(&[(0x1000, 0x1001), (0x2000, 0x1000)]).err(),
            Some(MemoryError::Overlap(0x1000, 0x2000))
        );
    }

    #[test]
    fn writes_mark_every_page_they_touch_and_none_beyond_the_log() {
        let mut m = memory(&[(0, 0x10000)]).unwrap();
        let mut log = vec![0u8; 1];
        let map = log.as_mut_ptr();
        // SAFETY: the log is one byte long and lives as long as the Arc.
        m.set_log(Some(unsafe { DirtyLog::new(map, 1, Arc::new(())) }));
        let dst = m.host(0x0fff, 2).unwrap();
        // SAFETY: `dst` is two bytes at 0xfff, the source two bytes of a literal.
        unsafe { m.write(0x0fff, dst, b"ab".as_ptr(), 2) };
        assert_eq!(log[0], 0, "later");
        m.mark_all();
        assert_eq!(log[0], 0b11);
        m.mark(0x7fff, 0x4000); // pages 7 to 11, of which the log has only 7
        assert_eq!(log[0], 0b1000_0011);
    }
}
