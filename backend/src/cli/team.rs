//! `tandem team …`.

use clap::{Arg, ArgMatches, Command};
use serde_json::{Value, json};

use super::keys::name;
use super::noun::{Noun, Verbs, shown};
use super::text::{Table, count, list_of, paragraph, setting_table};
use super::{Failure, Session, parse};
use crate::client::ClientError;
use crate::config::{TEAM_KEYS, TeamConfig};

static TEAM: Noun<TeamConfig> = Noun {
    noun: "team",
    about: "Several devices as one uplink",
    verbs: Verbs {
        list: "List all teams",
        show: "Show one team, its members and their neighbours",
        add: "Add a team; it survives a restart of the daemon",
        set: "Change some settings of a team; its switch goes on",
        reset: "Drop what was changed over the API: back to the file",
        remove: "Remove a team that is no switch's uplink",
    },
    path: "/api/v1/teams",
    keys: TEAM_KEYS,
    base: "the file says",
    list,
    show,
    added: |_| String::new(),
};

/// How often a change of the members is tried that others come before. Each has changed something.
const TRIES: usize = 16;

pub(super) fn command() -> Command {
    let name = || {
        Arg::new("name")
            .value_name("TEAM")
            .required(true)
            .help("The team's name")
    };
    let device = |help| {
        Arg::new("device")
            .value_name("DEVICE")
            .required(true)
            .help(help)
    };
    let add = Command::new("add")
        .about("Add a member")
        .arg(name())
        .arg(device("DEVICE, or DEVICE:DRIVER"));
    let remove = Command::new("remove")
        .visible_alias("del")
        .about("Remove a member")
        .arg(name())
        .arg(device("The member's device"));
    let member = Command::new("member")
        .about("Add and remove a team's members while it runs")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(add)
        .subcommand(remove);
    TEAM.command().subcommand(member)
}

pub(super) fn run(matches: &ArgMatches) -> Result<String, Failure> {
    let Some(("member", matches)) = matches.subcommand() else {
        return TEAM.run(matches);
    };
    match matches.subcommand() {
        Some(("add", matches)) => member(matches, "has", |members, device| {
            if let Some(other) = members.iter().find(|m| device_of(m) == device_of(device)) {
                return Err(format!("{other} is a member already"));
            }
            members.push(device.to_owned());
            Ok(())
        }),
        Some(("remove", matches)) => member(matches, "has no more", |members, device| {
            let before = members.len();
            members.retain(|member| member != device && device_of(member) != device);
            if members.len() == before {
                return Err(format!(
                    "{device} is no member; choose of: {}",
                    members.join(", ")
                ));
            }
            Ok(())
        }),
        _ => Err(Failure::Usage(
            "a verb is missing; see tandem team member --help".to_owned(),
        )),
    }
}

/// The device of `DEVICE:DRIVER`.
fn device_of(member: &str) -> &str {
    member.split(':').next().unwrap_or(member)
}

/// Changes the list of members, unless somebody else changes the team meanwhile: then again.
fn member(
    matches: &ArgMatches,
    verb: &str,
    change: impl Fn(&mut Vec<String>, &str) -> Result<(), String>,
) -> Result<String, Failure> {
    let team = name(matches)?;
    let device = matches
        .get_one::<String>("device")
        .map_or("", String::as_str);
    let session = Session::new(matches)?;
    let path = TEAM.path_of(team);
    let mut tries = 1..=TRIES;
    loop {
        let (answer, tag) = session.get_tagged(&path)?;
        let members = &parse(&answer)?["members"];
        let members = members.as_array().into_iter().flatten();
        let mut members: Vec<String> = members
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        change(&mut members, device)
            .map_err(|words| Failure::Failed(format!("team {team}: {words}")))?;
        match session.patch_if(&path, tag, &json!({"members": members})) {
            Err(ClientError::Stale(_)) if tries.next().is_some() => {}
            Err(error) => return Err(error.into()),
            Ok(answer) => {
                let words = format!("team {team} {verb} member {device}\n");
                return shown(&session, answer, |_| words);
            }
        }
    }
}

fn list(answer: &Value) -> String {
    let teams = answer["teams"].as_array().map_or(&[][..], Vec::as_slice);
    if teams.is_empty() {
        return "no teams; add one with: tandem team add NAME --members DEVICES\n".to_owned();
    }
    let mut table = Table::new(&["TEAM", "SWITCH", "STATE", "MODE", "MEMBERS", "FAILOVERS"])
        .right(&[5])
        .shrinking(&[0, 1, 4]);
    for team in teams {
        let word = |key: &str| team[key].as_str().unwrap_or("-").to_owned();
        table.row(vec![
            word("name"),
            word("switch"),
            word("state"),
            word("mode"),
            list_of(&team["members"]),
            count(team["failovers"].as_u64()),
        ]);
    }
    table.to_string()
}

fn show(team: &Value) -> String {
    let word = |key: &str| team[key].as_str().unwrap_or("-");
    let mode = format!("{}, by {}", word("mode"), word("distribution"));
    let place = match team["switch"].as_str() {
        Some(switch) => format!("{}, uplink of switch {switch}", word("name")),
        None => format!("{}, the uplink of no switch", word("name")),
    };
    paragraph("team", &place)
        + &paragraph("mode", &mode)
        + &status(team)
        + "\n"
        + &setting_table(TEAM_KEYS, team)
}

/// What a team does, or an uplink that is one device.
pub(super) fn status(team: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let state = match team["reason"].as_str() {
        Some(reason) => format!("{}: {reason}", word(&team["state"])),
        None => word(&team["state"]),
    };
    let mut text = paragraph("state", &state);
    text += &failover(team);
    text += &traffic(team);
    text += &dropped(team);
    let members = team["member_status"].as_array();
    let members = members.map_or(&[][..], Vec::as_slice);
    let headings = [
        "MEMBER",
        "DRIVER",
        "STATE",
        "LINK",
        "SHARE",
        "TO WIRE",
        "FROM WIRE",
        "DROPS",
    ];
    let mut table = Table::new(&headings)
        .right(&[3, 4, 5, 6, 7])
        .shrinking(&[0]);
    for member in members {
        let frames = |direction: &str| count(member[direction]["frames"].as_u64());
        table.row(vec![
            word(&member["device"]),
            word(&member["driver"]),
            word(&member["state"]),
            link(member),
            format!("{:.0} %", member["share_percent"].as_f64().unwrap_or(0.0)),
            frames("to_wire"),
            frames("from_wire"),
            count(Some(drops(member))),
        ]);
    }
    text += &format!("\n{table}");
    let details = members.iter().map(details);
    text + &details.collect::<String>()
}

/// Frames of all members together.
fn traffic(team: &Value) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let frames = |direction: &str| number(&team[direction]["frames"]);
    let mut words = format!(
        "{} frames to the wire, {} from it",
        frames("to_wire"),
        frames("from_wire")
    );
    if number(&team["control_frames"]) > 0 {
        words += &format!(", {} of them for the team itself", team["control_frames"]);
    }
    if number(&team["moved"]) > 0 {
        words += &format!("; {} conversations moved", team["moved"]);
    }
    paragraph("traffic", &words)
}

/// What was dropped on its way, and why.
fn dropped(of: &Value) -> String {
    let mut text = String::new();
    for direction in ["to_wire", "from_wire"] {
        let drops = of[direction]["drops"].as_object().into_iter().flatten();
        let drops: Vec<String> = drops.map(|(reason, n)| format!("{reason} {n}")).collect();
        if !drops.is_empty() {
            text += &paragraph("dropped", &format!("{direction}: {}", drops.join(", ")));
        }
    }
    text
}

/// Whether a link is up, and how fast it is.
fn link(member: &Value) -> String {
    match (member["link_up"].as_bool(), member["bandwidth"].as_u64()) {
        (Some(true), Some(bandwidth)) if bandwidth >= 1_000_000_000 => {
            format!("{} Gbit/s", bandwidth as f64 / 1e9)
        }
        (Some(true), Some(bandwidth)) => format!("{} Mbit/s", bandwidth / 1_000_000),
        (Some(true), None) => "up".to_owned(),
        _ => "down".to_owned(),
    }
}

fn drops(member: &Value) -> u64 {
    let directions = ["to_wire", "from_wire"].iter();
    let drops = directions.filter_map(|direction| member[direction]["drops"].as_object());
    drops.flatten().filter_map(|(_, n)| n.as_u64()).sum()
}

/// What there is to say of a member beside its row.
fn details(member: &Value) -> String {
    let mut text = String::new();
    let word = |value: &Value| value.as_str().map(str::to_owned);
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    for (label, key) in [("reason", "reason"), ("driver", "driver_reason")] {
        text += &word(&member[key]).map_or(String::new(), |words| paragraph(label, &words));
    }
    let place = [
        word(&member["mac"]).map(|mac| format!("MAC {mac}")),
        member["mtu"].as_u64().map(|mtu| format!("MTU {mtu}")),
    ];
    let place: Vec<String> = place.into_iter().flatten().collect();
    if !place.is_empty() {
        text += &paragraph("device", &place.join(", "));
    }
    text += &dropped(member);
    let lacp = &member["lacp"];
    if !lacp.is_null() {
        text += &paragraph("LACP", &word(&lacp["state"]).unwrap_or_default());
        for end in ["actor", "partner"] {
            text += &paragraph(end, &lacp_end(&lacp[end]));
        }
    }
    let lldp = &member["lldp"];
    if !lldp.is_null() {
        let mut words = format!(
            "port {} of {}",
            word(&lldp["port_id"]).unwrap_or_default(),
            word(&lldp["system_name"])
                .or_else(|| word(&lldp["chassis_id"]))
                .unwrap_or_default(),
        );
        if let Some(description) = word(&lldp["port_description"]) {
            words += &format!(" ({description})");
        }
        if let Some(vlan) = lldp["vlan"].as_u64() {
            words += &format!(", VLAN {vlan} untagged");
        }
        words += &format!(", heard {} s ago", number(&lldp["age_seconds"]));
        text += &paragraph("neighbour", &words);
    }
    text += &failover(member);
    match text.is_empty() {
        true => text,
        false => format!("\n{}\n{text}", word(&member["device"]).unwrap_or_default()),
    }
}

fn lacp_end(end: &Value) -> String {
    if end.is_null() {
        return "not heard".to_owned();
    }
    let number = |key: &str| end[key].as_u64().unwrap_or(0);
    let word = |key: &str| end[key].as_str().unwrap_or("-");
    format!(
        "system {} priority {}, key {}, port {} priority {}: {}",
        word("system"),
        number("system_priority"),
        number("key"),
        number("port"),
        number("port_priority"),
        word("flags").replace(',', ", "),
    )
}

/// How often a team or a member failed over, and the last time.
fn failover(of: &Value) -> String {
    let times = of["failovers"].as_u64().unwrap_or(0);
    let last = &of["last_failover"];
    if times == 0 || last.is_null() {
        return String::new();
    }
    let word = |key: &str| last[key].as_str();
    let mut words = format!("{times}, the last {}", word("at").unwrap_or("-"));
    words += &word("from").map_or(String::new(), |from| format!(" from {from}"));
    words += &word("to").map_or(String::new(), |to| format!(" to {to}"));
    let took = last["milliseconds"].as_f64().unwrap_or(0.0);
    words += &format!(" in {took:.1} ms: {}", word("reason").unwrap_or("-"));
    paragraph("failovers", &words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_team_is_shown_whole() {
        let last = json!({"at": "2026-01-02T03:04:05Z", "from": "eth1", "to": "eth0",
            "reason": "eth1 has no carrier", "milliseconds": 0.84});
        let end = |system: &str| {
            json!({"system": system, "system_priority": 32768, "key": 7,
                "port": 1, "port_priority": 255, "flags": "activity,aggregation"})
        };
        let member = json!({
            "device": "eth0", "driver": "af_xdp", "driver_reason": "zero copy", "state": "active",
            "reason": null, "link_up": true, "mtu": 9000, "mac": "52:54:00:00:00:01",
            "bandwidth": 25_000_000_000u64, "share_percent": 99.6,
            "to_wire": {"frames": 1_000_000, "bytes": 1, "drops": {"host_refused": 2}},
            "from_wire": {"frames": 10, "bytes": 1, "drops": {"not_vlan_member": 3}},
            "lacp": {"actor": end("52:54:00:00:00:01"), "partner": null, "state": "current"},
            "lldp": {"chassis_id": "52:54:00:00:00:09", "port_id": "ge-0/0/1", "system_name": "tor1",
                "port_description": "rack 3", "vlan": 10, "age_seconds": 4},
            "failovers": 0, "last_failover": null,
        });
        let down = json!({"device": "eth1", "driver": "auto", "state": "down",
            "reason": "no such device", "link_up": false, "share_percent": 0.0,
            "failovers": 2, "last_failover": last});
        let team = json!({
            "name": "team0", "switch": "default", "state": "degraded",
            "reason": "eth1 has no carrier", "failovers": 2, "last_failover": last,
            "to_wire": {"frames": 7, "drops": {"uplink_full": 6}},
            "from_wire": {"frames": 8, "drops": {}}, "control_frames": 3, "moved": 2,
            "mode": "lacp", "distribution": "dynamic", "members": ["eth0", "eth1"],
            "member_status": [member, down], "origin": {"mode": "file"},
        });
        let text = show(&team);
        let squeezed: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        for line in [
            "team team0, uplink of switch default",
            "mode lacp, by dynamic",
            "state degraded: eth1 has no carrier",
            "failovers 2, the last 2026-01-02T03:04:05Z from eth1 to eth0 in 0.8 ms: eth1",
            "traffic 7 frames to the wire, 8 from it, 3 of them for the team itself; 2",
            "dropped to_wire: uplink_full 6",
            "eth0 af_xdp active 25 Gbit/s 100 % 1.0M 10 5",
            "eth1 auto down down 0 % - - 0",
            "driver zero copy",
            "device MAC 52:54:00:00:00:01, MTU 9000",
            "dropped to_wire: host_refused 2",
            "dropped from_wire: not_vlan_member 3",
            "LACP current",
            "actor system 52:54:00:00:00:01 priority 32768, key 7, port 1 priority 255:",
            "activity, aggregation",
            "partner not heard",
            "neighbour port ge-0/0/1 of tor1 (rack 3), VLAN 10 untagged, heard 4 s ago",
            "reason no such device",
            "members eth0,eth1 -",
            "mode lacp file",
        ] {
            assert!(
                squeezed.iter().any(|l| l == line),
                "no {line:?} in:\n{text}"
            );
        }
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
    }

    #[test]
    fn an_object_of_another_version_does_no_harm() {
        assert!(show(&json!({})).contains("SETTING"));
        assert!(list(&json!(null)).contains("tandem team add"));
    }
}
