//! How much a port may flood: a token bucket over broadcast, multicast and unknown unicast.
//! Unknown unicast that only one other port can get is not counted: nothing is multiplied.
//!
//! One word holds the whole bucket: the moment up to which tokens have been taken, in time. A
//! bucket that is full lies `burst` tokens in the past, an empty one at the present:
//!
//! ```text
//!      taken             now
//!   ─────●────────────────┼──────► t        tokens = (now - taken) / interval
//! ```
//!
//! All TX queues of a port share it; each takes once a burst.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Now;

/// Limit on the frames a port may have flooded. The default, 10,000 a second with 1,000 at once,
/// is far more than ARP and neighbour discovery of a busy VM need, and keeps the copies for a
/// hundred neighbours at a million a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StormLimit {
    /// Frames a second; none: no limit.
    pub rate: Option<u32>,
    /// Frames at once, after a quiet time.
    pub burst: u32,
}

impl StormLimit {
    /// No limit.
    pub const UNLIMITED: Self = Self {
        rate: None,
        burst: 0,
    };

    /// A limit of `rate` frames a second, a tenth of it at once.
    pub const fn per_second(rate: u32) -> Self {
        Self {
            rate: Some(rate),
            burst: rate.div_ceil(10),
        }
    }
}

impl Default for StormLimit {
    fn default() -> Self {
        Self::per_second(10_000)
    }
}

/// The bucket of one port.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Nanoseconds a token takes to come; 0: no limit, `u64::MAX`: none comes.
    interval: u64,
    /// Nanoseconds a full bucket is worth.
    depth: u64,
    /// Up to when tokens have been taken.
    taken: AtomicU64,
}

impl Bucket {
    pub(crate) fn new(limit: StormLimit) -> Self {
        let interval = match limit.rate {
            None => 0,
            Some(0) => u64::MAX,
            Some(rate) => (1_000_000_000 / u64::from(rate)).max(1),
        };
        let depth = interval.saturating_mul(limit.burst.max(1).into());
        Self {
            interval,
            depth,
            taken: AtomicU64::new(0),
        }
    }

    /// Takes up to `frames` tokens; how many there were.
    #[inline]
    pub(crate) fn take(&self, frames: u32, now: Now) -> u32 {
        match self.interval {
            0 => return frames,
            u64::MAX => return 0,
            _ => {}
        }
        // A full bucket may lie before the clock's zero: count from one depth later.
        let now = now.0.saturating_add(self.depth);
        let mut granted = 0;
        let _ = self
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                let from = taken.max(now - self.depth);
                // `from` may be ahead of `now` when another thread read its clock later.
                granted = (now.saturating_sub(from) / self.interval).min(frames.into());
                Some(from + granted * self.interval)
            });
        granted as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_burst_then_the_rate() {
        let bucket = Bucket::new(StormLimit::per_second(1000));
        assert_eq!(bucket.take(64, Now(0)), 64);
        assert_eq!(bucket.take(64, Now(0)), 36);
        assert_eq!(bucket.take(64, Now(MS - 1)), 0);
        assert_eq!(bucket.take(64, Now(MS)), 1);
        assert_eq!(bucket.take(2, Now(4 * MS)), 2);
        assert_eq!(bucket.take(64, Now(4 * MS)), 1);
        assert_eq!(bucket.take(1000, Now(3_600_000 * MS)), 100);
    }

    #[test]
    fn a_clock_that_lags_behind_gets_nothing_and_breaks_nothing() {
        let bucket = Bucket::new(StormLimit::per_second(1000));
        assert_eq!(bucket.take(200, Now(500 * MS)), 100);
        assert_eq!(bucket.take(200, Now(400 * MS)), 0);
        assert_eq!(bucket.take(200, Now(510 * MS)), 10);
    }

    #[test]
    fn no_limit_and_nothing_at_all() {
        assert_eq!(Bucket::new(StormLimit::UNLIMITED).take(64, Now(0)), 64);
        let none = Bucket::new(StormLimit {
            rate: Some(0),
            burst: 9,
        });
        assert_eq!(none.take(1, Now(u64::MAX)), 0);
        let tiny = Bucket::new(StormLimit {
            rate: Some(1),
            burst: 0,
        });
        assert_eq!((tiny.take(5, Now(0)), tiny.take(5, Now(0))), (1, 0));
        let huge = Bucket::new(StormLimit {
            rate: Some(u32::MAX),
            burst: u32::MAX,
        });
        assert_eq!(huge.take(64, Now(u64::MAX)), 64);
    }

    #[test]
    fn queues_that_share_a_bucket_get_no_more_than_it_holds() {
        let bucket = Bucket::new(StormLimit {
            rate: Some(1),
            burst: 10_000,
        });
        let total: u32 = std::thread::scope(|s| {
            let threads: Vec<_> = (0..4)
                .map(|_| s.spawn(|| (0..1000).map(|_| bucket.take(64, Now(0))).sum::<u32>()))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(total, 10_000);
    }
}
