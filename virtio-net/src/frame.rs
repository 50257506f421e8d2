//! A burst of frames on its way through the switch.
//!
//! ```text
//!  Batch
//!  ├─ meta[64]    lengths, tag, where the payload is
//!  ├─ head[64]    ┌──────── 128 B ────────┬─ 12 B ─┬──── up to 256 B ────┬─ spare ─┐
//!  │              │ room for pushed headers│vnet hdr│ start of the frame  │         │
//!  │              └───────────────────────┴────────┴─────────────────────┴─────────┘
//!  └─ segments    the rest of each frame, still in the sender's memory
//! ```
//!
//! The head is copied once, judged, and is what gets delivered: a guest that rewrites its buffers
//! after we looked changes nothing. Vnet header and frame start are contiguous in it, so that they
//! go to the receiver in one copy. A frame has at most one 802.1Q tag taken off; it is put back,
//! or not, for each receiver.

use std::ops::Range;

use crate::counters::DropReason;
use crate::memory::{Memory, Segments};
use crate::spec::*;
use crate::wire::ethernet::MacAddr;

/// Frames handled at once.
pub const BURST: usize = 64;
/// Bytes in front of the vnet header for headers that an overlay pushes.
const HEADROOM: usize = 128;
/// Most bytes of a frame that are copied into its head.
pub const HEAD_MAX: usize = 256;
/// Bytes copied of a frame that does not fit its head: every usual stack of headers.
const HEAD_FIRST: usize = 128;
/// Most buffers one sent frame is spread over.
const MAX_SEGMENTS: usize = 256;
/// Pieces of a whole burst. A burst ends early when the next frame might not fit.
const BATCH_SEGMENTS: usize = 16 * MAX_SEGMENTS;
/// Bytes of an 802.1Q tag (IEEE 802.1Q clause 9.3).
const TAG: usize = 4;
/// Bytes in front of the tag: both addresses.
const MACS: usize = 12;
/// The tag protocol identifier of a C-VLAN tag (IEEE 802.1Q table 9-1).
const TPID: [u8; 2] = [0x81, 0x00];

/// An odd number of cache lines, so that the heads of a burst spread over all sets of the cache.
#[repr(align(64))]
#[derive(Clone, Copy)]
struct Head([u8; HEAD_BYTES]);
const HEAD_BYTES: usize = 7 * 64;
const _: () = assert!(HEADROOM + NET_HDR_LEN + HEAD_MAX + TAG <= HEAD_BYTES);

#[derive(Clone, Copy, Default)]
struct Meta {
    /// Where the vnet header starts in the head.
    start: u16,
    /// Bytes of the frame in the head.
    copied: u16,
    /// Bytes of the frame, without vnet header.
    len: u32,
    /// First piece of the payload and their number.
    segment: u16,
    segments: u16,
    /// The tag that is in the frame now.
    tag: Option<u16>,
}

/// Up to [`BURST`] frames. Made once for each thread and used again and again.
pub struct Batch {
    len: usize,
    /// See [`Batch::source`].
    source: u16,
    meta: [Meta; BURST],
    /// Why each frame was dropped where it was last, see [`Batch::end`].
    ends: [Option<DropReason>; BURST],
    heads: Box<[Head; BURST]>,
    segments: Segments,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// A batch for frames from guests.
    pub fn new() -> Self {
        Self::with_own_bytes(0)
    }

    /// A batch that also has `bytes` of its own, for frames that are read from a descriptor.
    pub fn with_own_bytes(bytes: usize) -> Self {
        Self {
            len: 0,
            source: 0,
            meta: [Meta::default(); BURST],
            ends: [None; BURST],
            heads: Box::new([Head([0; HEAD_BYTES]); BURST]),
            segments: Segments::new(BATCH_SEGMENTS, bytes),
        }
    }

    /// Number of frames.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// No frames?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Ends the burst: forgets the frames and lets go of the sender's memory.
    pub fn clear(&mut self) {
        self.len = 0;
        self.segments.clear();
    }

    /// The port that the burst comes from, as whoever forwards it numbers ports.
    #[inline]
    pub fn source(&self) -> u16 {
        self.source
    }

    /// Says which port the burst comes from.
    #[inline]
    pub fn set_source(&mut self, port: u16) {
        self.source = port;
    }

    /// Bytes of frame `i`, from the destination address on.
    #[inline]
    pub fn frame_len(&self, i: usize) -> usize {
        self.meta[i].len as usize
    }

    /// The copied first bytes of frame `i`: all that may be judged.
    #[inline]
    pub fn head(&self, i: usize) -> &[u8] {
        let m = &self.meta[i];
        let from = usize::from(m.start) + NET_HDR_LEN;
        &self.heads[i].0[from..from + usize::from(m.copied)]
    }

    /// The vnet header of frame `i`.
    #[inline]
    pub fn hdr(&self, i: usize) -> NetHdr {
        let at = usize::from(self.meta[i].start);
        let b = &self.heads[i].0[at..at + NET_HDR_LEN];
        NetHdr::from_bytes(b.try_into().unwrap_or(&[0; NET_HDR_LEN]))
    }

    /// Does the vnet header of frame `i` ask for anything?
    #[inline]
    pub(crate) fn has_offload(&self, i: usize) -> bool {
        let at = usize::from(self.meta[i].start);
        (self.heads[i].0[at] | self.heads[i].0[at + 1]) != 0
    }

    /// Replaces the vnet header of frame `i`.
    #[inline]
    pub fn set_hdr(&mut self, i: usize, hdr: NetHdr) {
        let at = usize::from(self.meta[i].start);
        self.heads[i].0[at..at + NET_HDR_LEN].copy_from_slice(&hdr.to_bytes());
    }

    /// Does the vnet header of frame `i`, from a driver, ask for nothing? Then it is made that of a
    /// plain frame: what means nothing is not passed on.
    #[inline]
    pub(crate) fn make_plain(&mut self, i: usize) -> bool {
        let at = usize::from(self.meta[i].start);
        let head = &self.heads[i].0;
        // Of the flags only a device may set the others (5.1.6.2).
        let plain = (head[at] & NET_HDR_F_NEEDS_CSUM | head[at + 1]) == 0;
        if plain {
            self.set_hdr(i, NetHdr::PLAIN);
        }
        plain
    }

    /// Makes sure that the first `n` bytes of frame `i` are in its head, if it has as many and
    /// they fit. True if they are there.
    pub fn pull_up(&mut self, i: usize, n: usize) -> bool {
        let m = self.meta[i];
        let have = usize::from(m.copied);
        if n <= have {
            return true;
        }
        let at = usize::from(m.start) + NET_HDR_LEN + have;
        if n > m.len as usize || n > HEAD_MAX {
            return false;
        }
        let mut room = &mut self.heads[i].0[at..at + n - have];
        let mut piece = usize::from(m.segment);
        while !room.is_empty() {
            let n = room.len().min(self.segments.len_of(piece));
            let (now, rest) = room.split_at_mut(n);
            self.segments.pull(piece, now);
            room = rest;
            piece += 1;
        }
        self.meta[i].copied = n as u16;
        true
    }

    /// The source address of frame `i`; zero if it has none.
    #[inline]
    pub fn source_mac(&self, i: usize) -> MacAddr {
        MacAddr(
            (self.head(i).get(6..MACS)).map_or([0; 6], |mac| mac.try_into().unwrap_or_default()),
        )
    }

    /// Gives frame `i` another source address.
    #[inline]
    pub fn set_source_mac(&mut self, i: usize, mac: MacAddr) {
        let at = usize::from(self.meta[i].start) + NET_HDR_LEN + 6;
        self.heads[i].0[at..at + 6].copy_from_slice(&mac.0);
    }

    /// The 802.1Q tag control information of frame `i`, if it carries a tag.
    #[inline]
    pub fn tag(&self, i: usize) -> Option<u16> {
        self.meta[i].tag
    }

    /// Makes frame `i` carry the tag `tag`, or none.
    #[inline]
    pub fn set_tag(&mut self, i: usize, tag: Option<u16>) {
        if self.meta[i].tag != tag {
            self.change_tag(i, tag);
        }
    }

    fn change_tag(&mut self, i: usize, tag: Option<u16>) {
        if self.meta[i].tag.is_some() {
            self.shift_front(i, true);
        }
        self.meta[i].tag = tag;
        if let Some(tci) = tag {
            self.shift_front(i, false);
            let at = usize::from(self.meta[i].start) + NET_HDR_LEN + MACS;
            let head = &mut self.heads[i].0;
            head[at..at + 2].copy_from_slice(&TPID);
            head[at + 2..at + TAG].copy_from_slice(&tci.to_be_bytes());
        }
    }

    /// Moves vnet header and addresses over the tag (`closing`), or makes room for one.
    fn shift_front(&mut self, i: usize, closing: bool) {
        let by = TAG as u16;
        let mut hdr = self.hdr(i);
        let m = &mut self.meta[i];
        let from = usize::from(m.start);
        // What starts later is shorter by as much: a frame with a tag has the bytes for it, and
        // one without leaves room in front.
        if closing {
            m.start += by;
            m.copied -= by;
            m.len -= u32::from(by);
        } else {
            m.start -= by;
            m.copied += by;
            m.len += u32::from(by);
        }
        let to = usize::from(m.start);
        self.heads[i]
            .0
            .copy_within(from..from + NET_HDR_LEN + MACS, to);
        let shift = |v: u16| {
            if closing {
                v.saturating_sub(by)
            } else {
                v.saturating_add(by)
            }
        };
        if hdr.flags & NET_HDR_F_NEEDS_CSUM != 0 {
            hdr.csum_start = shift(hdr.csum_start);
        }
        if hdr.hdr_len != 0 {
            hdr.hdr_len = shift(hdr.hdr_len);
        }
        self.set_hdr(i, hdr);
    }

    /// Vnet header and head of frame `i`, with the number of merged buffers filled in; then the
    /// range of its payload pieces among all pieces.
    #[inline]
    pub(crate) fn parts(&mut self, i: usize, num_buffers: u16) -> (&[u8], Range<usize>, &Segments) {
        let m = &self.meta[i];
        let at = usize::from(m.start);
        let head = &mut self.heads[i].0;
        // Nearly always it is there already. A store just before the bytes are copied would hold
        // up the wider load of the copy.
        let num_buffers = num_buffers.to_le_bytes();
        if head[at + 10..at + 12] != num_buffers {
            head[at + 10..at + 12].copy_from_slice(&num_buffers);
        }
        let bytes = &head[at..at + NET_HDR_LEN + usize::from(m.copied)];
        (
            bytes,
            usize::from(m.segment)..usize::from(m.segment + m.segments),
            &self.segments,
        )
    }

    /// Vnet header and head of frame `i`, then the addresses and lengths of its payload pieces,
    /// for a system call that takes a list of buffers. Valid until [`Batch::clear`].
    pub fn io_slices(&mut self, i: usize, mut each: impl FnMut(*const u8, usize)) {
        let (head, pieces, segments) = self.parts(i, 0);
        each(head.as_ptr(), head.len());
        for at in pieces {
            let (ptr, len) = segments.io_slice(at);
            each(ptr, len);
        }
    }

    /// Copies frame `i` to the start of `out`, without vnet header. Bytes copied, which are all
    /// if `out` has [`MAX_DELIVERED`] bytes.
    pub fn linearize(&self, i: usize, out: &mut [u8]) -> usize {
        let m = self.meta[i];
        let head = self.head(i);
        let mut at = head.len().min(out.len());
        out[..at].copy_from_slice(&head[..at]);
        for piece in usize::from(m.segment)..usize::from(m.segment + m.segments) {
            let n = self.segments.len_of(piece).min(out.len() - at);
            self.segments.read(piece, &mut out[at..at + n]);
            at += n;
        }
        at
    }

    /// Copies frame `i` from byte `at` on to the start of `out`, without vnet header. Bytes copied:
    /// fewer than `out` has only at the end of the frame.
    pub fn read_at(&self, i: usize, at: usize, out: &mut [u8]) -> usize {
        let m = self.meta[i];
        let head = self.head(i);
        let from_head = head.get(at..).unwrap_or_default();
        let mut done = from_head.len().min(out.len());
        out[..done].copy_from_slice(&from_head[..done]);
        let mut start = head.len();
        for piece in usize::from(m.segment)..usize::from(m.segment + m.segments) {
            if done == out.len() {
                break;
            }
            let len = self.segments.len_of(piece);
            let skip = (at + done).saturating_sub(start).min(len);
            let n = (len - skip).min(out.len() - done);
            self.segments
                .read_from(piece, skip, &mut out[done..done + n]);
            done += n;
            start += len;
        }
        done
    }

    /// Why frame `i` was dropped by whoever dealt with it last; none: it was not. Kept while frames
    /// are watched, see [`Tracepoint`](crate::Tracepoint).
    #[inline]
    pub fn end(&self, i: usize) -> Option<DropReason> {
        self.ends[i]
    }

    /// Notes why frame `i` was dropped.
    #[inline]
    pub fn set_end(&mut self, i: usize, reason: DropReason) {
        self.ends[i] = Some(reason);
    }

    /// Forgets what was noted.
    #[inline]
    pub(crate) fn forget_ends(&mut self) {
        self.ends = [None; BURST];
    }

    /// Makes the frame that was refused last readable at the place behind the last frame, as far as
    /// its buffers could be followed, until the next one is added. False: there is not a byte of it.
    pub(crate) fn salvage(&mut self, f: &FrameStart, hdr_len: usize, reason: DropReason) -> bool {
        let buffers = matches!(
            reason,
            DropReason::TooLong | DropReason::TooManyBuffers | DropReason::BadBuffer
        );
        let short = reason == DropReason::TooShort && f.frame_bytes(hdr_len) < MIN_FRAME as u64;
        if !buffers && !short {
            return true;
        }
        let pieces = f.segment..f.segment + f.segments;
        let bytes: u64 = pieces.map(|at| self.segments.len_of(at) as u64).sum();
        let len = bytes.saturating_sub(hdr_len as u64);
        if len == 0 {
            return false;
        }
        let mut segment = f.segment;
        let hdr = &mut self.heads[self.len].0[HEADROOM..HEADROOM + hdr_len];
        gather(&mut self.segments, &mut segment, hdr);
        self.meta[self.len] = Meta {
            start: HEADROOM as u16,
            copied: 0,
            len: u32::try_from(len).unwrap_or(u32::MAX),
            segment: segment as u16,
            segments: (f.segment + f.segments - segment) as u16,
            tag: None,
        };
        true
    }

    /// Binds the batch to the memory that the coming frames are in. Only when it is empty.
    pub(crate) fn attach(&mut self, memory: &Memory) {
        debug_assert!(self.len == 0);
        self.segments.attach(memory);
    }

    /// Is there room for the pieces of one more frame?
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.segments.has_room(MAX_SEGMENTS)
    }

    /// Starts and ends a frame of one buffer; false if that is not in one piece in `memory`.
    #[inline]
    pub(crate) fn whole_piece(
        &mut self,
        f: &mut FrameStart,
        memory: &Memory,
        addr: u64,
        len: u32,
    ) -> bool {
        f.segment = self.segments.len();
        f.segments = 1;
        f.bytes = len.into();
        f.error = None;
        let pushed = self.segments.push_whole(memory, addr, len);
        self.segments.prefetch_last(HEAD_FIRST);
        pushed
    }

    /// Starts a frame; its buffers follow by [`Batch::piece`].
    #[inline]
    pub(crate) fn start_frame(&self, f: &mut FrameStart) {
        f.segment = self.segments.len();
        f.bytes = 0;
        f.error = None;
    }

    /// Adds a buffer to the frame that was started.
    #[inline]
    pub(crate) fn piece(&mut self, f: &mut FrameStart, memory: &Memory, addr: u64, len: u32) {
        let pieces = self.segments.len() - f.segment;
        if pieces >= MAX_SEGMENTS {
            f.error = Some(DropReason::TooManyBuffers);
        } else if len != 0 && !self.segments.push(memory, addr, len) {
            f.error = Some(DropReason::BadBuffer);
        } else if len != 0 && pieces < 2 {
            self.segments.prefetch_last(HEAD_FIRST);
        }
        f.bytes += u64::from(len);
    }

    /// All buffers of the frame that was started are added.
    #[inline]
    pub(crate) fn end_pieces(&self, f: &mut FrameStart) {
        f.segments = self.segments.len() - f.segment;
    }

    /// Adds a frame of which `hdr_len` bytes are the vnet header: copies its head. Frames are
    /// added in the order in which they were started. Those that cannot be are left out.
    #[inline]
    pub(crate) fn end_frame(&mut self, f: &FrameStart, hdr_len: usize) -> Result<(), DropReason> {
        self.copy_head(f, hdr_len)?;
        self.len += 1;
        Ok(())
    }

    /// As [`Batch::end_frame`] for the frames that nearly all are: of one buffer, with a vnet
    /// header as long as ours, and of no more than `max` bytes; then [`Batch::make_plain`]. None:
    /// it is not one of them.
    #[inline]
    pub(crate) fn end_whole(&mut self, f: &FrameStart, max: usize) -> Option<bool> {
        let len = (f.bytes as usize).wrapping_sub(NET_HDR_LEN);
        if f.segments != 1 || f.error.is_some() || !(MIN_FRAME + TAG..=max).contains(&len) {
            return None;
        }
        let copied = if len <= HEAD_MAX { len } else { HEAD_FIRST };
        let head = &mut self.heads.get_mut(self.len)?.0;
        let head = &mut head[HEADROOM..HEADROOM + NET_HDR_LEN + copied];
        if !self.segments.pull_at_once(f.segment, head) {
            return None;
        }
        let at = NET_HDR_LEN + MACS;
        let tagged = head[at..at + 2] == TPID;
        let tci = u16::from_be_bytes([head[at + 2], head[at + 3]]);
        self.meta[self.len] = Meta {
            start: HEADROOM as u16,
            copied: copied as u16,
            len: len as u32,
            segment: f.segment as u16,
            segments: u16::from(len != copied),
            tag: tagged.then_some(tci),
        };
        self.len += 1;
        Some(self.make_plain(self.len - 1))
    }

    fn copy_head(&mut self, f: &FrameStart, hdr_len: usize) -> Result<(), DropReason> {
        if let Some(reason) = f.error {
            return Err(reason);
        }
        let len = f.bytes.saturating_sub(hdr_len as u64) as usize;
        if len < MIN_FRAME {
            return Err(DropReason::TooShort);
        }
        if len > MAX_FRAME {
            return Err(DropReason::TooLong);
        }
        let copied = if len <= HEAD_MAX { len } else { HEAD_FIRST };
        let head = &mut self.heads[self.len].0;
        let mut segment = f.segment;
        // A legacy header has no `num_buffers`: the frame goes behind where it would be.
        let frame_at = HEADROOM + NET_HDR_LEN;
        if hdr_len == NET_HDR_LEN {
            gather(
                &mut self.segments,
                &mut segment,
                &mut head[HEADROOM..frame_at + copied],
            );
        } else {
            gather(
                &mut self.segments,
                &mut segment,
                &mut head[HEADROOM..HEADROOM + hdr_len],
            );
            gather(
                &mut self.segments,
                &mut segment,
                &mut head[frame_at..frame_at + copied],
            );
        }
        let tagged = head[frame_at + MACS..frame_at + MACS + 2] == TPID;
        let tci = [head[frame_at + MACS + 2], head[frame_at + MACS + 3]];
        self.meta[self.len] = Meta {
            start: HEADROOM as u16,
            copied: copied as u16,
            len: len as u32,
            segment: segment as u16,
            segments: (f.segment + f.segments - segment) as u16,
            tag: tagged.then(|| u16::from_be_bytes(tci)),
        };
        if tagged && len < MIN_FRAME + TAG {
            return Err(DropReason::TooShort);
        }
        Ok(())
    }

    /// Forgets the frame that was started.
    pub(crate) fn abandon_frame(&mut self, f: &FrameStart) {
        self.segments.truncate(f.segment);
    }

    /// Room for one more frame with its vnet header in the batch's own bytes, if there is any.
    pub fn own_room(&mut self) -> Option<&mut [u8]> {
        if self.len == BURST || !self.has_room() {
            return None;
        }
        let room = self.segments.own_room();
        (room.len() >= NET_HDR_LEN + MAX_FRAME).then_some(room)
    }

    /// Adds the frame in the first `bytes` of [`Batch::own_room`], vnet header in front.
    pub fn push_own(&mut self, bytes: usize) -> Result<(), DropReason> {
        let mut f = FrameStart::default();
        self.start_frame(&mut f);
        f.bytes = bytes as u64;
        self.segments.push_own(bytes);
        self.end_pieces(&mut f);
        let result = self.end_frame(&f, NET_HDR_LEN);
        if result.is_err() {
            self.segments.truncate(f.segment);
            self.segments.pop_own(bytes);
        }
        result
    }

    /// Leaves out the next `bytes` of [`Batch::own_room`]: where several frames were read at once,
    /// each has its place.
    pub fn skip_own(&mut self, bytes: usize) {
        self.segments.skip_own(bytes);
    }

    /// Adds the frames at `places` (address and bytes) of `memory`, each with the vnet header that `hdr`
    /// says, which is not in front of them there. They stay where they are until [`Batch::clear`]: what is
    /// written there until then makes their bytes arbitrary, beyond the head. Frames that are
    /// refused are shown to `refused`; all are if the batch has frames from elsewhere. Both know frames by
    /// their index in `places`.
    pub fn push_placed(
        &mut self,
        memory: &Memory,
        places: &[(u64, u32)],
        hdr: impl Fn(usize) -> NetHdr,
        mut refused: impl FnMut(usize, DropReason),
    ) {
        if self.is_empty() {
            self.attach(memory);
        }
        let elsewhere = !self.segments.is_bound_to(memory);
        for (n, places) in places.chunks(BURST).enumerate() {
            // All beginnings are asked for before the first is read.
            let mut starts = [FrameStart::default(); BURST];
            for (f, (addr, len)) in starts.iter_mut().zip(places) {
                let usable = !elsewhere && self.has_room();
                if !usable || !self.whole_piece(f, memory, *addr, *len) {
                    f.error = Some(DropReason::BadBuffer);
                }
            }
            for (i, f) in starts[..places.len()].iter().enumerate() {
                let i = n * BURST + i;
                let result = match f.error {
                    None if self.len == BURST => Err(DropReason::TooManyBuffers),
                    _ => self.end_frame(f, 0),
                };
                match result {
                    Ok(()) => self.set_hdr(self.len - 1, hdr(i)),
                    Err(reason) => refused(i, reason),
                }
            }
        }
    }

    /// Takes back the frame added last: it is dropped.
    pub(crate) fn pop(&mut self) {
        self.len -= 1;
    }

    /// Adds a copy of a whole frame. For tests and for frames the switch makes itself; the batch
    /// needs own bytes, see [`Batch::with_own_bytes`].
    pub fn push_frame(&mut self, hdr: NetHdr, frame: &[u8]) -> Result<(), DropReason> {
        let room = self.own_room().ok_or(DropReason::TooManyBuffers)?;
        if frame.len() > MAX_FRAME {
            return Err(DropReason::TooLong);
        }
        room[..NET_HDR_LEN].copy_from_slice(&hdr.to_bytes());
        room[NET_HDR_LEN..NET_HDR_LEN + frame.len()].copy_from_slice(frame);
        self.push_own(NET_HDR_LEN + frame.len())
    }
}

/// A frame whose buffers are being collected.
#[derive(Clone, Copy, Default)]
pub(crate) struct FrameStart {
    segment: usize,
    segments: usize,
    bytes: u64,
    error: Option<DropReason>,
}

impl FrameStart {
    /// Bytes the frame has behind a vnet header of `hdr_len` bytes.
    #[inline]
    pub(crate) fn frame_bytes(&self, hdr_len: usize) -> u64 {
        self.bytes.saturating_sub(hdr_len as u64)
    }
}

/// Fills `room` from the pieces, which have enough bytes; `piece` ends at the first unread one.
#[inline]
fn gather(segments: &mut Segments, piece: &mut usize, mut room: &mut [u8]) {
    loop {
        let have = segments.len_of(*piece);
        let n = room.len().min(have);
        let (now, rest) = room.split_at_mut(n);
        segments.pull(*piece, now);
        if n == have {
            *piece += 1;
        }
        if rest.is_empty() {
            return;
        }
        room = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch_of(frame: &[u8], hdr: NetHdr) -> Batch {
        let mut b = Batch::with_own_bytes(1 << 18);
        b.push_frame(hdr, frame).unwrap();
        b
    }

    fn bytes(b: &Batch) -> Vec<u8> {
        let mut out = vec![0; MAX_DELIVERED];
        let n = b.linearize(0, &mut out);
        out.truncate(n);
        out
    }

    fn numbered(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 7 + i / 256) as u8).collect()
    }

    #[test]
    fn a_frame_comes_back_as_it_went_in() {
        for n in [14, 60, 128, 255, 256, 257, 1514, MAX_FRAME] {
            let b = batch_of(&numbered(n), NetHdr::default());
            assert_eq!(b.frame_len(0), n);
            assert_eq!(bytes(&b), numbered(n));
            assert_eq!(b.head(0), &numbered(n)[..if n <= 256 { n } else { 128 }]);
        }
        let mut b = Batch::with_own_bytes(1 << 18);
        assert_eq!(
            b.push_frame(NetHdr::default(), &[0; 13]),
            Err(DropReason::TooShort)
        );
        assert_eq!(
            b.push_frame(NetHdr::default(), &vec![0; MAX_FRAME + 1]),
            Err(DropReason::TooLong)
        );
        assert!(b.is_empty());
    }

    #[test]
    fn any_part_of_a_frame_can_be_read() {
        for n in [60, 256, 257, 1514, MAX_FRAME] {
            let mut b = batch_of(&numbered(n), NetHdr::default());
            b.pull_up(0, 200);
            for at in [0, 1, 127, 128, 129, 200, 255, 300, n - 1, n, n + 1] {
                for want in [0, 1, 4, 512, MAX_DELIVERED] {
                    let mut out = vec![0; want];
                    let got = b.read_at(0, at, &mut out);
                    let rest = numbered(n).split_off(at.min(n));
                    assert_eq!(out[..got], rest[..want.min(rest.len())], "{n} {at} {want}");
                }
            }
        }
    }

    #[test]
    fn placed_frames_stay_where_they_are_and_are_checked() {
        let mut area = numbered(4096);
        area[2048 + 12..][..4].copy_from_slice(&[0x81, 0, 0, 7]);
        let (memory, other) = (Memory::of_bytes(area), Memory::empty());
        let places = [
            (100, 1500),
            (4000, 97),
            (50, 13),
            (2048, 60),
            (u64::MAX, 60),
        ];
        let mut b = Batch::new();
        b.heads[0].0.fill(0xff);
        let mut refused = Vec::new();
        let hdr = |i: usize| NetHdr {
            csum_start: i as u16,
            ..NetHdr::default()
        };
        b.push_placed(&memory, &places, hdr, |i, r| refused.push((i, r)));
        let reasons = [
            (1, DropReason::BadBuffer),
            (2, DropReason::TooShort),
            (4, DropReason::BadBuffer),
        ];
        assert_eq!(refused, reasons);
        assert_eq!((b.len(), b.hdr(0), b.hdr(1)), (2, hdr(0), hdr(3)));
        assert_eq!(bytes(&b), numbered(4096)[100..1600]);
        assert_eq!((b.tag(1), b.frame_len(1)), (Some(7), 60));
        // A burst is from one memory, and no longer than a burst.
        refused.clear();
        b.push_placed(&other, &places[..1], hdr, |i, r| refused.push((i, r)));
        assert_eq!((b.len(), refused.len()), (2, 1));
        let many = [(100, 1500); 2 * BURST];
        b.push_placed(&memory, &many, hdr, |i, r| refused.push((i, r)));
        assert_eq!((b.len(), refused.len()), (BURST, 1 + BURST + 2));
    }

    #[test]
    fn pulling_up_moves_bytes_into_the_head_and_keeps_the_frame() {
        let frame = numbered(1000);
        let mut b = batch_of(&frame, NetHdr::default());
        assert!(b.pull_up(0, 200));
        assert_eq!(b.head(0), &frame[..200]);
        assert!(!b.pull_up(0, HEAD_MAX + 1));
        assert_eq!(bytes(&b), frame);
        let mut short = batch_of(&frame[..100], NetHdr::default());
        assert!(!short.pull_up(0, 101));
    }

    #[test]
    fn tags_are_put_on_and_taken_off_with_the_checksum_offsets_following() {
        let hdr = NetHdr {
            flags: NET_HDR_F_NEEDS_CSUM,
            csum_start: 34,
            csum_offset: 16,
            hdr_len: 54,
            ..NetHdr::default()
        };
        let frame = numbered(300);
        let mut b = batch_of(&frame, hdr);
        b.set_tag(0, Some(0x2064));
        let tagged = bytes(&b);
        assert_eq!(tagged[..12], frame[..12]);
        assert_eq!(tagged[12..16], [0x81, 0, 0x20, 0x64]);
        assert_eq!(tagged[16..], frame[12..]);
        assert_eq!((b.hdr(0).csum_start, b.hdr(0).hdr_len), (38, 58));
        b.set_tag(0, Some(7));
        assert_eq!(bytes(&b)[12..16], [0x81, 0, 0, 7]);
        b.set_tag(0, None);
        assert_eq!(bytes(&b), frame);
        assert_eq!(b.hdr(0), hdr);
        let again = batch_of(&tagged, hdr);
        assert_eq!(again.tag(0), Some(0x2064));
    }

    #[test]
    fn the_longest_frame_takes_a_tag() {
        let frame = numbered(MAX_FRAME);
        let mut b = batch_of(&frame, NetHdr::default());
        b.set_tag(0, Some(7));
        let tagged = bytes(&b);
        assert_eq!(
            (tagged.len(), b.frame_len(0)),
            (MAX_FRAME + 4, MAX_FRAME + 4)
        );
        assert_eq!(tagged[16..], frame[12..]);
        let mut scratch = crate::Scratch::default();
        let (whole, room) = scratch.rooms();
        for room in [whole, room] {
            assert_eq!(b.linearize(0, &mut room[NET_HDR_LEN..]), tagged.len());
        }
    }
}
