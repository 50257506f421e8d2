//! Frames from the wire: the fill and the RX rings of all queues, and the chunks to receive into.
//!
//! A chunk is in the fill ring, or with the device, or in the RX ring, or lent to a batch. There
//! are as many as each ring has entries, so that the fill ring has room for each.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tandem_virtio_net::memory::Memory;
use tandem_virtio_net::spec::NetHdr;
use tandem_virtio_net::{BURST, Batch, DropReason};

use super::device::{RING, queue_bytes};
use crate::nic::sys_xdp::{self, Consumer, Producer};

/// What a queue receives with.
pub(super) type Incoming = (Arc<OwnedFd>, Producer<u64>, Consumer<libc::xdp_desc>);

struct Queue {
    socket: Arc<OwnedFd>,
    fill: Producer<u64>,
    ring: Consumer<libc::xdp_desc>,
    /// The address of its first chunk in the memory of all of them.
    base: u64,
}

/// The receiving half of all queues.
pub(super) struct Receiver {
    queues: Vec<Queue>,
    memory: Memory,
    chunk: u32,
    /// The queue whose turn it is to be first.
    first: usize,
    /// What the last batch was given: queue, and address in its memory.
    lent: Vec<(usize, u64)>,
    /// Where the frames of the next batch are: address in the memory of all, and bytes.
    places: Vec<(u64, u32)>,
}

impl Receiver {
    /// `file` is the memory of all queues. All chunks are given to the kernel.
    pub(super) fn new(
        file: BorrowedFd<'_>,
        chunk: u32,
        incoming: Vec<Incoming>,
    ) -> io::Result<Self> {
        let bytes = queue_bytes(chunk);
        let bases = (0..incoming.len() as u64).map(|queue| queue * bytes);
        let parts = bases.map(|base| (base, base, (bytes / 2) as usize));
        let memory = sys_xdp::rx_memory(file, parts)?;
        let mut queues = Vec::new();
        for (queue, (socket, mut fill, ring)) in incoming.into_iter().enumerate() {
            for i in 0..u64::from(RING) {
                fill.push(i * u64::from(chunk));
            }
            fill.publish();
            queues.push(Queue {
                socket,
                fill,
                ring,
                base: queue as u64 * bytes,
            });
        }
        Ok(Self {
            queues,
            memory,
            chunk,
            first: 0,
            lent: Vec::with_capacity(BURST),
            places: Vec::with_capacity(BURST),
        })
    }

    /// Gives the chunks of the last batch to the kernel.
    pub(super) fn give_back(&mut self) {
        for (queue, address) in self.lent.drain(..) {
            if let Some(queue) = self.queues.get_mut(queue) {
                queue.fill.push(address);
            }
        }
        for queue in &self.queues {
            queue.fill.publish();
            if queue.fill.needs_kick() {
                // It looks at the fill ring then. What is wrong with the device is told elsewhere.
                let mut polled = [PollFd::new(&queue.socket, PollFlags::IN)];
                let _ready = poll(&mut polled, Some(&Timespec::default()));
            }
        }
    }

    /// Takes up to a burst of frames into `batch`, which is empty; how many came, and their bytes.
    pub(super) fn take(
        &mut self,
        batch: &mut Batch,
        mut dropped: impl FnMut(DropReason),
    ) -> (u64, u64) {
        self.places.clear();
        let mut bytes = 0;
        let mut unusable = 0;
        let n = self.queues.len();
        for at in (self.first..n).chain(0..self.first) {
            let queue = &mut self.queues[at];
            while self.lent.len() < BURST
                && let Some(frame) = queue.ring.pop()
            {
                bytes += u64::from(frame.len);
                // What the kernel says is within one of the chunks that it has, or not followed.
                let offset = frame.addr % u64::from(self.chunk);
                let fits = offset + u64::from(frame.len) <= u64::from(self.chunk);
                if frame.addr >= u64::from(RING) * u64::from(self.chunk) {
                    unusable += 1;
                    continue;
                }
                self.lent.push((at, frame.addr - offset));
                if fits {
                    self.places.push((queue.base + frame.addr, frame.len));
                } else {
                    unusable += 1;
                }
            }
            queue.ring.release();
        }
        self.first = (self.first + 1) % n.max(1);
        (0..unusable).for_each(|_| dropped(DropReason::BadBuffer));
        let frames = self.places.len() as u64 + unusable;
        let plain = |_| NetHdr::default();
        batch.push_placed(&self.memory, &self.places, plain, |_, reason| {
            dropped(reason);
        });
        (frames, bytes)
    }
}
