//! cloud-hypervisor's side of a migration as a script, and what the driver makes of it.
//!
//! What is answered when is that of its versions 50 to 53 (vmm/src/api/http and vmm/src/lib.rs there).

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tandem_migration::vmm::{
    ANSWER_TIME, CloudHypervisor, MESSAGE_LEN, Outcome, Progress, Vmm, VmmError, Wishes,
};
use tempfile::TempDir;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);
const URI: &str = "tcp:192.0.2.1:4444";
/// What the API is silent with.
const NO_CONTENT: &str =
    "HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n";

/// An answer of the API.
enum Say {
    /// With a body.
    Answer(u16, Value),
    /// That it is done.
    Done,
    /// Bytes as they are.
    Raw(Vec<u8>),
    /// None, until the test is over.
    Nothing,
    /// The VMM ends, and its socket with it.
    End,
}

fn counters() -> Say {
    Say::Answer(200, json!({ "_net1": { "rx_bytes": 1 } }))
}

fn migrating() -> Say {
    let why = "VM is currently migrating and can't be modified";
    Say::Answer(500, json!(["Error from API", why]))
}

/// An API that does as the script says.
struct Api {
    dir: TempDir,
    socket: PathBuf,
    heard: Arc<Mutex<Vec<(String, String)>>>,
}

impl Api {
    /// `script` gets the path of all requests but for the version.
    fn start(version: &'static str, mut script: impl FnMut(&str) -> Say + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api");
        let listener = UnixListener::bind(&socket).unwrap();
        let heard = Arc::<Mutex<Vec<(String, String)>>>::default();
        let log = Arc::clone(&heard);
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let (path, body) = read_request(&stream);
                let said = match path.as_str() {
                    "GET /api/v1/vmm.ping" => Say::Answer(200, json!({ "version": version })),
                    path => script(path),
                };
                log.lock().unwrap().push((path, body));
                match said {
                    Say::Answer(status, body) => stream.write_all(&answer(status, &body)),
                    Say::Done => stream.write_all(NO_CONTENT.as_bytes()),
                    Say::Raw(bytes) => stream.write_all(&bytes),
                    Say::Nothing => {
                        held.push(stream);
                        continue;
                    }
                    Say::End => break,
                }
                // Who has asked may be gone.
                .unwrap_or_default();
            }
        });
        Self { dir, socket, heard }
    }

    fn connect(&self) -> Result<CloudHypervisor, VmmError> {
        CloudHypervisor::connect(&self.socket, None)
    }

    fn events(&self) -> (PathBuf, File) {
        let path = self.dir.path().join("events");
        let file = File::create(&path).unwrap();
        (path, file)
    }

    /// The body of the request that began the migration.
    fn sent(&self) -> Value {
        let heard = self.heard.lock().unwrap();
        let sent = heard
            .iter()
            .find(|(path, _)| path.contains("send-migration"));
        serde_json::from_str(&sent.unwrap().1).unwrap()
    }
}

fn answer(status: u16, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Method and path, and the body.
fn read_request(stream: &UnixStream) -> (String, String) {
    let mut reader = BufReader::new(stream);
    let (mut first, mut len) = (String::new(), 0);
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end().split_once(": ") {
            Some(("Content-Length", value)) => len = value.parse().unwrap(),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body).unwrap();
    let path = first.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    (path, String::from_utf8(body).unwrap())
}

/// An event as cloud-hypervisor writes it.
fn event(at_ms: u64, name: &str, properties: Value) -> Vec<u8> {
    let time = json!({ "secs": at_ms / 1000, "nanos": at_ms % 1000 * 1_000_000 });
    let event =
        json!({ "timestamp": time, "source": "vm", "event": name, "properties": properties });
    format!("{event:#}\n\n").into_bytes()
}

fn follow(vmm: &mut CloudHypervisor) -> (Result<Option<Outcome>, VmmError>, Vec<Progress>) {
    let mut told = Vec::new();
    let outcome = vmm.follow(Instant::now() + LIMIT, &mut |p| told.push(p.clone()));
    (outcome, told)
}

fn run(api: &Api) -> Result<Option<Outcome>, VmmError> {
    let mut vmm = api.connect().unwrap();
    vmm.migrate(URI, &Wishes::default())?;
    follow(&mut vmm).0
}

fn completed(total_ms: Option<u64>) -> Outcome {
    Outcome::Completed {
        downtime_ms: None,
        total_ms,
    }
}

#[test]
fn an_older_one_answers_when_the_vm_has_moved() {
    let (go, gone): (Sender<()>, Receiver<()>) = channel();
    let api = Api::start("51.1.0", move |_| {
        gone.recv().unwrap();
        Say::Done
    });
    let mut vmm = api.connect().unwrap();
    vmm.migrate(URI, &Wishes::default()).unwrap();
    let outcome = vmm.follow(Instant::now(), &mut |_| ());
    assert_eq!(outcome, Ok(None), "it is under way");
    go.send(()).unwrap();
    assert_eq!(follow(&mut vmm).0, Ok(Some(completed(None))));
    assert_eq!(api.sent(), json!({ "destination_url": URI }));
    assert_eq!(follow(&mut vmm).0, Err(VmmError::NotBegun));
}

#[test]
fn an_older_one_says_why_it_has_failed() {
    let api = Api::start("v50.0.0", |_| {
        let why = [
            "Error from API",
            "Cannot send VM migration",
            "no\u{1b}route",
        ];
        Say::Answer(500, json!(why))
    });
    let why = "Error from API: Cannot send VM migration: no route";
    assert_eq!(run(&api), Ok(Some(Outcome::Failed(why.to_owned()))));
}

#[test]
fn an_older_one_may_end_before_it_answers() {
    let api = Api::start("v51.0", |_| Say::End);
    assert_eq!(run(&api), Ok(Some(Outcome::Ended)));
}

#[test]
fn a_newer_one_answers_at_once_and_ends_when_the_vm_has_moved() {
    let mut looks = 0;
    let api = Api::start("53.0.0", move |path| match path {
        "PUT /api/v1/vm.send-migration" => Say::Done,
        "GET /api/v1/vm.counters" => {
            looks += 1;
            if looks < 3 { migrating() } else { Say::End }
        }
        path => panic!("{path}"),
    });
    assert_eq!(run(&api), Ok(Some(Outcome::Ended)), "nothing tells how");
}

#[test]
fn a_newer_one_that_has_failed_has_its_vm_back() {
    let mut looks = 0;
    let api = Api::start("v53.0-12-gabcdef", move |path| match path {
        "PUT /api/v1/vm.send-migration" => Say::Done,
        _ => {
            looks += 1;
            if looks < 3 { migrating() } else { counters() }
        }
    });
    let outcome = run(&api).unwrap();
    assert!(matches!(outcome, Some(Outcome::Failed(why)) if why.contains("its log")));
}

#[test]
fn a_newer_one_refuses_at_once() {
    let why = "There is already an ongoing migration";
    let api = Api::start("53.0.0", move |_| Say::Answer(500, json!([why])));
    let refused = VmmError::Refused {
        what: "vm.send-migration".to_owned(),
        why: why.to_owned(),
    };
    assert_eq!(run(&api), Err(refused));
}

#[test]
fn events_tell_of_a_migration_as_it_goes() {
    let api = Api::start("53.0.0", |path| match path {
        "PUT /api/v1/vm.send-migration" => Say::Done,
        _ => migrating(),
    });
    let (path, mut file) = api.events();
    // One before this.
    file.write_all(&event(10, "migration-finished", json!(null)))
        .unwrap();
    let mut vmm = CloudHypervisor::connect(&api.socket, Some(&path)).unwrap();
    vmm.migrate(URI, &Wishes::default()).unwrap();
    let started = event(2000, "migration-started", json!(null));
    let (begin, rest) = started.split_at(20);
    file.write_all(begin).unwrap();
    let mut told = Vec::new();
    let mut each = |p: &Progress| told.push(p.clone());
    let outcome = vmm.follow(Instant::now(), &mut each);
    assert_eq!(outcome, Ok(None), "half an event");
    file.write_all(rest).unwrap();
    for (at, name, more) in [
        (2500, "migration-memory-iteration", json!({ "id": "0" })),
        (3000, "paused", json!(null)),
        (3234, "migration-finished", json!(null)),
    ] {
        file.write_all(&event(at, name, more)).unwrap();
    }
    let outcome = vmm.follow(Instant::now() + LIMIT, &mut each);
    assert_eq!(outcome, Ok(Some(completed(Some(1234)))));
    let mut states: Vec<_> = told.iter().map(|p| p.state.as_str()).collect();
    states.dedup();
    let expected = [
        "asked",
        "started",
        "memory-iteration 0",
        "paused",
        "finished",
    ];
    assert_eq!(states, expected);
    assert!(told.last().unwrap().stopped_at.is_some());
}

#[test]
fn events_tell_what_a_vmm_that_is_gone_does_not() {
    for (last, expected) in [
        ("migration-finished", completed(None)),
        ("migration-memory-iteration", Outcome::Ended),
    ] {
        let (go, gone): (Sender<()>, Receiver<()>) = channel();
        let api = Api::start("52.0.0", move |_| {
            gone.recv().unwrap();
            Say::End
        });
        let (path, mut file) = api.events();
        let mut vmm = CloudHypervisor::connect(&api.socket, Some(&path)).unwrap();
        vmm.migrate(URI, &Wishes::default()).unwrap();
        file.write_all(&event(1, last, json!(null))).unwrap();
        go.send(()).unwrap();
        assert_eq!(follow(&mut vmm).0, Ok(Some(expected)));
    }
}

#[test]
fn a_failure_that_events_tell_of_waits_for_the_reason() {
    let (go, gone): (Sender<()>, Receiver<()>) = channel();
    let api = Api::start("52.0.0", move |_| {
        gone.recv().unwrap();
        Say::Answer(500, json!(["why"]))
    });
    let (path, mut file) = api.events();
    let mut vmm = CloudHypervisor::connect(&api.socket, Some(&path)).unwrap();
    vmm.migrate(URI, &Wishes::default()).unwrap();
    for name in ["paused", "migration-failed", "resumed"] {
        file.write_all(&event(1, name, json!(null))).unwrap();
    }
    let mut last = Progress::default();
    while last.state != "resumed" {
        let outcome = vmm.follow(Instant::now(), &mut |p| last = p.clone());
        assert_eq!(outcome, Ok(None));
    }
    assert!(last.resumed_at >= last.stopped_at && last.stopped_at.is_some());
    go.send(()).unwrap();
    let why = Outcome::Failed("why".to_owned());
    assert_eq!(follow(&mut vmm).0, Ok(Some(why)));
}

#[test]
fn limits_are_passed_on_where_they_are_known() {
    let wishes = Wishes {
        downtime: Some(Duration::from_millis(200)),
        time: Some(Duration::from_millis(1500)),
        ..Wishes::default()
    };
    let api = Api::start("52.0.0", |_| Say::Done);
    api.connect().unwrap().migrate(URI, &wishes).unwrap();
    let begun = Instant::now();
    while api.heard.lock().unwrap().len() < 2 {
        assert!(begun.elapsed() < LIMIT);
        std::thread::yield_now();
    }
    let expected = json!({ "destination_url": URI, "downtime_ms": 200, "timeout_s": 2,
        "timeout_strategy": "Cancel" });
    assert_eq!(api.sent(), expected);

    let older = Api::start("51.0.0", |_| Say::Done);
    let mut older = older.connect().unwrap();
    let error = older.migrate(URI, &wishes).unwrap_err();
    assert!(error.to_string().contains("update it"), "{error}");
    let wishes = Wishes {
        max_bandwidth: Some(1),
        ..Wishes::default()
    };
    for refused in [older.migrate(URI, &wishes), older.cancel()] {
        let error = refused.unwrap_err();
        assert!(matches!(error, VmmError::Unsupported { .. }), "{error:?}");
    }
}

#[test]
fn a_newer_one_that_does_not_answer_is_not_waited_for() {
    let api = Api::start("53.0.0", |_| Say::Nothing);
    let begun = Instant::now();
    let error = run(&api).unwrap_err();
    assert!(matches!(error, VmmError::Slow(_)), "{error:?}");
    assert!(begun.elapsed() >= ANSWER_TIME);
}

#[test]
fn what_is_no_api_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api");
    let error = CloudHypervisor::connect(&socket, None).unwrap_err();
    assert_eq!(error, VmmError::NotRunning(socket));

    let odd = Api::start("unknown", |_| Say::Done);
    let error = odd.connect().unwrap_err();
    assert!(matches!(error, VmmError::Protocol { .. }), "{error:?}");

    let api = Api::start("53.0.0", |_| Say::Raw(b"SSH-2.0\r\n\r\n".to_vec()));
    let error = run(&api).unwrap_err();
    assert!(matches!(error, VmmError::Protocol { .. }), "{error:?}");

    let long = json!("x".repeat(MESSAGE_LEN + 1));
    let api = Api::start("53.0.0", move |_| Say::Answer(200, long.clone()));
    assert_eq!(run(&api), Err(VmmError::TooLong));
}

#[test]
fn a_file_of_something_else_has_no_events() {
    let api = Api::start("53.0.0", |_| Say::Done);
    let missing = api.dir.path().join("missing");
    for path in [missing.as_path(), api.dir.path()] {
        let error = CloudHypervisor::connect(&api.socket, Some(path)).unwrap_err();
        assert!(matches!(error, VmmError::Events { .. }), "{error:?}");
    }
    let (path, mut file) = api.events();
    let mut vmm = CloudHypervisor::connect(&api.socket, Some(&path)).unwrap();
    vmm.migrate(URI, &Wishes::default()).unwrap();
    file.write_all(b"cloud-hypervisor: starting\n").unwrap();
    let error = follow(&mut vmm).0.unwrap_err();
    assert!(matches!(error, VmmError::Events { .. }), "{error:?}");
}
