//! The hand-off of a VM between VF passthrough and virtio, and between hosts.
//!
//! What a port takes along when its VM moves is in [`state`]. What the other crates do for it: every
//! write to guest memory is recorded while a VMM logs them (`tandem_virtio_net::memory::DirtyLog`),
//! rings stop with nothing held, and the set of features offered is pinned by level.
#![forbid(unsafe_code)]

pub mod state;
