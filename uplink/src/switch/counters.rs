//! What a switch counts, spread over cache lines so that threads do not share one.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

const STRIPES: usize = 16;

/// Counts of a switch since it was made, ports that have been removed included.
///
/// When no frame is on its way, `frames` is `unicast + flooded` and what was dropped `from_vm`
/// by the switch; `unicast + copies` is what the ports' outlets were given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwitchCounters {
    /// Frames taken from all ports, and those it made itself.
    pub frames: u64,
    /// Of those, frames that went to one known port.
    pub unicast: u64,
    /// Of those, frames that were flooded.
    pub flooded: u64,
    /// Copies made of flooded frames: one for each receiver.
    pub copies: u64,
    /// Bursts with frames whose source address was not learned: the port has too many, the table
    /// is full, or the address has moved between two ports just now.
    pub unlearned: u64,
    /// Of the frames, those that the switch made itself to announce neighbours.
    pub announced: u64,
    /// Addresses that have moved from one port to another.
    pub mac_moves: u64,
}

#[repr(align(128))] // two lines: processors fetch lines in pairs
#[derive(Default)]
struct Stripe {
    frames: AtomicU64,
    unicast: AtomicU64,
    flooded: AtomicU64,
    copies: AtomicU64,
    unlearned: AtomicU64,
    announced: AtomicU64,
}

#[derive(Default)]
pub(crate) struct Counts {
    stripes: [Stripe; STRIPES],
    next: AtomicUsize,
}

impl Counts {
    /// A stripe for a new forwarder.
    pub(crate) fn stripe(&self) -> usize {
        self.next.fetch_add(1, Relaxed) % STRIPES
    }

    /// Counts a burst.
    #[inline]
    pub(crate) fn add(&self, stripe: usize, burst: &SwitchCounters) {
        let Some(s) = self.stripes.get(stripe) else {
            return;
        };
        s.frames.fetch_add(burst.frames, Relaxed);
        for (counter, n) in [
            (&s.unicast, burst.unicast),
            (&s.flooded, burst.flooded),
            (&s.copies, burst.copies),
            (&s.unlearned, burst.unlearned),
            (&s.announced, burst.announced),
        ] {
            if n != 0 {
                counter.fetch_add(n, Relaxed);
            }
        }
    }

    pub(crate) fn sum(&self) -> SwitchCounters {
        let sum = |of: fn(&Stripe) -> &AtomicU64| {
            self.stripes
                .iter()
                .map(|s| of(s).load(Relaxed))
                .sum::<u64>()
        };
        SwitchCounters {
            frames: sum(|s| &s.frames),
            unicast: sum(|s| &s.unicast),
            flooded: sum(|s| &s.flooded),
            copies: sum(|s| &s.copies),
            unlearned: sum(|s| &s.unlearned),
            announced: sum(|s| &s.announced),
            mac_moves: 0,
        }
    }
}
