//! The daemon under test.

use super::process::{Lifetime, Process, signal};
use super::{Namespace, PATIENCE, build_daemon, built_program, wait_until};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// A running `tandemd` with directories of its own.
#[derive(Debug)]
pub struct Daemon {
    dir: PathBuf,
    program: PathBuf,
    /// What starts the program, with its own arguments; itself if it is empty.
    prefix: Vec<String>,
    arguments: Vec<String>,
    lifetime: Lifetime,
    process: Process,
}

impl Daemon {
    /// Starts it in `dir` with these arguments, and waits until it says that it is ready.
    pub fn start(dir: &Path, arguments: &[&str]) -> Result<Self> {
        build_daemon()?;
        Self::start_program(dir, &built_program("tandemd")?, arguments)
    }

    /// Starts it in a network namespace, which must live longer.
    pub fn start_inside(dir: &Path, namespace: &Namespace, arguments: &[&str]) -> Result<Self> {
        build_daemon()?;
        Self::launch(
            dir,
            built_program("tandemd")?,
            namespace.prefix(),
            arguments.iter().map(|word| word.to_string()).collect(),
            Lifetime::Owner,
        )
    }

    /// Starts another build than the one under test.
    pub fn start_program(dir: &Path, program: &Path, arguments: &[&str]) -> Result<Self> {
        let arguments = arguments.iter().map(|word| word.to_string()).collect();
        let program = program.to_path_buf();
        Self::launch(dir, program, vec![], arguments, Lifetime::Owner)
    }

    /// Starts a daemon that goes on when the program that started it ends.
    pub fn start_detached(dir: &Path, arguments: &[&str]) -> Result<Self> {
        build_daemon()?;
        Self::launch(
            dir,
            built_program("tandemd")?,
            vec![],
            arguments.iter().map(|word| word.to_string()).collect(),
            Lifetime::Detached,
        )
    }

    /// Starts it with a port for each name.
    pub fn with_ports(dir: &Path, ports: &[&str]) -> Result<Self> {
        let arguments: Vec<&str> = ports.iter().flat_map(|port| ["--port", *port]).collect();
        Self::start(dir, &arguments)
    }

    fn launch(
        dir: &Path,
        program: PathBuf,
        prefix: Vec<String>,
        arguments: Vec<String>,
        lifetime: Lifetime,
    ) -> Result<Self> {
        // The daemon tells a service manager when it is ready (sd_notify(3)): we are the manager.
        let notify = dir.join("notify");
        let _ = std::fs::remove_file(&notify);
        let ready = UnixDatagram::bind(&notify)?;
        let first = prefix.first().map_or(program.as_path(), Path::new);
        let mut process = Process::start(dir, "tandemd", first, lifetime, |command| {
            if !prefix.is_empty() {
                command.args(&prefix[1..]).arg(&program);
            }
            command
                .arg("--run-dir")
                .arg(dir.join("run"))
                .arg("--state-dir")
                .arg(dir.join("state"));
            command.args(&arguments).env("NOTIFY_SOCKET", &notify);
            if std::env::var_os("RUST_LOG").is_none() {
                command.env("RUST_LOG", "info");
            }
        })?;
        wait_for_ready(&ready, &mut process)?;
        Ok(Self {
            dir: dir.to_path_buf(),
            program,
            prefix,
            arguments,
            lifetime,
            process,
        })
    }

    /// The socket of a port.
    pub fn socket(&self, port: &str) -> PathBuf {
        self.run_dir().join(format!("{port}.sock"))
    }

    /// The run directory.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Runs `tandem` with these arguments.
    pub fn cli_output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(built_program("tandem")?);
        command
            .arg("--api-socket")
            .arg(self.run_dir().join("api.sock"))
            .args(arguments);
        Ok(command.output()?)
    }

    /// Runs `tandem`; an error when it fails. Gives what it prints.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let output = self.cli_output(arguments)?;
        if !output.status.success() {
            let (status, error) = (output.status, String::from_utf8_lossy(&output.stderr));
            bail!("tandem {} failed ({status}): {error}", arguments.join(" "));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A GET from the API; the path starts behind `/api/v1/`.
    pub fn get(&self, path: &str) -> Result<Value> {
        let mut stream = UnixStream::connect(self.run_dir().join("api.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET /api/v1/{path} HTTP/1.1\r\nHost: tandem\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "GET {path}: {answer}");
        serde_json::from_str(body).with_context(|| answer.clone())
    }

    /// A port as the API shows it.
    pub fn port(&self, name: &str) -> Result<Port> {
        let text = self.cli(&["port", "show", name, "--json"])?;
        Ok(Port(serde_json::from_str(&text).context(text)?))
    }

    /// Every port.
    pub fn ports(&self) -> Result<Vec<Port>> {
        let text = self.cli(&["port", "list", "--json"])?;
        let mut list: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        let ports = list.get_mut("ports").map_or(Value::Null, Value::take);
        let ports = ports
            .as_array()
            .with_context(|| format!("no list of ports: {text}"))?;
        Ok(ports.iter().cloned().map(Port).collect())
    }

    /// The daemon as a whole.
    pub fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.cli(&["status", "--json"])?)?)
    }

    /// Waits until a port looks as it should.
    pub fn wait_port(
        &self,
        name: &str,
        what: &str,
        mut good: impl FnMut(&Port) -> bool,
    ) -> Result<()> {
        let mut last = None;
        let outcome = wait_until(&format!("port {name} {what}"), PATIENCE, || {
            let port = self.port(name)?;
            let done = good(&port);
            last = Some(port);
            Ok(done)
        });
        outcome.with_context(|| format!("the port is now {last:?}"))
    }

    /// Waits until the switch is quiet and checks that every frame is accounted for.
    pub fn check_arithmetic(&self) -> Result<Totals> {
        let mut last = Totals::default();
        let mut wrong = String::new();
        let outcome = wait_until("counters that add up and stay", PATIENCE, || {
            let now = self.totals()?;
            wrong = now.discrepancy().unwrap_or_default();
            let settled = now == last && wrong.is_empty();
            last = now;
            Ok(settled)
        });
        outcome.with_context(|| format!("{wrong}\n{last:?}"))?;
        Ok(last)
    }

    fn totals(&self) -> Result<Totals> {
        let status = self.status()?;
        let mut totals = Totals::default();
        for switch in status["switches"]
            .as_array()
            .context("no switches in the status")?
        {
            totals.add_switch(&switch["counters"])?;
        }
        for port in self.ports()? {
            totals.taken += port.frames("from_vm")?;
            totals.refused += port.drops("from_vm")?;
            totals.delivered += port.frames("to_vm")?;
            totals.undelivered += port.drops("to_vm")?;
        }
        Ok(totals)
    }

    /// Asks it to end and waits; it must end well and leave no socket.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    /// Lets it end as [`Daemon::stop`] does, and starts it again with the same arguments.
    pub fn restart(&mut self) -> Result<()> {
        self.end()?;
        self.start_again()
    }

    fn end(&mut self) -> Result<()> {
        let status = self.process.terminate(PATIENCE)?;
        if !status.success() {
            bail!("tandemd ended with {status}");
        }
        if let Ok(entries) = std::fs::read_dir(self.run_dir()) {
            let left: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
            if left
                .iter()
                .any(|name| name.to_string_lossy().ends_with(".sock"))
            {
                bail!("tandemd left {left:?} behind");
            }
        }
        Ok(())
    }

    /// Kills it (SIGKILL) and starts it again with the same arguments.
    pub fn restart_after_crash(&mut self) -> Result<()> {
        self.crash()?;
        self.start_again()
    }

    /// Kills it (SIGKILL). [`Daemon::start_again`] brings it back.
    pub fn crash(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again with the same arguments, after a [`Daemon::crash`].
    pub fn start_again(&mut self) -> Result<()> {
        *self = Self::launch(
            &self.dir.clone(),
            self.program.clone(),
            self.prefix.clone(),
            self.arguments.clone(),
            self.lifetime,
        )?;
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) -> Result<()> {
        signal(self.process.pid(), name)
    }
}

fn wait_for_ready(ready: &UnixDatagram, process: &mut Process) -> Result<()> {
    ready.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut message = [0; 4096];
    for _ in 0..PATIENCE.as_millis() / 200 {
        match ready.recv(&mut message) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&message[..length]);
                if text.lines().any(|line| line == "READY=1") {
                    return Ok(());
                }
            }
            // Silence: is it still there?
            Err(_) => process.check_running()?,
        }
    }
    bail!(
        "tandemd did not say it is ready:\n{}",
        super::tail(process.log(), 30)
    )
}

/// A port as the API shows it.
#[derive(Clone, Debug)]
pub struct Port(pub Value);

impl Port {
    /// Its name.
    pub fn name(&self) -> &str {
        self.0["name"].as_str().unwrap_or_default()
    }

    /// Whether it carries traffic.
    pub fn is_up(&self) -> bool {
        self.0["state"] == "up"
    }

    /// Why it is down, in words.
    pub fn reason(&self) -> &str {
        self.0["reason"].as_str().unwrap_or_default()
    }

    /// The session's features, by name.
    pub fn has_feature(&self, name: &str) -> bool {
        let features = self.0["session"]["features"].as_array();
        features.is_some_and(|list| list.iter().any(|feature| feature == name))
    }

    /// Frames taken from the VM or delivered to it; `direction` is `from_vm` or `to_vm`.
    pub fn frames(&self, direction: &str) -> Result<u64> {
        number(&self.0["counters"][direction]["frames"], "frames")
    }

    /// Frames dropped in a direction, for all reasons.
    pub fn drops(&self, direction: &str) -> Result<u64> {
        let drops = &self.0["counters"][direction]["drops"];
        let drops = drops
            .as_object()
            .with_context(|| format!("no drops in {}", self.0))?;
        Ok(drops.values().filter_map(Value::as_u64).sum())
    }

    /// Frames of each queue pair in a direction.
    pub fn queue_frames(&self, direction: &str) -> Result<Vec<u64>> {
        let queues = self.0["queues"]
            .as_array()
            .context("no queues in the port")?;
        queues
            .iter()
            .map(|queue| number(&queue[direction]["frames"], "frames"))
            .collect()
    }
}

fn number(value: &Value, what: &str) -> Result<u64> {
    value
        .as_u64()
        .with_context(|| format!("{what} is {value}, not a count"))
}

/// Every frame the daemon knows of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Taken from the VMs.
    pub taken: u64,
    /// Of those, dropped before they were forwarded.
    pub refused: u64,
    /// Delivered to VMs.
    pub delivered: u64,
    /// Dropped on the way to a VM.
    pub undelivered: u64,
    announced: u64,
    unicast: u64,
    flooded: u64,
    copies: u64,
    segmented: u64,
    segments: u64,
}

impl Totals {
    fn add_switch(&mut self, counters: &Value) -> Result<()> {
        self.announced += number(&counters["announced"], "announced")?;
        self.unicast += number(&counters["unicast"], "unicast")?;
        self.flooded += number(&counters["flooded"], "flooded")?;
        self.copies += number(&counters["copies"], "copies")?;
        self.segmented += number(&counters["segmented_frames"], "segmented_frames")?;
        self.segments += number(&counters["segments"], "segments")?;
        Ok(())
    }

    /// What does not add up; `None` when everything does.
    fn discrepancy(&self) -> Option<String> {
        let forwarded = self.unicast + self.flooded;
        if self.taken + self.announced != self.refused + forwarded {
            let (taken, made, refused) = (self.taken, self.announced, self.refused);
            return Some(format!(
                "taken {taken} + announced {made} is not dropped {refused} + forwarded {forwarded}"
            ));
        }
        let outgoing = self.unicast + self.copies + self.segments - self.segmented;
        let ended = self.delivered + self.undelivered;
        (ended != outgoing).then(|| format!("delivered or dropped {ended}, sent on {outgoing}"))
    }
}
