//! The tables of keys. They drive the file, `--port`, the API and the flags of `tandem port add`.

use serde_json::Value;
use tandem_uplink::{VlanError, VlanSet};

mod team;

use super::value::{Bad, flag, listed, name, number, octal, text, vlan};
use super::{PortConfig, SocketRole, SwitchConfig};

pub use team::TEAM_KEYS;
pub(super) use team::member;

/// What a value looks like where everything is text (`--port`, flags).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text as it is.
    Text,
    /// A whole number.
    Number,
    /// `true` or `false`; alone, the key means `true`.
    Flag,
    /// A list: joined with `+` inside `--port`, with `,` elsewhere.
    List,
}

/// One setting of a `T`.
#[derive(Debug)]
pub struct Key<T> {
    /// Its name in the file, in `--port` and in JSON; a flag has hyphens instead.
    pub name: &'static str,
    /// What its value looks like as text.
    pub kind: Kind,
    /// A word for the value in help texts.
    pub value: &'static str,
    /// What it is, in one line.
    pub help: &'static str,
    /// Checks the value and stores it.
    pub(super) set: fn(&mut T, &Value) -> Result<(), Bad>,
}

/// The settings of a port, in the order they are shown.
pub static PORT_KEYS: &[Key<PortConfig>] = &[
    Key {
        name: "vm",
        kind: Kind::Text,
        value: "NAME",
        help: "VM whose port it is (default: the port's name)",
        set: |port, value| put(&mut port.vm, name(value)),
    },
    Key {
        name: "switch",
        kind: Kind::Text,
        value: "NAME",
        help: "switch it is on (default: default)",
        set: |port, value| put(&mut port.switch, name(value)),
    },
    Key {
        name: "profile",
        kind: Kind::Text,
        value: "NAME",
        help: "profile of the configuration file: settings that the port does not have itself",
        set: |port, value| put(&mut port.profile, name(value).map(Some)),
    },
    Key {
        name: "socket",
        kind: Kind::Text,
        value: "PATH",
        help: "vhost-user socket, relative to the run directory (default: NAME.sock)",
        set: |port, value| put(&mut port.socket, path(value).map(|path| Some(path.into()))),
    },
    Key {
        name: "socket_role",
        kind: Kind::Text,
        value: "ROLE",
        help: "listen: the VMM connects; connect: the VMM listens (default: listen)",
        set: |port, value| put(&mut port.socket_role, role(value)),
    },
    Key {
        name: "socket_group",
        kind: Kind::Text,
        value: "GROUP",
        help: "group of the socket, such as kvm",
        set: |port, value| put(&mut port.socket_group, group(value).map(Some)),
    },
    Key {
        name: "socket_permissions",
        kind: Kind::Text,
        value: "OCTAL",
        help: "permissions of the socket (default: 0660)",
        set: |port, value| put(&mut port.socket_permissions, octal(value)),
    },
    Key {
        name: "tap",
        kind: Kind::Text,
        value: "DEVICE",
        help: "TAP device: the port is the host itself and has no socket",
        set: |port, value| put(&mut port.tap, device(value, "tandem0").map(Some)),
    },
    Key {
        name: "mac",
        kind: Kind::Text,
        value: "MAC",
        help: "MAC address of the VM (default: learned)",
        set: |port, value| put(&mut port.mac, mac(value).map(Some)),
    },
    Key {
        name: "queue_pairs",
        kind: Kind::Number,
        value: "N",
        help: "queue pairs, 1 to 32 (default: 1)",
        set: |port, value| {
            put(
                &mut port.queue_pairs,
                number(value, 1..=32).map(|n| n as u16),
            )
        },
    },
    Key {
        name: "mtu",
        kind: Kind::Number,
        value: "BYTES",
        help: "largest packet, 68 to 65535 (default: 1500)",
        set: |port, value| put(&mut port.mtu, number(value, 68..=65_535).map(|n| n as u16)),
    },
    Key {
        name: "feature_level",
        kind: Kind::Number,
        value: "LEVEL",
        help: "pinned set of features; this version knows level 1 (default: 1)",
        set: |port, value| {
            put(
                &mut port.feature_level,
                number(value, 1..=1).map(|n| n as u32),
            )
        },
    },
    Key {
        name: "failover",
        kind: Kind::Flag,
        value: "true|false",
        help: "whether the guest pairs this NIC with a VF (default: false)",
        set: |port, value| put(&mut port.failover, flag(value)),
    },
    Key {
        name: "vlan",
        kind: Kind::Number,
        value: "VLAN",
        help: "VLAN of an access port, 1 to 4094 (default: untagged frames only)",
        set: |port, value| put(&mut port.vlan, vlan(value).map(Some)),
    },
    Key {
        name: "trunk_vlans",
        kind: Kind::List,
        value: "VLANS",
        help: "VLANs of a trunk port, such as 10,20-29",
        set: |port, value| put(&mut port.trunk_vlans, trunk(value).map(Some)),
    },
    Key {
        name: "native_vlan",
        kind: Kind::Number,
        value: "VLAN",
        help: "VLAN of a trunk port that goes untagged; one of trunk_vlans",
        set: |port, value| put(&mut port.native_vlan, vlan(value).map(Some)),
    },
    Key {
        name: "storm_limit",
        kind: Kind::Number,
        value: "FRAMES",
        help: "flooded frames accepted each second, 0 for no limit (default: 10000)",
        set: |port, value| {
            put(
                &mut port.storm_limit,
                number(value, 0..=u32::MAX.into()).map(|n| n as u32),
            )
        },
    },
    Key {
        name: "uplink_member",
        kind: Kind::Text,
        value: "DEVICE",
        help: "member of the switch's team by which its frames leave while that works",
        set: |port, value| put(&mut port.uplink_member, device(value, "eth0").map(Some)),
    },
];

/// Keys that no two ports share, and so no profile has.
pub(super) const OWN_KEYS: [&str; 5] = ["vm", "profile", "socket", "tap", "mac"];

/// The settings of a switch.
pub static SWITCH_KEYS: &[Key<SwitchConfig>] = &[
    Key {
        name: "ageing_seconds",
        kind: Kind::Number,
        value: "SECONDS",
        help: "time until a silent address is forgotten, 1 to 32000 (default: 300)",
        set: |switch, value| {
            put(
                &mut switch.ageing_seconds,
                number(value, 1..=32_000).map(|n| n as u32),
            )
        },
    },
    Key {
        name: "mac_limit",
        kind: Kind::Number,
        value: "N",
        help: "addresses it remembers, 64 to 32768 (default: 16384)",
        set: |switch, value| {
            put(
                &mut switch.mac_limit,
                number(value, 64..=32_768).map(|n| n as u32),
            )
        },
    },
    Key {
        name: "uplink",
        kind: Kind::Text,
        value: "UPLINK",
        help: "team, or a device as DEVICE or DEVICE:DRIVER, that leads to the wire (default: none)",
        set: |switch, value| put(&mut switch.uplink, team::uplink(value).map(Some)),
    },
    Key {
        name: "uplink_vlans",
        kind: Kind::List,
        value: "VLANS",
        help: "VLANs that reach the wire, such as 10,20-29 (default: all)",
        set: |switch, value| put(&mut switch.uplink_vlans, trunk(value).map(Some)),
    },
    Key {
        name: "uplink_native_vlan",
        kind: Kind::Number,
        value: "VLAN",
        help: "VLAN that is untagged on the wire (default: ports without a VLAN are)",
        set: |switch, value| put(&mut switch.uplink_native_vlan, vlan(value).map(Some)),
    },
];

/// Finds a key by its name.
///
/// # Errors
/// The reason and the nearest known key, or all of them.
pub(super) fn find<T>(keys: &'static [Key<T>], name: &str) -> Result<&'static Key<T>, Bad> {
    keys.iter().find(|key| key.name == name).ok_or_else(|| {
        let known: Vec<&str> = keys.iter().map(|key| key.name).collect();
        Bad::new("there is no such key", nearest(name, &known))
    })
}

/// A remedy for a misspelt word: the nearest known one, or all of them.
pub(super) fn nearest(word: &str, known: &[&str]) -> String {
    let word = word.to_ascii_lowercase().replace('-', "_");
    let distance = |other: &&str| strsim::damerau_levenshtein(&word, other);
    match known.iter().map(|other| (distance(other), other)).min() {
        Some((distance, other)) if distance <= 1 + other.len() / 4 => {
            format!("did you mean {other}?")
        }
        _ => format!("known: {}", known.join(", ")),
    }
}

fn put<T>(setting: &mut T, value: Result<T, Bad>) -> Result<(), Bad> {
    *setting = value?;
    Ok(())
}

fn path(value: &Value) -> Result<&str, Bad> {
    match text(value)? {
        path if path.contains('\0') => Err(Bad::new("a path has no NUL byte", "remove it")),
        path if path.ends_with('/') => Err(Bad::new(
            format!("{path:?} is a directory"),
            "name the socket in it",
        )),
        path => Ok(path),
    }
}

fn role(value: &Value) -> Result<SocketRole, Bad> {
    match text(value)? {
        "listen" => Ok(SocketRole::Listen),
        "connect" => Ok(SocketRole::Connect),
        other => Err(Bad::new(
            format!("{other:?} is no role"),
            "say listen (the VMM connects) or connect (the VMM listens)",
        )),
    }
}

fn group(value: &Value) -> Result<String, Bad> {
    match text(value)? {
        group
            if group
                .chars()
                .any(|c| c == ':' || c.is_whitespace() || c.is_control()) =>
        {
            Err(Bad::new(
                format!("{group:?} is no group name"),
                "name one group of this host",
            ))
        }
        group => Ok(group.to_owned()),
    }
}

/// A netdev's name as Linux takes it (`dev_valid_name` in net/core/dev.c), and no `%`, which it
/// would replace by a number.
fn device(value: &Value, example: &str) -> Result<String, Bad> {
    let device = text(value)?;
    let odd = |c: char| matches!(c, '/' | ':' | '%') || !c.is_ascii_graphic();
    if device.len() > 15 {
        let reason = format!("{device:?} has {} bytes", device.len());
        return Err(Bad::new(reason, "a device's name has at most 15"));
    }
    if matches!(device, "." | "..") || device.chars().any(odd) {
        let remedy = format!("use letters, digits, hyphens, such as {example}");
        return Err(Bad::new(
            format!("{device:?} cannot be a device's name"),
            remedy,
        ));
    }
    Ok(device.to_owned())
}

fn mac(value: &Value) -> Result<tandem_virtio_net::wire::ethernet::MacAddr, Bad> {
    let text = text(value)?;
    let example = "write one station's address, such as 52:54:00:12:34:56";
    let mac: tandem_virtio_net::wire::ethernet::MacAddr = text
        .parse()
        .map_err(|_| Bad::new(format!("{text:?} is not a MAC address"), example))?;
    if mac.is_multicast() {
        return Err(Bad::new(format!("{mac} is a group address"), example));
    }
    if !mac.is_unicast() {
        return Err(Bad::new(format!("{mac} is no station's address"), example));
    }
    Ok(mac)
}

fn trunk(value: &Value) -> Result<VlanSet, Bad> {
    let remedy = "write VLANs and ranges from 1 to 4094, such as \"10,20-29\"";
    listed(value, remedy)?.parse().map_err(|e: VlanError| {
        // The switch says what to do behind a semicolon; here it is said for all.
        let words = e.to_string();
        let (reason, _) = words.split_once(';').unwrap_or((&words, ""));
        Bad::new(reason, remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TeamConfig;

    #[test]
    fn every_key_is_a_field_of_the_json_object_and_the_other_way_round() {
        let port = serde_json::to_value(PortConfig::new("web1")).unwrap();
        let mut fields: Vec<&str> = port
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let mut keys: Vec<&str> = PORT_KEYS.iter().map(|key| key.name).collect();
        keys.push("name");
        fields.sort_unstable();
        keys.sort_unstable();
        assert_eq!(keys, fields);
        let fields = |value: Value| value.as_object().unwrap().keys().cloned().collect();
        let sorted = |mut names: Vec<String>| {
            names.sort_unstable();
            names
        };
        fn names<T>(keys: &[Key<T>]) -> Vec<String> {
            keys.iter().map(|key| key.name.to_owned()).collect()
        }
        let switch = serde_json::to_value(SwitchConfig::default()).unwrap();
        assert_eq!(sorted(names(SWITCH_KEYS)), sorted(fields(switch)));
        let team = serde_json::to_value(TeamConfig::default()).unwrap();
        assert_eq!(sorted(names(TEAM_KEYS)), sorted(fields(team)));
    }

    #[test]
    fn help_names_the_defaults() {
        fn check<T>(keys: &[Key<T>], defaults: &impl serde::Serialize) {
            let defaults = serde_json::to_value(defaults).unwrap();
            for key in keys {
                let default = match &defaults[key.name] {
                    Value::Null | Value::Array(_) => continue,
                    Value::String(text) if key.name == "vm" => {
                        assert_eq!(text, "NAME");
                        continue;
                    }
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                let expected = format!("(default: {default})");
                assert!(key.help.ends_with(&expected), "{}: {}", key.name, key.help);
            }
        }
        check(PORT_KEYS, &PortConfig::new("NAME"));
        check(SWITCH_KEYS, &SwitchConfig::default());
        check(TEAM_KEYS, &TeamConfig::default());
    }

    /// The rows of docs/configuration.md: each key with the default that the help names.
    #[test]
    fn every_key_is_in_the_documentation() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let text = std::fs::read_to_string(path).unwrap();
        let port = PORT_KEYS.iter().map(|key| (key.name, key.help));
        let switch = SWITCH_KEYS.iter().map(|key| (key.name, key.help));
        let team = TEAM_KEYS.iter().map(|key| (key.name, key.help));
        for (name, help) in port.chain(switch).chain(team) {
            let row = text
                .lines()
                .find(|line| line.starts_with(&format!("| `{name}` |")));
            let row = row.unwrap_or_else(|| panic!("no row for {name}"));
            // Rather than a value, this one has a meaning.
            let default = help.split("(default: ").nth(1).filter(|_| name != "vlan");
            let default = default.map_or("", |default| default.trim_end_matches(')'));
            assert!(row.contains(default), "{name}: no {default:?} in: {row}");
        }
    }

    #[test]
    fn a_misspelt_word_gets_the_nearest() {
        assert_eq!(
            nearest("queue-pairs", &["mtu", "queue_pairs"]),
            "did you mean queue_pairs?"
        );
        assert_eq!(nearest("mut", &["mtu", "mac"]), "did you mean mtu?");
        assert_eq!(nearest("bandwidth", &["mtu", "mac"]), "known: mtu, mac");
    }
}
