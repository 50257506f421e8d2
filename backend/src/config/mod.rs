//! What the user asked for: ports and switches, each setting checked, with where it came from.
//!
//! The same keys are used in the file, in `--port`, in the API and as flags of `tandem`; the table
//! in `keys.rs` is their only list.

mod build;
pub(crate) mod check;
mod file;
mod keys;
mod layer;
mod team;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Serialize, Serializer};
use tandem_uplink::VlanSet;
use tandem_virtio_net::wire::ethernet::MacAddr;
use utoipa::ToSchema;

#[cfg(test)]
pub(crate) use build::build_over;
pub use build::{Known, add_overlay, build, build_one, build_port};
pub use file::File;
pub use keys::{Key, Kind, PORT_KEYS, SWITCH_KEYS, TEAM_KEYS};
pub use layer::{Configured, Layer, Overlay, Profiles, flag_value};
pub use team::{Driver, LacpTimer, Lldp, Member, Probe, TeamConfig, TeamMode, Uplink};

use crate::control::Refused;

/// The switch that exists without being configured.
pub const DEFAULT_SWITCH: &str = "default";

/// Where a setting came from. A later one in this list wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The profile that the port names.
    Profile,
    /// The configuration file.
    File,
    /// `--port`, or the flag of that name.
    CommandLine,
    /// The API, now or before a restart.
    Api,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::Profile => "profile",
            Self::File => "file",
            Self::Api => "api",
            Self::CommandLine => "command line",
        })
    }
}

/// Which side of a vhost-user socket is ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SocketRole {
    /// The VMM connects to us.
    #[default]
    Listen,
    /// We connect to the VMM.
    Connect,
}

/// All settings of one port. Every field was checked; [`PortConfig::new`] has the defaults.
///
/// Serializes to the configuration part of a port's JSON object.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PortConfig {
    /// Its name, unique on this daemon: 1 to 64 of `[A-Za-z0-9._-]`.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    pub name: String,
    /// The VM it belongs to; by default the VM has the port's name.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    pub vm: String,
    /// The switch it is on.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    pub switch: String,
    /// The profile that has the settings which the port does not have itself.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    pub profile: Option<String>,
    /// The vhost-user socket, an absolute path or relative to the run directory; absent:
    /// `NAME.sock`.
    #[schema(value_type = Option<String>, min_length = 1)]
    pub socket: Option<PathBuf>,
    /// Who listens on the socket.
    pub socket_role: SocketRole,
    /// Group the socket is given to.
    #[schema(min_length = 1)]
    pub socket_group: Option<String>,
    /// Permission bits of the socket.
    #[serde(serialize_with = "octal")]
    #[schema(value_type = String, pattern = "^0*[0-7]{1,3}$")]
    pub socket_permissions: u32,
    /// The TAP device that makes this the host's own port; then there is no socket.
    #[schema(min_length = 1, max_length = 15)]
    pub tap: Option<String>,
    /// The VM's MAC address; absent: learned.
    #[serde(serialize_with = "display")]
    #[schema(value_type = Option<String>, pattern = "^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$")]
    pub mac: Option<MacAddr>,
    /// Queue pairs offered, 1 to 32.
    #[schema(minimum = 1, maximum = 32)]
    pub queue_pairs: u16,
    /// Largest packet in bytes, without the Ethernet header.
    #[schema(minimum = 68, maximum = 65535)]
    pub mtu: u16,
    /// The pinned set of features offered to the VM.
    #[schema(minimum = 1, maximum = 1)]
    pub feature_level: u32,
    /// Whether the guest pairs this NIC with a VF.
    pub failover: bool,
    /// The VLAN of an access port, 1 to 4094.
    #[schema(minimum = 1, maximum = 4094)]
    pub vlan: Option<u16>,
    /// The VLANs of a trunk port.
    #[serde(serialize_with = "display")]
    #[schema(value_type = Option<String>)]
    pub trunk_vlans: Option<VlanSet>,
    /// The trunk's VLAN that goes untagged; in `trunk_vlans`.
    #[schema(minimum = 1, maximum = 4094)]
    pub native_vlan: Option<u16>,
    /// Broadcast, multicast and unknown unicast frames accepted each second; 0: no limit.
    #[schema(minimum = 0, maximum = 4294967295u32)]
    pub storm_limit: u32,
    /// The member of the switch's team by which the port's frames leave while it works; of no effect
    /// if it is none.
    #[schema(min_length = 1, max_length = 15)]
    pub uplink_member: Option<String>,
    /// Where the settings that are no defaults came from, by key.
    #[serde(skip)]
    pub origin: BTreeMap<&'static str, Origin>,
    /// An open socket the port uses instead of a path (`--fd`).
    #[serde(skip)]
    pub socket_fd: Option<Arc<OwnedFd>>,
}

impl PortConfig {
    /// A port with the defaults only.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            vm: name.to_owned(),
            switch: DEFAULT_SWITCH.to_owned(),
            profile: None,
            socket: None,
            socket_role: SocketRole::Listen,
            socket_group: None,
            socket_permissions: 0o660,
            tap: None,
            mac: None,
            queue_pairs: 1,
            mtu: 1500,
            feature_level: 1,
            failover: false,
            vlan: None,
            trunk_vlans: None,
            native_vlan: None,
            storm_limit: 10_000,
            uplink_member: None,
            origin: BTreeMap::new(),
            socket_fd: None,
        }
    }

    /// Whether they differ in nothing, or only in what the switch makes of the port's frames.
    pub(crate) fn differs_in_policy_only(&self, other: &Self) -> bool {
        let like_other = Self {
            // What it gives stands in the other keys.
            profile: other.profile.clone(),
            mac: other.mac,
            vlan: other.vlan,
            trunk_vlans: other.trunk_vlans.clone(),
            native_vlan: other.native_vlan,
            storm_limit: other.storm_limit,
            uplink_member: other.uplink_member.clone(),
            ..self.clone()
        };
        like_other.is_same(other)
    }

    /// The socket's path, absolute if `run_dir` is; `None` for a TAP and for `--fd`.
    pub fn socket_path(&self, run_dir: &Path) -> Option<PathBuf> {
        if self.tap.is_some() || self.socket_fd.is_some() {
            return None;
        }
        Some(match &self.socket {
            Some(path) => run_dir.join(path),
            None => run_dir.join(format!("{}.sock", self.name)),
        })
    }
}

/// All settings of one switch.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SwitchConfig {
    /// Seconds after which a silent learned address is forgotten (IEEE 802.1Q, 8.8.3).
    #[schema(minimum = 1, maximum = 32000)]
    pub ageing_seconds: u32,
    /// Addresses the switch remembers.
    #[schema(minimum = 64, maximum = 32768)]
    pub mac_limit: u32,
    /// The team, or the device as `DEVICE` or `DEVICE:DRIVER`, that leads to the wire; see
    /// [`SwitchConfig::uplink_among`].
    #[schema(min_length = 1, max_length = 64)]
    pub uplink: Option<String>,
    /// The VLANs that reach the wire; absent: all.
    #[serde(serialize_with = "display")]
    #[schema(value_type = Option<String>)]
    pub uplink_vlans: Option<VlanSet>,
    /// The VLAN whose frames are untagged on the wire; absent: untagged frames are those of the ports
    /// without a VLAN.
    #[schema(minimum = 1, maximum = 4094)]
    pub uplink_native_vlan: Option<u16>,
    /// Where the settings that are no defaults came from, by key.
    #[serde(skip)]
    pub origin: BTreeMap<&'static str, Origin>,
}

impl Default for SwitchConfig {
    fn default() -> Self {
        Self {
            ageing_seconds: 300,
            mac_limit: 16_384,
            uplink: None,
            uplink_vlans: None,
            uplink_native_vlan: None,
            origin: BTreeMap::new(),
        }
    }
}

/// Tells whether `name` can be a port's, a VM's or a switch's: `[A-Za-z0-9._-]{1,64}`, the first a
/// letter or a digit.
///
/// # Errors
/// What is wrong with it.
pub fn valid_name(name: &str) -> Result<(), Refused> {
    value::check_name(name).map_err(|bad| bad.refused(None))
}

/// All that the daemon is configured with.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The switches by name; `default` is always one.
    pub switches: BTreeMap<String, SwitchConfig>,
    /// The teams by name.
    pub teams: BTreeMap<String, TeamConfig>,
    /// The profiles by name.
    pub profiles: Profiles,
    /// The ports by name.
    pub ports: BTreeMap<String, PortConfig>,
    /// Ports set over the API that cannot be made any more, and why.
    pub set_aside: Vec<(PortConfig, Refused)>,
}

/// Something wrong in the configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{refused}", .place, if .place.is_empty() { "" } else { ": " })]
pub struct Problem {
    /// `FILE:LINE: [TABLE]` or the option; empty if it came over the API.
    pub place: String,
    /// What is wrong and what to do.
    pub refused: Refused,
}

impl Problem {
    /// The line in the file; 0 if it is not in a file.
    pub(crate) fn line(&self) -> usize {
        let words = self
            .place
            .split(": ")
            .next()
            .and_then(|place| place.rsplit_once(':'));
        words.and_then(|(_, line)| line.parse().ok()).unwrap_or(0)
    }
}

fn octal<S: Serializer>(bits: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{bits:04o}"))
}

fn display<T: fmt::Display, S: Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}
