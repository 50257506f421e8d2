//! Notifications: wanted exactly when the driver's event is passed, and never lost.

mod driver;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use driver::*;
use proptest::prelude::*;
use tandem_virtio_net::spec::*;
use tandem_virtio_net::{Batch, Call, Counters, TxQueue};

const V1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT: u64 = 1 << VIRTIO_F_EVENT_IDX;
const PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
const REGIONS: [(u64, u64); 1] = [(0x1000, 0x20_0000)];

/// A TX queue and its driver.
struct Rig {
    nic: Nic,
    wire: Wire,
}

impl Rig {
    fn new(size: u16, features: u64, base: u16) -> Self {
        let ram = Ram::new(&REGIONS);
        let nic = Nic::new(&ram, size, features, base, 1);
        let idle = Nic::new(&Ram::new(&REGIONS), 1, V1, 0, 2);
        let wire = Wire::new((&nic, base), (&idle, 0));
        Self { nic, wire }
    }

    /// Sends a burst and has it used. True if the driver was called.
    fn burst(&mut self, frames: usize, buffers: usize) -> bool {
        let shape = Shape {
            cuts: vec![20],
            most: buffers,
            indirect: None,
        };
        let sent = (0..frames)
            .filter(|_| self.nic.send(NetHdr::default(), &[1; 60], &shape))
            .count();
        assert!(sent > 0 && self.wire.pump() == sent);
        self.nic.reap();
        self.wire.tx_calls.take() != 0
    }
}

#[derive(Clone, Debug)]
struct Burst {
    frames: usize,
    buffers: usize,
    /// Where the driver's event is, from what it has seen used.
    event: i32,
}

fn bursts() -> impl Strategy<Value = Vec<Burst>> {
    let burst = (1usize..=8, 1usize..4, -9i32..20).prop_map(|(frames, buffers, event)| Burst {
        frames,
        buffers,
        event,
    });
    prop::collection::vec(burst, 1..60)
}

proptest! {
    #![proptest_config(cases(200))]

    /// 2.7.7.2: called if used_event is among the entries just used.
    #[test]
    fn split_calls_exactly_when_the_event_is_passed(bursts in bursts(), base in any::<u16>()) {
        let mut rig = Rig::new(32, V1 | EVENT, base);
        for (n, b) in bursts.iter().enumerate() {
            let Ring::Split(ring) = &rig.nic.ring else { unreachable!() };
            let (seen, at) = (ring.seen, ring.event_addr());
            let event = seen.wrapping_add(b.event as u16);
            rig.nic.ram.store(at, event);
            let called = rig.burst(b.frames, b.buffers);
            let Ring::Split(ring) = &rig.nic.ring else { unreachable!() };
            // The first time after a start nobody knows what the driver has seen.
            prop_assert_eq!(called, n == 0 || passed(event, ring.seen, seen));
        }
    }

    /// 2.8.14: called if the descriptor of the event is among those just passed.
    #[test]
    fn packed_calls_exactly_when_the_event_is_passed(
        bursts in bursts(),
        size in 24u16..40,
        base in any::<u16>(),
        wrap in any::<bool>(),
    ) {
        let base = (base % size) | u16::from(wrap) << 15;
        let mut rig = Rig::new(size, V1 | EVENT | PACKED, base);
        for (n, b) in bursts.iter().enumerate() {
            let Ring::Packed(ring) = &rig.nic.ring else { unreachable!() };
            let (seen, driver) = (ring.seen.0, ring.config.driver);
            let event = seen.wrapping_add_signed(b.event.into());
            rig.nic.ram.store(driver, At(event).off_wrap(size));
            rig.nic.ram.store(driver + 2, EVENT_FLAGS_DESC);
            let called = rig.burst(b.frames, b.buffers);
            let Ring::Packed(ring) = &rig.nic.ring else { unreachable!() };
            prop_assert_eq!(called, n == 0 || (seen..ring.seen.0).contains(&event));
        }
    }
}

#[test]
fn without_event_index_the_flags_decide() {
    for features in [V1, V1 | PACKED] {
        let mut rig = Rig::new(16, features, 0);
        rig.nic.ring.arm();
        assert!(rig.burst(2, 1));
        assert!(rig.burst(2, 1));
        rig.nic.ring.disarm();
        assert!(!rig.burst(2, 1));
        rig.nic.ring.arm();
        assert!(rig.burst(2, 1));
    }
    // Packed, with the feature: flags still may say always or never.
    let mut rig = Rig::new(16, V1 | PACKED | EVENT, 0);
    let driver = rig.nic.ring.config().driver;
    for (flags, called) in [(EVENT_FLAGS_ENABLE, true), (EVENT_FLAGS_DISABLE, false)] {
        rig.nic.ram.store(driver + 2, flags);
        assert_eq!(rig.burst(3, 1), called);
        assert_eq!(rig.burst(3, 1), called);
    }
}

#[test]
fn kicks_are_asked_for_and_declined() {
    for features in [V1, V1 | EVENT, V1 | PACKED, V1 | PACKED | EVENT] {
        let mut rig = Rig::new(16, features, 0);
        for lap in 0..50 {
            assert!(rig.wire.tx.set_kicks(true).is_none());
            assert!(!rig.wire.tx.has_work());
            assert!(rig.nic.send(NetHdr::default(), &[0; 60], &Shape::plain()));
            assert!(rig.nic.ring.must_kick(), "lap {lap} of {features:#x}");
            assert!(rig.wire.tx.has_work());
            assert!(rig.wire.tx.set_kicks(false).is_none());
            assert!(rig.nic.send(NetHdr::default(), &[0; 60], &Shape::plain()));
            assert!(!rig.nic.ring.must_kick(), "lap {lap} of {features:#x}");
            rig.wire.pump_all();
            rig.nic.reap();
        }
    }
}

/// An RX ring is filled or dropped on: nobody waits for its buffers.
#[test]
fn receive_buffers_are_posted_without_kicks() {
    for features in [V1, V1 | PACKED, V1 | PACKED | EVENT] {
        let ram = Ram::new(&REGIONS);
        let mut nic = Nic::new(&ram, 16, features, 0, 1);
        let mut rx = tandem_virtio_net::RxQueue::default();
        rx.set_memory(ram.memory()).unwrap();
        rx.start(&nic.ring.config(), 0).unwrap(); // not enabled yet
        assert!(nic.post(&[100], None));
        assert!(!nic.ring.must_kick());
    }
}

/// Wakes a thread up, as an eventfd does: once for any number of times.
struct Bell(SyncSender<()>);

impl Call for Bell {
    fn call(&self) {
        let _ = self.0.try_send(());
    }
}

fn bell() -> (Arc<Bell>, Receiver<()>) {
    let (tx, rx) = sync_channel(1);
    (Arc::new(Bell(tx)), rx)
}

fn wait(bell: &Receiver<()>, who: &str) {
    let rang = bell.recv_timeout(Duration::from_secs(20));
    assert!(rang.is_ok(), "{who} sleeps and nobody will wake it");
}

/// Both sides sleep whenever they have nothing to do.
fn sleepers(features: u64, size: u16) {
    const FRAMES: usize = 20_000;
    let mut nic = Nic::new(&Ram::new(&REGIONS), size, features, 0x8000, 1);
    let mut tx = TxQueue::default();
    tx.set_memory(nic.ram.memory()).unwrap();
    tx.start(&nic.ring.config(), 0x8000, None).unwrap();
    tx.set_enabled(true);
    let ((kick, kicked), (call, called)) = (bell(), bell());
    tx.set_call(Some(call));
    std::thread::scope(|s| {
        s.spawn(move || {
            let (mut batch, counters) = (Batch::new(), Counters::default());
            while counters.frames() < FRAMES as u64 {
                if tx.drain(&mut batch, &counters) != 0 {
                    batch.clear();
                    if let Some(c) = tx.complete() {
                        c.call();
                    }
                    continue;
                }
                if let Some(c) = tx.set_kicks(true) {
                    c.call();
                }
                let work = tx.has_work();
                if !work {
                    wait(&kicked, "the device");
                }
                assert!(tx.set_kicks(false).is_none());
            }
            if let Some(c) = tx.give_back() {
                c.call();
            }
        });
        let mut sent = 0;
        while sent < FRAMES || nic.offered() != 0 {
            nic.ring.disarm();
            while sent < FRAMES && nic.send(NetHdr::default(), &[3; 60], &Shape::plain()) {
                sent += 1;
                if nic.ring.must_kick() {
                    kick.call();
                }
            }
            if nic.reap() == 0 && !nic.ring.arm() {
                wait(&called, "the driver");
            }
        }
    });
}

#[test]
fn no_notification_is_lost() {
    for features in [V1, V1 | EVENT, V1 | PACKED, V1 | PACKED | EVENT] {
        for size in [1, 4, 64] {
            sleepers(features, size);
        }
    }
}
