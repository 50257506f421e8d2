//! Checks of settings against each other.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Known, PortConfig, SocketRole};

mod uplinks;

use crate::control::{Refused, RefusedKind};
pub(crate) use uplinks::{has_other_user, switch, team, team_among};

/// Bytes of a socket's path, without the final NUL (`sun_path` in unix(7)).
pub(crate) const SOCKET_PATH_MAX: usize = 107;
/// The API's socket in the run directory.
pub(crate) const API_SOCKET: &str = "api.sock";
/// The longest packet that fits a TAP's largest frame (`ETH_MAX_MTU` less the Ethernet header).
const TAP_MTU_MAX: u16 = 65_521;

/// Keys that mean nothing to a port with a TAP.
pub(crate) const NOT_A_TAPS: [&str; 7] = [
    "socket",
    "socket_role",
    "socket_group",
    "socket_permissions",
    "queue_pairs",
    "feature_level",
    "failover",
];

/// Keys that mean nothing to a port whose VMM makes the socket.
pub(crate) const NOT_A_CONNECTORS: [&str; 2] = ["socket_group", "socket_permissions"];

/// Checks one port by itself.
pub(crate) fn port(port: &PortConfig, run_dir: &Path) -> Vec<Refused> {
    let mut wrong = vlans(port);
    match &port.tap {
        Some(_) => wrong.extend(tap(port)),
        None => wrong.extend(socket(port, run_dir)),
    }
    wrong
}

fn invalid(key: &str, reason: impl Into<String>, remedy: impl Into<String>) -> Refused {
    Refused::new(RefusedKind::Invalid, reason, remedy).about(key)
}

fn vlans(port: &PortConfig) -> Vec<Refused> {
    let mut wrong = Vec::new();
    if port.vlan.is_some() && port.trunk_vlans.is_some() {
        let remedy = "keep vlan for an access port, trunk_vlans for a trunk";
        wrong.push(invalid(
            "vlan",
            "a port is not access and trunk at once",
            remedy,
        ));
    }
    match (port.native_vlan, &port.trunk_vlans) {
        (Some(_), None) => {
            let reason = "only a trunk has a native VLAN";
            wrong.push(invalid(
                "native_vlan",
                reason,
                "add trunk_vlans, or use vlan instead",
            ));
        }
        (Some(native), Some(trunk)) if !trunk.contains(native) => {
            let reason = format!("{native} is not in trunk_vlans {trunk}");
            wrong.push(invalid(
                "native_vlan",
                reason,
                "add it there, or choose one of them",
            ));
        }
        _ => {}
    }
    wrong
}

fn tap(port: &PortConfig) -> Vec<Refused> {
    let given = NOT_A_TAPS
        .iter()
        .filter(|key| port.origin.contains_key(**key));
    let mut wrong: Vec<Refused> = given
        .map(|key| {
            invalid(
                key,
                "a port with a TAP has no VMM",
                "remove it, or remove tap",
            )
        })
        .collect();
    if port.mtu > TAP_MTU_MAX {
        let reason = format!("{} does not fit a TAP", port.mtu);
        wrong.push(invalid(
            "mtu",
            reason,
            format!("give at most {TAP_MTU_MAX}"),
        ));
    }
    wrong
}

fn socket(port: &PortConfig, run_dir: &Path) -> Vec<Refused> {
    let mut wrong = Vec::new();
    if port.socket_role == SocketRole::Connect {
        wrong.extend(
            NOT_A_CONNECTORS
                .iter()
                .filter(|key| port.origin.contains_key(**key))
                .map(|key| {
                    invalid(
                        key,
                        "the VMM makes the socket it listens on",
                        "remove it, or set it there",
                    )
                }),
        );
    }
    let Some(path) = port.socket_path(run_dir) else {
        return wrong;
    };
    let bytes = path.as_os_str().as_bytes().len();
    if bytes > SOCKET_PATH_MAX {
        let reason = format!("{} has {bytes} bytes", path.display());
        let remedy = format!(
            "a socket's path has at most {SOCKET_PATH_MAX}: use a shorter path, name or --run-dir"
        );
        wrong.push(invalid("socket", reason, remedy));
    }
    if path == run_dir.join(API_SOCKET) {
        let reason = format!("{} is the API's socket", path.display());
        wrong.push(invalid(
            "socket",
            reason,
            "choose another socket or port name",
        ));
    }
    wrong
}

/// Whether a table of the configuration file is there.
fn is_there<T>(tables: &BTreeMap<String, T>, key: &str, name: &str) -> Result<(), Refused> {
    if tables.contains_key(name) {
        return Ok(());
    }
    Err(is_there_to_choose(tables, key, key, name))
}

/// That a table of this kind, which `key` names, is not there, and which are.
fn is_there_to_choose<T>(
    tables: &BTreeMap<String, T>,
    key: &str,
    kind: &str,
    name: &str,
) -> Refused {
    let names: Vec<&str> = tables.keys().map(String::as_str).collect();
    let choice = match names.join(", ") {
        names if names.is_empty() => String::new(),
        names => format!(", or choose of: {names}"),
    };
    let reason = format!("there is no {kind} {name}");
    let remedy = format!("add [{kind}.{name}] to the configuration file{choice}");
    invalid(key, reason, remedy)
}

/// Checks one port against the other ports, the switches and the profiles.
pub(crate) fn among(port: &PortConfig, known: Known<'_>) -> Vec<Refused> {
    let run_dir = known.run_dir;
    let mut wrong = Vec::new();
    wrong.extend(is_there(known.switches, "switch", &port.switch).err());
    if let Some(profile) = &port.profile {
        wrong.extend(is_there(known.profiles, "profile", profile).err());
    }
    wrong.extend(uplinks::tap(port, known));
    let others = known.ports.values();
    for other in others.filter(|other| other.name != port.name) {
        let taken = |key: &str, what: String, remedy: &str| {
            let reason = format!("{what} is port {}'s already", other.name);
            Refused::new(RefusedKind::Conflict, reason, remedy).about(key)
        };
        if let Some(mac) = port
            .mac
            .filter(|_| port.mac == other.mac && port.switch == other.switch)
        {
            wrong.push(taken(
                "mac",
                mac.to_string(),
                "give each VM its own MAC address",
            ));
        }
        if let Some(tap) = port.tap.as_ref().filter(|_| port.tap == other.tap) {
            wrong.push(taken("tap", tap.clone(), "choose another device"));
        }
        if let Some(path) = port.socket_path(run_dir)
            && other.socket_path(run_dir).as_ref() == Some(&path)
        {
            wrong.push(taken(
                "socket",
                path.display().to_string(),
                "choose another path",
            ));
        }
    }
    wrong
}
