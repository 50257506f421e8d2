//! Guests that write anything anywhere, also while we look: no panic, no end of work, no byte
//! outside their memory, and nothing that another queue would notice.

mod driver;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use driver::{Nic, Ram, Rng, Shape, Split, Wire, cases};
use proptest::prelude::*;
use tandem_virtio_net::ring::RingConfig;
use tandem_virtio_net::spec::*;
use tandem_virtio_net::{Batch, Counters, DropReason, RxQueue, Scratch, TxQueue};

const V1: u64 = 1 << VIRTIO_F_VERSION_1;
const PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_USO
    | 1 << VIRTIO_NET_F_HOST_ECN;

/// Small, so that wild addresses often hit something: rings, tables, buffers, edges.
const REGIONS: [(u64, u64); 3] = [(0, 0x4000), (0x4000, 0x1800), (0x8000, 0x2001)];

/// Two queues in one hostile memory, and a peaceful pair of guests beside them.
struct Rig {
    ram: Ram,
    size: u16,
    features: u64,
    tx: TxQueue,
    rx: RxQueue,
    batch: Batch,
    scratch: Scratch,
    from_vm: Counters,
    to_vm: Counters,
}

fn config(size: u16, features: u64, at: u64) -> RingConfig {
    RingConfig {
        size,
        desc: at,
        driver: at + 0x800,
        device: at + 0x1000,
        features,
    }
}

impl Rig {
    fn new(size: u16, features: u64) -> Self {
        let ram = Ram::new(&REGIONS);
        let mut rig = Self {
            ram,
            size,
            features,
            tx: TxQueue::default(),
            rx: RxQueue::default(),
            batch: Batch::new(),
            scratch: Scratch::default(),
            from_vm: Counters::default(),
            to_vm: Counters::default(),
        };
        rig.tx.set_memory(rig.ram.memory()).unwrap();
        rig.rx.set_memory(rig.ram.memory()).unwrap();
        rig.tx.set_enabled(true);
        rig.rx.set_enabled(true);
        rig.start();
        rig
    }

    /// Starts what has been broken again, as a driver does.
    fn start(&mut self) {
        let (tx, rx) = (
            config(self.size, self.features, 0),
            config(self.size, self.features, 0x2000),
        );
        for broken in [self.tx.stopped().is_some(), self.rx.stopped().is_some()] {
            if broken {
                self.tx.stop();
                self.rx.stop();
                self.tx.start(&tx, 0, None).unwrap();
                self.rx.start(&rx, 0).unwrap();
            }
        }
    }

    /// Drains and delivers to the RX queue of the same guest.
    fn burst(&mut self) -> usize {
        let taken = self.tx.drain(&mut self.batch, &self.from_vm);
        let frames: Vec<u8> = (0..self.batch.len() as u8).collect();
        for i in 0..self.batch.len() {
            self.batch.pull_up(i, 200);
            self.batch
                .set_tag(i, if i % 2 == 0 { None } else { Some(5) });
        }
        let mut left = &frames[..];
        while taken != 0 && !left.is_empty() {
            let filled = self
                .rx
                .fill(&mut self.batch, left, &mut self.scratch, &self.to_vm);
            assert!(filled.done > 0);
            left = &left[filled.done..];
        }
        if taken != 0 {
            self.batch.clear();
        }
        self.tx.complete();
        let _ = self.tx.set_kicks(true);
        self.rx.set_kicks(true);
        taken
    }

    /// Every frame ends once.
    fn check(&self) {
        let dropped: u64 = self.from_vm.drops().map(|d| d.1).sum();
        let received: u64 = self.to_vm.frames() + self.to_vm.drops().map(|d| d.1).sum::<u64>();
        // Segments make more of one frame.
        assert!(self.from_vm.frames() - dropped <= received);
        self.ram.check_guards();
    }
}

fn kinds() -> [(u16, u64); 6] {
    [
        (8, V1 | OFFLOADS),
        (32, V1 | MERGE | 1 << VIRTIO_F_EVENT_IDX),
        (64, 1 << VIRTIO_F_IN_ORDER),
        (7, V1 | PACKED | MERGE | OFFLOADS),
        (1, V1 | PACKED | 1 << VIRTIO_F_EVENT_IDX),
        (3, V1 | PACKED | 1 << VIRTIO_F_IN_ORDER),
    ]
}

/// A descriptor that means something often enough to be followed.
fn wild_desc(rng: &mut Rng, packed: bool, size: u16, rx: bool) -> [u8; 16] {
    let addr = match rng.below(8) {
        0 => rng.next(),
        1 => u64::MAX - rng.next() % 64,
        _ => rng.next() % 0xa100,
    };
    let len = match rng.below(8) {
        0 => rng.next() as u32,
        1 => 0,
        2 => 16 * rng.below(40) as u32,
        _ => rng.below(3000) as u32,
    };
    // Mostly the right way to be read or written.
    let mut flags = [0, 0, 0, 0, 1, 1, 4, 5][rng.below(8)];
    if rx != rng.once_in(8) {
        flags ^= DESC_F_WRITE;
    }
    let mut other = rng.below(usize::from(size) + 1) as u16;
    if packed {
        flags |= [PACKED_F_AVAIL, PACKED_F_USED][rng.below(2)];
    }
    if rng.once_in(20) {
        (flags, other) = (rng.next() as u16, rng.next() as u16);
    }
    if packed {
        (flags, other) = (other, flags);
    }
    Split::desc_bytes(addr, len, flags, other)
}

/// Writes something somewhere: mostly where it will be looked at.
fn scribble(ram: &Ram, rng: &mut Rng, packed: bool, size: u16) {
    let queue = if rng.once_in(2) { 0 } else { 0x2000 };
    let slot = rng.below(size.into()) as u64;
    match rng.below(6) {
        0..=2 => ram.write(queue + 16 * slot, &wild_desc(rng, packed, size, queue != 0)),
        3 if packed => {
            let flags = [PACKED_F_AVAIL, PACKED_F_USED][rng.below(2)];
            ram.store(
                queue + 16 * slot + 14,
                flags | [0, DESC_F_WRITE][rng.below(2)],
            );
        }
        3 => {
            // The available index, a little ahead of what was used.
            let used = ram.load(queue + 0x1000 + 2);
            let ahead = rng.below(usize::from(size) + 1) as u16;
            let ahead = if rng.once_in(200) {
                rng.next() as u16
            } else {
                ahead
            };
            ram.store(queue + 0x800 + 2, used.wrapping_add(ahead));
        }
        4 => {
            let head = rng.below(usize::from(size)) as u16;
            ram.store(queue + 0x800 + 4 + 2 * slot, head);
        }
        _ => {
            let at = rng.next() % 0x1700;
            let region = [0u64, 0x4000, 0x8000][rng.below(3)];
            let bytes = match rng.below(3) {
                0 => wild_desc(rng, packed, size, queue != 0).to_vec(),
                1 => header(rng),
                _ => rng.bytes(8),
            };
            ram.write(region + at, &bytes);
        }
    }
}

/// A vnet header and the start of a frame that could be true.
fn header(rng: &mut Rng) -> Vec<u8> {
    let hdr = NetHdr {
        flags: rng.below(4) as u8,
        gso_type: [0, 0, 1, 4, 5, 0x81, 3][rng.below(7)],
        hdr_len: rng.below(80) as u16,
        gso_size: [0, 1, 8, 100, 1448, 65_535][rng.below(6)],
        csum_start: 34,
        csum_offset: [16, 6][rng.below(2)],
        num_buffers: 0,
    };
    let mut f = hdr.to_bytes().to_vec();
    f.extend([2; 12]);
    f.extend([8, 0, 0x45, 0, 0, 0, 0, 1, 0, 0, 64, [6, 17][rng.below(2)]]);
    f.extend([0; 10]);
    f.extend([
        0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0, 9, 0, 0, 0, 0,
    ]);
    f
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn garbage_is_survived(seed in any::<u64>(), kind in 0usize..6, steps in 1usize..1500) {
        let (size, features) = kinds()[kind];
        let packed = has(features, VIRTIO_F_RING_PACKED);
        let mut rig = Rig::new(size, features);
        let mut rng = Rng(seed);
        let mut slowest = Duration::ZERO;
        for _ in 0..steps {
            for _ in 0..rng.below(12) {
                scribble(&rig.ram, &mut rng, packed, size);
            }
            rig.start();
            let at = Instant::now();
            rig.burst();
            slowest = slowest.max(at.elapsed());
        }
        rig.check();
        prop_assert!(slowest < Duration::from_secs(5), "a burst took {slowest:?}");
    }
}

/// The same, while another thread writes. What happened is told by the counters at the end: the
/// mill must have let frames through, or this would test nothing.
#[test]
fn rewriting_while_we_look_is_survived() {
    for (size, features) in kinds() {
        let packed = has(features, VIRTIO_F_RING_PACKED);
        let mut rig = Rig::new(size, features);
        let stop = AtomicBool::new(false);
        let (ram, stop) = (rig.ram.clone(), &stop);
        std::thread::scope(|s| {
            s.spawn(move || {
                let mut rng = Rng(size.into());
                while !stop.load(Ordering::Relaxed) {
                    (0..100).for_each(|_| scribble(&ram, &mut rng, packed, size));
                    std::thread::yield_now();
                }
            });
            let until = Instant::now() + Duration::from_secs(30);
            while rig.from_vm.frames() < 5000 && Instant::now() < until {
                rig.start();
                if rig.burst() == 0 {
                    // Both may have to share a CPU.
                    std::thread::yield_now();
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        rig.check();
        assert!(rig.from_vm.frames() >= 5000, "{size} {features:#x}");
        assert!(rig.to_vm.frames() > 0, "{size} {features:#x}");
    }
}

/// A pair of peaceful guests beside hostile ones: neither their frames nor counters change.
#[test]
fn a_hostile_receiver_costs_nobody_else_a_frame() {
    for (size, features) in kinds() {
        let packed = has(features, VIRTIO_F_RING_PACKED);
        let mut rig = Rig::new(size, features);
        let regions = [(0x1000, 0x4_0000)];
        let mut a = Nic::new(&Ram::new(&regions), 64, V1, 0, 1);
        let mut b = Nic::new(&Ram::new(&regions), 64, V1, 0, 2);
        let mut wire = Wire::new((&a, 0), (&b, 0));
        let mut rng = Rng(3);
        for _ in 0..500 {
            for _ in 0..30 {
                scribble(&rig.ram, &mut rng, packed, size);
            }
            rig.start();
            for _ in 0..5 {
                assert!(b.post(&[300], None));
                assert!(a.send(NetHdr::default(), &[8; 200], &Shape::plain()));
            }
            assert_eq!(wire.tx.drain(&mut wire.batch, &wire.from_vm), 5);
            // A flooded burst: first to the hostile one, then to the peaceful one.
            let filled = rig.rx.fill(
                &mut wire.batch,
                &[0, 1, 2, 3, 4],
                &mut wire.scratch,
                &rig.to_vm,
            );
            assert_eq!(filled.done, 5);
            wire.fill();
            wire.batch.clear();
            wire.tx.complete();
            assert_eq!(a.reap(), 5);
            let got = b.recv();
            assert!(got.len() == 5 && got.iter().all(|g| g.frame == [8; 200]));
        }
        assert_eq!((wire.from_vm.frames(), wire.to_vm.frames()), (2500, 2500));
        assert_eq!(wire.from_vm.drops().count() + wire.to_vm.drops().count(), 0);
        let hostile = rig.to_vm.frames() + rig.to_vm.drops().map(|d| d.1).sum::<u64>();
        assert_eq!(hostile, 2500);
        rig.ram.check_guards();
    }
}

/// Frames from a peaceful sender, for receivers that want to keep it busy.
struct Victim {
    a: Nic,
    wire: Wire,
}

fn victim(to: &Nic) -> Victim {
    let a = Nic::new(&Ram::new(&[(0x1000, 0x50_0000)]), 64, V1, 0, 1);
    let wire = Wire::new((&a, 0), (to, 0));
    Victim { a, wire }
}

impl Victim {
    /// A whole burst of the longest frames. How many times the lock was given up.
    fn burst(&mut self) -> usize {
        for _ in 0..64 {
            assert!(
                self.a
                    .send(NetHdr::default(), &[8; 65_000], &Shape::plain())
            );
        }
        assert_eq!(
            self.wire.tx.drain(&mut self.wire.batch, &self.wire.from_vm),
            64
        );
        let frames: Vec<u8> = (0..64).collect();
        let (mut done, mut holds) = (0, 0);
        while done < 64 {
            let w = &mut self.wire;
            done +=
                w.rx.fill(&mut w.batch, &frames[done..], &mut w.scratch, &w.to_vm)
                    .done;
            holds += 1;
        }
        self.wire.batch.clear();
        self.wire.tx.complete();
        assert_eq!(self.a.reap(), 64);
        holds
    }
}

/// Mergeable chains that add nothing end the frame early, and what was looked at counts towards
/// what the lock is given up for.
#[test]
fn chains_without_room_are_not_walked_through() {
    for packed in [0, PACKED] {
        let ram = Ram::new(&[(0x1000, 0x40_0000)]);
        let b = Nic::new(&ram, 32_768, V1 | MERGE | packed, 0, 2);
        let ring = b.ring.config();
        // 30,000 chains, each with a table of a thousand buffers that may only be read.
        let table = 0x30_0000;
        let next = if packed == 0 { DESC_F_NEXT } else { 0 };
        for i in 0..1024u16 {
            let flags = if i < 1023 { next } else { 0 };
            let d = Split::desc_bytes(0x2000, 100, flags, (i + 1) * next);
            ram.write(table + 16 * u64::from(i), &d);
        }
        for i in 0..30_000u16 {
            let (a, b) = if packed == 0 {
                (DESC_F_INDIRECT, 0)
            } else {
                (i, DESC_F_INDIRECT | PACKED_F_USED)
            };
            let d = Split::desc_bytes(table, 16 * 1024, a, b);
            ram.write(ring.desc + 16 * u64::from(i), &d);
            if packed == 0 {
                ram.store(ring.driver + 4 + 2 * u64::from(i), i);
            }
        }
        if packed == 0 {
            ram.store(ring.driver + 2, 30_000);
        }
        let mut v = victim(&b);
        // One table of 16 KiB for each of 64 frames.
        assert_eq!(v.burst(), 4);
        assert_eq!(v.wire.to_vm.dropped(DropReason::BufferTooSmall), 64);
    }
}
