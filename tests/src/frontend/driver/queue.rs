//! One virtqueue with its buffers and its two doorbells.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::ring::{Buffer, Piece, Ring};
use crate::frontend::memory::GuestRam;
use crate::frontend::session::RingSetup;
use crate::frontend::spec::{self, NetHdr};
use crate::frontend::wire::PATIENCE;

/// Gap between the pieces of a buffer, so that pieces are neither adjacent nor aligned.
const GAP: u64 = 13;

/// How a transmitted frame lies in descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Header and frame in one descriptor.
    Together,
    /// The header in its own descriptor, the frame in another: all that drivers without VERSION_1
    /// and ANY_LAYOUT may do.
    HeaderApart,
    /// Descriptors of so many bytes, wherever that cuts, also inside the header.
    Pieces(u32),
}

impl Layout {
    fn lengths(self, header: u32, frame: u32) -> Vec<u32> {
        match self {
            Layout::Together => vec![header + frame],
            Layout::HeaderApart if frame == 0 => vec![header],
            Layout::HeaderApart => vec![header, frame],
            Layout::Pieces(size) => {
                let all = header + frame;
                let mut lengths = vec![size; (all / size) as usize];
                lengths.extend((!all.is_multiple_of(size)).then_some(all % size));
                lengths
            }
        }
    }
}

/// The receive buffers a driver posts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receive {
    /// How many at most; the ring's room limits them too.
    pub buffers: usize,
    /// The lengths of the descriptors of each.
    pub pieces: Vec<u32>,
}

impl Receive {
    /// One descriptor of `len` bytes each.
    pub fn each(buffers: usize, len: u32) -> Self {
        Receive {
            buffers,
            pieces: vec![len],
        }
    }

    /// What Linux posts without MRG_RXBUF but with an offload for large frames: the header in a
    /// descriptor of its own, then 17 pages.
    pub fn big(buffers: usize, header: u32) -> Self {
        let mut pieces = vec![header];
        pieces.extend([4096; 17]);
        Receive { buffers, pieces }
    }
}

/// A virtqueue, its event descriptors and its buffers.
pub struct Queue {
    /// The ring itself, for tests that break its rules.
    pub ring: Ring,
    /// The driver's doorbell.
    pub kick: Arc<EventFd>,
    /// The device's.
    pub call: Arc<EventFd>,
    calls: Epoll,
    ram: Arc<GuestRam>,
    region: usize,
    features: u64,
    slots: Vec<Slot>,
    free_slots: Vec<usize>,
    indirect: bool,
    /// Kicks the device asked for, and so were made.
    pub kicks: u64,
}

struct Slot {
    pieces: Vec<Piece>,
    table: Option<u64>,
    /// Where its memory starts, and how much of it there is.
    gpa: u64,
    room: u64,
}

impl Queue {
    /// A queue without buffers: its ring in the first region of `ram`, its buffers in `region`.
    pub fn new(
        ram: &Arc<GuestRam>,
        region: usize,
        size: u16,
        features: u64,
        indirect: bool,
    ) -> Result<Self> {
        let call = Arc::new(EventFd::new(libc::EFD_NONBLOCK)?);
        let calls = Epoll::new()?;
        let readable = EpollEvent::new(EventSet::IN, 0);
        calls.ctl(ControlOperation::Add, call.as_raw_fd(), readable)?;
        Ok(Queue {
            ring: Ring::new(ram.clone(), 0, size, features),
            kick: Arc::new(EventFd::new(libc::EFD_NONBLOCK)?),
            call,
            calls,
            ram: ram.clone(),
            region,
            features,
            slots: Vec::new(),
            free_slots: Vec::new(),
            indirect: indirect && features & spec::INDIRECT != 0,
            kicks: 0,
        })
    }

    /// What a VMM says of it.
    pub fn setup(&self, base: u32) -> RingSetup {
        let parts = self.ring.parts();
        RingSetup {
            size: parts.size,
            desc: parts.desc,
            avail: parts.avail,
            used: parts.used,
            base,
            kick: self.kick.clone(),
            call: self.call.clone(),
        }
    }

    /// Makes room for `count` frames to send of `len` bytes with their header.
    pub fn add_transmit_slots(&mut self, count: usize, len: u64) {
        for _ in 0..count {
            // The gaps of the finest layout that fits in the ring or in an indirect table.
            let room = len + GAP * 1024;
            let gpa = self.ram.alloc(self.region, room, 8);
            let table = self.table_of(1024);
            self.free_slots.push(self.slots.len());
            self.slots.push(Slot {
                pieces: Vec::new(),
                table,
                gpa,
                room,
            });
        }
    }

    /// Creates the receive buffers and makes them available, without a kick.
    pub fn post(&mut self, receive: &Receive) {
        let per = if self.indirect {
            1
        } else {
            receive.pieces.len()
        };
        let count = receive.buffers.min(self.ring.room() / per);
        for _ in 0..count {
            let total: u64 = receive.pieces.iter().map(|len| u64::from(*len) + GAP).sum();
            let gpa = self.ram.alloc(self.region, total, 2);
            let slot = Slot {
                pieces: cut(gpa, &receive.pieces),
                table: self.table_of(receive.pieces.len() as u64),
                gpa,
                room: total,
            };
            self.slots.push(slot);
            self.give(self.slots.len() - 1, true);
        }
        self.ring.publish();
    }

    fn table_of(&self, entries: u64) -> Option<u64> {
        self.indirect
            .then(|| self.ram.alloc(self.region, 16 * entries, 16))
    }

    fn give(&mut self, slot: usize, writable: bool) {
        let Slot { pieces, table, .. } = &self.slots[slot];
        self.ring.add(&Buffer {
            pieces,
            writable,
            table: table.filter(|_| pieces.len() > 1 || !writable),
            slot,
        });
    }

    /// Makes a frame available for the device to send; [`Self::ring_bell`] must follow.
    pub fn queue_frame(&mut self, hdr: NetHdr, frame: &[u8], layout: Layout) {
        let header = NetHdr::len_for(self.features);
        let lengths = layout.lengths(header as u32, frame.len() as u32);
        let needed = if self.indirect { 1 } else { lengths.len() };
        let slot = self.free_slot(needed);
        let mut bytes = hdr.to_bytes()[..header].to_vec();
        bytes.extend_from_slice(frame);
        let pieces = cut(self.slots[slot].gpa, &lengths);
        let end = pieces.last().map_or(0, |p| p.gpa + u64::from(p.len));
        assert!(end <= self.slots[slot].gpa + self.slots[slot].room);
        let mut rest = &bytes[..];
        for piece in &pieces {
            let (now, later) = rest.split_at(piece.len as usize);
            self.ram.write(piece.gpa, now);
            rest = later;
        }
        self.slots[slot].pieces = pieces;
        self.give(slot, false);
    }

    /// Makes a frame available that lies, behind its header, in one descriptor at `gpa`.
    pub fn queue_frame_at(&mut self, gpa: u64, frame: &[u8]) {
        let slot = self.free_slot(1);
        let mut bytes = vec![0; NetHdr::len_for(self.features)];
        bytes.extend_from_slice(frame);
        self.ram.write(gpa, &bytes);
        let len = bytes.len() as u32;
        self.slots[slot].pieces = vec![Piece { gpa, len }];
        self.give(slot, false);
    }

    /// A slot to transmit from and `descriptors` free in the ring; waits for the device if need be.
    fn free_slot(&mut self, descriptors: usize) -> usize {
        self.reclaim();
        while self.free_slots.is_empty() || self.ring.room() < descriptors {
            assert!(
                usize::from(self.ring.parts().size) >= descriptors,
                "a chain of {descriptors} descriptors does not fit the ring"
            );
            self.ring_bell();
            self.wait_used("a transmitted frame");
            self.reclaim();
        }
        self.free_slots.pop().expect("just seen")
    }

    /// Takes back what the device has sent.
    pub fn reclaim(&mut self) {
        while let Some(done) = self.ring.pop() {
            assert_eq!(done.len, 0, "the device wrote into a frame it was to send");
            self.free_slots.push(done.slot);
        }
    }

    /// Waits until the device has sent everything.
    pub fn flush(&mut self) {
        self.reclaim();
        while self.ring.held() > 0 {
            self.wait_used("a transmitted frame");
            self.reclaim();
        }
    }

    /// Publishes what was made available and kicks if the device asks for it.
    pub fn ring_bell(&mut self) {
        if self.ring.publish() {
            self.kicks += 1;
            self.kick.write(1).expect("kick");
        }
    }

    /// Takes a received frame, header and bytes as they lie in its buffers, and gives the buffers
    /// back to the device.
    pub fn take_received(&mut self) -> Option<Vec<u8>> {
        let header = NetHdr::len_for(self.features);
        let first = self.ring.pop()?;
        assert!(
            first.len as usize >= header,
            "a received buffer of {} bytes has no room for a header",
            first.len
        );
        let mut frame = self.read_slot(first.slot, first.len);
        let mut slots = vec![first.slot];
        if self.features & spec::MRG_RXBUF != 0 {
            let buffers = NetHdr::from_bytes(&frame[..header]).num_buffers;
            assert_ne!(buffers, 0, "num_buffers of a received frame");
            for i in 1..buffers {
                // They must become visible together, or a driver drops the frame.
                let next = self.ring.pop().unwrap_or_else(|| {
                    panic!(
                        "{buffers} buffers announced, {i} used: {}",
                        self.ring.describe()
                    )
                });
                assert_ne!(next.len, 0, "an empty buffer inside a received frame");
                frame.extend(self.read_slot(next.slot, next.len));
                slots.push(next.slot);
            }
        }
        for slot in slots {
            self.give(slot, true);
        }
        self.ring_bell();
        Some(frame)
    }

    fn read_slot(&self, slot: usize, len: u32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len as usize);
        let mut left = len;
        for piece in &self.slots[slot].pieces {
            let now = left.min(piece.len);
            let start = bytes.len();
            bytes.resize(start + now as usize, 0);
            self.ram.read(piece.gpa, &mut bytes[start..]);
            left -= now;
        }
        bytes
    }

    /// Sleeps on the call descriptor until the device has used a buffer; fails when it does not.
    pub fn wait_used(&mut self, what: &str) {
        assert!(
            self.wait_used_until(Instant::now() + PATIENCE),
            "{what} did not come: {}",
            self.ring.describe()
        );
    }

    /// The same with an end; false if nothing came.
    pub fn wait_used_until(&mut self, end: Instant) -> bool {
        loop {
            if self.ring.arm() {
                self.ring.disarm();
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let mut events = [EpollEvent::default()];
            // Round up: a wait of 0 ms would spin.
            let _ = self.calls.wait(left.as_millis() as i32 + 1, &mut events);
            let _ = self.call.read();
        }
    }

    /// Waits for a call, for `limit` at most, and does not take it.
    pub fn wait_call(&self, limit: Duration) {
        let mut events = [EpollEvent::default()];
        // Interrupted or in vain: the caller looks again.
        let _ = self.calls.wait(limit.as_millis() as i32, &mut events);
    }

    /// Whether a call came since the last wait; takes it.
    pub fn take_call(&self) -> bool {
        self.call.read().is_ok()
    }
}

/// The lengths as pieces of memory from `gpa` on, with gaps in between.
fn cut(gpa: u64, lengths: &[u32]) -> Vec<Piece> {
    let mut at = gpa;
    lengths
        .iter()
        .map(|&len| {
            let piece = Piece { gpa: at, len };
            at += u64::from(len) + GAP;
            piece
        })
        .collect()
}
