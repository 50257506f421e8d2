//! What a dirty log costs: the same guests with a live migration that never ends, and without, in turns.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cell::{Cell, Load};
use super::guests::Guests;
use super::measure::{Effort, WARM_UP};
use super::quiet;
use super::stats::Samples;
use super::switch::{Kind, Layout, Switch};
use super::verdict::Verdict;
use crate::frontend::memory::DirtyLog;

/// How often the VMM looks which pages it has to send again: sooner than any does with a guest of some size.
const SYNC: Duration = Duration::from_millis(100);
/// What a log may leave of the throughput.
const WANTED: f64 = 0.8;
const PORTS: usize = 2;

/// The cells, by names of their own.
fn cells() -> [(&'static str, Cell); 3] {
    [
        ("logged-64", Cell::new("64")),
        ("logged-64-packed", Cell::new("64-packed").packed()),
        (
            "logged-1500",
            Cell::new("1500").bytes(1500).load(Load::Replay),
        ),
    ]
}

/// One cell.
#[derive(Clone, Debug)]
pub struct Logged {
    /// Its name.
    pub name: &'static str,
    /// Millions of frames a second without a log.
    pub plain: Samples,
    /// And with one.
    pub logged: Samples,
}

impl Logged {
    /// What is left, of 1.
    pub fn ratio(&self) -> f64 {
        self.logged.median() / self.plain.median()
    }

    /// In a line.
    pub fn line(&self) -> String {
        format!(
            "{:20} {:.2} M/s, with a dirty log {:.2} M/s: {:.2}\n",
            self.name,
            self.plain.median(),
            self.logged.median(),
            self.ratio()
        )
    }

    pub(super) fn verdict(&self) -> Verdict {
        Verdict {
            what: format!("{}, with a dirty log / without", self.name),
            value: self.ratio(),
            wanted: WANTED,
            at_most: false,
        }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"name": self.name, "plain_mpps": self.plain.to_json(), "logged_mpps": self.logged.to_json()})
    }
}

/// Measures those that `wanted` names.
pub fn run(dir: &Path, effort: Effort, wanted: impl Fn(&str) -> bool) -> Result<Vec<Logged>> {
    let cells = cells();
    let chosen = cells.iter().filter(|(name, _)| wanted(name));
    chosen
        .map(|(name, cell)| measure(dir, name, cell, effort))
        .collect()
}

fn measure(dir: &Path, name: &'static str, cell: &Cell, effort: Effort) -> Result<Logged> {
    let layout = Layout::vms(PORTS, cell.real_addresses());
    let mut switch = Switch::start(Kind::Tandem, dir, layout)?;
    switch.relay(PORTS)?;
    let mut guests = Guests::start(dir, cell, &switch, 0)?;
    guests.go()?;
    let mut result = Logged {
        name,
        plain: Samples::default(),
        logged: Samples::default(),
    };
    for _ in 0..effort.rounds {
        quiet::wait(effort.patience)?;
        std::thread::sleep(WARM_UP);
        let plain = guests.watch(effort.turn)?;
        result.plain.0.push(plain.delivered / 1e6);
        let start = switch.relays().iter().map(|relay| relay.start_log());
        let logs = start.collect::<Result<Vec<_>>>()?;
        let until = Instant::now() + WARM_UP + effort.turn;
        let (logged, marked) = std::thread::scope(|scope| {
            let vmm = scope.spawn(|| sync_until(&logs, until));
            std::thread::sleep(WARM_UP);
            (guests.watch(effort.turn), vmm.join())
        });
        result.logged.0.push(logged?.delivered / 1e6);
        let marked = marked.ok().context("a thread panicked")?;
        ensure!(marked.iter().all(|pages| *pages > 0), "nothing was logged");
        switch
            .relays()
            .iter()
            .try_for_each(|relay| relay.stop_log())?;
    }
    guests.quit()?;
    Ok(result)
}

/// Looks at the logs, and clears them, again and again; how many pages each had marked.
fn sync_until(logs: &[DirtyLog], until: Instant) -> Vec<u64> {
    let mut marked = vec![0; logs.len()];
    while Instant::now() < until {
        std::thread::sleep(SYNC);
        for (marked, log) in marked.iter_mut().zip(logs) {
            *marked += log.dirty_pages();
            log.clear();
        }
    }
    marked
}
