//! The switches under measurement, each on [`SWITCH_CPU`].

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::ovs::Ovs;
use super::uplink::{self, Driver};
use super::{GUEST_CPU, SWITCH_CPU, mac};
use crate::lab::process::{Process, signal};
use crate::lab::{Daemon, Testpmd, built_program, wait_until};
use crate::migration::Relay;

/// Which switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This project's.
    Tandem,
    /// Open vSwitch with DPDK: a netdev bridge, the `NORMAL` action, dpdkvhostuser ports.
    Ovs,
    /// testpmd `io` between net_vhost ports: copies frames between port 0 and 1, 2 and 3, and so
    /// on, without looking at them.
    Io,
    /// Another build of Tandem, whose directory is `TANDEM_BENCH_AGAINST`: to see what a change gave.
    Other,
}

impl Kind {
    /// Those that are always compared.
    pub const ALL: [Kind; 3] = [Kind::Tandem, Kind::Ovs, Kind::Io];

    /// This build and another one.
    pub const BUILDS: [Kind; 2] = [Kind::Tandem, Kind::Other];

    /// Its key in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tandem => "tandem",
            Kind::Ovs => "ovs",
            Kind::Io => "io",
            Kind::Other => "other",
        }
    }
}

/// The ports of a switch.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// How many.
    pub ports: usize,
    /// Queue pairs of each.
    pub pairs: usize,
    /// The switch knows the VMs' MAC addresses beforehand.
    pub static_macs: bool,
    /// It has an uplink, [`uplink::uplink_device`].
    pub uplink: Option<Driver>,
    /// The host has a port, [`uplink::host_device`].
    pub host: bool,
}

impl Layout {
    /// VMs with one queue pair each, and nothing else.
    pub fn vms(ports: usize, static_macs: bool) -> Self {
        Self {
            ports,
            pairs: 1,
            static_macs,
            uplink: None,
            host: false,
        }
    }
}

enum Program {
    Tandem(Daemon),
    Ovs(Ovs),
    Io(Testpmd),
}

/// A running switch.
pub struct Switch {
    kind: Kind,
    program: Program,
    dir: PathBuf,
    /// In front of its ports, if there are any.
    relays: Vec<Relay>,
}

impl Switch {
    /// Starts it with its files in `dir`.
    pub fn start(kind: Kind, dir: &Path, layout: Layout) -> Result<Self> {
        let dir = dir.join(kind.name());
        // What an earlier cell left.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
        let program = match kind {
            Kind::Tandem => {
                let build = built_program("tandemd")?;
                Program::Tandem(start_tandem(&dir, kind, layout, &build)?)
            }
            Kind::Other => Program::Tandem(start_tandem(&dir, kind, layout, &other_build()?)?),
            Kind::Ovs => Program::Ovs(Ovs::start(&dir, layout)?),
            Kind::Io => Program::Io(start_io(&dir, layout)?),
        };
        Ok(Self {
            kind,
            program,
            dir,
            relays: Vec::new(),
        })
    }

    /// Puts a relay in front of each of its first `ports` ports: for VMMs that connect from now on.
    pub fn relay(&mut self, ports: usize) -> Result<()> {
        let start = |port| Relay::start(&self.relay_path(port), self.socket(port));
        self.relays = (0..ports).map(start).collect::<Result<_>>()?;
        Ok(())
    }

    fn relay_path(&self, port: usize) -> PathBuf {
        self.dir.join(format!("relay-{port}.sock"))
    }

    /// The relays.
    pub fn relays(&self) -> &[Relay] {
        &self.relays
    }

    /// Which it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The vhost-user socket of a port, which the VMM connects to.
    pub fn socket(&self, port: usize) -> PathBuf {
        if port < self.relays.len() {
            return self.relay_path(port);
        }
        match &self.program {
            Program::Tandem(daemon) => daemon.socket(&port_name(port)),
            Program::Ovs(_) | Program::Io(_) => self.dir.join(port_name(port)),
        }
    }

    /// The process that forwards.
    pub fn process(&mut self) -> &mut Process {
        match &mut self.program {
            Program::Tandem(daemon) => daemon.process(),
            Program::Ovs(ovs) => ovs.process(),
            Program::Io(testpmd) => testpmd.process(),
        }
    }

    /// Takes it off the CPU.
    pub fn pause(&mut self) -> Result<()> {
        signal(self.process().pid(), "STOP")
    }

    /// Lets it go on.
    pub fn resume(&mut self) -> Result<()> {
        signal(self.process().pid(), "CONT")
    }

    /// Tandem's counters of each port: what was dropped, and why.
    pub fn drops(&self) -> Result<Value> {
        let Program::Tandem(daemon) = &self.program else {
            return Ok(Value::Null);
        };
        let drops = daemon.ports()?.into_iter().map(|port| {
            let counters = &port.0["counters"];
            let name = port.0["name"].as_str().unwrap_or_default().to_string();
            let of = |direction: &str| counters[direction]["drops"].clone();
            let drops = serde_json::json!({"from_vm": of("from_vm"), "to_vm": of("to_vm")});
            (name, drops)
        });
        Ok(Value::Object(drops.collect()))
    }
}

/// The name of a port, on every switch.
pub fn port_name(port: usize) -> String {
    format!("p{port}")
}

/// The `tandemd` of the other build.
fn other_build() -> Result<PathBuf> {
    let dir = std::env::var_os("TANDEM_BENCH_AGAINST").context("no TANDEM_BENCH_AGAINST")?;
    Ok(Path::new(&dir).join("tandemd"))
}

fn start_tandem(dir: &Path, kind: Kind, layout: Layout, program: &Path) -> Result<Daemon> {
    let mut arguments = vec!["--cpus".to_string(), SWITCH_CPU.to_string()];
    if let Some(driver) = layout.uplink {
        let (file, device) = (dir.join("tandem.toml"), uplink::uplink_device(kind));
        let driver = driver.name();
        std::fs::write(
            &file,
            format!("[switch.default]\nuplink = \"{device}:{driver}\"\n"),
        )?;
        arguments.extend(["--config".to_string(), file.display().to_string()]);
    }
    if layout.host {
        let tap = uplink::host_device(kind);
        arguments.extend(["--port".to_string(), format!("host,tap={tap}")]);
    }
    for port in 0..layout.ports {
        // Unknown destinations are what flowgen sends: they are the load, not a storm.
        let mut spec = format!(
            "{},queue_pairs={},storm_limit=0",
            port_name(port),
            layout.pairs
        );
        if layout.static_macs {
            spec += &format!(",mac={}", mac(port));
        }
        arguments.extend(["--port".to_string(), spec]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Daemon::start_program(dir, program, &arguments)
}

fn start_io(dir: &Path, layout: Layout) -> Result<Testpmd> {
    let Layout { ports, pairs, .. } = layout;
    let mut line: Vec<String> = words(&format!(
        "--lcores 0@{GUEST_CPU},1@{SWITCH_CPU} --no-pci --iova-mode=va --no-telemetry --in-memory \
         --single-file-segments --file-prefix io --log-level lib.eal:warning -m 640"
    ));
    for port in 0..ports {
        let socket = dir.join(port_name(port));
        line.push(format!(
            "--vdev=net_vhost{port},iface={},queues={pairs}",
            socket.display()
        ));
    }
    line.extend(words(&format!(
        "-- -i --nb-cores=1 --forward-mode=io --burst=64 --rxq={pairs} --txq={pairs} --rxd=1024 \
         --txd=1024 --no-lsc-interrupt"
    )));
    let mut testpmd = Testpmd::start(dir, "io", &line)?;
    wait_until("the sockets of testpmd io", crate::lab::PATIENCE, || {
        Ok((0..ports).all(|port| dir.join(port_name(port)).exists()))
    })?;
    testpmd.command("start")?;
    Ok(testpmd)
}

/// The words of a command line without quotes.
pub fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_string).collect()
}
