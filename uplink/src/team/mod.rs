//! The team: several NICs as one uplink.

pub mod distribution;
pub mod lacp;
