//! Every key of a port, a switch and a team, in every way that a user can set it.

mod programs;

use programs::{Daemon, config};
use serde_json::{Value, json};
use tandem::config::{Kind, PORT_KEYS, SWITCH_KEYS, TEAM_KEYS};

/// A key and a value.
type Setting = (&'static str, Value);

/// A key, a value that is not its default, and what it takes beside it.
type Row = (&'static str, Value, Vec<Setting>);

fn rows() -> Vec<Row> {
    let group = programs::done(std::process::Command::new("id").arg("-gn")).out;
    vec![
        ("vm", json!("web"), vec![]),
        ("switch", json!("lab"), vec![]),
        ("profile", json!("tenant"), vec![]),
        ("socket", json!("other.sock"), vec![]),
        ("socket_role", json!("connect"), vec![]),
        ("socket_group", json!(group.trim()), vec![]),
        ("socket_permissions", json!("0600"), vec![]),
        ("tap", json!("tandem-keys"), vec![]),
        ("mac", json!("52:54:00:00:00:01"), vec![]),
        ("queue_pairs", json!(4), vec![]),
        ("mtu", json!(9000), vec![]),
        ("feature_level", json!(1), vec![]),
        ("failover", json!(true), vec![]),
        ("vlan", json!(10), vec![]),
        ("trunk_vlans", json!("10,20-29"), vec![]),
        (
            "native_vlan",
            json!(10),
            vec![("trunk_vlans", json!("10,20-29"))],
        ),
        ("storm_limit", json!(77), vec![]),
        ("uplink_member", json!("no-eth7"), vec![]),
    ]
}

fn switch_rows() -> Vec<Row> {
    let uplink = || vec![("uplink", json!("team0"))];
    vec![
        ("ageing_seconds", json!(77), vec![]),
        ("mac_limit", json!(100), vec![]),
        ("uplink", json!("no-eth7:af_packet"), vec![]),
        ("uplink_vlans", json!("10,20-29"), uplink()),
        ("uplink_native_vlan", json!(10), uplink()),
    ]
}

fn team_rows() -> Vec<Row> {
    let members = || ("members", json!(["no-eth1", "no-eth2:af_xdp"]));
    let probed = || vec![members(), ("probe", json!("heartbeat"))];
    vec![
        ("members", json!(["no-eth1:af_packet", "no-eth2"]), vec![]),
        ("mode", json!("static"), vec![members()]),
        ("distribution", json!("dynamic"), vec![members()]),
        ("standby", json!("no-eth2"), vec![members()]),
        (
            "lacp_timer",
            json!("slow"),
            vec![members(), ("mode", json!("lacp"))],
        ),
        ("probe", json!("192.0.2.1"), vec![members()]),
        ("probe_vlan", json!(10), probed()),
        ("probe_interval_ms", json!(50), probed()),
        ("lldp", json!("off"), vec![members()]),
    ]
}

/// As text, for flags.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// `key = value` in TOML.
fn toml(settings: &[Setting]) -> String {
    let line = |(key, value): &Setting| format!("{key} = {value}\n");
    settings.iter().map(line).collect()
}

/// `,key=value` behind `--port`, where lists join with `+`.
fn line(settings: &[Setting]) -> String {
    let is_list =
        |name: &str| (PORT_KEYS.iter()).any(|key| key.name == name && key.kind == Kind::List);
    let word = |(key, value): &Setting| {
        let text = plain(value);
        let text = if is_list(key) {
            text.replace(',', "+")
        } else {
            text
        };
        format!(",{key}={text}")
    };
    settings.iter().map(word).collect()
}

/// `--key=value` of the CLI.
fn flags(settings: &[Setting]) -> Vec<String> {
    let flag = |(key, value): &Setting| format!("--{}={}", key.replace('_', "-"), plain(value));
    settings.iter().map(flag).collect()
}

fn body(settings: &[Setting]) -> String {
    let members = settings.iter().map(|(k, v)| ((*k).to_owned(), v.clone()));
    Value::Object(members.collect()).to_string()
}

const TABLES: &str =
    "[switch.lab]\n[profile.tenant]\nstorm_limit = 5\n[team.team0]\nmembers = 'no-eth0'\n";

/// A noun, the API's path of all, and what one of it takes to be there.
type Noun = (&'static str, &'static str, &'static str);

const PORT: Noun = ("port", "/api/v1/ports", "");
const SWITCH: Noun = ("switch", "/api/v1/switches", "");
const TEAM: Noun = ("team", "/api/v1/teams", "members = 'no-eth9'\n");

/// Ways to make one called `p` of these settings, or to give them to one that is there; the daemon
/// and where the settings come from.
type Way = fn(Noun, &[Setting]) -> (Daemon, &'static str);

fn start(file: &str, args: &[&str]) -> Daemon {
    let (dir, path) = config(&format!("{TABLES}{file}"));
    let daemon = Daemon::start(&[&["--config", &path], args].concat());
    // The file is read at start and at a reload only.
    drop(dir);
    daemon
}

fn cli(daemon: &Daemon, (noun, ..): Noun, verb: &str, settings: &[Setting]) {
    let flags = flags(settings);
    let words = [noun, verb, "p"]
        .into_iter()
        .chain(flags.iter().map(String::as_str));
    let done = daemon.tandem(&words.collect::<Vec<_>>());
    assert_eq!(done.code, Some(0), "{done:?}");
}

const WAYS: &[(&str, Way)] = &[
    ("the file", |(noun, ..), settings| {
        let file = format!("[{noun}.p]\n{}", toml(settings));
        (start(&file, &[]), "file")
    }),
    ("--port", |_, settings| {
        let port = format!("p{}", line(settings));
        (start("", &["--port", &port]), "command_line")
    }),
    ("PUT", |(_, path, _), settings| {
        let daemon = start("", &[]);
        let answer = daemon.http("PUT", &format!("{path}/p"), &body(settings));
        assert_eq!(answer.status, 201, "{answer:?}");
        (daemon, "api")
    }),
    ("PATCH", |(noun, path, least), settings| {
        let daemon = start(&format!("[{noun}.p]\n{least}"), &[]);
        let answer = daemon.http("PATCH", &format!("{path}/p"), &body(settings));
        assert_eq!(answer.status, 200, "{answer:?}");
        (daemon, "api")
    }),
    ("add", |noun, settings| {
        let daemon = start("", &[]);
        cli(&daemon, noun, "add", settings);
        (daemon, "api")
    }),
    ("set", |noun, settings| {
        let daemon = start(&format!("[{}.p]\n{}", noun.0, noun.2), &[]);
        cli(&daemon, noun, "set", settings);
        (daemon, "api")
    }),
    ("a restart", |noun, settings| {
        let daemon = start("", &[]);
        cli(&daemon, noun, "add", settings);
        let (dir, path) = config(TABLES);
        let daemon = Daemon::start_in(daemon.stop(), &["--config", &path]);
        drop(dir);
        (daemon, "api")
    }),
];

#[test]
fn every_key_works_from_file_command_line_api_and_cli_alike() {
    let rows = rows();
    let tested: Vec<&str> = rows.iter().map(|(key, ..)| *key).collect();
    let known: Vec<&str> = PORT_KEYS.iter().map(|key| key.name).collect();
    assert_eq!(tested, known, "the table is not that of all keys");
    let devices = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    let has_tap = devices.is_ok() && rustix::process::geteuid().is_root();
    if !has_tap {
        println!("SKIPPED-PART every_key: tap needs root and /dev/net/tun");
    }
    for (key, value, beside) in rows {
        if key == "tap" && !has_tap {
            continue;
        }
        let settings = [vec![(key, value.clone())], beside].concat();
        for (way, set) in WAYS {
            let (daemon, origin) = set(PORT, &settings);
            let port = daemon.http("GET", "/api/v1/ports/p", "").json;
            let mut shown = port[key].clone();
            if key == "socket" {
                // It is shown with its whole path.
                let path = daemon.path("run/other.sock");
                assert_eq!(shown, path.to_str().unwrap(), "{way}");
                assert!(path.exists(), "{way}");
                shown = value.clone();
            }
            assert_eq!(shown, value, "{key} by {way}: {port}");
            assert_eq!(port["origin"][key], origin, "{key} by {way}");
            if key == "profile" {
                assert_eq!(port["storm_limit"], 5, "{way}");
                assert_eq!(port["origin"]["storm_limit"], "profile", "{way}");
            }
            // And as people see it.
            let text = daemon.tandem(&["port", "show", "p"]).out;
            let words = text
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{key} ")));
            let words = words.unwrap_or_else(|| panic!("{key} by {way}: {text}"));
            assert!(words.contains(&plain(&value)), "{key} by {way}: {words}");
        }
    }
}

/// The same for what no command line of the daemon has.
fn every_key_works(noun: Noun, known: &[&str], rows: Vec<Row>) {
    let tested: Vec<&str> = rows.iter().map(|(key, ..)| *key).collect();
    assert_eq!(tested, known, "the table is not that of all keys");
    for (key, value, beside) in rows {
        let settings = [vec![(key, value.clone())], beside].concat();
        for (way, set) in WAYS.iter().filter(|(way, _)| *way != "--port") {
            let (daemon, origin) = set(noun, &settings);
            let shown = daemon.http("GET", &format!("{}/p", noun.1), "").json;
            assert_eq!(shown[key], value, "{key} by {way}: {shown}");
            assert_eq!(shown["origin"][key], origin, "{key} by {way}");
            let text = daemon.tandem(&[noun.0, "show", "p"]).out;
            let words = text
                .lines()
                .find(|line| line.starts_with(&format!("{key} ")) && line.contains(&plain(&value)));
            assert!(words.is_some(), "{key} by {way}: {text}");
        }
    }
}

#[test]
fn every_key_of_a_switch_works_from_file_api_and_cli_alike() {
    let known: Vec<&str> = SWITCH_KEYS.iter().map(|key| key.name).collect();
    every_key_works(SWITCH, &known, switch_rows());
}

#[test]
fn every_key_of_a_team_works_from_file_api_and_cli_alike() {
    let known: Vec<&str> = TEAM_KEYS.iter().map(|key| key.name).collect();
    every_key_works(TEAM, &known, team_rows());
}
