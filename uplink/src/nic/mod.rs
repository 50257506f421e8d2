//! The host's own network devices as ports.

pub mod af_packet;
pub mod tap;

mod kernel;
mod sys;
