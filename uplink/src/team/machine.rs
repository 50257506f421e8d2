//! Which members of a team work, and why the others do not. No I/O and no clock: links, frames and
//! moments come in, frames and conditions go out.

use std::collections::BTreeMap;
use std::time::Duration;

use super::lacp::{Group, Mux, Port, Timer};
use super::probe::{Probe, Prober};
use super::{Mode, lacp};
use crate::{Mac, Now};

/// The key of our ports (IEEE 802.1AX, 6.3.5). A team has a system identifier of its own, so that one
/// key is enough.
const KEY: u16 = 1;

/// Probes in a row that are not answered by a member that is dead.
const MISSES: u32 = 3;

/// What decides over the members of a team.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What the other end knows.
    pub mode: Mode,
    /// How often the ends of a link hear of each other; for LACP.
    pub timer: Timer,
    /// How paths that are dead behind a live link are found, and the time between two probes.
    pub probe: Option<(Probe, Duration)>,
}

/// How a member is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Frames may come in by it.
    pub collects: bool,
    /// Frames may leave by it.
    pub works: bool,
    /// Why not, in words.
    pub reason: Option<String>,
}

/// The members of a team, and what is known of them.
pub struct Machine {
    settings: Settings,
    team: u64,
    seats: BTreeMap<u32, Seat>,
    /// Made with the first member, whose address is the system's from then on.
    group: Option<Group>,
    prober: Option<Prober>,
}

struct Seat {
    mac: Mac,
    up: bool,
    /// It came up beside members that are known to be alive: it is to show first that it is, too.
    must_prove: bool,
    /// Its number in the group.
    port: Option<u16>,
}

impl Machine {
    /// One without members. `team` is a random number of the team's own.
    pub fn new(settings: Settings, team: u64) -> Self {
        let probe = settings.probe;
        Self {
            team,
            prober: probe.map(|(probe, interval)| Prober::new(probe, interval, MISSES, team)),
            settings,
            seats: BTreeMap::new(),
            group: None,
        }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes other settings. Members stay what they are, unless the mode is another one.
    pub fn configure(&mut self, settings: Settings, now: Now) {
        let probe = settings.probe;
        if settings.mode != self.settings.mode {
            let seats = std::mem::take(&mut self.seats);
            *self = Self::new(settings, self.team);
            for (id, Seat { mac, up, .. }) in seats {
                self.add(id, mac);
                self.set_link(id, up, now);
            }
            return;
        }
        if let Some(group) = &mut self.group {
            group.set_timer(settings.timer);
        }
        if probe != self.settings.probe {
            let new = |(probe, interval)| Prober::new(probe, interval, MISSES, self.team);
            let mut prober = probe.map(new);
            for (id, seat) in &self.seats {
                if let Some(prober) = &mut prober {
                    prober.add(*id, seat.mac);
                    prober.set_link(*id, seat.up, now);
                }
            }
            self.prober = prober;
        }
        self.settings = settings;
    }

    /// Adds a member with the device address `mac`, whose link is down.
    pub fn add(&mut self, id: u32, mac: Mac) {
        let port = (self.settings.mode == Mode::Lacp).then(|| {
            let timer = self.settings.timer;
            let group = self
                .group
                .get_or_insert_with(|| Group::new(mac, KEY, timer));
            group.add()
        });
        if let Some(prober) = &mut self.prober {
            prober.add(id, mac);
        }
        let up = false;
        let must_prove = false;
        let seat = Seat {
            mac,
            up,
            must_prove,
            port,
        };
        self.seats.insert(id, seat);
    }

    /// Removes a member.
    pub fn remove(&mut self, id: u32) {
        if let Some(prober) = &mut self.prober {
            prober.remove(id);
        }
        let seat = self.seats.remove(&id);
        if let (
            Some(Seat {
                port: Some(port), ..
            }),
            Some(group),
        ) = (seat, &mut self.group)
        {
            group.remove(port);
        }
    }

    /// The link of a member is up, or down.
    pub fn set_link(&mut self, id: u32, up: bool, now: Now) {
        let prober = self.prober.as_ref();
        let lives = |id: &u32| prober.and_then(|prober| prober.alive(*id)) == Some(true);
        let others_live = self.seats.keys().any(|other| *other != id && lives(other));
        let Some(seat) = self.seats.get_mut(&id) else {
            return;
        };
        if seat.up == up {
            return;
        }
        seat.up = up;
        seat.must_prove = others_live;
        if let Some(prober) = &mut self.prober {
            prober.set_link(id, up, now);
        }
        if let (Some(port), Some(group)) = (seat.port, &mut self.group) {
            group.set_link(port, up, now);
        }
    }

    /// Takes a frame that came in by a member and is for the team. What is to be sent at once goes to
    /// `send`.
    pub fn receive(&mut self, id: u32, frame: &[u8], now: Now, send: &mut dyn FnMut(u32, &[u8])) {
        let Some(seat) = self.seats.get(&id) else {
            return;
        };
        // The other end may have sent by any link what answers one of us.
        let whose = self
            .seats
            .iter()
            .find(|(_, seat)| frame.starts_with(&seat.mac.0));
        let whose = whose.map_or(id, |(id, _)| *id);
        let prober = self.prober.as_mut();
        if prober.is_some_and(|prober| prober.receive(whose, frame, now)) {
            return;
        }
        if let (Some(port), Some(group)) = (seat.port, &mut self.group)
            && let Some(mut answer) = group.receive(port, frame, now)
        {
            answer[6..12].copy_from_slice(&seat.mac.0);
            send(id, &answer);
        }
    }

    /// So many frames to single stations have come in by a member, in all: signs of life.
    pub fn heard(&mut self, id: u32, frames: u64, now: Now) {
        if let Some(prober) = &mut self.prober {
            prober.heard(id, frames, now);
        }
    }

    /// Whether [`Machine::heard`] is of use.
    pub fn is_probing(&self) -> bool {
        self.prober.is_some()
    }

    /// Lets time pass. `send` says whether the frame was sent: else the device has no room.
    pub fn run(&mut self, now: Now, send: &mut dyn FnMut(u32, &[u8]) -> bool) {
        if let Some(prober) = &mut self.prober {
            let mut full = Vec::new();
            prober.run(now, |id, frame| {
                if !send(id, &frame) {
                    full.push(id);
                }
            });
            full.into_iter().for_each(|id| prober.not_sent(id));
        }
        let Some(group) = &mut self.group else {
            return;
        };
        let seats = &self.seats;
        let mut full = Vec::new();
        group.run(now, |port, pdu| {
            let seat = seats.iter().find(|(_, seat)| seat.port == Some(port));
            let sent = seat.is_some_and(|(id, seat)| send(*id, &pdu.frame(seat.mac)));
            if !sent {
                full.push(port);
            }
        });
        full.into_iter().for_each(|port| group.not_sent(port, now));
    }

    /// When [`Machine::run`] has something to do without being asked.
    pub fn next(&self) -> Option<Now> {
        let group = self.group.as_ref().and_then(Group::next);
        let prober = self.prober.as_ref().and_then(Prober::next);
        group.into_iter().chain(prober).min()
    }

    /// How a member is.
    pub fn condition(&self, id: u32) -> Condition {
        let Some(seat) = self.seats.get(&id) else {
            return Condition::default();
        };
        if !seat.up {
            return Condition {
                // What comes in has come over a link: the other end may know of it before we do.
                collects: self.settings.mode != Mode::Lacp,
                works: false,
                reason: Some(lacp::Reason::NoLink.to_string()),
            };
        }
        let (Some(port), Some(group)) = (self.lacp(id), &self.group) else {
            let prober = self.prober.as_ref();
            return Condition {
                collects: true,
                works: prober.is_none_or(|prober| self.may_be_used(prober, id)),
                reason: prober
                    .and_then(|p| p.reason(id))
                    .map(|reason| reason.to_string()),
            };
        };
        let reason = seat.port.and_then(|port| group.reason(port));
        // There are no probes with LACP.
        Condition {
            collects: port.mux() >= Mux::Collecting,
            works: port.mux() == Mux::Distributing,
            reason: reason.map(|reason| reason.to_string()),
        }
    }

    /// One of which nothing is known yet is not used if others were known to be alive when it came: the
    /// switch at its other end may not forward yet.
    fn may_be_used(&self, prober: &Prober, id: u32) -> bool {
        let waits = self.seats.get(&id).is_some_and(|seat| seat.must_prove);
        prober.alive(id).unwrap_or(!waits)
    }

    /// What LACP knows of a member.
    pub fn lacp(&self, id: u32) -> Option<&Port> {
        let port = self.seats.get(&id)?.port?;
        self.group.as_ref()?.port(port)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn mac(n: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, n])
    }

    /// Two teams whose members are wired to each other, one to one.
    struct Wired {
        ends: [Machine; 2],
        now: Now,
        cut: bool,
    }

    impl Wired {
        fn new(modes: [Mode; 2]) -> Self {
            let mut n = 0;
            let ends = modes.map(|mode| {
                let timer = Timer::Fast;
                let probe = None;
                let mut machine = Machine::new(Settings { mode, timer, probe }, 7);
                for id in 0..2 {
                    n += 1;
                    machine.add(id, mac(n));
                    machine.set_link(id, true, Now(0));
                }
                machine
            });
            Self {
                ends,
                now: Now(0),
                cut: false,
            }
        }

        fn run(&mut self, for_: Duration) {
            let end = self.now + for_;
            while self.now < end {
                for at in 0..2 {
                    let mut frames = Vec::new();
                    self.ends[at].run(self.now, &mut |id, f| {
                        frames.push((id, f.to_vec()));
                        true
                    });
                    for (id, frame) in frames.into_iter().filter(|_| !self.cut) {
                        self.ends[1 - at].receive(id, &frame, self.now, &mut |_, _| {});
                    }
                }
                self.now = self.now + Duration::from_millis(50);
            }
        }

        fn works(&self, end: usize) -> [bool; 2] {
            [0, 1].map(|id| self.ends[end].condition(id).works)
        }
    }

    #[test]
    fn without_lacp_a_link_that_is_up_works() {
        let mut wired = Wired::new([Mode::Static, Mode::SwitchIndependent]);
        assert_eq!((wired.works(0), wired.works(1)), ([true; 2], [true; 2]));
        assert_eq!(wired.ends[0].next(), None);
        wired.ends[0].set_link(1, false, Now(0));
        assert_eq!(wired.works(0), [true, false]);
        let reason = wired.ends[0].condition(1).reason.unwrap();
        assert_eq!(reason, "the link is down");
        wired.ends[0].remove(1);
        assert_eq!(wired.ends[0].condition(1), Condition::default());
    }

    #[test]
    fn with_lacp_both_ends_have_to_agree() {
        let mut wired = Wired::new([Mode::Lacp, Mode::Lacp]);
        assert_eq!(wired.works(0), [false; 2]);
        wired.run(Duration::from_secs(3));
        assert_eq!((wired.works(0), wired.works(1)), ([true; 2], [true; 2]));
        let port = wired.ends[0].lacp(1).unwrap();
        assert_eq!(
            (port.actor().system, port.partner().system),
            (mac(1), mac(3))
        );
        wired.ends[0].set_link(0, false, wired.now);
        wired.run(Duration::from_millis(100));
        assert_eq!(wired.works(0), [false, true]);
        wired.cut = true;
        wired.run(Duration::from_secs(4));
        assert_eq!(wired.works(0), [false; 2]);
        let reason = wired.ends[0].condition(1).reason.unwrap();
        assert!(reason.contains("no LACP partner answers"), "{reason}");
        let mut alone = Wired::new([Mode::Lacp, Mode::Static]);
        alone.run(Duration::from_secs(9));
        assert_eq!(alone.works(0), [false; 2]);
    }
}
