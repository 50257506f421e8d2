//! `tandem` against a running daemon.

mod programs;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use programs::{Daemon, Done, done, tandem};
use serde_json::Value;

fn ok(done: &Done) -> &str {
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""), "{done:?}");
    &done.out
}

/// One line on stderr with these words, nothing on stdout.
fn refused(done: &Done, code: i32, words: &[&str]) {
    assert_eq!((done.code, done.out.as_str()), (Some(code), ""), "{done:?}");
    assert_eq!(done.err.lines().count(), 1, "{}", done.err);
    assert!(done.err.starts_with("tandem: "), "{}", done.err);
    for word in words {
        assert!(done.err.contains(word), "no {word:?} in: {}", done.err);
    }
}

#[test]
fn a_port_is_added_listed_shown_and_removed() {
    let daemon = Daemon::start(&["--port", "db1"]);
    let added = daemon.tandem(&[
        "port",
        "add",
        "web1",
        "--mac",
        "52:54:00:00:00:01",
        "--queue-pairs",
        "4",
        "--failover",
        "--trunk-vlans",
        "10,20-29",
    ]);
    let socket = daemon.path("run/web1.sock");
    assert_eq!(
        ok(&added),
        format!("port web1 added: socket {}\n", socket.display())
    );
    assert!(socket.exists());

    let list = daemon.tandem(&["port", "list"]);
    let lines: Vec<Vec<&str>> = ok(&list)
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0][..4], ["PORT", "VM", "SWITCH", "STATE"]);
    assert_eq!(lines[1][..4], ["db1", "db1", "default", "down"]);
    assert_eq!(
        lines[2][..6],
        [
            "web1",
            "web1",
            "default",
            "down",
            "52:54:00:00:00:01",
            "trunk"
        ]
    );
    assert_eq!(ok(&daemon.tandem(&["port", "ls"])), list.out);

    let show = daemon.tandem(&["port", "show", "web1"]);
    let show = ok(&show);
    assert!(show.contains("down: no VMM is connected"), "{show}");
    let setting = |key: &str| -> Vec<&str> {
        let line = show.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().skip(1).collect()
    };
    assert_eq!(setting("queue_pairs "), ["4", "api"]);
    assert_eq!(setting("failover "), ["true", "api"]);
    assert_eq!(setting("mtu "), ["1500", "default"]);

    assert_eq!(
        ok(&daemon.tandem(&["port", "remove", "web1"])),
        "port web1 removed\n"
    );
    assert!(!socket.exists());
    assert_eq!(
        ok(&daemon.tandem(&["port", "del", "db1"])),
        "port db1 removed; the command line of tandemd names db1: it comes back at the next start \
         unless it is taken out there\n"
    );
    assert!(ok(&daemon.tandem(&["port", "list"])).contains("tandem port add"));
}

#[test]
fn json_is_what_the_api_says() {
    let daemon = Daemon::start(&["--port", "web1"]);
    for (args, path) in [
        (
            &["port", "show", "web1", "--json"][..],
            "/api/v1/ports/web1",
        ),
        (&["--json", "port", "list"], "/api/v1/ports"),
    ] {
        let json: Value = serde_json::from_str(ok(&daemon.tandem(args))).unwrap();
        assert_eq!(json, daemon.http("GET", path, "").json);
    }
    let status: Value = serde_json::from_str(ok(&daemon.tandem(&["status", "--json"]))).unwrap();
    assert_eq!(status["run_dir"], daemon.path("run").to_str().unwrap());
    let added: Value =
        serde_json::from_str(ok(&daemon.tandem(&["port", "add", "x", "--json"]))).unwrap();
    assert_eq!(added["name"], "x");
    assert_eq!(ok(&daemon.tandem(&["port", "remove", "x", "--json"])), "");
}

#[test]
fn every_key_is_a_flag() {
    let daemon = Daemon::start(&[]);
    let help = done(&mut tandem(&["port", "add", "--help"]));
    let port = {
        daemon.tandem(&["port", "add", "x"]);
        daemon.http("GET", "/api/v1/ports/x", "").json
    };
    let keys = port["origin"].as_object().unwrap().keys();
    for key in keys {
        let flag = format!("--{} ", key.replace('_', "-")).replace("--failover ", "--failover[");
        assert!(ok(&help).contains(&flag), "{flag}: {}", help.out);
    }
}

#[test]
fn tables_fit_a_terminal() {
    let (port, vm) = ("p".repeat(60), "v".repeat(64));
    let daemon = Daemon::start(&[
        "--port",
        &format!("{port},vm={vm},mac=52:54:00:00:00:01,vlan=4094"),
    ]);
    for args in [&["port", "list"][..], &["port", "show", &port], &["status"]] {
        let out = daemon.tandem(args);
        // A word that cannot be broken, such as a path, may be longer.
        for line in ok(&out)
            .lines()
            .filter(|line| !line.contains(".sock") && !line.contains(&vm))
        {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}

#[test]
fn status_shows_the_whole() {
    let daemon = Daemon::start(&["--port", "a,vm=one", "--port", "b,vm=one"]);
    let status = daemon.tandem(&["status"]);
    let status = ok(&status);
    for word in [
        env!("CARGO_PKG_VERSION"),
        "2, of them 0 up; 1 VMs",
        "default",
        "UNICAST",
    ] {
        assert!(status.contains(word), "no {word:?} in: {status}");
    }
}

#[test]
fn refusals_are_one_line_that_says_what_to_do() {
    let daemon = Daemon::start(&["--port", "web1,mac=52:54:00:00:00:01"]);
    let add = |args: &[&str]| daemon.tandem(&[&["port", "add"], args].concat());
    refused(
        &add(&["web1"]),
        1,
        &["port web1 already", "choose another name"],
    );
    refused(
        &add(&["x", "--mtu", "9"]),
        1,
        &["mtu: 9 is too small", "68 to 65535"],
    );
    refused(
        &add(&["x", "--mtu", "big"]),
        1,
        &["mtu: \"big\" is not a number"],
    );
    refused(
        &add(&["x", "--mac", "52:54:00:00:00:01"]),
        1,
        &["mac: ", "port web1's", "its own"],
    );
    refused(
        &add(&["x", "--vlan", "5", "--trunk-vlans", "6"]),
        1,
        &["vlan: ", "keep vlan"],
    );
    refused(
        &add(&["x", "--switch", "blue"]),
        1,
        &["switch: ", "add [switch.blue]"],
    );
    refused(
        &daemon.tandem(&["port", "show", "nope"]),
        1,
        &["no port nope", "tandem port list"],
    );
    refused(
        &daemon.tandem(&["port", "remove", "nope"]),
        1,
        &["no port nope"],
    );
    assert_eq!(
        daemon.http("GET", "/api/v1/status", "").json["ports"]["total"],
        1
    );
}

#[test]
fn usage_errors_are_status_2() {
    for (args, word) in [
        (&[][..], "tandem --help"),
        (&["prot"], "similar"),
        (&["port"], "tandem port --help"),
        (&["port", "shwo"], "show"),
        (&["port", "show"], "<NAME>"),
        (&["port", "show", "a b"], "letters, digits"),
        (&["port", "add", "../x"], "letters, digits"),
        (&["port", "add", "x", "--mut", "3"], "--mut"),
        (&["port", "add", "x", "--mtu"], "--mtu"),
        (
            &["port", "add", "x", "--mtu", "1400", "--mtu", "1400"],
            "--mtu",
        ),
        (&["status", "web1"], "web1"),
    ] {
        refused(&done(&mut tandem(args)), 2, &[word]);
    }
}

#[test]
fn a_daemon_that_is_not_there_is_told_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let path = socket.to_str().unwrap();
    refused(
        &done(&mut tandem(&["status", "--api-socket", path])),
        1,
        &[path, "start it"],
    );
    // One that was killed leaves its socket behind.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    refused(
        &done(&mut tandem(&["status", "--api-socket", path])),
        1,
        &[path, "start it"],
    );
}

#[test]
fn a_daemon_that_breaks_off_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let closing = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let done = done(&mut tandem(&[
        "status",
        "--api-socket",
        socket.to_str().unwrap(),
    ]));
    refused(&done, 1, &["broke off", "log"]);
    closing.join().unwrap();
}

#[test]
fn a_socket_of_others_is_told() {
    if rustix::process::geteuid().is_root() {
        eprintln!("skipped: root may open every socket");
        return;
    }
    let daemon = Daemon::start(&[]);
    fs::set_permissions(daemon.api(), Permissions::from_mode(0o000)).unwrap();
    refused(
        &daemon.tandem(&["status"]),
        1,
        &["may not be opened", "group tandem"],
    );
}

#[test]
fn a_removed_port_of_the_command_line_is_said_to_come_back() {
    let daemon = Daemon::start(&["--port", "web1"]);
    let removed = daemon.tandem(&["port", "remove", "web1"]);
    let words = ok(&removed);
    for word in ["port web1 removed", "command line", "comes back"] {
        assert!(words.contains(word), "no {word:?} in: {words}");
    }
    assert!(!daemon.path("run/web1.sock").exists());
}

#[test]
fn settings_are_changed_one_by_one() {
    let daemon = Daemon::start(&["--port", "web1,mtu=2000,vlan=7"]);
    let set = |words: &[&str]| daemon.tandem(&[&["port", "set", "web1"], words].concat());
    let port = || -> Value {
        let shown = daemon.tandem(&["port", "show", "web1", "--json"]);
        serde_json::from_str(ok(&shown)).unwrap()
    };
    assert_eq!(
        ok(&set(&["--vlan", "9", "--storm-limit", "5"])),
        "port web1 changed\n"
    );
    let now = port();
    assert_eq!(
        (&now["mtu"], &now["vlan"], &now["storm_limit"]),
        (&2000.into(), &9.into(), &5.into())
    );
    ok(&set(&[
        "--default",
        "vlan,storm-limit",
        "--trunk-vlans",
        "1,2",
    ]));
    let now = port();
    assert_eq!(
        (&now["mtu"], &now["vlan"], &now["storm_limit"]),
        (&2000.into(), &Value::Null, &10_000.into())
    );
    assert_eq!(now["trunk_vlans"], "1-2");
    refused(&set(&["--mtu", "1"]), 1, &["mtu"]);
    refused(&set(&["--default", "mut"]), 1, &["mut", "mtu"]);
    refused(&set(&[]), 2, &["nothing to set"]);
    refused(&set(&["--mtu", "1500", "--default", "mtu"]), 2, &["mtu"]);
    refused(
        &daemon.tandem(&["port", "set", "no", "--mtu", "1500"]),
        1,
        &["no port no"],
    );
    assert_eq!(port(), now);
}

#[test]
fn vms_are_their_ports_taken_together() {
    let daemon = Daemon::start(&[
        "--port",
        "a,vm=web",
        "--port",
        "b,vm=web,queue_pairs=2",
        "--port",
        "db",
    ]);
    let list = daemon.tandem(&["vm", "list"]);
    let rows: Vec<Vec<&str>> = ok(&list)
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0][..4], ["VM", "PORTS", "UP", "THREADS"]);
    assert_eq!(
        (rows[1][..3].to_vec(), rows[2][..3].to_vec()),
        (vec!["db", "1", "0"], vec!["web", "2", "0"])
    );
    assert!(ok(&list).lines().all(|line| line.len() <= 80));
    let shown = daemon.tandem(&["vm", "show", "web"]);
    assert!(ok(&shown).contains("a b (0 up)"), "{}", shown.out);
    let json = daemon.tandem(&["vm", "show", "web", "--json"]);
    let vm: Value = serde_json::from_str(ok(&json)).unwrap();
    assert_eq!((&vm["name"], &vm["ports"][1]), (&"web".into(), &"b".into()));
    assert!(vm["threads"].as_u64().unwrap() >= 1 && vm["cpu_seconds"].as_f64().unwrap() >= 0.0);
    refused(
        &daemon.tandem(&["vm", "show", "none"]),
        1,
        &["no VM none", "vm list"],
    );
    refused(&daemon.tandem(&["vm", "show", "a/b"]), 2, &[]);
    // A VM is gone with its last port.
    for port in ["a", "b", "db"] {
        ok(&daemon.tandem(&["port", "remove", port]));
    }
    assert!(ok(&daemon.tandem(&["vm", "ls"])).starts_with("no VMs; "));
}

#[test]
fn switches_and_profiles_are_shown_and_changed() {
    let (dir, path) = programs::config(
        "[switch.lab]\n[profile.tenant]\nstorm_limit = 1000\nsocket_permissions = \"0600\"\n\
         [port.web1]\nprofile = \"tenant\"\n",
    );
    let daemon = Daemon::start(&["--config", &path]);
    drop(dir);
    let profiles = daemon.tandem(&["profile", "list"]);
    let words: Vec<Vec<&str>> = ok(&profiles)
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(
        words.contains(&vec!["tenant", "socket_permissions", "0600"]),
        "{words:?}"
    );
    assert!(
        words.contains(&vec!["tenant", "storm_limit", "1000"]),
        "{words:?}"
    );
    assert!(
        words.contains(&vec!["ports", "of", "tenant:", "web1"]),
        "{words:?}"
    );

    let added = daemon.tandem(&["switch", "add", "blue", "--mac-limit", "100"]);
    assert_eq!(ok(&added), "switch blue added\n");
    let twice = daemon.tandem(&["switch", "add", "blue"]);
    refused(&twice, 1, &["there is a switch blue already"]);
    let set = daemon.tandem(&["switch", "set", "blue", "--ageing-seconds", "60"]);
    assert_eq!(ok(&set), "switch blue changed\n");
    let show = daemon.tandem(&["switch", "show", "blue"]);
    let setting = |key: &str| -> Vec<&str> {
        let line = ok(&show)
            .lines()
            .find(|line| line.starts_with(key))
            .unwrap();
        line.split_whitespace().skip(1).collect()
    };
    assert_eq!(setting("mac_limit"), ["100", "api"]);
    assert_eq!(setting("ageing_seconds"), ["60", "api"]);
    ok(&daemon.tandem(&["port", "set", "web1", "--switch", "blue"]));
    let in_use = daemon.tandem(&["switch", "remove", "blue"]);
    refused(&in_use, 1, &["has ports: web1", "remove them"]);
    ok(&daemon.tandem(&["port", "reset", "web1"]));
    assert_eq!(
        ok(&daemon.tandem(&["switch", "del", "blue"])),
        "switch blue removed\n"
    );
    refused(
        &daemon.tandem(&["switch", "remove", "lab"]),
        1,
        &["configuration file"],
    );
    refused(
        &daemon.tandem(&["switch", "reset", "blue"]),
        1,
        &["no switch blue"],
    );
    let wrong = daemon.tandem(&["switch", "set", "lab", "--mac-limit", "1"]);
    refused(&wrong, 1, &["mac_limit: ", "1 is too small"]);
}

#[test]
fn numbers_are_shown_again_and_again() {
    let daemon = Daemon::start(&["--port", "web1"]);
    let top = daemon.tandem(&["top", "--interval", "0.1", "--count", "2"]);
    let lines: Vec<&str> = ok(&top).lines().collect();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert!(lines[0].starts_with("PORT") && lines[1].starts_with("web1"));
    assert_eq!((lines[2], lines[3]), ("", lines[0]));
    let json = daemon.tandem(&["top", "--interval", "0.1", "--count", "1", "--json"]);
    let object: Value = serde_json::from_str(ok(&json)).unwrap();
    assert_eq!(object["ports"][0]["port"], "web1");
    let never = daemon.tandem(&["port", "list", "--watch=0"]);
    refused(&never, 2, &["0.1 to 3600"]);
}

#[test]
fn shells_and_man_find_what_they_need() {
    for (shell, words) in [
        ("bash", "complete -F _tandem"),
        ("zsh", "#compdef tandem"),
        ("fish", "complete -c tandem"),
    ] {
        for program in ["tandem", "tandemd"] {
            let done = done(&mut tandem(&["completions", shell, program]));
            assert!(ok(&done).contains(words), "{shell} {program}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    ok(&done(&mut tandem(&["man", path])));
    for page in [
        "tandem.1",
        "tandem-port-add.1",
        "tandem-switch-set.1",
        "tandem-team-member-add.1",
        "tandemd.8",
    ] {
        let text = fs::read_to_string(dir.path().join(page)).unwrap();
        assert!(
            text.contains(".SH NAME") && text.contains(".SH OPTIONS"),
            "{page}"
        );
    }
    let gone = dir.path().join("gone");
    let failed = done(&mut tandem(&["man", gone.to_str().unwrap()]));
    refused(&failed, 1, &["No such file", "name a directory"]);
}

#[test]
fn a_migration_has_one_vmm_and_its_options() {
    let start = ["migration", "start", "web1", "--uri", "u"];
    for (more, word) in [
        (&[][..], "--virsh"),
        (&["--qmp", "a", "--virsh", "b"], "--virsh"),
        (&["--qmp", "a", "--events", "b"], "--events"),
        (&["--qmp", "a", "--connect", "b"], "--connect"),
        (&["--qmp", "a", "--migrate-uri", "b"], "--migrate-uri"),
        (&["--qmp", "a", "--", "--persistent"], "OPTION"),
        (&["--cloud-hypervisor", "a", "--connect", "b"], "--connect"),
        (&["--virsh", "a", "--events", "b"], "--events"),
    ] {
        refused(&done(&mut tandem(&[&start, more].concat())), 2, &[word]);
    }
}
