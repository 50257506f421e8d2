//! The life of a queue: stopped and started, moved to other memory, logged, refused.

mod driver;

use driver::*;
use tandem_virtio_net::queue::Stopped;
use tandem_virtio_net::ring::{RingConfig, SetupError};
use tandem_virtio_net::spec::*;
use tandem_virtio_net::{BURST, DropReason, RxQueue, TxQueue};

const V1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT: u64 = 1 << VIRTIO_F_EVENT_IDX;
const PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const REGIONS: [(u64, u64); 2] = [(0x1000, 0x8_0000), (0x10_0000, 0x8_0000)];
const WRAP: u16 = 0x8000;

struct Rig {
    a: Nic,
    b: Nic,
    wire: Wire,
}

fn rig(features: u64, size: u16) -> Rig {
    let a = Nic::new(&Ram::new(&REGIONS), size, features, WRAP, 1);
    let b = Nic::new(&Ram::new(&REGIONS), size, features, WRAP, 2);
    let wire = Wire::new((&a, WRAP), (&b, WRAP));
    Rig { a, b, wire }
}

impl Rig {
    fn post(&mut self, n: usize) {
        (0..n).for_each(|_| assert!(self.b.post(&[2000], None)));
    }

    fn send(&mut self, fill: u8, n: usize) {
        for _ in 0..n {
            assert!(self.a.send(NetHdr::default(), &[fill; 60], &Shape::plain()));
        }
    }

    /// Carries everything; the first byte of each frame that arrives.
    fn exchange(&mut self) -> Vec<u8> {
        self.wire.pump_all();
        self.a.reap();
        self.b.recv().iter().map(|g| g.frame[0]).collect()
    }
}

const ALL: [u64; 4] = [
    V1,
    V1 | EVENT | MERGE,
    V1 | PACKED,
    V1 | PACKED | EVENT | MERGE,
];

#[test]
fn a_stopped_queue_goes_on_where_it_was() {
    for features in ALL {
        let mut r = rig(features, 8);
        for lap in 0..20 {
            r.post(3);
            r.send(lap, 2);
            assert_eq!(r.exchange(), [lap; 2]);
            // Stopped in the middle: what is in the ring is still sent, once.
            r.send(lap + 100, 1);
            let (tx, rx) = (r.wire.tx.stop().unwrap(), r.wire.rx.stop().unwrap());
            assert_eq!(r.wire.tx.stop(), None);
            assert_eq!(r.exchange(), []);
            assert_eq!(r.wire.tx.stopped(), Some(Stopped::NotReady));
            let (ca, cb) = (r.a.ring.config(), r.b.ring.config());
            // A split ring does not believe in what it is told: VMMs replay old positions.
            let stale = if has(features, VIRTIO_F_RING_PACKED) {
                0
            } else {
                7
            };
            r.wire.tx.start(&ca, tx.wrapping_sub(stale), None).unwrap();
            r.wire.rx.start(&cb, rx.wrapping_sub(stale)).unwrap();
            assert_eq!(r.exchange(), [lap + 100]);
        }
        assert_eq!(r.wire.to_vm.drops().count(), 0);
    }
}

#[test]
fn a_repeated_start_changes_nothing() {
    for features in ALL {
        let mut r = rig(features, 8);
        r.post(4);
        r.send(1, 1);
        assert_eq!(r.exchange(), [1]);
        r.post(4);
        r.send(2, 4);
        let mut batch = std::mem::take(&mut r.wire.batch);
        assert_eq!(r.wire.tx.drain(&mut batch, &r.wire.from_vm), 4);
        let (ca, cb) = (r.a.ring.config(), r.b.ring.config());
        r.wire.tx.start(&ca, WRAP, None).unwrap();
        r.wire.rx.start(&cb, WRAP).unwrap();
        r.wire.batch = batch;
        r.wire.fill();
        r.wire.batch.clear();
        r.wire.tx.complete();
        assert_eq!(r.exchange(), [2; 4]);
        // All buffers but three are used: it has been given some all the same.
        r.send(3, 3);
        assert_eq!(r.exchange(), [3; 3]);
        r.wire.rx.start(&cb, WRAP).unwrap();
        assert!(r.wire.rx.is_populated());
    }
}

#[test]
fn a_queue_without_buffers_is_not_populated() {
    for features in ALL {
        let mut r = rig(features, 8);
        assert!(!r.wire.rx.is_populated());
        r.post(1);
        assert!(r.wire.rx.is_populated());
        r.send(1, 1);
        assert_eq!(r.exchange(), [1]);
        assert!(r.wire.rx.is_populated());
        r.wire.rx.stop();
        let config = r.b.ring.config();
        let base = match &r.b.ring {
            Ring::Packed(p) => p.seen.off_wrap(8),
            Ring::Split(_) => 0,
        };
        r.wire.rx.start(&config, base).unwrap();
        assert!(!r.wire.rx.is_populated());
    }
}

#[test]
fn memory_is_swapped_on_a_live_ring() {
    for features in ALL {
        let mut r = rig(features, 8);
        for lap in 0..10 {
            r.post(4);
            r.send(lap, 2);
            assert_eq!(r.exchange(), [lap; 2]);
            r.send(lap, 2);
            let (old_a, old_b) = (r.a.ram.clone(), r.b.ram.clone());
            r.a.set_ram(&old_a.duplicate());
            r.b.set_ram(&old_b.duplicate());
            r.wire.tx.set_memory(r.a.ram.memory()).unwrap();
            r.wire.rx.set_memory(r.b.ram.memory()).unwrap();
            let before = (old_a.pages(), old_b.pages());
            assert_eq!(r.exchange(), [lap; 2]);
            assert!(
                before == (old_a.pages(), old_b.pages()),
                "old memory is left alone"
            );
        }
        // Where the ring was there is nothing now.
        let elsewhere = Ram::new(&[(0x100_0000, 0x1000)]);
        r.send(9, 1);
        let error = r.wire.tx.set_memory(elsewhere.memory()).unwrap_err();
        assert!(matches!(error, SetupError::Address { .. }));
        assert!(!r.wire.tx.is_running());
        assert_eq!(r.wire.pump(), 0);
    }
}

/// Chains that were taken from one ring are not given back to another, which may be smaller.
#[test]
fn what_was_taken_ends_with_its_ring() {
    for features in [V1, V1 | PACKED] {
        let mut r = rig(features, 64);
        let shape = Shape {
            cuts: vec![2],
            most: 40,
            indirect: None,
        };
        assert!(r.a.send(NetHdr::default(), &[1; 100], &shape));
        let mut batch = std::mem::take(&mut r.wire.batch);
        assert_eq!(r.wire.tx.drain(&mut batch, &r.wire.from_vm), 1);
        r.wire.tx.stop();
        let ram = Ram::new(&REGIONS);
        let mut small = Nic::new(&ram, 4, features, WRAP, 3);
        r.wire.tx.set_memory(ram.memory()).unwrap();
        r.wire.tx.start(&small.ring.config(), WRAP, None).unwrap();
        let before = ram.pages();
        assert!(r.wire.tx.complete().is_none());
        assert!(before == ram.pages());
        assert!(small.send(NetHdr::default(), &[5; 60], &Shape::plain()));
        // The batch outlives the memory it points to.
        drop(r.a);
        assert_eq!(batch.linearize(0, &mut [0; 200]), 100);
        batch.clear();
        assert_eq!(r.wire.pump(), 1);
        assert_eq!(small.reap(), 1);
    }
}

#[test]
fn a_ring_that_cannot_be_is_refused() {
    let ram = Ram::new(&[(0x1000, 0x1_0000), (0x1_1000, 0x1000)]);
    let good = RingConfig {
        size: 256,
        desc: 0x2000,
        driver: 0x4000,
        device: 0x5000,
        features: V1,
    };
    let start = |config: RingConfig, base| {
        let mut tx = TxQueue::default();
        tx.set_memory(ram.memory()).unwrap();
        let result = tx.start(&config, base, None);
        assert_eq!(tx.is_running(), result.is_ok());
        result
    };
    let packed = RingConfig {
        features: V1 | PACKED,
        ..good
    };
    for c in [good, packed] {
        assert_eq!(start(c, 0), Ok(true));
        for size in [0, 32_769, 65_535] {
            assert_eq!(
                start(RingConfig { size, ..c }, 0),
                Err(SetupError::Size(size))
            );
        }
        // Not there, beyond the end, across two mappings, not aligned.
        for desc in [0, u64::MAX, 0x1_2000 - 16, 0x1_1000 - 16, 0x2008] {
            let e = start(RingConfig { desc, ..c }, 0).unwrap_err();
            assert!(matches!(e, SetupError::Address { addr, .. } if addr == desc));
        }
        for addr in [0, u64::MAX, 0x1_2000 - 2, 0x1_1000 - 2, 0x2001] {
            let (driver, device) = (
                RingConfig { driver: addr, ..c },
                RingConfig { device: addr, ..c },
            );
            for c in [driver, device] {
                let e = start(c, 0).unwrap_err();
                assert!(matches!(e, SetupError::Address { addr: a, .. } if a == addr));
            }
        }
    }
    assert_eq!(
        start(RingConfig { size: 100, ..good }, 0),
        Err(SetupError::Size(100))
    );
    assert_eq!(
        start(
            RingConfig {
                size: 100,
                ..packed
            },
            99 | WRAP
        ),
        Ok(true)
    );
    let beyond = SetupError::Base {
        index: 100,
        size: 100,
    };
    assert_eq!(
        start(
            RingConfig {
                size: 100,
                ..packed
            },
            100 | WRAP
        ),
        Err(beyond)
    );
}

#[test]
fn frames_for_a_queue_that_is_not_ready_are_counted() {
    let mut r = rig(V1, 8);
    r.post(4);
    r.wire.rx.set_enabled(false);
    r.send(1, 2);
    assert_eq!(r.exchange(), []);
    assert_eq!(r.wire.to_vm.dropped(DropReason::NotReady), 2);
    r.wire.rx.set_enabled(true);
    r.send(2, 1);
    r.wire.tx.set_enabled(false);
    assert_eq!(r.exchange(), []);
    r.wire.tx.set_enabled(true);
    assert_eq!(r.exchange(), [2]);
}

#[test]
fn a_queue_whose_memory_is_gone_stops() {
    let mut r = rig(V1, 8);
    let memory = r.b.ram.memory();
    let fault = memory.fault().clone();
    r.wire.rx.set_memory(memory).unwrap();
    r.post(4);
    r.send(1, 1);
    assert_eq!(r.exchange(), [1]);
    fault.set();
    r.send(2, 2);
    assert_eq!(r.exchange(), []);
    assert_eq!(r.wire.rx.stopped(), Some(Stopped::Fault));
    assert_eq!(r.wire.to_vm.dropped(DropReason::RingBroken), 2);
    assert!(!r.wire.rx.has_work());
}

/// What `what` changes in a guest's memory is what the log says.
fn all_marked(ram: &Ram, log: &Log, wire: &mut Wire, what: impl FnOnce(&mut Wire)) {
    let before = ram.pages();
    log.clear();
    what(wire);
    for ((page, old), (_, new)) in before.iter().zip(ram.pages()) {
        assert!(
            *old == new || log.is_marked(*page),
            "page {page:#x} changed unseen"
        );
    }
    let marked = before.iter().filter(|(p, _)| log.is_marked(*p)).count();
    assert!(marked < before.len(), "not simply everything");
}

/// For every kind of write. The rings are longer than a page, so that no mark stands for another.
fn marks(features: u64, size: u16, base: u16) {
    const SMALL: [(u64, u64); 2] = [(0x1000, 0x3_0000), (0x10_0000, 0x1_0000)];
    let mut a = Nic::new(&Ram::new(&SMALL), size, features, base, 1);
    let mut b = Nic::new(&Ram::new(&SMALL), size, features, base, 2);
    let mut wire = Wire::new((&a, base), (&b, base));
    let (log_a, log_b) = (Log::new(0x200), Log::new(0x200));
    wire.tx.set_log(Some(log_a.dirty_log()));
    wire.rx.set_log(Some(log_b.dirty_log()));
    let mut rng = Rng(7);
    for lap in 0..60 {
        let on = lap % 2 == 0;
        all_marked(&a.ram, &log_a, &mut wire, |w| drop(w.tx.set_kicks(on)));
        all_marked(&b.ram, &log_b, &mut wire, |w| w.rx.set_kicks(on));
        while b.offered() < 6 {
            let lens: Vec<usize> = (0..2).map(|_| 800 + rng.below(3000)).collect();
            if !b.post(&lens, None) {
                break;
            }
        }
        for _ in 0..1 + rng.below(6) {
            let n = 100 + rng.below(1400);
            let frame = rng.bytes(n);
            a.send(NetHdr::default(), &frame, &Shape::plain());
        }
        // The receiver's memory is written at `fill`, the sender's at `complete`.
        assert_ne!(wire.tx.drain(&mut wire.batch, &wire.from_vm), 0);
        all_marked(&b.ram, &log_b, &mut wire, Wire::fill);
        wire.batch.clear();
        all_marked(&a.ram, &log_a, &mut wire, |w| {
            w.tx.complete();
        });
        a.reap();
        b.recv();
    }
    assert!(wire.to_vm.frames() > 60);
    // Without a log nothing is marked any more.
    wire.tx.set_log(None);
    log_a.clear();
    a.send(NetHdr::default(), &[0; 60], &Shape::plain());
    wire.pump_all();
    assert!((0..0x200).all(|p| !log_a.is_marked(p)));
}

#[test]
fn every_page_that_is_written_is_marked() {
    for features in ALL.into_iter().chain([V1 | MERGE | 1 << VIRTIO_F_IN_ORDER]) {
        for (size, base) in [(8, WRAP), (1024, WRAP + 400), (1024, WRAP + 900)] {
            marks(features, size, base);
        }
    }
}

/// Completes for a receiver without offloads what the sender left to do.
#[test]
fn offloads_are_completed_for_a_plain_receiver() {
    let offloads = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4;
    let guest = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;
    for (to, segments, partial) in [(V1, 4, false), (V1 | guest, 1, true), (0, 4, false)] {
        let mut r = Rig {
            a: Nic::new(&Ram::new(&REGIONS), 16, V1 | offloads, 0, 1),
            b: Nic::new(&Ram::new(&REGIONS), 16, to, 0, 2),
            wire: Wire::new((&rig(V1, 1).a, 0), (&rig(V1, 1).b, 0)),
        };
        r.wire = Wire::new((&r.a, 0), (&r.b, 0));
        (0..6).for_each(|_| assert!(r.b.post(&[5000], None)));
        let (hdr, frame) = tcp(4000, 1000);
        assert!(r.a.send(hdr, &frame, &Shape::plain()));
        r.wire.pump_all();
        let got = r.b.recv();
        assert_eq!(got.len(), segments);
        let payload: Vec<u8> = got.iter().flat_map(|g| g.frame[54..].to_vec()).collect();
        assert_eq!(payload, frame[54..]);
        for g in &got {
            assert_eq!(g.hdr.flags & NET_HDR_F_NEEDS_CSUM != 0, partial);
            assert_eq!(g.hdr.gso_type != 0, segments == 1);
            let good = tcp_sum(&g.frame) == 0xffff;
            assert_eq!(good, !partial, "a whole checksum, or none yet");
        }
        assert_eq!(r.wire.to_vm.frames(), segments as u64);
        assert_eq!(r.wire.from_vm.frames(), 1);
    }
}

/// Segments that find no room are dropped and counted, all of them.
#[test]
fn every_segment_ends_once() {
    let offloads = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4;
    let mut a = Nic::new(&Ram::new(&REGIONS), 16, V1 | offloads, 0, 1);
    let mut b = Nic::new(&Ram::new(&REGIONS), 16, V1, 0, 2);
    let mut wire = Wire::new((&a, 0), (&b, 0));
    (0..3).for_each(|_| assert!(b.post(&[1600], None)));
    let (hdr, frame) = tcp(10_500, 1000);
    assert!(a.send(hdr, &frame, &Shape::plain()));
    wire.tx.drain(&mut wire.batch, &wire.from_vm);
    let filled = wire
        .rx
        .fill(&mut wire.batch, &[0], &mut wire.scratch, &wire.to_vm);
    assert_eq!(filled.segmented, (1, 11));
    assert_eq!(wire.to_vm.frames(), 3);
    assert_eq!(wire.to_vm.dropped(DropReason::RingFull), 8);
    assert_eq!(b.recv().len(), 3);
}

/// One frame that becomes more used entries than a packed ring writes at once.
#[test]
fn a_thousand_segments_arrive() {
    let offloads = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4;
    for layout in [0, PACKED] {
        let mut a = Nic::new(&Ram::new(&REGIONS), 16, V1 | offloads, WRAP, 1);
        let mut b = Nic::new(&Ram::new(&REGIONS), 2048, V1 | layout, WRAP, 2);
        let mut wire = Wire::new((&a, WRAP), (&b, WRAP));
        (0..1200).for_each(|_| assert!(b.post(&[128], None)));
        b.ring.arm();
        let (hdr, frame) = tcp(50_000, 50);
        assert!(a.send(hdr, &frame, &Shape::plain()));
        wire.pump_all();
        assert_eq!(wire.rx_calls.take(), 1);
        let got = b.recv();
        assert_eq!((got.len(), wire.to_vm.frames()), (1000, 1000));
        let payload: Vec<u8> = got.iter().flat_map(|g| g.frame[54..].to_vec()).collect();
        assert_eq!(payload, frame[54..]);
    }
}

/// A TCP segment offload over IPv4.
fn tcp(payload: usize, gso_size: u16) -> (NetHdr, Vec<u8>) {
    let mut f = vec![2; 12];
    f.extend([8, 0, 0x45, 0]);
    f.extend((40 + payload as u16).to_be_bytes());
    f.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    f.extend([
        0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0, 99, 0, 0, 0, 0,
    ]);
    let pseudo = sum(&f[26..34]) + 6 + 20 + payload as u32;
    f[50..52].copy_from_slice(&fold(pseudo).to_be_bytes());
    f.extend(Rng(1).bytes(payload));
    let hdr = NetHdr {
        flags: NET_HDR_F_NEEDS_CSUM,
        gso_type: NET_HDR_GSO_TCPV4,
        hdr_len: 54,
        gso_size,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    (hdr, f)
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0)))
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum over a TCP packet, which is all ones if its checksum is right (RFC 9293, 3.1).
fn tcp_sum(frame: &[u8]) -> u16 {
    fold(sum(&frame[26..34]) + 6 + frame[34..].len() as u32 + sum(&frame[34..]))
}

/// A tag that ends the frame is no Ethernet header.
#[test]
fn short_frames_are_refused() {
    let mut r = rig(V1, 64);
    r.post(40);
    let mut frame = [0u8; 20];
    frame[12] = 0x81;
    for n in 0..=20 {
        assert!(r.a.send(NetHdr::default(), &frame[..n], &Shape::plain()));
    }
    frame[12] = 8;
    for n in 0..=20 {
        assert!(r.a.send(NetHdr::default(), &frame[..n], &Shape::plain()));
    }
    r.wire.pump_all();
    let got: Vec<usize> = r.b.recv().iter().map(|g| g.frame.len()).collect();
    assert_eq!(got, [18, 19, 20, 14, 15, 16, 17, 18, 19, 20]);
    assert_eq!(r.wire.from_vm.dropped(DropReason::TooShort), 32);
    assert_eq!(r.wire.from_vm.frames(), 42);
}

#[test]
fn bad_frames_are_counted_and_their_buffers_come_back() {
    let mut r = rig(V1, 1024);
    r.post(40);
    let many = Shape {
        cuts: vec![1],
        most: 257,
        indirect: None,
    };
    let not_negotiated = NetHdr {
        flags: NET_HDR_F_NEEDS_CSUM,
        ..NetHdr::default()
    };
    let frame = [8; 300];
    let plain = Shape::plain();
    assert!(r.a.send(
        NetHdr::default(),
        &frame,
        &Shape {
            most: 256,
            ..many.clone()
        }
    ));
    assert!(r.a.send(NetHdr::default(), &frame[..245], &many));
    r.wire.pump_all();
    assert_eq!(r.a.reap(), 2);
    assert!(r.a.send(not_negotiated, &frame, &plain));
    assert!(r.a.send(NetHdr::default(), &vec![1; MAX_FRAME + 1], &plain));
    r.wire.pump_all();
    assert_eq!(r.a.reap(), 2);
    let drops: Vec<_> = r.wire.from_vm.drops().collect();
    let expected = [
        (DropReason::TooLong, 1),
        (DropReason::TooManyBuffers, 1),
        (DropReason::BadVnetHeader, 1),
    ];
    assert_eq!(drops, expected);
    assert_eq!(r.b.recv().len(), 1);
    // What was never looked at has no bytes.
    let seen = (r.wire.from_vm.frames(), r.wire.from_vm.bytes());
    assert_eq!(seen, (4, 300 + 300));
}

#[test]
fn frames_longer_than_the_mtu_are_dropped() {
    let mut r = rig(V1, 16);
    r.post(8);
    let config = r.a.ring.config();
    r.wire.tx.stop();
    r.wire.tx.start(&config, WRAP, Some(1500)).unwrap();
    for n in [1514, 1518, 1519] {
        assert!(r.a.send(NetHdr::default(), &vec![8; n], &Shape::plain()));
    }
    assert_eq!(r.exchange().len(), 2);
    assert_eq!(r.wire.from_vm.dropped(DropReason::MtuExceeded), 1);
}

/// The lock of a receiver is given up after so many bytes, delivered or not.
#[test]
fn a_fill_ends_early_when_it_has_much_to_do() {
    let mut a = Nic::new(&Ram::new(&[(0x1000, 0x100_0000)]), 64, V1, 0, 1);
    let mut b = Nic::new(&Ram::new(&[(0x1000, 0x100_0000)]), 64, V1, 0, 2);
    let mut wire = Wire::new((&a, 0), (&b, 0));
    for _ in 0..20 {
        assert!(a.send(NetHdr::default(), &[8; 60_000], &Shape::plain()));
        assert!(b.post(&[70_000], None));
    }
    wire.tx.drain(&mut wire.batch, &wire.from_vm);
    let frames: Vec<u8> = (0..20).collect();
    let filled = wire
        .rx
        .fill(&mut wire.batch, &frames, &mut wire.scratch, &wire.to_vm);
    assert_eq!(filled.done, 5);
    assert_eq!(b.recv().len(), 5);
    let filled = wire.rx.fill(
        &mut wire.batch,
        &frames[5..],
        &mut wire.scratch,
        &wire.to_vm,
    );
    assert_eq!((filled.done, b.recv().len()), (5, 5));
}

#[test]
fn a_burst_has_a_limit() {
    let mut r = rig(V1, 128);
    r.send(1, 100);
    assert_eq!(r.wire.pump(), BURST);
    assert_eq!(r.wire.pump(), 100 - BURST);
    assert_eq!(r.wire.pump(), 0);
}

#[test]
fn a_reset_queue_knows_nothing_of_its_session() {
    let mut r = rig(V1, 8);
    r.wire.rx.reset();
    assert!(!r.wire.rx.is_running() && !r.wire.rx.is_enabled());
    let config = r.b.ring.config();
    assert!(r.wire.rx.start(&config, 0).is_err(), "no memory");
    let mut fresh = RxQueue::default();
    assert_eq!(fresh.stopped(), Some(Stopped::NotReady));
    assert!(!fresh.has_work());
}
