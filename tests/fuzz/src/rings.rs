//! Two queues in the memory of a hostile guest, which writes anything anywhere between bursts and
//! in the middle of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tandem_virtio_net::ring::RingConfig;
use tandem_virtio_net::spec::*;
use tandem_virtio_net::{Batch, Call, Counters, RxQueue, Scratch, TxQueue};

use crate::driver::{Log, Ram};
use crate::{Input, packets};

/// Steps of one input.
const MAX_OPERATIONS: usize = 400;

/// Small, so that wild addresses often hit something: rings, tables, buffers, edges.
const REGIONS: [(u64, u64); 3] = [(0, 0x4000), (0x4000, 0x1800), (0x8000, 0x2001)];
/// The pages they are in.
const PAGES: u64 = 11;
/// Where the rings of TX and RX lie.
const RINGS: [u64; 2] = [0, 0x2000];

const V1: u64 = 1 << VIRTIO_F_VERSION_1;
const PACKED: u64 = V1 | 1 << VIRTIO_F_RING_PACKED;
const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const EVENT_IDX: u64 = 1 << VIRTIO_F_EVENT_IDX;
const IN_ORDER: u64 = 1 << VIRTIO_F_IN_ORDER;
const SEND: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_USO
    | 1 << VIRTIO_NET_F_HOST_ECN;
const RECEIVE: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6
    | 1 << VIRTIO_NET_F_GUEST_ECN;

/// Sizes and features, of both queues.
const KINDS: [(u16, u64); 12] = [
    (8, V1 | SEND),
    (128, V1 | SEND | RECEIVE),
    (32, V1 | MERGE | EVENT_IDX | SEND),
    (64, IN_ORDER),
    (16, MERGE | SEND | EVENT_IDX),
    (1, V1 | IN_ORDER | SEND | RECEIVE),
    (7, PACKED | MERGE | SEND),
    (128, PACKED | SEND | RECEIVE),
    (100, PACKED | MERGE | EVENT_IDX | IN_ORDER | SEND),
    (1, PACKED | EVENT_IDX | SEND),
    (3, PACKED | IN_ORDER | MERGE | SEND),
    (64, PACKED | IN_ORDER | EVENT_IDX),
];

/// What the guest does, and what is done with its queues.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (size, features) = input.one_of(&KINDS);
    let mut rig = Rig::new(size, features);
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        rig.step(&mut input);
    }
    rig.burst(&mut input);
    rig.check();
}

#[derive(Default)]
struct Bell(AtomicU64);

impl Call for Bell {
    fn call(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where the guest's driver would put its next buffer.
#[derive(Clone, Copy, Default)]
struct Place {
    index: u16,
    wrap: bool,
}

struct Rig {
    ram: Ram,
    /// Memories that were replaced: nobody may write there any more.
    old: Vec<(Ram, Vec<u8>)>,
    size: u16,
    features: u64,
    mtu: Option<u16>,
    tx: TxQueue,
    rx: RxQueue,
    places: [Place; 2],
    /// Bytes of the RX buffer posted last.
    last_len: usize,
    batch: Batch,
    scratch: Scratch,
    from_vm: Counters,
    to_vm: Counters,
    bell: Arc<Bell>,
}

impl Rig {
    fn new(size: u16, features: u64) -> Self {
        let mut rig = Self {
            ram: Ram::new(&REGIONS),
            old: Vec::new(),
            size,
            features,
            mtu: None,
            tx: TxQueue::default(),
            rx: RxQueue::default(),
            places: [Place::default(); 2],
            last_len: 0,
            batch: Batch::with_own_bytes(1 << 17),
            scratch: Scratch::default(),
            from_vm: Counters::default(),
            to_vm: Counters::default(),
            bell: Arc::default(),
        };
        rig.connect();
        rig
    }

    fn connect(&mut self) {
        let _ = self.tx.set_memory(self.ram.memory());
        let _ = self.rx.set_memory(self.ram.memory());
        self.tx.set_enabled(true);
        self.rx.set_enabled(true);
        self.tx.set_call(Some(self.bell.clone()));
        self.rx.set_call(Some(self.bell.clone()));
        self.start(0, 0x8000);
        self.start(1, 0x8000);
    }

    fn config(&self, queue: usize) -> RingConfig {
        let at = RINGS[queue];
        RingConfig {
            size: self.size,
            desc: at,
            driver: at + 0x800,
            device: at + 0x1000,
            features: self.features,
        }
    }

    fn packed(&self) -> bool {
        has(self.features, VIRTIO_F_RING_PACKED)
    }

    /// A split ring goes on where memory says, a packed one where `base` does.
    fn start(&mut self, queue: usize, base: u16) {
        let config = self.config(queue);
        let was_running = [self.tx.is_running(), self.rx.is_running()][queue];
        let started = match queue {
            0 => self.tx.start(&config, base, self.mtu),
            _ => self.rx.start(&config, base),
        };
        if started.is_err() {
            assert!(!was_running, "a start that changes nothing failed");
        } else if !was_running {
            self.places[queue] = if self.packed() {
                Place {
                    index: base & 0x7fff,
                    wrap: base & 0x8000 != 0,
                }
            } else {
                Place {
                    index: self.ram.load(config.device + 2),
                    wrap: false,
                }
            };
        }
    }

    fn stop(&mut self, queue: usize) -> Option<u16> {
        match queue {
            0 => self.tx.stop(),
            _ => self.rx.stop(),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let op = input.u8();
        let queue = usize::from(op >> 7);
        match op & 31 {
            0..=5 => self.offer(queue, input),
            6..=12 => self.scribble(queue, input),
            13..=17 => {
                self.burst(input);
            }
            18..=19 => self.foreign_burst(input),
            20 => {
                // What has been broken is started again, as a driver does.
                let _ = self.stop(queue);
                let base = if input.bool() { input.u16() } else { 0x8000 };
                self.mtu = input.one_of(&[None, Some(1500), Some(68), Some(9000)]);
                self.start(queue, base);
            }
            21 => {
                if let Some(base) = self.stop(queue) {
                    assert!(!self.packed() || base & 0x7fff < self.size);
                    self.start(queue, base);
                }
            }
            22 => {
                let on = input.bool();
                let _ = self.tx.set_kicks(on);
                self.rx.set_kicks(on);
                let _ = (self.tx.has_work(), self.rx.has_work());
            }
            23 => self.replace_memory(input),
            24 => {
                let on = input.bool();
                match queue {
                    0 => self.tx.set_enabled(on),
                    _ => self.rx.set_enabled(on),
                }
            }
            25 => {
                let _ = (self.tx.is_late(), self.tx.give_back());
            }
            26 => {
                let log = input.bool().then(|| Log::new(PAGES).dirty_log());
                self.tx.set_log(log.clone());
                self.rx.set_log(log);
            }
            27 => {
                self.tx.reset();
                self.rx.reset();
                (self.size, self.features) = input.one_of(&KINDS);
                self.connect();
            }
            28 => self.start(queue, input.u16()),
            29 => {
                let _ = (self.rx.is_populated(), self.tx.stopped(), self.rx.stopped());
            }
            _ => self.ask_for_calls(queue, input),
        }
    }

    /// A well-formed buffer, for the queues to get somewhere: one or more descriptors, perhaps in a
    /// table, and for TX with something like a frame in it.
    fn offer(&mut self, queue: usize, input: &mut Input<'_>) {
        let shape = input.u8();
        let at = u64::from(input.u16() % 0x1400);
        // Buffers are kept out of the rings, mostly.
        let (start, all) = [(0x4000, 0x1800), (0x8000, 0x2001)][usize::from(shape & 1)];
        let len = u64::from(input.u16());
        let (addr, len) = if shape >> 5 == 7 {
            // To the very end of a region, or some bytes further.
            let len = len.min(all - 16);
            (start + all - len + (at & 15).saturating_sub(8), len)
        } else {
            (start + at, len.min(all - at))
        };
        let room = (start + all).saturating_sub(addr) as usize;
        if queue == 1 {
            self.last_len = len as usize;
        }
        if queue == 0 && shape & 2 != 0 {
            let frame = packets::frame(input);
            let hdr = packets::header(input, &frame);
            let bytes = &hdr.to_bytes()[..NetHdr::len_for(self.features)];
            let bytes: Vec<u8> = bytes.iter().chain(&frame).copied().collect();
            let n = bytes.len().min(room);
            if n != 0 {
                self.ram.write(addr, &bytes[..n]);
            }
        }
        let write = if queue == 1 { DESC_F_WRITE } else { 0 };
        // In pieces.
        let pieces = [1, 1, 2, 3][usize::from(shape >> 2 & 3)];
        let piece = (len / pieces) as u32;
        let list: Vec<(u64, u32, u16)> = (0..pieces)
            .map(|i| {
                let next = if i + 1 < pieces { DESC_F_NEXT } else { 0 };
                (addr + i * u64::from(piece), piece, write | next)
            })
            .collect();
        let table = (shape & 16 != 0).then(|| 0x5000 + 16 * u64::from(shape >> 5));
        if self.packed() {
            self.offer_packed(queue, &list, table);
        } else {
            self.offer_split(queue, &list, table);
        }
    }

    fn offer_split(&mut self, queue: usize, list: &[(u64, u32, u16)], table: Option<u64>) {
        let ring = self.config(queue);
        let place = &mut self.places[queue];
        let head = place.index % self.size;
        let slots = u64::from(self.size);
        for (i, (addr, len, flags)) in list.iter().enumerate() {
            let i = i as u64;
            let (at, next) = match table {
                Some(table) => (table + 16 * i, i + 1),
                None => (
                    ring.desc + 16 * ((u64::from(head) + i) % slots),
                    (u64::from(head) + i + 1) % slots,
                ),
            };
            self.ram.write(at, &desc(*addr, *len, *flags, next as u16));
        }
        if let Some(table) = table {
            let d = desc(table, 16 * list.len() as u32, DESC_F_INDIRECT, 0);
            self.ram.write(ring.desc + 16 * u64::from(head), &d);
        }
        self.ram.store(ring.driver + 4 + 2 * u64::from(head), head);
        place.index = place.index.wrapping_add(1);
        self.ram.store(ring.driver + 2, place.index);
    }

    fn offer_packed(&mut self, queue: usize, list: &[(u64, u32, u16)], table: Option<u64>) {
        let ring = self.config(queue);
        let mut list = list.to_vec();
        if let Some(table) = table {
            for (i, (addr, len, flags)) in list.iter().enumerate() {
                let d = desc(*addr, *len, 0, flags & DESC_F_WRITE);
                self.ram.write(table + 16 * i as u64, &d);
            }
            list = vec![(table, 16 * list.len() as u32, DESC_F_INDIRECT)];
        }
        for (addr, len, flags) in list {
            let place = &mut self.places[queue];
            let wrap = if place.wrap {
                PACKED_F_AVAIL
            } else {
                PACKED_F_USED
            };
            let index = place.index % self.size;
            let d = desc(addr, len, index, flags | wrap);
            self.ram.write(ring.desc + 16 * u64::from(index), &d);
            place.index = index + 1;
            if place.index == self.size {
                *place = Place {
                    index: 0,
                    wrap: !place.wrap,
                };
            }
        }
    }

    /// Whatever a driver must not do, mostly where it will be looked at.
    fn scribble(&self, queue: usize, input: &mut Input<'_>) {
        let ring = self.config(queue);
        let slot = u64::from(u16::from(input.u8()) % self.size);
        match input.u8() % 8 {
            0..=2 => {
                let addr = match input.u8() % 8 {
                    0 => input.u64(),
                    1 => u64::MAX - u64::from(input.u8()),
                    _ => u64::from(input.u16() % 0xa100),
                };
                let len = match input.u8() % 4 {
                    0 => input.u32(),
                    _ => u32::from(input.u16() % 3000),
                };
                let (a, b) = (input.u16(), input.u16());
                self.ram
                    .write(ring.desc + 16 * slot, &desc(addr, len, a, b));
            }
            3 => {
                // The flags of one descriptor, of either layout.
                let at = if self.packed() { 14 } else { 12 };
                self.ram.store(ring.desc + 16 * slot + at, input.u16());
            }
            4 => {
                let used = self.ram.load(ring.device + 2);
                let ahead = u16::from(input.u8());
                let ahead = if ahead < 250 {
                    ahead % (self.size + 1)
                } else {
                    input.u16()
                };
                self.ram.store(ring.driver + 2, used.wrapping_add(ahead));
            }
            5 => self
                .ram
                .store(ring.driver + 4 + 2 * slot, u16::from(input.u8())),
            6 => {
                let region = REGIONS[usize::from(input.u8()) % 3];
                let at = u64::from(input.u16()) % region.1;
                let n = usize::from(input.u8() % 64).min((region.1 - at) as usize);
                self.ram.write(region.0 + at, input.take(n));
            }
            _ => {
                // The driver's area, which a packed ring's event suppression is.
                let at = u64::from(input.u8() & 6);
                self.ram.store(ring.driver + at, input.u16());
            }
        }
    }

    /// Says at which buffer the guest wants to be notified.
    fn ask_for_calls(&self, queue: usize, input: &mut Input<'_>) {
        let ring = self.config(queue);
        let (flags, event) = (u16::from(input.u8() % 4), input.u16());
        if self.packed() {
            self.ram.store(ring.driver, event);
            self.ram.store(ring.driver + 2, flags);
        } else {
            self.ram.store(ring.driver, flags);
            let event_at = ring.driver + 4 + 2 * u64::from(self.size);
            self.ram.store(event_at, event);
        }
    }

    fn replace_memory(&mut self, input: &mut Input<'_>) {
        match input.u8() % 4 {
            0 => {
                let memory = self.ram.memory();
                self.tx.set_memory(memory.clone()).expect("the same");
                self.rx.set_memory(memory).expect("the same");
            }
            1 => {
                // Not all of it: rings that are not in it stop.
                let part = Ram::new(&REGIONS[1..]);
                let running = self.tx.is_running();
                let result = self.tx.set_memory(part.memory());
                assert_eq!(result.is_err(), running);
                assert!(!self.tx.is_running());
                let _ = self.rx.set_memory(part.memory());
                self.scratch.call_all();
                let _ = self.tx.set_memory(self.ram.memory());
                let _ = self.rx.set_memory(self.ram.memory());
                part.check_guards();
            }
            _ => {
                // What is given back late is given back to the old memory.
                let _ = self.tx.give_back();
                let new = self.ram.duplicate();
                self.tx.set_memory(new.memory()).expect("the same place");
                self.rx.set_memory(new.memory()).expect("the same place");
                let old = std::mem::replace(&mut self.ram, new);
                if self.old.len() < 8 {
                    let bytes = contents(&old);
                    self.old.push((old, bytes));
                }
            }
        }
    }

    /// Drains and delivers to the RX queue of the same guest, which writes in between.
    fn burst(&mut self, input: &mut Input<'_>) {
        let before = (self.from_vm.frames(), dropped(&self.from_vm));
        let taken = self.tx.drain(&mut self.batch, &self.from_vm);
        let after = (self.from_vm.frames(), dropped(&self.from_vm));
        assert_eq!(after.0 - before.0, taken as u64);
        assert_eq!(after.1 - before.1, (taken - self.batch.len()) as u64);
        if taken == 0 {
            return;
        }
        let how = input.u8();
        if how & 1 != 0 {
            self.scribble(usize::from(how >> 1 & 1), input);
        }
        for i in 0..self.batch.len() {
            if how & 4 != 0 {
                self.batch.pull_up(i, 200);
            }
            if how & 8 != 0 {
                self.batch.set_tag(i, (i % 2 == 1).then_some(5));
            }
        }
        let times = if how & 16 == 0 { 1 } else { 2 };
        for _ in 0..times {
            self.fill();
        }
        self.batch.clear();
        if how & 32 != 0 {
            self.scribble(0, input);
        }
        if let Some(call) = self.tx.complete() {
            call.call();
        }
        if how & 64 != 0 {
            let _ = self.tx.set_kicks(true);
            self.rx.set_kicks(how & 128 != 0);
        }
    }

    /// Frames of somebody else, into the RX queue.
    fn foreign_burst(&mut self, input: &mut Input<'_>) {
        let how = input.u8();
        let copies = 1 + how % 64;
        let mut frame = packets::frame(input);
        if how & 128 != 0 {
            // As long as the buffer posted last, or a little shorter.
            let spare = NetHdr::len_for(self.features) + usize::from(how >> 3 & 7);
            frame.resize(self.last_len.saturating_sub(spare), 0);
        }
        let hdr = packets::header(input, &frame);
        let valid = tandem_virtio_net::offload::validate(&hdr, &frame, frame.len()).is_ok();
        let hdr = if valid { hdr } else { NetHdr::default() };
        for _ in 0..copies {
            let _ = self.batch.push_frame(hdr, &frame);
        }
        self.fill();
        self.batch.clear();
    }

    /// Hands all of the batch to the RX queue. Each frame ends once.
    fn fill(&mut self) {
        let frames: Vec<u8> = (0..self.batch.len() as u8).collect();
        let mut left = &frames[..];
        while !left.is_empty() {
            let before = self.to_vm.frames() + dropped(&self.to_vm);
            let filled = self
                .rx
                .fill(&mut self.batch, left, &mut self.scratch, &self.to_vm);
            let ended = self.to_vm.frames() + dropped(&self.to_vm) - before;
            assert!(filled.done > 0 && filled.done <= left.len());
            let (whole, segments) = filled.segmented;
            assert_eq!(ended, filled.done as u64 - whole + segments);
            filled
                .call
                .into_iter()
                .for_each(|c| self.scratch.keep_call(c));
            left = &left[filled.done..];
        }
        self.scratch.call_all();
    }

    fn check(&self) {
        self.ram.check_guards();
        for (ram, bytes) in &self.old {
            ram.check_guards();
            assert!(contents(ram) == *bytes, "memory that was replaced changed");
        }
    }
}

fn contents(ram: &Ram) -> Vec<u8> {
    let regions = REGIONS.iter();
    regions
        .flat_map(|(at, len)| ram.read(*at, *len as usize))
        .collect()
}

fn dropped(counters: &Counters) -> u64 {
    counters.drops().map(|(_, n)| n).sum()
}

/// A descriptor: of a split ring with flags and next, of a packed one with id and flags.
fn desc(addr: u64, len: u32, a: u16, b: u16) -> [u8; 16] {
    let mut d = [0; 16];
    d[..8].copy_from_slice(&addr.to_le_bytes());
    d[8..12].copy_from_slice(&len.to_le_bytes());
    d[12..14].copy_from_slice(&a.to_le_bytes());
    d[14..].copy_from_slice(&b.to_le_bytes());
    d
}
