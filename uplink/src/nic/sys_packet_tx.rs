//! The ring out of which the kernel sends by a packet socket (Linux
//! `Documentation/networking/packet_mmap.rst`, `TPACKET_V2`).
//!
//! ```text
//!  slot  status, length │ vnet header │ frame
//!         AVAILABLE: ours, to put a frame in     SEND_REQUEST, SENDING: the kernel's
//! ```
//! Slots are used in order. One call has the kernel send all that is in the ring. A frame's bytes are copied
//! out of its slot as far as its vnet header says that there are headers: here that is all of it, so that
//! no receiver has to copy them out of memory of ours once more.
#![allow(unsafe_code)] // see `sys.rs`

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{tpacket_req, tpacket2_hdr};
use rustix::net::SendFlags;
use tandem_virtio_net::spec::NetHdr;

use super::sys_packet::VERSION;
use super::sys_packet_socket::{PACKET_HDR_LEN, set_packet_option};
use super::sys_xdp::Mapping;

/// Slots: some bursts, so that a device may have frames of one while another is written.
const SLOTS: u32 = 256;
/// Bytes of a slot.
const SLOT: u32 = 2048;
/// The kernel allocates so many bytes at a time.
const BLOCK: u32 = 64 * 1024;
/// Where a slot has its vnet header (`TPACKET2_HDRLEN` less a `sockaddr_ll`).
const HDR_AT: usize = size_of::<tpacket2_hdr>().next_multiple_of(16);
/// Where it has its frame.
const FRAME_AT: usize = HDR_AT + PACKET_HDR_LEN;
/// The longest frame for a slot.
pub(super) const LONGEST: usize = SLOT as usize - FRAME_AT;

/// Gives a packet socket with vnet headers its ring to send from.
pub(super) fn set_up_ring(socket: &File) -> io::Result<()> {
    set_packet_option(socket, libc::PACKET_VERSION, &VERSION)?;
    let request = tpacket_req {
        tp_block_size: BLOCK,
        tp_block_nr: SLOTS / (BLOCK / SLOT),
        tp_frame_size: SLOT,
        tp_frame_nr: SLOTS,
    };
    set_packet_option(socket, libc::PACKET_TX_RING, &request)
}

/// The ring of a packet socket.
///
/// Invariant: the mapping has [`SLOTS`] slots of [`SLOT`] bytes, and `next` is below [`SLOTS`].
pub(super) struct TxRing {
    map: Mapping,
    /// The slot for the next frame, which is the one that the kernel looks at next.
    next: u32,
    /// So many behind it have been written, and not been sent.
    written: u32,
}

impl TxRing {
    /// Maps the ring of a socket after [`set_up_ring`].
    pub(super) fn map(socket: &File) -> io::Result<Self> {
        // The kernel maps a ring of exactly this size, or none.
        let map = Mapping::new(socket.as_fd(), 0, (SLOTS * SLOT) as usize)?;
        Ok(Self {
            map,
            next: 0,
            written: 0,
        })
    }

    /// Puts a frame of at most [`LONGEST`] bytes, which `write` writes, into the next slot; false if the kernel
    /// has not sent what is there.
    pub(super) fn push(&mut self, hdr: &NetHdr, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let slot = (self.next + self.written) % SLOTS;
        if self.written == SLOTS
            || self.status(slot).load(Ordering::Acquire) != libc::TP_STATUS_AVAILABLE
        {
            return false;
        }
        // SAFETY: within the slot, which is ours; whoever else has the mapping is the kernel, which
        // reads it when it is told to.
        let room: &mut [u8] = unsafe {
            std::slice::from_raw_parts_mut(self.at::<u8>(slot, FRAME_AT).as_ptr(), LONGEST)
        };
        let len = write(room).min(LONGEST);
        let mut hdr = *hdr;
        hdr.hdr_len = len as u16;
        let bytes = hdr.to_bytes();
        let (mut short, mut header) = ([0; PACKET_HDR_LEN], NO_HEADER);
        short.copy_from_slice(&bytes[..PACKET_HDR_LEN]);
        header.tp_len = (PACKET_HDR_LEN + len) as u32;
        // SAFETY: within the slot, as above; bytes have no alignment, and the slot has the header's. The
        // status it has stays.
        unsafe {
            self.at::<[u8; PACKET_HDR_LEN]>(slot, HDR_AT).write(short);
            self.at::<tpacket2_hdr>(slot, 0).write(header);
        }
        self.status(slot)
            .store(libc::TP_STATUS_SEND_REQUEST, Ordering::Release);
        self.written += 1;
        true
    }

    /// Has all sent that was put in since the last time. How many were: the rest is taken out again.
    pub(super) fn send(&mut self, socket: &File) -> usize {
        if self.written == 0 {
            return 0;
        }
        // What became of each frame its slot says; why one was not sent learns who sends it by a call.
        let _ = rustix::net::send(socket, &[], SendFlags::DONTWAIT);
        let slots = (0..self.written).map(|i| (self.next + i) % SLOTS);
        let refused = |slot: u32| {
            let status = self.status(slot).load(Ordering::Acquire);
            status & (libc::TP_STATUS_SEND_REQUEST | libc::TP_STATUS_WRONG_FORMAT) != 0
        };
        let sent = slots.clone().take_while(|slot| !refused(*slot)).count() as u32;
        for slot in slots.skip(sent as usize) {
            self.status(slot)
                .store(libc::TP_STATUS_AVAILABLE, Ordering::Release);
        }
        self.next = (self.next + sent) % SLOTS;
        self.written = 0;
        sent as usize
    }

    /// The bytes from byte `at` of a slot on.
    fn at<T>(&self, slot: u32, at: usize) -> NonNull<T> {
        debug_assert!(slot < SLOTS && at + size_of::<T>() <= SLOT as usize);
        // SAFETY: within a slot, and the slot within the mapping, by the invariant.
        unsafe { self.map.start().byte_add((slot * SLOT) as usize + at) }.cast()
    }

    fn status(&self, slot: u32) -> &AtomicU32 {
        // SAFETY: the first word of a slot, aligned to 2048 bytes, which both sides access by atomics.
        unsafe { self.at::<AtomicU32>(slot, 0).as_ref() }
    }
}

/// Of a slot that is available.
const NO_HEADER: tpacket2_hdr = tpacket2_hdr {
    tp_status: libc::TP_STATUS_AVAILABLE,
    tp_len: 0,
    tp_snaplen: 0,
    tp_mac: 0,
    tp_net: 0,
    tp_sec: 0,
    tp_nsec: 0,
    tp_vlan_tci: 0,
    tp_vlan_tpid: 0,
    tp_padding: [0; 4],
};
