//! Open vSwitch with DPDK, with a database and a run directory of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::switch::{Layout, port_name};
use super::{GUEST_CPU, SWITCH_CPU, mac};
use crate::lab::process::{Lifetime, Process};
use crate::lab::{PATIENCE, find_program, wait_until};

/// Where Debian and Ubuntu put the build with DPDK.
pub const VSWITCHD: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// Why there is no Open vSwitch with DPDK here; `None` when there is.
pub fn missing() -> Option<String> {
    (!Path::new(VSWITCHD).exists())
        .then(|| format!("{VSWITCHD} is not there (package openvswitch-switch-dpdk)"))
}

/// A running Open vSwitch.
pub struct Ovs {
    // Dropped in this order.
    vswitchd: Process,
    _database: Process,
}

impl Ovs {
    /// Starts it with one bridge and `layout`'s ports.
    pub fn start(dir: &Path, layout: Layout) -> Result<Self> {
        let database = start_database(dir)?;
        let (switch_mask, guest_mask) = (1 << SWITCH_CPU, 1 << GUEST_CPU);
        let mut settings = vec![
            "--no-wait".to_string(),
            "set".into(),
            "Open_vSwitch".into(),
            ".".into(),
        ];
        settings.extend([
            "other_config:dpdk-init=true".into(),
            format!("other_config:pmd-cpu-mask={switch_mask:#x}"),
            format!("other_config:dpdk-lcore-mask={guest_mask:#x}"),
            "other_config:dpdk-socket-mem=768".into(),
            "other_config:dpdk-extra=--no-pci --in-memory".into(),
        ]);
        vsctl(dir, &["--no-wait", "init"])?;
        vsctl(
            dir,
            &settings.iter().map(String::as_str).collect::<Vec<_>>(),
        )?;
        let vswitchd = start_vswitchd(dir)?;
        add_ports(dir, layout)?;
        Ok(Self {
            vswitchd,
            _database: database,
        })
    }

    /// The switch itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.vswitchd
    }
}

fn start_database(dir: &Path) -> Result<Process> {
    let file = dir.join("conf.db");
    run(Command::new(program("ovsdb-tool")?)
        .arg("create")
        .args([file.as_path(), Path::new(SCHEMA)]))?;
    let server = program("ovsdb-server")?;
    let database = Process::start(dir, "ovsdb", &server, Lifetime::Owner, |command| {
        surroundings(command, dir)
            .arg(&file)
            .arg(format!("--remote=punix:{}", socket(dir).display()))
            .arg(format!("--unixctl={}", dir.join("ovsdb.ctl").display()));
    })?;
    wait_until("the database of Open vSwitch", PATIENCE, || {
        Ok(socket(dir).exists())
    })?;
    Ok(database)
}

fn start_vswitchd(dir: &Path) -> Result<Process> {
    let program = Path::new(VSWITCHD);
    Process::start(dir, "ovs-vswitchd", program, Lifetime::Owner, |command| {
        surroundings(command, dir)
            .arg(format!("unix:{}", socket(dir).display()))
            .arg(format!("--unixctl={}", control(dir).display()));
    })
}

fn add_ports(dir: &Path, layout: Layout) -> Result<()> {
    let mut line = super::switch::words("add-br br0 -- set bridge br0 datapath_type=netdev");
    for port in 0..layout.ports {
        let name = port_name(port);
        line.extend(super::switch::words(&format!(
            "-- add-port br0 {name} -- set Interface {name} type=dpdkvhostuser"
        )));
    }
    vsctl(dir, &line.iter().map(String::as_str).collect::<Vec<_>>())?;
    for port in 0..layout.ports {
        wait_until("a port of Open vSwitch", PATIENCE, || {
            Ok(dir.join(port_name(port)).exists())
        })?;
        if layout.static_macs {
            run(Command::new(program("ovs-appctl")?)
                .arg(format!("--target={}", control(dir).display()))
                .args(["fdb/add", "br0", &port_name(port), "0", &mac(port)]))?;
        }
    }
    Ok(())
}

fn vsctl(dir: &Path, arguments: &[&str]) -> Result<()> {
    run(Command::new(program("ovs-vsctl")?)
        .arg(format!("--db=unix:{}", socket(dir).display()))
        .arg("--timeout=60")
        .args(arguments))
}

/// Nothing of the machine's own Open vSwitch is touched.
fn surroundings<'a>(command: &'a mut Command, dir: &Path) -> &'a mut Command {
    for name in ["OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR"] {
        command.env(name, dir);
    }
    command
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("db.sock")
}

fn control(dir: &Path) -> PathBuf {
    dir.join("vswitchd.ctl")
}

fn program(name: &str) -> Result<PathBuf> {
    find_program(name).with_context(|| format!("no {name} (package openvswitch-switch)"))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
