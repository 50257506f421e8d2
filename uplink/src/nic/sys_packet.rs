//! The ring into which the kernel puts what comes in by a packet socket (Linux
//! `Documentation/networking/packet_mmap.rst`, `TPACKET_V2`).
//!
//! ```text
//!  slot  status, lengths │ … │ vnet header │ frame
//!         KERNEL: the kernel's, to put a frame in     USER: ours, until we say KERNEL again
//! ```
//! Slots are used in order. A frame that is longer than a slot is cut off there; the whole of it can
//! be had from the socket, and the slot says so (`PACKET_COPY_THRESH`).
#![allow(unsafe_code)] // see `sys.rs`

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{c_int, tpacket_req, tpacket2_hdr};
use tandem_virtio_net::memory::{Memory, MemoryError, Region};
use tandem_virtio_net::spec::{NET_HDR_LEN, NetHdr};
use tandem_virtio_net::wire::ethernet::TYPE_AT;

use super::sys_packet_socket::{PACKET_HDR_LEN, set_packet_option};
use super::sys_xdp::Mapping;

/// Slots: two milliseconds of a million frames a second.
const SLOTS: u32 = 2048;
/// Bytes of a slot: a frame of an MTU of 1500 fits, with all that is in front of it.
const SLOT: u32 = 2048;
/// The kernel allocates so many bytes at a time.
const BLOCK: u32 = 64 * 1024;
/// `TPACKET_V2` of `linux/if_packet.h`.
pub(super) const VERSION: c_int = libc::tpacket_versions::TPACKET_V2 as c_int;
/// The type of a tag of IEEE 802.1Q (9.5).
const TPID: u16 = 0x8100;

/// Gives a packet socket, which is not bound yet, its ring.
pub(super) fn set_up_ring(socket: &File) -> io::Result<()> {
    set_packet_option(socket, libc::PACKET_VERSION, &VERSION)?;
    set_packet_option(socket, libc::PACKET_COPY_THRESH, &1 as &c_int)?;
    let request = tpacket_req {
        tp_block_size: BLOCK,
        tp_block_nr: SLOTS / (BLOCK / SLOT),
        tp_frame_size: SLOT,
        tp_frame_nr: SLOTS,
    };
    set_packet_option(socket, libc::PACKET_RX_RING, &request)
}

/// A frame in the ring.
#[derive(Clone, Copy, Default)]
pub(super) struct Slot {
    /// Where it is in [`RxRing::memory`], and its bytes there.
    pub(super) place: (u64, u32),
    /// Its vnet header.
    pub(super) hdr: NetHdr,
    /// The tag that the kernel has taken out of it, if it is one of IEEE 802.1Q.
    pub(super) tag: Option<u16>,
    /// It was longer than the slot, and is to be had from the socket.
    pub(super) at_socket: bool,
    /// Not all of it is there, or it has two tags or one of another kind.
    pub(super) unusable: bool,
}

/// The ring of a packet socket.
///
/// Invariant: the mapping has [`SLOTS`] slots of [`SLOT`] bytes, and `next` is below [`SLOTS`].
pub(super) struct RxRing {
    map: Arc<Mapping>,
    memory: Memory,
    /// The slot that is next to have a frame.
    next: u32,
    /// So many in front of it have not been given back.
    taken: u32,
}

impl RxRing {
    /// Maps the ring of a socket after [`set_up_ring`].
    pub(super) fn map(socket: &File) -> io::Result<Self> {
        let len = (SLOTS * SLOT) as usize;
        // The kernel maps a ring of exactly this size, or none.
        let map = Arc::new(Mapping::new(socket.as_fd(), 0, len)?);
        // SAFETY: the mapping is readable and writable, and `keep` has it.
        let region = unsafe { Region::new(0, len as u64, map.start().as_ptr().cast()) };
        let keep = Arc::clone(&map);
        let memory = Memory::new(vec![region], Arc::default(), keep)
            .map_err(|e: MemoryError| io::Error::other(e))?;
        Ok(Self {
            map,
            memory,
            next: 0,
            taken: 0,
        })
    }

    /// Where the frames are.
    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The next frame, if there is one. It stays next until it is [taken](RxRing::take).
    pub(super) fn front(&self) -> Option<Slot> {
        if self.taken == SLOTS {
            return None;
        }
        let status = self.status(self.next).load(Ordering::Acquire);
        (status & libc::TP_STATUS_USER != 0).then(|| self.read(status))
    }

    /// Goes on to the next frame; the one taken stays where it is until [`RxRing::give_back`].
    pub(super) fn take(&mut self) {
        self.next = (self.next + 1) % SLOTS;
        self.taken += 1;
    }

    /// Lets the kernel have the slots of all frames taken.
    pub(super) fn give_back(&mut self) {
        let first = self.next + SLOTS - self.taken;
        for i in 0..self.taken {
            let status = self.status((first + i) % SLOTS);
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        }
        self.taken = 0;
    }

    /// The bytes from byte `at` of the slot that is next on.
    fn at<T>(&self, at: usize) -> NonNull<T> {
        debug_assert!(at + size_of::<T>() <= SLOT as usize);
        // SAFETY: within a slot, of which `next` is one, by the invariant.
        unsafe { self.map.start().byte_add((self.next * SLOT) as usize + at) }.cast()
    }

    fn status(&self, slot: u32) -> &AtomicU32 {
        // SAFETY: within the mapping, by the invariant, and the callers' slots are below `SLOTS`.
        let status = unsafe { self.map.start().byte_add((slot * SLOT) as usize) };
        // SAFETY: the first word of a slot, aligned to 2048 bytes, which both sides access by atomics.
        unsafe { status.cast().as_ref() }
    }

    /// What the kernel says of the next frame.
    fn read(&self, status: u32) -> Slot {
        // SAFETY: the header is at the start of a slot, which is ours now; every value is one.
        let header = unsafe { self.at::<tpacket2_hdr>(0).read_volatile() };
        let (at, len) = (usize::from(header.tp_mac), header.tp_snaplen as usize);
        let is_within = at >= PACKET_HDR_LEN && at.saturating_add(len) <= SLOT as usize;
        if !is_within || len < TYPE_AT + 2 {
            return Slot {
                unusable: true,
                ..Slot::default()
            };
        }
        let mut bytes = [0; NET_HDR_LEN];
        // SAFETY: within the slot, in front of the frame, as was just looked at; bytes have no alignment.
        let hdr: [u8; PACKET_HDR_LEN] = unsafe {
            self.at::<[u8; PACKET_HDR_LEN]>(at - PACKET_HDR_LEN)
                .read_volatile()
        };
        bytes[..PACKET_HDR_LEN].copy_from_slice(&hdr);
        // SAFETY: within the frame, which has so many bytes.
        let kind = u16::from_be_bytes(unsafe { self.at::<[u8; 2]>(at + TYPE_AT).read_volatile() });
        let has = |flag: u32| status & flag != 0;
        let is_out = has(libc::TP_STATUS_VLAN_VALID);
        let is_other = has(libc::TP_STATUS_VLAN_TPID_VALID) && header.tp_vlan_tpid != TPID;
        let at_socket = has(libc::TP_STATUS_COPY);
        let cut = header.tp_len != header.tp_snaplen && !at_socket;
        Slot {
            place: (u64::from(self.next * SLOT) + at as u64, len as u32),
            hdr: NetHdr::from_bytes(&bytes),
            tag: is_out.then_some(header.tp_vlan_tci),
            at_socket,
            unusable: cut || is_out && (is_other || kind == TPID),
        }
    }
}
