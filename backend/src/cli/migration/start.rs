//! `tandem migration start`.

use clap::{ArgMatches, Command};

use super::vm;
use crate::cli::Failure;

pub(super) fn command() -> Command {
    Command::new("start")
        .about("Have the VMM move a VM")
        .arg(vm())
}

pub(super) fn run(_: &ArgMatches) -> Result<String, Failure> {
    Err(Failure::Failed("not yet".to_owned()))
}
