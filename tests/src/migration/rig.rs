//! Two hosts with a daemon each, a switch between them, and stations that ask the VM for a sign of life.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::prober::{Prober, Station, now};
use super::relay::Relay;
use super::timeline;
use super::vm::{Vm, VmConfig};
use super::watch::Watch;
use crate::lab::payload::{self, OpenStream};
use crate::lab::{Daemon, Namespace, Ovs, PATIENCE, Qemu, built_program, wait_until};
use crate::uplink::Socket;

/// The VM.
pub const VM: Station = Station {
    mac: [0x52, 0x54, 0, 0, 0, 2],
    ip: [10, 0, 0, 2],
};
/// The station far away.
pub const FAR: Station = Station {
    mac: [0x02, 0, 0, 0, 0, 1],
    ip: [10, 0, 0, 1],
};
/// The hosts' own ports on their switches.
pub const NEIGHBOURS: [Station; 2] = [
    Station {
        mac: [0x02, 0, 0, 0, 0, 11],
        ip: [10, 0, 0, 11],
    },
    Station {
        mac: [0x02, 0, 0, 0, 0, 12],
        ip: [10, 0, 0, 12],
    },
];
/// Bytes a second of the stream, each way: little for the CPUs, and for the sockets of the switch when
/// that is kept from them.
const STREAM_RATE: u64 = 512 << 10;
/// The port of the VM, on each host.
pub const PORT: &str = "vm";

/// The hosts, as their certificates call them.
pub const NAMES: [&str; 2] = ["alpha", "beta"];
/// The port that they listen on to each other.
const LISTENS: u16 = 4792;
/// Where the API has the VM's migration.
const MIGRATION: &str = "migrations/vm";

/// How the VMM reaches its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// As ever.
    Direct,
    /// By a [`Relay`].
    Relayed,
}

/// A host: a daemon in a namespace, its uplink, and a port of the host's own.
#[derive(Debug)]
pub struct Host {
    /// The daemon.
    pub daemon: Daemon,
    /// What the VMM said to it, if it says so by a relay.
    pub relay: Option<Relay>,
    net: Namespace,
    socket: PathBuf,
}

/// The hosts and what is between them.
#[derive(Debug)]
pub struct Rig {
    // Dropped in this order.
    /// Source and destination, or the other way round.
    pub hosts: [Host; 2],
    _ovs: Ovs,
    wire: Namespace,
    far: Namespace,
}

impl Rig {
    /// Starts all but the VM, in a directory of their own. `port` has further keys of its port.
    pub fn start(dir: &Path, wiring: Wiring, port: &str) -> Result<Self> {
        let (wire, far) = (Namespace::new()?, Namespace::new()?);
        let nets = [Namespace::new()?, Namespace::new()?];
        let authority = dir.join("authority");
        for (i, net) in nets.iter().enumerate() {
            quiet(net)?;
            lay([net, &wire], &format!("u{i}"), &format!("f{i}"), i)?;
        }
        lay([&far, &wire], "h0", "p0", 2)?;
        far.ip("link set h0 up")?;
        address(&far, "h0", FAR)?;
        let ovs = Ovs::inside(dir, &wire)?;
        // What it still knows to do with frames of the VM keeps it from learning that it is back. This
        // is the shortest time it forgets that in (ovs-vswitchd.conf.db(5)).
        ovs.vsctl("set Open_vSwitch . other_config:max-idle=500 other_config:max-revalidator=100")?;
        ovs.vsctl("add-br br0 -- set bridge br0 datapath_type=netdev")?;
        ovs.vsctl("add-port br0 f0 -- add-port br0 f1 -- add-port br0 p0")?;
        let mut hosts = Vec::new();
        for (i, net) in nets.into_iter().enumerate() {
            let keys = keys(dir, &authority, i)?;
            hosts.push(Host::start(dir, net, i, wiring, (port, &keys))?);
        }
        let hosts: [Host; 2] = hosts.try_into().ok().context("two hosts")?;
        Ok(Self {
            hosts,
            _ovs: ovs,
            wire,
            far,
        })
    }

    /// Boots the VM on host 0, and waits until all stations know it. `option` is its card's.
    pub fn boot(&self, dir: &Path, qemus: [&Qemu; 2], pairs: usize, option: &str) -> Result<Vm> {
        let config = VmConfig {
            qemus: qemus.map(Clone::clone),
            sockets: [0, 1].map(|i| self.hosts[i].socket.clone()),
            mac: mac_text(VM.mac),
            pairs,
            option: option.to_string(),
        };
        let mut vm = Vm::boot(dir, config)?;
        let guest = &mut vm.here.guest;
        guest.configure("eth0", &[&format!("{}/24", ip_text(VM.ip))])?;
        for station in [FAR, NEIGHBOURS[0], NEIGHBOURS[1]] {
            guest.ping(&ip_text(station.ip), &[])?;
        }
        Ok(vm)
    }

    /// A prober far away.
    pub fn prober(&self) -> Result<Prober> {
        Prober::start(&self.far, "h0", [FAR, VM])
    }

    /// A prober at the host's own port of host `i`.
    pub fn neighbour(&self, i: usize) -> Result<Prober> {
        let ends = [NEIGHBOURS[i], VM];
        Prober::start(&self.hosts[i].net, "t0", ends)
    }

    /// A stream from far away to the VM and back.
    pub fn stream(&self) -> Result<OpenStream> {
        let peer = SocketAddr::from((VM.ip, payload::PORT));
        let connect = || Ok(TcpStream::connect(peer)?);
        let connection = self.far.inside(connect).context("a connection to the VM")?;
        Ok(OpenStream::begin(connection, STREAM_RATE, 1)?)
    }

    /// Has the daemon of host `from` prepare the VM's move to the other host.
    pub fn prepare(&self, from: usize) -> Result<()> {
        let way = self.way(from);
        let mut words = vec!["migration", "prepare", PORT];
        words.extend(way.iter().map(String::as_str));
        self.hosts[from].daemon.cli(&words).map(drop)
    }

    /// The arguments of `tandem migration` that say where the VM goes from host `from`.
    pub fn way(&self, from: usize) -> [String; 4] {
        let to = format!("{}:{LISTENS}", ip_text(NEIGHBOURS[1 - from].ip));
        ["--to", &to, "--name", NAMES[1 - from]].map(str::to_owned)
    }

    /// Has it say that the VM stays there, once it is; what both hosts know of it then, the source first.
    pub fn commit(&self, from: usize) -> Result<[Value; 2]> {
        self.wait_stage(from, "there")?;
        let words = ["migration", "commit", PORT];
        self.hosts[from].daemon.cli(&words)?;
        self.wait_stage(from, "committed")
    }

    /// Waits until both hosts say that the VM's move from host `from` is at this stage; what they know of it then, the
    /// source first.
    pub fn wait_stage(&self, from: usize, stage: &str) -> Result<[Value; 2]> {
        let daemons = [from, 1 - from].map(|host| &self.hosts[host].daemon);
        let mut known = [Value::Null, Value::Null];
        let outcome = wait_until(stage, PATIENCE, || {
            known = [daemons[0].get(MIGRATION)?, daemons[1].get(MIGRATION)?];
            Ok(known.iter().all(|status| status["stage"] == stage))
        });
        outcome.with_context(|| format!("{known:?}"))?;
        Ok(known)
    }

    /// When the migration that host `i` tells of began, since 1970: what it tells counts from there.
    pub fn began(&self, i: usize) -> Result<Duration> {
        const LOOKS: usize = 20;
        let daemon = &self.hosts[i].daemon;
        let look = |_| {
            let asked = now();
            let age = daemon.get(MIGRATION)?["age_ms"].as_u64().context("age")?;
            Ok((Duration::from_millis(age), [asked, now()]))
        };
        let looks: Vec<_> = (0..LOOKS).map(look).collect::<Result<_>>()?;
        Ok(timeline::began(&looks))
    }

    /// What was dropped on the hosts so far, and why.
    pub fn drops(&self) -> Result<[Value; 2]> {
        let of = |host: &Host| -> Result<Value> {
            let switch = host.daemon.get("switches/default")?;
            let (port, tap) = (host.daemon.get("ports/vm")?, host.daemon.get("ports/host")?);
            Ok(serde_json::json!({
                "vm": [port["counters"]["from_vm"]["drops"], port["counters"]["to_vm"]["drops"]],
                "host": [tap["counters"]["from_vm"]["drops"], tap["counters"]["to_vm"]["drops"]],
                "wire": [switch["uplink_status"]["from_wire"]["drops"], switch["uplink_status"]["to_wire"]["drops"]],
            }))
        };
        Ok([of(&self.hosts[0])?, of(&self.hosts[1])?])
    }

    /// Listens on the uplinks.
    pub fn watch(&self) -> Result<Watch> {
        let socket = |i: usize| Socket::open(&self.wire, &format!("f{i}"));
        Ok(Watch::start(VM.mac, [socket(0)?, socket(1)?]))
    }
}

impl Host {
    fn start(
        dir: &Path,
        net: Namespace,
        i: usize,
        wiring: Wiring,
        (port, keys): (&str, &Path),
    ) -> Result<Self> {
        let dir = dir.join(format!("host-{i}"));
        std::fs::create_dir(&dir)?;
        let config = dir.join("tandem.toml");
        let text = format!(
            "[switch.default]\nuplink = \"u{i}\"\n[port.{PORT}]\n{port}\n[port.host]\ntap = \"t0\"\n"
        );
        std::fs::write(&config, text)?;
        let config = config.to_str().context("path")?;
        let (listen, keys) = (format!("0.0.0.0:{LISTENS}"), keys.display().to_string());
        let mut words = vec!["--config", config, "--migration-listen", &listen];
        words.extend(["--migration-keys", &keys]);
        let daemon = Daemon::start_inside(&dir, &net, &words)?;
        let mut socket = daemon.socket(PORT);
        let mut relay = None;
        if wiring == Wiring::Relayed {
            let path = dir.join("relay.sock");
            relay = Some(Relay::start(&path, socket)?);
            socket = path;
        }
        let host = Self {
            daemon,
            relay,
            net,
            socket,
        };
        host.set_up(i)?;
        Ok(host)
    }

    /// Kills its daemon, and starts it again.
    pub fn crash_and_restart(&mut self, i: usize) -> Result<()> {
        self.daemon.restart_after_crash()?;
        self.set_up(i)
    }

    fn set_up(&self, i: usize) -> Result<()> {
        address(&self.net, "t0", NEIGHBOURS[i])?;
        self.net.ip("link set t0 up")?;
        wait_until("the uplink", PATIENCE, || {
            let switch = self.daemon.get("switches/default")?;
            Ok(switch["uplink_status"]["state"] == "up")
        })
    }
}

/// Keys of host `i`.
fn keys(dir: &Path, authority: &Path, i: usize) -> Result<PathBuf> {
    let keys = dir.join(format!("keys-{i}"));
    let made = Command::new(built_program("tandem")?)
        .args(["migration", "keys", NAMES[i], "--to"])
        .arg(&keys)
        .arg("--authority")
        .arg(authority)
        .output()?;
    ensure!(made.status.success(), "{made:?}");
    Ok(keys)
}

/// A cable from a device of a namespace to a port of the switch. Up at the switch only.
fn lay([net, wire]: [&Namespace; 2], near: &str, port: &str, i: usize) -> Result<()> {
    // Numbers that differ, for the reason in `Cables::lay`.
    let (index, other, path) = (100 + i, 200 + i, wire.path());
    let path = path.display();
    net.ip(&format!(
        "link add {near} index {index} type veth peer name {port} index {other} netns {path}"
    ))?;
    complete_here(net, near)?;
    complete_here(wire, port)?;
    wire.ip(&format!("link set {port} up")).map(drop)
}

/// Has the host answer for an address only by the device that has it: its kernel, too, gets what comes
/// in by the uplink.
fn quiet(net: &Namespace) -> Result<()> {
    let write = || {
        Ok(std::fs::write(
            "/proc/sys/net/ipv4/conf/all/arp_ignore",
            "1",
        )?)
    };
    net.inside(write).context("arp_ignore")
}

/// Has checksums and segments completed by who sends: the switch in between takes only whole frames.
fn complete_here(net: &Namespace, device: &str) -> Result<()> {
    net.run(&format!("ethtool -K {device} tx off tso off gso off"))
        .map(drop)
}

fn address(net: &Namespace, device: &str, station: Station) -> Result<()> {
    let (mac, ip) = (mac_text(station.mac), ip_text(station.ip));
    net.ip(&format!("link set {device} address {mac}"))?;
    net.ip(&format!("addr add {ip}/24 dev {device}")).map(drop)
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn ip_text(ip: [u8; 4]) -> String {
    std::net::Ipv4Addr::from(ip).to_string()
}
