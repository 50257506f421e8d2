//! The switch measured beside its peers: what `ci/bench` runs.
//!
//! A [`Cell`](cell::Cell) is one way to load a switch. For each, Tandem, Open vSwitch with DPDK and
//! testpmd `io` (which forwards between two fixed ports: no switching) are started on one CPU, and
//! in every round each of them in turn carries the same guests: one testpmd with virtio-user
//! ports on the other CPU. A switch whose turn it is not is stopped (SIGSTOP). What is counted is
//! what the guests received.

pub mod cell;
pub mod guests;
pub mod idle;
pub mod latency;
pub mod logged;
pub mod measure;
pub mod ovs;
pub mod plan;
pub mod quiet;
pub mod replay;
pub mod report;
pub mod stats;
pub mod svg;
pub mod switch;
pub mod uplink;
pub mod verdict;

/// The CPU of the switch under measurement.
pub const SWITCH_CPU: usize = 1;
/// The CPU of everything else.
pub const GUEST_CPU: usize = 0;

/// The MAC address of the VM on a port.
pub fn mac(port: usize) -> String {
    format!("02:00:00:00:01:{port:02x}")
}
