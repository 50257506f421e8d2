//! The VMM as the command line names it.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, value_parser};
use tandem_migration::vmm::{CloudHypervisor, Libvirt, LibvirtOptions, Qmp, Vmm, VmmError};

use crate::cli::Failure;

/// The arguments that name a VMM, of which one is enough.
pub(super) const VMMS: [&str; 3] = ["qmp", "cloud-hypervisor", "virsh"];

/// Those that are not libvirt. That an argument requires `virsh` is of no account to clap where one of them rules it out.
const OTHERS: [&str; 2] = ["qmp", "cloud-hypervisor"];

/// How to reach the VMM.
pub(super) fn arguments() -> [Arg; 5] {
    let option = |id: &'static str, name: &'static str| Arg::new(id).long(id).value_name(name);
    let path = |id, name| option(id, name).value_parser(value_parser!(PathBuf));
    [
        path("qmp", "SOCKET")
            .conflicts_with_all(["cloud-hypervisor", "virsh"])
            .help("QEMU's monitor, of which nobody else has a connection"),
        path("cloud-hypervisor", "SOCKET")
            .conflicts_with("virsh")
            .help("cloud-hypervisor's API"),
        path("events", "FILE")
            .requires("cloud-hypervisor")
            .conflicts_with_all(["qmp", "virsh"])
            .help("The file of its --event-monitor"),
        option("virsh", "DOMAIN").help("libvirt's name of the VM; virsh must be in the PATH"),
        option("connect", "URI")
            .requires("virsh")
            .conflicts_with_all(OTHERS)
            .help("The libvirt of this host, such as qemu:///system [default: virsh's]"),
    ]
}

/// What else libvirt can be told.
pub(super) fn libvirt_arguments() -> [Arg; 2] {
    [
        Arg::new("migrate-uri")
            .long("migrate-uri")
            .value_name("URI")
            .requires("virsh")
            .conflicts_with_all(OTHERS)
            .help("Where QEMU waits on the other host, such as tcp://192.0.2.7 [default: libvirt finds out]"),
        Arg::new("options")
            .value_name("OPTION")
            .last(true)
            .num_args(1..)
            .requires("virsh")
            .conflicts_with_all(OTHERS)
            .help("Further options of virsh migrate"),
    ]
}

/// A connection to the VMM, if one is named.
pub(super) fn connect(matches: &ArgMatches) -> Result<Option<Box<dyn Vmm>>, Failure> {
    let path = |key: &str| matches.get_one::<PathBuf>(key);
    if let Some(socket) = path("qmp") {
        return Ok(Some(Box::new(Qmp::connect(socket).map_err(failed)?)));
    }
    if let Some(domain) = matches.get_one::<String>("virsh") {
        let vmm = Libvirt::connect(domain, libvirt_options(matches)).map_err(failed)?;
        return Ok(Some(Box::new(vmm)));
    }
    let Some(socket) = path("cloud-hypervisor") else {
        return Ok(None);
    };
    let events = path("events").map(PathBuf::as_path);
    let vmm = CloudHypervisor::connect(socket, events).map_err(failed)?;
    Ok(Some(Box::new(vmm)))
}

/// Of those, the commands have not all.
fn libvirt_options(matches: &ArgMatches) -> LibvirtOptions {
    let text = |key: &str| matches.try_get_one::<String>(key).ok().flatten().cloned();
    let further = matches.try_get_many::<String>("options").ok().flatten();
    LibvirtOptions {
        connection: text("connect"),
        migrate_uri: text("migrate-uri"),
        further: further.into_iter().flatten().cloned().collect(),
    }
}

pub(super) fn failed(error: VmmError) -> Failure {
    Failure::Failed(error.to_string())
}
