//! What the daemon reports: the objects of the API. Counters count since the port was made;
//! directions are the VM's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tandem_virtio_net::Counters;
use utoipa::ToSchema;

mod teams;

pub use teams::{
    Failover, LacpEnd, LacpStatus, LldpStatus, MemberState, MemberStatus, Team, TeamState,
    TeamStatus, Teams,
};

use crate::api::PortSettings;
use crate::config::{Origin, PortConfig, SwitchConfig};

/// Whether a port carries frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PortState {
    /// A VM's driver is running, or the TAP is open.
    Up,
    /// No frame can go to it; [`PortStatus::reason`] says why.
    #[default]
    Down,
}

/// The format of the rings (virtio 1.3, 2.7 and 2.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RingFormat {
    /// Split virtqueues.
    Split,
    /// Packed virtqueues.
    Packed,
}

/// Frames and bytes that went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Traffic {
    /// Ethernet frames.
    pub frames: u64,
    /// Bytes of those frames, without frame check sequence.
    pub bytes: u64,
}

impl Traffic {
    pub(crate) fn add(&mut self, direction: &DirectionCounters) {
        self.frames += direction.frames;
        self.bytes += direction.bytes;
    }
}

/// One direction of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DirectionCounters {
    /// Ethernet frames that went through.
    pub frames: u64,
    /// Bytes of those frames, without frame check sequence.
    pub bytes: u64,
    /// Frames that were dropped, by the name of the reason; only reasons that occurred.
    pub drops: BTreeMap<String, u64>,
}

impl From<&Counters> for DirectionCounters {
    fn from(counters: &Counters) -> Self {
        Self {
            frames: counters.frames(),
            bytes: counters.bytes(),
            drops: counters
                .drops()
                .map(|(reason, n)| (reason.name().to_owned(), n))
                .collect(),
        }
    }
}

impl DirectionCounters {
    /// Adds what others have counted.
    pub(crate) fn add(&mut self, counters: &Counters) {
        self.frames += counters.frames();
        self.bytes += counters.bytes();
        for (reason, n) in counters.drops() {
            *self.drops.entry(reason.name().to_owned()).or_default() += n;
        }
    }
}

/// Both directions of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortCounters {
    /// What the VM sent.
    pub from_vm: DirectionCounters,
    /// What the VM was sent.
    pub to_vm: DirectionCounters,
}

/// The connection to a VMM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionStatus {
    /// Whether a VMM is connected.
    pub connected: bool,
    /// Connections since the port was made.
    pub connects: u64,
    /// Connections that were closed because there was one already.
    pub refused_connections: u64,
    /// Features the driver took, by their names in the virtio specification.
    pub features: Vec<String>,
    /// The format of the rings; absent while no driver runs.
    pub ring: Option<RingFormat>,
    /// Regions of guest memory.
    pub memory_regions: u32,
    /// Why the last session ended, if it ended badly.
    pub last_error: Option<String>,
}

/// One queue pair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueStatus {
    /// Its number, from 0.
    pub pair: u16,
    /// Whether the VMM enabled it.
    pub enabled: bool,
    /// Whether its rings are set up and served.
    pub running: bool,
    /// Descriptors of each ring; 0 before it was set up.
    pub size: u16,
    /// What the VM sent on it.
    pub from_vm: Traffic,
    /// What the VM was sent on it.
    pub to_vm: Traffic,
    /// Notifications from the VM.
    pub kicks: u64,
    /// Notifications to the VM.
    pub calls: u64,
}

/// The running part of a port, as the engine knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortStatus {
    /// The port's name.
    #[serde(skip_serializing)]
    #[schema(ignore)]
    pub name: String,
    /// Addresses learned from its frames.
    pub learned_macs: Vec<String>,
    /// IP addresses that the stations behind it say they have (ARP, neighbour discovery); the last
    /// 16, those heard last first.
    #[serde(default)]
    #[schema(value_type = Vec<String>, required)]
    pub addresses: Vec<IpAddr>,
    /// Whether it carries frames.
    pub state: PortState,
    /// Why not, in words with the remedy; absent when up.
    pub reason: Option<String>,
    /// The connection to the VMM; absent for a TAP.
    pub session: Option<SessionStatus>,
    /// Frames of the whole port.
    pub counters: PortCounters,
    /// Its queue pairs; none for a TAP.
    pub queues: Vec<QueueStatus>,
    /// Captures of its frames.
    #[serde(default)]
    pub captures: CaptureStatus,
}

/// The captures of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CaptureStatus {
    /// How many run.
    pub active: u32,
    /// Frames that captures lost, because who read them was too slow or the host had no CPU time for
    /// them. The port has lost none of them.
    pub dropped_frames: u64,
}

/// A port in the API: what was asked for and what it does.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Port {
    /// The tag of its settings, for the head of an answer.
    #[serde(skip)]
    pub tag: String,
    /// Its settings, the socket with its whole path.
    #[serde(flatten)]
    pub config: PortConfig,
    /// Where each setting came from.
    #[schema(value_type = BTreeMap<String, Origin>)]
    pub origin: BTreeMap<&'static str, Origin>,
    /// What it does.
    #[serde(flatten)]
    pub running: PortStatus,
}

/// What the threads of one VM have used, as the engine knows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmUsage {
    /// The VM's name.
    pub name: String,
    /// Threads that serve it.
    pub threads: u32,
    /// CPU time they have had since they were started, with the first of the VM's ports.
    pub cpu_seconds: f64,
}

/// A VM in the API: the ports that name it, taken together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Its threads.
    #[serde(flatten)]
    pub usage: VmUsage,
    /// Its ports, by name.
    pub ports: Vec<String>,
    /// Of those, how many are up.
    pub ports_up: u32,
    /// What it sent.
    pub from_vm: Traffic,
    /// What it was sent.
    pub to_vm: Traffic,
    /// Frames from it or to it that were dropped.
    pub drops: u64,
}

/// The answer to a list of VMs.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Vms {
    /// By name.
    pub vms: Vec<Vm>,
}

/// The answer to a list of ports.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Ports {
    /// By name.
    pub ports: Vec<Port>,
}

/// What a switch did with the frames it took. With nothing in flight these hold exactly, over all
/// its ports: `from_vm.frames + announced = from_vm.drops + unicast + flooded`, and
/// `to_vm.frames + to_vm.drops = unicast + copies - segmented_frames + segments`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SwitchCounters {
    /// Frames that reached it, or that it made. What a port drops before, such as a frame that is too long, is not
    /// among them.
    pub frames: u64,
    /// Of those, frames that went to one port.
    pub unicast: u64,
    /// Of those, frames that were flooded.
    pub flooded: u64,
    /// Copies made of the flooded frames.
    pub copies: u64,
    /// Frames that the switch made itself, to announce the addresses of VMs that are back.
    #[serde(default)]
    pub announced: u64,
    /// Frames cut into segments for a receiver without that offload.
    pub segmented_frames: u64,
    /// The segments they became.
    pub segments: u64,
}

/// One switch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SwitchStatus {
    /// Its name.
    pub name: String,
    /// Ports on it.
    pub ports: u32,
    /// Addresses it knows.
    pub mac_table_entries: u32,
    /// Addresses seen on two ports at once; one of the two VMs is cut off.
    #[serde(default)]
    pub duplicate_macs: Vec<String>,
    /// What it did with the frames.
    pub counters: SwitchCounters,
    /// What its uplink does, if it has one; a device is a team of one.
    #[serde(default)]
    pub uplink_status: Option<TeamStatus>,
}

/// A switch in the API: what was asked for and what it does.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Switch {
    /// The tag of its settings, for the head of an answer.
    #[serde(skip)]
    pub tag: String,
    /// Where each setting came from.
    #[schema(value_type = BTreeMap<String, Origin>)]
    pub origin: BTreeMap<&'static str, Origin>,
    /// What it does.
    #[serde(flatten)]
    pub running: SwitchStatus,
    /// Its settings.
    #[serde(flatten)]
    pub config: SwitchConfig,
}

/// The answer to a list of switches.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Switches {
    /// By name.
    pub switches: Vec<Switch>,
}

/// A profile of the configuration file.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// The settings it gives.
    #[schema(value_type = PortSettings)]
    pub settings: Map<String, Value>,
    /// The ports that name it.
    pub ports: Vec<String>,
}

/// The answer to a list of profiles.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Profiles {
    /// By name.
    pub profiles: Vec<Profile>,
}

/// The switches, as the engine knows them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SwitchesStatus {
    /// CPUs of the data path, ascending.
    pub cpus: Vec<usize>,
    /// By name.
    pub switches: Vec<SwitchStatus>,
}

/// How many ports there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortsTotal {
    /// All.
    pub total: u32,
    /// Those that are up.
    pub up: u32,
}

/// The answer to a status request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Where its sockets are.
    pub run_dir: String,
    /// The switches.
    #[serde(flatten)]
    pub switches: SwitchesStatus,
    /// The ports.
    pub ports: PortsTotal,
    /// VMs that have a port.
    pub vms: u32,
}
