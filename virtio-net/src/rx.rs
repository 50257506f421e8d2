//! Filling an RX queue: from a [`Batch`] into a guest's buffers.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::counters::{Counters, DropReason};
use crate::frame::Batch;
use crate::memory::{Memory, Scatter};
use crate::offload::{self, Segmenter, Treatment};
use crate::queue::{Call, QueueState, Stopped};
use crate::ring::{Queue, Ring, RingConfig, RingError, SetupError, Taken};
use crate::spec::*;

/// Bytes after which a receiver's lock is given up, so that no sender waits long for it.
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
}

/// Room to complete offloads in software, one for each thread.
pub struct Scratch {
    frame: Box<[u8]>,
    segment: Box<[u8]>,
}

impl Default for Scratch {
    fn default() -> Self {
        let room = || vec![0; NET_HDR_LEN + MAX_FRAME].into_boxed_slice();
        Self {
            frame: room(),
            segment: room(),
        }
    }
}

impl Scratch {
    /// Room for a whole frame with its vnet header, and for a segment made of it.
    pub fn rooms(&mut self) -> (&mut [u8], &mut [u8]) {
        (&mut self.frame, &mut self.segment)
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

/// Counts of one fill, added to the shared counters once.
#[derive(Default)]
struct Tally {
    frames: u64,
    bytes: u64,
}

impl Default for RxQueue {
    fn default() -> Self {
        Self {
            state: QueueState::default(),
            chains: Chains {
                scatter: Scatter::new(),
                list: Vec::with_capacity(256),
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
    /// Starts the ring, see [`QueueState::start`].
    pub fn start(&mut self, config: &RingConfig, base: u16) -> Result<(), SetupError> {
        self.state.start(config, base)?;
        // A full ring is dropped on, so there is nothing to be woken up for.
        self.state.set_kicks(false);
        self.mergeable = has(config.features, VIRTIO_NET_F_MRG_RXBUF);
        self.features = config.features;
        self.populated = false;
        Ok(())
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
        let mut filled = Filled::default();
        let mut tally = Tally::default();
        if let Err(e) = ring.poll() {
            self.state.break_ring(e);
        }
        for &i in frames {
            if self.state.is_broken() {
                counters.count_drop(DropReason::RingBroken, 1);
            } else if tally.bytes >= HOLD_BYTES {
                break;
            } else {
                self.deliver(
                    ring,
                    batch,
                    usize::from(i),
                    scratch,
                    counters,
                    &mut tally,
                    &mut filled,
                );
            }
            filled.done += 1;
        }
        if tally.frames != 0 {
            ring.publish(&self.state.memory);
            let wanted = ring.wants_call();
            filled.call = self.state.callee(wanted);
            counters.add(tally.frames, tally.bytes);
        }
        filled
    }

    #[allow(clippy::too_many_arguments)] // one frame's whole context, passed once
    #[inline]
    fn deliver<Q: Queue>(
        &mut self,
        ring: &mut Q,
        batch: &mut Batch,
        i: usize,
        scratch: &mut Scratch,
        counters: &Counters,
        tally: &mut Tally,
        filled: &mut Filled,
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
                    let n = batch.linearize(i, &mut scratch.frame);
                    self.deliver_completed(
                        ring, hdr, n, treatment, scratch, counters, tally, filled,
                    );
                    return;
                }
            }
        }
        let len = batch.frame_len(i);
        let result = self.collect(ring, len).map(|buffers| {
            let (head, pieces) = batch.parts(i, buffers);
            let mut w = self.chains.scatter.writer(&self.state.memory);
            if self.state.hdr_len == NET_HDR_LEN {
                w.put(head);
            } else {
                w.put(&head[..self.state.hdr_len]);
                w.put(&head[NET_HDR_LEN..]);
            }
            for piece in pieces {
                w.put_segment(batch.segments(), piece);
            }
        });
        self.settle(ring, result, len, counters, tally);
        if let Some(hdr) = restore {
            // The next receiver may have negotiated other offloads.
            batch.set_hdr(i, hdr);
        }
    }

    /// Delivers the frame in `scratch.frame` after doing what the sender left to do.
    #[allow(clippy::too_many_arguments)] // as above
    #[cold]
    fn deliver_completed<Q: Queue>(
        &mut self,
        ring: &mut Q,
        hdr: NetHdr,
        len: usize,
        treatment: Treatment,
        scratch: &mut Scratch,
        counters: &Counters,
        tally: &mut Tally,
        filled: &mut Filled,
    ) {
        let frame = &mut scratch.frame[..len];
        let Treatment::Segment { leave_partial } = treatment else {
            let plain = offload::complete_checksum(frame, hdr.csum_start, hdr.csum_offset);
            match plain {
                Ok(()) => self.deliver_bytes(ring, NetHdr::default(), frame, counters, tally),
                Err(_) => counters.count_drop(DropReason::OffloadFailed, 1),
            }
            return;
        };
        let Ok(mut segmenter) = Segmenter::new(&hdr, frame, leave_partial) else {
            counters.count_drop(DropReason::OffloadFailed, 1);
            return;
        };
        filled.segmented.0 += 1;
        while let Some((hdr, n)) = segmenter.next(&mut scratch.segment) {
            filled.segmented.1 += 1;
            self.deliver_bytes(ring, hdr, &scratch.segment[..n], counters, tally);
        }
    }

    fn deliver_bytes<Q: Queue>(
        &mut self,
        ring: &mut Q,
        mut hdr: NetHdr,
        frame: &[u8],
        counters: &Counters,
        tally: &mut Tally,
    ) {
        let result = self.collect(ring, frame.len()).map(|buffers| {
            hdr.num_buffers = buffers;
            let mut w = self.chains.scatter.writer(&self.state.memory);
            w.put(&hdr.to_bytes()[..self.state.hdr_len]);
            w.put(frame);
        });
        self.settle(ring, result, frame.len(), counters, tally);
    }

    /// Takes buffers for a frame of `len` bytes: one chain, or as many as it needs if they can
    /// be merged. Their number.
    #[inline]
    fn collect<Q: Queue>(&mut self, ring: &mut Q, len: usize) -> Result<u16, DropReason> {
        let need = (len + self.state.hdr_len) as u64;
        let mark = ring.mark();
        self.chains.scatter.clear();
        self.chains.list.clear();
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
        if result.is_err() {
            ring.rewind(mark);
        }
        result
    }

    /// Uses the collected chains, or counts why the frame is dropped.
    #[inline]
    fn settle<Q: Queue>(
        &mut self,
        ring: &mut Q,
        result: Result<(), DropReason>,
        len: usize,
        counters: &Counters,
        tally: &mut Tally,
    ) {
        if let Err(reason) = result {
            counters.count_drop(reason, 1);
            return;
        }
        let mut left = (len + self.state.hdr_len) as u32;
        for (taken, bytes) in &self.chains.list {
            let written = left.min(*bytes);
            ring.use_one(&self.state.memory, *taken, written);
            left -= written;
        }
        self.populated = true;
        tally.frames += 1;
        tally.bytes += len as u64;
    }
}

/// Why a chain cannot take a frame.
enum Bad {
    /// It is not in memory, or has more buffers than are followed.
    Buffer,
    /// The ring broke the rules.
    Ring(RingError),
}

impl Chains {
    /// Takes one more chain; false if there is none.
    #[inline]
    fn take<Q: Queue>(&mut self, ring: &mut Q, memory: &Memory) -> Result<bool, Bad> {
        let before = self.scatter.bytes();
        let scatter = &mut self.scatter;
        let mut ok = true;
        let taken = ring.take(memory, |addr, len, writable| {
            // What the device may only read is no room (2.7.4.2: it precedes what it may write).
            if writable && len != 0 {
                ok &= scatter.push(memory, addr, len);
            }
        });
        match taken.map_err(Bad::Ring)? {
            None => Ok(false),
            Some(_) if !ok => Err(Bad::Buffer),
            Some(taken) => {
                let bytes = u32::try_from(self.scatter.bytes() - before).unwrap_or(u32::MAX);
                self.list.push((taken, bytes));
                Ok(true)
            }
        }
    }
}
