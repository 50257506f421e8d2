//! QEMU's monitor protocol, as much of it as the tests use.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A connected monitor. QEMU has one at a time.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// Came while something else was waited for.
    events: VecDeque<Event>,
}

/// Something that happened in QEMU.
#[derive(Clone, Debug)]
pub struct Event {
    /// When, since 1970, by the host's clock.
    pub at: Duration,
    /// Its name, such as `STOP`.
    pub name: String,
    /// What it says, `null` if nothing.
    pub data: Value,
}

impl Event {
    fn parse(message: &Value) -> Option<Self> {
        let time = &message["timestamp"];
        let seconds = time["seconds"].as_u64()?;
        let micros = time["microseconds"].as_u64()?;
        Some(Self {
            at: Duration::from_secs(seconds) + Duration::from_micros(micros),
            name: message["event"].as_str()?.to_string(),
            data: message["data"].clone(),
        })
    }
}

impl Qmp {
    /// Greets QEMU over a connected socket.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
            events: VecDeque::new(),
        };
        qmp.read().context("QEMU's greeting")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and gives what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{request}")?;
        loop {
            let mut reply = self.read().with_context(|| format!("QMP {command}"))?;
            if let Some(error) = reply.get("error") {
                bail!("QMP {command}: {error}");
            }
            if let Some(value) = reply.get_mut("return") {
                return Ok(value.take());
            }
            self.events.extend(Event::parse(&reply));
        }
    }

    /// The next event that `wanted` says is one, of those that came since the last that was asked for.
    /// Others before it are forgotten.
    pub fn wait_event(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        let mut passed = Vec::new();
        loop {
            let event = match self.events.pop_front() {
                Some(event) => Some(event),
                None => Event::parse(
                    &self
                        .read()
                        .with_context(|| format!("no event {what}, but {passed:?}"))?,
                ),
            };
            match event {
                Some(event) if wanted(&event) => return Ok(event),
                event => passed.extend(event.map(|event| (event.name, event.data))),
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("QEMU closed its monitor");
        }
        Ok(serde_json::from_str(&line)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_kept_while_a_command_runs() -> Result<()> {
        let (ours, mut qemus) = UnixStream::pair()?;
        let event = |name: &str, micros: u32| json!({"timestamp": {"seconds": 7, "microseconds": micros}, "event": name});
        for message in [
            json!({"QMP": {}}),
            json!({"return": {}}),
            event("STOP", 5),
            event("RESUME", 6),
            json!({"return": {"status": "running"}}),
        ] {
            writeln!(qemus, "{message}")?;
        }
        let mut qmp = Qmp::new(ours)?;
        let status = qmp.execute("query-status", json!({}))?;
        assert_eq!(status["status"], "running");
        let event = qmp.wait_event("RESUME", |event| event.name == "RESUME")?;
        assert_eq!(event.at, Duration::new(7, 6000));
        Ok(())
    }
}
