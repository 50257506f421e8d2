//! Where a packed ring stands, and what of a TX ring has been delivered, kept outside the process.
//!
//! A split ring tells its position itself: the used index is in guest memory. A packed ring has no
//! such index, and a VMM that lost its back-end can only repeat where the ring once was. So the
//! position is kept in a record that outlives us, with what a burst is about to write to the ring:
//!
//! ```text
//!  8-byte words
//!  ┌─────┬───────────────────────────────────┬────────────────────────────┐
//!  │ key │ next 16 · last 16 · entries n 16  │ n × (place 16 id 16 len 32)│
//!  └─────┴───────────────────────────────────┴────────────────────────────┘
//!    which ring: 0 for none                     a place: index 15 · wrap 1
//! ```
//!
//! To publish is: write the entries, then the second word with their number; write the ring; write
//! the second word without them. A process that dies anywhere in between leaves either the ring
//! as it was, or all that is needed to write it again. To write it twice is to write it once: the
//! driver cannot have reused what lies behind the first entry before it has seen that.
//!
//! That is decided by the first entry, whose flags are written last: while the driver has not seen
//! it, it cannot have reused what lies behind.
//!
//! The last word of the record of a TX ring, split or packed, says up to where its frames have been
//! delivered, which is further than they are used: a process that dies in between would find them
//! available again, and deliver them twice. It is written before the first frame of a burst
//! arrives anywhere, so what is lost is at most a burst, as on any wire.
//!
//! The record is cleared when a ring is stopped in good order, because then the VMM is told.

#![allow(unsafe_code)]

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::Memory;

/// Bytes of a record.
pub const JOURNAL_BYTES: usize = 4096;
/// Used chains that one publish may write.
pub(crate) const MAX_STAGED: usize = JOURNAL_BYTES / 8 - 3;
/// Where the record says up to where frames have been delivered.
const DELIVERED: usize = JOURNAL_BYTES / 8 - 1;
/// Nothing was, or nobody knows.
const NOWHERE: u64 = u64::MAX;

/// One used chain on its way into the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Where in the ring: index in the low 15 bits, wrap counter in the high one.
    pub(crate) place: u16,
    pub(crate) id: u16,
    pub(crate) len: u32,
}

impl Entry {
    fn pack(self) -> u64 {
        u64::from(self.place) | u64::from(self.id) << 16 | u64::from(self.len) << 32
    }

    fn unpack(word: u64) -> Self {
        Self {
            place: word as u16,
            id: (word >> 16) as u16,
            len: (word >> 32) as u32,
        }
    }
}

/// What a record says about a ring.
pub(crate) struct Found {
    /// Where to go on, after `entries` are in the ring.
    pub(crate) next: u16,
    /// Where the chain used last started.
    pub(crate) last: u16,
    /// What was being published.
    pub(crate) entries: Vec<Entry>,
}

/// The record of one ring.
#[derive(Clone)]
pub struct Journal {
    words: *const AtomicU64,
    _keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the words are accessed by atomics only, and `_keep` (Send + Sync) keeps them mapped.
unsafe impl Send for Journal {}

impl Journal {
    /// Wraps a record; all zero is an empty one.
    ///
    /// # Safety
    /// `words` must point to [`JOURNAL_BYTES`] mapped writable bytes, aligned to 8, for as long as
    /// `keep` lives, and no other `Journal` may use them at the same time.
    pub unsafe fn new(words: *mut u8, keep: Arc<dyn Any + Send + Sync>) -> Self {
        debug_assert!(words.addr().is_multiple_of(8));
        Self {
            words: words.cast::<AtomicU64>(),
            _keep: keep,
        }
    }

    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        debug_assert!(at < JOURNAL_BYTES / 8);
        // SAFETY: `at` is inside the record (`new`): every caller is bounded by `DELIVERED`.
        unsafe { &*self.words.add(at) }
    }

    /// What the record says about the ring `key`, of `size` entries, if it is about that.
    pub(crate) fn find(&self, key: u64, size: u16) -> Option<Found> {
        let state = self.word(1).load(Ordering::Acquire);
        let (next, last, n) = (state as u16, (state >> 16) as u16, (state >> 32) as usize);
        if key == 0 || self.word(0).load(Ordering::Acquire) != key || n > MAX_STAGED {
            return None;
        }
        let entries: Vec<Entry> = (0..n)
            .map(|i| Entry::unpack(self.word(2 + i).load(Ordering::Relaxed)))
            .collect();
        // The file is ours, but a file.
        let sound = |place: u16| place & 0x7fff < size;
        let all = sound(next) && sound(last) && entries.iter().all(|e| sound(e.place));
        all.then_some(Found {
            next,
            last,
            entries,
        })
    }

    /// Starts the record of the ring `key`, which stands at `next`.
    pub(crate) fn open(&self, key: u64, next: u16, last: u16) {
        self.clear();
        self.word(1).store(state(next, last, 0), Ordering::Release);
        self.word(0).store(key, Ordering::Release);
    }

    /// Is the record about the ring `key`?
    pub(crate) fn knows(&self, key: u64) -> bool {
        key != 0 && self.word(0).load(Ordering::Acquire) == key
    }

    /// Up to where the frames of the ring `key` have been delivered, if the record says that. If
    /// not, it is made to say nothing.
    pub(crate) fn delivered(&self, key: u64) -> Option<u16> {
        let place = self.word(DELIVERED).load(Ordering::Acquire);
        if self.knows(key) {
            return u16::try_from(place).ok();
        }
        self.word(DELIVERED).store(NOWHERE, Ordering::Release);
        None
    }

    /// Records up to where frames are delivered, from now on.
    #[inline]
    pub(crate) fn deliver(&self, place: u16) {
        self.word(DELIVERED).store(place.into(), Ordering::Release);
    }

    /// Records what is about to be written to the ring.
    #[inline]
    pub(crate) fn begin(&self, entries: &[Entry], next: u16) {
        let n = entries.len().min(MAX_STAGED);
        for (i, entry) in entries[..n].iter().enumerate() {
            self.word(2 + i).store(entry.pack(), Ordering::Relaxed);
        }
        let last = entries.last().map_or(0, |e| e.place);
        self.word(1).store(state(next, last, n), Ordering::Release);
    }

    /// It has been written.
    #[inline]
    pub(crate) fn end(&self, entries: &[Entry], next: u16) {
        let last = entries.last().map_or(0, |e| e.place);
        self.word(1).store(state(next, last, 0), Ordering::Release);
    }

    /// The ring was stopped in good order.
    pub(crate) fn clear(&self) {
        self.word(0).store(0, Ordering::Release);
    }
}

/// A key for the ring at guest address `addr`, of `size` entries; 0 if nobody knows what is there.
pub(crate) fn key(memory: &Memory, addr: u64, size: u16) -> u64 {
    memory
        .backing(addr)
        .map_or(0, |backing| backing ^ u64::from(size) << 48)
}

fn state(next: u16, last: u16, entries: usize) -> u64 {
    u64::from(next) | u64::from(last) << 16 | (entries as u64) << 32
}
