//! Guest memory with guards, shared with the tests of the device model.
#![allow(dead_code)] // the tests use more of it

#[path = "../../../virtio-net/tests/driver/ram.rs"]
mod ram;

pub(crate) use ram::{Log, Ram};

/// What guest memory wants of a generator of numbers, to hand out parts of itself; no target asks
/// it to.
pub(crate) struct Rng;

impl Rng {
    pub(crate) fn below(&mut self, _: usize) -> usize {
        0
    }

    pub(crate) fn once_in(&mut self, _: usize) -> bool {
        true
    }
}
