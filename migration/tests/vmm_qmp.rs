//! QEMU's side of a migration as a script, and what the driver makes of it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde_json::{Value, json};
use tandem_migration::vmm::{
    ANSWER_TIME, MESSAGE_LEN, Outcome, Progress, Qmp, Vmm, VmmError, Wishes,
};
use tempfile::TempDir;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);
const URI: &str = "tcp:192.0.2.1:4444";

/// What the script has QEMU do when a command comes.
enum Say {
    /// The answer.
    Return(Value),
    /// The answer that it does not do it.
    Error(&'static str),
    /// Something happens, at that many microseconds.
    Event(&'static str, u64, Value),
    /// Bytes as they are.
    Raw(Vec<u8>),
    /// It ends.
    End,
}

fn state(name: &str) -> Say {
    Say::Event("MIGRATION", 0, json!({ "status": name }))
}

fn done() -> Say {
    Say::Return(json!({}))
}

/// A monitor that does as the script says; to commands that it is silent about, the answer is `{}`.
struct Monitor {
    _dir: TempDir,
    socket: PathBuf,
    heard: Arc<Mutex<Vec<Value>>>,
}

impl Monitor {
    fn start(script: impl FnMut(&str) -> Option<Vec<Say>> + Send + 'static) -> Self {
        Self::greeting(
            b"{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n",
            script,
        )
    }

    fn greeting(
        greeting: &'static [u8],
        mut script: impl FnMut(&str) -> Option<Vec<Say>> + Send + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        let heard = Arc::<Mutex<Vec<Value>>>::default();
        let log = Arc::clone(&heard);
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(greeting).unwrap();
            let commands = BufReader::new(stream.try_clone().unwrap()).lines();
            for line in commands.map_while(Result::ok) {
                let command: Value = serde_json::from_str(&line).unwrap();
                let name = command["execute"].as_str().unwrap();
                let said = script(name).unwrap_or_else(|| vec![done()]);
                log.lock().unwrap().push(command.clone());
                if !said.iter().all(|say| speak(&mut stream, &command, say)) {
                    break;
                }
            }
        });
        Self {
            _dir: dir,
            socket,
            heard,
        }
    }

    fn connect(&self) -> Result<Qmp, VmmError> {
        Qmp::connect(&self.socket)
    }

    /// Names of the commands that came, with their arguments.
    fn heard(&self) -> Vec<(String, Value)> {
        let name = |c: &Value| c["execute"].as_str().unwrap().to_owned();
        let heard = self.heard.lock().unwrap();
        heard
            .iter()
            .map(|command| (name(command), command["arguments"].clone()))
            .collect()
    }
}

/// Whether QEMU is still there afterwards. Who it talks to may be gone: that is no failure.
fn speak(stream: &mut UnixStream, command: &Value, say: &Say) -> bool {
    let line = match say {
        Say::Return(value) => json!({ "return": value, "id": command["id"] }),
        Say::Error(why) => {
            json!({ "error": { "class": "GenericError", "desc": why }, "id": command["id"] })
        }
        Say::Event(name, micros, data) => {
            let time = json!({ "seconds": 100, "microseconds": micros });
            json!({ "event": name, "timestamp": time, "data": data })
        }
        Say::Raw(bytes) => return stream.write_all(bytes).is_ok(),
        Say::End => return false,
    };
    stream.write_all(format!("{line}\r\n").as_bytes()).is_ok()
}

/// Migrates, and follows to the end.
fn run(monitor: &Monitor, wishes: &Wishes) -> (Result<Option<Outcome>, VmmError>, Vec<Progress>) {
    let mut qmp = monitor.connect().unwrap();
    let mut told = Vec::new();
    if let Err(error) = qmp.migrate(URI, wishes) {
        return (Err(error), told);
    }
    let outcome = qmp.follow(Instant::now() + LIMIT, &mut |p| told.push(p.clone()));
    (outcome, told)
}

fn states(told: &[Progress]) -> Vec<&str> {
    let mut states: Vec<_> = told
        .iter()
        .map(|progress| progress.state.as_str())
        .collect();
    states.dedup();
    states
}

#[test]
fn a_vm_moves() {
    let mut queries = 0;
    let monitor = Monitor::start(move |command| match command {
        "query-migrate-capabilities" => Some(vec![Say::Return(
            json!([{ "capability": "postcopy-ram", "state": false }]),
        )]),
        // Events come before the answer and after it.
        "migrate" => Some(vec![state("setup"), done(), state("active")]),
        "query-migrate" => {
            queries += 1;
            let figures = |status: &str, sent: u64| {
                json!({ "status": status, "total-time": 0, "expected-downtime": 300,
                    "ram": { "transferred": sent, "remaining": 1000 - sent, "total": 1000 } })
            };
            Some(match queries {
                1 => vec![
                    Say::Return(figures("active", 10)),
                    Say::Event("MIGRATION_PASS", 0, json!({ "pass": 1 })),
                    Say::Event("STOP", 5, json!(null)),
                    state("device"),
                    state("something-new"),
                    state("completed"),
                ],
                // The figures are not there yet.
                2 => vec![Say::Return(figures("completed", 990))],
                _ => vec![Say::Return(
                    json!({ "status": "completed", "total-time": 1234, "downtime": 56,
                        "ram": { "transferred": 1000, "remaining": 0, "total": 1000 } }),
                )],
            })
        }
        _ => None,
    });
    let wishes = Wishes {
        max_bandwidth: Some(1 << 20),
        downtime: Some(Duration::from_millis(250)),
        ..Wishes::default()
    };
    let (outcome, told) = run(&monitor, &wishes);
    let completed = Outcome::Completed {
        downtime_ms: Some(56),
        total_ms: Some(1234),
    };
    assert_eq!(outcome, Ok(Some(completed)));
    let expected = ["setup", "active", "device", "something-new", "completed"];
    assert_eq!(states(&told), expected);
    let first = told.iter().find(|progress| progress.total.is_some());
    assert_eq!(first.unwrap().transferred, Some(10));
    assert_eq!(first.unwrap().downtime_ms, Some(300), "as estimated");
    let last = told.last().unwrap();
    assert_eq!((last.remaining, last.downtime_ms), (Some(0), Some(56)));
    let stopped = UNIX_EPOCH + Duration::new(100, 5000);
    assert_eq!((last.stopped_at, last.resumed_at), (Some(stopped), None));

    let heard = monitor.heard();
    assert_eq!(heard[0].0, "qmp_capabilities");
    assert_eq!(
        heard[2].1,
        json!({ "capabilities": [
            { "capability": "events", "state": true },
            { "capability": "return-path", "state": true },
        ] })
    );
    assert_eq!(
        heard[3].1,
        json!({ "max-bandwidth": 1 << 20, "downtime-limit": 250 })
    );
    assert_eq!(heard[4], ("migrate".to_owned(), json!({ "uri": URI })));
}

#[test]
fn a_migration_fails_and_the_vm_goes_on_here() {
    let monitor = Monitor::start(|command| match command {
        "migrate" => Some(vec![
            done(),
            Say::Event("STOP", 1, json!(null)),
            state("failed"),
        ]),
        "query-migrate" => Some(vec![
            Say::Return(json!({ "status": "failed", "error-desc": "no\u{1b}[2J way" })),
            Say::Event("RESUME", 7, json!(null)),
        ]),
        _ => None,
    });
    let (outcome, told) = run(&monitor, &Wishes::default());
    assert_eq!(outcome, Ok(Some(Outcome::Failed("no [2J way".to_owned()))));
    let resumed = UNIX_EPOCH + Duration::new(100, 7000);
    assert_eq!(told.last().unwrap().resumed_at, Some(resumed));
}

#[test]
fn events_that_are_switched_off_are_no_loss() {
    let monitor = Monitor::start(|command| match command {
        "query-migrate" => Some(vec![Say::Return(
            json!({ "status": "failed", "error-desc": "why" }),
        )]),
        _ => None,
    });
    let (outcome, _) = run(&monitor, &Wishes::default());
    assert_eq!(outcome, Ok(Some(Outcome::Failed("why".to_owned()))));
}

#[test]
fn a_migration_is_cancelled() {
    let monitor = Monitor::start(|command| match command {
        "migrate" => Some(vec![done(), state("wait-unplug")]),
        "migrate_cancel" => Some(vec![state("cancelling"), done(), state("cancelled")]),
        _ => None,
    });
    let mut qmp = monitor.connect().unwrap();
    qmp.migrate(URI, &Wishes::default()).unwrap();
    let mut told = Vec::new();
    // As a caller that looks for a signal every now and then.
    let outcome = qmp.follow(Instant::now(), &mut |p| told.push(p.clone()));
    assert_eq!(outcome, Ok(None));
    qmp.cancel().unwrap();
    let outcome = qmp.follow(Instant::now() + LIMIT, &mut |p| told.push(p.clone()));
    assert_eq!(outcome, Ok(Some(Outcome::Cancelled)));
    let states = states(&told);
    assert_eq!(states[states.len() - 2..], ["cancelling", "cancelled"]);
    let outcome = qmp.follow(Instant::now() + LIMIT, &mut |_| ());
    assert_eq!(outcome, Err(VmmError::NotBegun));
}

#[test]
fn a_migration_that_takes_too_long_is_cancelled() {
    let monitor = Monitor::start(|command| match command {
        "migrate_cancel" => Some(vec![done(), state("cancelled")]),
        _ => None,
    });
    let wishes = Wishes {
        time: Some(Duration::ZERO),
        ..Wishes::default()
    };
    let (outcome, _) = run(&monitor, &wishes);
    assert_eq!(outcome, Ok(Some(Outcome::Cancelled)));
    let heard = monitor.heard();
    let cancels = heard.iter().filter(|(name, _)| name == "migrate_cancel");
    assert_eq!(cancels.count(), 1);
}

#[test]
fn a_pause_before_the_switchover_ends_if_asked_for() {
    for go_on_at_switchover in [true, false] {
        let monitor = Monitor::start(|command| match command {
            "migrate" => Some(vec![done(), state("pre-switchover")]),
            "migrate-continue" => Some(vec![done(), state("device"), state("completed")]),
            "query-migrate" => Some(vec![Say::Return(json!({ "total-time": 1 }))]),
            _ => None,
        });
        let mut qmp = monitor.connect().unwrap();
        let wishes = Wishes {
            go_on_at_switchover,
            ..Wishes::default()
        };
        qmp.migrate(URI, &wishes).unwrap();
        let mut paused = false;
        let mut outcome = None;
        while !paused || (go_on_at_switchover && outcome.is_none()) {
            let each = &mut |p: &Progress| paused |= p.state == "pre-switchover";
            outcome = qmp.follow(Instant::now(), each).unwrap();
        }
        assert_eq!(outcome.is_some(), go_on_at_switchover);
        let heard = monitor.heard();
        let on = heard.iter().find(|(name, _)| name == "migrate-continue");
        let arguments = on.map(|(_, arguments)| arguments);
        let state = json!({ "state": "pre-switchover" });
        assert_eq!(arguments, go_on_at_switchover.then_some(&state));
    }
}

#[test]
fn post_copy_and_what_moves_no_vm_are_refused() {
    for (name, expected) in [
        ("postcopy-ram", VmmError::Postcopy),
        ("x-colo", VmmError::Stays("x-colo".to_owned())),
    ] {
        let monitor = Monitor::start(move |command| match command {
            "query-migrate-capabilities" => Some(vec![Say::Return(
                json!([{ "capability": "xbzrle", "state": true },
                    { "capability": name, "state": true }]),
            )]),
            _ => None,
        });
        let (outcome, _) = run(&monitor, &Wishes::default());
        assert_eq!(outcome, Err(expected));
        assert!(monitor.heard().iter().all(|(name, _)| name != "migrate"));
    }
}

#[test]
fn a_refusal_has_qemus_reason() {
    let monitor = Monitor::start(|command| match command {
        "migrate" => Some(vec![Say::Error("invalid protocol")]),
        _ => None,
    });
    let (outcome, _) = run(&monitor, &Wishes::default());
    let error = outcome.unwrap_err();
    assert_eq!(
        error,
        VmmError::Refused {
            what: "migrate".to_owned(),
            why: "invalid protocol".to_owned()
        }
    );
    assert!(error.to_string().contains("start the migration again"));
}

#[test]
fn a_qemu_that_does_not_answer_is_not_waited_for() {
    let monitor = Monitor::start(|command| (command == "migrate").then(Vec::new));
    let mut qmp = monitor.connect().unwrap();
    let begun = Instant::now();
    let error = qmp.migrate(URI, &Wishes::default()).unwrap_err();
    assert_eq!(error, VmmError::Slow("migrate".to_owned()));
    assert!(begun.elapsed() >= ANSWER_TIME);
}

#[test]
fn a_monitor_that_somebody_else_has_does_not_greet() {
    let monitor = Monitor::greeting(b"", |_| None);
    let error = monitor.connect().unwrap_err();
    assert_eq!(error, VmmError::Busy(monitor.socket.clone()));
    assert!(error.to_string().contains("-qmp unix:"));
}

#[test]
fn nobody_listens() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qmp");
    let error = Qmp::connect(&socket).unwrap_err();
    assert_eq!(error, VmmError::NotRunning(socket));
}

#[test]
fn another_protocol_is_no_monitor() {
    for greeting in [b"(qemu) \n".as_slice(), b"{\"hello\": 1}\n", b"\xff\n"] {
        let monitor = Monitor::greeting(greeting, |_| None);
        let error = monitor.connect().unwrap_err();
        assert_eq!(error, VmmError::NotQmp(monitor.socket.clone()));
    }
}

#[test]
fn qemu_ends_in_the_middle() {
    for last in [b"".as_slice(), b"{\"return\": {"] {
        let monitor = Monitor::start(move |command| {
            let end = || vec![Say::Raw(last.to_vec()), Say::End];
            (command == "query-migrate").then(end)
        });
        let (outcome, _) = run(&monitor, &Wishes::default());
        assert!(matches!(outcome, Err(VmmError::Gone(_))), "{outcome:?}");
    }
}

#[test]
fn qemu_may_end_once_its_vm_is_gone() {
    let monitor = Monitor::start(|command| match command {
        "migrate" => Some(vec![done(), state("completed"), Say::End]),
        _ => None,
    });
    let (outcome, _) = run(&monitor, &Wishes::default());
    let completed = Outcome::Completed {
        downtime_ms: None,
        total_ms: None,
    };
    assert_eq!(outcome, Ok(Some(completed)));
}

#[test]
fn what_makes_no_sense_is_an_error() {
    let garbage = |bytes: Vec<u8>| {
        let monitor = Monitor::start(move |command| {
            (command == "query-migrate").then(|| vec![Say::Raw(bytes.clone())])
        });
        run(&monitor, &Wishes::default()).0.unwrap_err()
    };
    let error = garbage(b"{]\n".to_vec());
    assert!(matches!(error, VmmError::Protocol { .. }), "{error:?}");
    let error = garbage(b"{}\n".to_vec());
    assert!(matches!(error, VmmError::Protocol { .. }), "{error:?}");
    let error = garbage(vec![b'['; MESSAGE_LEN + 2]);
    assert_eq!(error, VmmError::TooLong);
    let events = "{\"event\": \"STOP\"}\n".repeat(2000);
    let error = garbage(events.into_bytes());
    assert!(matches!(error, VmmError::Protocol { .. }), "{error:?}");
}

#[test]
fn answers_to_what_was_asked_before_are_passed_over() {
    let monitor = Monitor::start(|command| {
        (command == "query-migrate").then(|| {
            let old = b"{\"return\": {\"status\": \"completed\"}, \"id\": 1}\r\n".to_vec();
            let failed = json!({ "status": "failed", "error-desc": "now" });
            vec![Say::Raw(old), Say::Return(failed)]
        })
    });
    let (outcome, _) = run(&monitor, &Wishes::default());
    assert_eq!(outcome, Ok(Some(Outcome::Failed("now".to_owned()))));
}
