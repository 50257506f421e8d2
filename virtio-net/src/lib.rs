//! The virtio-net device model: rings, frames and offloads. No sockets, no threads, no policy.
//!
//! The path of a frame, one copy of the payload from guest to guest:
//!
//! 1. [`tx::TxQueue::drain`] takes up to a burst of descriptor chains from the sender's ring.
//!    The first bytes of each frame are copied once into the [`frame::Batch`]; the payload stays
//!    in the sender's memory.
//! 2. The switch (crate `tandem-uplink`) judges those bytes, and says who gets which frame.
//! 3. [`rx::RxQueue::fill`] copies head and payload straight into each receiver's buffers,
//!    publishes them once, and asks once whether the guest wants to be notified.
//! 4. [`tx::TxQueue::complete`] gives the sender's buffers back, once a burst.
//!
//! Directions are named from the VM: `from_vm` is its TX queues, `to_vm` its RX queues.
//!
//! What a guest writes is never trusted: not twice read, not referenced, not indexed with. A guest
//! that breaks its ring stops its own queue only.

pub mod counters;
pub mod frame;
pub mod memory;
pub mod offload;
pub mod queue;
pub mod ring;
pub mod rx;
pub mod spec;
pub mod trace;
pub mod tx;
pub mod wire;

pub use counters::{Counters, DropReason};
pub use frame::{BURST, Batch};
pub use queue::Call;
pub use rx::{RxQueue, Scratch};
pub use trace::{Direction, Probe, Tracepoint};
pub use tx::TxQueue;
