//! How `tandemd` starts, stops and fails.

mod programs;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use programs::{Daemon, config, connect, done, tandemd};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Signal;

/// The names in a directory, sorted; empty if it is not there.
fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn it_works_without_ports_and_is_ready_when_it_says_so() {
    let daemon = Daemon::start(&[]);
    let answer = daemon.http("GET", "/api/v1/status", "");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json["switches"][0]["name"], "default");
    assert_eq!(answer.json["ports"]["total"], 0);
    assert_eq!(answer.json["version"], env!("CARGO_PKG_VERSION"));
    assert!(daemon.log().contains("is ready"), "{}", daemon.log());
}

#[test]
fn sockets_exist_when_it_is_ready_and_are_gone_when_it_stopped() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon =
            Daemon::start(&["--port", "web1", "--port", "db1,socket_permissions=0600"]);
        let run = daemon.path("run");
        for name in ["web1.sock", "db1.sock", "api.sock"] {
            assert!(
                names(&run).contains(&name.to_owned()),
                "{name}: {:?}",
                names(&run)
            );
            assert!(
                fs::metadata(run.join(name))
                    .unwrap()
                    .file_type()
                    .is_socket()
            );
        }
        let mode = |name: &str| fs::metadata(run.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("api.sock"), 0o660);
        assert_eq!(mode("web1.sock"), 0o660);
        assert_eq!(mode("db1.sock"), 0o600);
        assert_eq!(daemon.end(signal).code(), Some(0), "{}", daemon.log());
        assert_eq!(daemon.notified(), "STOPPING=1");
        assert_eq!(
            names(daemon.dir.path()),
            ["log", "notify"],
            "something is left"
        );
    }
}

/// More often than the service manager asks for, and not only when it becomes ready.
#[test]
fn a_watchdog_is_fed_while_the_switch_looks_after_its_ports() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::begin(dir, &["--port", "web1"], |command| {
        command.env("WATCHDOG_USEC", "400000");
    });
    let mut said = vec![daemon.notified(), daemon.notified(), daemon.notified()];
    said.sort();
    assert_eq!(said, ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]);
    daemon.stop();
}

#[test]
fn a_hang_up_reads_the_file_again() {
    let (dir, path) = config("[port.web1]\nmtu = 2000\n[port.old]\n");
    let daemon = Daemon::start(&["--config", &path, "--port", "line"]);
    let ports = || -> Vec<(String, u64)> {
        let answer = daemon.http("GET", "/api/v1/ports", "").json;
        let port = |port: &serde_json::Value| {
            let name = port["name"].as_str().unwrap().to_owned();
            (name, port["mtu"].as_u64().unwrap())
        };
        answer["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(port)
            .collect()
    };
    let are = |list: &[(&str, u64)]| {
        let list: Vec<_> = list
            .iter()
            .map(|(n, mtu)| ((*n).to_owned(), *mtu))
            .collect();
        assert_eq!(ports(), list, "{}", daemon.log());
    };
    are(&[("line", 1500), ("old", 1500), ("web1", 2000)]);
    fs::write(&path, "[port.web1]\nmtu = 3000\n[port.new]\n").unwrap();
    daemon.reload();
    let after = [("line", 1500), ("new", 1500), ("web1", 3000)];
    are(&after);
    assert!(daemon.path("run/new.sock").exists() && !daemon.path("run/old.sock").exists());
    assert!(daemon.log().contains("1 added, 1 changed, 1 removed"));
    // A bad file is refused whole.
    for text in [
        "[port.web1]\nmtu = 1\n[port.newer]\n",
        "[port",
        "[prot.x]\n",
    ] {
        fs::write(&path, text).unwrap();
        daemon.reload();
        are(&after);
    }
    drop(dir);
    daemon.reload();
    are(&after);
    daemon.stop();
}

#[test]
fn a_request_in_progress_does_not_hold_up_the_end() {
    let mut daemon = Daemon::start(&[]);
    let mut idle = connect(&daemon.api());
    idle.write_all(b"GET /api/v1/st").unwrap();
    assert_eq!(daemon.end(Signal::TERM).code(), Some(0));
    assert_eq!(idle.read(&mut [0; 16]).unwrap_or(0), 0);
}

#[test]
fn a_failed_start_leaves_nothing() {
    // The second port's directory is missing, so that the first one exists when it fails.
    for args in [
        &["--port", "a", "--port", "b,socket=missing/b.sock"][..],
        &["--port", "a", "--port", "b,mtu=1"],
        &["--port", "a", "--cpus", "8000"],
        &["--config", "/nonexistent"],
    ] {
        let mut daemon = Daemon::begin(tempfile::tempdir().unwrap(), args, |_| {});
        assert_eq!(
            daemon.end_of_itself(),
            Some(1),
            "{args:?}: {}",
            daemon.log()
        );
        assert_eq!(
            names(daemon.dir.path()),
            ["log", "notify"],
            "{args:?}: something is left"
        );
        assert!(
            daemon
                .log()
                .lines()
                .any(|line| line.starts_with("tandemd: ")),
            "{}",
            daemon.log()
        );
    }
}

#[test]
fn sockets_of_a_daemon_that_was_killed_are_taken_over() {
    let dir = Daemon::start(&["--port", "web1"]).crash();
    assert_eq!(names(&dir.path().join("run")).len(), 2);
    let daemon = Daemon::start_in(dir, &["--port", "web1"]);
    assert_eq!(daemon.http("GET", "/api/v1/ports/web1", "").status, 200);
    let dir = daemon.stop();
    assert!(names(&dir.path().join("run")).is_empty());
}

#[test]
fn a_directory_that_another_daemon_uses_is_refused() {
    let daemon = Daemon::start(&[]);
    let path = |name: &str| daemon.path(name).to_str().unwrap().to_owned();
    let (run, state, other) = (path("run"), path("state"), path("other"));
    for (args, option) in [
        (["--run-dir", &run, "--state-dir", &other], "--run-dir"),
        (["--run-dir", &other, "--state-dir", &state], "--state-dir"),
    ] {
        let second = done(&mut tandemd(&args));
        assert_eq!(second.code, Some(1));
        for word in [option, "another tandemd uses", "choose another"] {
            assert!(second.err.contains(word), "{}", second.err);
        }
        assert!(!daemon.path("other").exists());
    }
    assert_eq!(daemon.http("GET", "/api/v1/status", "").status, 200);
}

#[test]
fn a_socket_that_somebody_answers_on_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    fs::create_dir(&run).unwrap();
    let _other = UnixListener::bind(run.join("api.sock")).unwrap();
    let mut daemon = Daemon::begin(dir, &[], |_| {});
    assert_eq!(daemon.end_of_itself(), Some(1));
    assert!(
        daemon.log().contains("a daemon answers on"),
        "{}",
        daemon.log()
    );
    assert_eq!(names(&daemon.path("run")), ["api.sock"]);
}

#[test]
fn a_file_in_the_place_of_the_socket_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    fs::create_dir(&run).unwrap();
    fs::write(run.join("api.sock"), "mine").unwrap();
    let mut daemon = Daemon::begin(dir, &[], |_| {});
    assert_eq!(daemon.end_of_itself(), Some(1));
    assert!(
        daemon.log().contains("is no socket; move it away"),
        "{}",
        daemon.log()
    );
    assert_eq!(fs::read(daemon.path("run/api.sock")).unwrap(), b"mine");
}

#[test]
fn a_damaged_state_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("state")).unwrap();
    fs::write(dir.path().join("state/ports.json"), "{\"version\":1,\"po").unwrap();
    let mut daemon = Daemon::begin(dir, &[], |_| {});
    assert_eq!(daemon.end_of_itself(), Some(1));
    let log = daemon.log();
    assert!(
        log.contains("ports.json: is damaged") && log.contains("move it away"),
        "{log}"
    );
    assert_eq!(
        fs::read(daemon.path("state/ports.json")).unwrap(),
        b"{\"version\":1,\"po"
    );
}

#[test]
fn the_file_and_the_command_line_add_up() {
    let (_keep, path) = config("[port.web1]\nmtu = 9000\nvlan = 3\n[switch.blue]\n");
    let daemon = Daemon::start(&["--config", &path, "--port", "web1,vlan=4,switch=blue"]);
    let port = daemon.http("GET", "/api/v1/ports/web1", "").json;
    assert_eq!((&port["mtu"], &port["vlan"]), (&9000.into(), &4.into()));
    assert_eq!(port["origin"]["mtu"], "file");
    assert_eq!(port["origin"]["vlan"], "command_line");
    assert_eq!(port["origin"]["mac"], "default");
    let status = daemon.http("GET", "/api/v1/status", "").json;
    assert_eq!(status["switches"][0]["name"], "blue");
    assert_eq!(status["switches"][0]["ports"], 1);
}

#[test]
fn cpus_are_a_set_that_it_may_use() {
    let first = rustix::thread::sched_getaffinity(None).unwrap();
    let cpu = (0..).find(|cpu| first.is_set(*cpu)).unwrap();
    let daemon = Daemon::start(&["--cpus", &cpu.to_string()]);
    assert_eq!(
        daemon.http("GET", "/api/v1/status", "").json["cpus"],
        serde_json::json!([cpu])
    );
    for (list, code, word) in [
        ("8000", 1, "choose of"),
        ("3-1", 2, "write 1-3"),
        ("x", 2, "such as 2-7,9"),
    ] {
        let wrong = done(&mut tandemd(&["--check", "--cpus", list]));
        assert_eq!(wrong.code, Some(code), "{list}");
        assert!(
            wrong.err.contains("--cpus") && wrong.err.contains(word),
            "{}",
            wrong.err
        );
    }
}

#[test]
fn usage_errors_are_one_line_and_status_2() {
    for (args, word) in [
        (&["--prot", "a"][..], "--port"),
        (&["--fd", "1"], "--fd"),
        (&["--fd", "9", "--socket-path", "x"], "cannot be used with"),
        (
            &["--socket-path", "x", "--port", "web1"],
            "cannot be used with",
        ),
        (&["--fd", "9", "--port", "web1"], "cannot be used with"),
        (&["start"], "start"),
        (&["--config"], "--config"),
    ] {
        let wrong = done(&mut tandemd(args));
        assert_eq!(wrong.code, Some(2), "{args:?}");
        assert_eq!(wrong.err.lines().count(), 1, "{}", wrong.err);
        assert!(
            wrong.err.contains(word) && wrong.err.contains("tandemd --help"),
            "{}",
            wrong.err
        );
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let help = done(&mut tandemd(&["--help"]));
    assert_eq!(help.code, Some(0));
    assert!(help.out.contains("--run-dir") && help.out.contains("trunk_vlans"));
    let version = done(&mut tandemd(&["--version"]));
    assert_eq!(
        version.out,
        format!("tandemd {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn capabilities_are_printed_whatever_else_is_asked() {
    for args in [
        &["--print-capabilities"][..],
        &["--wrong", "--print-capabilities", "--fd=7"],
    ] {
        let done = done(&mut tandemd(args));
        assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
        let json: serde_json::Value = serde_json::from_str(&done.out).unwrap();
        assert_eq!(json, serde_json::json!({"type": "net", "features": []}));
    }
}

#[test]
fn a_backend_program_serves_one_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vm.sock");
    let mut daemon = Daemon::start_in(dir, &["--socket-path", socket.to_str().unwrap()]);
    assert!(fs::metadata(&socket).unwrap().file_type().is_socket());
    let port = daemon.http("GET", "/api/v1/ports/net0", "").json;
    assert_eq!(port["socket"], socket.to_str().unwrap());
    assert_eq!(daemon.end(Signal::TERM).code(), Some(0));
    assert!(!socket.exists());

    let long = format!("/tmp/{}", "x".repeat(120));
    let wrong = done(&mut tandemd(&["--check", "--socket-path", &long]));
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.err.contains("has 125 bytes"), "{}", wrong.err);
}

#[test]
fn a_backend_program_takes_an_inherited_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vm.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    fcntl_setfd(&listener, FdFlags::empty()).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&listener).to_string();
    let daemon = Daemon::start_in(dir, &["--fd", &number]);
    drop(listener);
    let _vmm = connect(&socket);
    assert_eq!(daemon.http("GET", "/api/v1/ports/net0", "").status, 200);

    for (number, word) in [("999", "cannot be used"), ("2147483647", "cannot be used")] {
        let wrong = done(&mut tandemd(&["--check", "--fd", number]));
        assert_eq!(wrong.code, Some(1));
        assert!(
            wrong.err.contains("--fd") && wrong.err.contains(word),
            "{}",
            wrong.err
        );
    }
    let file = fs::File::open("/dev/null").unwrap();
    fcntl_setfd(&file, FdFlags::empty()).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&file).to_string();
    let wrong = done(&mut tandemd(&["--check", "--fd", &number]));
    assert!(wrong.err.contains("is no socket"), "{}", wrong.err);
}

#[test]
fn a_port_set_over_the_api_is_the_same_after_a_restart() {
    let line = ["--port", "web1,trunk_vlans=1+2"];
    let daemon = Daemon::start(&line);
    let put = daemon.http("PUT", "/api/v1/ports/web1", r#"{"vlan": 7}"#);
    assert_eq!(put.status, 200, "{put:?}");
    let before = daemon.http("GET", "/api/v1/ports/web1", "").json;
    let daemon = Daemon::start_in(daemon.stop(), &line);
    assert_eq!(daemon.http("GET", "/api/v1/ports/web1", "").json, before);
}

#[test]
fn a_saved_port_whose_switch_is_gone_stops_no_other() {
    let (_keep, path) = config("[switch.blue]\n");
    let daemon = Daemon::start(&["--config", &path, "--port", "web1"]);
    let blue = r#"{"switch": "blue"}"#;
    assert_eq!(daemon.http("PUT", "/api/v1/ports/web2", blue).status, 201);
    let daemon = Daemon::start_in(daemon.stop(), &["--port", "web1"]);
    assert!(daemon.path("run/web1.sock").exists());
    let log = daemon.log();
    let warning = log.lines().find(|line| line.contains("WARN")).unwrap();
    for word in ["port web2", "no switch blue", "tandem port remove web2"] {
        assert!(warning.contains(word), "no {word:?} in: {warning}");
    }
    let list = daemon.tandem(&["port", "list"]);
    let row = list
        .out
        .lines()
        .find(|line| line.starts_with("web2"))
        .unwrap();
    assert!(row.contains("down"), "{row}");
    let shown = daemon.tandem(&["port", "show", "web2"]);
    assert!(shown.out.contains("no switch blue"), "{}", shown.out);
    assert_eq!(daemon.tandem(&["port", "remove", "web2"]).code, Some(0));
    let dir = daemon.stop();
    std::fs::write(dir.path().join("log"), "").unwrap();
    let daemon = Daemon::start_in(dir, &["--port", "web1"]);
    assert!(!daemon.log().contains("web2"), "{}", daemon.log());
}
