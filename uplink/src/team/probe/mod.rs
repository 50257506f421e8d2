//! Finds members whose link is up but whose path is dead: a switch that forwards nothing any more, or
//! has lost its own uplink. No I/O and no clock: frames, counters and moments come in, frames and
//! judgements go out.
//!
//! A probe is sent by all members at once, so that they can be compared; members are judged by nothing
//! else. When a member lacks an answer, all send four times as often, so that one lost frame decides
//! nothing. It is dead when it has shown nothing for `misses` intervals and a half (for the last answer
//! to come), while another member was answered all the time. If none is answered, the network may be
//! as it likes: all stay what they are.
//!
//! Frames from the wire that were for our ports are a sign of life too: where a line is so full that
//! probes are lost, there are many. But they only show that frames come in, so that they count for no
//! longer than ten times as long without a single answer. What the NIC had no room to send is not
//! missed.
//!
//! A member comes back when all its probes are answered for two intervals, that is three of them.
//!
//! Heartbeats have no target: a member is answered when it hears one of the others and one of the others
//! hears it. Where no member is, as one of two is dead or the network does not pass the frames, what
//! comes in decides: who receives nothing while another does is dead. See [`Prober::run`].
//!
//! What is believed can be forged by anyone in the VLAN, as ARP can: a path that is dead may seem to work.

mod frame;
mod member;
mod reason;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use self::frame::Heartbeat;
use self::member::Member;
pub use self::reason::Reason;
use crate::{Mac, Now};

/// Times between two probes that are possible.
pub const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(10);

/// Heartbeats older than so many rounds are strays.
const MAX_AGE: u64 = 64;

/// How members are probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A station is asked for its address: by ARP (RFC 826, RFC 5227) or by neighbour discovery
    /// (RFC 4861). No address of our own is needed.
    Target {
        /// The station's address: one beyond the switches whose failure matters.
        address: IpAddr,
        /// The VLAN, if the frames are to have a tag.
        vlan: Option<u16>,
    },
    /// The members listen for each other, through the network.
    Heartbeat {
        /// The VLAN, if the frames are to have a tag.
        vlan: Option<u16>,
    },
}

/// How long things take, as multiples of the interval.
#[derive(Clone, Copy, Debug)]
struct Times {
    interval: Duration,
    /// Between probes while an answer lacks.
    urgent: Duration,
    /// After the last answer, the next is missing.
    missing: Duration,
    /// After the last sign of life, a member is dead.
    limit: Duration,
    /// After the last answer, a member is dead whatever else comes in.
    grace: Duration,
    /// So long all probes are answered before a member comes back.
    returning: Duration,
}

impl Times {
    fn new(interval: Duration, misses: u32) -> Self {
        let interval = interval.clamp(*INTERVALS.start(), *INTERVALS.end());
        let limit = interval * misses.clamp(1, 1000) + interval / 2;
        Self {
            interval,
            urgent: interval / 4,
            missing: interval * 5 / 4,
            limit,
            grace: limit * 10,
            returning: interval * 2,
        }
    }
}

/// Probes the members of a team.
#[derive(Clone, Debug)]
pub struct Prober {
    probe: Probe,
    times: Times,
    team_id: u64,
    members: BTreeMap<u32, Member>,
    /// When probes were sent last; none: they are to be sent at once.
    probed_at: Option<Now>,
    /// The number of the last round.
    sequence: u64,
    /// The target's station, once it has answered.
    station: Option<Mac>,
}

impl Prober {
    /// One without members. `interval` is between two probes, see [`INTERVALS`], beyond which it is not
    /// taken; so many `misses` in a row, at least one, are a death. `team_id` is a random number of the
    /// team's own, by which it knows its heartbeats.
    pub fn new(probe: Probe, interval: Duration, misses: u32, team_id: u64) -> Self {
        Self {
            probe,
            times: Times::new(interval, misses),
            team_id,
            members: BTreeMap::new(),
            probed_at: None,
            sequence: 0,
            station: None,
        }
    }

    /// Adds a member with the device address `mac`, whose link is down.
    pub fn add(&mut self, id: u32, mac: Mac) {
        self.members.insert(id, Member::new(mac));
    }

    /// Removes a member.
    pub fn remove(&mut self, id: u32) {
        self.members.remove(&id);
        self.leave_one();
    }

    /// The link of a member is up, or down. One that has come up is probed at once, and nothing is
    /// judged before that.
    pub fn set_link(&mut self, id: u32, up: bool, now: Now) {
        match self.members.get_mut(&id) {
            Some(member) if member.link != up => member.set_link(up, now),
            _ => return,
        }
        if up {
            self.probed_at = None;
        } else {
            self.leave_one();
        }
    }

    /// If all that are left are dead, they are so in comparison with others that are gone.
    fn leave_one(&mut self) {
        let mut up = self.members.values().filter(|member| member.link);
        if up.all(|member| member.alive == Some(false)) {
            let up = self.members.values_mut().filter(|member| member.link);
            up.for_each(Member::forget_judgement);
        }
    }

    /// Takes a frame that came in by a member. Whether it was for the prober.
    pub fn receive(&mut self, id: u32, frame: &[u8], now: Now) -> bool {
        let Some(member) = self.members.get_mut(&id) else {
            return false;
        };
        match self.probe {
            Probe::Target { address, vlan } => {
                let station = frame::answer(frame, address, member.mac, vlan);
                if station.is_some() && member.link {
                    self.station = station;
                    member.answer(now, &self.times);
                }
                station.is_some()
            }
            Probe::Heartbeat { vlan } => match Heartbeat::read(frame, vlan) {
                Some(beat) if beat.team == self.team_id => {
                    self.hear(id, &beat, now);
                    true
                }
                _ => false,
            },
        }
    }

    /// A member hears another.
    fn hear(&mut self, by: u32, beat: &Heartbeat, now: Now) {
        let age = self.sequence.checked_sub(beat.sequence);
        let is_up = |id: &u32| self.members.get(id).is_some_and(|member| member.link);
        let pair = [by, beat.member];
        // By a loop it may hear itself, and what is old.
        if by == beat.member || !pair.iter().all(is_up) || age.is_none_or(|age| age >= MAX_AGE) {
            return;
        }
        for id in pair {
            if let Some(member) = self.members.get_mut(&id) {
                let at = if id == by {
                    &mut member.hears_at
                } else {
                    &mut member.is_heard_at
                };
                *at = Some(now);
                member.beat(&self.times);
            }
        }
    }

    /// The number of all frames to single stations that came in by a member and were not for the prober.
    /// To be told before each [`Prober::run`].
    pub fn heard(&mut self, id: u32, unicast_frames_total: u64, now: Now) {
        if let Some(member) = self.members.get_mut(&id) {
            member.set_frames(unicast_frames_total, now);
        }
    }

    /// What [`Prober::run`] gave to send by a member was not sent, as the NIC is full.
    pub fn not_sent(&mut self, id: u32) {
        if let Some(member) = self.members.get_mut(&id) {
            member.unsent = true;
        }
    }

    /// When [`Prober::run`] has something to do without being asked.
    pub fn next(&self) -> Option<Now> {
        let mut up = self
            .members
            .values()
            .filter(|member| member.link)
            .peekable();
        up.peek()?;
        let Some(last) = self.probed_at else {
            return Some(Now::default());
        };
        let soonest = last + self.times.urgent;
        let urgent = up.filter_map(|member| {
            let (from, until) = member.urgent(&self.times)?;
            let at = from.max(soonest);
            (at < until).then_some(at)
        });
        urgent.chain([last + self.times.interval]).min()
    }

    /// Judges, when it is time to, and hands the next probes to `send`: the member, and the frame.
    ///
    /// A member is dead when, of these, one holds for long enough:
    /// - another was answered, it was not, and no frames came in by it (or for ten times as long, even
    ///   though frames did);
    /// - of heartbeats, when none is answered: nothing came in by it, and on another there did;
    /// - likewise: it hears another, none hears it, and frames came in on one that does not.
    pub fn run(&mut self, now: Now, mut send: impl FnMut(u32, Vec<u8>)) {
        if self.next().is_none_or(|next| now < next) {
            return;
        }
        self.excuse(now);
        self.judge(now);
        self.explain(now);
        self.members
            .values_mut()
            .for_each(|member| member.unsent = false);
        self.probed_at = Some(now);
        self.sequence += 1;
        let station = self.station.filter(|_| !self.lacks_answers(now));
        for (id, member) in self.members.iter().filter(|(_, member)| member.link) {
            send(*id, self.frame(*id, member.mac, station));
        }
    }

    /// The probe of a member, to the target's station if that is known.
    fn frame(&self, id: u32, mac: Mac, station: Option<Mac>) -> Vec<u8> {
        match self.probe {
            Probe::Target { address, vlan } => frame::request(address, station, mac, vlan),
            Probe::Heartbeat { vlan } => {
                let beat = Heartbeat {
                    team: self.team_id,
                    member: id,
                    sequence: self.sequence,
                };
                beat.frame(mac, vlan)
            }
        }
    }

    /// Another station may have the target's address by now: all are to be asked.
    fn lacks_answers(&self, now: Now) -> bool {
        let mut lacking = self.members.values().filter_map(|m| m.urgent(&self.times));
        lacking.any(|(from, _)| now >= from)
    }

    /// What was not sent cannot be answered: by a NIC that is full, or while nobody called.
    fn excuse(&mut self, now: Now) {
        let Some(last) = self.probed_at else {
            return;
        };
        let time = Duration::from_nanos(now.0.saturating_sub(last.0));
        let late = time.saturating_sub(self.times.interval);
        let sent = |member: &Member| member.link && !member.unsent;
        let senders = self.members.values().filter(|member| sent(member)).count();
        let listens = matches!(self.probe, Probe::Heartbeat { .. });
        for member in self.members.values_mut() {
            let others = senders - usize::from(sent(member));
            let all = member.unsent || (listens && others == 0);
            member.excuse(if all { time } else { late }, now);
        }
    }

    fn judge(&mut self, now: Now) {
        let ids: Vec<u32> = self.members.keys().copied().collect();
        for id in ids {
            let Some((reason, witness)) = self.death(id, now) else {
                continue;
            };
            if let Some(member) = self.members.get_mut(&id) {
                member.die(reason);
            }
            // The last one that is in use gives its place to the one that is better.
            let mut up = self.members.values().filter(|member| member.link);
            if up.all(|member| member.alive == Some(false))
                && let Some(witness) = self.members.get_mut(&witness)
            {
                (witness.alive, witness.reason) = (Some(true), None);
            }
        }
    }

    /// Why a member that is in use is dead, and which other one shows it.
    fn death(&self, id: u32, now: Now) -> Option<(Reason, u32)> {
        let member = self.members.get(&id)?;
        if !member.link || member.alive == Some(false) {
            return None;
        }
        let find = |shows: &dyn Fn(&Member) -> bool| {
            let mut others = self
                .members
                .iter()
                .filter(|(other, m)| **other != id && m.link);
            others
                .find(|(_, other)| shows(other))
                .map(|(other, _)| *other)
        };
        let silence = member.silent(&self.times, now)?;
        let better = find(&|other| other.answered_meanwhile(silence, &self.times));
        if let Some(witness) = better {
            return Some((Reason::Silent, witness));
        }
        self.death_unanswered(member, now, find)
    }

    /// The same for heartbeats where no member is answered. One that never was is not judged: it may be
    /// that the network does not pass them.
    fn death_unanswered(
        &self,
        member: &Member,
        now: Now,
        find: impl Fn(&dyn Fn(&Member) -> bool) -> Option<u32>,
    ) -> Option<(Reason, u32)> {
        let is_beat = matches!(self.probe, Probe::Heartbeat { .. });
        if !is_beat || member.alive.is_none() {
            return None;
        }
        let times = &self.times;
        let deaf_since = member.hears_at.unwrap_or_default().max(member.silent_since);
        if now >= deaf_since + times.limit {
            let meanwhile = deaf_since + (times.limit - times.interval);
            // That one which is not heard gets frames does not make it better.
            let is_better = |other: &Member| other.reason != Some(Reason::Unheard);
            let hears = find(&|other| is_better(other) && other.received_at() >= Some(meanwhile));
            return hears.map(|witness| (Reason::Deaf, witness));
        }
        let meanwhile = member.unanswered_since + (times.grace - times.interval);
        let unheard = now >= member.unanswered_since + times.grace
            && member.hears_at >= Some(meanwhile)
            && member.is_heard_at < Some(meanwhile);
        let receives = |other: &Member| other.frames_at >= Some(meanwhile);
        let witness = if unheard { find(&receives) } else { None };
        witness.map(|witness| (Reason::Unheard, witness))
    }

    /// Says what is wrong with members that are not dead.
    fn explain(&mut self, now: Now) {
        let limit = self.times.limit;
        let lacks = |member: &Member| now >= member.unanswered_since + limit;
        let none = self.members.values().filter(|m| m.link).all(lacks);
        for member in self.members.values_mut() {
            if !member.link || member.alive == Some(false) {
                continue;
            }
            member.reason = match (self.probe, lacks(member)) {
                (Probe::Target { .. }, true) if none => Some(Reason::TargetSilent),
                (Probe::Heartbeat { .. }, true) if none => Some(Reason::NoHeartbeats),
                _ if member.alive.is_none() => Some(Reason::Unproven),
                (_, true) => Some(Reason::FramesOnly),
                (_, false) => None,
            };
        }
    }

    /// Whether a member is alive; none if that is not known, as it has just come up, the probes are
    /// answered nowhere, or there is no such member. It may be used then, but one that is alive is better.
    pub fn alive(&self, id: u32) -> Option<bool> {
        let member = self.members.get(&id)?;
        if member.link {
            member.alive
        } else {
            Some(false)
        }
    }

    /// What is wrong with a member, if anything is: why it is dead, or not known to be alive, or could
    /// not be judged if it died.
    pub fn reason(&self, id: u32) -> Option<Reason> {
        self.members.get(&id)?.reason
    }
}

#[cfg(test)]
mod tests;
