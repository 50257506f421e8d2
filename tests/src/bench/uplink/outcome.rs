//! What was found out about uplinks: a table for people, JSON for programs, and what is wanted.

use serde_json::{Map, Value, json};

use super::{Cell, Traffic};
use crate::bench::measure::Measured;
use crate::bench::switch::Kind;
use crate::bench::verdict::Verdict;

/// Wanted of Tandem beside Open vSwitch: TCP, small frames, and CPU time of a small frame.
const BULK: f64 = 1.3;
const SMALL: f64 = 1.0;
const SMALL_CPU: f64 = 0.77;

/// One cell.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was measured.
    pub cell: Cell,
    /// On which switches.
    pub results: Vec<(Kind, Measured)>,
}

impl Outcome {
    fn of(&self, kind: Kind) -> Option<&Measured> {
        let result = self.results.iter().find(|(k, _)| *k == kind);
        result.map(|(_, measured)| measured)
    }

    /// Tandem beside another, of a quantity of each.
    fn ratio(&self, peer: Kind, quantity: impl Fn(&Measured) -> f64) -> Option<f64> {
        let [ours, other] = [self.of(Kind::Tandem)?, self.of(peer)?].map(quantity);
        Some(ours / other)
    }

    /// For the JSON: millions of frames a second, or of bits, and nanoseconds of CPU time for each.
    pub fn to_json(&self) -> Value {
        let unit = match self.cell.traffic {
            Traffic::Small => "mpps",
            Traffic::Bulk => "mbit",
        };
        let results = self.results.iter().map(|(kind, measured)| {
            let value = json!({
                format!("delivered_{unit}"): measured.delivered.to_json(),
                format!("lost_{unit}"): measured.lost.to_json(),
                "cpus": measured.cpu.to_json(),
                match self.cell.traffic {
                    Traffic::Small => "ns_per_frame",
                    Traffic::Bulk => "ns_per_bit",
                }: measured.nanoseconds(),
                "cpus_of_others": measured.others.to_json(),
                "drops": measured.drops,
            });
            (kind.name().to_string(), value)
        });
        json!({
            "name": self.cell.name(),
            "driver": self.cell.driver.name(),
            "results": results.collect::<Map<_, _>>(),
        })
    }
}

/// The first line of the table: rates, ratios of the rates, CPUs of the switches, ratios of CPU time for what
/// was delivered.
pub fn heading(kinds: &[Kind]) -> String {
    let mut line = format!("{:20}", "uplink");
    for kind in with_uplink(kinds) {
        line += &format!(" {:>24}", kind.name());
    }
    for peer in with_uplink(kinds).skip(1) {
        line += &format!(" {:>7}", format!("/ {}", peer.name()));
    }
    for kind in with_uplink(kinds) {
        line += &format!(" {:>10}", format!("{} CPU", kind.name()));
    }
    for peer in with_uplink(kinds).skip(1) {
        line += &format!(" {:>11}", format!("CPU / {}", peer.name()));
    }
    line + &format!(" {:>7}", "others")
}

/// One line of it: medians, in brackets smallest and largest.
pub fn line(outcome: &Outcome, kinds: &[Kind]) -> String {
    let mut line = format!("{:20}", outcome.cell.name());
    let ratio = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"));
    let measured = |kind| outcome.of(kind);
    for kind in with_uplink(kinds) {
        let rate = measured(kind).map_or("-".into(), |m| rate(outcome.cell, m));
        line += &format!(" {rate:>24}");
    }
    for peer in with_uplink(kinds).skip(1) {
        let of = outcome.ratio(peer, |m| m.delivered.median());
        line += &format!(" {:>7}", ratio(of));
    }
    for kind in with_uplink(kinds) {
        let cpus = measured(kind).map_or(f64::NAN, |m| m.cpu.median());
        line += &format!(" {:>9.0}%", 100.0 * cpus);
    }
    for peer in with_uplink(kinds).skip(1) {
        let of = outcome.ratio(peer, Measured::nanoseconds);
        line += &format!(" {:>11}", ratio(of));
    }
    let others = outcome.results.iter();
    let others = others.fold(0.0_f64, |most, (_, m)| most.max(m.others.quantile(1.0)));
    line + &format!(" {:>6.0}%", 100.0 * others)
}

fn rate(cell: Cell, measured: &Measured) -> String {
    let (scale, unit) = match cell.traffic {
        Traffic::Small => (1.0, "Mpps"),
        Traffic::Bulk => (1e3, "Gbit"),
    };
    let at = |part| measured.delivered.quantile(part) / scale;
    format!("{:.2} ({:.2}..{:.2}) {unit}", at(0.5), at(0.0), at(1.0))
}

/// testpmd `io` has no uplink.
fn with_uplink(kinds: &[Kind]) -> impl Iterator<Item = Kind> {
    kinds.iter().copied().filter(|kind| *kind != Kind::Io)
}

/// Judges what was measured.
pub fn judge(outcomes: &[Outcome]) -> Vec<Verdict> {
    let verdicts = outcomes.iter().flat_map(|outcome| {
        let verdict = |what: &str, value: Option<f64>, wanted, at_most| {
            value.map(|value| Verdict {
                what: format!("{}: {what}", outcome.cell.name()),
                value,
                wanted,
                at_most,
            })
        };
        let rate = outcome.ratio(Kind::Ovs, |m| m.delivered.median());
        let cpu = outcome.ratio(Kind::Ovs, Measured::nanoseconds);
        match outcome.cell.traffic {
            Traffic::Bulk => [verdict("Tandem / ovs", rate, BULK, false), None],
            Traffic::Small => [
                verdict("Tandem / ovs", rate, SMALL, false),
                verdict("CPU of a frame, Tandem / ovs", cpu, SMALL_CPU, true),
            ],
        }
    });
    verdicts.flatten().collect()
}
