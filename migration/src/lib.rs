//! The hand-off of a VM between VF passthrough and virtio, and between hosts.
//!
//! What a port takes along when its VM moves is in [`state`]. The daemons of two hosts know each
//! other by [`keys`] and [`tls`], talk as in [`peer`], and each follows a migration with the
//! machines of [`handoff`]; VMMs are asked to move the VM as in [`vmm`]. What the other crates do
//! for it: every write to guest memory is recorded while a VMM logs them
//! (`tandem_virtio_net::memory::DirtyLog`), rings stop with nothing held, and the set of features
//! offered is pinned by level.
#![forbid(unsafe_code)]

pub mod frames;
pub mod handoff;
pub mod keys;
pub mod peer;
pub mod state;
pub mod tls;
pub mod vmm;
