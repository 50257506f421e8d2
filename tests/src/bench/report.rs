//! The results: tables for people, JSON for programs.

use serde_json::{Map, Value, json};

use super::cell::Cell;
use super::idle::Idle;
use super::latency::Latency;
use super::logged::Logged;
use super::measure::{Effort, Measured, Outcome};
use super::stats::Samples;
use super::switch::Kind;
use super::uplink;
use super::verdict::{Verdict, judge};

/// Everything a run found out.
#[derive(Debug, Default)]
pub struct Report {
    /// Rates.
    pub outcomes: Vec<Outcome>,
    /// Two threads that wake each other, there and back: microseconds.
    pub wakes: Samples,
    /// With a dirty log, and without.
    pub logged: Vec<Logged>,
    /// To and from the wire.
    pub uplink: Vec<uplink::Outcome>,
    /// Times there and back.
    pub latency: Vec<(Kind, Latency)>,
    /// Cost of idleness.
    pub idle: Vec<Idle>,
}

/// The first line of a cell table.
pub fn heading(kinds: &[Kind]) -> String {
    let mut line = format!("{:20}", "cell");
    for kind in kinds {
        line += &format!(" {:>21}", format!("{} Mpps", kind.name()));
    }
    for peer in &kinds[1..] {
        line += &format!(" {:>7}", format!("/ {}", peer.name()));
    }
    for kind in kinds {
        line += &format!(" {:>9}", format!("{} ns", kind.name()));
    }
    line + &format!(" {:>7}", "others")
}

/// One line of it: medians, in brackets smallest and largest; ratios of the medians; the CPU time
/// of a frame, in which others hardly show; what they used of all CPUs in the worst turn.
pub fn line(outcome: &Outcome, kinds: &[Kind]) -> String {
    let mut line = format!("{:20}", outcome.cell.name);
    for kind in kinds {
        let rate = outcome.of(*kind).map_or("-".to_string(), rate);
        line += &format!(" {rate:>21}");
    }
    for peer in &kinds[1..] {
        let ratio = outcome.median(Kind::Tandem).zip(outcome.median(*peer));
        let ratio = ratio.map_or("-".to_string(), |(ours, other)| {
            format!("{:.2}", ours / other)
        });
        line += &format!(" {ratio:>7}");
    }
    for kind in kinds {
        let cost = outcome.of(*kind).map_or(f64::NAN, Measured::nanoseconds);
        line += &format!(" {cost:>9.0}");
    }
    let others = outcome.results.iter();
    let others = others.fold(0.0_f64, |most, (_, m)| most.max(m.others.quantile(1.0)));
    line + &format!(" {:>6.0}%", 100.0 * others)
}

fn rate(measured: &Measured) -> String {
    let rates = &measured.delivered;
    format!(
        "{:.2} ({:.2}..{:.2})",
        rates.median(),
        rates.quantile(0.0),
        rates.quantile(1.0)
    )
}

impl Report {
    /// What is below the cells: latency, idleness, verdicts.
    pub fn rest(&self) -> String {
        let mut text: String = self.logged.iter().map(Logged::line).collect();
        if !self.wakes.0.is_empty() {
            text += &format!(
                "two threads that wake each other: median {:.0} us, p99 {:.0} us\n",
                self.wakes.median(),
                self.wakes.quantile(0.99)
            );
        }
        for (kind, times) in &self.latency {
            text += &format!(
                "there and back, {:7} idle: median {:.0} us, p99 {:.0} us; loaded: median {:.0} us, p99 {:.0} us\n",
                kind.name(),
                times.idle.median(),
                times.idle.quantile(0.99),
                times.loaded.median(),
                times.loaded.quantile(0.99)
            );
        }
        for idle in &self.idle {
            let Idle { kind, ports, cpu } = idle;
            text += &format!(
                "idle, {:7} {ports:3} ports: {:.1} % of a CPU\n",
                kind.name(),
                100.0 * cpu
            );
        }
        for verdict in self.verdicts() {
            text += &format!(
                "{} {:45} {:9.2}, wanted {} {}\n",
                if verdict.met() { "ok    " } else { "MISSED" },
                verdict.what,
                verdict.value,
                if verdict.at_most {
                    "at most"
                } else {
                    "at least"
                },
                verdict.wanted
            );
        }
        text
    }

    fn verdicts(&self) -> Vec<Verdict> {
        let mut verdicts = judge(&self.outcomes, &self.latency);
        verdicts.extend(self.logged.iter().map(Logged::verdict));
        verdicts.extend(uplink::judge(&self.uplink));
        verdicts
    }

    /// The whole run. `conditions` says where and when.
    pub fn to_json(&self, effort: Effort, conditions: Value) -> Value {
        let latency = self.latency.iter();
        let latency = latency.map(|(kind, times)| (kind.name().to_string(), times.to_json()));
        let idle = self
            .idle
            .iter()
            .map(|i| json!({"switch": i.kind.name(), "ports": i.ports, "cpus": i.cpu}));
        let verdicts = self.verdicts().into_iter().map(|v| {
            json!({"what": v.what, "value": v.value, "wanted": v.wanted,
                "limit": if v.at_most { "at_most" } else { "at_least" }, "met": v.met()})
        });
        json!({
            "conditions": conditions,
            "rounds": effort.rounds,
            "seconds_per_turn": effort.turn.as_secs_f64(),
            "cells": self.outcomes.iter().map(outcome_json).collect::<Vec<_>>(),
            "logged": self.logged.iter().map(Logged::to_json).collect::<Vec<_>>(),
            "uplink": self.uplink.iter().map(uplink::Outcome::to_json).collect::<Vec<_>>(),
            "wakes_us": self.wakes.to_json(),
            "latency_us": latency.collect::<Map<_, _>>(),
            "idle": idle.collect::<Vec<_>>(),
            "verdicts": verdicts.collect::<Vec<_>>(),
        })
    }
}

fn outcome_json(outcome: &Outcome) -> Value {
    let Cell {
        name,
        load,
        size,
        flows,
        ports,
        pairs,
        packed,
        in_order,
        mergeable,
        touched,
    } = &outcome.cell;
    let results = outcome.results.iter().map(|(kind, measured)| {
        let value = json!({
            "delivered_mpps": measured.delivered.to_json(),
            "gbit": measured.delivered.median() * size.mean() * 8.0 / 1e3,
            "lost_mpps": measured.lost.to_json(),
            "cpus": measured.cpu.to_json(),
            "ns_per_frame": measured.nanoseconds(),
            "cpus_of_others": measured.others.to_json(),
            "drops": measured.drops,
        });
        (kind.name().to_string(), value)
    });
    json!({
        "name": name,
        "load": format!("{load:?}").to_lowercase(),
        "mean_bytes": size.mean(),
        "flows": flows,
        "ports": ports,
        "queue_pairs": pairs,
        "ring": if *packed { "packed" } else { "split" },
        "in_order": in_order,
        "mergeable": mergeable,
        "touched": touched,
        "results": results.collect::<Map<_, _>>(),
    })
}
