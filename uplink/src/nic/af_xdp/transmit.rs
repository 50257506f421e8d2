//! Frames to the wire: the TX and the completion ring of one queue, and its chunks to send from.
//!
//! A chunk is free, or in the TX ring, or with the device, or in the completion ring. There are as
//! many as each ring has entries, so that whoever has a free one has room in the TX ring for it.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::SendFlags;
use tandem_virtio_net::offload::{self, Segmenter, Treatment};
use tandem_virtio_net::{Batch, DropReason, Scratch};

use super::device::RING;
use crate::nic::kernel::{Offloads, Sent};
use crate::nic::sys_xdp::{Consumer, Producer, TxMemory};

/// The sending half of a queue.
pub(super) struct Transmitter {
    socket: OwnedFd,
    ring: Producer<libc::xdp_desc>,
    completion: Consumer<u64>,
    memory: TxMemory,
    /// Where the memory starts in what the kernel calls the queue's.
    base: u64,
    chunk: usize,
    /// Places in the memory of the free chunks; the one that was in use last is last.
    free: Vec<usize>,
    /// The kernel sends in our calls, and not by itself.
    copies: bool,
    /// The device did not send when it was asked last.
    down: bool,
    sent: Sent,
}

impl Transmitter {
    /// `base` is the address of the first byte of `memory`, whose chunks have `chunk` bytes.
    pub(super) fn new(
        socket: OwnedFd,
        (ring, completion): (Producer<libc::xdp_desc>, Consumer<u64>),
        (memory, base): (TxMemory, u64),
        chunk: usize,
        copies: bool,
    ) -> Self {
        Self {
            socket,
            ring,
            completion,
            memory,
            base,
            chunk,
            free: (0..RING as usize).rev().map(|i| i * chunk).collect(),
            copies,
            down: false,
            sent: Sent::default(),
        }
    }

    /// Before a burst: takes back what has been sent, and looks whether a device that was down is up.
    pub(super) fn start(&mut self) {
        self.reclaim();
        if self.down {
            self.down = kick(&self.socket).is_err_and(is_down);
        }
    }

    /// Puts frame `i` into the ring, as what goes on the wire, or says why not all of it is. None: there is
    /// no room for it now.
    pub(super) fn send(
        &mut self,
        batch: &Batch,
        i: usize,
        scratch: &mut Scratch,
        offloads: &Offloads,
    ) -> Option<Result<(), DropReason>> {
        if self.down {
            self.sent.refused += 1;
            return Some(Err(DropReason::HostRefused));
        }
        let before = self.sent;
        match offloads.treatment(batch, i) {
            Treatment::AsIs => self.send_whole(batch, i, false)?,
            Treatment::Checksum => self.send_whole(batch, i, true)?,
            Treatment::Segment { .. } => self.send_segments(batch, i, scratch, offloads)?,
        }
        Some(self.sent.dropped_since(&before).map_or(Ok(()), Err))
    }

    /// What became of the frames since this was asked last.
    pub(super) fn take_sent(&mut self) -> Sent {
        std::mem::take(&mut self.sent)
    }

    fn send_whole(&mut self, batch: &Batch, i: usize, partial: bool) -> Option<()> {
        if batch.frame_len(i) > self.chunk {
            self.sent.too_long += 1;
            return Some(());
        }
        self.make_room(1)?;
        let hdr = batch.hdr(i);
        self.fill_chunk(|room| {
            let len = batch.linearize(i, room);
            if partial {
                let frame = &mut room[..len];
                offload::complete_checksum(frame, hdr.csum_start, hdr.csum_offset).ok()?;
            }
            Some(len)
        });
        Some(())
    }

    fn send_segments(
        &mut self,
        batch: &Batch,
        i: usize,
        scratch: &mut Scratch,
        offloads: &Offloads,
    ) -> Option<()> {
        let (whole, _) = scratch.rooms();
        let len = batch.linearize(i, whole);
        let Ok(mut segmenter) = Segmenter::new(&batch.hdr(i), &whole[..len], false) else {
            self.sent.offload_failed += 1;
            return Some(());
        };
        if segmenter.max_len() > self.chunk {
            self.sent.too_long += 1;
            return Some(());
        }
        // Of more than there are chunks some may be refused.
        self.make_room(segmenter.segments().min(RING as usize))?;
        let mut left = segmenter.segments() as u64;
        while left > 0 && self.fill_chunk(|room| segmenter.next(room).map(|(_, len)| len)) {
            left -= 1;
        }
        // One of them has been counted.
        self.sent.refused += left.saturating_sub(1);
        offloads.count_segmented(segmenter.segments() as u64 - left);
        Some(())
    }

    /// Has so many chunks free, if need be by sending what is in the ring.
    fn make_room(&mut self, chunks: usize) -> Option<()> {
        if self.free.len() < chunks {
            self.flush();
            self.reclaim();
        }
        (self.free.len() >= chunks).then_some(())
    }

    /// Puts what `write` writes to a chunk, so many bytes, into the ring. None: it failed. False: it was
    /// not put there.
    fn fill_chunk(&mut self, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        let free = self.make_room(1).and_then(|()| self.free.pop());
        let Some(at) = free else {
            self.sent.refused += 1;
            return false;
        };
        let room = self.memory.bytes().get_mut(at..at + self.chunk);
        let Some(len) = room.and_then(write) else {
            self.free.push(at);
            self.sent.offload_failed += 1;
            return false;
        };
        let pushed = self.ring.push(libc::xdp_desc {
            addr: self.base + at as u64,
            len: len as u32,
            options: 0,
        });
        if pushed {
            self.sent.add(Sent::of(Ok(()), len));
        } else {
            self.free.push(at);
            self.sent.refused += 1;
        }
        pushed
    }

    /// Has the device all chunks?
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Takes back the chunks of frames that have been sent.
    fn reclaim(&mut self) {
        while let Some(address) = self.completion.pop() {
            let at = address.wrapping_sub(self.base) as usize;
            // Whatever the kernel writes there: no chunk beyond the memory, nor more than there are.
            if at < RING as usize * self.chunk && self.free.len() < RING as usize {
                self.free.push(at - at % self.chunk);
            }
        }
        self.completion.release();
    }

    /// Has everything in the ring sent. True: not everything was taken, and somebody has to ask again.
    pub(super) fn flush(&mut self) -> bool {
        self.ring.publish();
        let mut before = self.ring.pending();
        if before == 0 || self.down || !self.ring.needs_kick() {
            return false;
        }
        loop {
            let result = kick(&self.socket);
            let after = self.ring.pending();
            match result {
                Err(e) if is_down(e) => {
                    self.down = true;
                    // Nobody who waits for an answer would call them sent. They cannot be had back
                    // from the ring, and leave when the link is up again.
                    let waiting = self.ring.waiting().map(|d| u64::from(d.len));
                    waiting.for_each(|bytes| self.sent.unsend(bytes));
                    return false;
                }
                // The device had no room for the one that was taken last.
                Err(Errno::BUSY) if after != before => {
                    self.sent.unsend(self.ring.last_taken().len.into());
                }
                _ => {}
            }
            if after == 0 || !self.copies {
                return false;
            }
            if after == before {
                return true;
            }
            before = after;
        }
    }
}

/// Has the kernel look at the TX ring; of copy mode: send what is in it. Never waits.
fn kick(socket: &OwnedFd) -> Result<(), Errno> {
    rustix::net::send(socket, &[], SendFlags::DONTWAIT).map(drop)
}

/// The link is down, or the device is gone.
fn is_down(error: Errno) -> bool {
    matches!(error, Errno::NETDOWN | Errno::NXIO)
}
