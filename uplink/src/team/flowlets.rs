//! Dynamic distribution: which member each bucket is with, and when it may go to another.
//!
//! A bucket moves only after it was quiet for [`GAP`], and not while its frames may still wait for the
//! device of the old member: then no frame can overtake another of its flow (flowlets, Sinha, Kandula
//! and Katabi 2004). It moves when its member has had more to do than the one that has least.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::distribution::{BUCKETS, MAX_MEMBERS};
use super::member::Member;
use crate::Now;

/// Milliseconds without a frame after which a bucket may move: longer than the ways by two members
/// differ in what they take.
const GAP: u32 = 20;
/// A bucket moves from a member that has this much more to do than the one with the least, in percent.
const MORE: u64 = 10;
/// Buckets that move at most between two looks at the members' load, for one of them shall not get all.
const MOVES: u32 = 32;

/// A bucket's word: `milliseconds 32 · member's number 32`.
const MILLISECONDS: u32 = 32;

fn packed(at: u32, number: u32) -> u64 {
    u64::from(at) << MILLISECONDS | u64::from(number)
}

/// The buckets of a team. A word of zero: it has had no frame, for no member's number is zero.
pub(super) struct Flowlets {
    buckets: Box<[AtomicU64]>,
    /// Loads of the members by number, in bytes a look.
    loads: Box<[AtomicU64]>,
    seen: Box<[AtomicU64]>,
    moves_left: AtomicU32,
    moved: AtomicU64,
    /// Milliseconds, as the data path sees them.
    clock: AtomicU32,
}

impl Default for Flowlets {
    fn default() -> Self {
        let words = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self {
            buckets: words(BUCKETS),
            loads: words(MAX_MEMBERS),
            seen: words(MAX_MEMBERS),
            moves_left: AtomicU32::new(0),
            moved: AtomicU64::new(0),
            clock: AtomicU32::new(0),
        }
    }
}

impl Flowlets {
    /// The time of the burst at hand.
    #[inline]
    pub(super) fn set_clock(&self, now: Now) {
        self.clock.store((now.0 / 1_000_000) as u32, Relaxed);
    }

    /// How often a bucket has moved.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    /// Looks at what the members had to do since the last look. Call ten times a second or so.
    pub(super) fn look(&self, members: &[Arc<Member>]) {
        for (at, member) in members.iter().enumerate().take(MAX_MEMBERS) {
            let total = member.load.load(Relaxed);
            let since = total.saturating_sub(self.seen[at].swap(total, Relaxed));
            // Half of what was: a burst is not all.
            let smooth = (self.loads[at].load(Relaxed) + since) / 2;
            self.loads[at].store(smooth, Relaxed);
        }
        self.moves_left.store(MOVES, Relaxed);
    }

    /// The place of the member for a frame of `bucket`, which is at home with the member at `home`.
    #[inline]
    pub(super) fn member(&self, bucket: u16, home: usize, members: &[Arc<Member>]) -> usize {
        let word = &self.buckets[usize::from(bucket) % BUCKETS];
        let now = self.clock.load(Relaxed);
        let old = word.load(Relaxed);
        let place = |word: u64| members.iter().position(|m| m.id == word as u32);
        let at = place(old);
        // Signed: a thread may have read its clock before the one that was here last.
        let quiet = now.wrapping_sub((old >> MILLISECONDS) as u32) as i32 >= GAP as i32;
        let next = match at {
            // Its member is not there any more.
            None => home,
            Some(at) if quiet => self.lighter(at, members),
            Some(at) => at,
        };
        let new = packed(now, members[next].id);
        if new == old {
            return next;
        }
        match word.compare_exchange(old, new, Relaxed, Relaxed) {
            Ok(_) => {
                if at.is_some_and(|at| at != next) {
                    self.moved.fetch_add(1, Relaxed);
                }
                next
            }
            // Another thread has just decided.
            Err(theirs) => place(theirs).unwrap_or(home),
        }
    }

    /// The member with the least to do, if that is much less than what the one at `at` has.
    #[cold]
    fn lighter(&self, at: usize, members: &[Arc<Member>]) -> usize {
        let load = |at: usize| self.loads.get(at).map_or(0, |load| load.load(Relaxed));
        let least = (0..members.len()).min_by_key(|at| load(*at)).unwrap_or(at);
        let much = load(at) > load(least) + load(least) * MORE / 100;
        if !much || members[at].is_waiting() {
            return at;
        }
        let left = self.moves_left.load(Relaxed);
        let mine = left != 0
            && (self.moves_left)
                .compare_exchange(left, left - 1, Relaxed, Relaxed)
                .is_ok();
        if mine { least } else { at }
    }
}
