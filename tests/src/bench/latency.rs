//! How long one frame takes to another VM and back.
//!
//! The two VMs are drivers of our own that sleep until the switch calls them, as real guests do.
//! They run in a process of their own with a real-time priority, so that their waking does not wait for the guests
//! that make the load on the same CPU.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::cell::{Cell, Load};
use super::guests::Guests;
use super::measure::start_paused;
use super::stats::Samples;
use super::switch::{Kind, Layout, Switch};
use super::{GUEST_CPU, SWITCH_CPU};
use crate::frontend::driver::{Config, Nic};
use crate::frontend::frames;
use crate::frontend::memory::RegionSpec;
use crate::frontend::spec;
use crate::lab::PATIENCE;

/// Long enough that an idle switch which can sleep does.
const PAUSE: Duration = Duration::from_millis(2);
const FRAMES: usize = 300;
/// The ports of the two VMs; those of the load follow.
const PROBES: usize = 2;

/// Times of one switch, in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Latency {
    /// Nothing else is sent.
    pub idle: Samples,
    /// Two more VMs send each other as much as they can.
    pub loaded: Samples,
}

impl Latency {
    /// For the JSON: microseconds.
    pub fn to_json(&self) -> Value {
        let one = |s: &Samples| json!({"median": s.median(), "p99": s.quantile(0.99), "max": s.quantile(1.0), "frames": s.0.len()});
        json!({"idle": one(&self.idle), "loaded": one(&self.loaded)})
    }
}

/// Measures every switch, in rounds.
pub fn run(dir: &Path, kinds: &[Kind], rounds: usize) -> Result<Vec<(Kind, Latency)>> {
    let layout = Layout::vms(PROBES + 2, true);
    let mut switches = start_paused(dir, layout, kinds)?;
    let mut results = vec![Latency::default(); switches.len()];
    for _ in 0..rounds {
        for (switch, result) in switches.iter_mut().zip(&mut results) {
            switch.resume()?;
            let name = switch.kind().name();
            turn(dir, switch, result).with_context(|| format!("the latency of {name}"))?;
            switch.pause()?;
        }
    }
    Ok(switches.iter().map(Switch::kind).zip(results).collect())
}

fn turn(dir: &Path, switch: &Switch, into: &mut Latency) -> Result<()> {
    into.idle.0.extend(probe(switch)?);
    let load = Cell::new("load").load(Load::Replay);
    let mut guests = Guests::start(dir, &load, switch, PROBES)?;
    guests.go()?;
    let before = guests.watch(Duration::from_millis(200))?;
    ensure!(before.delivered > 0.0, "the load does not flow");
    into.loaded.0.extend(probe(switch)?);
    guests.quit()
}

/// Runs [`exchange`] in a process with a real-time priority.
fn probe(switch: &Switch) -> Result<Vec<f64>> {
    in_real_time(&["probe".as_ref(), &switch.socket(0), &switch.socket(1)])
}

/// What the machine takes to wake a thread on the switch's CPU by an eventfd, and to be woken by
/// it: half of what a frame there and back needs through a switch that sleeps, and no switch.
pub fn wakes() -> Result<Samples> {
    Ok(Samples(in_real_time(&["wakes".as_ref()])?))
}

/// Runs this program with other arguments, on the guests' CPU with a real-time priority.
fn in_real_time(arguments: &[&Path]) -> Result<Vec<f64>> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "chrt", "--fifo", "50"]);
    command.args(["taskset", "--cpu-list", &GUEST_CPU.to_string()]);
    command.arg(std::env::current_exe()?).args(arguments);
    let output = command.output()?;
    if !output.status.success() {
        bail!("the probe: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A driver with one pair and little memory, on a port.
pub fn small_nic(socket: &Path) -> Result<Nic> {
    let config = Config {
        regions: vec![RegionSpec::new(0, 4 << 20)],
        transmit: (16, 2048),
        ..Config::with(spec::MRG_RXBUF)
    };
    Nic::start(socket, &config).with_context(|| format!("a VM on {}", socket.display()))
}

/// Sends frames there and back, one at a time; microseconds of each.
pub fn exchange(first: &Path, second: &Path) -> Result<Vec<f64>> {
    let mut nics = [small_nic(first)?, small_nic(second)?];
    let mut times = Vec::with_capacity(FRAMES);
    acquaint(&mut nics)?;
    for number in 0..FRAMES as u64 {
        std::thread::sleep(PAUSE);
        let start = Instant::now();
        let [first, second] = &mut nics;
        pass(first, second, [0, 1], number);
        pass(second, first, [1, 0], number);
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

/// Two threads that wake each other, one of them on the switch's CPU; microseconds there and back.
pub fn wake_each_other() -> Result<Vec<f64>> {
    let [there, back] = [EventFd::new(EFD_CLOEXEC)?, EventFd::new(EFD_CLOEXEC)?];
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| -> Result<()> {
            let mut cpu = CpuSet::new();
            cpu.set(SWITCH_CPU);
            sched_setaffinity(None, &cpu)?;
            for _ in 0..FRAMES {
                there.read()?;
                back.write(1)?;
            }
            Ok(())
        });
        let mut times = Vec::with_capacity(FRAMES);
        for _ in 0..FRAMES {
            std::thread::sleep(PAUSE);
            let start = Instant::now();
            there.write(1)?;
            back.read()?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        echo.join().expect("the other thread")?;
        Ok(times)
    })
}

/// A switch may take a while to find out that its ports are connected; until then frames are lost.
/// The first frames also find tables empty and memory untouched.
fn acquaint(nics: &mut [Nic; 2]) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let mut seen = [0, 0];
    while seen != [10, 10] {
        ensure!(Instant::now() < end, "no frame gets through");
        for (from, to) in [(0, 1), (1, 0)] {
            nics[from].send_plain(&frame([from as u8, to as u8], u64::MAX));
            nics[to].pairs[0]
                .rx
                .wait_used_until(Instant::now() + Duration::from_millis(20));
            while nics[to].try_recv(0).is_some() {
                seen[to] = 10.min(seen[to] + 1);
            }
        }
    }
    Ok(())
}

fn frame([from, to]: [u8; 2], number: u64) -> Vec<u8> {
    let mac = |port: u8| [2, 0, 0, 0, 1, port];
    frames::numbered(mac(from), mac(to), number)
}

/// Sends a frame from one to the other, and waits until it is there.
fn pass(from: &mut Nic, to: &mut Nic, ports: [u8; 2], number: u64) {
    let frame = frame(ports, number);
    from.send_plain(&frame);
    while to.recv().1 != frame {}
}
