//! A VM that moves between two hosts: QEMU's own live migration over a Unix socket.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::lab::process::Process;
use crate::lab::qmp::Qmp;
use crate::lab::{Guest, GuestConfig, Nic, PATIENCE, Qemu, wait_until};

/// Bytes a second that are no limit.
pub const UNLIMITED: u64 = 1 << 30;
/// Bytes a second with which most of a guest's memory goes while it runs, and not in the end.
pub const STEADY: u64 = 128 << 20;
/// Bytes a second with which a migration is not over before somebody ends it.
pub const SLOW: u64 = 4 << 20;
/// How long QEMU may plan to have the VM stopped.
const DOWNTIME_LIMIT: Duration = Duration::from_millis(300);
/// Granule in which memory is compared.
const PAGE: usize = 4096;

/// What a VM is made of.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// The QEMU on each host.
    pub qemus: [Qemu; 2],
    /// The sockets of its port on each host.
    pub sockets: [PathBuf; 2],
    /// Its MAC address, as QEMU takes it.
    pub mac: String,
    /// Queue pairs, and as many CPUs.
    pub pairs: usize,
    /// A property of its card, such as `packed=on`.
    pub option: String,
}

impl VmConfig {
    fn guest(&self, dir: &Path, name: &str, host: usize) -> GuestConfig {
        let nic = Nic::vhost_user(&self.sockets[host], &self.mac)
            .pairs(self.pairs)
            .option(&self.option);
        let second = second_monitor(dir, name);
        GuestConfig::new(name)
            .qemu(&self.qemus[host])
            .cpus(self.pairs)
            .nic(nic)
            .argument("-qmp")
            .argument(&format!("unix:{},server=on,wait=off", second.display()))
    }
}

/// A monitor that nobody has a connection of, for `tandem migration start`.
fn second_monitor(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.monitor"))
}

/// QEMU on a host: the VM, or one that waits for it.
#[derive(Debug)]
pub struct Instance {
    /// QEMU and the way into the guest.
    pub guest: Guest,
    /// Its monitor.
    pub qmp: Qmp,
    /// Which host it is on.
    pub host: usize,
}

/// When a migration did what, since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// QEMU's event STOP on the source: the guest's CPUs and its rings have been stopped.
    pub stopped: Duration,
    /// QEMU's event RESUME on the destination: rings and CPUs are started next.
    pub resumed: Duration,
    /// From STOP to the end as QEMU's source has it, `downtime` of `query-migrate`.
    pub downtime: Duration,
    /// All of it, `total-time`.
    pub total: Duration,
}

impl Moved {
    /// From STOP to RESUME.
    pub fn stop_time(&self) -> Duration {
        self.resumed.saturating_sub(self.stopped)
    }
}

/// A running VM.
#[derive(Debug)]
pub struct Vm {
    dir: PathBuf,
    config: VmConfig,
    /// Where it runs.
    pub here: Instance,
    /// Instances so far, so that each has names of its own.
    count: usize,
    /// When the migration that is on has stopped it, if that was waited for.
    stopped: Option<Duration>,
}

impl Vm {
    /// Boots it on host 0.
    pub fn boot(dir: &Path, config: VmConfig) -> Result<Self> {
        let mut guest = config.guest(dir, "vm-0", 0).boot(dir)?;
        let qmp = guest.qmp()?;
        Ok(Self {
            dir: dir.to_path_buf(),
            config,
            here: Instance {
                guest,
                qmp,
                host: 0,
            },
            count: 1,
            stopped: None,
        })
    }

    /// Starts QEMU on the other host. It waits for the VM; `arguments` are more of QEMU's.
    pub fn destination(&mut self, arguments: &[&str]) -> Result<Instance> {
        let host = 1 - self.here.host;
        let name = format!("vm-{}", self.count);
        self.count += 1;
        let mut config = self.config.guest(&self.dir, &name, host);
        for argument in ["-incoming", "defer"].iter().chain(arguments) {
            config = config.argument(argument);
        }
        let mut guest = config.start(&self.dir)?;
        let mut qmp = guest.qmp()?;
        tell_of_migration(&mut qmp)?;
        let uri = self.uri(&name);
        qmp.execute("migrate-incoming", json!({ "uri": uri }))?;
        Ok(Instance { guest, qmp, host })
    }

    /// QEMU's second monitor, which is free.
    pub fn monitor(&self) -> PathBuf {
        second_monitor(&self.dir, self.here.guest.name())
    }

    /// Where an instance of this name waits for the VM.
    pub fn uri(&self, name: &str) -> String {
        format!("unix:{}", self.dir.join(name).display())
    }

    /// Starts to migrate to an instance that waits, at a rate in bytes a second, and waits until memory
    /// is on its way.
    pub fn begin(&mut self, to: &Instance, rate: u64) -> Result<()> {
        self.set_out(to, rate, false)
    }

    /// The same at full rate up to where the VM has been stopped on the source, and is to be started on the
    /// destination by [`Vm::go_on`].
    pub fn begin_and_stop(&mut self, to: &Instance) -> Result<()> {
        self.set_out(to, UNLIMITED, true)?;
        self.stopped = Some(self.wait_stop()?);
        let event = self.here.qmp.wait_event("pre-switchover", |event| {
            event.name == "MIGRATION" && event.data["status"] == "pre-switchover"
                || has_ended(event.data["status"].as_str())
        })?;
        ensure!(event.data["status"] == "pre-switchover", "{}", event.data);
        Ok(())
    }

    /// Waits until the VM is stopped here; when that was.
    fn wait_stop(&mut self) -> Result<Duration> {
        let stop = self.here.qmp.wait_event("STOP", |event| {
            event.name == "STOP" || has_ended(event.data["status"].as_str())
        })?;
        ensure!(stop.name == "STOP", "the migration: {}", stop.data);
        Ok(stop.at)
    }

    /// Has a migration that has stopped the VM go on.
    pub fn go_on(&mut self) -> Result<()> {
        let state = json!({ "state": "pre-switchover" });
        self.here.qmp.execute("migrate-continue", state).map(drop)
    }

    /// Has a migration that has begun go on as fast as it can.
    pub fn hurry(&mut self) -> Result<()> {
        let rate = json!({ "max-bandwidth": UNLIMITED });
        let qmp = &mut self.here.qmp;
        qmp.execute("migrate-set-parameters", rate).map(drop)
    }

    fn set_out(&mut self, to: &Instance, rate: u64, pause: bool) -> Result<()> {
        self.stopped = None;
        let uri = self.uri(to.guest.name());
        let qmp = &mut self.here.qmp;
        tell_of_migration(qmp)?;
        // By the return path the source hears whether the destination has taken the VM over.
        let capabilities = json!({ "capabilities": [
            { "capability": "pause-before-switchover", "state": pause },
            { "capability": "return-path", "state": true },
        ] });
        qmp.execute("migrate-set-capabilities", capabilities)?;
        let limit = DOWNTIME_LIMIT.as_millis() as u64;
        qmp.execute(
            "migrate-set-parameters",
            json!({ "max-bandwidth": rate, "downtime-limit": limit }),
        )?;
        qmp.execute("migrate", json!({ "uri": uri }))?;
        // The first of each round is numbered 1.
        qmp.wait_event("MIGRATION_PASS", |event| event.name == "MIGRATION_PASS")
            .map(drop)
    }

    /// Waits until a migration has gone through and QEMU on the source holds no more than a corpse;
    /// when it stopped the VM, with `downtime` and `total-time`. The VM is at `to` from now on.
    pub fn complete(&mut self, to: &Instance) -> Result<(Duration, [Duration; 2])> {
        let stopped = match self.stopped.take() {
            Some(at) => at,
            None => self.wait_stop()?,
        };
        let qmp = &mut self.here.qmp;
        let status = wait_end(qmp)?;
        ensure!(status == "completed", "the migration has {status}");
        let mut times = json!(null);
        // The event comes before the figures.
        wait_until("figures of the migration", PATIENCE, || {
            times = qmp.execute("query-migrate", json!({}))?;
            Ok(times["total-time"].as_u64().unwrap_or_default() > 0)
        })?;
        let time = |key: &str| Duration::from_millis(times[key].as_u64().unwrap_or_default());
        ensure!(to.host != self.here.host, "it is where it was");
        Ok((stopped, [time("downtime"), time("total-time")]))
    }

    /// Moves the VM to the other host. Also what is left of QEMU on this one, which goes with the value.
    pub fn migrate(&mut self) -> Result<(Moved, Instance)> {
        let to = self.destination(&[])?;
        self.begin(&to, UNLIMITED)?;
        self.arrive(to)
    }

    /// Waits until a migration that has begun is over and the VM runs at `to`. As [`Vm::migrate`].
    pub fn arrive(&mut self, mut to: Instance) -> Result<(Moved, Instance)> {
        let (stopped, [downtime, total]) = self.complete(&to)?;
        let resumed = to
            .qmp
            .wait_event("RESUME", |event| event.name == "RESUME")?;
        let left = self.settle(to);
        let moved = Moved {
            stopped,
            resumed: resumed.at,
            downtime,
            total,
        };
        Ok((moved, left))
    }

    /// The VM is `to` from now on; what is left here.
    pub fn settle(&mut self, to: Instance) -> Instance {
        std::mem::replace(&mut self.here, to)
    }

    /// Waits for the end of a migration that does not go through; how it ended.
    pub fn wait_failed(&mut self) -> Result<String> {
        let status = wait_end(&mut self.here.qmp)?;
        ensure!(status != "completed", "the migration has completed");
        Ok(status)
    }

    /// Waits for the end of a migration that may go through: the VM is at `to` then, or has stayed.
    pub fn wait_either(&mut self, mut to: Instance) -> Result<()> {
        if wait_end(&mut self.here.qmp)? == "completed" {
            to.qmp
                .wait_event("RESUME", |event| event.name == "RESUME")?;
            drop(self.settle(to));
        }
        Ok(())
    }
}

fn tell_of_migration(qmp: &mut Qmp) -> Result<()> {
    let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    qmp.execute("migrate-set-capabilities", events).map(drop)
}

fn has_ended(status: Option<&str>) -> bool {
    matches!(status, Some("completed" | "failed" | "cancelled"))
}

fn wait_end(qmp: &mut Qmp) -> Result<String> {
    let event = qmp.wait_event("MIGRATION", |event| {
        event.name == "MIGRATION" && has_ended(event.data["status"].as_str())
    })?;
    Ok(event.data["status"]
        .as_str()
        .unwrap_or_default()
        .to_string())
}

/// Addresses of pages in which two QEMUs that have both stopped differ.
pub fn differing_pages(one: &mut Instance, other: &mut Instance) -> Result<Vec<usize>> {
    let mut files = [
        guest_memory(one.guest.process())?,
        guest_memory(other.guest.process())?,
    ];
    let lengths = [files[0].metadata()?.len(), files[1].metadata()?.len()];
    ensure!(lengths[0] == lengths[1], "memory of {lengths:?} bytes");
    let mut pages = [vec![0; 256 * PAGE], vec![0; 256 * PAGE]];
    let mut found = Vec::new();
    for at in (0..lengths[0] as usize).step_by(256 * PAGE) {
        for (file, pages) in files.iter_mut().zip(&mut pages) {
            file.read_exact(pages)?;
        }
        let pairs = pages[0].chunks(PAGE).zip(pages[1].chunks(PAGE));
        let differ = pairs.enumerate().filter(|(_, (one, other))| one != other);
        found.extend(differ.map(|(page, _)| at + page * PAGE));
    }
    Ok(found)
}

/// The file behind a guest's memory, which QEMU has open.
fn guest_memory(qemu: &Process) -> Result<File> {
    let open = format!("/proc/{}/fd", qemu.pid());
    for entry in std::fs::read_dir(&open).context(open.clone())? {
        let path = entry?.path();
        // Others come and go.
        let target = std::fs::read_link(&path).unwrap_or_default();
        if target
            .to_string_lossy()
            .starts_with("/memfd:memory-backend")
        {
            return Ok(File::open(path)?);
        }
    }
    bail!("no memory among {open}")
}
