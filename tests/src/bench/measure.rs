//! Measures one cell on every switch, in rounds.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::cell::{Cell, Load};
use super::guests::{Guests, Rate};
use super::quiet::{self, Moment};
use super::stats::Samples;
use super::switch::{Kind, Layout, Switch};

/// Caches and tables fill before anything is counted.
pub(super) const WARM_UP: Duration = Duration::from_millis(400);

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds in which each switch has one turn.
    pub rounds: usize,
    /// Time counted in each turn.
    pub turn: Duration,
    /// How long each turn waits for others to leave the CPUs alone; zero: nor is a turn repeated
    /// because they did not.
    pub patience: Duration,
    /// The switches that take part.
    pub kinds: &'static [Kind],
}

/// One switch in one cell, a sample from each round.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Millions of frames a second that the guests received.
    pub delivered: Samples,
    /// Millions a second that were accepted from the guests and did not arrive.
    pub lost: Samples,
    /// CPUs that the switch used.
    pub cpu: Samples,
    /// CPUs that others used meanwhile: should be next to none.
    pub others: Samples,
    /// Tandem's counters of drops after the last round.
    pub drops: Value,
}

/// One cell.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was measured.
    pub cell: Cell,
    /// On which switches.
    pub results: Vec<(Kind, Measured)>,
}

impl Outcome {
    /// What one switch did.
    pub fn of(&self, kind: Kind) -> Option<&Measured> {
        let mut results = self.results.iter();
        results
            .find(|(k, _)| *k == kind)
            .map(|(_, measured)| measured)
    }

    /// Median frames a second of a switch, in millions.
    pub fn median(&self, kind: Kind) -> Option<f64> {
        Some(self.of(kind)?.delivered.median())
    }
}

/// The switches a cell makes sense on: `io` knows pairs of ports only.
fn kinds(cell: &Cell, effort: Effort) -> Vec<Kind> {
    let all = effort.kinds.iter().copied();
    all.filter(|kind| *kind != Kind::Io || !matches!(cell.load, Load::Incast | Load::Star))
        .collect()
}

/// Measures a cell.
pub fn cell(dir: &Path, cell: &Cell, effort: Effort) -> Result<Outcome> {
    let layout = Layout {
        pairs: cell.pairs,
        ..Layout::vms(cell.ports, cell.real_addresses())
    };
    let mut switches = start_paused(dir, layout, &kinds(cell, effort))?;
    let mut results: Vec<Measured> = switches.iter().map(|_| Measured::default()).collect();
    let mut repetitions = if effort.patience.is_zero() {
        0
    } else {
        effort.rounds
    };
    for round in 0..effort.rounds {
        for turn in 0..switches.len() {
            // Nobody is always first, nor always behind the same other.
            let n = (round + turn) % switches.len();
            let switch = &mut switches[n];
            let name = switch.kind().name();
            let turn = loop {
                quiet::wait(effort.patience)?;
                let turn = take_turn(dir, cell, switch, effort.turn)
                    .with_context(|| format!("{name} in the cell {}", cell.name))?;
                if turn.others <= quiet::TOLERATED || repetitions == 0 {
                    break turn;
                }
                repetitions -= 1;
            };
            results[n].add(&turn);
        }
    }
    for (switch, result) in switches.iter_mut().zip(&mut results) {
        switch.resume()?;
        result.drops = switch.drops()?;
    }
    Ok(Outcome {
        cell: cell.clone(),
        results: switches.iter().map(Switch::kind).zip(results).collect(),
    })
}

/// Starts switches that wait for their turn.
pub fn start_paused(dir: &Path, layout: Layout, kinds: &[Kind]) -> Result<Vec<Switch>> {
    let start = |kind: &Kind| {
        let mut switch = Switch::start(*kind, dir, layout)
            .with_context(|| format!("starting {}", kind.name()))?;
        switch.pause()?;
        Ok(switch)
    };
    kinds.iter().map(start).collect()
}

/// What was seen in one turn.
pub(super) struct Turn {
    pub(super) rate: Rate,
    pub(super) cpu: f64,
    pub(super) others: f64,
}

impl Measured {
    /// CPU time of the switch for each frame delivered, median. A switch that never sleeps also
    /// counts its looking for work.
    pub fn nanoseconds(&self) -> f64 {
        let turns = self.cpu.0.iter().zip(&self.delivered.0);
        Samples(turns.map(|(cpu, rate)| 1e3 * cpu / rate).collect()).median()
    }

    pub(super) fn add(&mut self, turn: &Turn) {
        let Rate { delivered, sent } = turn.rate;
        self.delivered.0.push(delivered / 1e6);
        self.lost.0.push((sent - delivered).max(0.0) / 1e6);
        self.cpu.0.push(turn.cpu);
        self.others.0.push(turn.others);
    }
}

fn take_turn(dir: &Path, cell: &Cell, switch: &mut Switch, time: Duration) -> Result<Turn> {
    switch.resume()?;
    let mut guests = Guests::start(dir, cell, switch, 0)?;
    guests.go()?;
    std::thread::sleep(WARM_UP);
    let (start, before) = (Instant::now(), switch.process().cpu_ticks()?);
    let from = Moment::now(before + guests.cpu_ticks()?)?;
    let rate = guests.watch(time)?;
    let after = switch.process().cpu_ticks()?;
    let cpu = (after - before) as f64 / 100.0 / start.elapsed().as_secs_f64();
    let others = from.others_until(&Moment::now(after + guests.cpu_ticks()?)?);
    guests.quit()?;
    switch.pause()?;
    Ok(Turn { rate, cpu, others })
}
