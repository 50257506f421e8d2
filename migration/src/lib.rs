//! The hand-off of a VM between VF passthrough and virtio, and between hosts.
//!
//! Nothing of it is in this release. What the other crates already do for it: every write to guest
//! memory is recorded while a VMM logs them (`tandem_virtio_net::memory::DirtyLog`), rings stop
//! with nothing held, and the set of features offered is pinned by level.
