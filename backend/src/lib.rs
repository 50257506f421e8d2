//! The daemon `tandemd` and the CLI `tandem`.

pub mod api;
mod bell;
pub mod broker;
pub mod capture;
mod cgroup;
pub mod cli;
pub mod client;
pub mod config;
pub mod control;
pub mod cpus;
pub mod daemon;
pub mod engine;
pub mod events;
pub mod metrics;
pub mod migration;
mod nic_thread;
pub mod port;
mod sandbox;
pub mod spread;
pub mod status;
pub mod store;
mod sys;
mod uplinks;
pub mod vhost;
mod worker;
