//! What `virsh domjobinfo` prints: a name and a value on each line.
//!
//! Source: libvirt, docs/manpages/virsh.rst, `domjobinfo`; its output is read as virsh 9.0 writes it with `LC_ALL=C`.
//! Sizes come rounded to three digits behind the point.

use super::{Progress, words};

/// How far a job of libvirt's is, or was in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Job {
    /// What it does, such as `Outgoing migration`; empty if there is none.
    operation: String,
    iteration: Option<u64>,
    processed: Option<u64>,
    remaining: Option<u64>,
    total: Option<u64>,
    /// Milliseconds for which the VM was stopped, or will be.
    pub(super) downtime_ms: Option<u64>,
    /// Milliseconds since it began, or until it ended.
    pub(super) elapsed_ms: Option<u64>,
}

impl Job {
    /// Reads what it knows of it, and passes over the rest.
    pub(super) fn parse(text: &str) -> Self {
        let mut job = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            let number = value.split_whitespace().next().and_then(|n| n.parse().ok());
            match name.trim() {
                "Operation" => job.operation = words(value),
                "Iteration" => job.iteration = number,
                "Memory processed" => job.processed = bytes(value),
                "Memory remaining" => job.remaining = bytes(value),
                "Memory total" => job.total = bytes(value),
                "Expected downtime" | "Total downtime" => job.downtime_ms = number,
                "Time elapsed" => job.elapsed_ms = number,
                _ => {}
            }
        }
        job
    }

    /// What of it is progress. There is nothing to say of it before libvirt has begun, and nothing is taken back.
    pub(super) fn tell(&self, progress: &mut Progress) {
        if self.operation.is_empty() {
            return;
        }
        progress.state = match self.iteration {
            Some(n) => format!("{}, iteration {n}", self.operation),
            None => self.operation.clone(),
        };
        progress.transferred = self.processed.or(progress.transferred);
        progress.remaining = self.remaining.or(progress.remaining);
        progress.total = self.total.or(progress.total);
        progress.downtime_ms = self.downtime_ms.or(progress.downtime_ms);
    }
}

/// A size, such as `30.009 MiB`.
fn bytes(value: &str) -> Option<u64> {
    let (number, unit) = value.split_once(' ')?;
    let number: f64 = number.parse().ok()?;
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = units.iter().position(|known| *known == unit.trim())?;
    // Saturates, and what is no number becomes 0.
    Some((number * (1024_f64).powi(power as i32)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// virsh 9.0, early in a migration.
    const EARLY: &str = "Job type:         Unbounded   \nOperation:        Outgoing migration\n\
        Time elapsed:     71           ms\n\n";
    /// Later.
    const LATER: &str = "Job type:         Unbounded   \nOperation:        Outgoing migration\n\
        Time elapsed:     2731         ms\nData processed:   85.041 MiB\nData remaining:   22.602 MiB\n\
        Data total:       256.758 MiB\nMemory processed: 85.041 MiB\nMemory remaining: 22.602 MiB\n\
        Memory total:     256.758 MiB\nMemory bandwidth: 100.014 MiB/s\nDirty rate:       52           pages/s\n\
        Page size:        4096         bytes\nIteration:        2           \nPostcopy requests: 0           \n\
        Constant pages:   38354       \nNormal pages:     21644       \nNormal data:      84.547 MiB\n\
        Expected downtime: 250          ms\nSetup time:       2            ms\n\n";
    /// On the other host, with `--completed`.
    const COMPLETED: &str = "Job type:         Completed   \nOperation:        Incoming migration\n\
        Time elapsed:     2779         ms\nTime elapsed w/o network: 2778         ms\n\
        Data processed:   107.242 MiB\nMemory processed: 107.242 MiB\nMemory remaining: 0.000 B\n\
        Memory total:     256.758 MiB\nIteration:        3           \n\
        Total downtime:   49           ms\nDowntime w/o network: 48           ms\n";

    #[test]
    fn what_virsh_prints_is_read() {
        let mut progress = Progress::default();
        Job::parse("Job type:         None        \n\n").tell(&mut progress);
        assert_eq!(progress, Progress::default());
        Job::parse(EARLY).tell(&mut progress);
        assert_eq!(progress.state, "Outgoing migration");
        assert_eq!(progress.total, None);
        Job::parse(LATER).tell(&mut progress);
        assert_eq!(progress.state, "Outgoing migration, iteration 2");
        assert_eq!(progress.transferred, Some(89_171_951));
        assert_eq!(progress.remaining, Some(23_699_914));
        assert_eq!(progress.total, Some(269_230_276));
        assert_eq!(progress.downtime_ms, Some(250));
        let job = Job::parse(COMPLETED);
        assert_eq!((job.downtime_ms, job.elapsed_ms), (Some(49), Some(2779)));
        assert_eq!(job.remaining, Some(0));
    }

    #[test]
    fn what_makes_no_sense_is_passed_over() {
        for text in ["", "::", "Iteration: many", "Memory total: 1 furlong"] {
            assert_eq!(Job::parse(text), Job::default(), "{text}");
        }
        assert_eq!(bytes("NaN GiB"), Some(0));
        assert_eq!(bytes("-3 KiB"), Some(0));
        assert_eq!(bytes("1e300 EiB"), Some(u64::MAX));
    }
}
