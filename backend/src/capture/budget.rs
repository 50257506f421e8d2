//! How much of the time of the threads that carry frames a capture may take.
//!
//! By the clock, a thread that shares its CPU with others would give a capture its share of their time,
//! too. So time is earned between one burst and the next: while a thread is busy, that is what it does
//! for frames. Of a longer pause no more than [`LONGEST`] counts.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Nanoseconds that must pass for each one that is spent: a port whose thread is busy all the time keeps
/// nine tenths of it, whatever it costs to copy a frame. What the copies do to its caches comes on top.
const PRICE: i64 = 9;
/// The most that counts of the time between two bursts.
const LONGEST: Duration = Duration::from_micros(100);
/// The most that counts of the time spent, for each frame and for each byte copied. What took longer
/// was off the CPU in between; that must not cost a quiet port captured frames.
const LONGEST_FRAME: Duration = Duration::from_micros(2);
const LONGEST_BYTE: Duration = Duration::from_nanos(2);
/// So much may be saved.
const DEPTH: Duration = Duration::from_millis(10);

/// Threads that share a capture may each overlook what another earns or spends just then: it is a
/// measure, not an account.
pub(super) struct Budget {
    start: Instant,
    /// Nanoseconds from `start` to when a burst was seen last.
    last: AtomicU64,
    /// Nanoseconds that may be spent.
    left: AtomicI64,
}

impl Budget {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            start,
            last: AtomicU64::new(0),
            left: AtomicI64::new(DEPTH.as_nanos() as i64),
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_nanos() as u64
    }

    /// A burst is there: may any time be spent on it?
    #[inline]
    pub(super) fn is_left(&self, now: Instant) -> bool {
        let now = self.nanos(now);
        let pause = now.saturating_sub(self.last.load(Relaxed));
        self.last.store(now, Relaxed);
        let earned = pause.min(LONGEST.as_nanos() as u64) as i64 / PRICE;
        let left = (self.left.load(Relaxed) + earned).min(DEPTH.as_nanos() as i64);
        self.left.store(left, Relaxed);
        left > 0
    }

    /// Its `frames`, and the `bytes` of them that were copied, took the time from `from` to `to`.
    #[inline]
    pub(super) fn spend(&self, from: Instant, to: Instant, frames: u32, bytes: u32) {
        let most = LONGEST_FRAME * frames + LONGEST_BYTE * bytes;
        let spent = (to - from).min(most).as_nanos() as i64;
        self.left.store(self.left.load(Relaxed) - spent, Relaxed);
        self.last.store(self.nanos(to), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is spent of `bursts` that come with `pause` in between and want `step` each.
    fn spent(budget: &Budget, now: &mut Instant, bursts: u32, pause: u64, step: u64) -> Duration {
        let (pause, step) = (Duration::from_micros(pause), Duration::from_micros(step));
        let mut spent = Duration::ZERO;
        for _ in 0..bursts {
            *now += pause;
            if budget.is_left(*now) {
                budget.spend(*now, *now + step, 32, 32 * 64);
                *now += step;
                spent += step;
            }
        }
        spent
    }

    #[test]
    fn a_busy_thread_spends_a_tenth_of_its_time() {
        let mut now = Instant::now();
        let budget = Budget::new(now);
        // What was saved goes first.
        spent(&budget, &mut now, 1000, 20, 20);
        let start = now;
        let sum = spent(&budget, &mut now, 100_000, 20, 20);
        let share = sum.as_secs_f64() / (now - start).as_secs_f64();
        assert!((0.095..0.105).contains(&share), "{share}");
    }

    #[test]
    fn time_off_the_cpu_earns_little_and_a_quiet_port_is_seen_whole() {
        let mut now = Instant::now();
        let budget = Budget::new(now);
        spent(&budget, &mut now, 1000, 20, 20);
        let seen = spent(&budget, &mut now, 1000, 5000, 50);
        assert!(seen < Duration::from_millis(20), "{seen:?}");
        let seen = spent(&budget, &mut now, 1000, 5000, 10);
        assert!(seen > Duration::from_micros(9800), "{seen:?}");
        // One frame a time, and each time another thread has the CPU in the middle.
        for _ in 0..10_000 {
            now += Duration::from_micros(20);
            assert!(budget.is_left(now));
            budget.spend(now, now + Duration::from_millis(4), 1, 60);
            now += Duration::from_millis(4);
        }
    }
}
