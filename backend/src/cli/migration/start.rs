//! `tandem migration start`: the VMM is asked to move the VM, and both daemons are told how that ends.

use std::time::{Duration, Instant};

use clap::{Arg, ArgGroup, ArgMatches, Command, value_parser};
use serde_json::json;
use tandem_migration::vmm::{Outcome, Progress, Vmm, VmmError, Wishes};

use super::vmm::{self, failed};
use super::{name, post, prepare, shown, vm};
use crate::cli::{Failure, Session, read};
use crate::migration::{Migration, Stage};

/// How often it is looked whether the migration was aborted meanwhile.
const LOOK: Duration = Duration::from_millis(500);
/// For how long the VM may be yet to be seen on the other host, once the VMM has sent it.
const ARRIVAL: Duration = Duration::from_secs(10);

const HELP: &str = "\
The VMM on the other host has to wait for the VM (QEMU: -incoming; cloud-hypervisor: receive-migration); libvirt starts
it. Without --to the move has been prepared. When the VM runs there, the move is committed; when the VMM gives up, it
is aborted, and the status is 1. If this command is interrupted the VMM goes on: see `tandem migration status`, and
`tandem migration abort VM --qmp SOCKET`. libvirt does not: the move is aborted.

Options of virsh migrate that libvirt needs besides come last, behind --, such as -- --persistent --undefinesource.";

pub(super) fn command() -> Command {
    Command::new("start")
        .about("Have the VMM move a VM, and see it through")
        .after_help(HELP)
        .arg(vm())
        .arg(
            Arg::new("uri")
                .long("uri")
                .value_name("URI")
                .required(true)
                .help("Where the VMM on the other host waits, such as tcp:192.0.2.7:4444; with --virsh, libvirt there"),
        )
        .args(vmm::arguments())
        .args(vmm::libvirt_arguments())
        .group(ArgGroup::new("vmm").args(vmm::VMMS).required(true))
        .args(super::destination_arguments(false))
        .arg(
            Arg::new("time-limit")
                .long("time-limit")
                .value_name("SECONDS")
                .value_parser(value_parser!(u64).range(1..=86_400))
                .help("Give up when it takes longer [default: no limit]"),
        )
        .arg(
            Arg::new("downtime")
                .long("downtime")
                .value_name("MS")
                .value_parser(value_parser!(u64).range(1..=60_000))
                .help("Milliseconds for which the VM may stand still, as the VMM plans it"),
        )
        .arg(
            Arg::new("max-bandwidth")
                .long("max-bandwidth")
                .value_name("BYTES")
                .value_parser(value_parser!(u64).range(1..))
                .help("Bytes per second at most (QEMU, libvirt)"),
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<String, Failure> {
    let vm = name(matches)?.to_owned();
    let number = |key: &str| matches.get_one::<u64>(key).copied();
    let mut vmm =
        vmm::connect(matches)?.ok_or_else(|| Failure::Usage("a VMM is missing".to_owned()))?;
    if matches.contains_id("to") {
        prepare(matches)?;
    }
    let begin = status(matches)?;
    if begin.stage.is_final() {
        let words = format!(
            "the move of {vm} is not prepared; use --to, or tandem migration prepare first"
        );
        return Err(Failure::Failed(words));
    }
    let wishes = Wishes {
        max_bandwidth: number("max-bandwidth"),
        downtime: number("downtime").map(Duration::from_millis),
        time: number("time-limit").map(Duration::from_secs),
        go_on_at_switchover: true,
    };
    let uri = matches.get_one::<String>("uri").map_or("", String::as_str);
    if let Err(error) = vmm.migrate(uri, &wishes) {
        give_up(matches, &error.to_string())?;
        return Err(failed(error));
    }
    let outcome = match follow(matches, &mut *vmm) {
        Ok(outcome) => outcome,
        Err(error) => {
            // What has become of the VM the daemons see.
            eprintln!("tandem: {error}");
            Outcome::Ended
        }
    };
    match outcome {
        Outcome::Completed { .. } | Outcome::Ended => arrived(matches),
        Outcome::Failed(reason) => stays(matches, &format!("the VMM says: {reason}")),
        Outcome::Cancelled => stays(matches, "it was cancelled at the VMM"),
    }
}

fn status(matches: &ArgMatches) -> Result<Migration, Failure> {
    let path = format!("/api/v1/migrations/{}", name(matches)?);
    read(&Session::new(matches)?.get(&path)?)
}

/// Follows the VMM to the end, and has it end if the daemons have given up.
fn follow(matches: &ArgMatches, vmm: &mut dyn Vmm) -> Result<Outcome, VmmError> {
    let (mut last, mut cancelled) = (String::new(), false);
    let mut say = |progress: &Progress| {
        if progress.state != last && !progress.state.is_empty() {
            last.clone_from(&progress.state);
            eprintln!("tandem: the VMM says: {last}");
        }
    };
    loop {
        if let Some(outcome) = vmm.follow(Instant::now() + LOOK, &mut say)? {
            return Ok(outcome);
        }
        let aborted = status(matches).is_ok_and(|now| now.stage == Stage::Aborted);
        if aborted && !cancelled {
            cancelled = true;
            vmm.cancel()?;
        }
    }
}

/// The VMM has sent it: the daemons have to see it there.
fn arrived(matches: &ArgMatches) -> Result<String, Failure> {
    let end = Instant::now() + ARRIVAL;
    loop {
        let now = status(matches)?;
        match now.stage {
            Stage::There => break,
            Stage::Committed => return shown(matches, json!(now).to_string()),
            Stage::Aborted => {
                let reason = now.reason.unwrap_or_default();
                return Err(Failure::Failed(format!("the move was aborted: {reason}")));
            }
            _ if Instant::now() > end => {
                let words = "the VMM has ended its part, and the VM does not run on the other host; see the VMMs' logs, \
                             and tandem migration abort";
                return Err(Failure::Failed(words.to_owned()));
            }
            _ => std::thread::sleep(LOOK / 20),
        }
    }
    shown(matches, post(matches, "commit", &serde_json::Value::Null)?)
}

fn give_up(matches: &ArgMatches, reason: &str) -> Result<(), Failure> {
    let reason: String = reason.chars().take(1000).collect();
    post(matches, "abort", &json!({"reason": reason})).map(drop)
}

fn stays(matches: &ArgMatches, reason: &str) -> Result<String, Failure> {
    give_up(matches, reason)?;
    Err(Failure::Failed(format!("the VM stays here: {reason}")))
}
