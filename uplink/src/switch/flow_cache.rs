//! Verdicts that were reached before, by flow key.
//!
//! ```text
//!  set, one cache line      key 16 · stamp 4 · slots 4 · verdict 8
//!  ┌───────────────┬───────────────┐
//!  │ newest way    │ older way     │
//!  └───────────────┴───────────────┘
//! ```
//!
//! A verdict relied on at most two slots of the MAC table. `stamp` is the sum of their versions:
//! versions only grow, so the sum is the same only while both are. What else it relied on is the
//! snapshot; the cache is cleared for a new one. An empty way has the key zero, which no flow has.
//!
//! The cache starts with a few cache lines and doubles when it evicts too much, within a budget
//! that all caches of a switch share. It gives the memory back when its queue is quiet.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;

use super::mac_table::{MacTable, Pin, random_seed};
use super::verdict::Verdict;

const WAYS: usize = 2;
/// Sets of a cache that has seen little.
const MIN_SETS: usize = 32;
/// Sets of the largest cache: 65,536 flows.
const MAX_SETS: usize = 32_768;
/// Look-ups after which it is decided whether to grow.
const WINDOW: u32 = 4096;
/// Share of look-ups that may evict a verdict before the cache grows.
const TOLERATED: u32 = WINDOW / 8;

/// What a port's policy looks at, in `W` words. Today addresses and tag are all it does.
pub(crate) type Key<const W: usize> = [u64; W];

#[derive(Clone, Copy)]
struct Entry<const W: usize> {
    key: Key<W>,
    stamp: u32,
    src: u16,
    dst: u16,
    verdict: Verdict,
}

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Set<const W: usize>([Entry<W>; WAYS]);
const _: () = assert!(size_of::<Set<2>>() == 64);

/// Bytes that the caches of a switch may still take.
pub(crate) struct Budget(AtomicUsize);

impl Budget {
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(bytes)))
    }

    fn take(&self, bytes: usize) -> bool {
        self.0
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes))
            .is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_add(bytes, Relaxed);
    }
}

pub(crate) struct FlowCache<const W: usize> {
    sets: Box<[Set<W>]>,
    hasher: SeedableRandomState,
    budget: Arc<Budget>,
    lookups: u32,
    evictions: u32,
}

impl<const W: usize> FlowCache<W> {
    const EMPTY: Set<W> = Set([Entry {
        key: [0; W],
        stamp: 0,
        src: 0,
        dst: 0,
        verdict: Verdict::NONE,
    }; WAYS]);

    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self {
            sets: vec![Self::EMPTY; MIN_SETS].into_boxed_slice(),
            hasher: SeedableRandomState::with_seed(random_seed(), SharedSeed::global_random()),
            budget,
            lookups: 0,
            evictions: 0,
        }
    }

    #[inline]
    fn set_of(&self, key: &Key<W>) -> usize {
        let mut hasher = self.hasher.build_hasher();
        key.iter().for_each(|word| hasher.write_u64(*word));
        hasher.finish() as usize & (self.sets.len() - 1)
    }

    /// The verdict for a flow, if it is still true, and the slot of the flow's source address.
    #[inline]
    pub(crate) fn get(&mut self, key: &Key<W>, table: &MacTable) -> Option<(Verdict, u16)> {
        self.lookups += 1;
        let set = &self.sets[self.set_of(key)];
        let entry = set.0.iter().find(|e| e.key == *key)?;
        let stamp = table
            .version(entry.src)
            .wrapping_add(table.version(entry.dst));
        (stamp == entry.stamp).then_some((entry.verdict, entry.src))
    }

    /// Keeps a verdict and what it relied on: the slots of source and destination.
    #[inline]
    pub(crate) fn put(&mut self, key: &Key<W>, verdict: Verdict, src: Pin, dst: Pin) {
        let stamp = src.version.wrapping_add(dst.version);
        let new = Entry {
            key: *key,
            stamp,
            src: src.slot,
            dst: dst.slot,
            verdict,
        };
        let at = self.set_of(key);
        let [newest, older] = &mut self.sets[at].0;
        if newest.key != *key {
            self.evictions += u32::from(older.key != [0; W] && older.key != *key);
            *older = *newest;
        }
        *newest = new;
    }

    /// Forgets all verdicts.
    pub(crate) fn clear(&mut self) {
        self.sets.fill(Self::EMPTY);
    }

    /// Grows the cache if it was too small of late. Call between bursts.
    #[inline]
    pub(crate) fn tune(&mut self) {
        if self.lookups >= WINDOW {
            if self.evictions > TOLERATED {
                self.resize(self.sets.len() * 2);
            }
            (self.lookups, self.evictions) = (0, 0);
        }
    }

    /// Gives back the memory of a cache that has grown.
    pub(crate) fn shrink(&mut self) {
        if self.sets.len() > MIN_SETS {
            self.resize(MIN_SETS);
        }
        (self.lookups, self.evictions) = (0, 0);
    }

    /// Bytes taken from the budget by a cache of `sets`; the first ones are free.
    fn cost(sets: usize) -> usize {
        (sets - MIN_SETS) * size_of::<Set<W>>()
    }

    #[cold]
    fn resize(&mut self, sets: usize) {
        let (old, new) = (Self::cost(self.sets.len()), Self::cost(sets));
        if sets > MAX_SETS || (new > old && !self.budget.take(new - old)) {
            return;
        }
        let flows = std::mem::replace(&mut self.sets, vec![Self::EMPTY; sets].into_boxed_slice());
        if new > old {
            for entry in flows.iter().flat_map(|set| set.0.iter().rev()) {
                if entry.key != [0; W] {
                    let (at, key) = (self.set_of(&entry.key), entry.key);
                    let [newest, older] = &mut self.sets[at].0;
                    debug_assert!(newest.key != key && older.key != key);
                    *older = *newest;
                    *newest = *entry;
                }
            }
        } else {
            self.budget.give_back(old - new);
        }
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        std::mem::size_of_val(&*self.sets)
    }
}

impl<const W: usize> Drop for FlowCache<W> {
    fn drop(&mut self) {
        self.budget.give_back(Self::cost(self.sets.len()));
    }
}

#[cfg(test)]
#[path = "flow_cache_tests.rs"]
mod tests;
