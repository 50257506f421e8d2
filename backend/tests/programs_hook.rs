//! `tandem migration hook`, called as libvirt calls it.

mod programs;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use programs::{Daemon, Done, connect, tandem};

/// A domain with these sockets.
fn xml(sockets: &[&Path]) -> String {
    let interfaces = sockets.iter().map(|socket| {
        let path = socket.display();
        format!("<interface type='vhostuser'><source type='unix' path='{path}' mode='client'/></interface>")
    });
    let interfaces: String = interfaces.collect();
    format!("<domain type='kvm'><name>web1</name><devices>{interfaces}</devices></domain>")
}

/// The hook with what libvirt gives it.
fn hook(mut command: Command, arguments: &[&str], xml: &str) -> Done {
    command.args(["migration", "hook"]).args(arguments);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = pipes.stderr(Stdio::piped()).spawn().unwrap();
    // It may have ended without a look.
    let _ = child.stdin.take().unwrap().write_all(xml.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done {
        code: output.status.code(),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

fn asks(daemon: &Daemon, arguments: &[&str], xml: &str) -> Done {
    let mut command = tandem(&[]);
    command.env("TANDEM_API_SOCKET", daemon.api());
    let done = hook(command, arguments, xml);
    assert_eq!(done.out, "", "what is printed replaces the domain");
    done
}

fn lets_in(daemon: &Daemon, xml: &str) {
    let done = asks(daemon, &["--", "web1", "migrate", "begin", "-"], xml);
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
}

fn refuses(daemon: &Daemon, xml: &str, why: &str) {
    let done = asks(daemon, &["--", "web1", "migrate", "begin", "-"], xml);
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.err.contains(why), "{done:?}");
    assert_eq!(done.err.lines().count(), 1, "{done:?}");
}

#[test]
fn a_vm_that_comes_needs_ports_that_are_there_and_free() {
    let daemon = Daemon::start(&["--port", "web1", "--port", "db1"]);
    let run = daemon.path("run");
    let [web, db, none] = ["web1.sock", "db1.sock", "web2.sock"].map(|name| run.join(name));
    lets_in(&daemon, &xml(&[&web, &db]));
    // Others' sockets, and VMs without one.
    lets_in(&daemon, &xml(&[&web, Path::new("/nowhere/other.sock")]));
    lets_in(&daemon, &xml(&[]));
    refuses(&daemon, &xml(&[&web, &none]), "no port has the socket");
    // By another way to the same.
    let link = daemon.path("link");
    std::os::unix::fs::symlink(&run, &link).unwrap();
    lets_in(&daemon, &xml(&[&link.join("web1.sock")]));
    refuses(
        &daemon,
        &xml(&[&link.join("web2.sock")]),
        "no port has the socket",
    );

    let vmm = connect(&web);
    while daemon.http("GET", "/api/v1/ports/web1", "").json["session"]["connected"] != true {}
    refuses(&daemon, &xml(&[&db, &web]), "port web1 is taken");
    lets_in(&daemon, &xml(&[&db]));
    drop(vmm);
    std::fs::remove_file(&db).unwrap();
    refuses(&daemon, &xml(&[&db]), "port db1 has lost its socket");
}

/// A failure would keep a VM from starting, or end one (`reconnect`).
#[test]
fn all_else_succeeds() {
    let daemon = Daemon::start(&["--port", "web1"]);
    let busy = daemon.path("run/web2.sock");
    let xml = xml(&[&busy]);
    let calls: &[&[&str]] = &[
        &["--", "web1", "prepare", "begin", "-"],
        &["--", "web1", "reconnect", "begin", "-"],
        &["--", "web1", "release", "end", "-"],
        &["--", "web1", "release", "end", "migrated"],
        &["--", "web1", "release", "end", "destroyed"],
        &[
            "--",
            "--json",
            "reconnect",
            "begin",
            "-",
            "more",
            "and more",
        ],
        &["web1", "reconnect", "begin", "-"],
        &["--", "web1"],
        &["--"],
        &[],
    ];
    for call in calls {
        let done = asks(&daemon, call, &xml);
        assert_eq!((done.code, done.err.as_str()), (Some(0), ""), "{call:?}");
    }
}

#[test]
fn no_vm_has_to_wait_for_a_daemon_that_does_not_run() {
    let socket = Path::new("/nowhere/run/web1.sock");
    for operation in [["migrate", "begin"], ["release", "end"]] {
        let mut command = tandem(&[]);
        command.env("TANDEM_API_SOCKET", "/nowhere/run/api.sock");
        let call = [&["--", "web1"], &operation[..], &["-"]].concat();
        let done = hook(command, &call, &xml(&[socket]));
        assert_eq!((done.code, done.out.as_str()), (Some(0), ""), "{done:?}");
        assert!(done.err.contains("no tandemd answers"), "{done:?}");
        assert!(done.err.contains("libvirt goes on"), "{done:?}");
    }
    // Nor for one that is not understood.
    let daemon = Daemon::start(&[]);
    let done = asks(&daemon, &["--", "web1", "migrate", "begin", "-"], "<domain");
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.err.contains("cannot be read"), "{done:?}");
}
