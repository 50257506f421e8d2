//! Checks of teams and uplinks.

use super::super::{Known, PortConfig, Probe, SwitchConfig, TeamConfig, TeamMode, Uplink};
use super::{invalid, is_there_to_choose};
use crate::control::{Refused, RefusedKind};

/// Checks one team by itself.
pub(crate) fn team(team: &TeamConfig) -> Vec<Refused> {
    if team.members.is_empty() {
        let remedy = "name its devices, such as members = [\"eth0\", \"eth1\"]";
        return vec![invalid("members", "a team has at least one member", remedy)];
    }
    let mut wrong = Vec::new();
    wrong.extend(standby(team).err());
    wrong.extend(probe(team).err());
    if team.mode != TeamMode::Lacp && team.origin.contains_key("lacp_timer") {
        let remedy = "remove it, or set mode to lacp";
        wrong.push(invalid("lacp_timer", "only LACP has this timer", remedy));
    }
    if team.probe == Probe::None {
        let keys = ["probe_vlan", "probe_interval_ms"];
        let given = keys.iter().filter(|key| team.origin.contains_key(**key));
        let remedy = "remove it, or set probe to heartbeat or an IP address";
        wrong.extend(given.map(|key| invalid(key, "there are no probes", remedy)));
    }
    wrong
}

fn standby(team: &TeamConfig) -> Result<(), Refused> {
    let Some(standby) = &team.standby else {
        return Ok(());
    };
    if team.mode != TeamMode::SwitchIndependent {
        let reason = "the switch at the other end uses all members alike";
        let remedy = "remove it, or set mode to switch_independent";
        return Err(invalid("standby", reason, remedy));
    }
    if !team.has(standby) {
        let members: Vec<&str> = team.members.iter().map(|m| m.device.as_str()).collect();
        let reason = format!("{standby} is no member");
        let remedy = format!("add it to members, or choose of: {}", members.join(", "));
        return Err(invalid("standby", reason, remedy));
    }
    if team.members.len() == 1 {
        let reason = format!("{standby} is the only member");
        return Err(invalid("standby", reason, "add another, or remove standby"));
    }
    Ok(())
}

fn probe(team: &TeamConfig) -> Result<(), Refused> {
    if team.probe == Probe::None {
        return Ok(());
    }
    if team.mode == TeamMode::Lacp {
        let reason = "LACP finds dead paths by itself";
        return Err(invalid(
            "probe",
            reason,
            "remove it, or choose another mode",
        ));
    }
    if team.probe == Probe::Heartbeat && team.mode != TeamMode::SwitchIndependent {
        let reason = "members of one link do not hear each other";
        let remedy = "give an IP address, or set mode to switch_independent";
        return Err(invalid("probe", reason, remedy));
    }
    if team.probe == Probe::Heartbeat && team.members.len() == 1 {
        let reason = "a single member has nobody to hear";
        return Err(invalid(
            "probe",
            reason,
            "give an IP address, or add a member",
        ));
    }
    Ok(())
}

/// Checks a team against what else there is.
pub(crate) fn team_among(name: &str, team: &TeamConfig, known: Known<'_>) -> Vec<Refused> {
    let mut wrong = Vec::new();
    // From now on it would be this team.
    let mut switches = known.switches.iter();
    let named = switches.find(|(_, switch)| switch.uplink.as_deref() == Some(name));
    if let (Some((switch, _)), false) = (named, known.teams.contains_key(name)) {
        let reason = format!("switch {switch} has a device of this name as its uplink");
        let refused = Refused::new(RefusedKind::Conflict, reason, "choose another name");
        wrong.push(refused.about("name"));
    }
    for member in &team.members {
        let user = user(&member.device, known, ("team", name));
        wrong.extend(user.map(|user| taken("members", &member.device, &user)));
    }
    wrong
}

/// Checks a switch by itself and against what else there is.
pub(crate) fn switch(name: &str, switch: &SwitchConfig, known: Known<'_>) -> Vec<Refused> {
    let mut wrong = vlans(switch);
    let Some(text) = &switch.uplink else {
        return wrong;
    };
    match switch.uplink_among(|name| known.teams.contains_key(name)) {
        Some(Uplink::Team(team)) => {
            let mut others = known.switches.iter().filter(|(other, _)| *other != name);
            let other = others.find(|(_, other)| other.uplink.as_deref() == Some(&team));
            if let Some((other, _)) = other {
                let user = format!("the uplink of switch {other}");
                wrong.push(taken("uplink", &team, &user));
            }
        }
        Some(Uplink::Device(member)) => {
            let user = user(&member.device, known, ("switch", name));
            wrong.extend(user.map(|user| taken("uplink", &member.device, &user)));
        }
        None => wrong.push(is_there_to_choose(known.teams, "uplink", "team", text)),
    }
    wrong
}

fn vlans(switch: &SwitchConfig) -> Vec<Refused> {
    let mut wrong = Vec::new();
    if switch.uplink.is_none() {
        let keys = ["uplink_vlans", "uplink_native_vlan"];
        let given = keys.iter().filter(|key| switch.origin.contains_key(**key));
        let remedy = "remove it, or add uplink";
        wrong.extend(given.map(|key| invalid(key, "the switch has no uplink", remedy)));
    } else if let (Some(vlans), Some(native)) = (&switch.uplink_vlans, switch.uplink_native_vlan)
        && !vlans.contains(native)
    {
        let reason = format!("{native} is not in uplink_vlans {vlans}");
        let remedy = "add it there, or choose one of them";
        wrong.push(invalid("uplink_native_vlan", reason, remedy));
    }
    wrong
}

/// Checks a port's TAP device against teams and uplinks.
pub(crate) fn tap(port: &PortConfig, known: Known<'_>) -> Option<Refused> {
    let tap = port.tap.as_ref()?;
    let user = user(tap, known, ("port", &port.name))?;
    Some(taken("tap", tap, &user))
}

fn taken(key: &str, what: &str, user: &str) -> Refused {
    let reason = format!("{what} is {user} already");
    let remedy = "choose another, or take it away there first";
    Refused::new(RefusedKind::Conflict, reason, remedy).about(key)
}

/// Whether a device is used by another than the one of this kind and name.
pub(crate) fn has_other_user(device: &str, known: Known<'_>, one: (&str, &str)) -> bool {
    user(device, known, one).is_some()
}

/// What a device is already, in words, but for the one of this kind and name. Ports are not told of
/// each other here.
fn user(device: &str, known: Known<'_>, (kind, name): (&str, &str)) -> Option<String> {
    let is_it = |other_kind: &str, other: &str| (kind, name) == (other_kind, other);
    let mut teams = known.teams.iter();
    if let Some((team, _)) = teams.find(|(t, team)| !is_it("team", t) && team.has(device)) {
        return Some(format!("a member of team {team}"));
    }
    let is_team = |name: &str| known.teams.contains_key(name);
    let has = |switch: &SwitchConfig| match switch.uplink_among(is_team) {
        Some(Uplink::Device(member)) => member.device == device,
        _ => false,
    };
    let mut switches = known.switches.iter();
    if let Some((switch, _)) = switches.find(|(s, switch)| !is_it("switch", s) && has(switch)) {
        return Some(format!("the uplink of switch {switch}"));
    }
    let mut ports = known.ports.values().filter(|_| kind != "port");
    let port = ports.find(|port| port.tap.as_deref() == Some(device))?;
    Some(format!("the TAP of port {}", port.name))
}
