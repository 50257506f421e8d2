//! Filling an RX queue: from a [`Batch`] into a guest's buffers.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::counters::{Counters, DropReason};
use crate::frame::{BURST, Batch};
use crate::memory::{MAX_PARTS, Memory, Scatter};
use crate::offload::{self, Segmenter, Treatment};
use crate::queue::{Call, QueueState, Stopped};
use crate::ring::{MAX_CHAIN, Queue, Ring, RingConfig, RingError, SetupError, Taken};
use crate::spec::*;

/// Bytes copied or looked at after which a receiver's lock is given up, so that no sender waits
/// long for it.
const HOLD_BYTES: u64 = 256 * 1024;

/// A queue of frames to the VM.
pub struct RxQueue {
    state: QueueState,
    chains: Chains,
    mergeable: bool,
    features: u64,
    /// The driver has posted a buffer since the ring was started.
    populated: bool,
}

/// The chains that are being put together for one frame.
struct Chains {
    scatter: Scatter,
    /// Each with its bytes.
    list: Vec<(Taken, u32)>,
    /// Descriptors looked at.
    descriptors: u32,
}

/// What a thread needs beside the batch: room to complete offloads in software, and whom to notify
/// when the burst is done.
pub struct Scratch {
    frame: Box<[u8]>,
    segment: Box<[u8]>,
    calls: Vec<Arc<dyn Call>>,
}

impl Default for Scratch {
    fn default() -> Self {
        let room = || vec![0; NET_HDR_LEN + MAX_DELIVERED].into_boxed_slice();
        Self {
            frame: room(),
            segment: room(),
            calls: Vec::with_capacity(BURST),
        }
    }
}

impl Scratch {
    /// Room for a whole frame with its vnet header, and for a segment made of it.
    pub fn rooms(&mut self) -> (&mut [u8], &mut [u8]) {
        (&mut self.frame, &mut self.segment)
    }

    /// Keeps a call for [`Scratch::call_all`], once.
    pub fn keep_call(&mut self, call: Arc<dyn Call>) {
        if !self.calls.iter().any(|c| Arc::ptr_eq(c, &call)) {
            self.calls.push(call);
        }
    }

    /// Notifies the guests that a burst went to, when no lock is held any more.
    pub fn call_all(&mut self) {
        self.calls.drain(..).for_each(|call| call.call());
    }
}

/// What [`RxQueue::fill`] did.
#[derive(Default)]
pub struct Filled {
    /// Frames dealt with, from the first: delivered or dropped. Fewer than given: the lock was
    /// held long enough, call again after letting go of it.
    pub done: usize,
    /// Whom to call after unlocking.
    pub call: Option<Arc<dyn Call>>,
    /// Frames that were replaced by segments, and the number of those.
    pub segmented: (u64, u64),
}

/// What one fill has done so far. Frames and bytes are added to the shared counters once.
struct Work<'a> {
    counters: &'a Counters,
    frames: u64,
    bytes: u64,
    /// The guest wants to be notified.
    wanted: bool,
    /// Bytes of memory gone through, in vain too: what the lock is held for.
    held: u64,
    filled: Filled,
}

impl<'a> Work<'a> {
    fn new(counters: &'a Counters) -> Self {
        Self {
            counters,
            frames: 0,
            bytes: 0,
            wanted: false,
            held: 0,
            filled: Filled::default(),
        }
    }

    #[inline]
    fn delivered(&mut self, len: usize) {
        self.frames += 1;
        self.bytes += len as u64;
        self.held += len as u64;
    }

    /// Counts `frames` as dropped that frame `i` is, or would have become.
    fn dropped(&mut self, batch: &mut Batch, i: usize, reason: DropReason, frames: u64) {
        if frames != 0 {
            self.counters.count_drop(reason, frames);
            batch.set_end(i, reason);
        }
    }
}

fn note_ends(batch: &mut Batch, frames: &[u8], reason: DropReason) {
    for i in frames {
        batch.set_end(usize::from(*i), reason);
    }
}

impl Default for RxQueue {
    fn default() -> Self {
        Self {
            state: QueueState::default(),
            chains: Chains {
                scatter: Scatter::new(),
                list: Vec::with_capacity(MAX_PARTS),
                descriptors: 0,
            },
            mergeable: false,
            features: 0,
            populated: false,
        }
    }
}

impl Deref for RxQueue {
    type Target = QueueState;
    fn deref(&self) -> &QueueState {
        &self.state
    }
}

impl DerefMut for RxQueue {
    fn deref_mut(&mut self) -> &mut QueueState {
        &mut self.state
    }
}

impl RxQueue {
    /// Starts the ring, or starts it again at another place. A repeat with the configuration that
    /// is already running changes nothing and gives false, so that a VMM may repeat itself on a live
    /// ring.
    pub fn start(&mut self, config: &RingConfig, base: u16) -> Result<bool, SetupError> {
        // A full ring is dropped on, so there is nothing to be woken up for.
        let anew = self.state.start(config, base, false)?;
        if anew {
            self.populated = false;
        }
        self.mergeable = has(config.features, VIRTIO_NET_F_MRG_RXBUF);
        self.features = config.features;
        Ok(anew)
    }

    /// Has the driver posted any buffer? Some start rings that they never use.
    pub fn is_populated(&mut self) -> bool {
        self.populated = self.populated || self.state.has_work();
        self.populated
    }

    /// Copies the given frames of `batch` into the guest's buffers, in order, and publishes them
    /// at once. Frames there is no room for are dropped and counted.
    pub fn fill(
        &mut self,
        batch: &mut Batch,
        frames: &[u8],
        scratch: &mut Scratch,
        counters: &Counters,
    ) -> Filled {
        let reason = match self.state.stopped() {
            None => None,
            Some(Stopped::NotReady) => Some(DropReason::NotReady),
            Some(Stopped::Broken(_) | Stopped::Fault) => Some(DropReason::RingBroken),
        };
        if let Some(reason) = reason {
            counters.count_drop(reason, frames.len() as u64);
            note_ends(batch, frames, reason);
            return Filled {
                done: frames.len(),
                ..Filled::default()
            };
        }
        let Some(mut ring) = self.state.ring.take() else {
            return Filled::default();
        };
        let filled = match &mut ring {
            Ring::Split(r) => self.fill_ring(r, batch, frames, scratch, counters),
            Ring::Packed(r) => self.fill_ring(r, batch, frames, scratch, counters),
        };
        self.state.ring = Some(ring);
        filled
    }

    fn fill_ring<Q: Queue>(
        &mut self,
        ring: &mut Q,
        batch: &mut Batch,
        frames: &[u8],
        scratch: &mut Scratch,
        counters: &Counters,
    ) -> Filled {
        let mut work = Work::new(counters);
        match ring.poll() {
            Ok(_) => ring.prefetch(frames.len() as u16),
            Err(e) => self.state.break_ring(e),
        }
        while let [i, rest @ ..] = &frames[work.filled.done..] {
            if self.state.is_broken() {
                counters.count_drop(DropReason::RingBroken, 1 + rest.len() as u64);
                note_ends(batch, &frames[work.filled.done..], DropReason::RingBroken);
                work.filled.done = frames.len();
            } else if work.held >= HOLD_BYTES {
                break;
            } else if !self.deliver_run(ring, batch, &frames[work.filled.done..], &mut work) {
                self.deliver(ring, batch, usize::from(*i), scratch, &mut work);
                work.filled.done += 1;
            }
        }
        if work.frames != 0 {
            self.publish(ring, &mut work);
            work.filled.call = self.state.callee(work.wanted);
            counters.add(work.frames, work.bytes);
        }
        // Also what was written of a frame that did not fit.
        self.state.memory.mark_all();
        work.filled
    }

    /// Delivers the first of `frames` that go as they are, each into one buffer: nearly all do.
    /// First the buffers of all are taken, then all frames are copied: by then the memory is on
    /// its way. False: there is none.
    #[inline]
    fn deliver_run<Q: Queue>(
        &mut self,
        ring: &mut Q,
        batch: &mut Batch,
        frames: &[u8],
        work: &mut Work<'_>,
    ) -> bool {
        let QueueState {
            memory, hdr_len, ..
        } = &self.state;
        let Chains { scatter, list, .. } = &mut self.chains;
        scatter.clear();
        list.clear();
        // A shorter header than ours is not in one piece with the frame.
        if *hdr_len != NET_HDR_LEN {
            return false;
        }
        let mut held = work.held;
        for i in frames.iter().map(|i| usize::from(*i)) {
            if held >= HOLD_BYTES || batch.has_offload(i) {
                break;
            }
            let bytes = NET_HDR_LEN + batch.frame_len(i);
            let mark = ring.mark();
            let Some((taken, addr, room)) = ring.take_buffer(true, bytes as u32) else {
                break;
            };
            if !scatter.push_whole(memory, addr, room, bytes) {
                ring.rewind(mark);
                break;
            }
            list.push((taken, bytes as u32));
            held += bytes as u64;
        }
        for (n, (taken, bytes)) in list.iter().enumerate() {
            let (head, pieces, segments) = batch.parts(usize::from(frames[n]), 1);
            scatter.write_whole(n, memory, head, segments, pieces);
            ring.use_one(memory, *taken, *bytes);
            work.delivered(*bytes as usize - NET_HDR_LEN);
        }
        let run = list.len();
        self.populated |= run != 0;
        work.filled.done += run;
        if ring.must_publish() {
            self.publish(ring, work);
        }
        run != 0
    }

    #[inline]
    fn deliver<Q: Queue>(
        &mut self,
        ring: &mut Q,
        batch: &mut Batch,
        i: usize,
        scratch: &mut Scratch,
        work: &mut Work<'_>,
    ) {
        let hdr = batch.hdr(i);
        let mut restore = None;
        if (hdr.flags | hdr.gso_type) != 0 {
            match offload::receiver_takes(&hdr, batch.head(i), self.features) {
                Treatment::AsIs => {
                    batch.set_hdr(i, offload::delivered_header(&hdr, self.features));
                    restore = Some(hdr);
                }
                treatment => {
                    return self.deliver_completed(ring, batch, i, treatment, scratch, work);
                }
            }
        }
        let len = batch.frame_len(i);
        let result = self.collect(ring, len, work).map(|buffers| {
            let (head, pieces, segments) = batch.parts(i, buffers);
            let mut w = self.chains.scatter.writer(&self.state.memory);
            if self.state.hdr_len == NET_HDR_LEN {
                w.put(head);
            } else {
                w.put(&head[..self.state.hdr_len]);
                w.put(&head[NET_HDR_LEN..]);
            }
            for piece in pieces {
                w.put_segment(segments, piece);
            }
            self.settle(ring, len, work);
        });
        if let Err(reason) = result {
            work.dropped(batch, i, reason, 1);
        }
        if let Some(hdr) = restore {
            // The next receiver may have negotiated other offloads.
            batch.set_hdr(i, hdr);
        }
    }

    /// Delivers frame `i` after doing what the sender left to do.
    #[cold]
    fn deliver_completed<Q: Queue>(
        &mut self,
        ring: &mut Q,
        batch: &mut Batch,
        i: usize,
        treatment: Treatment,
        scratch: &mut Scratch,
        work: &mut Work<'_>,
    ) {
        let hdr = batch.hdr(i);
        let len = batch.linearize(i, &mut scratch.frame);
        let frame = &mut scratch.frame[..len];
        work.held += len as u64;
        let Treatment::Segment { leave_partial } = treatment else {
            let result = offload::complete_checksum(frame, hdr.csum_start, hdr.csum_offset)
                .map_err(|_| DropReason::OffloadFailed)
                .and_then(|()| self.deliver_bytes(ring, NetHdr::default(), frame, work));
            if let Err(reason) = result {
                work.dropped(batch, i, reason, 1);
            }
            return;
        };
        let Ok(mut segmenter) = Segmenter::new(&hdr, frame, leave_partial) else {
            work.dropped(batch, i, DropReason::OffloadFailed, 1);
            return;
        };
        let mut left = segmenter.segments() as u64;
        work.filled.segmented.0 += 1;
        work.filled.segmented.1 += left;
        while let Some((hdr, n)) = segmenter.next(&mut scratch.segment) {
            if let Err(reason) = self.deliver_bytes(ring, hdr, &scratch.segment[..n], work) {
                // What there is no room for now has no room a moment later: no more work on it.
                work.dropped(batch, i, reason, left);
                return;
            }
            left -= 1;
        }
        work.dropped(batch, i, DropReason::OffloadFailed, left);
    }

    fn deliver_bytes<Q: Queue>(
        &mut self,
        ring: &mut Q,
        mut hdr: NetHdr,
        frame: &[u8],
        work: &mut Work<'_>,
    ) -> Result<(), DropReason> {
        hdr.num_buffers = self.collect(ring, frame.len(), work)?;
        let mut w = self.chains.scatter.writer(&self.state.memory);
        w.put(&hdr.to_bytes()[..self.state.hdr_len]);
        w.put(frame);
        self.settle(ring, frame.len(), work);
        Ok(())
    }

    /// Takes buffers for a frame of `len` bytes: one chain, or as many as it needs if they can
    /// be merged. Their number. An error leaves the ring as it was.
    #[inline]
    fn collect<Q: Queue>(
        &mut self,
        ring: &mut Q,
        len: usize,
        work: &mut Work<'_>,
    ) -> Result<u16, DropReason> {
        let need = (len + self.state.hdr_len) as u64;
        let mark = ring.mark();
        self.chains.clear();
        let result = loop {
            match self.chains.take(ring, &self.state.memory) {
                Ok(true) => {}
                Ok(false) => break Err(DropReason::RingFull),
                Err(Bad::Buffer) => break Err(DropReason::BufferTooSmall),
                Err(Bad::Ring(e)) => {
                    self.state.break_ring(e);
                    break Err(DropReason::RingBroken);
                }
            }
            if self.chains.scatter.bytes() >= need {
                break Ok(self.chains.list.len() as u16);
            }
            if !self.mergeable {
                break Err(DropReason::BufferTooSmall);
            }
        };
        work.held += 16 * u64::from(self.chains.descriptors);
        if result.is_err() {
            ring.rewind(mark);
        }
        result
    }

    /// Uses the collected chains, which a frame of `len` bytes was written to.
    #[inline]
    fn settle<Q: Queue>(&mut self, ring: &mut Q, len: usize, work: &mut Work<'_>) {
        let mut left = (len + self.state.hdr_len) as u32;
        for (taken, bytes) in &self.chains.list {
            let written = left.min(*bytes);
            ring.use_one(&self.state.memory, *taken, written);
            left -= written;
        }
        self.populated = true;
        work.delivered(len);
        // Segments of one frame can be more than a ring stages.
        if ring.must_publish() {
            self.publish(ring, work);
        }
    }

    /// Shows the guest what was staged. It may then post those buffers again, so whether it wants
    /// to be notified is asked each time: an event is lost sight of after a lap.
    fn publish<Q: Queue>(&self, ring: &mut Q, work: &mut Work<'_>) {
        ring.publish(&self.state.memory);
        work.wanted |= ring.wants_call();
    }
}

/// Why a chain cannot take a frame.
enum Bad {
    /// It is not in memory, has no room at all, or more buffers than are followed.
    Buffer,
    /// The ring broke the rules.
    Ring(RingError),
}

impl Chains {
    fn clear(&mut self) {
        self.scatter.clear();
        self.list.clear();
        self.descriptors = 0;
    }

    /// Takes one more chain; false if there is none.
    ///
    /// Each adds at least one part to `scatter`, which has a limit, and descriptors are counted:
    /// so there is an end to what a guest can make us look through for one frame.
    #[inline]
    fn take<Q: Queue>(&mut self, ring: &mut Q, memory: &Memory) -> Result<bool, Bad> {
        let before = self.scatter.bytes();
        let (scatter, descriptors) = (&mut self.scatter, &mut self.descriptors);
        let mut ok = true;
        let taken = ring.take(memory, |addr, len, writable| {
            *descriptors += 1;
            // What the device may only read is no room (2.7.4.2: it precedes what it may write).
            if writable && len != 0 {
                ok &= scatter.push(memory, addr, len);
            }
        });
        let Some(taken) = taken.map_err(Bad::Ring)? else {
            return Ok(false);
        };
        let bytes = self.scatter.bytes() - before;
        if !ok || bytes == 0 || self.descriptors > u32::from(MAX_CHAIN) {
            return Err(Bad::Buffer);
        }
        self.list
            .push((taken, u32::try_from(bytes).unwrap_or(u32::MAX)));
        Ok(true)
    }
}
