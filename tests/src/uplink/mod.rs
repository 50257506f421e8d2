//! Teams of network devices, and who is at the other end.
//!
//! ```text
//!   namespace near                        namespace far
//!   ┌──────────────────────────┐         ┌───────────────────────────┐
//!   │ port a ─ tandemd ─┬─ u0 ─┼─────────┼─ f0   Socket, or Open     │
//!   │ port b ─┘         └─ u1 ─┼─────────┼─ f1   vSwitch and then h1 │
//!   └──────────────────────────┘         └───────────────────────────┘
//! ```
//!
//! * [`cables`]: the veth pairs, and what can happen to them;
//! * [`socket`]: frames at a device, with the moment each came in;
//! * [`tcpdump`]: the same with the tags of VLANs;
//! * [`flows`]: numbered frames of many flows, and what became of them;
//! * [`rig`]: a daemon at the near end, and what it says of its team.

pub mod cables;
pub mod flows;
pub mod rig;
pub mod socket;
pub mod tcpdump;

pub use cables::Cables;
pub use flows::{Arrival, Ears, Flows, Outcome};
pub use rig::Rig;
pub use socket::Socket;
pub use tcpdump::Tcpdump;
