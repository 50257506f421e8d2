//! As many hostile operations as there is time for: `TANDEM_HOSTILE_OPS` of them on each kind of
//! ring, 100,000 if it is not set. `TANDEM_HOSTILE_SEED` repeats a run.
//!
//! An operation is a write to guest memory by a driver that mostly knows what it does, so that most
//! of its chains are followed far, or a burst taken from one queue and delivered to the other. All
//! the while a peaceful pair beside it loses nothing.

mod driver;

use std::time::{Duration, Instant};

use driver::{Nic, Ram, Rng, Shape, Split, Wire};
use tandem_virtio_net::ring::RingConfig;
use tandem_virtio_net::spec::*;
use tandem_virtio_net::{Batch, Counters, RxQueue, Scratch, TxQueue};

const V1: u64 = 1 << VIRTIO_F_VERSION_1;
const PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const EVENTS: u64 = 1 << VIRTIO_F_EVENT_IDX;
const IN_ORDER: u64 = 1 << VIRTIO_F_IN_ORDER;

/// Rings at the start of the first region; the others hold buffers and tables, and end at odd
/// places.
const REGIONS: [(u64, u64); 3] = [(0, 0x8000), (0x8000, 0x2801), (0x1_0000, 0x4000)];
/// Where the RX queue's ring lies; the TX queue's is at 0.
const RX: u64 = 0x4000;
/// No burst may take longer, on any machine.
const LIMIT: Duration = Duration::from_secs(5);

/// Two queues in one hostile memory.
struct Hostile {
    ram: Ram,
    rng: Rng,
    size: u16,
    features: u64,
    tx: TxQueue,
    rx: RxQueue,
    batch: Batch,
    scratch: Scratch,
    from_vm: Counters,
    to_vm: Counters,
    starts: u64,
    /// Bursts whose buffers were held over.
    late: u64,
}

impl Hostile {
    fn new(size: u16, features: u64, seed: u64) -> Self {
        let ram = Ram::new(&REGIONS);
        let mut hostile = Self {
            rng: Rng(seed),
            size,
            features,
            tx: TxQueue::default(),
            rx: RxQueue::default(),
            batch: Batch::new(),
            scratch: Scratch::default(),
            from_vm: Counters::default(),
            to_vm: Counters::default(),
            starts: 0,
            late: 0,
            ram,
        };
        hostile.tx.set_memory(hostile.ram.memory()).unwrap();
        hostile.rx.set_memory(hostile.ram.memory()).unwrap();
        hostile.tx.set_enabled(true);
        hostile.rx.set_enabled(true);
        hostile.start();
        hostile
    }

    fn packed(&self) -> bool {
        has(self.features, VIRTIO_F_RING_PACKED)
    }

    /// The driver starts its broken rings again, at a position of its own choice if they have one.
    fn start(&mut self) {
        let config = |at| RingConfig {
            size: self.size,
            desc: at,
            driver: at + 0x2000,
            device: at + 0x2800,
            features: self.features,
        };
        let (tx, rx) = (config(0), config(RX));
        let base = self.rng.below(self.size.into()) as u16 | (self.rng.next() as u16 & 0x8000);
        if self.tx.stopped().is_some() {
            self.forget(0);
            self.tx.stop();
            self.tx.start(&tx, base, None).unwrap();
            self.starts += 1;
        }
        if self.rx.stopped().is_some() {
            self.forget(RX);
            self.rx.stop();
            self.rx.start(&rx, base).unwrap();
            self.starts += 1;
        }
    }

    /// Nothing is available: what broke a ring would break it again.
    fn forget(&self, ring: u64) {
        if !self.packed() {
            self.ram.store(ring + 0x2002, self.ram.load(ring + 0x2802));
        }
    }

    /// A descriptor that means something often enough to be followed.
    fn descriptor(&mut self, rx: bool) -> [u8; 16] {
        let rng = &mut self.rng;
        let addr = match rng.below(12) {
            0 => rng.next(),
            1 => u64::MAX - rng.next() % 64,
            2 => 0xa801 - rng.next() % 64,
            _ => rng.next() % 0x1_4000,
        };
        let len = match rng.below(8) {
            0 => rng.next() as u32,
            1 => 0,
            2 => 16 * rng.below(40) as u32,
            _ => rng.below(3000) as u32,
        };
        let mut flags = [0, 0, 0, 0, 0, 0, 1, 4][rng.below(8)];
        if rx != rng.once_in(16) {
            flags ^= DESC_F_WRITE;
        }
        let mut other = rng.below(self.size.into()) as u16;
        if has(self.features, VIRTIO_F_RING_PACKED) {
            flags |= [PACKED_F_AVAIL, PACKED_F_USED][rng.below(2)];
        }
        if rng.once_in(100) {
            (flags, other) = (rng.next() as u16, rng.next() as u16);
        }
        if has(self.features, VIRTIO_F_RING_PACKED) {
            (flags, other) = (other, flags);
        }
        Split::desc_bytes(addr, len, flags, other)
    }

    /// Writes something somewhere: mostly where it will be looked at.
    fn scribble(&mut self) {
        let rx = self.rng.once_in(2);
        let ring = if rx { RX } else { 0 };
        let slot = self.rng.below(self.size.into()) as u64;
        match self.rng.below(8) {
            0..=2 => {
                let bytes = self.descriptor(rx);
                self.ram.write(ring + 16 * slot, &bytes);
            }
            3 | 4 if self.packed() => {
                let wrap = [PACKED_F_AVAIL, PACKED_F_USED][self.rng.below(2)];
                let write = if rx { DESC_F_WRITE } else { 0 };
                self.ram.store(ring + 16 * slot + 14, wrap | write);
            }
            3 | 4 => self.move_index(ring),
            // Whether it polls: then its buffers come back late.
            5 if !self.packed() && self.rng.once_in(8) => {
                let flags = self.rng.below(2) as u16 * AVAIL_F_NO_INTERRUPT;
                self.ram.store(ring + 0x2000, flags);
            }
            5 if !self.packed() => {
                let head = self.rng.below(self.size.into()) as u16;
                self.ram.store(ring + 0x2004 + 2 * slot, head);
            }
            5 => {
                // What it says about when to be called.
                let word = self.rng.next() as u16;
                self.ram.store(ring + 0x2000 + 2 * (slot & 1), word);
            }
            _ => self.fill_buffer(rx),
        }
    }

    /// The available index: a little ahead of what was used, and now and then anywhere.
    fn move_index(&mut self, ring: u64) {
        let used = self.ram.load(ring + 0x2802);
        let ahead = self.rng.below(usize::from(self.size) + 1) as u16;
        let wild = self.rng.once_in(300);
        let ahead = if wild { self.rng.next() as u16 } else { ahead };
        self.ram.store(ring + 0x2002, used.wrapping_add(ahead));
    }

    /// Something in a buffer: a table, a header with a frame behind it, or noise.
    fn fill_buffer(&mut self, rx: bool) {
        let at = [0x8000, 0x1_0000][self.rng.below(2)] + self.rng.next() % 0x2700;
        let bytes = match self.rng.below(4) {
            0 => self.descriptor(rx).to_vec(),
            1 => self.rng.bytes(32),
            2 => [&[0; 12][..], &[2; 100]].concat(),
            _ => {
                let mut bytes = vec![self.rng.below(4) as u8];
                bytes.push([0, 0, 0, 1, 4, 5, 0x81, 3][self.rng.below(8)]);
                bytes.extend(self.rng.bytes(10));
                bytes.extend([2; 12]);
                bytes.extend([8, 0, 0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6]);
                bytes.extend(self.rng.bytes(30));
                bytes
            }
        };
        self.ram.write(at, &bytes);
    }

    /// Takes a burst and delivers it to the other queue of the same guest.
    fn burst(&mut self) {
        let taken = self.tx.drain(&mut self.batch, &self.from_vm);
        if taken != 0 {
            let frames: Vec<u8> = (0..self.batch.len() as u8).collect();
            let mut left = &frames[..];
            while !left.is_empty() {
                let (batch, scratch) = (&mut self.batch, &mut self.scratch);
                let filled = self.rx.fill(batch, left, scratch, &self.to_vm);
                assert!(filled.done > 0, "each call gets on");
                left = &left[filled.done..];
            }
            self.batch.clear();
            self.tx.complete();
            self.late += u64::from(self.tx.is_late());
        } else if self.rng.once_in(2) {
            let _ = self.tx.give_back();
        }
        let kicks = self.rng.once_in(2);
        let _ = self.tx.set_kicks(kicks);
        self.rx.set_kicks(kicks);
    }
}

/// The pair next door.
struct Neighbours {
    a: Nic,
    b: Nic,
    wire: Wire,
    sent: u64,
}

impl Neighbours {
    fn new() -> Self {
        let regions = [(0x1000, 0x4_0000)];
        let a = Nic::new(&Ram::new(&regions), 64, V1, 0, 1);
        let b = Nic::new(&Ram::new(&regions), 64, V1, 0, 2);
        let wire = Wire::new((&a, 0), (&b, 0));
        Self {
            a,
            b,
            wire,
            sent: 0,
        }
    }

    /// Sends a burst to both: first to the hostile one.
    fn talk(&mut self, hostile: &mut Hostile) {
        for _ in 0..4 {
            assert!(self.b.post(&[300], None));
            assert!(self.a.send(NetHdr::default(), &[8; 200], &Shape::plain()));
        }
        let wire = &mut self.wire;
        assert_eq!(wire.tx.drain(&mut wire.batch, &wire.from_vm), 4);
        let (batch, scratch) = (&mut wire.batch, &mut wire.scratch);
        let filled = hostile
            .rx
            .fill(batch, &[0, 1, 2, 3], scratch, &hostile.to_vm);
        assert_eq!(filled.done, 4);
        wire.fill();
        wire.batch.clear();
        wire.tx.complete();
        assert_eq!(self.a.reap(), 4);
        let got = self.b.recv();
        assert!(got.len() == 4 && got.iter().all(|g| g.frame == [8; 200]));
        self.sent += 4;
    }
}

/// A number from the environment.
fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().expect(name))
}

/// Says with what a run that panics can be repeated.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("TANDEM_HOSTILE_SEED={} repeats this", self.0);
        }
    }
}

fn survive(size: u16, features: u64) {
    let (ops, seed) = (
        setting("TANDEM_HOSTILE_OPS", 100_000),
        setting("TANDEM_HOSTILE_SEED", 0x7461_6e64_656d),
    );
    let _seed = Seed(seed);
    let mut hostile = Hostile::new(size, features, seed);
    let mut neighbours = Neighbours::new();
    let (start, mut slowest, mut done) = (Instant::now(), Duration::ZERO, 0);
    while done < ops {
        let writes = hostile.rng.below(12) as u64;
        (0..writes).for_each(|_| hostile.scribble());
        hostile.start();
        let at = Instant::now();
        hostile.burst();
        slowest = slowest.max(at.elapsed());
        done += writes + 1;
        if hostile.rng.once_in(64) {
            neighbours.talk(&mut hostile);
            hostile.ram.check_guards();
        }
    }
    hostile.ram.check_guards();
    assert!(slowest < LIMIT, "a burst took {slowest:?}");
    assert_eq!(neighbours.wire.to_vm.frames(), neighbours.sent);
    let (taken, got) = (hostile.from_vm.frames(), hostile.to_vm.frames());
    println!(
        "{size} {features:#x}: {done} operations in {:.1?}, {taken} frames taken, {got} delivered, \
         {} starts, {} bursts given back late, slowest burst {slowest:.1?}",
        start.elapsed(),
        hostile.starts,
        hostile.late
    );
    // Or this would test nothing.
    assert!(taken > done / 1000 && got > done / 10_000, "{taken} {got}");
}

#[test]
fn split() {
    survive(8, V1 | EVENTS);
}

#[test]
fn split_mergeable_in_order() {
    survive(16, V1 | MERGE | IN_ORDER);
}

#[test]
fn packed() {
    survive(4, V1 | PACKED | EVENTS);
}

#[test]
fn packed_mergeable() {
    survive(7, V1 | PACKED | MERGE);
}
