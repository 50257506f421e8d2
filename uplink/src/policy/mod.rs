//! Policy of a port: one file, one decision.

pub mod storm;
pub mod vlan;
