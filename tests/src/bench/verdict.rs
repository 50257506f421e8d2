//! What is wanted of the switch, and whether it was reached.

use super::latency::Latency;
use super::measure::Outcome;
use super::switch::Kind;

/// One thing wanted.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// In words.
    pub what: String,
    /// Measured.
    pub value: f64,
    /// The limit.
    pub wanted: f64,
    /// The limit is an upper one.
    pub at_most: bool,
}

impl Verdict {
    /// Whether it was reached.
    pub fn met(&self) -> bool {
        if self.at_most {
            self.value <= self.wanted
        } else {
            self.value >= self.wanted
        }
    }
}

/// Tandem against a peer in the same cell.
const PEERS: &[(&str, Kind, f64)] = &[
    ("64", Kind::Ovs, 2.0),
    ("256", Kind::Ovs, 2.0),
    ("1500", Kind::Ovs, 3.5),
    ("64", Kind::Io, 0.9),
    ("1500", Kind::Io, 1.0),
    ("64-any-order", Kind::Ovs, 2.0),
    ("256-any-order", Kind::Ovs, 2.0),
];

/// Tandem in one cell against itself in another.
const OWN: &[(&str, &str, f64)] = &[
    ("64-packed", "64", 0.9),
    ("64-65536-flows", "64", 0.7),
    ("64-32-ports", "64-2-ports", 0.7),
    ("64-4-pairs", "64", 0.9),
    ("64-8-with-1", "64-2-ports", 0.7),
];

/// Judges what was measured; what was not is left out.
pub fn judge(outcomes: &[Outcome], latency: &[(Kind, Latency)]) -> Vec<Verdict> {
    let median = |name: &str, kind: Kind| {
        let outcome = outcomes.iter().find(|outcome| outcome.cell.name == name);
        outcome.and_then(|outcome| outcome.median(kind))
    };
    let ratio = |what: String, ours: Option<f64>, other: Option<f64>, wanted: f64| {
        Some(Verdict {
            what,
            value: ours? / other?,
            wanted,
            at_most: false,
        })
    };
    let peers = PEERS.iter().filter_map(|(cell, peer, wanted)| {
        let what = format!("{cell}: Tandem / {}", peer.name());
        ratio(
            what,
            median(cell, Kind::Tandem),
            median(cell, *peer),
            *wanted,
        )
    });
    let own = OWN.iter().filter_map(|(cell, other, wanted)| {
        let what = format!("Tandem: {cell} / {other}");
        ratio(
            what,
            median(cell, Kind::Tandem),
            median(other, Kind::Tandem),
            *wanted,
        )
    });
    let mut verdicts: Vec<Verdict> = peers.chain(own).collect();
    if let Some((_, times)) = latency.iter().find(|(kind, _)| *kind == Kind::Tandem) {
        let limit = |what: &str, value: f64, wanted: f64| Verdict {
            what: what.to_string(),
            value,
            wanted,
            at_most: true,
        };
        verdicts.push(limit(
            "there and back, idle, median (us)",
            times.idle.median(),
            100.0,
        ));
        verdicts.push(limit(
            "there and back, loaded, p99 (us)",
            times.loaded.quantile(0.99),
            1000.0,
        ));
    }
    verdicts
}
