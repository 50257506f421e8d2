//! What teams report.

use std::collections::BTreeMap;

use tandem_uplink::Now;
use tandem_uplink::nic::links::{Link, speed};
use tandem_uplink::team::lacp::{Port, PortInfo, State};

use super::running::Running;
use super::seat::Seat;
use crate::status::{
    DirectionCounters, LacpEnd, LacpStatus, MemberState, MemberStatus, TeamState, TeamStatus,
};

/// A team as the API has it.
pub(super) fn team(team: &Running, links: &BTreeMap<String, Link>) -> TeamStatus {
    let bytes: u64 = team.seats.iter().map(|seat| seat.sent.bytes()).sum();
    let members = team
        .seats
        .iter()
        .map(|seat| member(team, seat, links, bytes));
    let members: Vec<MemberStatus> = members.collect();
    let works = |member: &&MemberStatus| member.state != MemberState::Down;
    let working = members.iter().filter(works).count();
    let (state, reason) = match (&team.home, working) {
        (None, _) => (
            TeamState::Down,
            Some("no switch has it as its uplink: tandem switch set SWITCH --uplink TEAM"),
        ),
        (_, 0) => (TeamState::Down, Some("no member works")),
        (_, n) if n < members.len() => (TeamState::Degraded, Some("a member does not work")),
        _ if team.is_looping => (
            TeamState::Up,
            Some("frames of our own come back from the wire: is there a loop in the network?"),
        ),
        _ => (TeamState::Up, None),
    };
    let mut from_wire = DirectionCounters::from(&**team.team.received());
    let mut to_wire = DirectionCounters::from(&**team.team.sent());
    let mut control_frames = 0;
    for seat in &team.seats {
        from_wire.add(&seat.received);
        to_wire.add(&seat.sent);
        let open = seat.open.as_ref();
        control_frames += seat.consumed + open.map_or(0, |open| open.member.consumed());
    }
    TeamStatus {
        from_wire,
        to_wire,
        control_frames,
        moved: team.team.flowlets_moved(),
        name: team.name.clone(),
        switch: team.home.as_ref().map(|home| home.switch.name().to_owned()),
        state,
        reason: reason.map(str::to_owned),
        failovers: team.failovers,
        last_failover: team.last_failover.clone(),
        members,
    }
}

fn member(
    team: &Running,
    seat: &Seat,
    links: &BTreeMap<String, Link>,
    all_bytes: u64,
) -> MemberStatus {
    let link = links.get(&seat.config.device);
    let condition = team.conditions.get(&seat.id);
    let is_standby = team.config.standby.as_ref() == Some(&seat.config.device);
    let state = match condition {
        Some(condition) if condition.works && is_standby && team.team.share(seat.id) == 0.0 => {
            MemberState::Standby
        }
        Some(condition) if condition.works => MemberState::Active,
        _ => MemberState::Down,
    };
    let mut status = MemberStatus {
        device: seat.config.device.clone(),
        driver: seat.config.driver.to_string(),
        state,
        reason: reason(team, seat, link),
        link_up: link.is_some_and(|link| link.up && link.carrier),
        bandwidth: speed(&seat.config.device),
        mtu: link.map(|link| link.mtu),
        mac: link.map(|link| link.mac.to_string()),
        failovers: seat.failovers,
        last_failover: seat.last_failover.clone(),
        lldp: seat.lldp.status(Now::monotonic()),
        lacp: team.machine.lacp(seat.id).map(lacp),
        ..MemberStatus::default()
    };
    if let Some(open) = &seat.open {
        let nic = &open.member.nic;
        status.driver = nic.driver().to_owned();
        status.driver_reason.clone_from(&open.driver_reason);
    }
    status.from_wire = DirectionCounters::from(&*seat.received);
    status.to_wire = DirectionCounters::from(&*seat.sent);
    if all_bytes != 0 {
        status.share_percent = 100.0 * seat.sent.bytes() as f64 / all_bytes as f64;
    }
    status
}

/// Why a member does not work, in words.
fn reason(team: &Running, seat: &Seat, link: Option<&Link>) -> Option<String> {
    let device = &seat.config.device;
    match (link, &seat.trouble, &seat.open) {
        (_, Some((words, _)), _) => Some(words.clone()),
        (_, _, Some(open)) if open.lost().is_some() => open.lost(),
        (None, ..) => Some(format!("there is no device {device} on this host")),
        (Some(link), ..) if !link.up => {
            Some(format!("the link is set down: ip link set {device} up"))
        }
        (Some(link), ..) if !link.carrier => {
            Some("there is no carrier: is the cable in, and the other end up?".to_owned())
        }
        (_, _, None) => None,
        (_, _, Some(_)) => (team.conditions.get(&seat.id)).and_then(|c| c.reason.clone()),
    }
}

fn lacp(port: &Port) -> LacpStatus {
    let partner = port.partner();
    let state = format!("{:?}, {:?}", port.receive(), port.mux());
    LacpStatus {
        actor: end(port.actor()),
        partner: (*partner != PortInfo::default()).then(|| end(partner)),
        state: state.to_lowercase(),
    }
}

/// The flags of an end, as IEEE 802.1AX (6.4.2.3) names them.
const FLAGS: [(State, &str); 8] = [
    (State::ACTIVITY, "activity"),
    (State::SHORT_TIMEOUT, "short_timeout"),
    (State::AGGREGATION, "aggregation"),
    (State::SYNCHRONIZATION, "synchronization"),
    (State::COLLECTING, "collecting"),
    (State::DISTRIBUTING, "distributing"),
    (State::DEFAULTED, "defaulted"),
    (State::EXPIRED, "expired"),
];

fn end(info: &PortInfo) -> LacpEnd {
    let flags = FLAGS.iter().filter(|(flag, _)| info.state.has(*flag));
    let flags: Vec<&str> = flags.map(|(_, name)| *name).collect();
    LacpEnd {
        system: info.system.to_string(),
        system_priority: info.system_priority,
        key: info.key,
        port: info.port,
        port_priority: info.port_priority,
        flags: flags.join(","),
    }
}
