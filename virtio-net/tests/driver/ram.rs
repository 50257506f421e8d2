//! A guest's memory: regions of one allocation, with guard bytes around each.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use tandem_virtio_net::memory::{DirtyLog, LOG_PAGE, Memory, Region};

const GUARD: usize = 4096;
const GUARD_BYTE: u8 = 0xa5;

/// The bytes. They are accessed by raw pointers only, from any thread.
struct Bytes {
    start: *mut u8,
    layout: Layout,
}

// SAFETY: only raw copies and atomics touch the bytes; nobody relies on what a race leaves there.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout by `Ram::new`.
        unsafe { dealloc(self.start, self.layout) };
    }
}

#[derive(Clone, Copy)]
struct Span {
    guest: u64,
    len: u64,
    /// Offset in the allocation.
    at: usize,
}

/// A guest's memory.
#[derive(Clone)]
pub(crate) struct Ram {
    bytes: Arc<Bytes>,
    spans: Vec<Span>,
}

impl Ram {
    /// Regions of zeroes, given by guest address and length.
    pub(crate) fn new(regions: &[(u64, u64)]) -> Self {
        let mut at = GUARD;
        let mut spans = Vec::new();
        for &(guest, len) in regions {
            spans.push(Span { guest, len, at });
            at += (len as usize).next_multiple_of(GUARD) + GUARD;
        }
        let layout = Layout::from_size_align(at, 4096).unwrap();
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc(layout) };
        assert!(!start.is_null());
        // SAFETY: `start` has `at` bytes, the spans are inside.
        unsafe {
            start.write_bytes(GUARD_BYTE, at);
            for s in &spans {
                start.add(s.at).write_bytes(0, s.len as usize);
            }
        }
        let bytes = Arc::new(Bytes { start, layout });
        Self { bytes, spans }
    }

    fn host(&self, addr: u64, len: usize) -> *mut u8 {
        let span = self
            .spans
            .iter()
            .find(|s| addr >= s.guest && addr + len as u64 <= s.guest + s.len);
        let span = span.unwrap_or_else(|| panic!("{len} bytes at {addr:#x} are in no region"));
        // SAFETY: inside the span, which is inside the allocation.
        unsafe { self.bytes.start.add(span.at + (addr - span.guest) as usize) }
    }

    /// The same memory, as a queue uses it.
    pub(crate) fn memory(&self) -> Memory {
        let regions = self.spans.iter().map(|s| {
            // SAFETY: the allocation lives as long as `bytes`, which is the `keep`.
            let region = unsafe { Region::new(s.guest, s.len, self.bytes.start.add(s.at)) };
            region.backed_by((self.bytes.start.addr() + s.at) as u64)
        });
        let keep: Arc<Bytes> = Arc::clone(&self.bytes);
        Memory::new(regions.collect(), Arc::default(), keep).unwrap()
    }

    /// A copy at other host addresses.
    pub(crate) fn duplicate(&self) -> Self {
        let regions: Vec<_> = self.spans.iter().map(|s| (s.guest, s.len)).collect();
        let copy = Self::new(&regions);
        for s in &self.spans {
            copy.write(s.guest, &self.read(s.guest, s.len as usize));
        }
        copy
    }

    pub(crate) fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        // SAFETY: `host` has checked the range.
        unsafe { out.as_mut_ptr().copy_from(self.host(addr, len), len) };
        out
    }

    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
        // SAFETY: `host` has checked the range.
        unsafe {
            self.host(addr, bytes.len())
                .copy_from(bytes.as_ptr(), bytes.len());
        }
    }

    fn word(&self, addr: u64) -> &AtomicU16 {
        assert!(addr.is_multiple_of(2));
        // SAFETY: `host` has checked the range, which is aligned as the region is.
        unsafe { AtomicU16::from_ptr(self.host(addr, 2).cast()) }
    }

    pub(crate) fn load(&self, addr: u64) -> u16 {
        self.word(addr).load(Ordering::Acquire)
    }

    pub(crate) fn store(&self, addr: u64, value: u16) {
        self.word(addr).store(value, Ordering::Release);
    }

    /// Panics if a byte outside the regions was written.
    pub(crate) fn check_guards(&self) {
        let all = self.bytes.layout.size();
        let mut at = 0;
        let ends = self.spans.iter().map(|s| (s.at, s.at + s.len as usize));
        for (start, end) in ends.chain([(all, all)]) {
            for i in at..start {
                // SAFETY: `i` is below the allocation's size.
                let b = unsafe { self.bytes.start.add(i).read() };
                assert_eq!(b, GUARD_BYTE, "byte {i}, outside the regions, was written");
            }
            at = end;
        }
    }

    /// All regions' pages: number of the page in guest memory, and its bytes.
    pub(crate) fn pages(&self) -> Vec<(u64, Vec<u8>)> {
        let mut out = Vec::new();
        for s in &self.spans {
            let (mut at, end) = (s.guest, s.guest + s.len);
            while at < end {
                let next = ((at / LOG_PAGE + 1) * LOG_PAGE).min(end);
                out.push((at / LOG_PAGE, self.read(at, (next - at) as usize)));
                at = next;
            }
        }
        out
    }

    /// All that is free to be used: every region.
    pub(crate) fn heap(&self) -> Heap {
        Heap {
            free: self.spans.iter().map(|s| (s.guest, s.len)).collect(),
            seams: self.spans.iter().map(|s| s.guest).collect(),
        }
    }
}

/// A dirty log.
#[derive(Clone)]
pub(crate) struct Log(Arc<Vec<AtomicU8>>);

impl Log {
    pub(crate) fn new(pages: u64) -> Self {
        Self(Arc::new(
            (0..pages.div_ceil(8)).map(|_| AtomicU8::new(0)).collect(),
        ))
    }

    /// The log, as a queue uses it.
    pub(crate) fn dirty_log(&self) -> DirtyLog {
        let keep: Arc<Vec<AtomicU8>> = Arc::clone(&self.0);
        // SAFETY: the vector lives as long as `keep`.
        unsafe { DirtyLog::new(self.0.as_ptr().cast_mut().cast(), self.0.len(), keep) }
    }

    pub(crate) fn is_marked(&self, page: u64) -> bool {
        self.0[page as usize / 8].load(Ordering::Acquire) & 1 << (page % 8) != 0
    }

    pub(crate) fn clear(&self) {
        self.0.iter().for_each(|b| b.store(0, Ordering::Release));
    }
}

/// Parts of memory that are free: address and length.
pub(crate) struct Heap {
    free: Vec<(u64, u64)>,
    /// Where regions start: no part goes across.
    seams: Vec<u64>,
}

impl Heap {
    /// Takes `len` bytes at the start or the end of a free part: next to where a region ends, as
    /// often as not. None: there is no part as long.
    pub(crate) fn take(
        &mut self,
        len: u64,
        align: u64,
        rng: &mut crate::driver::Rng,
    ) -> Option<u64> {
        let first = rng.below(self.free.len());
        for i in 0..self.free.len() {
            let i = (first + i) % self.free.len();
            let (addr, have) = self.free[i];
            let at = if rng.once_in(2) {
                addr.next_multiple_of(align)
            } else {
                (addr + have).saturating_sub(len) / align * align
            };
            if at < addr || at + len > addr + have {
                continue;
            }
            self.free.swap_remove(i);
            self.give(addr, at - addr);
            self.give(at + len, addr + have - at - len);
            return Some(at);
        }
        None
    }

    /// Gives a part back.
    pub(crate) fn give(&mut self, mut addr: u64, mut len: u64) {
        while let Some(i) = self.free.iter().position(|(a, l)| {
            (a + l == addr && !self.seams.contains(&addr))
                || (addr + len == *a && !self.seams.contains(a))
        }) {
            let (a, l) = self.free.swap_remove(i);
            addr = addr.min(a);
            len += l;
        }
        if len != 0 {
            self.free.push((addr, len));
        }
    }
}
