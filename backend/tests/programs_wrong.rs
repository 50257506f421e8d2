//! Hundreds of wrong settings, made from right ones: each is refused with the key and a remedy, and
//! leaves all as it was.

mod programs;

use std::fs;
use std::path::Path;

use programs::{Daemon, config};
use proptest::test_runner::{Config, RngSeed, TestRng, TestRunner};
use serde_json::{Value, json};
use tandem::config::{File, Key, Kind, Overlay, PORT_KEYS, Problem, SWITCH_KEYS, TEAM_KEYS, build};

/// A right setting of each key, so that they go together.
fn right() -> Vec<(&'static str, Value)> {
    vec![
        ("vm", json!("web")),
        ("switch", json!("lab")),
        ("profile", json!("tenant")),
        ("socket", json!("web.sock")),
        ("socket_role", json!("listen")),
        ("socket_permissions", json!("0660")),
        ("mac", json!("52:54:00:00:00:01")),
        ("queue_pairs", json!(4)),
        ("mtu", json!(9000)),
        ("feature_level", json!(1)),
        ("failover", json!(true)),
        ("trunk_vlans", json!("10,20-29")),
        ("native_vlan", json!(10)),
        ("storm_limit", json!(500)),
        ("uplink_member", json!("no-eth0")),
    ]
}

fn right_switch() -> Vec<(&'static str, Value)> {
    vec![
        ("ageing_seconds", json!(60)),
        ("mac_limit", json!(100)),
        ("uplink", json!("no-eth3")),
        ("uplink_vlans", json!("10,20-29")),
        ("uplink_native_vlan", json!(10)),
    ]
}

fn right_team() -> Vec<(&'static str, Value)> {
    vec![
        ("members", json!(["no-eth0", "no-eth1:af_xdp"])),
        ("mode", json!("switch_independent")),
        ("distribution", json!("dynamic")),
        ("standby", json!("no-eth1")),
        ("probe", json!("heartbeat")),
        ("probe_vlan", json!(10)),
        ("probe_interval_ms", json!(100)),
        ("lldp", json!("both")),
    ]
}

/// Values that no setting of this kind can have.
fn wrong_values(key: &str, kind: Kind) -> Vec<Value> {
    let mut values = vec![
        json!([]),
        json!({}),
        json!(1.5),
        json!(-1),
        json!("\u{7f}\u{0}"),
    ];
    values.extend(match kind {
        Kind::Number => vec![json!("1"), json!(true), json!(1u64 << 32), json!(u64::MAX)],
        Kind::Flag => vec![json!("yes"), json!(1), json!("")],
        Kind::Text | Kind::List => vec![json!(7), json!(false)],
    });
    values.extend(match key {
        "vm" | "switch" | "profile" => vec![json!("a b"), json!("-a"), json!("a/b"), json!("ä")],
        "socket" => vec![
            json!(""),
            json!("a/"),
            json!("x".repeat(120)),
            json!("api.sock"),
        ],
        "socket_role" => vec![json!("server"), json!("Listen"), json!("")],
        "socket_group" => vec![json!("no such group"), json!("a:b"), json!("tandem-nobody")],
        "socket_permissions" => vec![json!("0888"), json!("rw"), json!("1000"), json!("+660")],
        "tap" | "uplink_member" | "standby" => vec![
            json!("a/b"),
            json!("tap%d"),
            json!("a-name-of-17-byte"),
            json!(".."),
        ],
        "mac" => vec![
            json!("52:54:00:00:00"),
            json!("01:00:5e:00:00:01"),
            json!("ff:ff:ff:ff:ff:ff"),
            json!("00:00:00:00:00:00"),
            json!("52-54-00-00-00-0g"),
        ],
        "queue_pairs" => vec![json!(0), json!(33)],
        "mtu" => vec![json!(67), json!(65_536)],
        "feature_level" => vec![json!(0), json!(2)],
        "vlan" | "native_vlan" | "uplink_native_vlan" | "probe_vlan" => {
            vec![json!(0), json!(4095)]
        }
        "ageing_seconds" => vec![json!(0), json!(32_001)],
        "mac_limit" => vec![json!(63), json!(32_769)],
        "probe_interval_ms" => vec![json!(49), json!(10_001)],
        "uplink" => vec![
            json!(""),
            json!("a/b"),
            json!("no-eth0:"),
            json!("no-eth0:dpdk"),
        ],
        "members" => vec![
            json!(""),
            json!("no-eth0,no-eth0"),
            json!(["no-eth0", "no-eth0:tap"]),
            json!(["no-eth0", 1]),
            json!([["no-eth0"]]),
            json!("no-eth0:af_xpd"),
            json!(vec!["no-eth0"; 33]),
        ],
        "mode" => vec![json!("LACP"), json!("active-backup"), json!("")],
        "distribution" => vec![json!("layer3+4"), json!("Port")],
        "lacp_timer" => vec![json!("fast"), json!("slow"), json!("1s")],
        "probe" => vec![
            json!("arp"),
            json!("192.0.2"),
            json!("0.0.0.0"),
            json!("ff02::1"),
            json!("fe80::1%no-eth0"),
        ],
        "lldp" => vec![json!("on"), json!("transmit")],
        "trunk_vlans" | "uplink_vlans" => vec![
            json!("0"),
            json!("9-3"),
            json!("1,,2"),
            json!("4095"),
            json!("a"),
        ],
        _ => vec![],
    });
    values
}

/// One wrong thing in settings that are right otherwise, and the key that is at fault.
fn wrong_settings() -> Vec<Wrong> {
    wrong_of(PORT_KEYS, right())
}

/// The key at fault, and the settings.
type Wrong = (String, Vec<(String, Value)>);

fn wrong_of<T>(keys: &[Key<T>], right: Vec<(&'static str, Value)>) -> Vec<Wrong> {
    let right: Vec<(String, Value)> = right
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let mut all = Vec::new();
    for key in keys {
        // Taken with what contradicts it left out, so that one thing only is wrong.
        let others = |other: &str| match key.name {
            "vlan" => !other.ends_with("vlan") && other != "trunk_vlans",
            "tap" => ["vm", "switch", "mac"].contains(&other),
            _ => true,
        };
        let others: Vec<(String, Value)> = right
            .iter()
            .filter(|(other, _)| other != key.name && others(other))
            .cloned()
            .collect();
        for value in wrong_values(key.name, key.kind) {
            let mut settings = others.clone();
            settings.push((key.name.to_owned(), value));
            all.push((key.name.to_owned(), settings));
        }
        for misspelt in [
            key.name[1..].to_owned(),
            format!("{}x", key.name),
            key.name.to_uppercase(),
        ] {
            let mut settings = others.clone();
            settings.push((misspelt.clone(), json!(1)));
            all.push((misspelt, settings));
        }
    }
    all
}

fn start() -> Daemon {
    let file = "[switch.lab]\n[profile.tenant]\n[port.db1]\nmac = \"52:54:00:00:00:02\"\n";
    let (dir, path) = config(file);
    let daemon = Daemon::start(&["--config", &path]);
    drop(dir);
    daemon
}

/// All that a user could see of a change.
fn state(daemon: &Daemon) -> (Value, Option<Vec<u8>>, Vec<std::ffi::OsString>) {
    let saved = fs::read(daemon.path("state/ports.json")).ok();
    let entries = fs::read_dir(daemon.path("run")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    (daemon.http("GET", "/api/v1/ports", "").json, saved, names)
}

#[test]
fn wrong_calls_change_nothing_and_name_the_field_and_a_remedy() {
    let daemon = start();
    let right: serde_json::Map<_, _> = right()
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let right = Value::Object(right).to_string();
    let made = daemon.http("PUT", "/api/v1/ports/there", &right);
    assert_eq!(made.status, 201, "{made:?}");
    let before = state(&daemon);
    let all = wrong_settings();
    assert!(all.len() >= 200, "{}", all.len());
    for (field, settings) in all {
        let body = Value::Object(settings.into_iter().collect()).to_string();
        for (method, port) in [("PUT", "new"), ("PUT", "there"), ("PATCH", "there")] {
            // What is there has its own address, and a socket that is no other's.
            let body = match port {
                "new" => body
                    .replace("52:54:00:00:00:01\"", "52:54:00:00:00:03\"")
                    .replace("\"web.sock\"", "\"new.sock\""),
                _ => body.clone(),
            };
            let answer = daemon.http(method, &format!("/api/v1/ports/{port}"), &body);
            let said = format!("{method} {port} {body}: {answer:?}");
            assert!(matches!(answer.status, 400 | 409), "{said}");
            let errors = answer.json["errors"].as_array().unwrap();
            assert!(
                errors.iter().any(|error| error["field"] == field),
                "{field}: {said}"
            );
            for error in errors {
                let words = |key: &str| error[key].as_str().unwrap_or_default().len();
                assert!(words("reason") > 3 && words("remedy") > 3, "{said}");
            }
        }
    }
    assert_eq!(state(&daemon), before);
    assert!(!daemon.log().contains("panic"), "{}", daemon.log());
}

#[test]
fn wrong_switches_and_teams_change_nothing_and_name_the_field_and_a_remedy() {
    let daemon = start();
    let object = |settings: Vec<(&str, Value)>| {
        let members = settings.into_iter().map(|(k, v)| (k.to_owned(), v));
        Value::Object(members.collect()).to_string()
    };
    let state = || {
        let all = ["/api/v1/switches", "/api/v1/teams"];
        let saved = fs::read(daemon.path("state/ports.json")).unwrap();
        (all.map(|path| daemon.http("GET", path, "").json), saved)
    };
    let switch = ("/api/v1/switches", object(right_switch()));
    let team = ("/api/v1/teams", object(right_team()));
    for (path, right) in [&switch, &team] {
        let made = daemon.http("PUT", &format!("{path}/there"), right);
        assert_eq!(made.status, 201, "{made:?}");
    }
    let before = state();
    let switches = wrong_of(SWITCH_KEYS, right_switch()).into_iter();
    let teams = wrong_of(TEAM_KEYS, right_team()).into_iter();
    let all = (switches.map(|wrong| (switch.0, wrong))).chain(teams.map(|wrong| (team.0, wrong)));
    let mut tried = 0;
    for (path, (field, settings)) in all {
        let body = Value::Object(settings.into_iter().collect()).to_string();
        for (method, name) in [("PUT", "new"), ("PUT", "there"), ("PATCH", "there")] {
            let answer = daemon.http(method, &format!("{path}/{name}"), &body);
            let said = format!("{method} {path}/{name} {body}: {answer:?}");
            assert_eq!(answer.status, 400, "{said}");
            let errors = answer.json["errors"].as_array().unwrap();
            assert!(
                errors.iter().any(|error| error["field"] == field),
                "{field}: {said}"
            );
            for error in errors {
                let words = |key: &str| error[key].as_str().unwrap_or_default().len();
                assert!(words("reason") > 3 && words("remedy") > 3, "{said}");
            }
            tried += 1;
        }
    }
    assert!(tried > 400, "{tried}");
    assert_eq!(state(), before);
    assert!(!daemon.log().contains("panic"), "{}", daemon.log());
}

#[test]
fn wrong_files_at_a_reload_change_nothing() {
    let (dir, path) = config("[switch.lab]\n[profile.tenant]\n[port.db1]\n");
    let daemon = Daemon::start(&["--config", &path]);
    let before = state(&daemon);
    let all = wrong_settings();
    // Each in TOML that says the same.
    let files = all.iter().step_by(9).map(|(key, settings)| {
        let lines = settings.iter().map(|(key, value)| match value {
            Value::Object(_) => format!("{key} = {{}}\n"),
            value => format!("{key} = {value}\n"),
        });
        let text = format!(
            "[switch.lab]\n[profile.tenant]\n[port.db1]\nmtu = 9000\n[port.new]\n{}",
            lines.collect::<String>()
        );
        (key, text)
    });
    for (key, text) in files {
        fs::write(&path, &text).unwrap();
        daemon.signal(rustix::process::Signal::HUP);
        while !daemon.notified().contains("READY=1") {}
        let log = daemon.log();
        let last: Vec<&str> = log.lines().rev().take(2).collect();
        assert!(last[0].contains("nothing was changed"), "{text}\n{log}");
        // TOML itself has no such text as JSON can have.
        let names_it = last[1].contains(key.as_str()) || last[1].contains("toml.io");
        assert!(names_it && last[1].contains("; "), "{text}\n{log}");
    }
    assert_eq!(state(&daemon), before);
    drop(dir);
}

/// The file that is broken bit by bit.
const FILE: &str = r#"[switch.default]
ageing_seconds = 300
mac_limit = 16384
uplink = "team0"
uplink_vlans = "10,20-29"
uplink_native_vlan = 10

[switch.lab]
uplink = "eth2:af_packet"

[team.team0]
members = ["eth0", "eth1:af_xdp"]
mode = "switch_independent"
distribution = "dynamic"
standby = "eth1"
probe = "192.0.2.1"
probe_vlan = 10
probe_interval_ms = 100
lldp = "both"

[profile.tenant]
queue_pairs = 4
storm_limit = 1000

[port.web1]
vm = "web"
profile = "tenant"
socket = "web1.sock"
socket_role = "listen"
socket_permissions = "0660"
mac = "52:54:00:12:34:56"
mtu = 9000
failover = true
vlan = 10

[port.router]
switch = "lab"
mac = "52:54:00:00:00:02"
feature_level = 1
trunk_vlans = "10,20-29"
native_vlan = 10
"#;

fn problems(text: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    match File::parse(text, "t.toml", &mut problems) {
        Ok(file) => problems.extend(
            build(&file, &Overlay::default(), &[], Path::new("/run/tandem"))
                .err()
                .into_iter()
                .flatten(),
        ),
        Err(wrong) => problems.extend(wrong),
    }
    problems
}

/// Changes one place of the text.
fn broken(text: &str, rng: &mut TestRng) -> String {
    use proptest::prelude::Rng;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut below = |n: usize| rng.next_u32() as usize % n.max(1);
    let at = below(lines.len());
    let line = lines[at].clone();
    match below(6) {
        0 => lines.insert(at, line),
        1 => lines.swap(at, below(text.lines().count())),
        2 => lines[at] = line.replace(['"', ']'], ""),
        3 => {
            let cut = below(line.len() + 1);
            lines[at] = line[..cut].to_owned();
        }
        kind => {
            let mut bytes = line.into_bytes();
            let at_byte = below(bytes.len());
            let letter = b"09azZ._-\"=[]#, "[below(15)];
            match (kind, bytes.get_mut(at_byte)) {
                (4, Some(byte)) => *byte = letter,
                _ => bytes.insert(at_byte, letter),
            }
            lines[at] = String::from_utf8(bytes).unwrap();
        }
    }
    lines.join("\n")
}

#[test]
fn a_file_broken_anywhere_is_taken_or_refused_with_line_and_remedy() {
    assert_eq!(problems(FILE), []);
    let mut runner = TestRunner::new(Config {
        rng_seed: RngSeed::Fixed(4),
        ..Config::default()
    });
    let mut rng = runner.new_rng();
    let mut refused = 0;
    for _ in 0..3_000 {
        let text = broken(FILE, &mut rng);
        let problems = problems(&text);
        refused += usize::from(!problems.is_empty());
        for problem in problems {
            let words = problem.to_string();
            let line = words
                .strip_prefix("t.toml:")
                .unwrap_or_else(|| panic!("{words}"));
            let line: usize = line.split(':').next().unwrap().parse().unwrap();
            assert!((1..=text.lines().count() + 1).contains(&line), "{words}");
            let told = &problem.refused;
            assert!(told.reason.len() > 3 && told.remedy.len() > 3, "{words}");
            // A key's own mistake names it; one of a table or of TOML itself has its line.
            let at_fault = text.lines().nth(line - 1).unwrap_or_default();
            if let Some(field) = told.field.as_deref().filter(|field| *field != "name") {
                let table = words.contains("[port.") || words.contains("[switch.");
                let table = table || words.contains("[profile.") || words.contains("[team.");
                assert!(
                    table && (at_fault.contains(field) || at_fault.contains('[')),
                    "{words}"
                );
            }
        }
    }
    assert!(refused >= 1_000, "{refused}");
}
