//! Between a switch's ports and the wire: a veth pair, whose other end is in a network namespace.
//!
//! Each switch has a wire of its own. Small frames come from a VM and are counted where they leave
//! the wire, or come from the wire and are counted by the VM; the kernel's work for a frame that
//! is sent falls to the CPU of whoever sends it. TCP is the kernel's own at both ends, between the host's port on the
//! switch and the namespace: a guest without a processor that can virtualise is slower than
//! any switch.

mod load;
mod outcome;
mod wire;

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use self::load::{Bulk, Running, Small};
pub use self::outcome::{Outcome, heading, judge, line};
pub use self::wire::{Wire, host_device, own_namespace, switch_side, uplink_device};
use super::SWITCH_CPU;
use super::measure::{Effort, Measured, Turn, WARM_UP};
use super::quiet::{self, Moment};
use super::switch::{Kind, Layout, Switch};
use crate::lab::process;

/// How a switch drives its end of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Packet sockets; Open vSwitch: DPDK's net_af_packet.
    AfPacket,
    /// AF_XDP sockets; Open vSwitch: DPDK's net_af_xdp.
    AfXdp,
}

impl Driver {
    /// Its name, in Tandem's configuration and in the names of cells.
    pub fn name(self) -> &'static str {
        match self {
            Self::AfPacket => "af_packet",
            Self::AfXdp => "af_xdp",
        }
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// UDP in frames of 64 bytes, as many as can be.
    Small,
    /// One TCP connection, in segments as large as both ends' devices take.
    Bulk,
}

/// Where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the switch's port to the namespace.
    Out,
    /// Back.
    In,
}

/// One way to load a switch.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// Drivers of all switches.
    pub driver: Driver,
    /// What is sent.
    pub traffic: Traffic,
    /// Where to.
    pub way: Way,
}

impl Cell {
    /// Every combination.
    pub fn all() -> Vec<Self> {
        let mut cells = vec![];
        for driver in [Driver::AfPacket, Driver::AfXdp] {
            for traffic in [Traffic::Bulk, Traffic::Small] {
                for way in [Way::Out, Way::In] {
                    cells.push(Self {
                        driver,
                        traffic,
                        way,
                    });
                }
            }
        }
        cells
    }

    /// Unique; also its key in the JSON.
    pub fn name(&self) -> String {
        let traffic = match self.traffic {
            Traffic::Small => "64",
            Traffic::Bulk => "tcp",
        };
        let way = match self.way {
            Way::Out => "out",
            Way::In => "in",
        };
        format!("{}-{traffic}-{way}", self.driver.name())
    }

    fn layout(&self) -> Layout {
        let bulk = self.traffic == Traffic::Bulk;
        Layout {
            uplink: Some(self.driver),
            host: bulk,
            ..Layout::vms(if bulk { 0 } else { 1 }, true)
        }
    }
}

/// A switch and its wire.
struct Connected {
    // Dropped in this order.
    switch: Switch,
    wire: Wire,
    measured: Measured,
}

/// Measures one cell on every switch that has an uplink, in rounds.
pub fn cell(dir: &Path, cell: Cell, effort: Effort) -> Result<Outcome> {
    let kinds = effort.kinds.iter().filter(|kind| **kind != Kind::Io);
    let all = kinds.map(|kind| connect(dir, cell, *kind));
    let mut all = all.collect::<Result<Vec<_>>>()?;
    let mut repetitions = match effort.patience.is_zero() {
        true => 0,
        false => effort.rounds,
    };
    for round in 0..effort.rounds {
        for turn in 0..all.len() {
            let n = (round + turn) % all.len();
            loop {
                quiet::wait(effort.patience)?;
                let turn = all[n].turn(dir, cell, effort.turn)?;
                if turn.others <= quiet::TOLERATED || repetitions == 0 {
                    all[n].measured.add(&turn);
                    break;
                }
                repetitions -= 1;
            }
        }
    }
    let results = all.into_iter().map(|mut one| {
        one.switch.resume()?;
        one.measured.drops = one.switch.drops()?;
        Ok((one.switch.kind(), one.measured))
    });
    Ok(Outcome {
        cell,
        results: results.collect::<Result<_>>()?,
    })
}

/// Starts a switch on a wire; it waits for its turn.
fn connect(dir: &Path, cell: Cell, kind: Kind) -> Result<Connected> {
    let connect = || {
        let mut wire = Wire::new(dir, kind)?;
        let mut switch = Switch::start(kind, dir, cell.layout())?;
        if cell.traffic == Traffic::Bulk {
            wire.give_addresses(kind == Kind::Ovs || cell.driver == Driver::AfXdp)?;
        }
        switch.pause()?;
        Ok(Connected {
            switch,
            wire,
            measured: Measured::default(),
        })
    };
    let connected: Result<Connected> = connect();
    connected.with_context(|| format!("starting {} for {}", kind.name(), cell.name()))
}

impl Connected {
    fn turn(&mut self, dir: &Path, cell: Cell, time: Duration) -> Result<Turn> {
        let name = self.switch.kind().name();
        self.switch.resume()?;
        let turn = match cell.traffic {
            Traffic::Small => Small::start(dir, cell, &self.switch, &self.wire)
                .and_then(|load| self.watch(load, time)),
            Traffic::Bulk => {
                Bulk::start(dir, cell, &self.wire).and_then(|load| self.watch(load, time))
            }
        };
        let turn = turn.with_context(|| format!("{name} in the cell {}", cell.name()))?;
        self.switch.pause()?;
        Ok(turn)
    }

    fn watch(&mut self, mut load: impl Running, time: Duration) -> Result<Turn> {
        std::thread::sleep(WARM_UP);
        let kernel = kernel_ticks()?;
        let before = self.switch.process().cpu_ticks()? + kernel;
        let from = Moment::now(before + load.cpu_ticks()?)?;
        let start = Instant::now();
        load.mark(&self.wire)?;
        std::thread::sleep(time);
        load.mark(&self.wire)?;
        let seconds = start.elapsed().as_secs_f64();
        let after = self.switch.process().cpu_ticks()? + kernel_ticks()?;
        let others = from.others_until(&Moment::now(after + load.cpu_ticks()?)?);
        Ok(Turn {
            rate: load.finish()?,
            cpu: (after - before) as f64 / 100.0 / seconds,
            others,
        })
    }
}

/// Clock ticks that the kernel's own thread of the switch's CPU has worked: what frames cost beyond
/// what the kernel does in the time of whoever sends them.
fn kernel_ticks() -> Result<u64> {
    static THREAD: OnceLock<Option<u32>> = OnceLock::new();
    let name = format!("ksoftirqd/{SWITCH_CPU}\n");
    let find = || {
        let mut pids = std::fs::read_dir("/proc").ok()?.flatten();
        pids.find_map(|entry| {
            let comm = std::fs::read_to_string(entry.path().join("comm")).ok()?;
            entry
                .file_name()
                .to_str()?
                .parse()
                .ok()
                .filter(|_| comm == name)
        })
    };
    let thread = THREAD.get_or_init(find).as_ref().context("no ksoftirqd")?;
    process::cpu_ticks(*thread)
}
