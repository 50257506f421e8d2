//! What teams and uplinks are asked to be.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Serialize, Serializer};
use tandem_uplink::team::distribution::Distribution;
use utoipa::ToSchema;

use super::{Origin, SwitchConfig, keys};

/// How frames come from a device and go to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// The best that the device takes.
    #[default]
    Auto,
    /// Packet sockets (packet(7)).
    AfPacket,
    /// AF_XDP sockets.
    AfXdp,
    /// A TAP device, which is made if it is not there.
    Tap,
}

/// Drivers by name.
pub(super) const DRIVERS: [(&str, Driver); 4] = [
    ("auto", Driver::Auto),
    ("af_packet", Driver::AfPacket),
    ("af_xdp", Driver::AfXdp),
    ("tap", Driver::Tap),
];

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = DRIVERS.iter().find(|(_, driver)| driver == self);
        f.write_str(named.map_or("", |(name, _)| name))
    }
}

/// A device that leads to the wire, and its driver: `eth0`, or `eth0:af_xdp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The device's name, 1 to 15 bytes. It need not be there.
    pub device: String,
    /// The driver.
    pub driver: Driver,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.driver {
            Driver::Auto => f.write_str(&self.device),
            driver => write!(f, "{}:{driver}", self.device),
        }
    }
}

impl Serialize for Member {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What the switches at the other end of a team know of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TeamMode {
    /// Nothing: each member may lead to another switch.
    #[default]
    SwitchIndependent,
    /// That the members are one link; there is no protocol.
    Static,
    /// What LACP tells them (IEEE 802.1AX, 6.4).
    Lacp,
}

/// How often LACP's partner is to send (IEEE 802.1AX, 6.4.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LacpTimer {
    /// Each second; its silence is noticed after three.
    #[default]
    Fast,
    /// Each 30 seconds; its silence is noticed after 90.
    Slow,
}

/// How a path that is dead behind a live link is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    /// Not at all.
    #[default]
    None,
    /// Members listen for each other's frames, through the network.
    Heartbeat,
    /// Each member asks this address for its MAC address (ARP, neighbour discovery).
    Target(IpAddr),
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Heartbeat => f.write_str("heartbeat"),
            Self::Target(address) => address.fmt(f),
        }
    }
}

/// What is done with LLDP (IEEE 802.1AB) on each member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Lldp {
    /// The neighbour is shown.
    #[default]
    Receive,
    /// It is told of us as well.
    Both,
    /// Nothing.
    Off,
}

/// All settings of one team: several devices as one uplink.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TeamConfig {
    /// The devices, 1 to 32, none twice: `DEVICE`, or `DEVICE:DRIVER` with one of the drivers `auto`,
    /// `af_packet`, `af_xdp` and `tap`.
    #[schema(value_type = Vec<String>, min_items = 1, max_items = 32)]
    pub members: Vec<Member>,
    /// What the switches at the other end know of it.
    pub mode: TeamMode,
    /// What tells conversations apart, which leave by one member each.
    #[serde(serialize_with = "shown")]
    #[schema(value_type = String, pattern = "^(transport_ports|ip_addresses|mac_addresses|port|dynamic)$")]
    pub distribution: Distribution,
    /// The member that carries frames only while no other can.
    #[schema(min_length = 1, max_length = 15)]
    pub standby: Option<String>,
    /// How often LACP's partner is to send.
    pub lacp_timer: LacpTimer,
    /// How a path that is dead behind a live link is found: `none`, `heartbeat`, or an IP address that
    /// is asked for its MAC address.
    #[serde(serialize_with = "shown")]
    #[schema(value_type = String)]
    pub probe: Probe,
    /// The VLAN of the probes; absent: they are untagged.
    #[schema(minimum = 1, maximum = 4094)]
    pub probe_vlan: Option<u16>,
    /// Milliseconds between two probes.
    #[schema(minimum = 50, maximum = 10000)]
    pub probe_interval_ms: u32,
    /// What is done with LLDP.
    pub lldp: Lldp,
    /// Where the settings that are no defaults came from, by key.
    #[serde(skip)]
    pub origin: BTreeMap<&'static str, Origin>,
}

impl Default for TeamConfig {
    /// Without members, which a team must have.
    fn default() -> Self {
        Self {
            members: Vec::new(),
            mode: TeamMode::default(),
            distribution: Distribution::default(),
            standby: None,
            lacp_timer: LacpTimer::default(),
            probe: Probe::default(),
            probe_vlan: None,
            probe_interval_ms: 200,
            lldp: Lldp::default(),
            origin: BTreeMap::new(),
        }
    }
}

impl TeamConfig {
    /// Whether a device is one of the members.
    pub fn has(&self, device: &str) -> bool {
        self.members.iter().any(|member| member.device == device)
    }
}

/// By what a switch's frames go to the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// The team of this name.
    Team(String),
    /// One device.
    Device(Member),
}

impl SwitchConfig {
    /// Its uplink, where these names are those of teams; a team comes before a device of that name.
    /// `None` also for a name that can be neither, which the checks refuse.
    pub fn uplink_among(&self, is_team: impl Fn(&str) -> bool) -> Option<Uplink> {
        let name = self.uplink.as_deref()?;
        if is_team(name) {
            return Some(Uplink::Team(name.to_owned()));
        }
        keys::member(name).ok().map(Uplink::Device)
    }
}

fn shown<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
