//! `tandem vm …`.

use clap::{Arg, ArgMatches, Command};

use super::text::{Table, count, paragraph};
use super::{Failure, Session, read, watch};
use crate::config::valid_name;
use crate::status::{Vm, Vms};

pub(super) fn command() -> Command {
    let name = Arg::new("name")
        .value_name("NAME")
        .required(true)
        .help("The VM's name");
    Command::new("vm")
        .about("A VM: the ports that name it, taken together")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("list")
                .visible_alias("ls")
                .about("List all VMs")
                .arg(watch()),
        )
        .subcommand(
            Command::new("show")
                .about("Show one VM")
                .arg(name)
                .arg(watch()),
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<String, Failure> {
    match matches.subcommand() {
        Some(("list", matches)) => {
            let session = Session::new(matches)?;
            let text = session.get("/api/v1/vms")?;
            if session.json {
                return Ok(text + "\n");
            }
            let answer: Vms = read(&text)?;
            Ok(list(&answer.vms))
        }
        Some(("show", matches)) => {
            let name = matches.get_one::<String>("name").map_or("", String::as_str);
            valid_name(name).map_err(|refused| Failure::Usage(refused.to_string()))?;
            let session = Session::new(matches)?;
            let text = session.get(&format!("/api/v1/vms/{name}"))?;
            if session.json {
                return Ok(text + "\n");
            }
            Ok(show(&read(&text)?))
        }
        _ => Err(Failure::Usage(
            "a verb is missing; see tandem vm --help".to_owned(),
        )),
    }
}

fn list(vms: &[Vm]) -> String {
    if vms.is_empty() {
        return "no VMs; a port names its VM: tandem port add NAME --vm VM\n".to_owned();
    }
    let mut table = Table::new(&[
        "VM", "PORTS", "UP", "THREADS", "CPU_S", "FROM_VM", "TO_VM", "DROPS",
    ])
    .right(&[1, 2, 3, 4, 5, 6, 7])
    .shrinking(&[0]);
    for vm in vms {
        table.row(vec![
            vm.usage.name.clone(),
            vm.ports.len().to_string(),
            vm.ports_up.to_string(),
            vm.usage.threads.to_string(),
            format!("{:.1}", vm.usage.cpu_seconds),
            count(Some(vm.from_vm.frames)),
            count(Some(vm.to_vm.frames)),
            count(Some(vm.drops)),
        ]);
    }
    table.to_string()
}

fn show(vm: &Vm) -> String {
    let of = |direction: &crate::status::Traffic| {
        format!("{} frames, {} bytes", direction.frames, direction.bytes)
    };
    let threads = format!(
        "{}, {:.3} s of CPU time",
        vm.usage.threads, vm.usage.cpu_seconds
    );
    let ports = format!("{} ({} up)", vm.ports.join(" "), vm.ports_up);
    paragraph("VM", &vm.usage.name)
        + &paragraph("ports", &ports)
        + &paragraph("threads", &threads)
        + &paragraph("from_vm", &of(&vm.from_vm))
        + &paragraph("to_vm", &of(&vm.to_vm))
        + &paragraph("drops", &vm.drops.to_string())
}
