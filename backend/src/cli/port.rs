//! `tandem port …`.

use serde_json::Value;

use super::noun::{Noun, Verbs};
use super::show;
use super::text::{Table, count};
use crate::config::{PORT_KEYS, PortConfig};

pub(super) static PORT: Noun<PortConfig> = Noun {
    noun: "port",
    about: "A VM NIC's place on the switch",
    verbs: Verbs {
        list: "List all ports",
        show: "Show one port",
        add: "Add a port; it survives a restart of the daemon",
        set: "Change some settings of a port; they survive a restart of the daemon",
        reset: "Drop what was changed over the API: back to file and command line",
        remove: "Remove a port; one that tandemd was started with by --port comes back with it",
    },
    path: "/api/v1/ports",
    keys: PORT_KEYS,
    base: "file and command line say",
    list,
    show: show::port,
    added,
};

/// Where the VM, or the host, finds it.
fn added(port: &Value) -> String {
    match (port["tap"].as_str(), port["socket"].as_str()) {
        (Some(tap), _) => format!(": TAP {tap}"),
        (None, Some(socket)) => format!(": socket {socket}"),
        (None, None) => String::new(),
    }
}

fn list(answer: &Value) -> String {
    let ports = answer["ports"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if ports.is_empty() {
        return "no ports; add one with: tandem port add NAME\n".to_owned();
    }
    let mut table = Table::new(&[
        "PORT", "VM", "SWITCH", "STATE", "MAC", "VLAN", "FROM_VM", "TO_VM",
    ])
    .right(&[6, 7])
    .shrinking(&[0, 1, 2]);
    for port in ports {
        table.row(row(port));
    }
    table.to_string()
}

fn row(port: &Value) -> Vec<String> {
    let word = |key: &str| port[key].as_str().unwrap_or("-").to_owned();
    let frames = |direction: &str| count(port["counters"][direction]["frames"].as_u64());
    let mac = port["mac"]
        .as_str()
        .or_else(|| port["learned_macs"][0].as_str());
    let vlan = match (port["vlan"].as_u64(), port["trunk_vlans"].as_str()) {
        (Some(vlan), _) => vlan.to_string(),
        (None, Some(_)) => "trunk".to_owned(),
        (None, None) => "-".to_owned(),
    };
    vec![
        word("name"),
        word("vm"),
        word("switch"),
        word("state"),
        mac.unwrap_or("-").to_owned(),
        vlan,
        frames("from_vm"),
        frames("to_vm"),
    ]
}
