//! cloud-hypervisor's live migration, by its HTTP API.
//!
//! Source: cloud-hypervisor, vmm/src/api/openapi/cloud-hypervisor.yaml, docs/live_migration.md and vmm/src/lib.rs of
//! versions 50 to 53. Until version 52 `vm.send-migration` is answered when the VM is on the other host, and nothing
//! else is answered meanwhile. From 53 on it is answered at once; then `vm.counters` is refused while the VM moves and
//! answered once it has failed to, while `vm.info` says what it did before. In both, a VMM that has sent its VM ends.
//! Events tell more, from 52 on.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime};

use hyper::Method;
use serde_json::{Value, json};

use super::events::{Event, Events};
use super::http::{Answer, request};
use super::{ANSWER_TIME, INTERVAL, Outcome, Progress, Vmm, VmmError, Wishes, words};

/// From one look at the events to the next.
const EVENT_INTERVAL: Duration = Duration::from_millis(100);
/// The first version with limits.
const LIMITS_SINCE: u32 = 52;
/// The first version that answers before the VM has moved.
const AT_ONCE_SINCE: u32 = 53;
/// The request that begins a migration.
const SEND: &str = "/api/v1/vm.send-migration";

/// cloud-hypervisor with the VM that moves.
///
/// It has no command to cancel, and tells neither bytes nor, without events, what state a migration is in. Times are
/// those at which its events were read, up to 100 ms late. A migration goes on when this value is dropped.
#[derive(Debug)]
pub struct CloudHypervisor {
    socket: PathBuf,
    version: u32,
    events: Option<Events>,
    progress: Progress,
    phase: Phase,
    next_look: Instant,
    /// When it was begun, by the VMM's own clock.
    began_ms: Option<u64>,
}

#[derive(Debug)]
enum Phase {
    /// Nothing was asked for.
    Idle,
    /// No answer has come.
    Asked(Receiver<Result<Answer, VmmError>>),
    /// It is under way by the VMM's word.
    Begun,
}

impl CloudHypervisor {
    /// Asks the VMM at `socket` (`--api-socket path=PATH`) for its version. `events` is the file that it writes its
    /// events to (`--event-monitor path=PATH`), if it does; without it an end from version 53 on is
    /// [`Outcome::Ended`].
    ///
    /// # Errors
    /// See [`VmmError`].
    pub fn connect(socket: &Path, events: Option<&Path>) -> Result<Self, VmmError> {
        let path = "/api/v1/vmm.ping";
        let answer = request(socket, (Method::GET, path), None, Some(ANSWER_TIME))?;
        let answer: Value = serde_json::from_slice(&answer.body)
            .map_err(|error| VmmError::protocol(path, error))?;
        let version = answer["version"].as_str().and_then(major);
        Ok(Self {
            socket: socket.to_owned(),
            version: version.ok_or_else(|| VmmError::protocol(path, "no version"))?,
            events: events.map(Events::open).transpose()?,
            progress: Progress::default(),
            phase: Phase::Idle,
            next_look: Instant::now(),
            began_ms: None,
        })
    }

    /// The request's body.
    fn arguments(&self, uri: &str, wishes: &Wishes) -> Result<Value, VmmError> {
        if wishes.max_bandwidth.is_some() {
            return Err(self.cannot("limit the bandwidth", "limit it in the network"));
        }
        let newer = "leave that away, or update it";
        let mut arguments = json!({ "destination_url": uri });
        if let Some(downtime) = wishes.downtime {
            let ms = u64::try_from(downtime.as_millis()).unwrap_or(u64::MAX);
            arguments["downtime_ms"] = ms.max(1).into();
        }
        if let Some(time) = wishes.time {
            let whole = time
                .as_secs()
                .saturating_add(u64::from(time.subsec_nanos() > 0));
            arguments["timeout_s"] = whole.max(1).into();
            arguments["timeout_strategy"] = "Cancel".into();
        }
        // Older ones would pass over them.
        if self.version < LIMITS_SINCE && (wishes.downtime.is_some() || wishes.time.is_some()) {
            return Err(self.cannot("keep to a time limit", newer));
        }
        Ok(arguments)
    }

    fn cannot(&self, what: &'static str, remedy: &'static str) -> VmmError {
        VmmError::Unsupported {
            vmm: format!("cloud-hypervisor {}", self.version),
            what,
            remedy,
        }
    }

    /// Asks on a thread of its own, for as long as it takes.
    fn ask(&self, arguments: Value) -> Receiver<Result<Answer, VmmError>> {
        let (sender, receiver) = channel();
        let socket = self.socket.clone();
        std::thread::spawn(move || {
            let answer = request(&socket, (Method::PUT, SEND), Some(&arguments), None);
            // Nobody waits for it any more.
            let _ = sender.send(answer);
        });
        receiver
    }

    /// What the VMM has answered; none: nothing in that time.
    fn answer(&mut self, time: Duration) -> Result<Option<Answer>, VmmError> {
        let Phase::Asked(receiver) = &self.phase else {
            std::thread::sleep(time);
            return Ok(None);
        };
        match receiver.recv_timeout(time) {
            Ok(answer) => answer.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(VmmError::System("a thread ended".into())),
        }
    }

    /// Reads events; the end, if they tell of it.
    fn read_events(
        &mut self,
        each: &mut dyn FnMut(&Progress),
    ) -> Result<Option<Outcome>, VmmError> {
        let events = match &mut self.events {
            Some(events) => events.fresh()?,
            None => Vec::new(),
        };
        for event in events.iter().filter(|event| event.source == "vm") {
            let outcome = self.take(event);
            each(&self.progress);
            if outcome.is_some() {
                return Ok(outcome);
            }
        }
        Ok(None)
    }

    fn take(&mut self, event: &Event) -> Option<Outcome> {
        let now = event.timestamp.as_millis();
        let state = match event.event.as_str() {
            "migration-memory-iteration" => {
                let id = event.properties["id"].as_str().unwrap_or_default();
                words(&format!("memory-iteration {id}"))
            }
            other => words(other.strip_prefix("migration-").unwrap_or(other)),
        };
        self.progress.state = state;
        match event.event.as_str() {
            "migration-started" => self.began_ms = Some(now),
            "paused" => {
                self.progress.stopped_at = Some(SystemTime::now());
                self.progress.resumed_at = None;
            }
            "resumed" => {
                self.progress.resumed_at = self.progress.stopped_at.map(|_| SystemTime::now());
            }
            "migration-finished" => {
                return Some(Outcome::Completed {
                    downtime_ms: None,
                    total_ms: self.began_ms.and_then(|began| now.checked_sub(began)),
                });
            }
            // The reason is in the answer, if that is still to come.
            "migration-failed" if matches!(self.phase, Phase::Begun) => return Some(failed()),
            _ => {}
        }
        None
    }

    /// The end, if it has answered: it does so when the VM has moved.
    fn judge(answer: Result<Option<Answer>, VmmError>) -> Result<Option<Outcome>, VmmError> {
        match answer {
            Ok(None) => Ok(None),
            Ok(Some(answer)) if !answer.status.is_success() => {
                Ok(Some(Outcome::Failed(answer.reason())))
            }
            Ok(Some(_)) => Ok(Some(Outcome::Completed {
                downtime_ms: None,
                total_ms: None,
            })),
            // It ends when the VM is gone, and may do so before it has answered.
            Err(VmmError::Gone(_)) => Ok(Some(Outcome::Ended)),
            Err(error) => Err(error),
        }
    }

    /// Looks whether the VM is back, or the VMM gone.
    fn look(&mut self) -> Result<Option<Outcome>, VmmError> {
        self.next_look = Instant::now() + INTERVAL;
        let counters = (Method::GET, "/api/v1/vm.counters");
        match request(&self.socket, counters, None, Some(ANSWER_TIME)) {
            Ok(answer) if answer.status.is_success() => Ok(Some(failed())),
            // It clears up, which takes its time with much memory.
            Ok(_) | Err(VmmError::Slow(_)) => Ok(None),
            Err(VmmError::NotRunning(_) | VmmError::Gone(_)) => Ok(Some(Outcome::Ended)),
            Err(error) => Err(error),
        }
    }

    /// One turn of following, of no longer than `time` and an answer.
    fn turn(
        &mut self,
        time: Duration,
        each: &mut dyn FnMut(&Progress),
    ) -> Result<Option<Outcome>, VmmError> {
        let answer = self.answer(time);
        let mut outcome = Self::judge(answer)?;
        if outcome.is_none() && Instant::now() >= self.next_look {
            outcome = match self.phase {
                Phase::Begun => self.look()?,
                _ => None,
            };
            self.next_look = Instant::now() + INTERVAL;
            each(&self.progress);
        }
        // What events say is more than that it has ended.
        let told = self.read_events(each)?;
        Ok(match outcome {
            None | Some(Outcome::Ended) => told.or(outcome),
            Some(Outcome::Completed { .. }) if told.is_some() => told,
            outcome => outcome,
        })
    }
}

impl Vmm for CloudHypervisor {
    fn migrate(&mut self, uri: &str, wishes: &Wishes) -> Result<(), VmmError> {
        let arguments = self.arguments(uri, wishes)?;
        if let Some(events) = &mut self.events {
            events.forget()?;
        }
        self.began_ms = None;
        self.progress = Progress {
            state: "asked".to_owned(),
            ..Progress::default()
        };
        self.next_look = Instant::now();
        self.phase = Phase::Asked(self.ask(arguments));
        if self.version < AT_ONCE_SINCE {
            return Ok(());
        }
        let answer = self.answer(ANSWER_TIME);
        let begun = match answer {
            Ok(Some(answer)) if answer.status.is_success() => {
                self.phase = Phase::Begun;
                return Ok(());
            }
            Ok(Some(answer)) => VmmError::Refused {
                what: "vm.send-migration".to_owned(),
                why: answer.reason(),
            },
            Ok(None) => VmmError::Slow(SEND.to_owned()),
            Err(error) => error,
        };
        self.phase = Phase::Idle;
        Err(begun)
    }

    fn follow(
        &mut self,
        until: Instant,
        each: &mut dyn FnMut(&Progress),
    ) -> Result<Option<Outcome>, VmmError> {
        if matches!(self.phase, Phase::Idle) {
            return Err(VmmError::NotBegun);
        }
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let outcome = self.turn(left.min(EVENT_INTERVAL), each)?;
            if outcome.is_some() {
                self.phase = Phase::Idle;
                return Ok(outcome);
            }
            if Instant::now() >= until {
                return Ok(None);
            }
        }
    }

    fn cancel(&mut self) -> Result<(), VmmError> {
        Err(self.cannot(
            "cancel a migration",
            "wait, or start it with a time limit next time",
        ))
    }
}

/// From version 53 on, the reason is only in its log.
fn failed() -> Outcome {
    Outcome::Failed("cloud-hypervisor does not say why; see its log".to_owned())
}

/// The first number of `v53.0-12-gabcdef`, or `53.0.0`.
fn major(version: &str) -> Option<u32> {
    let digits = version.trim_start_matches('v');
    digits.split('.').next()?.parse().ok()
}
