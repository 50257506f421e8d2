//! What a switch costs while nobody says anything.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::latency::small_nic;
use super::switch::{Kind, Layout, Switch};

/// CPU use is counted in ticks of 10 ms.
const TIME: Duration = Duration::from_secs(5);

/// The CPU use of a switch with connected, silent ports.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Which switch.
    pub kind: Kind,
    /// Connected ports.
    pub ports: usize,
    /// CPUs used, of 1.
    pub cpu: f64,
}

/// Measures with 2 and with 100 ports, where the switch can have them (testpmd: up to 32).
pub fn run(dir: &Path) -> Result<Vec<Idle>> {
    let mut results = vec![];
    for (kind, ports) in [
        (Kind::Tandem, 2),
        (Kind::Tandem, 100),
        (Kind::Ovs, 2),
        (Kind::Ovs, 100),
        (Kind::Io, 2),
    ] {
        let cpu =
            one(dir, kind, ports).with_context(|| format!("{} with {ports} ports", kind.name()))?;
        results.push(Idle { kind, ports, cpu });
    }
    Ok(results)
}

fn one(dir: &Path, kind: Kind, ports: usize) -> Result<f64> {
    let mut switch = Switch::start(kind, dir, Layout::vms(ports, false))?;
    let nics = (0..ports).map(|port| small_nic(&switch.socket(port)));
    let _nics = nics.collect::<Result<Vec<_>>>()?;
    // What connecting costs is not idleness.
    std::thread::sleep(Duration::from_secs(1));
    let (start, before) = (Instant::now(), switch.process().cpu_ticks()?);
    std::thread::sleep(TIME);
    let ticks = switch.process().cpu_ticks()? - before;
    Ok(ticks as f64 / 100.0 / start.elapsed().as_secs_f64())
}
