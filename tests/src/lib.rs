//! End-to-end tests of Tandem.
//!
//! [`lab`] starts the real programs: `tandemd`, guests under QEMU, `dpdk-testpmd`. [`frontend`]
//! is a vhost-user front-end and a virtio driver of our own, for what no guest would do.
#![forbid(unsafe_code)]

pub mod frontend;
pub mod lab;
