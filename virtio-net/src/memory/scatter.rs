//! The buffers a frame is delivered to, and the one copy into them.

use super::payload::Segments;
use std::ops::Range;

use super::{CACHE_LINE, Memory, prefetch_write};

/// The buffers of one frame's receiver, in order.
///
/// Invariant: every part came from the memory of the queue that owns this `Scatter`, and is used
/// under the same hold of the queue's lock.
pub(crate) struct Scatter {
    parts: Vec<Part>,
    bytes: u64,
}

#[derive(Clone, Copy)]
struct Part {
    addr: u64,
    host: *mut u8,
    len: u32,
    /// Bytes that are going to be written, if that is known.
    expected: u32,
}

// SAFETY: the pointers are used only under the lock of the queue whose memory keeps them mapped.
unsafe impl Send for Scatter {}

impl Part {
    /// Asks for what [`Scatter::push_whole`] has not asked for yet. A long frame is written faster
    /// than the processor by itself gets the memory for it.
    #[inline]
    fn prefetch_rest(&self) {
        let mut at = 2 * CACHE_LINE;
        while at < self.expected as usize {
            prefetch_write(self.host.wrapping_add(at));
            at += CACHE_LINE;
        }
    }
}

/// Most buffers one received frame is spread over.
pub(crate) const MAX_PARTS: usize = 256;

impl Scatter {
    pub(crate) fn new() -> Self {
        Self {
            parts: Vec::with_capacity(MAX_PARTS),
            bytes: 0,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.parts.clear();
        self.bytes = 0;
    }

    /// Bytes all parts have together.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn is_full(&self) -> bool {
        self.parts.len() == MAX_PARTS
    }

    /// Adds a buffer; false if it is not in `memory` or there is no room for more.
    #[inline]
    pub(crate) fn push(&mut self, memory: &Memory, addr: u64, len: u32) -> bool {
        if self.is_full() {
            return false;
        }
        let part = |addr, host, len| Part {
            addr,
            host,
            len,
            expected: 0,
        };
        match memory.host(addr, u64::from(len)) {
            Some(host) => self.add(part(addr, host, len)),
            None => memory.across(addr, len, |addr, host, len| {
                !self.is_full() && self.add(part(addr, host, len))
            }),
        }
    }

    /// Adds a buffer for a frame of its own of `bytes`, which are soon written to its start; false
    /// if it is not in one piece in `memory` or there is no room for more.
    #[inline]
    pub(crate) fn push_whole(
        &mut self,
        memory: &Memory,
        addr: u64,
        len: u32,
        bytes: usize,
    ) -> bool {
        let host = memory.host(addr, u64::from(len));
        let Some(host) = host.filter(|_| !self.is_full()) else {
            return false;
        };
        // The first line of a frame, of which the header may be at the end of a line. Of longer
        // frames the processor sees by itself what follows.
        prefetch_write(host);
        prefetch_write(host.wrapping_add(bytes.min(CACHE_LINE)));
        self.add(Part {
            addr,
            host,
            len,
            expected: bytes as u32,
        })
    }

    #[inline]
    fn add(&mut self, part: Part) -> bool {
        self.bytes += u64::from(part.len);
        self.parts.push(part);
        true
    }

    /// Starts writing at the first byte of the first part.
    pub(crate) fn writer<'a>(&'a self, memory: &'a Memory) -> ScatterWriter<'a> {
        ScatterWriter {
            memory,
            parts: &self.parts,
            offset: 0,
        }
    }

    /// Writes a whole frame to part `at`: `head`, and behind it pieces of payload.
    ///
    /// # Panics
    /// If the part is shorter.
    #[inline]
    pub(crate) fn write_whole(
        &self,
        at: usize,
        memory: &Memory,
        head: &[u8],
        segments: &Segments,
        pieces: Range<usize>,
    ) {
        if let Some(next) = self.parts.get(at + 1) {
            next.prefetch_rest();
        }
        let part = &self.parts[at];
        let mut left = part.len as usize;
        let mut dst = part.host;
        let mut put = |src: *const u8, len: usize| {
            assert!(len <= left, "a buffer is written within its length");
            // SAFETY: `len` is within the part, which came from `memory` under this hold of the
            // queue's lock; `head` is a slice, and see the invariant of `Segments`.
            unsafe {
                std::ptr::copy(src, dst, len);
                dst = dst.add(len);
            }
            left -= len;
        };
        put(head.as_ptr(), head.len());
        for piece in pieces {
            let (src, len) = segments.io_slice(piece);
            put(src, len);
        }
        memory.mark_later(part.addr, (part.len as usize - left) as u64);
    }
}

/// Writes into the parts of a [`Scatter`] one after the other. What does not fit is left out.
pub(crate) struct ScatterWriter<'a> {
    memory: &'a Memory,
    parts: &'a [Part],
    offset: usize,
}

impl ScatterWriter<'_> {
    /// Writes bytes of ours.
    #[inline]
    pub(crate) fn put(&mut self, src: &[u8]) {
        // SAFETY: `src` is valid for its length.
        unsafe { self.put_raw(src.as_ptr(), src.len()) };
    }

    /// Writes a payload piece: the one copy of it.
    #[inline]
    pub(crate) fn put_segment(&mut self, segments: &Segments, at: usize) {
        let (src, len) = segments.io_slice(at);
        // SAFETY: `io_slice` gives a valid range, see the invariant of `Segments`.
        unsafe { self.put_raw(src, len) };
    }

    /// # Safety
    /// `src` must be valid for reads of `len` bytes.
    #[inline]
    unsafe fn put_raw(&mut self, mut src: *const u8, mut len: usize) {
        while len > 0 {
            let Some(part) = self.parts.first() else {
                return;
            };
            let n = len.min(part.len as usize - self.offset);
            // SAFETY: `host + offset` has `n` bytes left in the part, which came from `memory`
            // under this hold of the queue's lock; `src` has `n` bytes by the caller's word.
            unsafe {
                let dst = part.host.add(self.offset);
                self.memory
                    .write(part.addr + self.offset as u64, dst, src, n);
                src = src.add(n);
            }
            len -= n;
            self.offset += n;
            if self.offset == part.len as usize {
                self.parts = &self.parts[1..];
                self.offset = 0;
            }
        }
    }
}
