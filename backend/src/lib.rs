//! The daemon `tandemd` and the CLI `tandem`.

pub mod config;
pub mod control;
pub mod engine;
pub mod status;
pub mod store;
pub mod vhost;
