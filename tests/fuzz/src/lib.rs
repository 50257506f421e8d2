//! What the fuzz targets do with an input: one `run` for each of `fuzz_targets/`.
//!
//! An input is a list of operations, read by [`Input`]; there is no input that is not one. A `run`
//! panics when something is wrong, or when one of the code's own assertions fails.

mod driver;
pub mod frames;
pub mod handoff;
mod input;
pub mod messages;
pub mod offload;
mod packets;
pub mod rings;

pub use input::Input;
