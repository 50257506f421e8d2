//! Open vSwitch with a database and a run directory of its own: nothing of the machine's own Open
//! vSwitch is touched.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::process::{Lifetime, Process};
use super::{Namespace, PATIENCE, find_program, wait_until};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// A running Open vSwitch.
#[derive(Debug)]
pub struct Ovs {
    // Dropped in this order.
    vswitchd: Process,
    _database: Process,
    dir: PathBuf,
}

impl Ovs {
    /// The system's build, with its devices in `namespace`, which must live longer. It is not to wait
    /// for what is tested: then its sockets run over.
    pub fn inside(dir: &Path, namespace: &Namespace) -> Result<Self> {
        let mut prefix = namespace.prefix();
        prefix.extend(["nice", "-n", "-10"].map(str::to_string));
        Self::launch(dir, prefix, &program("ovs-vswitchd")?, &[])
    }

    /// A build, with this in the database when it starts: `Open_vSwitch . other_config:…`.
    pub fn start(dir: &Path, vswitchd: &Path, settings: &[&str]) -> Result<Self> {
        Self::launch(dir, vec![], vswitchd, settings)
    }

    fn launch(dir: &Path, prefix: Vec<String>, program: &Path, settings: &[&str]) -> Result<Self> {
        let database = start_database(dir)?;
        vsctl(dir, &["--no-wait", "init"])?;
        if !settings.is_empty() {
            vsctl(dir, &[&["--no-wait", "set"], settings].concat())?;
        }
        let mut line = prefix;
        line.push(program.display().to_string());
        let first = Path::new(&line[0]);
        let vswitchd = Process::start(dir, "ovs-vswitchd", first, Lifetime::Owner, |command| {
            surroundings(command, dir)
                .args(&line[1..])
                .arg(format!("unix:{}", socket(dir).display()))
                .arg(format!("--unixctl={}", control(dir).display()));
        })?;
        let dir = dir.to_path_buf();
        Ok(Self {
            vswitchd,
            _database: database,
            dir,
        })
    }

    /// The switch itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.vswitchd
    }

    /// Runs `ovs-vsctl`, which waits until the switch has done what it asks for.
    pub fn vsctl(&self, line: &str) -> Result<()> {
        vsctl(&self.dir, &line.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs `ovs-appctl`. Gives what it prints.
    pub fn appctl(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new(program("ovs-appctl")?)
            .arg(format!("--target={}", control(&self.dir).display()))
            .args(arguments))
    }

    /// Runs `ovs-ofctl COMMAND br0 ARGUMENT`.
    pub fn ofctl(&self, command: &str, argument: &str) -> Result<()> {
        // Its socket lies in the run directory.
        let bridge = format!("unix:{}", self.dir.join("br0.mgmt").display());
        run(
            surroundings(&mut Command::new(program("ovs-ofctl")?), &self.dir).args([
                "-O",
                "OpenFlow13",
                command,
                &bridge,
                argument,
            ]),
        )
        .map(drop)
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

fn vsctl(dir: &Path, arguments: &[&str]) -> Result<()> {
    run(Command::new(program("ovs-vsctl")?)
        .arg(format!("--db=unix:{}", socket(dir).display()))
        .arg("--timeout=60")
        .args(arguments))
    .map(drop)
}

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

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed: {error}");
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
