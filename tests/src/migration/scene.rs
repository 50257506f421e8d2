//! A VM that moves while a station asks it for a sign of life and a stream goes to it and back.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::prober::{Log, Prober};
use super::rig::PORT;
use super::watch::{Sighting, Watch};
use super::{Moved, Rig, Vm, Wiring, report};
use crate::lab::payload::OpenStream;
use crate::lab::{PATIENCE, Qemu, say};

/// Without an answer for longer, the VM has lost its network.
pub const LIMIT: Duration = Duration::from_secs(2);
/// Bytes of the stream that show that it goes on.
const SOME: u64 = 128 << 10;

/// A VM on host A, and all who talk to it.
#[derive(Debug)]
pub struct Scene {
    // Dropped in this order.
    /// Asks it from far away.
    pub far: Prober,
    /// Goes to it and back.
    pub stream: OpenStream,
    watch: Watch,
    /// The VM.
    pub vm: Vm,
    /// The hosts.
    pub rig: Rig,
    /// The daemons' part of the downtime of each move so far; see [`report::part`].
    pub parts: Vec<f64>,
}

/// What was heard and seen.
#[derive(Debug)]
pub struct Outcome {
    /// From far away.
    pub far: Log,
    /// On the uplinks.
    pub seen: Vec<Sighting>,
    _vm: Vm,
    /// The hosts.
    pub rig: Rig,
}

impl Scene {
    /// Boots the VM on host A. `card` has its queue pairs, and a property such as `packed=on`.
    pub fn start(dir: &Path, wiring: Wiring, qemu: &Qemu, card: (usize, &str)) -> Result<Self> {
        let (pairs, option) = card;
        let rig = Rig::start(dir, wiring, &format!("queue_pairs = {pairs}"))?;
        let vm = rig.boot(dir, [qemu, qemu], pairs, option)?;
        let stream = rig.stream()?;
        stream.wait_more(SOME, PATIENCE)?;
        Ok(Self {
            far: rig.prober()?,
            stream,
            watch: rig.watch()?,
            vm,
            rig,
            parts: Vec::new(),
        })
    }

    /// Moves the VM. QEMU on the source ends at once, as an orchestrator would have it.
    pub fn migrate(&mut self) -> Result<Moved> {
        let from = self.vm.here.host;
        let before = self.rig.drops()?;
        self.rig.prepare(from)?;
        let (moved, _) = self.vm.migrate()?;
        self.goes_on()?;
        let [source, destination] = self.rig.commit(from)?;
        say(&format!("      {}", report::cost(&source, &destination)));
        self.parts.push(report::part(&source, &destination));
        for (was, is) in before.iter().zip(&self.rig.drops()?) {
            say(&format!("      drops {was} -> {is}"));
        }
        Ok(moved)
    }

    /// `tandem migration start` where the VM is, with all that it takes to prepare the move, too.
    pub fn start_by_cli(&self, uri: &str) -> Result<Output> {
        let (from, monitor) = (self.vm.here.host, self.vm.monitor());
        let monitor = monitor.to_str().context("path")?;
        let mut words = vec!["migration", "start", PORT, "--qmp", monitor, "--uri", uri];
        let way = self.rig.way(from);
        words.extend(way.iter().map(String::as_str));
        self.rig.hosts[from].daemon.cli_output(&words)
    }

    /// The log until now; another begins.
    pub fn next_log(&mut self) -> Result<Log> {
        let next = self.rig.prober()?;
        std::mem::replace(&mut self.far, next).stop()
    }

    /// The stream goes on, and soon.
    pub fn goes_on(&self) -> Result<()> {
        let came = self.stream.wait_more(SOME, PATIENCE);
        came.with_context(|| format!("the stream on host {}", self.vm.here.host))
    }

    /// Ends all but the VM. The stream must be right, and the VM there to the end.
    pub fn end(self) -> Result<Outcome> {
        let bytes = self.stream.end().context("the stream")?;
        ensure!(bytes > 0, "the stream was empty");
        let far = self.far.stop()?;
        let seen = self.watch.stop()?;
        far.check_alive()?;
        Ok(Outcome {
            far,
            seen,
            _vm: self.vm,
            rig: self.rig,
        })
    }
}

/// What holds for any log: none answered twice, and never silent for long.
pub fn check_log(log: &Log) -> Result<()> {
    let gap = log.longest_gap().length();
    ensure!(gap < LIMIT, "no answer for {gap:?}");
    ensure!(log.duplicates() == 0, "{} duplicates", log.duplicates());
    Ok(())
}

/// And for one of a migration: none lost from when the VM was about to be stopped. Before that a guest that has no CPU
/// for a second may run out of buffers. What a network brings directly may overtake what follows the VM
/// by way of the host that it has left.
pub fn check_moved(log: &Log, moved: &Moved) -> Result<()> {
    check_log(log)?;
    let from = moved.stopped.saturating_sub(Duration::from_millis(50));
    let lost = log.lost().filter(|probe| probe.sent > from).count();
    ensure!(lost == 0, "{lost} lost");
    Ok(())
}

impl Outcome {
    /// Says what became of requests, if some were lost.
    pub fn tell_lost(&self, log: &Log, moved: &Moved) -> Result<()> {
        if log.lost().count() > 0 {
            for fate in report::fates(log, &self.seen, moved.stopped) {
                say(&format!("        {fate}"));
            }
            say(&format!("        drops: {:?}", self.rig.drops()?));
        }
        Ok(())
    }

    /// Says what a migration from host `from` cost, and checks that nothing of the VM came from there
    /// after it.
    pub fn check_moved(&self, from: usize, moved: &Moved) -> Result<()> {
        say(&format!("      {}", report::summary(&self.far, moved)));
        self.tell_lost(&self.far, moved)?;
        check_moved(&self.far, moved)?;
        let stray = self
            .seen
            .iter()
            .find(|seen| seen.from_vm && seen.host == from && seen.at > moved.resumed);
        ensure!(stray.is_none(), "the VM is still there: {stray:?}");
        let port = self.rig.hosts[from].daemon.port(PORT)?;
        ensure!(!port.is_up(), "its port is still up there");
        let port = self.rig.hosts[1 - from].daemon.port(PORT)?;
        ensure!(port.is_up(), "its port is down: {}", port.reason());
        Ok(())
    }
}
