//! Whether somebody else uses the CPUs: figures taken beside a compiler are worth nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// CPUs that others may use, of all, before a turn is worth nothing. The kernel and the programs
/// that take the figures need a little.
pub const TOLERATED: f64 = 0.06;
/// A moment in the CPU time of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    at: Instant,
    /// CPU seconds used or stolen since the machine started, on all CPUs.
    busy: f64,
    /// Those of our own programs.
    ours: f64,
}

impl Moment {
    /// Now. `ours`: ticks used so far by the programs whose use of the CPUs is wanted.
    pub fn now(ours: u64) -> Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        Ok(Self {
            at: Instant::now(),
            busy: busy_ticks(&stat).context("/proc/stat")? as f64 / 100.0,
            ours: ours as f64 / 100.0,
        })
    }

    /// CPUs that others used since.
    pub fn others_until(&self, later: &Moment) -> f64 {
        let used = (later.busy - self.busy) - (later.ours - self.ours);
        used.max(0.0) / (later.at - self.at).as_secs_f64()
    }
}

/// User, nice, system, irq, softirq and steal of the first line (proc(5)).
fn busy_ticks(stat: &str) -> Option<u64> {
    let fields = stat.lines().next()?.split_whitespace().skip(1);
    let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    let busy = [0, 1, 2, 5, 6, 7].into_iter();
    busy.map(|n| ticks.get(n)).sum::<Option<u64>>()
}

/// Waits until others leave the CPUs alone for a moment, for a limited time.
pub fn wait(limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        let before = Moment::now(0)?;
        std::thread::sleep(Duration::from_millis(300));
        if before.others_until(&Moment::now(0)?) <= TOLERATED {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_leaves_out_idle_and_waiting() {
        let stat = "cpu  1 2 4 1000 1000 8 16 32 0 0\ncpu0 9 9 9 9\n";
        assert_eq!(busy_ticks(stat), Some(63));
        assert_eq!(busy_ticks(""), None);
    }
}
