//! End-to-end tests of Tandem.
//!
//! [`lab`] starts the real programs: `tandemd`, guests under QEMU, `dpdk-testpmd`. [`frontend`]
//! is a vhost-user front-end and a virtio driver of our own, for what no guest would do. [`uplink`]
//! is a wire for teams of network devices, and who is at its other end. [`migration`] moves guests
//! between two daemons. [`mod@bench`] measures the switch beside its peers.
#![forbid(unsafe_code)]

pub mod bench;
pub mod frontend;
pub mod lab;
pub mod migration;
pub mod uplink;
