//! One port in words and tables.

use serde_json::Value;

use super::text::{Table, paragraph, setting_table};
use crate::config::PORT_KEYS;
use crate::config::check::NOT_A_TAPS;

/// Text of a port object of the API.
pub(super) fn port(port: &Value) -> String {
    let word = |key: &str| port[key].as_str().unwrap_or("-");
    let place = format!(
        "{}, VM {}, switch {}",
        word("name"),
        word("vm"),
        word("switch")
    );
    let state = match port["reason"].as_str() {
        Some(reason) => format!("{}: {reason}", word("state")),
        None => word("state").to_owned(),
    };
    let mut text = paragraph("port", &place) + &paragraph("state", &state);
    text += &session(&port["session"]);
    for (label, key) in [("learned", "learned_macs"), ("addresses", "addresses")] {
        let list = port[key].as_array().map_or(&[][..], Vec::as_slice);
        let words: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
        if !words.is_empty() {
            text += &paragraph(label, &words.join(" "));
        }
    }
    text + "\n" + &settings(port) + "\n" + &counters(&port["counters"]) + &queues(&port["queues"])
}

fn session(session: &Value) -> String {
    if session.is_null() {
        return String::new();
    }
    let number = |key: &str| session[key].as_u64().unwrap_or(0);
    let connected = match session["connected"].as_bool() {
        Some(true) => "a VMM is connected",
        _ => "no VMM is connected",
    };
    let mut words = format!("{connected}, {} connects so far", number("connects"));
    if number("refused_connections") > 0 {
        words += &format!(", {} more refused", number("refused_connections"));
    }
    if let Some(ring) = session["ring"].as_str() {
        words += &format!(
            ", {ring} rings, {} memory regions",
            number("memory_regions")
        );
    }
    let mut text = paragraph("session", &words);
    let features: Vec<&str> = session["features"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !features.is_empty() {
        text += &paragraph("features", &features.join(" "));
    }
    if let Some(error) = session["last_error"].as_str() {
        text += &paragraph("last error", error);
    }
    text
}

fn settings(port: &Value) -> String {
    let is_tap = port["tap"].is_string();
    let keys = PORT_KEYS.iter();
    setting_table(
        keys.filter(|key| !is_tap || !NOT_A_TAPS.contains(&key.name)),
        port,
    )
}

fn counters(counters: &Value) -> String {
    let mut table = Table::new(&["DIRECTION", "FRAMES", "BYTES", "DROPPED"]).right(&[1, 2, 3]);
    let mut reasons = String::new();
    for direction in ["from_vm", "to_vm"] {
        let counters = &counters[direction];
        let number = |key: &str| counters[key].as_u64().unwrap_or(0).to_string();
        let drops = counters["drops"].as_object();
        let total: u64 = drops
            .into_iter()
            .flatten()
            .filter_map(|(_, n)| n.as_u64())
            .sum();
        table.row(vec![
            direction.into(),
            number("frames"),
            number("bytes"),
            total.to_string(),
        ]);
        if total > 0 {
            let each = drops
                .into_iter()
                .flatten()
                .map(|(reason, n)| format!("{reason} {n}"));
            let each: Vec<String> = each.collect();
            reasons += &paragraph("dropped", &format!("{direction}: {}", each.join(", ")));
        }
    }
    table.to_string() + &reasons
}

fn queues(queues: &Value) -> String {
    let Some(queues) = queues.as_array().filter(|queues| !queues.is_empty()) else {
        return String::new();
    };
    let headings = [
        "PAIR", "STATE", "SIZE", "FROM_VM", "TO_VM", "KICKS", "CALLS",
    ];
    let mut table = Table::new(&headings).right(&[0, 2, 3, 4, 5, 6]);
    for queue in queues {
        let number = |value: &Value| value.as_u64().unwrap_or(0).to_string();
        let state = match (queue["running"].as_bool(), queue["enabled"].as_bool()) {
            (Some(true), Some(true)) => "running",
            (Some(true), _) => "disabled",
            _ => "stopped",
        };
        table.row(vec![
            number(&queue["pair"]),
            state.to_owned(),
            number(&queue["size"]),
            number(&queue["from_vm"]["frames"]),
            number(&queue["to_vm"]["frames"]),
            number(&queue["kicks"]),
            number(&queue["calls"]),
        ]);
    }
    format!("\n{table}")
}

#[cfg(test)]
mod tests {
    use super::port;
    use serde_json::json;

    /// A port as the API shows it, with traffic on it.
    fn busy() -> serde_json::Value {
        json!({
            "name": "web1", "vm": "web", "switch": "default", "tap": null, "mtu": 9000,
            "socket": "/run/tandem/web1.sock", "state": "up", "reason": null,
            "origin": {"mtu": "command_line", "socket": "default"},
            "learned_macs": ["52:54:00:00:00:01"], "addresses": ["10.0.0.1", "fd00::1"],
            "session": {"connected": true, "connects": 3, "refused_connections": 2,
                "features": ["MRG_RXBUF", "CSUM"], "ring": "packed", "memory_regions": 2,
                "last_error": "the VMM was killed"},
            "counters": {"from_vm": {"frames": 10, "bytes": 640, "drops": {"hairpin": 1, "storm_limit": 2}},
                "to_vm": {"frames": 20, "bytes": 1280, "drops": {}}},
            "queues": [{"pair": 0, "enabled": true, "running": true, "size": 256,
                "from_vm": {"frames": 10, "bytes": 640}, "to_vm": {"frames": 20, "bytes": 1280},
                "kicks": 5, "calls": 6}],
        })
    }

    #[test]
    fn a_busy_port_is_shown_whole() {
        let text = port(&busy());
        let squeezed: Vec<String> = text
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        for line in [
            "port web1, VM web, switch default",
            "state up",
            "session a VMM is connected, 3 connects so far, 2 more refused, packed rings,",
            "2 memory regions",
            "features MRG_RXBUF CSUM",
            "last error the VMM was killed",
            "learned 52:54:00:00:00:01",
            "addresses 10.0.0.1 fd00::1",
            "mtu 9000 command line",
            "from_vm 10 640 3",
            "to_vm 20 1280 0",
            "dropped from_vm: hairpin 1, storm_limit 2",
            "0 running 256 10 20 5 6",
        ] {
            assert!(
                squeezed.iter().any(|l| l == line),
                "no {line:?} in:\n{text}"
            );
        }
    }

    #[test]
    fn a_tap_is_shown_without_what_only_a_vm_has() {
        let mut tap = busy();
        (tap["tap"], tap["session"], tap["queues"]) = (json!("tandem0"), json!(null), json!([]));
        let text = port(&tap);
        assert!(text.contains("tandem0"));
        for word in ["socket", "session", "queue_pairs", "PAIR"] {
            assert!(!text.contains(word), "{word:?} in:\n{text}");
        }
    }

    #[test]
    fn an_object_of_another_version_does_no_harm() {
        assert!(port(&json!({})).contains("SETTING"));
        assert!(port(&json!(null)).contains("SETTING"));
    }
}
