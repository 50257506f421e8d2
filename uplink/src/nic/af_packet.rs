//! A network device of the host as the way to the wire: a packet socket with vnet headers, so that
//! checksums and segments are left to the kernel and its device (packet(7), `PACKET_VNET_HDR`).
//!
//! Frames go in bursts, each with one system call: short ones are copied into a ring in memory shared with the
//! kernel, from the others it takes the bytes where they are. They come by another such ring,
//! where they stay until they have been delivered; those longer than its slots, such as
//! segments of 64 KiB, are read from the socket. What the host itself sends on the device is not
//! seen; what comes in is seen by the host as well.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use tandem_virtio_net::offload::Treatment;
use tandem_virtio_net::spec::*;
use tandem_virtio_net::wire::ethernet::TYPE_AT;
use tandem_virtio_net::{BURST, Batch, Counters, DropReason, Scratch};

use super::kernel::{Offloads, Sent};
use super::sys;
use super::sys_packet::{RxRing, Slot};
pub use super::sys_packet_socket::PacketSockets;
use super::sys_packet_socket::{self as socket, Received};
use super::sys_packet_tx::{self, TxRing};

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
    sockets: PacketSockets,
    rx: Mutex<RxRing>,
    tx: Mutex<TxRing>,
    name: String,
    offloads: Offloads,
    from_wire: Arc<Counters>,
    to_wire: Arc<Counters>,
}

impl AfPacket {
    /// Own bytes of a batch for [`AfPacket::read`]: a full burst of the longest frames.
    pub const BATCH_BYTES: usize = BURST * STRIDE;

    /// Opens packet sockets on the device `name`, which is set up and takes frames for all addresses
    /// from now on. All that takes privilege is done; they may be sent to another process.
    ///
    /// # Errors
    /// [`AfPacketError`], which says what to do.
    pub fn open_sockets(name: &str) -> Result<PacketSockets, AfPacketError> {
        let opened = PacketSockets::open(name).and_then(|sockets| {
            if !sys::is_up(name)? {
                sys::set_up(name)?;
            }
            Ok(sockets)
        });
        opened.map_err(|error| AfPacketError::of(name, error))
    }

    /// The device `name` by sockets of [`AfPacket::open_sockets`].
    ///
    /// # Errors
    /// [`AfPacketError`]: they are other sockets.
    pub fn new(name: &str, sockets: PacketSockets) -> Result<Self, AfPacketError> {
        let failed = |e| AfPacketError::of(name, e);
        let rx = RxRing::map(&sockets.receive).map_err(failed)?;
        let tx = TxRing::map(&sockets.ring).map_err(failed)?;
        Ok(Self {
            sockets,
            rx: Mutex::new(rx),
            tx: Mutex::new(tx),
            name: name.to_owned(),
            // UDP segments have no type of their own in a packet socket before Linux 6.2.
            offloads: Offloads::new(false),
            from_wire: Arc::default(),
            to_wire: Arc::default(),
        })
    }

    /// Both in one.
    ///
    /// # Errors
    /// [`AfPacketError`], which says what to do.
    pub fn open(name: &str) -> Result<Self, AfPacketError> {
        Self::new(name, Self::open_sockets(name)?)
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

    /// Counts what the kernel has dropped since the last time, as there was no room for it.
    pub fn count_missed(&self) {
        let missed = socket::packet_drops(&self.sockets.receive)
            .unwrap_or(0)
            .into();
        self.from_wire.add(missed, 0);
        self.from_wire.count_drop(DropReason::Missed, missed);
    }

    /// Frames that were cut up because the kernel does not take them whole, and the segments sent for
    /// them.
    pub fn segmented(&self) -> (u64, u64) {
        self.offloads.segmented()
    }

    /// Takes a burst of frames into `batch`, which is empty and has [`AfPacket::BATCH_BYTES`] own bytes;
    /// how many. None is no error. Their memory is received into again from the next call on,
    /// before which the batch is to be cleared. Tags that the kernel has taken out are put back in.
    ///
    /// # Errors
    /// The link is down (`ENETDOWN`), once, or the device is gone.
    pub fn read(&self, batch: &mut Batch) -> io::Result<usize> {
        let mut ring = self.rx.lock().unwrap_or_else(PoisonError::into_inner);
        ring.give_back();
        match ring.front() {
            None => socket::waiting_error(&self.sockets.receive)?,
            Some(slot) if slot.at_socket => self.read_long(&mut ring, batch)?,
            Some(_) => self.read_placed(&mut ring, batch),
        }
        Ok(batch.len())
    }

    /// Takes frames that are in the ring.
    fn read_placed(&self, ring: &mut RxRing, batch: &mut Batch) {
        let (mut slots, mut places) = ([Slot::default(); BURST], [(0, 0); BURST]);
        let (mut n, mut bytes, mut unusable) = (0, 0, 0);
        while n < BURST
            && let Some(slot) = ring.front()
            && !slot.at_socket
        {
            ring.take();
            if slot.unusable {
                unusable += 1;
                continue;
            }
            (slots[n], places[n]) = (slot, slot.place);
            bytes += u64::from(slot.place.1);
            n += 1;
        }
        let mut refused = 0_u64;
        let hdr = |i: usize| slots[i].hdr;
        batch.push_placed(ring.memory(), &places[..n], hdr, |i, reason| {
            refused |= 1 << i;
            self.from_wire.count_drop(reason, 1);
        });
        let taken = (0..n).filter(|i| refused & 1 << i == 0);
        for (i, slot) in taken.enumerate() {
            if let Some(tag) = slots[slot].tag {
                batch.set_tag(i, Some(tag));
            }
        }
        self.from_wire.count_drop(DropReason::TooLong, unusable);
        self.from_wire.add(n as u64 + unusable, bytes);
    }

    /// Takes frames that are at the socket, one for each slot of the ring that says so.
    fn read_long(&self, ring: &mut RxRing, batch: &mut Batch) -> io::Result<()> {
        let mut n = 0;
        while n < BURST && ring.front().is_some_and(|slot| slot.at_socket) {
            ring.take();
            n += 1;
        }
        let mut received = [Received::default(); BURST];
        let Some(room) = batch.own_room() else {
            return Ok(());
        };
        let got = socket::receive_frames(&self.sockets.receive, room, STRIDE, &mut received[..n])?;
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
        Ok(())
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

    /// What is writable when [`AfPacket::send`] has room again.
    pub fn writable(&self) -> BorrowedFd<'_> {
        self.sockets.send.as_fd()
    }

    /// Sends frames that the kernel takes as they are; how many were dealt with.
    fn send_as_is(&self, batch: &mut Batch, frames: &[u8], sent: &mut Sent) -> usize {
        let is_short = |batch: &Batch, i: u8| {
            let i = usize::from(i);
            batch.frame_len(i) <= sys_packet_tx::LONGEST && batch.hdr(i).gso_type == 0
        };
        let mut at = 0;
        while at < frames.len() {
            let left = &frames[at..];
            let short = left.iter().take_while(|i| is_short(batch, **i)).count();
            let by_ring = self.send_by_ring(batch, &left[..short], sent);
            at += by_ring;
            // What the ring does not take, and up to the next one for it.
            let rest = &left[by_ring..];
            let long = rest[short - by_ring..].iter();
            let long = long.take_while(|i| !is_short(batch, **i)).count();
            let plain = &rest[..short - by_ring + long];
            let done = self.send_plain(batch, plain, sent);
            at += done;
            if done < plain.len() {
                break;
            }
        }
        at
    }

    /// Sends frames out of the ring, for as long as it takes them; how many. One sender at a time has it: the
    /// others do without.
    fn send_by_ring(&self, batch: &Batch, frames: &[u8], sent: &mut Sent) -> usize {
        let Ok(mut ring) = self.tx.try_lock() else {
            return 0;
        };
        for &i in frames {
            let i = usize::from(i);
            if !ring.push(&batch.hdr(i), |room| batch.linearize(i, room)) {
                break;
            }
        }
        let done = ring.send(&self.sockets.ring);
        let bytes = frames[..done]
            .iter()
            .map(|i| batch.frame_len((*i).into()) as u64);
        (sent.frames, sent.bytes) = (sent.frames + done as u64, sent.bytes + bytes.sum::<u64>());
        done
    }

    /// Sends frames by calls; how many were dealt with.
    fn send_plain(&self, batch: &mut Batch, frames: &[u8], sent: &mut Sent) -> usize {
        let mut at = 0;
        while at < frames.len() {
            let left = &frames[at..];
            // A frame that is refused keeps none behind it from being tried, but for a device that takes
            // none at all.
            let (done, refused) = match socket::send_frames(&self.sockets.send, batch, left) {
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
                    done += self.send_as_is(batch, &frames[done..at], &mut sent);
                    full = done < at;
                    if !full {
                        sent.add(self.send_completed(treatment, batch, i, scratch));
                        done = at + 1;
                    }
                }
            }
        }
        if !full {
            done += self.send_as_is(batch, &frames[done..], &mut sent);
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
        let send = |bytes: &[u8]| socket::send_bytes(&self.sockets.send, bytes);
        let sent = (self.offloads).complete(treatment, batch, i, scratch, send);
        if let Some(reason) = sent.dropped() {
            batch.set_end(i, reason);
        }
        sent
    }
}

impl AsFd for AfPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sockets.receive.as_fd()
    }
}

#[cfg(test)]
#[path = "af_packet_tests.rs"]
mod tests;
