//! Every key of a port, in every way that a user can set it.

mod programs;

use programs::{Daemon, config};
use serde_json::{Value, json};
use tandem::config::{Kind, PORT_KEYS};

/// A key and a value.
type Setting = (&'static str, Value);

/// A key, a value that is not its default, and what it takes beside it.
fn rows() -> Vec<(&'static str, Value, Vec<Setting>)> {
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
    ]
}

/// As text, for flags.
fn plain(value: &Value) -> String {
    value.as_str().map_or(value.to_string(), str::to_owned)
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

const TABLES: &str = "[switch.lab]\n[profile.tenant]\nstorm_limit = 5\n";

/// Ways to make the port `p` of these settings, or to give them to one that is there; the daemon
/// and where the settings come from.
type Way = fn(&[Setting]) -> (Daemon, &'static str);

fn start(file: &str, args: &[&str]) -> Daemon {
    let (dir, path) = config(&format!("{TABLES}{file}"));
    let daemon = Daemon::start(&[&["--config", &path], args].concat());
    // The file is read at start and at a reload only.
    drop(dir);
    daemon
}

fn cli(daemon: &Daemon, verb: &str, settings: &[Setting]) {
    let flags = flags(settings);
    let words = ["port", verb, "p"]
        .into_iter()
        .chain(flags.iter().map(String::as_str));
    let done = daemon.tandem(&words.collect::<Vec<_>>());
    assert_eq!(done.code, Some(0), "{done:?}");
}

const WAYS: &[(&str, Way)] = &[
    ("the file", |settings| {
        let file = format!("[port.p]\n{}", toml(settings));
        (start(&file, &[]), "file")
    }),
    ("--port", |settings| {
        let port = format!("p{}", line(settings));
        (start("", &["--port", &port]), "command_line")
    }),
    ("PUT", |settings| {
        let daemon = start("", &[]);
        let answer = daemon.http("PUT", "/api/v1/ports/p", &body(settings));
        assert_eq!(answer.status, 201, "{answer:?}");
        (daemon, "api")
    }),
    ("PATCH", |settings| {
        let daemon = start("[port.p]\n", &[]);
        let answer = daemon.http("PATCH", "/api/v1/ports/p", &body(settings));
        assert_eq!(answer.status, 200, "{answer:?}");
        (daemon, "api")
    }),
    ("port add", |settings| {
        let daemon = start("", &[]);
        cli(&daemon, "add", settings);
        (daemon, "api")
    }),
    ("port set", |settings| {
        let daemon = start("[port.p]\n", &[]);
        cli(&daemon, "set", settings);
        (daemon, "api")
    }),
    ("a restart", |settings| {
        let daemon = start("", &[]);
        cli(&daemon, "add", settings);
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
            let (daemon, origin) = set(&settings);
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
