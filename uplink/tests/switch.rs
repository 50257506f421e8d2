//! What a switch does with frames, seen from its ports.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Port, SECOND, access, frame, mac, tagged, trunk};
use tandem_uplink::switch::{MacEntry, Neighbour, SwitchError};
use tandem_uplink::{Mac, Now, PortPolicy, StormLimit, Switch, SwitchConfig};
use tandem_virtio_net::DropReason;

fn switch() -> Arc<Switch> {
    Arc::new(Switch::new("default", SwitchConfig::default()))
}

/// Three ports in the untagged domain.
fn three(switch: &Arc<Switch>) -> [Port; 3] {
    ["a", "b", "c"].map(|name| Port::add(switch, name, |_| {}))
}

/// The numbers of the frames a port got.
fn numbers(port: &Port) -> Vec<u32> {
    port.got().into_iter().map(|(number, _)| number).collect()
}

/// Forgets what a port got.
fn forget(port: &Port) {
    port.got();
}

#[test]
fn a_frame_is_flooded_until_its_destination_has_been_heard() {
    let switch = switch();
    let [mut a, mut b, c] = three(&switch);
    a.send(&[frame(mac(2), mac(1), 1)], 0);
    assert_eq!(
        (numbers(&a), numbers(&b), numbers(&c)),
        (vec![], vec![1], vec![1])
    );
    b.send(&[frame(mac(1), mac(2), 2)], 0);
    assert_eq!(
        (numbers(&a), numbers(&b), numbers(&c)),
        (vec![2], vec![], vec![])
    );
    a.send(&[frame(mac(2), mac(1), 3), frame(mac(2), mac(1), 4)], 0);
    assert_eq!((numbers(&b), numbers(&c)), (vec![3, 4], vec![]));
    assert_eq!(switch.learned_macs(a.id), [mac(1)]);
    let counters = switch.counters();
    assert_eq!((counters.frames, counters.unicast), (4, 3));
    assert_eq!((counters.flooded, counters.copies), (1, 2));
}

#[test]
fn a_burst_reaches_each_receiver_in_order() {
    let switch = switch();
    let [mut a, mut b, mut c] = three(&switch);
    b.send(&[frame(Mac::BROADCAST, mac(2), 0)], 0);
    c.send(&[frame(Mac::BROADCAST, mac(3), 0)], 0);
    [&a, &b, &c].into_iter().for_each(forget);
    let to = [
        mac(2),
        Mac::BROADCAST,
        mac(3),
        mac(2),
        mac(9),
        mac(3),
        mac(2),
    ];
    let burst: Vec<_> = (0..64)
        .map(|i| frame(to[i as usize % to.len()], mac(1), i))
        .collect();
    a.send(&burst, 0);
    let expected = |own: Mac| {
        let goes = |i: &u32| {
            ![mac(2), mac(3)]
                .iter()
                .any(|m| *m == to[*i as usize % 7] && *m != own)
        };
        (0..64).filter(goes).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&b), expected(mac(2)));
    assert_eq!(numbers(&c), expected(mac(3)));
}

/// A network that floods gives the frames of our ports back to us.
#[test]
fn a_frame_that_comes_back_from_the_wire_ends_there_and_moves_nothing() {
    let switch = switch();
    let fixed = mac(7);
    let mut vm = Port::add(&switch, "vm", |_| {});
    let mut host = Port::add(&switch, "host", |spec| spec.mac = Some(fixed));
    let mut wire = Port::add(&switch, "wire", |spec| spec.uplink = true);
    vm.send(&[frame(Mac::BROADCAST, mac(1), 1)], 0);
    wire.send(
        &[frame(Mac::BROADCAST, mac(1), 1), frame(mac(9), fixed, 2)],
        0,
    );
    assert_eq!(wire.dropped(DropReason::OwnFrame), 2);
    assert_eq!((numbers(&vm), numbers(&host)), (vec![], vec![1]));
    assert_eq!(switch.learned_macs(vm.id), [mac(1)]);
    // From a port it is somebody who uses another's address.
    vm.send(&[frame(mac(9), fixed, 3)], 0);
    assert_eq!(vm.dropped(DropReason::SpoofedMac), 1);
    // One that took an address from the wire does not keep others from its owner.
    wire.send(&[frame(Mac::BROADCAST, mac(20), 6)], 3 * SECOND);
    vm.send(&[frame(mac(9), mac(20), 7)], 6 * SECOND);
    assert_eq!(switch.learned_macs(vm.id), [mac(1), mac(20)]);
    numbers(&host);
    wire.send(&[frame(fixed, mac(20), 8)], 6 * SECOND);
    assert_eq!(
        (numbers(&host), wire.dropped(DropReason::OwnFrame)),
        (vec![8], 2)
    );
    // Somebody with an address for good may be elsewhere while nobody is at home.
    host.sink.ready.store(false, Ordering::Relaxed);
    switch.renew(host.id);
    numbers(&wire);
    wire.send(&[frame(Mac::BROADCAST, fixed, 9)], 7 * SECOND);
    vm.send(&[frame(fixed, mac(1), 10)], 7 * SECOND);
    assert_eq!(numbers(&wire), [10]);
    host.sink.ready.store(true, Ordering::Relaxed);
    switch.renew(host.id);
    vm.send(&[frame(fixed, mac(1), 11)], 7 * SECOND);
    assert_eq!((numbers(&wire), numbers(&host)), (vec![], vec![11]));
    numbers(&vm);
    // A station that has moved elsewhere is believed once it has been silent here.
    wire.send(&[frame(Mac::BROADCAST, mac(1), 4)], 10 * SECOND);
    assert_eq!(switch.learned_macs(wire.id), [mac(1)]);
    host.send(&[frame(mac(1), fixed, 5)], 10 * SECOND);
    assert_eq!(numbers(&wire).last(), Some(&5));
}

/// A VM that has moved to another host is announced from there at once.
#[test]
fn a_station_whose_port_has_stopped_may_be_behind_the_wire_at_once() {
    let switch = switch();
    let mut vm = Port::add(&switch, "vm", |_| {});
    let mut neighbour = Port::add(&switch, "neighbour", |_| {});
    let mut wire = Port::add(&switch, "wire", |spec| spec.uplink = true);
    vm.send(&[frame(Mac::BROADCAST, mac(1), 1)], 0);
    vm.sink.ready.store(false, Ordering::Relaxed);
    switch.renew(vm.id);
    wire.send(&[frame(Mac::BROADCAST, mac(1), 2)], 0);
    assert_eq!(wire.dropped(DropReason::OwnFrame), 0);
    assert_eq!(switch.learned_macs(wire.id), [mac(1)]);
    neighbour.send(&[frame(mac(1), mac(2), 3)], 0);
    assert_eq!(
        (numbers(&wire), numbers(&neighbour)),
        (vec![1, 3], vec![1, 2])
    );
    // And comes back; an address does not move twice in two seconds.
    vm.sink.ready.store(true, Ordering::Relaxed);
    switch.renew(vm.id);
    vm.send(&[frame(mac(2), mac(1), 4)], 2 * SECOND);
    assert_eq!(switch.learned_macs(vm.id), [mac(1)]);
}

#[test]
fn frames_that_end_here_are_counted_by_reason() {
    let switch = switch();
    let [mut a, b, c] = three(&switch);
    let zero = Mac([0; 6]);
    a.send(
        &[frame(mac(2), zero, 1), frame(mac(2), Mac::BROADCAST, 2)],
        0,
    );
    a.send(&[frame(zero, zero, 0)], 0);
    assert_eq!(a.dropped(DropReason::BadSourceMac), 3);
    let lldp = Mac([1, 0x80, 0xc2, 0, 0, 0x0e]);
    let stp = Mac([1, 0x80, 0xc2, 0, 0, 0]);
    a.send(&[frame(lldp, mac(1), 3), frame(stp, mac(1), 4)], 0);
    assert_eq!(a.dropped(DropReason::LinkLocal), 2);
    a.send(
        &[
            tagged(mac(2), mac(1), &[5], 5),
            tagged(mac(2), mac(1), &[0, 5], 6),
        ],
        0,
    );
    assert_eq!(a.dropped(DropReason::VlanNotAllowed), 2);
    a.send(&[frame(mac(1), mac(1), 7)], 0);
    assert_eq!(a.dropped(DropReason::Hairpin), 1);
    b.sink.ready.store(false, Ordering::Relaxed);
    c.sink.ready.store(false, Ordering::Relaxed);
    a.send(&[frame(Mac::BROADCAST, mac(1), 8)], 0);
    assert_eq!(a.dropped(DropReason::NoReceiver), 1);
    assert_eq!((b.got(), c.got()), (vec![], vec![]));
    let counters = switch.counters();
    let dropped: u64 = a.from_vm.drops().map(|(_, n)| n).sum();
    assert_eq!(
        (counters.frames, counters.unicast, counters.flooded),
        (dropped, 0, 0)
    );
}

#[test]
fn a_known_receiver_that_is_not_ready_still_ends_the_frame() {
    let switch = switch();
    let [mut a, mut b, c] = three(&switch);
    b.send(&[frame(mac(9), mac(2), 0)], 0);
    b.sink.ready.store(false, Ordering::Relaxed);
    [&a, &c].into_iter().for_each(forget);
    a.send(&[frame(mac(2), mac(1), 1)], 0);
    assert_eq!((numbers(&b), numbers(&c)), (vec![1], vec![]));
}

#[test]
fn vlans_keep_to_themselves_and_trunks_see_tags() {
    let switch = switch();
    let mut a = Port::add(&switch, "a", |p| p.vlan = access(10));
    let b = Port::add(&switch, "b", |p| p.vlan = access(10));
    let c = Port::add(&switch, "c", |p| p.vlan = access(20));
    let plain = Port::add(&switch, "plain", |_| {});
    let mut tags = Port::add(&switch, "tags", |p| p.vlan = trunk("10,20", None));
    let native = Port::add(&switch, "native", |p| p.vlan = trunk("20", Some(10)));
    a.send(&[tagged(Mac::BROADCAST, mac(1), &[0xa000], 1)], 0);
    assert_eq!(b.got(), [(1, None)]);
    assert_eq!(tags.got(), [(1, Some(0xa00a))]);
    assert_eq!(native.got(), [(1, None)]);
    assert_eq!((c.got(), plain.got()), (vec![], vec![]));
    // To the known address, by the pipeline and by the cache.
    for number in [2, 3] {
        tags.send(&[tagged(mac(1), mac(7), &[0x600a], number)], 0);
        assert_eq!(a.got(), [(number, None)]);
        tags.send(&[tagged(mac(1), mac(7), &[20], number)], 0);
        assert_eq!(
            (a.got(), c.got()),
            (vec![], vec![(number, None)]),
            "another VLAN"
        );
        assert_eq!(native.got(), [(number, Some(20))]);
    }
    a.send(&[frame(mac(7), mac(1), 4)], 0);
    assert_eq!(tags.got(), [(4, Some(10))]);
    assert_eq!(switch.learned_macs(tags.id), [mac(7)]);
}

#[test]
fn a_fixed_address_cannot_be_taken() {
    let switch = switch();
    let mut a = Port::add(&switch, "a", |p| p.mac = Some(mac(1)));
    let [mut b, c] = ["b", "c"].map(|name| Port::add(&switch, name, |_| {}));
    b.send(&[frame(mac(1), mac(2), 1)], 0);
    assert_eq!(
        (numbers(&a), numbers(&c)),
        (vec![1], vec![]),
        "known before it has spoken"
    );
    b.send(&[frame(mac(2), mac(1), 2)], 0);
    assert_eq!(b.dropped(DropReason::SpoofedMac), 1);
    a.send(&[frame(mac(2), mac(1), 3), frame(mac(2), mac(5), 4)], 0);
    assert_eq!(numbers(&b), [3, 4], "the port may use other addresses too");
    let entry = |vlan, n, port: &Port| MacEntry {
        mac: mac(n),
        vlan,
        port: port.id,
    };
    let known = [
        entry(None, 1, &a),
        entry(Some(0), 2, &b),
        entry(Some(0), 5, &a),
    ];
    assert_eq!(switch.mac_entries(), known);
    assert_eq!(switch.mac_entry_count(), 3);
}

#[test]
fn an_address_fixed_later_is_taken_from_who_has_learned_it() {
    let switch = switch();
    let [mut a, mut b, c] = three(&switch);
    b.send(&[frame(mac(9), mac(1), 0)], 0);
    c.got();
    a.send(&[frame(mac(1), mac(3), 1)], 0);
    assert_eq!(numbers(&b), [1]);
    let policy = PortPolicy {
        mac: Some(mac(1)),
        ..PortPolicy::default()
    };
    switch.update_port(c.id, policy).unwrap();
    a.send(&[frame(mac(1), mac(3), 2)], 0);
    assert_eq!((numbers(&b), numbers(&c)), (vec![], vec![2]));
    b.send(&[frame(mac(9), mac(1), 3)], 0);
    assert_eq!(b.dropped(DropReason::SpoofedMac), 1);
}

#[test]
fn an_address_moves_but_does_not_thrash() {
    let switch = switch();
    let [mut a, mut b, mut c] = three(&switch);
    a.send(&[frame(mac(9), mac(1), 0)], 10 * SECOND);
    b.send(&[frame(mac(9), mac(1), 0)], 10 * SECOND);
    assert_eq!(
        (switch.learned_macs(a.id), switch.learned_macs(b.id)),
        (vec![], vec![mac(1)])
    );
    assert!(switch.duplicates().is_empty(), "a move is no duplicate");
    a.send(&[frame(mac(9), mac(1), 0)], 10 * SECOND);
    assert_eq!(switch.learned_macs(b.id), [mac(1)], "too soon");
    assert_eq!(switch.counters().unlearned, 1);
    a.send(&[frame(mac(9), mac(1), 0)], 12 * SECOND);
    let duplicates = switch.duplicates();
    assert_eq!((duplicates[0].mac, duplicates[0].moves), (mac(1), 2));
    assert_eq!(duplicates[0].ports, [b.id, a.id]);
    assert_eq!(switch.counters().mac_moves, 2);
    [&a, &b].into_iter().for_each(forget);
    c.send(&[frame(mac(1), mac(3), 5)], 12 * SECOND);
    assert_eq!((numbers(&a), numbers(&b)), (vec![5], vec![]));
    switch.age(Now(400 * SECOND));
    assert!(switch.duplicates().is_empty());
}

#[test]
fn a_cached_verdict_follows_its_destination() {
    let switch = switch();
    let [mut a, mut b, mut c] = three(&switch);
    b.send(&[frame(mac(9), mac(2), 0)], 0);
    a.send(&[frame(mac(2), mac(1), 1)], 0);
    a.send(&[frame(mac(2), mac(1), 2)], 0);
    c.got();
    c.send(&[frame(mac(1), mac(2), 0)], 5 * SECOND);
    [&a, &b].into_iter().for_each(forget);
    a.send(&[frame(mac(2), mac(1), 3)], 5 * SECOND);
    assert_eq!((numbers(&b), numbers(&c)), (vec![], vec![3]), "it moved");
    assert!(switch.remove_port(c.id));
    a.send(&[frame(mac(2), mac(1), 4)], 5 * SECOND);
    assert_eq!(
        (numbers(&b), numbers(&c)),
        (vec![4], vec![]),
        "its port is gone: flooded"
    );
}

#[test]
fn silent_addresses_are_forgotten_and_busy_ones_are_not() {
    let switch = switch();
    let [mut a, mut b, c] = three(&switch);
    b.send(&[frame(mac(9), mac(2), 0)], 0);
    a.send(&[frame(mac(2), mac(1), 0)], 0);
    c.got();
    for minute in 1..=5 {
        // Out of the cache, which refreshes too.
        a.send(&[frame(mac(2), mac(1), 0)], minute * 60 * SECOND);
        switch.age(Now(minute * 60 * SECOND));
    }
    assert_eq!(switch.mac_entry_count(), 2);
    switch.age(Now(301 * SECOND));
    assert_eq!(
        (switch.learned_macs(a.id), switch.learned_macs(b.id)),
        (vec![mac(1)], vec![])
    );
    numbers(&b);
    a.send(&[frame(mac(2), mac(1), 7)], 301 * SECOND);
    assert_eq!((numbers(&b), numbers(&c)), (vec![7], vec![7]));
}

#[test]
fn a_port_learns_so_many_addresses_and_no_more() {
    let switch = switch();
    let mut a = Port::add(&switch, "a", |p| p.mac_limit = 10);
    let mut b = Port::add(&switch, "b", |_| {});
    let burst: Vec<_> = (0..64).map(|n| frame(Mac::BROADCAST, mac(n), n)).collect();
    a.send(&burst, 0);
    a.send(&burst, 0);
    assert_eq!(switch.port(a.id).unwrap().learned, 10);
    assert_eq!(numbers(&b).len(), 128, "carried all the same");
    assert_eq!(switch.counters().unlearned, 2, "once a burst");
    b.send(
        &[frame(mac(3), mac(100), 0), frame(mac(50), mac(100), 0)],
        0,
    );
    let counters = switch.counters();
    assert_eq!((counters.unicast, counters.flooded), (1, 129));
}

#[test]
fn the_table_is_bounded_too() {
    let config = SwitchConfig {
        mac_entries: 20,
        ..SwitchConfig::default()
    };
    let switch = Arc::new(Switch::new("small", config));
    let [mut a, mut b, _c] = three(&switch);
    let burst = |from: u32| -> Vec<_> {
        (from..from + 15)
            .map(|n| frame(Mac::BROADCAST, mac(n), n))
            .collect()
    };
    a.send(&burst(0), 0);
    b.send(&burst(100), 0);
    assert_eq!(
        (
            switch.learned_macs(a.id).len(),
            switch.learned_macs(b.id).len()
        ),
        (15, 5)
    );
}

#[test]
fn the_storm_limit_is_for_what_is_flooded() {
    let switch = switch();
    let mut a = Port::add(&switch, "a", |p| p.storm = StormLimit::per_second(100));
    let mut b = Port::add(&switch, "b", |_| {});
    b.send(&[frame(mac(9), mac(2), 0)], 0);
    let burst: Vec<_> = (0..60)
        .map(|i| frame(if i % 2 == 0 { mac(2) } else { Mac::BROADCAST }, mac(1), i))
        .collect();
    a.send(&burst, SECOND);
    let got = numbers(&b);
    assert_eq!(got.len(), 30 + 10);
    assert_eq!(
        got[..20],
        (0..20).collect::<Vec<_>>(),
        "the first pass, in order"
    );
    assert_eq!(a.dropped(DropReason::StormLimit), 20);
    a.send(&burst, SECOND + SECOND / 20);
    assert_eq!(numbers(&b).len(), 30 + 5);
}

#[test]
fn what_is_gone_is_looked_for_everywhere() {
    let switch = switch();
    let [mut a, mut b, c] = three(&switch);
    b.send(&[frame(Mac::BROADCAST, mac(2), 0)], 0);
    a.send(&[frame(mac(2), mac(1), 1)], 0);
    [&a, &b, &c].into_iter().for_each(forget);
    switch.forget_learned(b.id);
    a.send(&[frame(mac(2), mac(1), 2)], 0);
    assert_eq!((numbers(&b), numbers(&c)), (vec![2], vec![2]));
    assert_eq!(switch.learned_macs(a.id), [mac(1)], "the others stay");
}

#[test]
fn unknown_unicast_to_the_only_other_port_is_no_storm() {
    let switch = switch();
    let mut a = Port::add(&switch, "a", |p| p.storm = StormLimit::per_second(10));
    let b = Port::add(&switch, "b", |_| {});
    let unknown: Vec<_> = (0..50).map(|i| frame(mac(2), mac(1), i)).collect();
    a.send(&unknown, SECOND);
    assert_eq!(numbers(&b).len(), 50);
    assert_eq!(a.dropped(DropReason::StormLimit), 0);
    let group: Vec<_> = (0..50).map(|i| frame(Mac::BROADCAST, mac(1), i)).collect();
    a.send(&group, SECOND);
    assert_eq!(numbers(&b).len(), 1, "a tenth of a second's worth at once");
    let c = Port::add(&switch, "c", |_| {});
    a.send(&unknown, 2 * SECOND);
    assert_eq!(
        (numbers(&b).len(), numbers(&c).len()),
        (1, 1),
        "now it multiplies"
    );
    let counted = switch.counters();
    assert_eq!((counted.flooded, counted.copies), (52, 53));
}

#[test]
fn ports_are_checked_and_ids_are_not_used_again() {
    let switch = switch();
    let a = Port::add(&switch, "a", |p| p.mac = Some(mac(1)));
    let b = Port::add(&switch, "b", |_| {});
    let again = |name: &str, of: &Port, vlan| {
        let mut spec = tandem_uplink::PortSpec::new(name, of.from_vm.clone(), of.sink.clone());
        spec.mac = Some(mac(1));
        spec.vlan = vlan;
        switch.add_port(spec)
    };
    let taken = SwitchError::MacInUse {
        mac: mac(1),
        port: "a".into(),
    };
    assert_eq!(again("c", &b, Default::default()), Err(taken.clone()));
    assert!(matches!(
        again("b", &b, access(9)),
        Err(SwitchError::NameInUse { .. })
    ));
    let elsewhere = again("c", &b, access(9)).expect("the address is free in another VLAN");
    let policy = |n: Option<Mac>| PortPolicy {
        mac: n,
        ..PortPolicy::default()
    };
    assert_eq!(switch.update_port(b.id, policy(Some(mac(1)))), Err(taken));
    let group = Mac::BROADCAST;
    assert_eq!(
        switch.update_port(b.id, policy(Some(group))),
        Err(SwitchError::BadMac(group))
    );
    assert_eq!(
        switch.update_port(a.id, policy(Some(mac(1)))),
        Ok(()),
        "its own"
    );
    assert!(switch.remove_port(a.id) && !switch.remove_port(a.id));
    let new = Port::add(&switch, "a", |_| {});
    assert_ne!(new.id, a.id);
    assert_eq!(
        switch.update_port(a.id, policy(None)),
        Err(SwitchError::NoSuchPort)
    );
    assert!(switch.port(a.id).is_none() && switch.port(elsewhere).is_some());
    let mut names: Vec<_> = switch.ports().into_iter().map(|p| p.name).collect();
    names.sort();
    assert_eq!(names, ["a", "b", "c"]);
}

/// A VM comes from another host with the addresses that were known of it there.
#[test]
fn what_is_known_from_elsewhere_is_believed_like_frames() {
    let switch = switch();
    let mut vm = Port::add(&switch, "vm", |spec| {
        spec.vlan = trunk("10,20", None);
        spec.mac_limit = 3;
    });
    let mut other = Port::add(&switch, "other", |spec| {
        spec.vlan = access(10);
        spec.mac = Some(mac(7));
    });
    let known = [
        (mac(1), 10),
        (mac(1), 20),
        (mac(2), 30), // not one of its VLANs
        (mac(3), 0),
        (mac(7), 10), // another port's
        (Mac::BROADCAST, 10),
        (mac(4), 20),
        (mac(5), 20), // one too many
    ];
    assert_eq!(switch.learn(vm.id, &known, Now(0)), 3);
    assert_eq!(switch.learned_macs(vm.id), [mac(1), mac(4)]);
    other.send(&[frame(mac(1), mac(7), 1)], 0);
    assert_eq!((numbers(&vm), switch.counters().unicast), (vec![1], 1));
    // The neighbours replace those heard before, and are as good as heard.
    let neighbour = |ip: &str, n: u32, vlan: Option<u16>| Neighbour {
        ip: ip.parse().unwrap(),
        mac: mac(n),
        vlan,
        router: false,
    };
    let own = [
        neighbour("10.0.0.2", 1, Some(10)),
        neighbour("10.0.0.1", 1, Some(10)),
    ];
    let of_others = [
        neighbour("10.0.0.3", 1, Some(30)),
        neighbour("10.0.0.4", 7, Some(10)),
        neighbour("224.0.0.1", 1, Some(10)),
    ];
    switch.set_neighbours(vm.id, [&of_others[..], &own].concat());
    assert_eq!(switch.neighbours(vm.id), own);
    switch.set_neighbours(other.id, vec![neighbour("10.0.0.1", 7, None)]);
    switch.age(Now(0));
    assert_eq!(
        switch.neighbours(vm.id),
        own[..1],
        "claimed later elsewhere"
    );
    assert_eq!(switch.neighbours(other.id).len(), 1);
    // A port that is gone is none of this.
    vm.send(&[tagged(Mac::BROADCAST, mac(1), &[10], 2)], 0);
    switch.remove_port(vm.id);
    assert_eq!(switch.learn(vm.id, &known, Now(0)), 0);
    switch.set_neighbours(vm.id, own.to_vec());
    assert!(switch.neighbours(vm.id).is_empty());
}

#[test]
fn a_removed_port_is_let_go_of_while_its_neighbours_sleep() {
    let switch = switch();
    let [mut a, mut b, c] = three(&switch);
    a.send(&[frame(Mac::BROADCAST, mac(1), 0)], 0);
    b.send(&[frame(mac(1), mac(2), 0)], 0);
    let Port {
        id,
        sink,
        from_vm,
        mut forwarder,
    } = c;
    let gone = Arc::downgrade(&sink);
    drop(sink);
    assert!(gone.upgrade().is_some(), "the switch has it");
    assert!(switch.remove_port(id));
    assert!(gone.upgrade().is_none());
    // What its queue still had in hand goes nowhere.
    let mut batch = tandem_virtio_net::Batch::with_own_bytes(1 << 18);
    batch
        .push_frame(Default::default(), &frame(mac(1), mac(3), 0))
        .unwrap();
    numbers(&a);
    forwarder.forward(&mut batch, &mut Default::default(), Now(0));
    assert_eq!(from_vm.dropped(DropReason::NoReceiver), 1);
    assert_eq!(numbers(&a), []);
}

#[test]
fn changing_the_vlan_of_a_port_forgets_where_it_was() {
    let switch = switch();
    let [mut a, mut b, c] = three(&switch);
    b.send(&[frame(mac(9), mac(2), 0)], 0);
    c.got();
    a.send(&[frame(mac(2), mac(1), 1)], 0);
    assert_eq!(numbers(&b), [1]);
    let policy = PortPolicy {
        vlan: access(10),
        ..PortPolicy::default()
    };
    switch.update_port(b.id, policy).unwrap();
    a.send(&[frame(mac(2), mac(1), 2)], 0);
    assert_eq!(
        (numbers(&b), numbers(&c)),
        (vec![], vec![2]),
        "no member of the domain any more"
    );
    let storm = PortPolicy {
        storm: StormLimit::per_second(1),
        ..PortPolicy::default()
    };
    switch.update_port(a.id, storm).unwrap();
    assert_eq!(
        switch.learned_macs(a.id),
        [mac(1)],
        "its limit has nothing to do with it"
    );
}

#[test]
fn the_ageing_time_is_a_setting() {
    let config = SwitchConfig {
        mac_ageing: Duration::from_secs(10),
        ..SwitchConfig::default()
    };
    let switch = Arc::new(Switch::new("hasty", config));
    let [mut a, _b, _c] = three(&switch);
    a.send(&[frame(mac(9), mac(1), 0)], 0);
    switch.age(Now(10 * SECOND));
    assert_eq!(switch.mac_entry_count(), 1);
    switch.age(Now(11 * SECOND));
    assert_eq!(switch.mac_entry_count(), 0);
}

/// An ARP request or reply for `10.0.0.to` by the station `10.0.0.from`, whose address is
/// `mac(from)`.
fn arp(dst: Mac, vlan: Option<u16>, from: u8, to: u8) -> Vec<u8> {
    let src = mac(from.into());
    let operation = if dst.is_broadcast() { 1 } else { 2 };
    let mut bytes = [dst.0, src.0].concat();
    if let Some(vid) = vlan {
        bytes.extend([0x81, 0]);
        bytes.extend(vid.to_be_bytes());
    }
    bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    bytes.extend(src.0);
    bytes.extend([10, 0, 0, from]);
    let asked = if operation == 1 { [0; 6] } else { dst.0 };
    bytes.extend(asked);
    bytes.extend([10, 0, 0, to]);
    bytes
}

#[test]
fn neighbours_are_heard_in_requests_and_in_the_first_reply() {
    let switch = switch();
    let [mut a, mut b, c] = three(&switch);
    a.send(&[arp(Mac::BROADCAST, None, 1, 2)], 0);
    b.send(&[arp(mac(1), None, 2, 1)], 0);
    assert_eq!(
        (b.others().len(), a.others().len(), c.others().len()),
        (1, 1, 1)
    );
    let heard = |port: &Port| switch.neighbours(port.id);
    let [at_a, at_b] = [&a, &b].map(|port| heard(port)[0]);
    assert_eq!((at_a.ip, at_a.mac), ([10, 0, 0, 1].into(), mac(1)));
    assert_eq!((at_b.ip, at_b.mac), ([10, 0, 0, 2].into(), mac(2)));
    assert!(heard(&c).is_empty());
    // They stay through a change of what has nothing to do with them, and go with the VLAN.
    let mut policy = switch.port(a.id).unwrap().policy;
    policy.storm = StormLimit::UNLIMITED;
    switch.update_port(a.id, policy.clone()).unwrap();
    assert_eq!(heard(&a), [at_a]);
    policy.vlan = access(7);
    switch.update_port(a.id, policy).unwrap();
    assert!(heard(&a).is_empty());
    switch.forget_neighbours(b.id);
    assert!(heard(&b).is_empty());
}

#[test]
fn a_frame_that_is_not_let_in_is_not_believed() {
    let switch = switch();
    let owner = Port::add(&switch, "owner", |spec| spec.mac = Some(mac(1)));
    let mut thief = Port::add(&switch, "thief", |_| {});
    thief.send(&[arp(Mac::BROADCAST, None, 1, 2)], 0);
    thief.send(&[arp(Mac::BROADCAST, Some(5), 3, 2)], 0);
    assert!(switch.neighbours(thief.id).is_empty());
    assert!(owner.others().is_empty());
}

/// Who is behind a port is told to all others, and the port is told who is behind them: in their
/// VLANs, tagged as each wants it.
#[test]
fn an_announcement_reaches_who_has_to_know_and_tells_who_announces() {
    let switch = switch();
    let told = |port: &Port| -> Vec<(u8, Option<u16>)> {
        let read = |frame: Vec<u8>| {
            let tag = (frame[12] == 0x81).then(|| u16::from_be_bytes([frame[14], frame[15]]));
            let at = if tag.is_some() { 18 } else { 14 };
            assert_eq!(frame[..6], Mac::BROADCAST.0);
            // Sender and target are the same: an announcement (RFC 5227, 2.3).
            assert_eq!(frame[at + 14..at + 18], frame[at + 24..at + 28]);
            (frame[at + 17], tag)
        };
        port.others().into_iter().map(read).collect()
    };
    let mut web = Port::add(&switch, "web", |spec| spec.vlan = access(7));
    let mut db = Port::add(&switch, "db", |spec| spec.vlan = access(7));
    let mut other = Port::add(&switch, "other", |spec| spec.vlan = access(8));
    let mut router = Port::add(&switch, "router", |spec| spec.vlan = trunk("7,8", None));
    let away = Port::add(&switch, "away", |spec| spec.vlan = access(7));
    away.sink.ready.store(false, Ordering::Relaxed);
    web.send(&[arp(Mac::BROADCAST, None, 1, 9)], 0);
    db.send(&[arp(Mac::BROADCAST, None, 2, 9)], 0);
    other.send(&[arp(Mac::BROADCAST, None, 3, 9)], 0);
    let both = [7, 8].map(|vid| arp(Mac::BROADCAST, Some(vid), 4, 9));
    router.send(&both, 0);
    for port in [&web, &db, &other, &router] {
        port.others();
    }
    switch.forget_learned(web.id);
    let before = switch.counters();

    switch.announce(web.id, Now(SECOND));
    assert_eq!(told(&db), [(1, None)]);
    assert_eq!(told(&router), [(1, Some(7))]);
    assert_eq!(told(&web), [(2, None), (4, None)]);
    assert!(told(&other).is_empty() && told(&away).is_empty());
    // The switch has learned it by the way, and has counted.
    assert_eq!(switch.learned_macs(web.id), [mac(1)]);
    let after = switch.counters();
    assert_eq!(after.announced, 3);
    assert_eq!(after.frames - before.frames, 3);
    assert_eq!(after.unicast - before.unicast, 2);
    assert_eq!(after.copies - before.copies, 2);

    switch.announce(router.id, Now(SECOND));
    assert_eq!(told(&web), [(4, None)]);
    assert_eq!(told(&other), [(4, None)]);
    let mut all = told(&router);
    all.sort_unstable();
    assert_eq!(all, [(1, Some(7)), (2, Some(7)), (3, Some(8))]);
}

#[test]
fn a_port_is_told_of_no_more_neighbours_than_its_ring_can_take() {
    let switch = switch();
    let [a, ..] = three(&switch);
    let known = |port: u8| {
        let one = |i: u8| tandem_uplink::switch::Neighbour {
            ip: [10, 0, port, i].into(),
            mac: mac(port.into()),
            vlan: None,
            router: false,
        };
        (1..=20).map(one).collect::<Vec<_>>()
    };
    let ports =
        (10..30).map(|n| Port::add(&switch, &format!("p{n}"), |spec| spec.neighbours = known(n)));
    let ports: Vec<Port> = ports.collect();
    switch.announce(a.id, Now(0));
    assert_eq!(a.others().len(), 128);
    switch.announce(ports[0].id, Now(0));
    assert_eq!(a.others().len(), 16);
}

#[test]
fn an_address_belongs_to_who_claimed_it_last() {
    let switch = switch();
    let [mut a, mut b, c] = three(&switch);
    let claim = |port: &mut Port, from: u8| {
        let mut frame = arp(Mac::BROADCAST, None, from, 9);
        frame[31] = 7; // 10.0.0.7, whoever says it
        port.send(&[frame], 0);
    };
    let has = |port: &Port| switch.neighbours(port.id).len();
    claim(&mut a, 1);
    claim(&mut b, 2);
    switch.age(Now(SECOND));
    assert_eq!((has(&a), has(&b)), (0, 1));
    claim(&mut a, 1);
    c.others();
    // To announce it is not to claim it.
    switch.announce(b.id, Now(SECOND));
    assert!(c.others().is_empty());
    assert_eq!((has(&a), has(&b)), (1, 0));
    // In another VLAN it is another station's; and of what was known before a restart nobody knows.
    let known = || vec![switch.neighbours(a.id)[0]];
    let d = Port::add(&switch, "d", |spec| {
        spec.neighbours = known();
        spec.vlan = access(3);
    });
    let more = [1, 2].map(|n| {
        Port::add(&switch, &format!("e{n}"), |spec| {
            spec.neighbours = known();
            spec.vlan = access(4);
        })
    });
    switch.age(Now(SECOND));
    assert_eq!((has(&a), has(&d)), (1, 1));
    assert_eq!(more.each_ref().map(has), [0, 0]);
}

#[test]
fn who_is_gone_again_is_not_announced() {
    let switch = switch();
    let [mut a, b, _] = three(&switch);
    a.send(&[arp(Mac::BROADCAST, None, 1, 9)], 0);
    b.others();
    a.sink.ready.store(false, Ordering::Relaxed);
    switch.forget_learned(a.id);
    switch.announce(a.id, Now(SECOND));
    assert!(b.others().is_empty() && switch.learned_macs(a.id).is_empty());
}
