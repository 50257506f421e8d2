//! What teams and uplinks do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::DirectionCounters;
use crate::config::{Origin, TeamConfig};

/// Whether a team carries frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TeamState {
    /// All members work.
    Up,
    /// Some members work; [`TeamStatus::reason`] says what is the matter with others.
    Degraded,
    /// No frame reaches the wire; [`TeamStatus::reason`] says why.
    #[default]
    Down,
}

/// What a member does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// It carries frames.
    Active,
    /// It works, and waits until others do not.
    Standby,
    /// It cannot be used; [`MemberStatus::reason`] says why.
    #[default]
    Down,
}

/// Frames of one member, or of all, that had to leave by another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Failover {
    /// When, in UTC (RFC 3339).
    pub at: String,
    /// The member they left by before; absent if there was none.
    pub from: Option<String>,
    /// The member they leave by since; absent if there is none, or there are several.
    pub to: Option<String>,
    /// Why, in words.
    pub reason: String,
    /// How long it took from when it was noticed, in milliseconds.
    pub milliseconds: f64,
}

/// One end of a link of which LACP speaks (IEEE 802.1AX, 6.4.2.3).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LacpEnd {
    /// Its system's MAC address.
    pub system: String,
    /// The priority of the system.
    pub system_priority: u16,
    /// The key: ports of one system with the same may be one link.
    pub key: u16,
    /// The port's number.
    pub port: u16,
    /// The priority of the port.
    pub port_priority: u16,
    /// Its state, such as `activity,aggregation,synchronization`.
    pub flags: String,
}

/// What LACP knows of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LacpStatus {
    /// Our end.
    pub actor: LacpEnd,
    /// The other end; absent while nothing is heard of it.
    pub partner: Option<LacpEnd>,
    /// The state of the receive machine (IEEE 802.1AX, 6.4.12).
    pub state: String,
}

/// Who is at the other end of a member, by what it says with LLDP (IEEE 802.1AB).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LldpStatus {
    /// The neighbour's chassis.
    pub chassis_id: String,
    /// The neighbour's port.
    pub port_id: String,
    /// The neighbour's name.
    pub system_name: Option<String>,
    /// What the neighbour calls its port.
    pub port_description: Option<String>,
    /// The VLAN of untagged frames on the link.
    pub vlan: Option<u16>,
    /// Seconds since it was heard last.
    pub age_seconds: u64,
}

/// One member of a team, or the one device of an uplink.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemberStatus {
    /// The device.
    pub device: String,
    /// The driver that is used, or `auto` while none is.
    pub driver: String,
    /// Why it is this driver, if that was left open.
    pub driver_reason: Option<String>,
    /// What it does.
    pub state: MemberState,
    /// Why it does not carry frames, or what else is the matter with it, in words with the remedy.
    pub reason: Option<String>,
    /// Whether the device has a carrier.
    pub link_up: bool,
    /// The device's MTU in bytes.
    pub mtu: Option<u32>,
    /// The device's MAC address.
    pub mac: Option<String>,
    /// The link's bit/s, if it is known.
    pub bandwidth: Option<u64>,
    /// Its share of the bytes that all members have sent, in percent.
    pub share_percent: f64,
    /// What came from the wire.
    pub from_wire: DirectionCounters,
    /// What was sent to the wire.
    pub to_wire: DirectionCounters,
    /// What LACP knows; absent in other modes.
    pub lacp: Option<LacpStatus>,
    /// The neighbour; absent while none was heard.
    pub lldp: Option<LldpStatus>,
    /// How often its frames had to leave by another.
    pub failovers: u64,
    /// The last time.
    pub last_failover: Option<Failover>,
}

/// The running part of a team, as the engine knows it; also that of an uplink that is one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TeamStatus {
    /// The team's name, or the device.
    pub name: String,
    /// The switch whose uplink it is.
    pub switch: Option<String>,
    /// Whether it carries frames.
    pub state: TeamState,
    /// Why not, or not all of it, in words with the remedy.
    pub reason: Option<String>,
    /// How often frames had to leave by another member.
    pub failovers: u64,
    /// The last time.
    pub last_failover: Option<Failover>,
    /// What came from the wire by all members, and what of it was dropped there and by the switch.
    pub from_wire: DirectionCounters,
    /// What was sent to the wire by all members, and what was dropped on its way.
    pub to_wire: DirectionCounters,
    /// Of what came from the wire, frames for the team itself: LACP, LLDP, answers to probes.
    pub control_frames: u64,
    /// How often conversations have moved to a member with less to do (`distribution = "dynamic"`).
    pub moved: u64,
    /// The members, in the order they are named.
    #[serde(rename = "member_status")]
    pub members: Vec<MemberStatus>,
}

/// A team in the API: what was asked for and what it does.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Team {
    /// The tag of its settings, for the head of an answer.
    #[serde(skip)]
    pub tag: String,
    /// Where each setting came from.
    #[schema(value_type = BTreeMap<String, Origin>)]
    pub origin: BTreeMap<&'static str, Origin>,
    /// What it does.
    #[serde(flatten)]
    pub running: TeamStatus,
    /// Its settings.
    #[serde(flatten)]
    pub config: TeamConfig,
}

/// The answer to a list of teams.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Teams {
    /// By name.
    pub teams: Vec<Team>,
}
