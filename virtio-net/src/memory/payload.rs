//! The payload of a burst, which stays in the senders' memory until it is delivered.

use std::any::Any;
use std::sync::Arc;

use super::{CACHE_LINE, Memory, prefetch_read};

/// A piece of a frame's payload: in a sender's memory, or in the batch's own bytes.
#[derive(Clone, Copy)]
struct Segment {
    /// Null: the bytes are `Segments::own[own..own + len]`.
    host: *const u8,
    own: u32,
    len: u32,
}

/// The payload pieces of a burst of frames. They are read once, when they are delivered.
///
/// Invariant: every non-null `host` came from the memory given to [`Segments::attach`], whose
/// mappings `keep` holds.
pub(crate) struct Segments {
    segments: Vec<Segment>,
    own: Box<[u8]>,
    own_used: usize,
    keep: Option<Arc<dyn Any + Send + Sync>>,
}

// SAFETY: the pointers are into mappings that `keep` (Send + Sync) keeps alive, and are only read
// through raw copies.
unsafe impl Send for Segments {}

impl Segments {
    /// Room for `segments` pieces and `own` bytes that belong to nobody's memory.
    pub(crate) fn new(segments: usize, own: usize) -> Self {
        Self {
            segments: Vec::with_capacity(segments),
            own: vec![0; own].into_boxed_slice(),
            own_used: 0,
            keep: None,
        }
    }

    /// Forgets all pieces and lets go of the memory.
    pub(crate) fn clear(&mut self) {
        self.segments.clear();
        self.own_used = 0;
        self.keep = None;
    }

    /// Binds the pieces pushed from now on to `memory`; only when nothing is held.
    pub(crate) fn attach(&mut self, memory: &Memory) {
        self.segments.clear();
        self.keep = Some(memory.keep());
    }

    /// Are they those of `memory`?
    pub(crate) fn is_bound_to(&self, memory: &Memory) -> bool {
        let same = |keep| Arc::ptr_eq(keep, &memory.keep);
        self.keep.as_ref().is_some_and(same)
    }

    pub(crate) fn len(&self) -> usize {
        self.segments.len()
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.segments.truncate(len);
    }

    /// Room for another chain of `n` pieces without allocating?
    pub(crate) fn has_room(&self, n: usize) -> bool {
        self.segments.capacity() - self.segments.len() >= n
    }

    /// Adds `len` bytes of guest memory at `addr`; false if they are not in it.
    #[inline]
    pub(crate) fn push(&mut self, memory: &Memory, addr: u64, len: u32) -> bool {
        debug_assert!(
            self.keep
                .as_ref()
                .is_some_and(|k| Arc::ptr_eq(k, &memory.keep))
        );
        match memory.host(addr, u64::from(len)) {
            Some(host) => {
                self.segments.push(Segment { host, own: 0, len });
                true
            }
            None => memory.across(addr, len, |_, host, len| {
                let room = self.has_room(1);
                if room {
                    self.segments.push(Segment { host, own: 0, len });
                }
                room
            }),
        }
    }

    /// As [`Segments::push`], but false also if the bytes are not in one region.
    #[inline]
    pub(crate) fn push_whole(&mut self, memory: &Memory, addr: u64, len: u32) -> bool {
        let host = memory.host(addr, u64::from(len));
        if let Some(host) = host {
            self.segments.push(Segment { host, own: 0, len });
        }
        host.is_some()
    }

    /// Has the first `bytes`, of two or three cache lines, of the piece added last brought into the
    /// cache, for [`Segments::pull`].
    #[inline]
    pub(crate) fn prefetch_last(&self, bytes: usize) {
        if let Some(s) = self.segments.last() {
            let last = bytes.min(s.len as usize).saturating_sub(1);
            prefetch_read(s.host);
            prefetch_read(s.host.wrapping_add(last.min(CACHE_LINE)));
            prefetch_read(s.host.wrapping_add(last));
        }
    }

    /// The unused own bytes, to read a frame into.
    pub(crate) fn own_room(&mut self) -> &mut [u8] {
        &mut self.own[self.own_used..]
    }

    /// Adds the first `len` bytes of [`Segments::own_room`].
    pub(crate) fn push_own(&mut self, len: usize) {
        let own = self.own_used as u32;
        self.own_used += len;
        self.segments.push(Segment {
            host: std::ptr::null(),
            own,
            len: len as u32,
        });
    }

    /// Leaves out the next `len` bytes of [`Segments::own_room`].
    pub(crate) fn skip_own(&mut self, len: usize) {
        self.own_used = (self.own_used + len).min(self.own.len());
    }

    /// Gives back the `len` bytes of the piece that was added last by [`Segments::push_own`].
    pub(crate) fn pop_own(&mut self, len: usize) {
        self.own_used -= len;
    }

    /// Bytes of piece `at`.
    #[inline]
    pub(crate) fn len_of(&self, at: usize) -> usize {
        self.segments[at].len as usize
    }

    /// Copies the first `dst.len()` bytes of piece `at` and drops them from it.
    ///
    /// # Panics
    /// If the piece is shorter.
    #[inline]
    pub(crate) fn pull(&mut self, at: usize, dst: &mut [u8]) {
        self.read(at, dst);
        let s = &mut self.segments[at];
        if s.host.is_null() {
            s.own += dst.len() as u32;
        } else {
            // SAFETY: `read` has checked that the piece has this many bytes.
            s.host = unsafe { s.host.add(dst.len()) };
        }
        s.len -= dst.len() as u32;
    }

    /// As [`Segments::pull`] if the piece is in a sender's memory and long enough; else nothing is
    /// done.
    #[inline]
    pub(crate) fn pull_at_once(&mut self, at: usize, dst: &mut [u8]) -> bool {
        let Some(s) = self.segments.get_mut(at) else {
            return false;
        };
        if s.host.is_null() || (s.len as usize) < dst.len() {
            return false;
        }
        // SAFETY: as in `read`: the piece has this many bytes, by the invariant of `Segments`.
        unsafe {
            std::ptr::copy_nonoverlapping(s.host, dst.as_mut_ptr(), dst.len());
            s.host = s.host.add(dst.len());
        }
        s.len -= dst.len() as u32;
        true
    }

    /// Copies the first `dst.len()` bytes of piece `at`.
    ///
    /// # Panics
    /// If the piece is shorter.
    #[inline]
    pub(crate) fn read(&self, at: usize, dst: &mut [u8]) {
        let src = self.source(at, dst.len());
        // SAFETY: `source` checked the length; `dst` is ours, so they do not overlap. A guest
        // may change the source meanwhile, which makes the copy's content arbitrary, not unsound.
        unsafe { std::ptr::copy_nonoverlapping(src, dst.as_mut_ptr(), dst.len()) };
    }

    /// As [`Segments::read`], from byte `skip` of the piece on.
    pub(crate) fn read_from(&self, at: usize, skip: usize, dst: &mut [u8]) {
        let src = self.source(at, skip + dst.len());
        // SAFETY: as in `read`: `source` checked that the piece has `skip` bytes and then `dst.len()`.
        unsafe { std::ptr::copy_nonoverlapping(src.add(skip), dst.as_mut_ptr(), dst.len()) };
    }

    /// The host's view of a piece, for a system call that copies it.
    pub(crate) fn io_slice(&self, at: usize) -> (*const u8, usize) {
        let len = self.len_of(at);
        (self.source(at, len), len)
    }

    #[inline]
    fn source(&self, at: usize, len: usize) -> *const u8 {
        let s = &self.segments[at];
        assert!(len <= s.len as usize, "a piece is read within its length");
        if s.host.is_null() {
            self.own[s.own as usize..][..len].as_ptr()
        } else {
            s.host
        }
    }
}
