//! The stream of events, over the API and by `tandem events`.

mod programs;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use programs::{Daemon, connect, tandem};
use rustix::process::Signal;
use serde_json::Value;

/// A stream whose head has been read.
struct Stream(BufReader<UnixStream>);

impl Stream {
    fn open(daemon: &Daemon, headers: &str) -> (u16, Self) {
        let mut stream = connect(&daemon.api());
        let head = format!("GET /api/v1/events HTTP/1.1\r\nHost: t\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut stream = Self(BufReader::new(stream));
        let status = stream.line();
        while !stream.line().is_empty() {}
        (status.split(' ').nth(1).unwrap().parse().unwrap(), stream)
    }

    fn listen(daemon: &Daemon, headers: &str) -> Self {
        let (status, mut stream) = Self::open(daemon, headers);
        assert_eq!(status, 200);
        // From here on it hears all.
        while stream.line() != ": events follow" {}
        stream
    }

    /// The next line without its end; empty at the end as well.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn event(&mut self) -> Value {
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "the stream ended");
            if let Some(data) = line.strip_prefix("data: ") {
                return serde_json::from_str(data).unwrap();
            }
        }
    }

    /// Kinds and ports of the next events.
    fn events<const N: usize>(&mut self) -> [String; N] {
        std::array::from_fn(|_| {
            let event = self.event();
            let word = |key: &str| event[key].as_str().unwrap_or("-").to_owned();
            format!("{} {}", word("event"), word("port"))
        })
    }
}

#[test]
fn listeners_hear_what_changes_in_order() {
    let daemon = Daemon::start(&["--port", "db1"]);
    let mut all = Stream::listen(&daemon, "Last-Event-ID: 0\r\n");
    let mut new = Stream::listen(&daemon, "");
    for (method, body) in [("PUT", "{}"), ("PATCH", r#"{"mtu":9000}"#), ("DELETE", "")] {
        assert!(daemon.http(method, "/api/v1/ports/web1", body).status < 300);
    }
    let changes = ["port_added web1", "port_changed web1", "port_removed web1"];
    assert_eq!(new.events::<3>(), changes);
    assert_eq!(all.events::<1>(), ["port_added db1"]);
    assert_eq!(all.events::<3>(), changes);
    // What changes nothing is no event, and what is refused neither.
    daemon.http("PATCH", "/api/v1/ports/db1", r#"{"mtu":1}"#);
    daemon.http("PATCH", "/api/v1/ports/db1", "{}");
    daemon.signal(Signal::HUP);
    let event = new.event();
    assert_eq!(event["event"], "reloaded");
    assert_eq!(event["detail"], "ports: 0 added, 0 changed, 0 removed");
    let time = event["time"].as_str().unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
    // Whoever comes back hears what was since.
    let sequence = event["sequence"].as_u64().unwrap();
    let headers = format!("Last-Event-ID: {}\r\n", sequence - 2);
    let mut back = Stream::listen(&daemon, &headers);
    assert_eq!(back.events::<2>(), ["port_removed web1", "reloaded -"]);
    assert_eq!(Stream::open(&daemon, "Last-Event-ID: x\r\n").0, 400);
}

#[test]
fn streams_are_bounded_and_end_with_the_daemon() {
    let mut daemon = Daemon::start(&[]);
    let mut streams: Vec<Stream> = (0..32).map(|_| Stream::listen(&daemon, "")).collect();
    assert_eq!(Stream::open(&daemon, "").0, 503);
    assert_eq!(daemon.http("GET", "/api/v1/status", "").status, 200);
    drop(streams.pop());
    // The daemon notices at the next event that one is gone, if it has not before.
    daemon.http("PUT", "/api/v1/ports/a", "{}");
    daemon.http("DELETE", "/api/v1/ports/a", "");
    let mut last = loop {
        let (status, stream) = Stream::open(&daemon, "");
        if status == 200 {
            break stream;
        }
    };
    assert_eq!(daemon.end(Signal::TERM).code(), Some(0), "{}", daemon.log());
    let mut rest = Vec::new();
    assert!(std::io::Read::read_to_end(&mut last.0, &mut rest).is_ok());
}

#[test]
fn the_cli_shows_events_for_people_and_for_programs() {
    let daemon = Daemon::start(&[]);
    let listen = |args: &[&str]| {
        let mut command = tandem(args);
        command.env("TANDEM_API_SOCKET", daemon.api());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let people = listen(&["events", "--count", "1"]);
    let programs = listen(&["events", "--json", "--count", "1"]);
    let mut until_the_end = listen(&["events"]);
    let mut out = BufReader::new(until_the_end.stdout.take().unwrap());
    // They say nothing until there is an event: cause some until all have heard one.
    let (people, programs, _) = std::thread::scope(|scope| {
        let heard = scope.spawn(|| {
            (
                people.wait_with_output().unwrap(),
                programs.wait_with_output().unwrap(),
                out.read_line(&mut String::new()).unwrap(),
            )
        });
        while !heard.is_finished() {
            daemon.http("PUT", "/api/v1/ports/a", "{}");
            daemon.http("DELETE", "/api/v1/ports/a", "");
        }
        heard.join().unwrap()
    });
    let text = String::from_utf8(people.stdout).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert!(people.status.success() && words.len() == 3, "{text}");
    assert!(words[0].ends_with('Z') && words[1].starts_with("port_") && words[2] == "a");
    let event: Value = serde_json::from_slice(&programs.stdout).unwrap();
    assert!(programs.status.success() && event["port"] == "a");
    daemon.stop();
    let ended = until_the_end.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(ended.stderr).unwrap(),
        "tandem: tandemd has stopped; see its log\n"
    );
}
