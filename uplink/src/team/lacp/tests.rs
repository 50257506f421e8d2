//! Two groups with wires between them, in made-up time.

use std::time::Duration;

use super::*;

const MS: u64 = 1_000_000;

/// Two ends, and whether each wire carries frames from a to b and back.
struct World {
    a: Group,
    b: Group,
    wires: Vec<[bool; 2]>,
    now: Now,
    /// PDUs sent by a.
    sent: u64,
}

impl World {
    fn new(wires: usize, timers: [Timer; 2]) -> Self {
        let system = |n| Mac([2, 0, 0, 0, 0, n]);
        let mut world = Self {
            a: Group::new(system(1), 1, timers[0]),
            b: Group::new(system(2), 2, timers[1]),
            wires: vec![[true; 2]; wires],
            now: Now(1),
            sent: 0,
        };
        for _ in 0..wires {
            let (a, b) = (world.a.add(), world.b.add());
            world.a.set_link(a, true, world.now);
            world.b.set_link(b, true, world.now);
        }
        world
    }

    /// Lets time pass in steps of a millisecond; frames take one.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let source = Mac([2, 0, 0, 0, 0, 9]);
        while self.now < end {
            let (mut to_b, mut to_a) = (Vec::new(), Vec::new());
            self.a.run(self.now, |port, pdu| to_b.push((port, pdu)));
            self.b.run(self.now, |port, pdu| to_a.push((port, pdu)));
            self.sent += to_b.len() as u64;
            self.now = Now(self.now.0 + MS);
            for (port, pdu) in to_b {
                if self.wires[usize::from(port) - 1][0] {
                    self.b.receive(port, &pdu.frame(source), self.now);
                }
            }
            for (port, pdu) in to_a {
                if self.wires[usize::from(port) - 1][1] {
                    self.a.receive(port, &pdu.frame(source), self.now);
                }
            }
        }
    }

    /// Whether each port of both ends distributes.
    fn distributing(&self) -> Vec<[bool; 2]> {
        let on = |group: &Group, number| {
            let port = group.port(number);
            port.is_some_and(|port| port.mux() == Mux::Distributing)
        };
        let ports = 1..=self.wires.len() as u16;
        ports.map(|n| [on(&self.a, n), on(&self.b, n)]).collect()
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_group_comes_up_at_once_and_goes_on_with_few_frames() {
    for (timers, each_minute) in [
        ([Timer::Fast, Timer::Fast], 60),
        ([Timer::Slow, Timer::Slow], 2),
        // Each sends as the other wants it.
        ([Timer::Slow, Timer::Fast], 60),
        ([Timer::Fast, Timer::Slow], 2),
    ] {
        let mut world = World::new(2, timers);
        world.pass(Duration::from_millis(100));
        assert_eq!(world.distributing(), [[true; 2]; 2], "{timers:?}");
        world.pass(seconds(30));
        let before = world.sent;
        world.pass(seconds(120));
        let sent = world.sent - before;
        assert!(
            sent.abs_diff(2 * 2 * each_minute) <= 2,
            "{timers:?}: {sent}"
        );
        assert_eq!(world.distributing(), [[true; 2]; 2]);
        assert_eq!((world.a.reason(1), world.b.reason(2)), (None, None));
        let partner = world.a.partner().unwrap();
        assert_eq!((partner.system.0[5], partner.key), (2, 2));
    }
}

#[test]
fn a_partner_that_falls_silent_is_left_in_three_seconds() {
    let mut world = World::new(2, [Timer::Fast; 2]);
    world.pass(seconds(10));
    world.wires[0] = [true, false];
    world.pass(Duration::from_millis(2_900));
    // The standard lets it be silent for three seconds from its last word on.
    world.pass(Duration::from_millis(200));
    // Told so, the other end stops as well.
    assert_eq!(world.distributing(), [[false; 2], [true; 2]]);
    assert_eq!(world.a.reason(1), Some(Reason::NoPartner));
    assert_eq!(world.a.port(1).unwrap().receive(), Receive::Expired);
    world.pass(seconds(3));
    assert_eq!(world.a.port(1).unwrap().receive(), Receive::Defaulted);
    world.wires[0] = [true; 2];
    world.pass(Duration::from_millis(1_200));
    assert_eq!(world.distributing(), [[true; 2]; 2]);
}

#[test]
fn frames_are_sent_only_to_an_end_that_takes_them() {
    // At no moment does one end distribute what the other does not collect.
    let mut world = World::new(2, [Timer::Fast; 2]);
    for step in 0..20_000 {
        world.pass(Duration::from_millis(1));
        if step == 3_000 {
            world.a.set_link(1, false, world.now);
            world.b.set_link(1, false, world.now);
        }
        if step == 5_000 {
            world.a.set_link(1, true, world.now);
            world.b.set_link(1, true, world.now);
        }
        if step == 9_000 {
            world.wires[1] = [false; 2];
        }
        if step == 14_000 {
            world.wires[1] = [true; 2];
        }
        let collects = |group: &Group, n| group.port(n).unwrap().mux() >= Mux::Collecting;
        for (n, [a, b]) in (1..).zip(world.distributing()) {
            // Nobody can know at once that a wire is cut.
            let is_cut = n == 2 && (9_000..17_000).contains(&step);
            assert!(!a || collects(&world.b, n) || is_cut, "{step}");
            assert!(!b || collects(&world.a, n) || is_cut, "{step}");
        }
    }
    assert_eq!(world.distributing(), [[true; 2]; 2]);
}

#[test]
fn a_port_with_another_partner_is_left_out() {
    let mut world = World::new(3, [Timer::Fast; 2]);
    let mut other = Group::new(Mac([2, 0, 0, 0, 0, 3]), 2, Timer::Fast);
    let port = other.add();
    other.set_link(port, true, world.now);
    world.wires[2] = [false; 2];
    for _ in 0..5_000 {
        world.pass(Duration::from_millis(1));
        let mut heard = Vec::new();
        other.run(world.now, |_, pdu| heard.push(pdu));
        for pdu in heard {
            world.a.receive(3, &pdu.frame(Mac::default()), world.now);
        }
    }
    assert_eq!(world.a.reason(3), Some(Reason::OtherPartner));
    assert_eq!(world.distributing()[..2], [[true; 2]; 2]);
    // With the two others gone it is what is left.
    world.a.set_link(1, false, world.now);
    world.a.set_link(2, false, world.now);
    world.a.run(world.now, |_, _| {});
    assert_eq!(world.a.partner().unwrap().system.0[5], 3);
}

#[test]
fn a_port_that_is_alone_hears_itself_and_is_not_its_own_partner() {
    let mut group = Group::new(Mac([2, 0, 0, 0, 0, 1]), 1, Timer::Fast);
    let port = group.add();
    group.set_link(port, true, Now(1));
    for ms in 0..10_000 {
        let now = Now(1 + ms * MS);
        let mut sent = Vec::new();
        group.run(now, |_, pdu| sent.push(pdu));
        for pdu in sent {
            group.receive(port, &pdu.frame(Mac::default()), now);
        }
    }
    assert_eq!(group.reason(port), Some(Reason::NoPartner));
    assert_eq!(group.port(port).unwrap().receive(), Receive::Defaulted);
}

#[test]
fn it_says_when_it_has_something_to_do() {
    // Run only when it says so, it does the same as when run all the time.
    let mut world = World::new(1, [Timer::Fast; 2]);
    world.pass(seconds(2));
    let mut a = world.a.clone();
    let mut ran = 0;
    let mut now = world.now;
    let end = now + seconds(20);
    while let Some(next) = a.next().filter(|next| *next < end) {
        now = next.max(now);
        a.run(now, |_, _| {});
        ran += 1;
        assert!(ran < 100, "it is never done");
    }
    world.wires[0] = [true, false];
    world.pass(seconds(20));
    let state = |group: &Group| {
        let port = group.port(1).unwrap();
        (port.receive(), port.mux(), port.actor().state)
    };
    assert_eq!(state(&a), state(&world.a));
}

#[test]
fn no_more_than_three_pdus_a_second_whatever_is_heard() {
    let mut world = World::new(1, [Timer::Fast; 2]);
    world.pass(seconds(5));
    let before = world.sent;
    for key in 0..5_000 {
        world.b.set_key(key);
        world.pass(Duration::from_millis(1));
    }
    assert!(world.sent - before <= 3 * 6, "{}", world.sent - before);
}
