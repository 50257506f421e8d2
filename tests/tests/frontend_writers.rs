//! Two writers change one port over and over while others talk: no update is lost, no frame of a port
//! that nobody touches is, and nothing grows.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tandem_tests::frontend::driver::{Config, Nic};
use tandem_tests::frontend::frames::{mac, number_of, numbered};
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::spec::{self, NetHdr};
use tandem_tests::lab::{long, say};

/// Changes before what the daemon holds is looked at, for what is taken once.
const BEFORE: u64 = 200;

const PORTS: &[&str] = &[
    "a,mac=52:54:00:00:00:01",
    "b,mac=52:54:00:00:00:02",
    "c,mac=52:54:00:00:00:03,storm_limit=1",
];

/// A connection that is kept open.
struct Api(BufReader<UnixStream>);

struct Answer {
    status: u16,
    tag: String,
    body: Value,
}

impl Api {
    fn open(path: &PathBuf) -> Result<Self> {
        Ok(Self(BufReader::new(UnixStream::connect(path)?)))
    }

    fn call(&mut self, method: &str, headers: &str, body: &str) -> Result<Answer> {
        let length = body.len();
        let head = format!("{method} /api/v1/ports/c HTTP/1.1\r\nHost: t\r\n");
        let text = format!("{head}Content-Length: {length}\r\n{headers}\r\n{body}");
        self.0.get_mut().write_all(text.as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line.split(' ').nth(1).context("no status")?.parse()?;
        let (mut tag, mut length) = (String::new(), 0);
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                Some(("etag", value)) => tag = value.to_owned(),
                Some(("content-length", value)) => length = value.parse()?,
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        let body = serde_json::from_slice(&body)?;
        Ok(Answer { status, tag, body })
    }
}

/// Adds one to a setting so many times, each time to what is there. How often the other was first.
fn count_up(path: &PathBuf, changes: u64) -> Result<u64> {
    let mut api = Api::open(path)?;
    let (mut done, mut lost) = (0, 0);
    let mut seen = api.call("GET", "", "")?;
    while done < changes {
        let next = seen.body["storm_limit"].as_u64().context("no limit")? + 1;
        let condition = format!("If-Match: {}\r\n", seen.tag);
        let answer = api.call(
            "PATCH",
            &condition,
            &json!({"storm_limit": next}).to_string(),
        )?;
        match answer.status {
            200 => {
                ensure!(answer.body["storm_limit"] == next, "{}", answer.body);
                done += 1;
                seen = answer;
            }
            412 => {
                lost += 1;
                seen = api.call("GET", "", "")?;
            }
            other => anyhow::bail!("{other}: {}", answer.body),
        }
    }
    Ok(lost)
}

fn two_writers(rig: &Rig, changes: u64) -> Result<u64> {
    let path = rig.daemon.run_dir().join("api.sock");
    std::thread::scope(|scope| {
        let writers = [0, 1].map(|_| scope.spawn(|| count_up(&path, changes / 2)));
        let lost = writers.map(|writer| writer.join().expect("a writer"));
        Ok(lost.into_iter().collect::<Result<Vec<_>>>()?.iter().sum())
    })
}

/// Sends both ways until told to stop; every frame arrives, in order. How many each way.
fn talk(mut a: Nic, mut b: Nic, stop: &AtomicBool) -> u64 {
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) || next == 0 {
        let burst = |src, dst| -> Vec<_> {
            let frames = (next..next + 32).map(|i| (NetHdr::default(), numbered(src, dst, i)));
            frames.collect()
        };
        a.send_burst(&burst(mac(1), mac(2)));
        b.send_burst(&burst(mac(2), mac(1)));
        for i in next..next + 32 {
            assert_eq!(number_of(&b.recv().1), i);
            assert_eq!(number_of(&a.recv().1), i);
        }
        next += 32;
    }
    a.flush();
    b.flush();
    next
}

#[test]
fn two_writers_lose_no_update_and_others_no_frame() -> Result<()> {
    // Each is on the disk before it is answered, so they take their time.
    let changes = if long() { 10_000 } else { 1_000 };
    let mut rig = Rig::new(PORTS)?;
    let config = Config::with(spec::MRG_RXBUF | spec::EVENT_IDX);
    let (a, b) = (rig.nic("a", &config)?, rig.nic("b", &config)?);
    let mut c = rig.nic("c", &config)?;
    two_writers(&rig, BEFORE)?;
    let before = rig.holdings()?;
    let stop = AtomicBool::new(false);
    let (lost, talked) = std::thread::scope(|scope| {
        let talk = scope.spawn(|| talk(a, b, &stop));
        let lost = two_writers(&rig, changes);
        stop.store(true, Ordering::Relaxed);
        (lost, talk.join().expect("the talk"))
    });
    let lost = lost?;
    say(&format!(
        "{changes} changes, {lost} made again for the other writer's; {talked} frames each way"
    ));
    let port = rig.port("c")?;
    assert_eq!(port["storm_limit"], 1 + BEFORE + changes);
    assert_eq!(port["session"]["connects"], 1);
    let counters = rig.settled()?;
    for port in ["a", "b"] {
        assert_eq!(counters.ports[port].drops(), 0, "{counters:#?}");
        assert_eq!(counters.ports[port].from_vm, talked);
    }
    assert!(c.try_recv(0).is_none());
    let after = rig.back_to(&before)?;
    let grown = after.resident_kib.saturating_sub(before.resident_kib);
    say(&format!(
        "resident memory: {} KiB, then {grown} more",
        before.resident_kib
    ));
    // The log is a file, events and ports are bounded: what grows with changes would be seen.
    ensure!(grown < 2048, "{grown} KiB more after {changes} changes");
    Ok(())
}
