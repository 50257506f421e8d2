//! The driver's side of virtqueues, written from the specification, over memory of our own.
//!
//! ```text
//!  Sender ── Ring ──► TxQueue ─ Batch ─► RxQueue ──► Ring ── Receiver
//!            └─────────────── all in a Ram ────────────────┘
//! ```
#![allow(dead_code, unused_imports)] // each test uses a part of it

mod nic;
mod packed;
mod ram;
mod ring;
mod split;

pub(crate) use nic::*;
pub(crate) use packed::{At, Packed};
pub(crate) use ram::*;
pub(crate) use ring::*;
pub(crate) use split::Split;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// A configuration with which a test is the same at every run.
pub(crate) fn cases(n: u32) -> ProptestConfig {
    ProptestConfig {
        cases: n,
        rng_seed: RngSeed::Fixed(0x7461_6e64_656d),
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    }
}

/// A small generator of numbers (splitmix64), for what need not shrink.
#[derive(Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// True once in `n` times.
    pub(crate) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n.div_ceil(8))
            .flat_map(|_| self.next().to_le_bytes())
            .take(n)
            .collect()
    }
}
