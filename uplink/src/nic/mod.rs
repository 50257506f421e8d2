//! The host's own network devices as ports.

pub mod tap;

mod kernel;
mod sys;
