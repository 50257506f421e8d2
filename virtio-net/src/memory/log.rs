//! The dirty log of a live migration.

use std::any::Any;
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
        // What was written must be visible before the page is seen dirty and read.
        fence(Ordering::Release);
        for page in addr / LOG_PAGE..=addr.saturating_add(len - 1) / LOG_PAGE {
            let Ok(byte) = usize::try_from(page / 8) else {
                return;
            };
            if byte >= self.len {
                return;
            }
            // SAFETY: `byte < len`, and `map` is valid for `len` bytes while `_keep` lives; the
            // VMM reads it concurrently, hence the atomic.
            unsafe { &*self.map.add(byte) }.fetch_or(1 << (page % 8), Ordering::Relaxed);
        }
    }
}
