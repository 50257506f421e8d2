//! QEMU's monitor protocol: a connection, commands and their answers, and events in between.
//!
//! Source: QEMU, docs/interop/qmp-spec: a JSON object on each line, both ways; the server greets, and takes no other
//! command before `qmp_capabilities`; an answer has the `id` of its command; events come at any time.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::{timeout, timeout_at};

use super::{ANSWER_TIME, MESSAGE_LEN, VmmError, runtime, words};

/// Events that are kept until somebody asks for them. A migration has some ten.
const EVENTS: usize = 1000;
/// The events that matter.
const KEPT: [&str; 3] = ["MIGRATION", "STOP", "RESUME"];

/// Something that happened in QEMU.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// When, by QEMU's clock, which is that of the host.
    pub(super) at: SystemTime,
    /// Its name.
    pub(super) name: String,
    /// What it says, `null` if nothing.
    pub(super) data: Value,
}

impl Event {
    /// The event in a message, if it is one.
    fn parse(message: &Value) -> Option<Self> {
        let name = message["event"].as_str()?;
        let time = &message["timestamp"];
        let seconds = time["seconds"].as_u64().map(Duration::from_secs);
        let micros = time["microseconds"].as_u64().map(Duration::from_micros);
        // QEMU says -1 if it has no clock.
        let since = seconds.zip(micros).and_then(|(s, us)| s.checked_add(us));
        let at = since.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since));
        Some(Self {
            at: at.unwrap_or_else(SystemTime::now),
            name: name.to_owned(),
            data: message["data"].clone(),
        })
    }
}

/// A connected monitor.
#[derive(Debug)]
pub(super) struct Monitor {
    runtime: Runtime,
    stream: UnixStream,
    /// Came, and is no whole line yet.
    buffer: Vec<u8>,
    /// Bytes at its beginning in which there is no end of a line.
    seen: usize,
    events: VecDeque<Event>,
    next_id: u64,
}

impl Monitor {
    /// Connects, and leaves the phase in which capabilities are negotiated.
    pub(super) fn connect(socket: &Path) -> Result<Self, VmmError> {
        let runtime = runtime()?;
        let stream = runtime
            .block_on(UnixStream::connect(socket))
            .map_err(|error| VmmError::unopened(socket, &error))?;
        let mut monitor = Self {
            runtime,
            stream,
            buffer: Vec::new(),
            seen: 0,
            events: VecDeque::new(),
            next_id: 1,
        };
        let greeting = match monitor.message(Instant::now() + ANSWER_TIME) {
            Ok(Some(message)) => message,
            Ok(None) => return Err(VmmError::Busy(socket.to_owned())),
            Err(VmmError::Protocol { .. }) => return Err(VmmError::NotQmp(socket.to_owned())),
            Err(error) => return Err(error),
        };
        if !greeting["QMP"].is_object() {
            return Err(VmmError::NotQmp(socket.to_owned()));
        }
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Runs a command; what it returns. Events that come first are kept.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, VmmError> {
        let id = self.next_id;
        self.next_id += 1;
        let line = json!({ "execute": command, "arguments": arguments, "id": id });
        self.send(command, &format!("{line}\n"))?;
        let deadline = Instant::now() + ANSWER_TIME;
        loop {
            let Some(mut message) = self.message(deadline)? else {
                return Err(VmmError::Slow(command.to_owned()));
            };
            if self.keep(&message)? {
                continue;
            }
            // Without one it is about something that QEMU could not read; with another, too late.
            if message["id"].as_u64().is_some_and(|other| other != id) {
                continue;
            }
            if let Some(error) = message["error"].as_object() {
                let why = error.get("desc").and_then(Value::as_str);
                return Err(VmmError::Refused {
                    what: command.to_owned(),
                    why: words(why.unwrap_or("it does not say why")),
                });
            }
            return match message.get_mut("return") {
                Some(value) => Ok(value.take()),
                None => Err(VmmError::protocol(command, "neither answer nor event")),
            };
        }
    }

    /// The next event, of those that have come or come in time.
    pub(super) fn event(&mut self, deadline: Instant) -> Result<Option<Event>, VmmError> {
        while self.events.is_empty() {
            let Some(message) = self.message(deadline)? else {
                return Ok(None);
            };
            // An answer that comes too late is nobody's.
            self.keep(&message)?;
        }
        Ok(self.events.pop_front())
    }

    /// Forgets what has happened so far.
    pub(super) fn forget(&mut self) {
        self.events.clear();
    }

    /// Whether no event has come that nobody has asked for yet.
    pub(super) fn is_quiet(&self) -> bool {
        self.events.is_empty()
    }

    /// Whether a message is an event; keeps it if it matters.
    fn keep(&mut self, message: &Value) -> Result<bool, VmmError> {
        let Some(event) = Event::parse(message) else {
            return Ok(false);
        };
        if KEPT.contains(&event.name.as_str()) {
            self.events.push_back(event);
        }
        if self.events.len() > EVENTS {
            return Err(VmmError::protocol("a migration", "events without end"));
        }
        Ok(true)
    }

    fn send(&mut self, command: &str, line: &str) -> Result<(), VmmError> {
        let Self {
            runtime, stream, ..
        } = self;
        let write = async { timeout(ANSWER_TIME, stream.write_all(line.as_bytes())).await };
        match runtime.block_on(write) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(VmmError::Gone(error.to_string())),
            Err(_) => Err(VmmError::Slow(command.to_owned())),
        }
    }

    /// The next message; none: it does not come in time.
    fn message(&mut self, deadline: Instant) -> Result<Option<Value>, VmmError> {
        loop {
            let new = &self.buffer[self.seen..];
            if let Some(at) = new.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(self.seen + at + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                self.seen = 0;
                let message: Value = serde_json::from_slice(&line)
                    .map_err(|error| VmmError::protocol("the connection", error))?;
                return Ok(Some(message));
            }
            self.seen = self.buffer.len();
            if self.seen > MESSAGE_LEN {
                return Err(VmmError::TooLong);
            }
            if !self.fill(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Waits for more bytes; false: none came in time.
    fn fill(&mut self, deadline: Instant) -> Result<bool, VmmError> {
        let Self {
            runtime,
            stream,
            buffer,
            ..
        } = self;
        // Nothing is lost when the time is up (tokio, `AsyncReadExt::read_buf`).
        let read = async { timeout_at(deadline.into(), stream.read_buf(buffer)).await };
        match runtime.block_on(read) {
            Err(_) => Ok(false),
            Ok(Ok(0)) => Err(VmmError::Gone("it closed its monitor".to_owned())),
            Ok(Ok(_)) => Ok(true),
            Ok(Err(error)) => Err(VmmError::Gone(error.to_string())),
        }
    }
}
