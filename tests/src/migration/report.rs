//! What a migration cost: one line, and which requests went where.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::prober::{Echo, INTERVAL, Log, Probe};
use super::relay::Message;
use super::vm::Moved;
use super::watch::{Kind, Sighting};
use crate::frontend::wire::request;

/// An answer that takes longer is late: nothing else is when the VM does not move.
pub const LATE: Duration = Duration::from_millis(20);

/// The line: lost requests, the longest time without an answer, and how long the VM stood still.
pub fn summary(log: &Log, moved: &Moved) -> String {
    let (gap, stop) = (log.longest_gap().length(), moved.stop_time());
    format!(
        "migration: {} lost, longest gap {} ms, VMM stopped {} ms \
         (QEMU's downtime {} of {} ms; {} of {} requests answered twice, {} out of order)",
        log.lost().count(),
        gap.as_millis(),
        stop.as_millis(),
        moved.downtime.as_millis(),
        moved.total.as_millis(),
        log.duplicates(),
        log.probes.len(),
        log.reordered(),
    )
}

/// The daemons' part of a downtime by what both say of it, in milliseconds: how long the VMMs have waited for their
/// answers, but for the time in which their threads waited for a CPU.
pub fn part(source: &Value, destination: &Value) -> f64 {
    let of = |status: &Value| {
        let cost = &status["ports"][0];
        let number = |key: &str| cost[key].as_f64().unwrap_or(f64::NAN);
        number("waited_ms") - number("starved_ms")
    };
    of(source) + of(destination)
}

/// The line: what the daemons say that it cost, source and destination.
pub fn cost(source: &Value, destination: &Value) -> String {
    let of = |status: &Value| {
        let cost = &status["ports"][0];
        let number = |key: &str| cost[key].as_f64().unwrap_or(f64::NAN);
        format!(
            "waited {} ms, of that for a CPU {}",
            number("waited_ms"),
            number("starved_ms")
        )
    };
    let counts = ["followed", "expired", "overflowed"]
        .map(|key| format!("{} {key}", source["ports"][0][key]));
    let timeline = source["timeline"].as_array().into_iter().flatten();
    let moments: Vec<String> = timeline
        .map(|moment| {
            format!(
                "{} {}",
                moment["what"].as_str().unwrap_or(""),
                moment["at_ms"]
            )
        })
        .collect();
    format!(
        "source: {}; {}; destination: {}; {}",
        counts.join(", "),
        of(source),
        of(destination),
        moments.join(", ")
    )
}

/// What a migration cost, a name and a value each; `hosts` have the name and the daemon's view, the source first.
pub fn table(log: &Log, moved: &Moved, hosts: [(&str, &Value); 2]) -> Vec<(String, String)> {
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    let took = |probe: &Probe| probe.answered().map(|at| at.saturating_sub(probe.sent));
    let late = log
        .probes
        .iter()
        .filter_map(took)
        .filter(|took| *took > LATE);
    let (source, lost) = (&hosts[0].1["ports"][0], log.lost().count());
    let mut lines = vec![
        (
            "pings sent",
            format!("{}, one every {}", log.probes.len(), ms(INTERVAL)),
        ),
        ("  lost", lost.to_string()),
        ("  answered twice", log.duplicates().to_string()),
        ("  out of order", log.reordered().to_string()),
        (
            "  late",
            format!("{}, the slowest by {}", late.count(), ms(log.slowest())),
        ),
        ("longest gap", ms(log.longest_gap().length())),
        (
            "QEMU's downtime",
            format!("{} ms", moved.downtime.as_millis()),
        ),
        ("frames that followed", source["followed"].to_string()),
        (
            "frames held in vain",
            format!(
                "{} for too long, {} too many",
                source["expired"], source["overflowed"]
            ),
        ),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect::<Vec<_>>();
    for (name, status) in hosts {
        let cost = |key: &str| status["ports"][0][key].as_f64().unwrap_or(f64::NAN);
        let (waited, starved) = (cost("waited_ms"), cost("starved_ms"));
        let value = format!(
            "QEMU waited {waited:.2} ms (waited_ms), {starved:.2} of it for a CPU (starved_ms)"
        );
        lines.push((format!("tandemd's part, {name}"), value));
    }
    lines
}

/// Milliseconds from `zero` to `at`, with a sign.
pub fn offset(at: Duration, zero: Duration) -> f64 {
    (at.as_secs_f64() - zero.as_secs_f64()) * 1e3
}

/// How far a request came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Way {
    /// The hosts whose cable it was seen on.
    to: Vec<usize>,
    /// The hosts whose cable the answer was seen on.
    from: Vec<usize>,
}

impl Way {
    fn text(&self) -> String {
        match (&self.to[..], &self.from[..]) {
            ([], []) => "on no cable".into(),
            (to, []) => format!("went to {}, not answered", hosts(to)),
            ([], from) => format!("on no cable, answered from {}", hosts(from)),
            (to, from) => format!("went to {}, answered from {}", hosts(to), hosts(from)),
        }
    }
}

fn hosts(list: &[usize]) -> String {
    let names = list.iter().map(|host| ["A", "B"][*host]);
    names.collect::<Vec<_>>().join(" and ")
}

/// Requests that were lost, or late, in runs of the same fate; times are milliseconds from `zero`.
pub fn fates(log: &Log, seen: &[Sighting], zero: Duration) -> Vec<String> {
    let ways = ways(log.id, seen);
    let mut runs: Vec<(String, Vec<&Probe>)> = Vec::new();
    for probe in &log.probes {
        let took = probe.answered().map(|at| at.saturating_sub(probe.sent));
        let fate = match took {
            None => "lost",
            Some(took) if took > LATE => "late",
            Some(_) => continue,
        };
        let way = ways.get(&probe.number).cloned().unwrap_or_default();
        let what = format!("{fate}: {}", way.text());
        match runs.last_mut() {
            Some((same, run)) if *same == what => run.push(probe),
            _ => runs.push((what, vec![probe])),
        }
    }
    runs.iter()
        .map(|(what, run)| {
            let (first, last) = (run[0].sent, run[run.len() - 1].sent);
            let took = |probe: &&Probe| Some(probe.answered()?.saturating_sub(probe.sent));
            let slowest = run.iter().filter_map(took).max().unwrap_or_default();
            format!(
                "{} {what}; sent {:.1} to {:.1} ms, answered in {} ms at most",
                run.len(),
                offset(first, zero),
                offset(last, zero),
                slowest.as_millis()
            )
        })
        .collect()
}

fn ways(id: u16, seen: &[Sighting]) -> BTreeMap<u32, Way> {
    let mut ways: BTreeMap<u32, Way> = BTreeMap::new();
    for sighting in seen {
        let Kind::Echo(Echo {
            id: of,
            number,
            reply,
        }) = sighting.kind
        else {
            continue;
        };
        if of != id || reply != sighting.from_vm {
            continue;
        }
        let way = ways.entry(number).or_default();
        let list = if reply { &mut way.from } else { &mut way.to };
        if !list.contains(&sighting.host) {
            list.push(sighting.host);
        }
    }
    ways
}

/// When frames of the VM came from each host: the last from one, the first from the other, what
/// announced it. Times are milliseconds from `zero`.
pub fn sightings(seen: &[Sighting], zero: Duration) -> Vec<String> {
    let mut lines = Vec::new();
    for host in 0..2 {
        let name = hosts(&[host]);
        let mine = || seen.iter().filter(|s| s.from_vm && s.host == host);
        let unicast = || mine().filter(|s| matches!(s.kind, Kind::Unicast | Kind::Echo(_)));
        if let (Some(first), Some(last)) = (unicast().next(), unicast().next_back()) {
            let (first, last) = (offset(first.at, zero), offset(last.at, zero));
            lines.push(format!(
                "frames of the VM came from {name} {first:.1} to {last:.1} ms"
            ));
        }
        let said: Vec<String> = mine()
            .filter(|s| s.kind == Kind::Announcement)
            .map(|s| format!("{:.1}", offset(s.at, zero)))
            .collect();
        if !said.is_empty() {
            lines.push(format!(
                "announcements on the cable of {name} at {} ms",
                said.join(", ")
            ));
        }
    }
    lines
}

/// What a VMM said to its back-end in a span, in milliseconds from `zero`: first and last of each.
pub fn messages(all: Vec<Message>, zero: Duration, span: [Duration; 2]) -> Vec<String> {
    let mut spans: Vec<((u32, bool), Duration, Duration, usize)> = Vec::new();
    for message in all {
        if message.at < span[0] || message.at > span[1] {
            continue;
        }
        let what = (message.request, message.reply);
        match spans.iter_mut().find(|(same, ..)| *same == what) {
            Some((_, _, last, count)) => (*last, *count) = (message.at, *count + 1),
            None => spans.push((what, message.at, message.at, 1)),
        }
    }
    spans
        .iter()
        .map(|((request, reply), first, last, count)| {
            let (name, kind) = (name(*request), if *reply { " answered" } else { "" });
            let (first, last) = (offset(*first, zero), offset(*last, zero));
            format!("{count} {name}{kind} {first:.1} to {last:.1} ms")
        })
        .collect()
}

fn name(request: u32) -> String {
    let known = match request {
        request::GET_FEATURES => "GET_FEATURES",
        request::SET_FEATURES => "SET_FEATURES",
        request::SET_OWNER => "SET_OWNER",
        request::SET_MEM_TABLE => "SET_MEM_TABLE",
        request::SET_LOG_BASE => "SET_LOG_BASE",
        request::SET_VRING_NUM => "SET_VRING_NUM",
        request::SET_VRING_ADDR => "SET_VRING_ADDR",
        request::SET_VRING_BASE => "SET_VRING_BASE",
        request::GET_VRING_BASE => "GET_VRING_BASE",
        request::SET_VRING_KICK => "SET_VRING_KICK",
        request::SET_VRING_CALL => "SET_VRING_CALL",
        request::SET_VRING_ENABLE => "SET_VRING_ENABLE",
        request::ADD_MEM_REG => "ADD_MEM_REG",
        request::SET_DEVICE_STATE_FD => "SET_DEVICE_STATE_FD",
        request::CHECK_DEVICE_STATE => "CHECK_DEVICE_STATE",
        request::GET_PROTOCOL_FEATURES => "GET_PROTOCOL_FEATURES",
        request::SET_PROTOCOL_FEATURES => "SET_PROTOCOL_FEATURES",
        request::GET_QUEUE_NUM => "GET_QUEUE_NUM",
        request::SET_VRING_ERR => "SET_VRING_ERR",
        request::GET_MAX_MEM_SLOTS => "GET_MAX_MEM_SLOTS",
        other => return format!("request {other}"),
    };
    known.into()
}
