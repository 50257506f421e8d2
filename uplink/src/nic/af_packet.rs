//! A network device of the host as the way to the wire: a packet socket with vnet headers, so that
//! checksums and segments are left to the kernel and its device (packet(7), `PACKET_VNET_HDR`).
//!
//! Frames go and come in bursts, each with one system call, and are copied once by the kernel. What the
//! host itself sends on the device is not seen; what comes in is seen by the host as well.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use tandem_virtio_net::offload::Treatment;
use tandem_virtio_net::spec::*;
use tandem_virtio_net::wire::ethernet::TYPE_AT;
use tandem_virtio_net::{BURST, Batch, Counters, DropReason, Scratch};

use super::kernel::{Offloads, Sent};
use super::sys::{self, Received};
use crate::Outlet;

/// Bytes from one frame's place in a batch to the next one's: the largest frame, and so much more
/// that the beginnings of frames are not all in the same sets of a cache.
const STRIDE: usize = (NET_HDR_LEN + MAX_FRAME).next_multiple_of(64) + 9 * 64;

/// Where a frame in its place has its type, and the type of a tag (IEEE 802.1Q, 9.5).
const TAG_AT: usize = NET_HDR_LEN + TYPE_AT;
const TPID: [u8; 2] = [0x81, 0];

/// Why a device could not be had.
#[derive(Debug, thiserror::Error)]
pub enum AfPacketError {
    /// There is no such device.
    #[error("there is no network device {0}: see `ip link`")]
    NoDevice(String),
    /// The process may not have packet sockets.
    #[error("device {0} needs CAP_NET_RAW: run as root or grant the capability")]
    NotPermitted(String),
    /// Something else.
    #[error("device {name}: no packet socket ({error}): see the kernel's log")]
    Io {
        /// The device.
        name: String,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// A network device, as a port of the switch sees it.
pub struct AfPacket {
    socket: File,
    name: String,
    offloads: Offloads,
    from_vm: Arc<Counters>,
    to_vm: Arc<Counters>,
}

impl AfPacket {
    /// Own bytes of a batch for [`AfPacket::read`]: a full burst of the largest frames, of which the
    /// kernel uses what the frames have.
    pub const BATCH_BYTES: usize = BURST * STRIDE;

    /// Opens a packet socket on the device `name`, which takes frames for all addresses from now on.
    ///
    /// # Errors
    /// [`AfPacketError`], which says what to do.
    pub fn open(name: &str) -> Result<Self, AfPacketError> {
        let name = name.to_owned();
        match sys::open_packet_socket(&name) {
            Ok(socket) => Ok(Self {
                socket,
                name,
                // UDP segments have no type of their own in a packet socket before Linux 6.2.
                offloads: Offloads::new(false),
                from_vm: Arc::default(),
                to_vm: Arc::default(),
            }),
            Err(error) => Err(match error.raw_os_error() {
                Some(libc::ENODEV) => AfPacketError::NoDevice(name),
                Some(libc::EPERM | libc::EACCES) => AfPacketError::NotPermitted(name),
                _ => AfPacketError::Io { name, error },
            }),
        }
    }

    /// The name of the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Is its link up? Somebody else may have set it down, or removed the device.
    pub fn link_is_up(&self) -> bool {
        sys::is_up(&self.name).unwrap_or(false)
    }

    /// Frames from the wire into the switch: those received, and those that the switch drops.
    pub fn from_vm(&self) -> &Arc<Counters> {
        &self.from_vm
    }

    /// Frames to the wire.
    pub fn to_vm(&self) -> &Arc<Counters> {
        &self.to_vm
    }

    /// Frames that were cut up because the kernel does not take them whole, and the segments sent for
    /// them.
    pub fn segmented(&self) -> (u64, u64) {
        self.offloads.segmented()
    }

    /// Reads a burst of frames into `batch`, which is empty and has [`AfPacket::BATCH_BYTES`] own bytes;
    /// how many. None is no error. Tags that the kernel has taken out are put back in.
    ///
    /// # Errors
    /// Of `recvmmsg(2)`: the link is down (`ENETDOWN`), or the device is gone.
    pub fn read(&self, batch: &mut Batch) -> io::Result<usize> {
        let mut received = [Received::default(); BURST];
        let Some(room) = batch.own_room() else {
            return Ok(0);
        };
        let got = match sys::receive_frames(&self.socket, room, STRIDE, &mut received) {
            Ok(got) => got,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(0),
            Err(e) => return Err(e),
        };
        let mut bytes = 0;
        for frame in &received[..got] {
            bytes += frame.len.saturating_sub(NET_HDR_LEN) as u64;
            match self.take(batch, frame) {
                Ok(()) => batch.skip_own(STRIDE - frame.len),
                Err(reason) => {
                    self.from_vm.count_drop(reason, 1);
                    batch.skip_own(STRIDE);
                }
            }
        }
        self.from_vm.add(got as u64, bytes);
        Ok(batch.len())
    }

    /// Takes a frame into the batch that lies where its room begins.
    fn take(&self, batch: &mut Batch, frame: &Received) -> Result<(), DropReason> {
        if frame.unusable {
            return Err(DropReason::TooLong);
        }
        // There is place for one tag.
        let is_tagged = |room: &[u8]| room.get(TAG_AT..TAG_AT + 2) == Some(&TPID);
        if frame.tag.is_some() && batch.own_room().is_some_and(|room| is_tagged(room)) {
            return Err(DropReason::TooLong);
        }
        batch.push_own(frame.len)?;
        if let Some(tag) = frame.tag {
            batch.set_tag(batch.len() - 1, Some(tag));
        }
        Ok(())
    }

    /// Sends frames that the kernel takes as they are.
    fn send(&self, batch: &mut Batch, frames: &[u8], sent: &mut Sent) {
        let mut left = frames;
        while !left.is_empty() {
            // A frame that is refused keeps none behind it from being tried.
            let (done, refused) = match sys::send_frames(&self.socket, batch, left) {
                Ok(n) => (n, 0),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => (0, 1),
            };
            for i in &left[..done] {
                let bytes = batch.frame_len(usize::from(*i)) as u64;
                (sent.frames, sent.bytes) = (sent.frames + 1, sent.bytes + bytes);
            }
            for i in &left[done..done + refused] {
                batch.set_end(usize::from(*i), DropReason::HostRefused);
            }
            sent.refused += refused as u64;
            left = &left[done + refused..];
        }
    }
}

impl Outlet for AfPacket {
    fn deliver(&self, batch: &mut Batch, frames: &[u8], scratch: &mut Scratch) {
        let mut sent = Sent::default();
        // Those since the last that needed something done; in their order.
        let mut plain = 0;
        let mut headers = [NetHdr::default(); BURST];
        for (at, &i) in frames.iter().enumerate() {
            let i = usize::from(i);
            match self.offloads.treatment(batch, i) {
                Treatment::AsIs => headers[at] = self.offloads.prepare(batch, i),
                treatment => {
                    headers[at] = batch.hdr(i);
                    self.send(batch, &frames[plain..at], &mut sent);
                    plain = at + 1;
                    let of_one = self
                        .offloads
                        .complete(treatment, batch, i, scratch, |bytes| {
                            sys::send_bytes(&self.socket, bytes)
                        });
                    if let Some(reason) = of_one.dropped() {
                        batch.set_end(i, reason);
                    }
                    sent.add(of_one);
                }
            }
        }
        self.send(batch, &frames[plain..], &mut sent);
        // The next receiver may take other offloads.
        for (hdr, &i) in headers.iter().zip(frames) {
            batch.set_hdr(usize::from(i), *hdr);
        }
        self.to_vm.add(sent.frames, sent.bytes);
        self.to_vm.count_drop(DropReason::HostRefused, sent.refused);
        self.to_vm
            .count_drop(DropReason::OffloadFailed, sent.offload_failed);
    }

    /// The kernel says no itself, frame by frame, when the link is down.
    fn ready(&self) -> bool {
        true
    }
}

impl AsFd for AfPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
#[path = "af_packet_tests.rs"]
mod tests;
