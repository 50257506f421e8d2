//! One port in words and tables.

use serde_json::Value;

use super::text::{Table, paragraph};
use crate::config::PORT_KEYS;

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
    if let Some(macs) = port["learned_macs"]
        .as_array()
        .filter(|macs| !macs.is_empty())
    {
        let macs: Vec<&str> = macs.iter().filter_map(Value::as_str).collect();
        text += &paragraph("learned", &macs.join(" "));
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
    let mut table = Table::new(&["SETTING", "VALUE", "FROM"]).shrinking(&[1]);
    for key in PORT_KEYS {
        let value = match &port[key.name] {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let origin = port["origin"][key.name]
            .as_str()
            .unwrap_or("-")
            .replace('_', " ");
        table.row(vec![key.name.to_owned(), value, origin]);
    }
    table.to_string()
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
