//! What a capture does where frames are carried. Nothing here waits or allocates.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tandem_virtio_net::{Batch, Direction};

use super::budget::Budget;
use super::filter::{Filter, Packet};
use super::record::{Head, Offload};
use super::ring::{Reader, Ring};
use super::{Drops, Request};

/// Bytes of the ring of one capture.
const RING_BYTES: usize = 8 << 20;
/// Bytes copied at a time.
const COPY: usize = 512;

/// A capture as the data path sees it.
pub(super) struct Capture {
    direction: Option<Direction>,
    drops: Drops,
    snaplen: u32,
    filter: Option<Filter>,
    ring: Arc<Ring>,
    budget: Budget,
    pub(super) counted: Counted,
    /// The port is gone.
    pub(super) ended: AtomicBool,
}

#[derive(Default)]
pub(super) struct Counted {
    /// Frames of the direction, and of those that were dropped or not, that were asked for.
    pub(super) received: AtomicU64,
    /// Of those, frames that the filter let through.
    pub(super) accepted: AtomicU64,
    /// Frames that were lost, for want of room or of time; the latter the filter did not see.
    pub(super) lost: AtomicU64,
    /// Lost since the last one that was not.
    lost_before: AtomicU64,
    /// Of all captures of the port.
    lost_of_port: Arc<AtomicU64>,
}

/// A frame of a batch, for a filter.
struct Frame<'a> {
    batch: &'a Batch,
    i: usize,
    head: &'a [u8],
}

impl Packet for Frame<'_> {
    #[inline]
    fn len(&self) -> u32 {
        self.batch.frame_len(self.i) as u32
    }

    #[inline]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let at = at as usize;
        match self.head.get(at..).and_then(<[u8]>::first_chunk) {
            Some(bytes) => Some(*bytes),
            None => self.load_behind(at),
        }
    }
}

impl Frame<'_> {
    /// From where the frame was not copied to.
    #[cold]
    fn load_behind<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.batch.read_at(self.i, at, &mut bytes) == N).then_some(bytes)
    }
}

impl Capture {
    pub(super) fn new(request: &Request, lost_of_port: Arc<AtomicU64>) -> (Self, Reader) {
        let (ring, reader) = Ring::new(RING_BYTES);
        let capture = Self {
            direction: request.direction,
            drops: request.drops,
            snaplen: request.snaplen,
            filter: request.filter.clone(),
            ring,
            budget: Budget::new(Instant::now()),
            counted: Counted {
                lost_of_port,
                ..Counted::default()
            },
            ended: AtomicBool::new(false),
        };
        (capture, reader)
    }

    pub(super) fn see(&self, at: Duration, direction: Direction, batch: &Batch, frames: &[u8]) {
        if self.direction.is_some_and(|mine| mine != direction) {
            return;
        }
        let start = Instant::now();
        if !self.budget.is_left(start) {
            return self.pass_over(batch, frames);
        }
        let mut buffer = [0; COPY];
        let (mut received, mut accepted, mut lost, mut bytes) = (0, 0, 0, 0);
        for i in frames.iter().map(|i| usize::from(*i)) {
            if !self.asked_for(batch, i) {
                continue;
            }
            received += 1;
            let wanted = self.wanted(batch, i);
            if wanted != 0 {
                accepted += 1;
                match self.copy((at, direction), batch, i, wanted, &mut buffer) {
                    true => bytes += wanted,
                    false => lost += 1,
                }
            }
        }
        let counted = &self.counted;
        counted.received.fetch_add(received, Ordering::Relaxed);
        counted.accepted.fetch_add(accepted, Ordering::Relaxed);
        if lost != 0 {
            counted.lost.fetch_add(lost, Ordering::Relaxed);
            counted.lost_of_port.fetch_add(lost, Ordering::Relaxed);
        }
        (self.budget).spend(start, Instant::now(), frames.len() as u32, bytes);
    }

    #[inline]
    fn asked_for(&self, batch: &Batch, i: usize) -> bool {
        match self.drops {
            Drops::With => true,
            Drops::Only => batch.end(i).is_some(),
            Drops::Without => batch.end(i).is_none(),
        }
    }

    /// Loses the frames without a look at what is in them.
    fn pass_over(&self, batch: &Batch, frames: &[u8]) {
        let places = frames.iter().map(|i| usize::from(*i));
        let lost = places.filter(|i| self.asked_for(batch, *i)).count() as u64;
        let counted = &self.counted;
        counted.received.fetch_add(lost, Ordering::Relaxed);
        counted.lost.fetch_add(lost, Ordering::Relaxed);
        counted.lost_before.fetch_add(lost, Ordering::Relaxed);
        counted.lost_of_port.fetch_add(lost, Ordering::Relaxed);
    }

    /// Bytes of the frame that are to be copied; 0: the filter does not want it.
    #[inline]
    fn wanted(&self, batch: &Batch, i: usize) -> u32 {
        let frame = Frame {
            batch,
            i,
            head: batch.head(i),
        };
        let wanted = self.filter.as_ref().map_or(u32::MAX, |f| f.run(&frame));
        wanted.min(self.snaplen).min(frame.len())
    }

    /// Copies the first `captured` bytes of a frame into the ring. False: there is no room.
    #[inline]
    fn copy(
        &self,
        (at, direction): (Duration, Direction),
        batch: &Batch,
        i: usize,
        captured: u32,
        buffer: &mut [u8; COPY],
    ) -> bool {
        let lost = &self.counted.lost_before;
        let Some(mut room) = self.ring.reserve(Head::BYTES + captured as usize) else {
            lost.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        let head = Head {
            at,
            direction,
            drop: batch.end(i),
            len: batch.frame_len(i) as u32,
            captured,
            lost: match lost.load(Ordering::Relaxed) {
                0 => 0,
                _ => lost.swap(0, Ordering::Relaxed),
            },
            offload: Offload::of(&batch.hdr(i)),
        };
        room.put(head.words().map(u64::to_le_bytes).as_flattened());
        let mut done = 0;
        while done < captured as usize {
            let n = COPY.min(captured as usize - done);
            batch.read_at(i, done, &mut buffer[..n]);
            room.put(&buffer[..n]);
            done += n;
        }
        true
    }
}
