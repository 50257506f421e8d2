//! A daemon with ports for one test, and what can be asked of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::driver::{Config, Nic};
use super::wire::PATIENCE;
use crate::lab::{Daemon, Lab, long};

/// No test of the front-end takes longer; then the daemon is killed, and every wait for it fails.
const LIMIT: Duration = Duration::from_secs(120);

/// A running `tandemd` in directories of its own.
pub struct Rig {
    /// The process.
    pub daemon: Daemon,
    lab: Lab,
    _watchdog: Sender<()>,
}

impl Rig {
    /// Starts the daemon with a `--port` for each of `ports`, written as there: `NAME,key=value…`.
    pub fn new(ports: &[&str]) -> Result<Self> {
        let lab = Lab::new()?;
        let daemon = Daemon::with_ports(lab.path(), ports)?;
        Self::watch(lab, daemon)
    }

    /// Starts the daemon with a configuration file.
    pub fn with_config(text: &str) -> Result<Self> {
        let lab = Lab::new()?;
        let file = lab.path().join("tandem.toml");
        std::fs::write(&file, text)?;
        let file = file.to_str().context("path")?;
        let daemon = Daemon::start(lab.path(), &["--config", file])?;
        Self::watch(lab, daemon)
    }

    fn watch(lab: Lab, mut daemon: Daemon) -> Result<Self> {
        let pid = Pid::from_raw(daemon.process().pid() as i32).context("pid")?;
        let (stop, stopped) = channel();
        std::thread::spawn(move || {
            let limit = if long() { 10 * LIMIT } else { LIMIT };
            if stopped.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        Ok(Rig {
            daemon,
            lab,
            _watchdog: stop,
        })
    }

    /// A directory that ends with the rig.
    pub fn dir(&self) -> &std::path::Path {
        self.lab.path()
    }

    /// The socket of a port.
    pub fn socket(&self, port: &str) -> PathBuf {
        self.daemon.socket(port)
    }

    /// Starts a VM on a port.
    pub fn nic(&self, port: &str, config: &Config) -> Result<Nic> {
        Nic::start(&self.socket(port), config).with_context(|| format!("a VM on {port}"))
    }

    /// A GET from the API; the path starts behind `/api/v1/`.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.daemon.get(path)
    }

    /// A port as the API shows it.
    pub fn port(&self, name: &str) -> Result<Value> {
        self.get(&format!("ports/{name}"))
    }

    /// Waits until a port looks as it should; gives how it then looks.
    pub fn wait_port(
        &self,
        name: &str,
        what: &str,
        good: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            let port = self.port(name)?;
            if good(&port) {
                return Ok(port);
            }
            ensure!(Instant::now() < end, "port {name} {what}, but: {port:#}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until no VMM is connected to a port.
    pub fn wait_disconnected(&self, name: &str) -> Result<Value> {
        self.wait_port(name, "should lose its VMM", |port| {
            port["session"]["connected"] == false
        })
    }

    /// What the daemon holds, from proc(5).
    pub fn holdings(&mut self) -> Result<Holdings> {
        let proc = PathBuf::from(format!("/proc/{}", self.daemon.process().pid()));
        let status = std::fs::read_to_string(proc.join("status"))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find(|line| line.starts_with(name));
            let word = line.and_then(|line| line.split_whitespace().nth(1));
            Ok(word.with_context(|| format!("no {name}"))?.parse()?)
        };
        Ok(Holdings {
            descriptors: std::fs::read_dir(proc.join("fd"))?.count() as u64,
            mappings: std::fs::read_to_string(proc.join("maps"))?.lines().count() as u64,
            threads: field("Threads:")?,
            resident_kib: field("VmRSS:")?,
        })
    }

    /// Waits until the daemon holds no more descriptors and threads than `before`: those of API
    /// connections go a moment after their answer.
    pub fn back_to(&mut self, before: &Holdings) -> Result<Holdings> {
        let end = Instant::now() + PATIENCE;
        loop {
            let now = self.holdings()?;
            if now.descriptors <= before.descriptors && now.threads <= before.threads {
                return Ok(now);
            }
            ensure!(Instant::now() < end, "held {before:?}, holds {now:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the counters stand still and add up; fails if they do not.
    pub fn settled(&self) -> Result<Counters> {
        let end = Instant::now() + PATIENCE;
        let mut last = Counters::default();
        loop {
            let now = self.counters()?;
            if now == last && now.discrepancy().is_none() {
                return Ok(now);
            }
            if Instant::now() > end {
                bail!("counters: {:?}: {now:#?}", now.discrepancy());
            }
            last = now;
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn counters(&self) -> Result<Counters> {
        let mut all = Counters::default();
        let status = self.get("status")?;
        for switch in status["switches"].as_array().context("no switches")? {
            let counters = switch["counters"].as_object().context("no counters")?;
            for (name, value) in counters {
                let value = value.as_u64().context("a count")?;
                *all.switch.entry(name.clone()).or_default() += value;
            }
        }
        for port in self.get("ports")?["ports"].as_array().context("no ports")? {
            let name = port["name"].as_str().context("no name")?.to_string();
            all.ports.insert(name, PortCounters::of(port)?);
        }
        Ok(all)
    }
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// Open file descriptors.
    pub descriptors: u64,
    /// Memory mappings.
    pub mappings: u64,
    /// Threads.
    pub threads: u64,
    /// Resident memory.
    pub resident_kib: u64,
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.daemon.process().log().to_owned();
            eprintln!("---- tandemd\n{}", crate::lab::tail(&log, 40));
            if let Ok(counters) = self.counters() {
                eprintln!("---- counters\n{counters:#?}");
            }
        }
    }
}

/// All counters of a daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// By port.
    pub ports: BTreeMap<String, PortCounters>,
    /// Of all switches together, by name.
    pub switch: BTreeMap<String, u64>,
}

/// The counters of one port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Frames taken from the VM.
    pub from_vm: u64,
    /// Of those, dropped, by reason.
    pub from_vm_drops: BTreeMap<String, u64>,
    /// Frames delivered to the VM.
    pub to_vm: u64,
    /// Frames not delivered to it, by reason.
    pub to_vm_drops: BTreeMap<String, u64>,
}

impl PortCounters {
    fn of(port: &Value) -> Result<Self> {
        let drops = |direction: &str| -> Result<BTreeMap<String, u64>> {
            let drops = &port["counters"][direction]["drops"];
            let drops = drops.as_object().context("no drops")?;
            let count = |(name, value): (&String, &Value)| {
                Ok((name.clone(), value.as_u64().context("a count")?))
            };
            drops.iter().map(count).collect()
        };
        let frames = |direction: &str| {
            let frames = port["counters"][direction]["frames"].as_u64();
            frames.context("no count of frames")
        };
        Ok(PortCounters {
            from_vm: frames("from_vm")?,
            from_vm_drops: drops("from_vm")?,
            to_vm: frames("to_vm")?,
            to_vm_drops: drops("to_vm")?,
        })
    }

    /// Frames dropped in either direction.
    pub fn drops(&self) -> u64 {
        self.from_vm_drops.values().sum::<u64>() + self.to_vm_drops.values().sum::<u64>()
    }
}

impl Counters {
    /// A counter of the switch.
    pub fn switch(&self, name: &str) -> u64 {
        *self
            .switch
            .get(name)
            .unwrap_or_else(|| panic!("no counter {name}"))
    }

    /// What does not add up: every frame taken was dropped with a reason or forwarded, and every
    /// copy forwarded was delivered or dropped with a reason.
    pub fn discrepancy(&self) -> Option<String> {
        let sum = |of: fn(&PortCounters) -> u64| self.ports.values().map(of).sum::<u64>();
        let taken = sum(|p| p.from_vm);
        let refused = sum(|p| p.from_vm_drops.values().sum());
        let ended = sum(|p| p.to_vm + p.to_vm_drops.values().sum::<u64>());
        let count = |name: &str| self.switch.get(name).copied().unwrap_or_default();
        let announced = count("announced");
        if taken + announced != refused + count("unicast") + count("flooded") {
            return Some(format!(
                "taken {taken}, announced {announced}, dropped {refused}, rest not forwarded"
            ));
        }
        let sent = (count("unicast") + count("copies") + count("segments"))
            .checked_sub(count("segmented_frames"));
        (sent != Some(ended)).then(|| format!("sent on {sent:?}, delivered or dropped {ended}"))
    }
}
