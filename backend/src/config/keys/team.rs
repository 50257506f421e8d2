//! The keys of teams, and what uplinks have in common.

use std::net::IpAddr;
use std::str::FromStr;

use serde_json::Value;
use tandem_uplink::team::distribution::{Distribution, MAX_MEMBERS};

use super::super::team::{DRIVERS, Driver, LacpTimer, Lldp, Member, Probe, TeamConfig, TeamMode};
use super::super::value::{Bad, check_name, number, one_of, text, vlan, words};
use super::{Key, Kind, device, put};

/// The settings of a team, in the order they are shown.
pub static TEAM_KEYS: &[Key<TeamConfig>] = &[
    Key {
        name: "members",
        kind: Kind::List,
        value: "DEVICES",
        help: "devices, 1 to 32: DEVICE or DEVICE:DRIVER, the driver auto, af_packet, af_xdp or tap, such as eth0,eth1:af_xdp",
        set: |team, value| put(&mut team.members, members(value)),
    },
    Key {
        name: "mode",
        kind: Kind::Text,
        value: "MODE",
        help: "switch_independent, static or lacp: what the switches at the other end know of it (default: switch_independent)",
        set: |team, value| {
            let modes = [
                ("switch_independent", TeamMode::SwitchIndependent),
                ("static", TeamMode::Static),
                ("lacp", TeamMode::Lacp),
            ];
            put(&mut team.mode, one_of(value, "mode", &modes))
        },
    },
    Key {
        name: "distribution",
        kind: Kind::Text,
        value: "WHAT",
        help: "what keeps to one member: transport_ports, ip_addresses, mac_addresses, port or dynamic (default: transport_ports)",
        set: |team, value| put(&mut team.distribution, distribution(value)),
    },
    Key {
        name: "standby",
        kind: Kind::Text,
        value: "DEVICE",
        help: "member that is used only while no other works; with mode switch_independent",
        set: |team, value| put(&mut team.standby, device(value, "eth1").map(Some)),
    },
    Key {
        name: "lacp_timer",
        kind: Kind::Text,
        value: "TIMER",
        help: "fast: the partner sends each second; slow: each 30 seconds; with mode lacp (default: fast)",
        set: |team, value| {
            let timers = [("fast", LacpTimer::Fast), ("slow", LacpTimer::Slow)];
            put(&mut team.lacp_timer, one_of(value, "timer", &timers))
        },
    },
    Key {
        name: "probe",
        kind: Kind::Text,
        value: "PROBE",
        help: "finds paths that are dead behind a live link: none, heartbeat between members, or an IP address to ask (default: none)",
        set: |team, value| put(&mut team.probe, probe(value)),
    },
    Key {
        name: "probe_vlan",
        kind: Kind::Number,
        value: "VLAN",
        help: "VLAN of the probes, 1 to 4094 (default: untagged)",
        set: |team, value| put(&mut team.probe_vlan, vlan(value).map(Some)),
    },
    Key {
        name: "probe_interval_ms",
        kind: Kind::Number,
        value: "MS",
        help: "milliseconds between two probes, 50 to 10000 (default: 200)",
        set: |team, value| {
            put(
                &mut team.probe_interval_ms,
                number(value, 50..=10_000).map(|n| n as u32),
            )
        },
    },
    Key {
        name: "lldp",
        kind: Kind::Text,
        value: "WHAT",
        help: "receive: neighbours are shown; both: they are told of us, too; off (default: receive)",
        set: |team, value| {
            let all = [
                ("receive", Lldp::Receive),
                ("both", Lldp::Both),
                ("off", Lldp::Off),
            ];
            put(&mut team.lldp, one_of(value, "way to use LLDP", &all))
        },
    },
];

fn members(value: &Value) -> Result<Vec<Member>, Bad> {
    let remedy = "list devices, such as [\"eth0\", \"eth1:af_xdp\"], or \"eth0,eth1\"";
    let words = words(value, remedy)?;
    if words.is_empty() {
        return Err(Bad::new("a team has at least one member", remedy));
    }
    if words.len() > MAX_MEMBERS {
        let reason = format!("{} are too many", words.len());
        return Err(Bad::new(reason, format!("give at most {MAX_MEMBERS}")));
    }
    let mut members: Vec<Member> = Vec::new();
    for word in words {
        let new = member(word)?;
        if members.iter().any(|member| member.device == new.device) {
            let reason = format!("{} is there twice", new.device);
            return Err(Bad::new(reason, "name each device once"));
        }
        members.push(new);
    }
    Ok(members)
}

/// A device and its driver.
pub(in crate::config) fn member(text: &str) -> Result<Member, Bad> {
    let (name, driver) = match text.split_once(':') {
        Some((name, driver)) => (name, one_of(&driver.into(), "driver", &DRIVERS)?),
        None => (text, Driver::Auto),
    };
    let device = device(&name.into(), "eth0")?;
    Ok(Member { device, driver })
}

/// The name of a team, or a device and its driver.
pub(super) fn uplink(value: &Value) -> Result<String, Bad> {
    let text = text(value)?;
    match (check_name(text), member(text)) {
        (Err(_), Err(bad)) => Err(bad),
        _ => Ok(text.to_owned()),
    }
}

fn distribution(value: &Value) -> Result<Distribution, Bad> {
    let text = text(value)?;
    Distribution::from_str(text).map_err(|()| {
        let remedy = "say transport_ports, ip_addresses, mac_addresses, port or dynamic";
        Bad::new(format!("{text:?} is no distribution"), remedy)
    })
}

fn probe(value: &Value) -> Result<Probe, Bad> {
    let remedy = "say none, heartbeat, or the IP address of a station that always answers";
    match text(value)? {
        "none" => Ok(Probe::None),
        "heartbeat" => Ok(Probe::Heartbeat),
        text => match text.parse::<IpAddr>() {
            Ok(address)
                if address.is_unspecified()
                    || address.is_multicast()
                    || address.is_loopback()
                    || address == IpAddr::from([255; 4]) =>
            {
                Err(Bad::new(
                    format!("{address} is no station's address"),
                    remedy,
                ))
            }
            Ok(address) => Ok(Probe::Target(address)),
            Err(_) => Err(Bad::new(format!("{text:?} is no probe"), remedy)),
        },
    }
}
