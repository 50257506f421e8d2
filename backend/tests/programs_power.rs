//! What is kept when the power goes while it is being saved.

mod programs;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use programs::{Daemon, bound, connect};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// The system calls that saving is made of.
const CALLS: [&str; 6] = ["openat", "write", "fsync", "rename", "close", "fcntl"];

fn has_strace() -> bool {
    let there = std::process::Command::new("strace").arg("-V").output();
    let there = there.is_ok_and(|out| out.status.success());
    if !there {
        println!("SKIPPED-PART programs_power: strace is not installed (package strace)");
    }
    there
}

/// A daemon whose calls on the state directory are traced, and perhaps cut short.
struct Traced {
    daemon: Daemon,
    trace: PathBuf,
}

impl Traced {
    fn start(dir: TempDir, more: &[&str]) -> Self {
        let state = dir.path().join("state");
        fs::create_dir_all(&state).unwrap();
        let trace = dir.path().join("trace");
        let mut command = bound("strace");
        command.args(["-f", "-y", "-s", "0", "-o"]).arg(&trace);
        for name in ["", "ports.json", "ports.json.new"] {
            let path = state.join(name);
            command
                .arg("-P")
                .arg(path.to_str().unwrap().trim_end_matches('/'));
        }
        command.args(more).arg("--");
        command.args([env!("CARGO_BIN_EXE_tandemd"), "--port", "web1"]);
        Self {
            daemon: Daemon::begin_as(dir, command, |_| {}),
            trace,
        }
    }

    fn trace(&self) -> String {
        fs::read_to_string(&self.trace).unwrap_or_default()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // strace that is killed lets go of what it traces: that first. Its first line is of it.
        let trace = self.trace();
        let pid = trace
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok());
        if let Some(pid) = pid.and_then(Pid::from_raw)
            && !trace.contains("killed by")
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Sends a change; whether it was answered.
fn change(api: &Path, storm_limit: u32) -> bool {
    let mut stream = connect(api);
    let body = format!("{{\"storm_limit\":{storm_limit}}}");
    let head = format!(
        "PATCH /api/v1/ports/web1 HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut answer = String::new();
    let sent = stream.write_all(head.as_bytes());
    let read = sent.and_then(|()| stream.read_to_string(&mut answer));
    read.is_ok() && answer.starts_with("HTTP/1.1 200")
}

/// Is killed at the `nth` call of one kind; what was saved before and what was being saved.
fn cut(call: &str, nth: u32) -> Option<(TempDir, u32, u32)> {
    let inject = format!("inject={call}:signal=KILL:when={nth}");
    let mut traced = Traced::start(tempfile::tempdir().unwrap(), &["-e", &inject]);
    let api = traced.daemon.api();
    let (mut saved, mut last) = (0, 0);
    if traced.daemon.try_notified().as_deref() == Some("READY=1") {
        for value in 1..=3 {
            last = value;
            if !change(&api, value) {
                break;
            }
            saved = value;
        }
    }
    if saved == 3 {
        return None;
    }
    traced.daemon.end_of_itself();
    assert!(
        traced.trace().contains("killed by SIGKILL"),
        "{}",
        traced.trace()
    );
    let dir = std::mem::replace(&mut traced.daemon.dir, tempfile::tempdir().unwrap());
    Some((dir, saved, last))
}

#[test]
fn a_daemon_that_dies_at_any_call_of_a_save_keeps_the_old_or_the_new() {
    if !has_strace() {
        return;
    }
    let mut cuts = 0;
    for call in CALLS {
        // Far enough that a thread gets through a whole change and dies in the next.
        for nth in 1..=4 {
            let Some((dir, saved, last)) = cut(call, nth) else {
                continue;
            };
            cuts += 1;
            let daemon = Daemon::start_in(dir, &["--port", "web1"]);
            let port = daemon.http("GET", "/api/v1/ports/web1", "").json;
            let kept = port["storm_limit"].as_u64().unwrap();
            let default = 10_000;
            let value = |n: u32| if n == 0 { default } else { u64::from(n) };
            assert!(
                kept == value(saved) || kept == value(last),
                "{call} {nth}: {kept} is neither {} nor {}",
                value(saved),
                value(last)
            );
            assert_eq!(daemon.http("PATCH", "/api/v1/ports/web1", "{}").status, 200);
        }
    }
    assert!(cuts >= 12, "only {cuts} cuts");
}

/// A power cut keeps what was synced, and of the rest anything. So the new file is whole on the disk
/// before it has the name, and has the name on the disk before anybody is told.
#[test]
fn what_is_answered_is_on_the_disk_and_nothing_unfinished_has_the_name() {
    if !has_strace() {
        return;
    }
    let traced = Traced::start(tempfile::tempdir().unwrap(), &[]);
    assert_eq!(traced.daemon.notified(), "READY=1");
    let api = traced.daemon.api();
    let mut before = traced.trace().len();
    for value in 1..=20 {
        assert!(change(&api, value));
        // The answer is there, and so is all that was done for it.
        let trace = traced.trace();
        let lines: Vec<&str> = trace[before..].lines().collect();
        before = trace.len();
        let place = |what: &str, name: &str| {
            let found = lines
                .iter()
                .position(|line| line.contains(&format!(" {what}(")) && line.contains(name));
            found.unwrap_or_else(|| panic!("no {what} of {name} in {lines:#?}"))
        };
        let opened = place("openat", "ports.json.new\", O_WRONLY|O_CREAT|O_TRUNC");
        let renamed = place("rename", "ports.json.new");
        let synced = place("fsync", "ports.json.new>");
        let named = place("fsync", "/state>");
        assert!(
            opened < synced && synced < renamed && renamed < named,
            "{lines:#?}"
        );
        let writes = |range: &[&str]| range.iter().filter(|line| line.contains(" write(")).count();
        assert!(writes(&lines[opened..synced]) > 0);
        assert_eq!(writes(&lines[synced..]), 0, "{lines:#?}");
        assert!(
            lines
                .iter()
                .all(|line| !line.contains("ports.json\", O_WRONLY"))
        );
        let ok = |at: usize| lines[at].trim_end().ends_with("= 0");
        assert!(ok(synced) && ok(renamed) && ok(named), "{lines:#?}");
    }
    let saved = fs::read(traced.daemon.path("state/ports.json")).unwrap();
    let saved: Value = serde_json::from_slice(&saved).unwrap();
    assert_eq!(saved["ports"]["web1"]["storm_limit"], 20);
}
