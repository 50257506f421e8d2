//! The team: several NICs as one uplink.

pub mod lacp;
