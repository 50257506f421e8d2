//! Members with a network behind them, in made-up time.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;
const INTERVAL: Duration = Duration::from_millis(200);
const TEAM: u64 = 0x0102_0304_0506_0708;
/// The station that is asked for.
const STATION: Mac = Mac([2, 0, 0, 0, 1, 1]);
const V4: Probe = Probe::Target {
    address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    vlan: None,
};
const V6: Probe = Probe::Target {
    address: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0xab, 0x1234)),
    vlan: Some(7),
};
const BEAT: Probe = Probe::Heartbeat { vlan: None };
const TAGGED: Probe = Probe::Heartbeat { vlan: Some(9) };

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn mac(id: u32) -> Mac {
    Mac([2, 0, 0, 0, 0, id as u8])
}

/// What is between a member and the others.
#[derive(Clone)]
struct Path {
    /// Shares of the frames that are lost on the way out and in.
    loses: [f64; 2],
    /// The part of the network at its other end.
    island: u8,
    /// Frames for our ports come in with so many ms between.
    data_every: Option<u64>,
    /// The NIC has room.
    room: bool,
}

struct World {
    prober: Prober,
    paths: Vec<Path>,
    /// The target is up, in island 0.
    target: bool,
    now: Now,
    /// Frames on their way to a member, each for a millisecond.
    wire: VecDeque<(Now, u32, Vec<u8>)>,
    frames: Vec<u64>,
    seed: u64,
    /// Probes sent, and those to one station.
    sent: u64,
    to_station: u64,
}

impl World {
    /// Members from 1 on, whose links are up and who have been probed for a second.
    fn new(probe: Probe, members: u32) -> Self {
        let mut world = Self::cold(probe, members);
        world.pass(seconds(1));
        assert!(world.alive().iter().all(|alive| *alive == Some(true)));
        world
    }

    fn cold(probe: Probe, members: u32) -> Self {
        let mut world = Self {
            prober: Prober::new(probe, INTERVAL, 3, TEAM),
            paths: Vec::new(),
            target: true,
            now: Now(MS),
            wire: VecDeque::new(),
            frames: vec![0; members as usize],
            seed: 0x9e37_79b9_7f4a_7c15,
            sent: 0,
            to_station: 0,
        };
        for id in 1..=members {
            world.prober.add(id, mac(id));
            world.prober.set_link(id, true, world.now);
            world.paths.push(Path {
                loses: [0.0; 2],
                island: 0,
                data_every: None,
                room: true,
            });
        }
        world
    }

    /// A member's path, from 1 on.
    fn path(&mut self, id: u32) -> &mut Path {
        &mut self.paths[id as usize - 1]
    }

    fn cut(&mut self, id: u32) {
        self.path(id).loses = [1.0; 2];
        self.path(id).data_every = None;
    }

    fn mend(&mut self, id: u32) {
        self.path(id).loses = [0.0; 2];
    }

    /// A number from 0 to 1 (xorshift64).
    fn random(&mut self) -> f64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 11) as f64 / (1u64 << 53) as f64
    }

    fn loses(&mut self, id: u32, direction: usize) -> bool {
        let share = self.path(id).loses[direction];
        self.random() < share
    }

    fn ids(&self) -> std::ops::RangeInclusive<u32> {
        1..=self.paths.len() as u32
    }

    fn alive(&self) -> Vec<Option<bool>> {
        self.ids().map(|id| self.prober.alive(id)).collect()
    }

    fn reasons(&self) -> Vec<Option<Reason>> {
        self.ids().map(|id| self.prober.reason(id)).collect()
    }

    /// Lets time pass.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step(end);
        }
    }

    /// Lets time pass, and looks that nobody is taken for dead.
    fn pass_alive(&mut self, time: Duration, what: &str) {
        let end = self.now + time;
        while self.now < end {
            self.step(end);
            let dead = self.ids().find(|id| self.prober.alive(*id) == Some(false));
            let (now, seed) = (self.now.0 / MS, self.seed);
            assert_eq!(dead, None, "{what}: at {now} ms, seed {seed}");
        }
    }

    /// How long it takes until a member is dead, or alive.
    fn time_until(&mut self, id: u32, alive: bool) -> Duration {
        let start = self.now;
        while self.prober.alive(id) != Some(alive) {
            self.step(self.now + ms(1));
            assert!(self.now < start + seconds(60), "never {alive}");
        }
        Duration::from_nanos(self.now.0 - start.0)
    }

    /// Goes to the next moment of which something is known, in whole milliseconds, at most to `end`.
    fn step(&mut self, end: Now) {
        let after = |every: u64| Now((self.now.0 / MS / every + 1) * every * MS);
        let data = self
            .paths
            .iter()
            .filter_map(|path| path.data_every.map(after));
        let frame = self.wire.front().map(|(at, ..)| *at);
        let due = self.prober.next().map(|at| Now(at.0.next_multiple_of(MS)));
        let next = data.chain(frame).chain(due).min();
        self.now = next.unwrap_or(end).max(after(1)).min(end);
        self.come_in();
        let mut sent = Vec::new();
        self.prober
            .run(self.now, |id, frame| sent.push((id, frame)));
        for (id, frame) in sent {
            self.send(id, &frame);
        }
        assert!(self.prober.next().is_none_or(|next| next > self.now));
    }

    /// Lets come in what is due.
    fn come_in(&mut self) {
        while self.wire.front().is_some_and(|(at, ..)| *at <= self.now) {
            let (_, id, frame) = self.wire.pop_front().unwrap();
            let ours = self.prober.receive(id, &frame, self.now);
            assert_eq!(
                ours,
                self.prober.members.contains_key(&id),
                "it is for the prober"
            );
        }
        for id in self.ids() {
            if let Some(every) = self.path(id).data_every
                && (self.now.0 / MS).is_multiple_of(every)
                && !self.loses(id, 1)
            {
                self.frames[id as usize - 1] += 1;
            }
            let total = self.frames[id as usize - 1];
            self.prober.heard(id, total, self.now);
        }
    }

    fn send(&mut self, id: u32, frame: &[u8]) {
        self.sent += 1;
        self.to_station += u64::from(frame[..6] == STATION.0);
        assert_eq!(frame[6..12], mac(id).0);
        if !self.path(id).room {
            self.prober.not_sent(id);
        } else if !self.loses(id, 0) {
            self.network(id, frame);
        }
    }

    fn network(&mut self, from: u32, frame: &[u8]) {
        let island = self.path(from).island;
        match self.prober.probe {
            Probe::Heartbeat { .. } => {
                for to in self.ids().filter(|to| *to != from) {
                    if self.path(to).island == island {
                        self.deliver(to, frame.to_vec());
                    }
                }
            }
            Probe::Target { address, vlan } if self.target && island == 0 => {
                self.deliver(from, reply(frame, address, vlan));
            }
            Probe::Target { .. } => {}
        }
    }

    fn deliver(&mut self, to: u32, frame: Vec<u8>) {
        if !self.loses(to, 1) {
            self.wire.push_back((self.now + ms(1), to, frame));
        }
    }
}

/// RFC 1071, word by word.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The sum over an ICMPv6 packet with its pseudo-header (RFC 8200, 8.1): zero if it is right.
fn icmp_sum(packet: &[u8]) -> u16 {
    let len = [0, 0, packet[4], packet[5], 0, 0, 0, 58];
    let end = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    checksum(&[&packet[8..40], &len, &packet[40..end]].concat())
}

/// What the station answers to a request, by the figures of the RFCs.
fn reply(request: &[u8], target: IpAddr, vlan: Option<u16>) -> Vec<u8> {
    assert!(request.len() >= 60);
    let at = if vlan.is_some() { 18 } else { 14 };
    let (header, packet) = request.split_at(at);
    let asker = &header[6..12];
    let mut frame = [asker, &STATION.0, &header[12..]].concat();
    if let Some(vid) = vlan {
        assert_eq!(header[12..16], [0x81, 0, (vid >> 8) as u8, vid as u8]);
    }
    match target {
        IpAddr::V4(target) => {
            assert_eq!(header[at - 2..], [8, 6]);
            // Ethernet, IPv4, their lengths, a request, of this sender and no address.
            assert_eq!(packet[..8], [0, 1, 8, 0, 6, 4, 0, 1]);
            assert_eq!(packet[8..14], *asker);
            assert_eq!(packet[14..24], [0; 10]);
            assert_eq!(packet[24..28], target.octets());
            frame.extend([0, 1, 8, 0, 6, 4, 0, 2]);
            frame.extend([&STATION.0[..], &target.octets(), asker, &[0; 4]].concat());
        }
        IpAddr::V6(target) => {
            assert_eq!(header[at - 2..], [0x86, 0xdd]);
            // 32 bytes of ICMPv6 that came through no router.
            assert_eq!(packet[..8], [0x60, 0, 0, 0, 0, 32, 58, 255]);
            // A solicitation, with the option that says who asks.
            assert_eq!(packet[40..42], [135, 0]);
            assert_eq!(packet[44..48], [0; 4]);
            assert_eq!(packet[48..64], target.octets());
            assert_eq!(packet[64..66], [1, 1]);
            assert_eq!(packet[66..72], *asker);
            assert_eq!(icmp_sum(packet), 0);
            let mut answer = vec![0x60, 0, 0, 0, 0, 24, 58, 255];
            answer.extend([&target.octets()[..], &packet[8..24]].concat());
            answer.extend([136, 0, 0, 0, 0x60, 0, 0, 0]);
            answer.extend(target.octets());
            let sum = icmp_sum(&answer);
            answer[42..44].copy_from_slice(&sum.to_be_bytes());
            frame.extend(answer);
        }
    }
    frame
}

const YES: Option<bool> = Some(true);
const NO: Option<bool> = Some(false);

#[test]
fn a_dead_path_is_found_within_a_second_and_comes_back_in_another() {
    for (probe, members) in [(V4, 2), (V6, 2), (V4, 5), (BEAT, 3), (TAGGED, 5)] {
        // At each moment between two probes.
        for phase in (0..200).step_by(7) {
            let mut world = World::new(probe, members);
            world.pass(ms(phase));
            world.cut(2);
            let time = world.time_until(2, false);
            assert!(time >= ms(500) && time <= ms(800), "{probe:?}: {time:?}");
            assert_eq!(world.prober.reason(2), Some(Reason::Silent));
            world.pass(seconds(30));
            assert_eq!(
                world.alive().iter().filter(|alive| **alive == YES).count(),
                members as usize - 1
            );
            world.mend(2);
            let time = world.time_until(2, true);
            assert!(time >= ms(400) && time <= ms(700), "{probe:?}: {time:?}");
            assert!(world.reasons().iter().all(Option::is_none));
        }
    }
}

#[test]
fn one_of_two_that_receives_nothing_is_dead() {
    let mut world = World::new(BEAT, 2);
    world.path(1).data_every = Some(100);
    world.cut(2);
    let time = world.time_until(2, false);
    assert!(time <= ms(900), "{time:?}");
    assert_eq!(
        world.reasons(),
        [Some(Reason::NoHeartbeats), Some(Reason::Deaf)]
    );
    assert_eq!(world.prober.alive(1), YES);
    // It gets frames, and the other none any more: they change places.
    world.cut(1);
    world.path(2).data_every = Some(100);
    world.path(2).loses = [0.0; 2];
    world.time_until(1, false);
    assert_eq!(world.alive(), [NO, YES]);
    world.mend(1);
    world.time_until(1, true);
    assert_eq!(world.alive(), [YES, YES]);
    assert_eq!(world.reasons(), [None, None]);
}

#[test]
fn two_that_only_do_not_hear_each_other_are_not_judged() {
    for data in [None, Some(50)] {
        let mut world = World::new(BEAT, 2);
        world.path(2).island = 1;
        world.path(1).data_every = data;
        world.path(2).data_every = data;
        world.pass_alive(seconds(60), "two islands");
        assert_eq!(world.reasons(), [Some(Reason::NoHeartbeats); 2]);
    }
    // Nor those that never heard each other: the network may not pass heartbeats.
    let mut world = World::cold(BEAT, 2);
    world.path(2).island = 1;
    world.path(1).data_every = Some(50);
    world.pass(seconds(60));
    assert_eq!(world.alive(), [None, None]);
    assert_eq!(world.reasons(), [Some(Reason::NoHeartbeats); 2]);
}

#[test]
fn a_path_that_only_takes_frames_in_is_dead() {
    for (probe, members) in [(V4, 2), (V6, 3), (BEAT, 2), (BEAT, 3)] {
        let mut world = World::new(probe, members);
        for id in 1..=members {
            world.path(id).data_every = Some(10);
        }
        world.path(2).loses = [1.0, 0.0];
        let time = world.time_until(2, false);
        assert!(
            time >= seconds(6) && time <= seconds(8),
            "{probe:?}: {time:?}"
        );
        let heard = (probe, members) == (BEAT, 2);
        let reason = if heard {
            Reason::Unheard
        } else {
            Reason::Silent
        };
        assert_eq!(world.prober.reason(2), Some(reason));
        world.pass(seconds(60));
        let alive = world.alive();
        assert_eq!(
            alive.iter().filter(|alive| **alive == NO).count(),
            1,
            "{alive:?}"
        );
    }
}

#[test]
fn of_two_the_one_that_fails_one_way_is_found() {
    // It hears nothing, and nothing else is on the line.
    let mut world = World::new(BEAT, 2);
    world.path(2).loses = [0.0, 1.0];
    let time = world.time_until(2, false);
    assert!(time <= ms(900), "{time:?}");
    assert_eq!(world.alive(), [YES, NO]);
    assert_eq!(world.prober.reason(2), Some(Reason::Deaf));
    // It is not heard, and frames come in on the other so seldom that this is taken for deaf at first.
    for (works, fails) in [(1, 2), (2, 1)] {
        let mut world = World::new(BEAT, 2);
        world.path(works).data_every = Some(1_500);
        world.path(fails).loses = [1.0, 0.0];
        world.pass(seconds(15));
        for _ in 0..100 {
            assert_eq!(world.prober.alive(works), YES);
            assert_eq!(world.prober.reason(fails), Some(Reason::Unheard));
            world.pass(ms(777));
        }
        world.mend(fails);
        world.time_until(fails, true);
        world.pass_alive(seconds(10), "after it");
    }
}

#[test]
fn a_target_that_is_down_kills_nobody() {
    for probe in [V4, V6] {
        for round in 0..40 {
            let mut world = World::new(probe, 3);
            world.seed ^= round << 40;
            // Frames for our ports on one of them make it no better.
            world.path(1).data_every = Some(50);
            for id in 1..=3 {
                world.path(id).loses = [0.05; 2];
            }
            world.pass_alive(ms(1000 + 17 * round), "before");
            world.target = false;
            world.pass_alive(seconds(20), "down");
            assert_eq!(world.reasons(), [Some(Reason::TargetSilent); 3]);
            world.target = true;
            world.pass_alive(seconds(5), "back");
        }
    }
}

#[test]
fn a_line_that_is_full_is_no_dead_one() {
    // Half of all frames are lost each way, for ten minutes.
    for (probe, members) in [(V4, 2), (V6, 3), (BEAT, 2), (BEAT, 4)] {
        for full in [1, members] {
            let mut world = World::new(probe, members);
            for id in 1..=members {
                world.path(id).data_every = Some(20);
            }
            for id in 1..=full {
                world.path(id).loses = [0.5; 2];
            }
            world.pass_alive(seconds(600), "half is lost");
        }
    }
}

#[test]
fn frames_that_are_lost_now_and_then_decide_nothing() {
    // With nothing else on the line.
    for (probe, members) in [(V4, 2), (V6, 3), (BEAT, 2), (BEAT, 4)] {
        let mut world = World::new(probe, members);
        for id in 1..=members {
            world.path(id).loses = [0.05; 2];
        }
        world.pass_alive(seconds(600), "one in twenty is lost");
    }
}

#[test]
fn what_was_not_sent_is_not_missed() {
    for (probe, members) in [(V4, 2), (BEAT, 2), (BEAT, 3)] {
        let mut world = World::new(probe, members);
        world.path(2).room = false;
        world.pass_alive(seconds(30), "no room");
        world.path(2).room = true;
        world.pass_alive(seconds(1), "room again");
        world.path(1).data_every = Some(50);
        world.cut(2);
        let time = world.time_until(2, false);
        assert!(time < seconds(1), "{time:?}");
    }
}

#[test]
fn a_caller_that_was_late_has_missed_nothing() {
    for (probe, members) in [(V4, 2), (BEAT, 2), (BEAT, 3)] {
        let mut world = World::new(probe, members);
        for late in 1..20 {
            world.now = world.now + ms(300 * late);
            world.path(1).data_every = Some(1);
            world.pass_alive(ms(2), "late");
            world.path(1).data_every = None;
            world.pass_alive(seconds(2), "after it");
        }
    }
}

#[test]
fn a_path_that_comes_and_goes_stays_out() {
    let mut world = World::new(V4, 2);
    world.cut(2);
    world.time_until(2, false);
    for _ in 0..50 {
        world.mend(2);
        world.pass(ms(350));
        world.cut(2);
        world.pass(ms(350));
        assert_eq!(world.alive(), [YES, NO]);
    }
}

#[test]
fn a_member_that_came_up_has_to_show_that_it_works() {
    for (probe, members) in [(V4, 2), (BEAT, 3), (BEAT, 2)] {
        let mut world = World::new(probe, members);
        let now = world.now;
        world.prober.set_link(2, false, now);
        assert_eq!(
            (world.prober.alive(2), world.prober.reason(2)),
            (NO, Some(Reason::NoLink))
        );
        world.pass(seconds(5));
        assert_eq!(world.prober.reason(1), None);
        // The switch does not forward at first.
        world.cut(2);
        let now = world.now;
        world.prober.set_link(2, true, now);
        assert_eq!(
            (world.prober.alive(2), world.prober.reason(2)),
            (None, Some(Reason::Unproven))
        );
        world.pass(ms(950));
        // Two alone cannot tell whether heartbeats of the new one would arrive.
        let judged = if (probe, members) == (BEAT, 2) {
            None
        } else {
            NO
        };
        assert_eq!(world.alive()[..2], [YES, judged], "{probe:?}");
        world.pass(seconds(30));
        assert_eq!(world.alive()[..2], [YES, judged], "{probe:?}");
        world.mend(2);
        let time = world.time_until(2, true);
        assert!(time <= ms(700), "{time:?}");
        world.pass_alive(seconds(5), "after it");
    }
}

#[test]
fn who_is_left_is_not_dead_in_comparison_with_nobody() {
    for (probe, members) in [(V4, 2), (BEAT, 3)] {
        for remove in [false, true] {
            let mut world = World::new(probe, members);
            world.cut(2);
            world.time_until(2, false);
            let now = world.now;
            for id in (1..=members).filter(|id| *id != 2) {
                assert_eq!(world.prober.alive(2), NO);
                match remove {
                    true => world.prober.remove(id),
                    false => world.prober.set_link(id, false, now),
                }
            }
            assert_eq!(world.prober.alive(2), None);
            world.pass(seconds(30));
            assert_eq!(world.prober.alive(2), None);
        }
    }
    let mut prober = Prober::new(V4, INTERVAL, 3, TEAM);
    assert_eq!(
        (prober.alive(1), prober.reason(1), prober.next()),
        (None, None, None)
    );
    prober.add(1, mac(1));
    assert_eq!((prober.alive(1), prober.next()), (NO, None));
}

#[test]
fn a_place_is_given_to_one_that_is_better() {
    let mut world = World::new(V4, 2);
    world.cut(2);
    world.time_until(2, false);
    world.mend(2);
    world.cut(1);
    let time = world.time_until(1, false);
    assert!(time < seconds(2), "{time:?}");
    assert_eq!(world.alive(), [NO, YES]);
}

#[test]
fn in_peace_there_is_one_probe_to_one_station_in_an_interval() {
    for (probe, members) in [(V4, 2), (V6, 2), (BEAT, 3)] {
        let mut world = World::new(probe, members);
        (world.sent, world.to_station) = (0, 0);
        world.pass(seconds(60));
        assert_eq!(world.sent, u64::from(members) * 300);
        assert_eq!(world.to_station, if probe == BEAT { 0 } else { world.sent });
        // While a member is dead, too.
        world.cut(2);
        world.pass(seconds(10));
        world.sent = 0;
        world.pass(seconds(60));
        assert_eq!(world.sent, u64::from(members) * 300);
    }
    // A target that is down is asked for by all, with no more frames after a while.
    let mut world = World::new(V4, 2);
    world.target = false;
    world.pass(seconds(10));
    (world.sent, world.to_station) = (0, 0);
    world.pass(seconds(60));
    assert_eq!((world.sent, world.to_station), (600, 0));
}

#[test]
fn short_and_long_intervals_and_one_miss_work() {
    for interval in [ms(50), ms(100), seconds(1), seconds(10)] {
        for misses in [1, 2, 5] {
            for probe in [V4, BEAT] {
                let mut world = World::cold(probe, 3);
                world.prober.times = Times::new(interval, misses);
                world.pass(interval * 4);
                world.pass_alive(interval * 20, "in peace");
                assert_eq!(world.alive(), [YES; 3]);
                world.cut(2);
                let time = world.time_until(2, false);
                assert!(
                    time <= interval * (misses + 1) + ms(3),
                    "{interval:?} {misses}: {time:?}"
                );
            }
        }
    }
    let times = Times::new(Duration::MAX, u32::MAX);
    assert_eq!(times.interval, seconds(10));
    assert_eq!(Times::new(Duration::ZERO, 0).limit, ms(75));
}

#[test]
fn only_what_answers_is_taken_for_an_answer() {
    for probe in [V4, V6] {
        let Probe::Target { address, vlan } = probe else {
            unreachable!()
        };
        let request = frame::request(address, None, mac(1), vlan);
        let answer = reply(&request, address, vlan);
        let accepts = |frame: &[u8]| frame::answer(frame, address, mac(1), vlan).is_some();
        assert!(accepts(&answer));
        assert!(accepts(&[&answer[..], &[0; 30]].concat()));
        for len in 0..answer.len() {
            // The address that asked is not looked at: it is none.
            let enough = probe == V4 && len >= 42;
            assert_eq!(accepts(&answer[..len]), enough, "{probe:?} {len}");
        }
        assert!(!accepts(&request));
        assert!(frame::answer(&answer, address, mac(2), vlan).is_none());
        assert!(frame::answer(&answer, address, mac(1), Some(99)).is_none());
        let elsewhere = "192.0.2.2".parse().unwrap();
        assert!(frame::answer(&answer, elsewhere, mac(1), vlan).is_none());
        let at = if vlan.is_some() { 18 } else { 14 };
        // Anything else in the packet, but for the address of an ARP packet that asked for nothing.
        let looked_at = match probe {
            V4 => (at..at + 8).chain(at + 14..at + 24).collect::<Vec<_>>(),
            _ => (at + 6..at + 64).chain([at + 4, at + 5]).collect(),
        };
        for at in looked_at {
            let mut other = answer.clone();
            other[at] ^= 0x40;
            assert!(!accepts(&other), "{probe:?}: byte {at}");
        }
        // Not solicited.
        if probe == V6 {
            let mut other = answer.clone();
            other[at + 44] = 0x20;
            other[at + 42..at + 44].fill(0);
            let sum = icmp_sum(&other[at..]);
            other[at + 42..at + 44].copy_from_slice(&sum.to_be_bytes());
            assert!(!accepts(&other));
        }
    }
    // A priority is no VLAN, and no tag is as good as one.
    let Probe::Target { address, .. } = V4 else {
        unreachable!()
    };
    let untagged = reply(&frame::request(address, None, mac(1), None), address, None);
    let tagged = [&untagged[..12], &[0x81, 0, 0xa0, 0], &untagged[12..]].concat();
    let answers = |frame: &[u8], vlan| frame::answer(frame, address, mac(1), vlan);
    assert_eq!(answers(&tagged, None), Some(STATION));
    assert_eq!(answers(&untagged, Some(5)), None);
}

#[test]
fn a_solicitation_goes_to_the_group_of_its_target() {
    let Probe::Target { address, .. } = V6 else {
        unreachable!()
    };
    let frame = frame::request(address, None, mac(1), None);
    assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0xab, 0x12, 0x34]);
    // Of the address that 02:00:00:00:00:01 makes, whose global bit is turned.
    let link_local: Ipv6Addr = "fe80::ff:fe00:1".parse().unwrap();
    assert_eq!(frame[22..38], link_local.octets());
    let group: Ipv6Addr = "ff02::1:ffab:1234".parse().unwrap();
    assert_eq!(frame[38..54], group.octets());
    // Or to the station that is known.
    let frame = frame::request(address, Some(STATION), mac(1), None);
    assert_eq!(frame[..6], STATION.0);
    assert_eq!(
        frame[38..54],
        "2001:db8::ab:1234".parse::<Ipv6Addr>().unwrap().octets()
    );
    assert_eq!(icmp_sum(&frame[14..]), 0);
}

#[test]
fn only_the_teams_own_heartbeats_count() {
    let mut prober = Prober::new(BEAT, INTERVAL, 3, TEAM);
    for id in [1, 2] {
        prober.add(id, mac(id));
        prober.set_link(id, true, Now(0));
    }
    let (mut now, mut sent) = (Now(0), Vec::new());
    for _ in 0..100 {
        now = now + INTERVAL;
        prober.run(now, |_, frame| sent.push(frame));
    }
    let beat = Heartbeat {
        team: TEAM,
        member: 2,
        sequence: prober.sequence,
    };
    let frame = beat.frame(mac(2), None);
    assert_eq!(sent.last(), Some(&frame));
    assert_eq!(frame[12..22], *b"\x88\xb5tandem\0\x01");
    let heard = |prober: &Prober| prober.members[&1].hears_at;
    let frames = [
        (true, beat, 2),
        (
            true,
            Heartbeat {
                sequence: beat.sequence - MAX_AGE,
                ..beat
            },
            1,
        ),
        (
            true,
            Heartbeat {
                sequence: beat.sequence + 1,
                ..beat
            },
            1,
        ),
        (true, Heartbeat { member: 9, ..beat }, 1),
        (
            false,
            Heartbeat {
                team: TEAM + 1,
                ..beat
            },
            1,
        ),
    ];
    for (ours, beat, to) in frames {
        assert_eq!(
            prober.receive(to, &beat.frame(mac(2), None), now),
            ours,
            "{beat:?}"
        );
        assert_eq!(heard(&prober), None);
    }
    assert!(
        !prober.receive(1, &beat.frame(mac(2), Some(3)), now),
        "of another VLAN"
    );
    assert!(!prober.receive(9, &frame, now), "by no member");
    for len in 0..42 {
        assert!(!prober.receive(1, &frame[..len], now), "{len}");
    }
    assert!(prober.receive(1, &frame, now));
    assert_eq!(heard(&prober), Some(now));
    // A link that is down hears nothing.
    prober.set_link(1, false, now);
    assert!(prober.receive(1, &frame, now));
    assert_eq!(heard(&prober), None);
}

proptest! {
    #[test]
    fn any_bytes_are_received(bytes in prop::collection::vec(any::<u8>(), 0..120), at in 0usize..80) {
        for probe in [V4, V6, BEAT, TAGGED] {
            let mut prober = Prober::new(probe, INTERVAL, 3, TEAM);
            prober.add(1, mac(1));
            prober.set_link(1, true, Now(1));
            let mut sent = Vec::new();
            prober.run(Now(1), |_, frame| sent.push(frame));
            let mut frame = match probe {
                Probe::Target { address, vlan } => reply(&sent[0], address, vlan),
                Probe::Heartbeat { .. } => sent[0].clone(),
            };
            prober.receive(1, &bytes, Now(2));
            frame.splice(at.min(frame.len()).., bytes.iter().copied());
            prober.receive(1, &frame, Now(2));
        }
    }
}
