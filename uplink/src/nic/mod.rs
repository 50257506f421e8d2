//! The host's own network devices: as ports, and as the way to the wire.

pub mod af_packet;
pub mod af_xdp;
pub mod links;
pub mod tap;

mod kernel;
mod sys;
mod sys_bpf;
mod sys_packet;
mod sys_packet_socket;
mod sys_packet_tx;
mod sys_xdp;
#[cfg(test)]
mod wire;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use tandem_virtio_net::{Batch, Counters, Scratch};

/// A device that frames come from and go to. One thread reads; any may send.
pub trait Nic: Send + Sync {
    /// The name of the device.
    fn name(&self) -> &str;

    /// What it is driven by, as the configuration has it.
    fn driver(&self) -> &'static str;

    /// What is readable when there are frames.
    fn readable(&self) -> BorrowedFd<'_>;

    /// What is writable when there is room again, after [`Nic::send`] had none.
    fn writable(&self) -> BorrowedFd<'_>;

    /// Own bytes that a batch for [`Nic::read`] has.
    fn batch_bytes(&self) -> usize;

    /// Reads a burst of frames into `batch`, which is empty; how many. None is no error. Counts them in
    /// [`Nic::received`].
    ///
    /// # Errors
    /// The link is down, or the device is gone.
    fn read(&self, batch: &mut Batch) -> io::Result<usize>;

    /// Sends the frames `frames` (indices into `batch`) in order, never waiting, and counts each in
    /// [`Nic::sent`] as sent or dropped. How many were dealt with: for the rest there is no room now,
    /// and they are as they were.
    fn send(&self, batch: &mut Batch, frames: &[u8], scratch: &mut Scratch) -> usize;

    /// Frames that came in by it.
    fn received(&self) -> &Arc<Counters>;

    /// Frames that went out by it.
    fn sent(&self) -> &Arc<Counters>;

    /// Counts what the kernel has dropped since the last time, for we were too slow, as
    /// [`DropReason::Missed`](tandem_virtio_net::DropReason::Missed). Call once a second or so.
    fn count_missed(&self) {}

    /// Frames that were cut up because the device does not take them whole, and the segments sent for
    /// them.
    fn segmented(&self) -> (u64, u64);
}

impl Nic for af_packet::AfPacket {
    fn name(&self) -> &str {
        self.name()
    }

    fn driver(&self) -> &'static str {
        "af_packet"
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn writable(&self) -> BorrowedFd<'_> {
        self.writable()
    }

    fn batch_bytes(&self) -> usize {
        Self::BATCH_BYTES
    }

    fn read(&self, batch: &mut Batch) -> io::Result<usize> {
        self.read(batch)
    }

    fn send(&self, batch: &mut Batch, frames: &[u8], scratch: &mut Scratch) -> usize {
        self.send(batch, frames, scratch)
    }

    fn received(&self) -> &Arc<Counters> {
        self.received()
    }

    fn sent(&self) -> &Arc<Counters> {
        self.sent()
    }

    fn count_missed(&self) {
        self.count_missed();
    }

    fn segmented(&self) -> (u64, u64) {
        self.segmented()
    }
}

impl Nic for af_xdp::AfXdp {
    fn name(&self) -> &str {
        self.name()
    }

    fn driver(&self) -> &'static str {
        "af_xdp"
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn writable(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn batch_bytes(&self) -> usize {
        Self::BATCH_BYTES
    }

    fn read(&self, batch: &mut Batch) -> io::Result<usize> {
        self.read(batch)
    }

    fn send(&self, batch: &mut Batch, frames: &[u8], scratch: &mut Scratch) -> usize {
        self.send(batch, frames, scratch)
    }

    fn received(&self) -> &Arc<Counters> {
        self.received()
    }

    fn sent(&self) -> &Arc<Counters> {
        self.sent()
    }

    fn count_missed(&self) {
        self.count_missed();
    }

    fn segmented(&self) -> (u64, u64) {
        self.segmented()
    }
}

impl Nic for tap::Tap {
    fn name(&self) -> &str {
        self.name()
    }

    fn driver(&self) -> &'static str {
        "tap"
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn writable(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn batch_bytes(&self) -> usize {
        Self::BATCH_BYTES
    }

    fn read(&self, batch: &mut Batch) -> io::Result<usize> {
        self.read(batch)
    }

    /// The kernel takes a frame or refuses it, and never says that there will be room.
    fn send(&self, batch: &mut Batch, frames: &[u8], scratch: &mut Scratch) -> usize {
        self.write_all(batch, frames, scratch);
        frames.len()
    }

    fn received(&self) -> &Arc<Counters> {
        self.from_vm()
    }

    fn sent(&self) -> &Arc<Counters> {
        self.to_vm()
    }

    fn segmented(&self) -> (u64, u64) {
        self.segmented()
    }
}
