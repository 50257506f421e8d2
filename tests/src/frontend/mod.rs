//! A vhost-user front-end with a virtio-net driver in it: a VMM and its guest,
//! precise to the message and to the ring entry.
//!
//! * [`session`]: the messages, in the order of QEMU or of cloud-hypervisor;
//! * [`wire`]: any message at all;
//! * [`memory`]: guest memory and the dirty log;
//! * [`driver`]: rings, buffers, and a [`driver::Nic`] to send and receive with;
//! * [`frames`]: frames to send and an independent check of those received;
//! * [`capture`]: `tandem capture`, and what it writes;
//! * [`rig`]: a daemon to try it all on, [`street`]: one with a bad neighbour.

pub mod capture;
pub mod driver;
pub mod frames;
pub mod memory;
pub mod rig;
pub mod session;
pub mod spec;
pub mod street;
pub mod wire;
