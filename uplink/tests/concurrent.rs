//! Queues that forward at the same time, while ports come, go and change.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Port, SECOND, access, frame, mac};
use tandem_uplink::{Forwarder, Mac, Now, PortPolicy, StormLimit, Switch, SwitchConfig};
use tandem_virtio_net::spec::NetHdr;
use tandem_virtio_net::{Batch, Scratch};

const ROUNDS: u32 = 400;
const STATIONS: u32 = 12;

/// A burst of the port with number `port`, in VLAN `vid`, to its neighbours, to nobody and to
/// everybody. The frames carry the VLAN as their number.
fn burst(port: u32, vid: u16, round: u32) -> Batch {
    let mut batch = Batch::with_own_bytes(1 << 18);
    for i in 0..48 {
        let n = round.wrapping_mul(31).wrapping_add(i * 7) % (STATIONS + 2);
        let dst = if n == STATIONS {
            Mac::BROADCAST
        } else {
            mac(n)
        };
        // Addresses of its own, and one that others use too.
        let src = if i % 16 == 0 {
            mac(11)
        } else {
            mac(port * 2 + i % 2)
        };
        batch
            .push_frame(NetHdr::default(), &frame(dst, src, vid.into()))
            .unwrap();
    }
    batch
}

fn run(mut forwarder: Forwarder, port: u32, vid: u16) {
    let mut scratch = Scratch::default();
    for round in 0..ROUNDS {
        let now = Now(u64::from(round) * SECOND / 20);
        forwarder.forward(&mut burst(port, vid, round), &mut scratch, now);
        if round % 64 == 0 {
            forwarder.shrink();
        }
    }
}

/// The delivered frames of a port; all are of its VLAN.
fn delivered(port: &Port, vid: u16) -> u64 {
    let got = port.got();
    assert!(
        got.iter()
            .all(|(number, tag)| *number == vid.into() && tag.is_none())
    );
    got.len() as u64
}

#[test]
fn every_frame_ends_once_whatever_happens_meanwhile() {
    let switch = Arc::new(Switch::new("default", SwitchConfig::default()));
    let vid = |n: u32| if n < 3 { 10 } else { 20 };
    let ports: Vec<Port> = (0..5)
        .map(|n| Port::add(&switch, &format!("p{n}"), |p| p.vlan = access(vid(n))))
        .collect();
    let done = AtomicBool::new(false);
    let visitors = std::thread::scope(|s| {
        let queues: Vec<_> = (0..5)
            .map(|n| {
                let forwarder = Forwarder::new(switch.clone(), ports[n as usize].id);
                s.spawn(move || run(forwarder, n, vid(n)))
            })
            .collect();
        let control = s.spawn(|| change_ports(&switch, &ports[0], &done));
        queues.into_iter().for_each(|q| q.join().expect("a queue"));
        done.store(true, Ordering::Relaxed);
        control.join().expect("the control plane")
    });
    let all = || ports.iter().chain(visitors.iter().map(|(port, _)| port));
    let given: u64 = ports
        .iter()
        .zip(0..)
        .map(|(port, n)| delivered(port, vid(n)))
        .sum::<u64>()
        + visitors
            .iter()
            .map(|(port, vid)| delivered(port, *vid))
            .sum::<u64>();
    let dropped: u64 = all().flat_map(|p| p.from_vm.drops().map(|(_, n)| n)).sum();
    let counters = switch.counters();
    assert_eq!(
        counters.frames,
        u64::from(5 * ROUNDS * 48) + 48 * visitors.len() as u64
    );
    assert_eq!(
        counters.frames,
        dropped + counters.unicast + counters.flooded
    );
    assert_eq!(given, counters.unicast + counters.copies);
    assert!(counters.unicast > 0 && counters.flooded > 0);
}

/// Adds and removes ports, which send one burst each, and changes one that stays.
fn change_ports(switch: &Arc<Switch>, stays: &Port, done: &AtomicBool) -> Vec<(Port, u16)> {
    let mut visitors = Vec::new();
    for n in 0..200 {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let vid = if n % 2 == 0 { 10 } else { 20 };
        let mut port = Port::add(switch, &format!("visitor{n}"), |p| {
            p.vlan = access(vid);
            p.mac = (n % 3 == 0).then_some(mac(6));
        });
        let now = Now(n * SECOND / 5);
        port.forwarder
            .forward(&mut burst(5, vid, n as u32), &mut Scratch::default(), now);
        let storm = if n % 2 == 0 {
            StormLimit::default()
        } else {
            StormLimit::UNLIMITED
        };
        let policy = PortPolicy {
            vlan: access(10),
            storm,
            ..PortPolicy::default()
        };
        switch.update_port(stays.id, policy).unwrap();
        switch.age(now);
        assert!(switch.remove_port(port.id));
        visitors.push((port, vid));
    }
    visitors
}
