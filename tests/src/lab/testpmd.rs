//! DPDK's testpmd with virtio-user ports: a driver nobody here wrote, and fast.

use super::process::{Lifetime, Process};
use super::{PATIENCE, find_program};
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

const PROMPT: &str = "testpmd> ";
/// For the testpmds of one test, with as much again to spare, in pages of 2 MiB.
const ENOUGH_HUGE_PAGES: usize = 256;

/// A testpmd to be: one virtio-user port.
#[derive(Clone, Debug)]
pub struct TestpmdConfig {
    name: String,
    socket: PathBuf,
    mac: String,
    pairs: usize,
    device: String,
    arguments: Vec<String>,
    core: usize,
}

impl TestpmdConfig {
    /// A port on the switch; `core` is the CPU its forwarding runs on.
    pub fn new(name: &str, socket: PathBuf, mac: &str, core: usize) -> Self {
        Self {
            name: name.into(),
            socket,
            mac: mac.into(),
            pairs: 1,
            device: String::new(),
            arguments: vec![],
            core,
        }
    }

    /// Several queue pairs.
    pub fn pairs(mut self, pairs: usize) -> Self {
        self.pairs = pairs;
        self
    }

    /// Properties of the virtio-user device, such as `packed_vq=1,in_order=1`.
    pub fn device(mut self, properties: &str) -> Self {
        self.device.push(',');
        self.device.push_str(properties);
        self
    }

    /// An argument of testpmd itself, such as `--txonly-multi-flow`.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.into());
        self
    }

    fn command_line(&self) -> Vec<String> {
        let Self {
            name,
            mac,
            pairs,
            device,
            core,
            ..
        } = self;
        let socket = self.socket.display();
        let mut line: Vec<String> = format!(
            "--lcores 0@0,1@{core} --no-pci --iova-mode=va --no-telemetry --file-prefix {name} \
             --log-level lib.eal:warning"
        )
        .split_whitespace()
        .map(str::to_string)
        .collect();
        // One file for all memory, which is what a vhost-user back-end can be given.
        let memory = if huge_pages_free() >= ENOUGH_HUGE_PAGES {
            "--in-memory --single-file-segments -m 128"
        } else {
            "--no-shconf --no-huge -m 256"
        };
        line.extend(memory.split(' ').map(str::to_string));
        line.push(format!(
            "--vdev=net_virtio_user0,path={socket},mac={mac},queues={pairs},queue_size=256{device}"
        ));
        line.extend(["--".into(), "-i".into(), "--total-num-mbufs=16384".into()]);
        line.extend([format!("--rxq={pairs}"), format!("--txq={pairs}")]);
        line.extend(self.arguments.iter().cloned());
        line
    }

    /// Starts testpmd and waits for its prompt.
    pub fn start(&self, dir: &Path) -> Result<Testpmd> {
        Testpmd::start(dir, &self.name, &self.command_line())
    }
}

/// Free 2 MiB pages.
fn huge_pages_free() -> usize {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    std::fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// What a program has printed so far.
#[derive(Debug, Default)]
struct Transcript {
    state: Mutex<(String, bool)>,
    grew: Condvar,
}

impl Transcript {
    fn record(&self, mut from: impl Read, mut copy: impl Write) {
        let mut buffer = [0; 4096];
        loop {
            let count = from.read(&mut buffer).unwrap_or(0);
            // The log is only for people.
            let _ = copy.write_all(&buffer[..count]);
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.0.push_str(&String::from_utf8_lossy(&buffer[..count]));
            state.1 = count == 0;
            self.grew.notify_all();
            if count == 0 {
                return;
            }
        }
    }
}

/// A running testpmd.
#[derive(Debug)]
pub struct Testpmd {
    process: Process,
    stdin: Option<ChildStdin>,
    output: Arc<Transcript>,
}

/// Counters of testpmd's port 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames received.
    pub received: u64,
    /// Frames the device accepted for sending.
    pub sent: u64,
}

impl Testpmd {
    /// Starts testpmd with a command line of the caller's, which has `-i`, and waits for its prompt.
    pub fn start(dir: &Path, name: &str, arguments: &[String]) -> Result<Self> {
        Self::start_under(dir, name, &[], arguments)
    }

    /// The same, by a command line that ends with the one of testpmd and starts with `prefix`.
    pub fn start_under(
        dir: &Path,
        name: &str,
        prefix: &[String],
        arguments: &[String],
    ) -> Result<Self> {
        let program = find_program("dpdk-testpmd").context("no dpdk-testpmd")?;
        // Unbuffered, so that output and prompts come in order.
        let stdbuf = find_program("stdbuf").context("no stdbuf")?;
        let name = format!("testpmd-{name}");
        let mut process = Process::start(dir, &name, &stdbuf, Lifetime::Owner, |command| {
            command.args(["-o0", "-e0"]).args(prefix);
            command.arg(program).args(arguments);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            // DPDK's own files, otherwise below /run.
            command.env("RUNTIME_DIRECTORY", dir);
        })?;
        let stdout = process.child().stdout.take().context("no output")?;
        let stdin = process.child().stdin.take().context("no input")?;
        let output = Arc::new(Transcript::default());
        let transcript = output.clone();
        let copy = std::fs::File::options().append(true).open(process.log())?;
        std::thread::spawn(move || transcript.record(stdout, copy));
        let mut testpmd = Testpmd {
            process,
            stdin: Some(stdin),
            output,
        };
        testpmd.wait_prompt(0)?;
        Ok(testpmd)
    }

    /// Runs a command and gives what it prints.
    pub fn command(&mut self, command: &str) -> Result<String> {
        let start = self
            .output
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .len();
        let stdin = self.stdin.as_mut().context("testpmd was told to quit")?;
        writeln!(stdin, "{command}")?;
        self.wait_prompt(start)
            .with_context(|| format!("testpmd command `{command}`"))
    }

    /// Counters of the port.
    pub fn stats(&mut self) -> Result<PortStats> {
        let text = self.command("show port stats 0")?;
        parse_stats(&text).with_context(|| format!("no statistics in: {text}"))
    }

    /// Counters of every port, by its number.
    pub fn all_stats(&mut self) -> Result<Vec<PortStats>> {
        let text = self.command("show port stats all")?;
        let sections = text.split("NIC statistics for port").skip(1);
        sections
            .map(|section| parse_stats(section).with_context(|| format!("no statistics: {text}")))
            .collect()
    }

    /// Ends it in order.
    pub fn quit(&mut self) -> Result<()> {
        let mut stdin = self
            .stdin
            .take()
            .context("testpmd was told to quit before")?;
        writeln!(stdin, "quit")?;
        drop(stdin);
        self.process.wait(PATIENCE).map(drop)
    }

    /// The process, to kill it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits for a prompt at the end of the output, with a full line between `start` and it.
    fn wait_prompt(&mut self, start: usize) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self
            .output
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            let (text, ended) = &*state;
            let new = &text[start..];
            if new.ends_with(PROMPT) && new.contains('\n') {
                return Ok(new.to_string());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if *ended || left.is_zero() {
                let end = if *ended {
                    "testpmd ended"
                } else {
                    "no prompt from testpmd"
                };
                bail!("{end}:\n{}", super::tail(self.process.log(), 20));
            }
            let waited = self.output.grew.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn parse_stats(text: &str) -> Option<PortStats> {
    let number = |label: &str| -> Option<u64> {
        let rest = &text[text.find(label)? + label.len()..];
        rest.split_whitespace().next()?.parse().ok()
    };
    Some(PortStats {
        received: number("RX-packets:")?,
        sent: number("TX-packets:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read() {
        let text = "  ######################## NIC statistics for port 0  ####\n  \
            RX-packets: 12         RX-missed: 0          RX-bytes:  720\n  RX-errors: 0\n  \
            TX-packets: 3456       TX-errors: 0          TX-bytes:  0\n";
        assert_eq!(
            parse_stats(text),
            Some(PortStats {
                received: 12,
                sent: 3456
            })
        );
        assert_eq!(parse_stats("Bad arguments"), None);
    }
}
