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
    #[error(
        "device {0} needs CAP_NET_RAW and CAP_NET_ADMIN: run as root or grant the capabilities"
    )]
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

impl AfPacketError {
    /// What the kernel said of the device `name`.
    pub fn of(name: &str, error: io::Error) -> Self {
        let name = name.to_owned();
        match error.raw_os_error() {
            Some(libc::ENODEV) => Self::NoDevice(name),
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted(name),
            _ => Self::Io { name, error },
        }
    }

    /// The kernel's number of the error.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NoDevice(_) => libc::ENODEV,
            Self::NotPermitted(_) => libc::EPERM,
            Self::Io { error, .. } => error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

/// A network device, as a port of the switch sees it.
pub struct AfPacket {
    socket: File,
    name: String,
    offloads: Offloads,
    from_wire: Arc<Counters>,
    to_wire: Arc<Counters>,
}

impl AfPacket {
    /// Own bytes of a batch for [`AfPacket::read`]: a full burst of the largest frames, of which the
    /// kernel uses what the frames have.
    pub const BATCH_BYTES: usize = BURST * STRIDE;

    /// Opens a packet socket on the device `name`, which is set up and takes frames for all addresses
    /// from now on. All that takes privilege is done; the socket may be sent to another process.
    ///
    /// # Errors
    /// [`AfPacketError`], which says what to do.
    pub fn open_socket(name: &str) -> Result<File, AfPacketError> {
        let opened = sys::open_packet_socket(name).and_then(|socket| {
            if !sys::is_up(name)? {
                sys::set_up(name)?;
            }
            Ok(socket)
        });
        opened.map_err(|error| AfPacketError::of(name, error))
    }

    /// The device `name` by a socket of [`AfPacket::open_socket`].
    pub fn new(name: &str, socket: File) -> Self {
        Self {
            socket,
            name: name.to_owned(),
            // UDP segments have no type of their own in a packet socket before Linux 6.2.
            offloads: Offloads::new(false),
            from_wire: Arc::default(),
            to_wire: Arc::default(),
        }
    }

    /// Both in one.
    ///
    /// # Errors
    /// [`AfPacketError`], which says what to do.
    pub fn open(name: &str) -> Result<Self, AfPacketError> {
        Ok(Self::new(name, Self::open_socket(name)?))
    }

    /// The same, which goes on counting where another has left off.
    #[must_use]
    pub fn counting(self, received: Arc<Counters>, sent: Arc<Counters>) -> Self {
        Self {
            from_wire: received,
            to_wire: sent,
            ..self
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

    /// Frames that came in.
    pub fn received(&self) -> &Arc<Counters> {
        &self.from_wire
    }

    /// Frames that went out.
    pub fn sent(&self) -> &Arc<Counters> {
        &self.to_wire
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
                    self.from_wire.count_drop(reason, 1);
                    batch.skip_own(STRIDE);
                }
            }
        }
        self.from_wire.add(got as u64, bytes);
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

    /// Sends frames that the kernel takes as they are; how many were dealt with.
    fn send_plain(&self, batch: &mut Batch, frames: &[u8], sent: &mut Sent) -> usize {
        let mut at = 0;
        while at < frames.len() {
            let left = &frames[at..];
            // A frame that is refused keeps none behind it from being tried, but for a device that takes
            // none at all.
            let (done, refused) = match sys::send_frames(&self.socket, batch, left) {
                Ok(n) => (n, 0),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return at,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => match e.raw_os_error() {
                    Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => (0, left.len()),
                    _ => (0, 1),
                },
            };
            for i in &left[..done] {
                let bytes = batch.frame_len(usize::from(*i)) as u64;
                (sent.frames, sent.bytes) = (sent.frames + 1, sent.bytes + bytes);
            }
            for i in &left[done..done + refused] {
                batch.set_end(usize::from(*i), DropReason::HostRefused);
            }
            sent.refused += refused as u64;
            at += done + refused;
        }
        at
    }

    /// Sends frames in order, without waiting; how many were dealt with: there is no room for the rest
    /// now. See [`Nic::send`](super::Nic::send).
    pub fn send(&self, batch: &mut Batch, frames: &[u8], scratch: &mut Scratch) -> usize {
        let mut sent = Sent::default();
        // Those from here on are yet to be sent.
        let mut done = 0;
        let mut full = false;
        let mut headers = [NetHdr::default(); BURST];
        for (at, &i) in frames.iter().enumerate() {
            let i = usize::from(i);
            headers[at] = batch.hdr(i);
            match self.offloads.treatment(batch, i) {
                Treatment::AsIs => drop(self.offloads.prepare(batch, i)),
                _ if full => {}
                treatment => {
                    done += self.send_plain(batch, &frames[done..at], &mut sent);
                    full = done < at;
                    if !full {
                        sent.add(self.send_completed(treatment, batch, i, scratch));
                        done = at + 1;
                    }
                }
            }
        }
        if !full {
            done += self.send_plain(batch, &frames[done..], &mut sent);
        }
        // The next receiver may take other offloads.
        for (hdr, &i) in headers.iter().zip(frames) {
            batch.set_hdr(usize::from(i), *hdr);
        }
        self.to_wire.add(sent.frames, sent.bytes);
        (self.to_wire).count_drop(DropReason::HostRefused, sent.refused);
        (self.to_wire).count_drop(DropReason::OffloadFailed, sent.offload_failed);
        done
    }

    /// Does what the kernel does not, and sends what becomes of it.
    fn send_completed(
        &self,
        treatment: Treatment,
        batch: &mut Batch,
        i: usize,
        scratch: &mut Scratch,
    ) -> Sent {
        let send = |bytes: &[u8]| sys::send_bytes(&self.socket, bytes);
        let sent = (self.offloads).complete(treatment, batch, i, scratch, send);
        if let Some(reason) = sent.dropped() {
            batch.set_end(i, reason);
        }
        sent
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
