//! vhost-user: how a VMM hands a port its queues. The only place that knows vhost-user-backend.
//!
//! ```text
//!   VMM ──── socket ────► front door ──── private socket ────► crate ────► Session ────► Device
//!        (socket.rs,      (serve.rs,                        (backend.rs)  (session.rs) (device.rs,
//!         wire.rs)         door.rs, judge.rs)                                           the port)
//! ```
//!
//! A port has an [`Endpoint`], and that a thread, which meets one VMM after the other and has one
//! session with each. Whatever a VMM sends is judged by the front door. What is sound goes to the
//! crate, which maps memory, translates addresses and keeps the protocol; through the ring type we
//! gave it (`backend::Ring`) each value comes back to the `Session`. That is one plain record of
//! all that the VMM has said, and makes the [`Device`] follow it:
//!
//! - a ring starts when its addresses and its kick are there, and stops at GET_VRING_BASE. What is
//!   said in between counts from the next start on; addresses said again change nothing;
//! - whether a ring is enabled is independent of that, and may be said before anything else;
//! - memory is swapped as a whole, the dirty log within it. A ring whose region is taken away
//!   stops, and goes on when it comes back.
//!
//! Nothing a VMM does ends more than its session, and few things end that: a message that cannot
//! be parsed, and a dirty log that cannot be used, because neither has an answer. Everything else
//! that is refused is answered, if an answer was asked for, and stands in [`SessionStatus::reason`]
//! until it is put right.
//!
//! A VMM that is killed leaves nothing behind: its descriptors, its memory and the crate's thread
//! go when its connection does. Should it truncate memory that is in use, the session's `Fault` is
//! set instead of the process being killed (see `sys.rs`).

mod backend;
mod device;
mod door;
mod endpoint;
mod judge;
mod memory;
mod serve;
mod session;
mod socket;
mod state;
mod transfer;
mod wire;

pub use device::Device;
pub use endpoint::{Endpoint, EndpointError, SessionStatus, Source};
