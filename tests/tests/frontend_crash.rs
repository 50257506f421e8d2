//! The daemon is killed under load, again and again: nothing arrives twice or out of order, at most
//! a burst or two is lost each time, no ring stands still, and every buffer comes back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tandem_tests::frontend::driver::{Config, Nic, Queue, Ring};
use tandem_tests::frontend::frames::{mac, number_of, numbered};
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::session::Order;
use tandem_tests::frontend::spec::{self, NetHdr};
use tandem_tests::frontend::wire::PATIENCE;
use tandem_tests::lab::say;
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;

/// The ports, with addresses known from the start: nothing is flooded.
const PORTS: [&str; 2] = ["a,mac=52:54:00:00:00:01", "b,mac=52:54:00:00:00:02"];
/// How often the daemon is killed.
const ROUNDS: u64 = 20;
/// Frames a driver has in its TX ring at most: no more than one burst, so that the daemon may have
/// all of them when it dies.
const IN_RING: usize = 48;
/// Frames sent and not yet seen by the other end: fewer than it has buffers, so that only a crash
/// loses any.
const IN_FLIGHT: u64 = 200;
/// Frames of one burst of the daemon.
const BURST: u64 = 64;

/// How a driver learns of used buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    /// It looks all the time and asks for no calls, as DPDK: completions come late.
    Polls,
    /// It looks when called and never else, as Linux.
    IsCalled,
}

/// One queue of a driver that is called.
#[derive(Default)]
struct Doze {
    asleep: bool,
}

impl Doze {
    /// Whether the driver looks at the queue now.
    fn awake(&mut self, queue: &Queue) -> bool {
        self.asleep &= !queue.take_call();
        !self.asleep
    }

    /// Nothing is left to do: sleep until called, unless something came meanwhile.
    fn rest(&mut self, queue: &mut Queue) {
        self.asleep = !queue.ring.arm();
    }
}

/// What the sides tell each other and the test, by side.
#[derive(Default)]
struct Shared {
    /// The next number it expects: all before were received or lost.
    expects: [AtomicU64; 2],
    /// The frames it got.
    got: [AtomicU64; 2],
    stop: AtomicBool,
}

impl Shared {
    fn load(numbers: &[AtomicU64; 2]) -> [u64; 2] {
        [0, 1].map(|i| numbers[i].load(Ordering::Relaxed))
    }

    /// What each side has missed so far.
    fn missing(&self) -> [u64; 2] {
        let (expects, got) = (Self::load(&self.expects), Self::load(&self.got));
        [0, 1].map(|i| expects[i].saturating_sub(got[i]))
    }

    /// Waits until both sides got `count` more frames: nothing stands still.
    fn wait_for_more(&self, count: u64) -> Result<()> {
        let (before, end) = (Self::load(&self.got), Instant::now() + PATIENCE);
        while [0, 1]
            .iter()
            .any(|&i| Self::load(&self.got)[i] < before[i] + count)
        {
            let now = Self::load(&self.got);
            ensure!(
                Instant::now() < end,
                "stuck: {now:?} frames after {before:?}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// A VM that sends numbered frames to the other and checks those it gets.
struct Side {
    nic: Nic,
    me: usize,
    driver: Driver,
    next: u64,
    dozes: [Doze; 2],
}

impl Side {
    fn new(rig: &Rig, me: usize, driver: Driver, config: &Config) -> Result<Self> {
        let mut nic = rig.nic(["a", "b"][me], config)?;
        let pair = &mut nic.pairs[0];
        pair.rx.ring.disarm();
        pair.tx.ring.disarm();
        Ok(Side {
            nic,
            me,
            driver,
            next: 0,
            dozes: Default::default(),
        })
    }

    /// Sends and receives until told to stop.
    fn run(&mut self, shared: &Shared) {
        while !shared.stop.load(Ordering::Relaxed) {
            if self.receive(shared) + self.send(shared) > 0 {
                continue;
            }
            let pair = &self.nic.pairs[0];
            match self.driver {
                Driver::Polls => std::thread::yield_now(),
                Driver::IsCalled if self.dozes[1].asleep => pair.tx.wait_call(MOMENT),
                Driver::IsCalled => pair.rx.wait_call(MOMENT),
            }
        }
    }

    fn receive(&mut self, shared: &Shared) -> u64 {
        let called = self.driver == Driver::IsCalled;
        if called && !self.dozes[0].awake(&self.nic.pairs[0].rx) {
            return 0;
        }
        let mut count = 0;
        let mut expected = shared.expects[self.me].load(Ordering::Relaxed);
        while let Some((_, frame)) = self.nic.try_recv(0) {
            let number = number_of(&frame);
            assert!(
                number >= expected,
                "{number} came again: expected {expected}"
            );
            expected = number + 1;
            count += 1;
        }
        shared.got[self.me].fetch_add(count, Ordering::Relaxed);
        shared.expects[self.me].store(expected, Ordering::Relaxed);
        if called && count == 0 {
            self.dozes[0].rest(&mut self.nic.pairs[0].rx);
        }
        count
    }

    /// Sends what the ring and the other end have room for.
    fn send(&mut self, shared: &Shared) -> u64 {
        let called = self.driver == Driver::IsCalled;
        let tx = &mut self.nic.pairs[0].tx;
        if called && !self.dozes[1].awake(tx) {
            return 0;
        }
        tx.reclaim();
        let room = (IN_RING - tx.ring.held()) as u64;
        let seen = shared.expects[1 - self.me].load(Ordering::Relaxed);
        let count = room.min((seen + IN_FLIGHT).saturating_sub(self.next));
        let [from, to] = [self.me, 1 - self.me].map(|side| mac(side as u8 + 1));
        let burst: Vec<_> = (self.next..self.next + count)
            .map(|number| (NetHdr::default(), numbered(from, to, number)))
            .collect();
        self.next += count;
        self.nic.send_burst(&burst);
        if called && room == 0 {
            self.dozes[1].rest(&mut self.nic.pairs[0].tx);
        }
        count
    }

    /// The bases a VMM may send after it lost the back-end: what VMMs do, then what else they might.
    fn bases(&self, round: u64) -> Vec<u32> {
        let rings = || [&self.nic.pairs[0].rx.ring, &self.nic.pairs[0].tx.ring];
        match round % 3 {
            0 => self.nic.bases_after_loss(),
            1 => rings().map(Ring::avail_base).to_vec(),
            _ => rings().map(Ring::fresh_base).to_vec(),
        }
    }
}

/// How long a driver sleeps before it looks whether the test goes on.
const MOMENT: Duration = Duration::from_millis(1);

/// Runs both sides while `body` does something to the daemon.
fn under_load<T>(
    sides: &mut [Side; 2],
    shared: &Shared,
    body: impl FnOnce() -> Result<T>,
) -> Result<T> {
    shared.stop.store(false, Ordering::Relaxed);
    std::thread::scope(|scope| {
        let threads = sides
            .each_mut()
            .map(|side| scope.spawn(|| side.run(shared)));
        let result = body();
        shared.stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("a driver complains");
        }
        result
    })
}

/// Connects both sides to the new daemon. What it counts as dropped for each: frames that were
/// waiting in the one's ring before the other was there.
fn come_back(rig: &Rig, sides: &mut [Side; 2], round: u64) -> Result<[u64; 2]> {
    for side in sides.iter_mut() {
        let bases = side.bases(round);
        side.nic.reconnect(&bases)?;
    }
    let counters = rig.settled()?;
    for port in counters.ports.values() {
        let early = port.to_vm_drops.keys().all(|reason| reason == "not_ready");
        ensure!(early && port.from_vm_drops.is_empty(), "{counters:#?}");
    }
    Ok(["a", "b"].map(|name| counters.ports[name].drops()))
}

fn killed_again_and_again(driver: Driver, order: Order, features: u64) -> Result<()> {
    let mut rig = Rig::new(&PORTS)?;
    let config = Config {
        order,
        transmit: (IN_RING, 256),
        ..Config::with(features | spec::MRG_RXBUF)
    };
    let mut sides = [
        Side::new(&rig, 0, driver, &config)?,
        Side::new(&rig, 1, driver, &config)?,
    ];
    let shared = Shared::default();
    let (mut excused, mut most) = ([0; 2], 0);
    for round in 0..=ROUNDS {
        let before = shared.missing();
        under_load(&mut sides, &shared, || {
            shared.wait_for_more(300 + 61 * round % 200)?;
            let now = shared.missing();
            for i in 0..2 {
                let lost = (now[i] - before[i]).saturating_sub(excused[i]);
                ensure!(lost <= 2 * BURST, "{lost} lost by one crash");
                most = most.max(lost);
            }
            if round < ROUNDS {
                rig.daemon.restart_after_crash()?;
            }
            Ok(())
        })?;
        if round < ROUNDS {
            excused = come_back(&rig, &mut sides, round)?;
        }
    }
    say(&format!(
        "      {driver:?}, {order:?}, {features:#x}: at most {most} frames lost by a crash"
    ));
    all_comes_back(&rig, &mut sides, &shared)
}

/// What is under way now arrives, and the daemon holds no buffer back.
fn all_comes_back(rig: &Rig, sides: &mut [Side; 2], shared: &Shared) -> Result<()> {
    for side in sides.iter_mut() {
        side.nic.flush();
    }
    rig.settled()?;
    for side in sides.iter_mut() {
        side.dozes = Default::default();
        side.receive(shared);
    }
    let sent = [sides[1].next, sides[0].next];
    ensure!(Shared::load(&shared.expects) == sent, "the last were lost");
    Ok(())
}

macro_rules! crashes {
    ($($(#[$attribute:meta])* $name:ident: $driver:ident, $order:ident, $features:expr;)*) => {$(
        #[test]
        $(#[$attribute])*
        fn $name() -> Result<()> {
            killed_again_and_again(Driver::$driver, Order::$order, $features)
        }
    )*};
}

crashes! {
    split_polls_qemu: Polls, Qemu72, 0;
    split_polls_cloud_hypervisor: Polls, CloudHypervisor, spec::EVENT_IDX;
    split_is_called_qemu: IsCalled, Qemu72, spec::EVENT_IDX;
    split_is_called_cloud_hypervisor: IsCalled, CloudHypervisor, 0;
    split_in_order_cloud_hypervisor: Polls, CloudHypervisor, spec::IN_ORDER;
    packed_polls_qemu: Polls, Qemu10, spec::RING_PACKED;
    packed_polls_cloud_hypervisor: Polls, CloudHypervisor, spec::RING_PACKED | spec::EVENT_IDX;
    packed_is_called_qemu: IsCalled, Qemu72, spec::RING_PACKED | spec::EVENT_IDX;
    packed_is_called_cloud_hypervisor: IsCalled, CloudHypervisor, spec::RING_PACKED;
}

/// The daemon dies between handing frames to the receiver and saying so in the sender's ring, as
/// the ring and the daemon's record then stand. The frames do not arrive again, the sender gets its
/// buffers, and it is told of them even if it has no room left to send more.
#[test]
fn killed_between_delivery_and_completion() -> Result<()> {
    let mut rig = Rig::new(&PORTS)?;
    for order in Order::ALL {
        let config = Config {
            order,
            ..Config::default()
        };
        let (mut a, mut b) = (rig.nic("a", &config)?, rig.nic("b", &config)?);
        for number in 0..10 {
            a.send_plain(&numbered(mac(1), mac(2), number));
            assert_eq!(number_of(&b.recv().1), number);
        }
        let used = a.pairs[0].tx.ring.parts().used;
        while a.ram.load16(used + 2) != 10 {
            std::thread::yield_now();
        }
        rig.daemon.restart_after_crash()?;
        let taken_back = 10 - a.pairs[0].tx.ring.held() as u16;
        a.ram.store16(used + 2, taken_back);
        while a.pairs[0].tx.take_call() {}
        assert!(!a.pairs[0].tx.ring.arm());
        for nic in [&mut b, &mut a] {
            let bases = nic.bases_after_loss();
            nic.reconnect(&bases)?;
        }
        a.pairs[0].tx.wait_call(PATIENCE);
        assert!(
            a.pairs[0].tx.take_call(),
            "nobody says that buffers came back"
        );
        a.flush();
        a.send_plain(&numbered(mac(1), mac(2), 10));
        assert_eq!(number_of(&b.recv().1), 10);
        drop((a, b));
        rig.wait_disconnected("a")?;
        rig.wait_disconnected("b")?;
    }
    Ok(())
}

/// QEMU starts a ring with a call descriptor that it listens to only while the guest's interrupt is
/// masked, throws away what came there, and then gives the guest's: a frame that arrives in between
/// must be told of again, or its guest sleeps on.
#[test]
fn a_frame_between_two_call_descriptors() -> Result<()> {
    let rig = Rig::new(&PORTS)?;
    for features in [0, spec::EVENT_IDX, spec::RING_PACKED | spec::EVENT_IDX] {
        let config = Config::with(features);
        let (mut a, mut b) = (rig.nic("a", &config)?, rig.nic("b", &config)?);
        let masked = EventFd::new(libc::EFD_NONBLOCK)?;
        b.session()?.frontend().set_vring_call(0, &masked)?;
        b.session()?.sync()?;
        assert!(!b.pairs[0].rx.ring.arm());
        a.send_plain(&numbered(mac(1), mac(2), 0));
        a.flush();
        let end = Instant::now() + PATIENCE;
        while masked.read().is_err() {
            ensure!(Instant::now() < end, "no call at all");
        }
        let usual = b.pairs[0].rx.call.clone();
        b.session()?.frontend().set_vring_call(0, &usual)?;
        b.pairs[0].rx.wait_call(PATIENCE);
        assert!(
            b.pairs[0].rx.take_call(),
            "{features:#x}: the guest sleeps on"
        );
        assert_eq!(number_of(&b.recv().1), 0);
        drop((a, b));
        rig.wait_disconnected("a")?;
        rig.wait_disconnected("b")?;
    }
    Ok(())
}
