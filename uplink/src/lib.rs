//! The switch: who gets which frame, and the ports of the host itself.
//!
//! The path of a burst, in [`switch::Forwarder::forward`]:
//!
//! 1. One look at the published snapshot: the ports and their policy.
//! 2. For each frame a flow key, and for the key a verdict: from the flow cache, or from the
//!    policy pipeline (`switch/pipeline.rs`), which learns and looks up addresses.
//! 3. The storm limit for what is flooded.
//! 4. The frames of the burst are grouped by receiver, tagged as each receiver wants them, and
//!    handed to its [`switch::Outlet`], which copies them to where they go.
//!
//! No step allocates, locks, formats or makes a system call for a frame; the mutex of the MAC
//! table is taken for an address that is new or has moved, that of a port's neighbours for ARP and
//! neighbour discovery that no cached verdict covers. Time is an argument, see [`Now`].
//!
//! Directions are named from the VM: `from_vm` is what a port sends into the switch.

pub mod backlog;
pub mod nic;
pub mod policy;
pub mod switch;
pub mod team;

mod clock;

pub use clock::Now;
pub use nic::tap::{Tap, TapDevice, TapError};
pub use policy::storm::StormLimit;
pub use policy::vlan::{Vid, VlanError, VlanPolicy, VlanSet};
pub use switch::{Forwarder, Outlet, PortId, PortPolicy, PortSpec, Switch, SwitchConfig};
pub use tandem_virtio_net::wire::ethernet::MacAddr as Mac;
