//! Which cells are measured.

use super::cell::Cell;
use super::cell::Load::{Bounce, Incast, Replay, Star};

/// The cells of a run: all, or those that fit into two minutes.
pub fn cells(quick: bool) -> Vec<Cell> {
    if quick {
        return vec![
            Cell::new("64"),
            Cell::new("1500").bytes(1500),
            Cell::new("64-packed").packed(),
        ];
    }
    [sizes(), rings(), addresses(), many_ports()].concat()
}

fn sizes() -> Vec<Cell> {
    vec![
        Cell::new("64"),
        Cell::new("256").bytes(256),
        Cell::new("1500").bytes(1500),
        Cell::new("64-1-flow").flows(1),
        Cell::new("64-65536-flows").flows(65_536),
        Cell::new("64-4-pairs").pairs(4),
    ]
}

fn rings() -> Vec<Cell> {
    vec![
        Cell::new("64-packed").packed(),
        Cell::new("256-packed").bytes(256).packed(),
        Cell::new("1500-packed").bytes(1500).packed(),
        Cell::new("64-any-order").any_order(),
        Cell::new("256-any-order").bytes(256).any_order(),
        Cell::new("1500-any-order").bytes(1500).any_order(),
        Cell::new("64-packed-any-order").packed().any_order(),
        Cell::new("64-not-mergeable").not_mergeable(),
        Cell::new("1500-not-mergeable").bytes(1500).not_mergeable(),
    ]
}

fn addresses() -> Vec<Cell> {
    vec![
        Cell::new("64-replay").load(Replay),
        Cell::new("1500-replay").bytes(1500).load(Replay),
        Cell::new("mix-replay").mix().load(Replay),
        Cell::new("64-touched").load(Replay).touched(),
        Cell::new("1500-touched").bytes(1500).load(Replay).touched(),
        Cell::new("mix-touched").mix().load(Replay).touched(),
    ]
}

fn many_ports() -> Vec<Cell> {
    vec![
        Cell::new("64-2-ports").load(Bounce),
        Cell::new("64-8-ports").load(Bounce).ports(8),
        Cell::new("64-32-ports").load(Bounce).ports(32),
        Cell::new("64-8-with-1").load(Star).ports(9),
        Cell::new("64-1-to-1").load(Incast).flows(128),
        Cell::new("64-8-to-1").load(Incast).flows(128).ports(9),
    ]
}
