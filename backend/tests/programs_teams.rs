//! Teams and uplinks, over the API and with `tandem`. No device of these names is there.

mod programs;

use programs::{Daemon, Done, config};
use serde_json::{Value, json};

fn ok(done: &Done) -> &str {
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""), "{done:?}");
    &done.out
}

/// One line on stderr with these words, nothing on stdout.
fn refused(done: &Done, words: &[&str]) {
    assert_eq!((done.code, done.out.as_str()), (Some(1), ""), "{done:?}");
    assert_eq!(done.err.lines().count(), 1, "{}", done.err);
    for word in words {
        assert!(done.err.contains(word), "no {word:?} in: {}", done.err);
    }
}

fn keys(value: &Value) -> Vec<&str> {
    let members = value.as_object().unwrap().keys();
    members.map(String::as_str).collect()
}

/// A status, a field and words of a refusal.
fn is_refused(answer: &programs::Answer, status: u16, field: &str, words: &[&str]) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.json["field"], field, "{answer:?}");
    for word in words {
        assert!(
            answer.json.to_string().contains(word),
            "no {word:?}: {answer:?}"
        );
    }
}

#[test]
fn a_team_is_made_shown_changed_and_removed() {
    let daemon = Daemon::start(&[]);
    let path = "/api/v1/teams/team0";
    let body = r#"{"members": "no-eth0,no-eth1:af_xdp", "standby": "no-eth1"}"#;
    let made = daemon.http("PUT", path, body);
    assert_eq!(made.status, 201, "{made:?}");
    let team = daemon.http("GET", path, "");
    let mut expected = vec![
        "control_frames",
        "distribution",
        "failovers",
        "from_wire",
        "lacp_timer",
        "last_failover",
        "lldp",
        "member_status",
        "members",
        "mode",
        "moved",
        "name",
        "origin",
        "probe",
        "probe_interval_ms",
        "probe_vlan",
        "reason",
        "standby",
        "state",
        "switch",
        "to_wire",
    ];
    expected.sort_unstable();
    assert_eq!(keys(&team.json), expected);
    assert_eq!(team.json["members"], json!(["no-eth0", "no-eth1:af_xdp"]));
    assert_eq!(team.json["mode"], "switch_independent");
    assert_eq!(team.json["origin"]["standby"], "api");
    assert_eq!(
        (&team.json["state"], &team.json["switch"]),
        (&json!("down"), &Value::Null)
    );
    let member = [
        "bandwidth",
        "device",
        "driver",
        "driver_reason",
        "failovers",
        "from_wire",
        "lacp",
        "last_failover",
        "link_up",
        "lldp",
        "mac",
        "mtu",
        "reason",
        "share_percent",
        "state",
        "to_wire",
    ];
    let members = &team.json["member_status"];
    assert_eq!(keys(&members[0]), member);
    assert_eq!(members[0]["device"], "no-eth0");
    assert_eq!(members[0]["state"], "down");
    assert_eq!(members[0]["link_up"], false);
    assert!(members[0]["reason"].is_string());

    // A change under a tag that is not its own any more is refused.
    let tag = team
        .head
        .lines()
        .find_map(|line| line.strip_prefix("etag: "));
    let condition = format!("If-Match: {}\r\n", tag.unwrap());
    let changed = daemon.http_with("PATCH", path, &condition, r#"{"lldp": "off"}"#);
    assert_eq!(
        (changed.status, &changed.json["lldp"]),
        (200, &json!("off"))
    );
    let stale = daemon.http_with("PATCH", path, &condition, r#"{"lldp": "both"}"#);
    is_refused(&stale, 412, "name", &["changed meanwhile"]);
    let taken = daemon.http_with("PUT", path, "If-None-Match: *\r\n", body);
    is_refused(&taken, 412, "name", &["there is a team team0 already"]);

    let all = daemon.http("GET", "/api/v1/teams", "").json;
    assert_eq!(all["teams"][0], daemon.http("GET", path, "").json);
    assert_eq!(daemon.http("DELETE", path, "").status, 204);
    let gone = daemon.http("GET", path, "");
    is_refused(&gone, 404, "name", &["no team team0", "tandem team list"]);
    let none = daemon.http("PATCH", path, "{}");
    is_refused(&none, 404, "name", &[]);
    let none = daemon.http("POST", &format!("{path}/reset"), "");
    is_refused(&none, 404, "name", &[]);
}

#[test]
fn a_device_and_a_team_have_one_use() {
    let daemon = Daemon::start(&["--port", "web1"]);
    let put = |path: &str, body: &str| daemon.http("PUT", &format!("/api/v1/{path}"), body);
    assert_eq!(
        put("teams/a", r#"{"members": ["no-eth0", "no-eth1"]}"#).status,
        201
    );
    let answer = put("teams/b", r#"{"members": ["no-eth1:tap"]}"#);
    is_refused(&answer, 409, "members", &["no-eth1 is a member of team a"]);
    let answer = put("switches/default", r#"{"uplink": "no-eth0"}"#);
    is_refused(&answer, 409, "uplink", &["no-eth0 is a member of team a"]);
    let answer = put("ports/tap", r#"{"tap": "no-eth0"}"#);
    is_refused(&answer, 409, "tap", &["no-eth0 is a member of team a"]);
    assert_eq!(put("switches/default", r#"{"uplink": "a"}"#).status, 200);
    let answer = put("switches/lab", r#"{"uplink": "a"}"#);
    is_refused(
        &answer,
        409,
        "uplink",
        &["a is the uplink of switch default"],
    );
    assert_eq!(
        put("switches/lab", r#"{"uplink": "no-eth2:af_xdp"}"#).status,
        201
    );
    let answer = put("teams/b", r#"{"members": ["no-eth2"]}"#);
    is_refused(
        &answer,
        409,
        "members",
        &["no-eth2 is the uplink of switch lab"],
    );
    // What names it now would be another thing.
    let direct = put("switches/direct", r#"{"uplink": "no-eth3"}"#);
    assert_eq!(direct.status, 201, "{direct:?}");
    let answer = put("teams/no-eth3", r#"{"members": ["no-eth4"]}"#);
    is_refused(&answer, 409, "name", &["switch direct", "another name"]);
    let answer = daemon.http("DELETE", "/api/v1/teams/a", "");
    is_refused(
        &answer,
        409,
        "name",
        &["team a is the uplink of switch default", "or none"],
    );

    // What a switch's uplink does is seen there, too.
    let switch = |name: &str| {
        daemon
            .http("GET", &format!("/api/v1/switches/{name}"), "")
            .json
    };
    let uplink = &switch("default")["uplink_status"];
    assert_eq!(
        (&uplink["name"], &uplink["switch"]),
        (&json!("a"), &json!("default"))
    );
    assert_eq!(uplink["member_status"][1]["device"], "no-eth1");
    let uplink = &switch("direct")["uplink_status"];
    assert_eq!(uplink["member_status"][0]["device"], "no-eth3");
    let team = daemon.http("GET", "/api/v1/teams/a", "").json;
    assert_eq!(team["switch"], "default");

    // Free again, they may be had.
    let patch = daemon.http("PATCH", "/api/v1/switches/default", r#"{"uplink": null}"#);
    assert_eq!(
        (patch.status, &patch.json["uplink_status"]),
        (200, &Value::Null)
    );
    assert_eq!(daemon.http("DELETE", "/api/v1/teams/a", "").status, 204);
    assert_eq!(put("teams/b", r#"{"members": ["no-eth1"]}"#).status, 201);
}

#[test]
fn what_was_set_of_teams_and_uplinks_survives_a_restart() {
    let (_keep, file) = config("[team.t]\nmembers = ['no-eth0']\nlldp = 'both'\n");
    let args = ["--config", file.as_str()];
    let daemon = Daemon::start(&args);
    ok(&daemon.tandem(&["team", "set", "t", "--members", "no-eth0,no-eth1"]));
    ok(&daemon.tandem(&["team", "add", "u", "--members", "no-eth2"]));
    ok(&daemon.tandem(&["switch", "set", "default", "--uplink", "t"]));
    ok(&daemon.tandem(&[
        "switch",
        "add",
        "lab",
        "--uplink",
        "u",
        "--uplink-vlans",
        "5",
    ]));
    let all = |daemon: &Daemon| {
        ["/api/v1/teams", "/api/v1/switches"].map(|path| daemon.http("GET", path, "").json)
    };
    let before = all(&daemon);
    assert_eq!(before[0]["teams"][0]["origin"]["lldp"], "api");
    let daemon = Daemon::start_in(daemon.crash(), &args);
    assert_eq!(all(&daemon), before);
    // One of the file is not removed, but is what the file says again.
    let stays = daemon.tandem(&["team", "remove", "t"]);
    refused(&stays, &["team t is in the configuration file"]);
    let reset = daemon.tandem(&["team", "reset", "t"]);
    assert_eq!(ok(&reset), "team t is what the file says\n");
    let team = daemon.http("GET", "/api/v1/teams/t", "").json;
    assert_eq!(team["members"], json!(["no-eth0"]));
    assert_eq!(team["origin"]["members"], "file");
    let new = daemon.tandem(&["team", "reset", "u"]);
    refused(
        &new,
        &[
            "team u is not in the configuration file",
            "tandem team remove u",
        ],
    );
}

#[test]
fn a_reload_gives_devices_from_one_to_another() {
    let (_keep, file) = config("");
    let daemon = Daemon::start(&["--config", &file]);
    let uplinks = || {
        let teams = daemon.http("GET", "/api/v1/teams", "").json;
        let teams = teams["teams"].as_array().unwrap().clone().into_iter();
        let teams: Vec<String> = teams
            .map(|team| format!("{} {}", team["name"], team["members"]))
            .collect();
        let switch = daemon.http("GET", "/api/v1/switches/default", "").json;
        format!("{} {}", teams.join(" "), switch["uplink"]).replace(['"', '[', ']'], "")
    };
    for (text, shown) in [
        (
            "[team.a]\nmembers = 'no-eth0,no-eth1'\n[team.b]\nmembers = 'no-eth2'\n[switch.default]\nuplink = 'a'\n",
            "a no-eth0,no-eth1 b no-eth2 a",
        ),
        (
            "[team.a]\nmembers = 'no-eth2'\n[team.b]\nmembers = 'no-eth0,no-eth1'\n[switch.default]\nuplink = 'a'\n",
            "a no-eth2 b no-eth0,no-eth1 a",
        ),
        (
            "[team.b]\nmembers = 'no-eth0'\n[switch.default]\nuplink = 'no-eth2'\n",
            "b no-eth0 no-eth2",
        ),
        (
            "[team.c]\nmembers = 'no-eth2'\n[switch.default]\nuplink = 'c'\n",
            "c no-eth2 c",
        ),
        ("", " null"),
    ] {
        std::fs::write(&file, text).unwrap();
        daemon.reload();
        assert_eq!(uplinks(), shown, "{}", daemon.log());
    }
    // A name that would mean another thing.
    for (before, after, words) in [
        (
            "[team.a]\nmembers = 'no-eth0'\n[switch.default]\nuplink = 'a'\n",
            "[switch.default]\nuplink = 'a'\n",
            "switch default: uplink: a is no team any more; change it",
        ),
        (
            "[switch.default]\nuplink = 'no-eth0'\n",
            "[switch.default]\nuplink = 'no-eth0'\n[team.no-eth0]\nmembers = 'no-eth1'\n",
            "switch default: uplink: no-eth0 is a device until now; give the team another name",
        ),
    ] {
        std::fs::write(&file, before).unwrap();
        daemon.reload();
        let shown = uplinks();
        std::fs::write(&file, after).unwrap();
        daemon.reload();
        assert!(daemon.log().contains(words), "{}", daemon.log());
        assert_eq!(uplinks(), shown);
    }
}

#[test]
fn members_come_and_go_and_no_change_is_lost() {
    let daemon = Daemon::start(&[]);
    ok(&daemon.tandem(&["team", "add", "t", "--members", "no-eth0"]));
    let member = |args: &[&str]| daemon.tandem(&[&["team", "member"], args].concat());
    let added = member(&["add", "t", "no-eth1:af_xdp"]);
    assert_eq!(ok(&added), "team t has member no-eth1:af_xdp\n");
    refused(
        &member(&["add", "t", "no-eth1"]),
        &["no-eth1:af_xdp is a member already"],
    );
    let removed = member(&["remove", "t", "no-eth0"]);
    assert_eq!(ok(&removed), "team t has no more member no-eth0\n");
    refused(
        &member(&["del", "t", "no-eth0"]),
        &["no-eth0 is no member; choose of: no-eth1"],
    );
    refused(
        &member(&["del", "t", "no-eth1"]),
        &["members: a team has at least one member"],
    );
    refused(
        &member(&["add", "u", "no-eth2"]),
        &["no team u", "tandem team list"],
    );
    refused(&member(&["add", "t", "a/b"]), &["cannot be a device"]);
    // At the same time.
    std::thread::scope(|scope| {
        for n in 2..8 {
            let device = format!("no-eth{n}");
            scope.spawn(move || ok(&member(&["add", "t", &device])).to_owned());
        }
    });
    let team = daemon.tandem(&["team", "show", "t", "--json"]);
    let team: Value = serde_json::from_str(ok(&team)).unwrap();
    let mut members: Vec<&str> = (team["members"].as_array().unwrap().iter())
        .filter_map(Value::as_str)
        .collect();
    members.sort_unstable();
    let expected = [
        "no-eth1:af_xdp",
        "no-eth2",
        "no-eth3",
        "no-eth4",
        "no-eth5",
        "no-eth6",
        "no-eth7",
    ];
    assert_eq!(members, expected);
}

#[test]
fn teams_are_shown_to_people() {
    let daemon = Daemon::start(&[]);
    assert!(ok(&daemon.tandem(&["team", "list"])).starts_with("no teams; "));
    let long = "t".repeat(64);
    for (name, members) in [("lab", "no-eth0,no-eth1"), (&long, "no-eth2")] {
        ok(&daemon.tandem(&["team", "add", name, "--members", members]));
    }
    ok(&daemon.tandem(&["switch", "set", "default", "--uplink", "lab"]));
    let list = daemon.tandem(&["team", "ls"]);
    let row: Vec<&str> = ok(&list)
        .lines()
        .nth(1)
        .unwrap()
        .split_whitespace()
        .collect();
    let expected = [
        "lab",
        "default",
        "down",
        "switch_independent",
        "no-eth0,no-eth1",
        "0",
    ];
    assert_eq!(row, expected);
    let show = daemon.tandem(&["team", "show", "lab"]);
    for word in [
        "lab, uplink of switch default",
        "switch_independent, by transport_ports",
        "MEMBER",
        "FROM WIRE",
        "no-eth0,no-eth1",
    ] {
        assert!(ok(&show).contains(word), "no {word:?} in:\n{}", show.out);
    }
    let switch = daemon.tandem(&["switch", "show", "default"]);
    assert!(ok(&switch).contains("MEMBER"), "{}", switch.out);
    let switches = daemon.tandem(&["switch", "list"]);
    assert!(ok(&switches).contains("UPLINK") && ok(&switches).contains("lab"));
    for shown in [&list, &show, &switch, &switches] {
        let long_name = |line: &&str| !line.contains(&long);
        let lines = shown.out.lines().filter(long_name);
        for line in lines {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}

#[test]
fn teams_are_events() {
    let daemon = Daemon::start(&[]);
    ok(&daemon.tandem(&["team", "add", "t", "--members", "no-eth0"]));
    ok(&daemon.tandem(&["team", "set", "t", "--lldp", "off"]));
    ok(&daemon.tandem(&["team", "set", "t", "--lldp", "off"]));
    ok(&daemon.tandem(&["team", "remove", "t"]));
    // In another life they are told of from the start.
    ok(&daemon.tandem(&["team", "add", "t", "--members", "no-eth0"]));
    let request = "GET /api/v1/events HTTP/1.1\r\nHost: t\r\nLast-Event-ID: 0\r\n\r\n";
    let heard = |daemon: &Daemon, events: usize| -> Vec<String> {
        use std::io::{BufRead, BufReader, Write};
        let mut stream = programs::connect(&daemon.api());
        stream.write_all(request.as_bytes()).unwrap();
        let lines = BufReader::new(stream).lines().map(Result::unwrap);
        let data = lines.filter_map(|line| line.strip_prefix("data: ").map(str::to_owned));
        let events = data.take(events).map(|data| {
            let event: Value = serde_json::from_str(&data).unwrap();
            format!("{} {}", event["event"], event["team"]).replace('"', "")
        });
        events.collect()
    };
    let expected = [
        "team_added t",
        "team_changed t",
        "team_removed t",
        "team_added t",
    ];
    assert_eq!(heard(&daemon, 4), expected);
    let daemon = Daemon::start_in(daemon.stop(), &[]);
    assert_eq!(heard(&daemon, 1), ["team_added t"]);
}
