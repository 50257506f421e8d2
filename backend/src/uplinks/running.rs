//! A team as it runs.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use log::{info, warn};
use tandem_uplink::nic::links::Link;
use tandem_uplink::team::distribution::Distribution;
use tandem_uplink::team::lacp::Timer;
use tandem_uplink::team::machine::{Condition, Machine, Settings};
use tandem_uplink::team::probe::Probe;
use tandem_uplink::team::{Mode, Place, Plan, Team};
use tandem_uplink::{Forwarder, Mac, Now, Outlet, PortId, PortPolicy, PortSpec, Switch};
use tandem_virtio_net::DropReason;

use super::seat::{Seat, Wire};
use super::{Host, LOOK};
use crate::capture::Captures;
use crate::config::{self, LacpTimer, Lldp, TeamConfig, TeamMode};
use crate::control::{Refused, RefusedKind};
use crate::events::{Event, EventKind};
use crate::status::Failover;

/// The name of an uplink among the ports of its switch: no port that is configured can have it.
const PORT_NAME: &str = "(uplink)";
/// Frames of our own in a second that may come back: where members are on different switches, which
/// flood them, and elsewhere, where there is another path back for a moment after a change.
const FLOODED: u64 = 10_000;
const FEW: u64 = 100;
/// Announcements are repeated once: one may have been lost with the member.
const ANNOUNCEMENTS: u32 = 2;
const AGAIN: Duration = Duration::from_millis(500);

/// A team.
pub(super) struct Running {
    pub(super) name: String,
    pub(super) config: TeamConfig,
    pub(super) team: Arc<Team>,
    pub(super) captures: Captures,
    pub(super) machine: Machine,
    pub(super) seats: Vec<Seat>,
    pub(super) home: Option<Home>,
    pub(super) failovers: u64,
    pub(super) last_failover: Option<Failover>,
    /// As published, by the members' numbers.
    pub(super) conditions: BTreeMap<u32, Condition>,
    pins: Vec<(PortId, String)>,
    /// Something else than conditions has changed since the last plan was published.
    stale: bool,
    announce_at: Option<Now>,
    announcements: u32,
    /// Addresses of our devices that ports of the switch have, too.
    shared: Vec<Mac>,
    look_at: Now,
    /// Frames of our own that had come back when last looked at, and whether they were too many then.
    own_frames: u64,
    pub(super) is_looping: bool,
}

/// The switch that has a team as its uplink.
pub(super) struct Home {
    pub(super) switch: Arc<Switch>,
    port: PortId,
}

impl Home {
    /// Adds the uplink's port to a switch.
    pub(super) fn make(
        switch: &Arc<Switch>,
        team: Arc<Team>,
        policy: PortPolicy,
    ) -> Result<Self, Refused> {
        let received = Arc::clone(team.received());
        let spec = PortSpec {
            uplink: true,
            vlan: policy.vlan,
            storm: policy.storm,
            mac_limit: policy.mac_limit,
            ..PortSpec::new(PORT_NAME, received, team)
        };
        let port = switch.add_port(spec).map_err(not_added)?;
        Ok(Self {
            switch: Arc::clone(switch),
            port,
        })
    }

    pub(super) fn set_policy(&self, policy: PortPolicy) -> Result<(), Refused> {
        self.switch
            .update_port(self.port, policy)
            .map_err(not_added)
    }
}

fn not_added(e: tandem_uplink::switch::SwitchError) -> Refused {
    let refused = Refused::new(RefusedKind::Conflict, e.to_string(), "see tandem port list");
    refused.about("uplink")
}

fn settings(config: &TeamConfig) -> Settings {
    let vlan = config.probe_vlan;
    let probe = match config.probe {
        config::Probe::None => None,
        config::Probe::Heartbeat => Some(Probe::Heartbeat { vlan }),
        config::Probe::Target(address) => Some(Probe::Target { address, vlan }),
    };
    let interval = Duration::from_millis(config.probe_interval_ms.into());
    Settings {
        probe: probe.map(|probe| (probe, interval)),
        mode: match config.mode {
            TeamMode::SwitchIndependent => Mode::SwitchIndependent,
            TeamMode::Static => Mode::Static,
            TeamMode::Lacp => Mode::Lacp,
        },
        timer: match config.lacp_timer {
            LacpTimer::Fast => Timer::Fast,
            LacpTimer::Slow => Timer::Slow,
        },
    }
}

fn machine(settings: Settings) -> Machine {
    // A number that nobody outside can guess.
    Machine::new(settings, RandomState::new().build_hasher().finish())
}

impl Running {
    pub(super) fn new(name: &str, config: &TeamConfig) -> Self {
        let captures = Captures::default();
        Self {
            name: name.to_owned(),
            team: Arc::new(Team::new(Some(captures.tracepoint()))),
            captures,
            machine: machine(settings(config)),
            config: config.clone(),
            seats: Vec::new(),
            home: None,
            failovers: 0,
            last_failover: None,
            conditions: BTreeMap::new(),
            pins: Vec::new(),
            stale: true,
            announce_at: None,
            announcements: 0,
            shared: Vec::new(),
            look_at: Now(0),
            own_frames: 0,
            is_looping: false,
        }
    }

    /// What the switch gives its frames to.
    pub(super) fn outlet(&self) -> Arc<Team> {
        Arc::clone(&self.team)
    }

    pub(super) fn is_uplink_of(&self, switch: &str) -> bool {
        self.home
            .as_ref()
            .is_some_and(|home| home.switch.name() == switch)
    }

    /// Takes other settings: members that stay are not disturbed, unless the mode is another one.
    pub(super) fn configure(&mut self, config: &TeamConfig, now: Now) {
        let mut old = std::mem::take(&mut self.seats);
        for member in &config.members {
            let known = old.iter().position(|seat| seat.config == *member);
            self.seats.push(match known {
                Some(at) => old.swap_remove(at),
                None => Seat::new(member),
            });
        }
        for gone in &old {
            self.machine.remove(gone.id);
            self.conditions.remove(&gone.id);
        }
        // Nothing is sent by a device that is about to be given back.
        self.config = config.clone();
        self.machine.configure(settings(config), now);
        self.announce_soon(now);
        self.publish();
        drop(old);
    }

    pub(super) fn set_pins(&mut self, pins: &[(PortId, String)]) -> bool {
        let changed = self.pins != pins;
        if changed {
            self.pins = pins.to_vec();
            self.stale = true;
            self.announce_soon(Now::monotonic());
        }
        changed
    }

    /// It is nobody's uplink any more.
    pub(super) fn leave(&mut self) {
        if let Some(home) = self.home.take() {
            home.switch.remove_port(home.port);
        }
        for seat in &mut self.seats {
            self.machine.remove(seat.id);
            seat.close();
        }
        self.conditions.clear();
        self.pins.clear();
        self.publish();
    }

    /// Takes the frames for the team that have come in.
    pub(super) fn receive_all(&mut self, now: Now, wire: &mut Wire) {
        let open = self.seats.iter().filter_map(|seat| seat.open.as_ref());
        let frames = open.map(|open| (open.member.id, open.control.take()));
        for (id, frames) in frames.collect::<Vec<_>>() {
            for frame in frames {
                self.receive(id, &frame, now, wire);
            }
        }
    }

    fn receive(&mut self, id: u32, frame: &[u8], now: Now, wire: &mut Wire) {
        let seat = self.seats.iter_mut().find(|seat| seat.id == id);
        let hears = self.config.lldp != Lldp::Off;
        if seat.is_some_and(|seat| hears && seat.lldp.receive(frame, now)) {
            return;
        }
        let seats = &self.seats;
        (self.machine).receive(id, frame, now, &mut |id, frame| {
            send(seats, wire, id, frame);
        });
    }

    /// Notes which links are up.
    pub(super) fn look_at_links(&mut self, links: &BTreeMap<String, Link>, now: Now) {
        for seat in &self.seats {
            let open = seat.open.as_ref().filter(|open| open.lost().is_none());
            let link = links.get(&seat.config.device).filter(|_| open.is_some());
            let up = link.is_some_and(|link| link.up && link.carrier);
            self.machine.set_link(seat.id, up, now);
        }
    }

    /// Opens devices that are there, and closes those that are not. True if any was.
    pub(super) fn follow(&mut self, links: &BTreeMap<String, Link>, host: &Host, now: Now) -> bool {
        let Some(home) = &self.home else { return false };
        let mut followed = false;
        for seat in &mut self.seats {
            let forwarder = || Some(Forwarder::new(Arc::clone(&home.switch), home.port));
            if seat.follow(links, host, forwarder, now) {
                self.machine.remove(seat.id);
                if let Some(open) = &seat.open {
                    self.machine.add(seat.id, open.member.mac);
                }
                followed = true;
            }
        }
        self.stale |= followed;
        followed
    }

    /// Runs the machines, and publishes what is not as it was.
    pub(super) fn run(&mut self, now: Now, wire: &mut Wire, host: &Host) {
        let seats = &self.seats;
        if self.machine.is_probing() {
            for open in seats.iter().filter_map(|seat| seat.open.as_ref()) {
                (self.machine).heard(open.member.id, open.member.unicast(), now);
            }
        }
        (self.machine).run(now, &mut |id, frame| send(seats, wire, id, frame));
        self.say_who_we_are(now, wire);
        let conditions: BTreeMap<u32, Condition> = (self.seats.iter())
            .filter(|seat| seat.open.is_some())
            .map(|seat| (seat.id, self.machine.condition(seat.id)))
            .collect();
        if conditions != self.conditions || self.stale {
            let before = std::mem::replace(&mut self.conditions, conditions);
            self.publish();
            let took = Now::monotonic().0.saturating_sub(now.0) as f64 / 1e6;
            self.tell(&before, now, took, host);
        }
        if self.announce_at.is_some_and(|at| at <= now) {
            self.announce(now);
        }
        if self.is_dynamic() && self.look_at <= now {
            self.look_at = now + LOOK;
            self.team.look();
        }
    }

    fn say_who_we_are(&mut self, now: Now, wire: &mut Wire) {
        if self.config.lldp != Lldp::Both {
            return;
        }
        let mut open = self.seats.iter().filter_map(|seat| seat.open.as_ref());
        let chassis = open.next().map(|open| open.member.mac).unwrap_or_default();
        for seat in &mut self.seats {
            let Some(open) = &seat.open else { continue };
            let macs = (chassis, open.member.mac);
            if let Some(frame) = seat.lldp.say(&seat.config.device, macs, now) {
                wire.send(&*open.member.nic, &frame);
            }
        }
    }

    fn is_dynamic(&self) -> bool {
        self.home.is_some() && self.config.distribution == Distribution::Dynamic
    }

    /// Says so if frames of our own come back from the wire, more than would by themselves; a second after
    /// the last time.
    pub(super) fn look_for_loops(&mut self, host: &Host) {
        self.team.sweep();
        self.look_for_shared_addresses();
        for open in self.seats.iter().filter_map(|seat| seat.open.as_ref()) {
            open.member.nic.count_missed();
        }
        let own = self.team.received().dropped(DropReason::OwnFrame);
        let new = own - std::mem::replace(&mut self.own_frames, own);
        let independent = self.machine.settings().mode == Mode::SwitchIndependent;
        let usual = match independent && self.seats.len() > 1 {
            true => FLOODED,
            false => FEW,
        };
        let was = std::mem::replace(&mut self.is_looping, new > usual);
        if self.is_looping && !was {
            let words = format!("{new} frames of our own came back in a second");
            warn!(
                "team {}: {words}: is there a loop in the network?",
                self.name
            );
            let event = Event::of_team(EventKind::LoopDetected, &self.name);
            host.events.publish(event.saying(words));
        }
    }

    /// A port may have been given the address of one of our devices.
    fn look_for_shared_addresses(&mut self) {
        let Some(home) = &self.home else { return };
        let open = self.seats.iter().filter_map(|seat| seat.open.as_ref());
        let macs = open.map(|open| open.member.mac);
        let shared: Vec<Mac> = macs
            .filter(|mac| home.switch.has_station(*mac, home.port))
            .collect();
        if shared != self.shared {
            self.shared = shared;
            self.publish();
        }
    }

    /// When there is something to do without being asked.
    pub(super) fn next(&self) -> Option<Now> {
        let retry = self.seats.iter().filter(|seat| seat.open.is_none());
        let retry = retry.filter_map(|seat| seat.trouble.as_ref().map(|(_, at)| *at));
        let retry = retry.filter(|_| self.home.is_some());
        let look = self.is_dynamic().then_some(self.look_at);
        let own = [self.machine.next(), self.announce_at, look];
        let says = self.config.lldp == Lldp::Both;
        let open = self.seats.iter().filter(|seat| says && seat.open.is_some());
        let says = open.map(|seat| seat.lldp.next());
        own.into_iter().flatten().chain(retry).chain(says).min()
    }

    /// Gives the data path the members that work now.
    fn publish(&mut self) {
        self.stale = false;
        let places = self.seats.iter().map(|seat| {
            let condition = self.conditions.get(&seat.id);
            Place {
                id: seat.id,
                member: seat.open.as_ref().map(|open| Arc::clone(&open.member)),
                collects: condition.is_some_and(|condition| condition.collects),
                works: condition.is_some_and(|condition| condition.works),
                standby: self.config.standby.as_ref() == Some(&seat.config.device),
            }
        });
        let number = |device: &str| {
            let mut seats = self.seats.iter();
            seats
                .find(|seat| seat.config.device == device)
                .map(|seat| seat.id)
        };
        let pins = self.pins.iter();
        let plan = Plan {
            mode: self.machine.settings().mode,
            distribution: self.config.distribution,
            places: places.collect(),
            pins: pins
                .filter_map(|(port, device)| Some((*port, number(device)?)))
                .collect(),
            probes: self.machine.is_probing(),
            shared: self.shared.clone(),
        };
        self.team.publish(&plan);
    }

    /// Tells of members that have failed or are back, and lets the network know.
    fn tell(&mut self, before: &BTreeMap<u32, Condition>, now: Now, took: f64, host: &Host) {
        let worked = |id: u32| before.get(&id).is_some_and(|condition| condition.works);
        let works = |id: u32| self.conditions.get(&id).is_some_and(|c| c.works);
        let changed: Vec<usize> = (0..self.seats.len())
            .filter(|at| worked(self.seats[*at].id) != works(self.seats[*at].id))
            .collect();
        if changed.is_empty() {
            return;
        }
        self.announce_soon(now);
        self.announce(now);
        for at in changed {
            self.tell_of(at, took, host);
        }
    }

    fn tell_of(&mut self, at: usize, milliseconds: f64, host: &Host) {
        let (team, device) = (&self.name, self.seats[at].config.device.clone());
        let condition = self.conditions.get(&self.seats[at].id).cloned();
        let event = |kind| Event::of_member(kind, team, &device);
        if condition.as_ref().is_some_and(|condition| condition.works) {
            info!("team {team}: member {device} works");
            host.events.publish(event(EventKind::MemberUp));
            return;
        }
        let reason = condition.and_then(|condition| condition.reason);
        let reason = reason.unwrap_or_else(|| "the device is gone".to_owned());
        let others: Vec<String> = (self.seats.iter())
            .filter(|seat| self.conditions.get(&seat.id).is_some_and(|c| c.works))
            .map(|seat| seat.config.device.clone())
            .collect();
        let to = (!others.is_empty()).then(|| others.join(", "));
        let where_to = match &to {
            Some(to) => format!("its flows go by {to}, after {milliseconds:.1} ms"),
            None => "no member is left".to_owned(),
        };
        warn!("team {team}: member {device} has failed: {reason}; {where_to}");
        host.events
            .publish(event(EventKind::MemberDown).saying(reason.clone()));
        if to.is_some() {
            host.events
                .publish(event(EventKind::TeamFailover).saying(where_to));
        }
        let failover = Failover {
            at: Timestamp::now().to_string(),
            from: Some(device),
            to: to.filter(|_| others.len() == 1),
            reason,
            milliseconds,
        };
        self.failovers += 1;
        self.seats[at].failovers += 1;
        self.seats[at].last_failover = Some(failover.clone());
        self.last_failover = Some(failover);
    }

    /// Stations behind our ports may be reached by other members from now on: a network that knows
    /// nothing of the team is told.
    fn announce_soon(&mut self, now: Now) {
        if self.machine.settings().mode == Mode::SwitchIndependent && self.home.is_some() {
            self.announce_at = Some(now);
            self.announcements = ANNOUNCEMENTS;
        }
    }

    fn announce(&mut self, now: Now) {
        if self.announce_at.take().is_none() {
            return;
        }
        self.announcements -= 1;
        self.announce_at = (self.announcements > 0).then_some(now + AGAIN);
        if let Some(home) = self.home.as_ref().filter(|_| self.team.ready()) {
            home.switch.announce_stations(home.port, now);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.captures.end();
        self.leave();
    }
}

/// Sends a frame of the team's own. False: the device has no room.
fn send(seats: &[Seat], wire: &mut Wire, id: u32, frame: &[u8]) -> bool {
    let open = seats.iter().find(|seat| seat.id == id);
    let open = open.and_then(|seat| seat.open.as_ref());
    open.is_some_and(|open| wire.send(&*open.member.nic, frame))
}
