//! Buffers that are given back a burst late, and frames that are not delivered twice for that, not
//! even when the process dies.
#![allow(unsafe_code)]

mod driver;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use driver::*;
use tandem_virtio_net::TxQueue;
use tandem_virtio_net::ring::{JOURNAL_BYTES, Journal};
use tandem_virtio_net::spec::*;

const V1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT: u64 = 1 << VIRTIO_F_EVENT_IDX;
const PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
const IN_ORDER: u64 = 1 << VIRTIO_F_IN_ORDER;
const REGIONS: [(u64, u64); 1] = [(0x1000, 0x8_0000)];
const WRAP: u16 = 0x8000;

/// Two drivers that poll.
struct Rig {
    a: Nic,
    b: Nic,
    wire: Wire,
}

fn rig(features: u64, size: u16) -> Rig {
    let mut a = Nic::new(&Ram::new(&REGIONS), size, features, WRAP, 1);
    let b = Nic::new(&Ram::new(&REGIONS), size, features, WRAP, 2);
    a.ring.disarm();
    let wire = Wire::new((&a, WRAP), (&b, WRAP));
    Rig { a, b, wire }
}

impl Rig {
    /// Sends frames that are numbered from `first`.
    fn send(&mut self, first: u8, n: u8) {
        for i in first..first + n {
            assert!(self.b.post(&[2000], None));
            assert!(self.a.send(NetHdr::default(), &[i; 60], &Shape::plain()));
        }
    }

    /// The numbers of the frames that have arrived.
    fn arrived(&mut self) -> Vec<u8> {
        self.b.recv().iter().map(|g| g.frame[0]).collect()
    }

    fn exchange(&mut self, first: u8, n: u8) -> Vec<u8> {
        self.send(first, n);
        self.wire.pump();
        self.arrived()
    }
}

#[test]
fn a_driver_that_polls_gets_its_buffers_a_burst_late() {
    for features in [V1, V1 | PACKED, V1 | IN_ORDER, V1 | PACKED | EVENT] {
        let mut r = rig(features, 32);
        assert_eq!(r.exchange(0, 3), [0, 1, 2], "the frames are not late");
        assert_eq!((r.a.reap(), r.wire.tx.is_late()), (0, true));
        assert_eq!(r.exchange(3, 2), [3, 4]);
        assert_eq!(r.a.reap(), 3);
        assert!(r.wire.tx.give_back().is_none());
        assert_eq!((r.a.reap(), r.wire.tx.is_late()), (2, false));
        // More of the ring than the driver can do without.
        r.exchange(5, 9);
        assert_eq!(r.a.reap(), 9);
    }
}

#[test]
fn a_driver_that_may_wait_for_its_buffers_gets_them_at_once() {
    for features in [V1, V1 | PACKED] {
        let mut r = rig(features, 32);
        r.a.ring.arm();
        r.exchange(0, 3);
        assert_eq!(r.a.reap(), 3);
    }
    // With the event index only the driver knows whether it waits.
    let mut r = rig(V1 | EVENT, 32);
    r.exchange(0, 3);
    assert_eq!(r.a.reap(), 3);
}

/// What counts are the descriptors that a driver has to do without.
#[test]
fn chains_are_late_by_their_descriptors() {
    let pieces = |most| Shape {
        cuts: vec![20],
        most,
        indirect: None,
    };
    for features in [V1, V1 | PACKED] {
        for (most, given_back) in [(2, 0), (3, 3)] {
            let mut r = rig(features, 32);
            for _ in 0..3 {
                assert!(r.b.post(&[2000], None));
                assert!(r.a.send(NetHdr::default(), &[9; 60], &pieces(most)));
            }
            r.wire.pump();
            assert_eq!(r.a.reap(), given_back);
        }
    }
}

/// What ends the life of a ring, or lets us sleep.
#[test]
fn nothing_is_held_over_when_a_queue_stops() {
    let ends: [fn(&mut TxQueue); 4] = [
        |tx| assert!(tx.stop().is_some()),
        |tx| tx.reset(),
        |tx| tx.set_enabled(false),
        |tx| drop(tx.set_kicks(true)),
    ];
    for features in [V1, V1 | PACKED] {
        for end in ends {
            let mut r = rig(features, 32);
            r.exchange(0, 3);
            assert!(r.wire.tx.is_late());
            end(&mut r.wire.tx);
            assert_eq!((r.a.reap(), r.wire.tx.is_late()), (3, false));
        }
        let mut r = rig(features, 32);
        r.exchange(0, 3);
        let copy = r.a.ram.duplicate();
        r.wire.tx.set_memory(copy.memory()).unwrap();
        assert_eq!(r.a.reap(), 3, "in the memory where the ring was");
    }
}

/// A record that outlives the queues that use it.
struct Record(Arc<Vec<AtomicU64>>);

impl Record {
    fn new() -> Self {
        Self(Arc::new(
            (0..JOURNAL_BYTES / 8).map(|_| AtomicU64::new(0)).collect(),
        ))
    }

    fn journal(&self) -> Journal {
        let words = self.0.as_ptr().cast_mut().cast::<u8>();
        // SAFETY: the record has JOURNAL_BYTES and lives as long as `keep`; queues use it in turn.
        unsafe { Journal::new(words, Arc::clone(&self.0) as Arc<_>) }
    }
}

impl Rig {
    /// The process dies and another one goes on with the ring, of which the VMM knows no more
    /// than where it once started.
    fn crash(&mut self, record: &Record) {
        let mut tx = TxQueue::default();
        tx.set_memory(self.a.ram.memory()).unwrap();
        tx.start(&self.a.ring.config(), WRAP, None).unwrap();
        tx.keep_position(record.journal());
        tx.set_enabled(true);
        std::mem::forget(std::mem::replace(&mut self.wire.tx, tx));
        self.wire.batch.clear();
    }
}

#[test]
fn what_was_delivered_before_a_crash_is_not_delivered_again() {
    for features in [V1, V1 | PACKED, V1 | IN_ORDER, V1 | PACKED | IN_ORDER] {
        for late in [false, true] {
            let record = Record::new();
            let mut r = rig(features, 32);
            r.crash(&record);
            if !late {
                r.a.ring.arm();
            }
            assert_eq!(r.exchange(0, 3), [0, 1, 2]);
            // It dies before these are completed, or any of them, and those before if they are late.
            r.send(3, 2);
            assert_eq!(r.wire.tx.drain(&mut r.wire.batch, &r.wire.from_vm), 2);
            r.wire.fill();
            assert_eq!(r.arrived(), [3, 4]);
            r.a.reap();
            r.send(5, 1);
            r.crash(&record);
            assert_eq!(r.a.offered(), 1 + if late { 5 } else { 2 });
            r.a.reap();
            assert_eq!(r.a.offered(), 1, "what was delivered is used");
            r.wire.pump();
            assert_eq!(r.arrived(), [5]);
            for n in 6..200 {
                assert_eq!(r.exchange(n, 1), [n]);
                r.a.reap();
            }
        }
    }
}

#[test]
fn a_record_that_cannot_be_of_this_ring_is_passed_over() {
    for features in [V1, V1 | PACKED] {
        let record = Record::new();
        let mut r = rig(features, 32);
        r.crash(&record);
        r.exchange(0, 3);
        let mut other = rig(features, 32);
        other.send(7, 3);
        other.crash(&record);
        other.wire.pump();
        assert_eq!(other.arrived(), [7, 8, 9]);
        // Of the ring, but further than the driver has got.
        let mut again = rig(features, 32);
        again.crash(&record);
        again.exchange(0, 3);
        let (ram, config) = (again.a.ram.clone(), again.a.ring.config());
        ram.write(config.desc, &[0; 16 * 32]);
        ram.write(config.driver, &[0; 4]);
        ram.write(config.device, &[0; 4]);
        again.crash(&record);
        assert_eq!(
            again
                .wire
                .tx
                .drain(&mut again.wire.batch, &again.wire.from_vm),
            0
        );
    }
}
