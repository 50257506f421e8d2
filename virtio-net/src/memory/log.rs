//! The dirty log of a live migration.

use std::any::Any;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering, fence};

/// The bitmap in which writes to guest memory are recorded during live migration: one bit for
/// each 4 KiB page, page N of guest-physical memory at bit N % 8 of byte N / 8
/// (vhost-user specification, Migration).
#[derive(Clone)]
pub struct DirtyLog {
    map: *const AtomicU8,
    len: usize,
    _keep: Arc<dyn Any + Send + Sync>,
}

/// Bytes of guest memory one bit of the dirty log stands for.
pub const LOG_PAGE: u64 = 4096;

// SAFETY: `map` is valid while `_keep` (Send + Sync) lives, and is accessed by atomics only.
unsafe impl Send for DirtyLog {}
// SAFETY: as above.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// Wraps a mapped log.
    ///
    /// # Safety
    /// `map` must point to `len` mapped writable bytes for as long as `keep` lives.
    pub unsafe fn new(map: *mut u8, len: usize, keep: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            map: map.cast::<AtomicU8>(),
            len,
            _keep: keep,
        }
    }

    /// Marks the pages of `len` bytes at `addr`. Pages beyond the log's end are not recorded.
    #[cold]
    pub fn mark(&self, addr: u64, len: u64) {
        if len == 0 {
            return;
        }
        fence(Ordering::SeqCst);
        pages(addr, len).for_each(|page| self.set(page));
    }

    /// Marks a page. Behind a fence, which is behind the writes: either this finds the page unmarked, or
    /// whoever takes the mark away after it sees what was written. Most pages are marked already, and
    /// to look costs less than to write.
    fn set(&self, page: u64) {
        let Some(byte) = usize::try_from(page / 8).ok().filter(|at| *at < self.len) else {
            return;
        };
        // SAFETY: `byte < len`, and `map` is valid for `len` bytes while `_keep` lives; the VMM
        // changes it concurrently, hence the atomic.
        let byte = unsafe { &*self.map.add(byte) };
        let bit = 1 << (page % 8);
        if byte.load(Ordering::Relaxed) & bit == 0 {
            byte.fetch_or(bit, Ordering::Relaxed);
        }
    }
}

/// The pages of `len` bytes, at least one, at `addr`.
fn pages(addr: u64, len: u64) -> std::ops::RangeInclusive<u64> {
    addr / LOG_PAGE..=addr.saturating_add(len - 1) / LOG_PAGE
}

/// Pages of one queue's writes at most before they are marked.
const PENDING: usize = 128;

/// The log of one queue, and the pages that it has written and not marked yet: a burst's, so that one fence
/// is for all of them, and none is marked for each of the frames in it.
#[derive(Clone)]
pub(super) struct Pending {
    log: DirtyLog,
    pages: Box<[Cell<u64>; PENDING]>,
    len: Cell<usize>,
    /// The last two of them.
    last: Cell<[u64; 2]>,
}

/// No memory is there.
const NO_PAGES: [u64; 2] = [u64::MAX; 2];

impl Pending {
    pub(super) fn new(log: DirtyLog) -> Self {
        Self {
            log,
            pages: Box::new([const { Cell::new(0) }; PENDING]),
            len: Cell::new(0),
            last: Cell::new(NO_PAGES),
        }
    }

    /// Takes note of `len` bytes at `addr`.
    #[inline(never)]
    pub(super) fn add(&self, addr: u64, len: u64) {
        if len == 0 {
            return;
        }
        for page in pages(addr, len) {
            // Those of buffers and of the ring take turns.
            let [last, before] = self.last.get();
            if page == last || page == before {
                continue;
            }
            self.last.set([page, last]);
            let n = self.len.get();
            self.pages[n].set(page);
            self.len.set(n + 1);
            if n + 1 == PENDING {
                self.mark();
            }
        }
    }

    /// Marks them.
    #[inline(never)]
    pub(super) fn mark(&self) {
        let n = self.len.replace(0);
        if n > 0 {
            self.last.set(NO_PAGES);
            fence(Ordering::SeqCst);
            let pages = self.pages[..n].iter();
            pages.for_each(|page| self.log.set(page.get()));
        }
    }

    /// The log.
    pub(super) fn log(&self) -> &DirtyLog {
        &self.log
    }
}
