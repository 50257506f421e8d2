//! Live migration between two hosts, and what it costs who talks to the VM.
//!
//! ```text
//!   namespace of host A                wire                 namespace of host B
//!   ┌───────────────────┐     ┌──────────────────────┐     ┌───────────────────┐
//!   │ vm ───┬─ tandemd ─┼─ u0 ┼ f0 ──── Open ──── f1 ┼ u1 ─┼─ tandemd ─┬─── vm │
//!   │ t0 ───┘           │     │        vSwitch       │     │           └─── t0 │
//!   │ neighbour         │     │           └─ p0      │     │         neighbour │
//!   └───────────────────┘     └───────────────│──────┘     └───────────────────┘
//!                                     far  ┌── h0 ──────────┐
//!                                          │ prober, stream │
//!                                          └────────────────┘
//! ```
//!
//! * [`rig`]: all of it;
//! * [`vm`]: a guest under QEMU that moves from one host to the other;
//! * [`prober`]: an echo request every 10 ms, and what became of each;
//! * [`watch`]: where frames to the VM and from it were seen;
//! * [`relay`]: what the VMM says to the back-end, and when;
//! * [`report`]: what it cost;
//! * [`scene`]: a VM that is asked and spoken to while it moves;
//! * [`timeline`]: what happened when, in words and as a picture.

pub mod prober;
pub mod relay;
pub mod report;
pub mod rig;
pub mod scene;
pub mod timeline;
pub mod vm;
pub mod watch;

pub use relay::Relay;
pub use rig::{Rig, Wiring};
pub use timeline::Timeline;
pub use vm::{Moved, Vm};
