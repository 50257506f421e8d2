//! Offloads: what one guest leaves to the other must arrive whole, whatever the two negotiated.
//!
//! Two guests with many network cards each, every card with other offloads. Card `i` of one talks
//! to card `i` of the other, whose offloads differ, so that Tandem must complete what the receiver
//! cannot. The combinations are pairwise: any two settings of any two offloads occur together.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use tandem_tests::lab::{
    Daemon, GuestConfig, Need, Nic, Qemu, boot_two, long, qemus, say, scenario,
};

/// QEMU's name for each offload and its feature bit (virtio 1.3, 5.1.3 and 6).
const OFFLOADS: [(&str, usize); 12] = [
    ("csum", 0),
    ("guest_csum", 1),
    ("guest_tso4", 7),
    ("guest_tso6", 8),
    ("guest_ecn", 9),
    ("host_tso4", 11),
    ("host_tso6", 12),
    ("host_ecn", 13),
    ("mrg_rxbuf", 15),
    ("indirect_desc", 28),
    ("event_idx", 29),
    ("packed", 34),
];

/// A bit for each of [`OFFLOADS`].
type Combination = u16;

fn on(combination: Combination, name: &str) -> bool {
    OFFLOADS
        .iter()
        .zip(0..)
        .any(|((n, _), bit)| *n == name && combination & (1 << bit) != 0)
}

/// What the specification allows a driver to take (5.1.3.1).
fn valid(combination: Combination) -> bool {
    let requires = |what: &str, needed: &[&str]| {
        !on(combination, what) || needed.iter().any(|name| on(combination, name))
    };
    requires("guest_tso4", &["guest_csum"])
        && requires("guest_tso6", &["guest_csum"])
        && requires("guest_ecn", &["guest_tso4", "guest_tso6"])
        && requires("host_tso4", &["csum"])
        && requires("host_tso6", &["csum"])
        && requires("host_ecn", &["host_tso4", "host_tso6"])
}

/// Every two settings that occur together in a combination.
fn pairs_of(combination: Combination) -> BTreeSet<(usize, bool, usize, bool)> {
    let setting = |bit: usize| combination & (1 << bit) != 0;
    let bits = 0..OFFLOADS.len();
    bits.clone()
        .flat_map(|a| bits.clone().skip(a + 1).map(move |b| (a, b)))
        .map(|(a, b)| (a, setting(a), b, setting(b)))
        .collect()
}

/// Valid combinations with every valid pair among them, the most useful first.
fn pairwise() -> Vec<Combination> {
    let all: Vec<Combination> = (0..1 << OFFLOADS.len()).filter(|c| valid(*c)).collect();
    let mut wanted: BTreeSet<_> = all.iter().flat_map(|c| pairs_of(*c)).collect();
    let mut chosen = vec![];
    while !wanted.is_empty() {
        let gain = |c: &Combination| pairs_of(*c).intersection(&wanted).count();
        let Some(best) = all.iter().copied().max_by_key(gain) else {
            break;
        };
        for pair in pairs_of(best) {
            wanted.remove(&pair);
        }
        chosen.push(best);
    }
    chosen
}

fn nic(daemon: &Daemon, port: &str, number: usize, combination: Combination) -> Nic {
    let side = u8::from(port.starts_with('b'));
    let mac = format!("52:54:00:0f:{side:02x}:{number:02x}");
    OFFLOADS.iter().fold(
        Nic::vhost_user(daemon.socket(port), &mac),
        |nic, (name, _)| {
            let setting = if on(combination, name) { "on" } else { "off" };
            nic.option(&format!("{name}={setting}"))
        },
    )
}

fn describe(combination: Combination) -> String {
    let names = OFFLOADS
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| on(combination, name));
    names.collect::<Vec<_>>().join(" ")
}

/// Card `i` of guest `a` has combination `i`, of guest `b` combination `i + shift`.
fn check(dir: &std::path::Path, qemu: &Qemu, shift: usize) -> Result<()> {
    let combinations = pairwise();
    let count = combinations.len();
    let of_b = |i: usize| combinations[(i + shift) % count];
    let ports: Vec<String> = (0..count)
        .flat_map(|i| [format!("a{i},vm=a"), format!("b{i},vm=b")])
        .collect();
    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
    let daemon = Daemon::with_ports(dir, &ports)?;
    let guest = |name: &str| GuestConfig::new(name).qemu(qemu).memory_mib(512);
    let (mut config_a, mut config_b) = (guest("a"), guest("b"));
    for (i, &combination) in combinations.iter().enumerate() {
        config_a = config_a.nic(nic(&daemon, &format!("a{i}"), i, combination));
        config_b = config_b.nic(nic(&daemon, &format!("b{i}"), i, of_b(i)));
    }
    let (mut a, mut b) = boot_two(dir, config_a, config_b)?;
    for (i, &combination) in combinations.iter().enumerate() {
        let eth = format!("eth{i}");
        a.configure(
            &eth,
            &[&format!("10.0.{i}.1/24"), &format!("fd00:0:0:{i:x}::1/64")],
        )?;
        b.configure(
            &eth,
            &[&format!("10.0.{i}.2/24"), &format!("fd00:0:0:{i:x}::2/64")],
        )?;
        let names = || format!("a: {}\nb: {}", describe(combination), describe(of_b(i)));
        for (guest, combination) in [(&mut a, combination), (&mut b, of_b(i))] {
            let taken = guest.features(&eth)?;
            for (name, bit) in OFFLOADS {
                ensure!(
                    taken.contains(&bit) == on(combination, name),
                    "{name} of {eth} in {} is not as asked for\n{}",
                    guest.name(),
                    names()
                );
            }
        }
        let bytes = if long() { 64 << 20 } else { 2 << 20 };
        let ipv4 = a
            .stream(&format!("10.0.{i}.2"), bytes)
            .with_context(names)?;
        let ipv6 = b
            .stream(&format!("fd00:0:0:{i:x}::1"), bytes)
            .with_context(names)?;
        a.echo(&format!("10.0.{i}.2"), &[1, 1472, 9000])
            .with_context(names)?;
        b.echo(&format!("fd00:0:0:{i:x}::1"), &[1, 1452, 9000])
            .with_context(names)?;
        say(&format!("      {eth}: {} and {}", ipv4.trim(), ipv6.trim()));
    }
    daemon.check_arithmetic()?;
    drop((a, b));
    daemon.stop()
}

#[test]
fn pairwise_combinations_carry_every_byte() -> Result<()> {
    let name = "guests_offloads::pairwise_combinations_carry_every_byte";
    scenario(name, &[Need::Guests], |lab| {
        let shifts = if long() { 0..pairwise().len() } else { 1..2 };
        shifts
            .into_iter()
            .try_for_each(|shift| check(lab.path(), &qemus()?[0], shift))
    })
}

#[test]
fn newer_qemu_pairwise_combinations_carry_every_byte() -> Result<()> {
    let name = "guests_offloads::newer_qemu_pairwise_combinations_carry_every_byte";
    scenario(name, &[Need::Guests, Need::NewerQemu], |lab| {
        check(lab.path(), &qemus()?[1], 2)
    })
}

/// The set is what it says: valid, and no valid pair is missing.
#[test]
fn the_set_is_pairwise() {
    let set = pairwise();
    assert!(set.iter().all(|c| valid(*c)));
    let covered: BTreeSet<_> = set.iter().flat_map(|c| pairs_of(*c)).collect();
    let all: BTreeSet<_> = (0..1 << OFFLOADS.len())
        .filter(|c| valid(*c))
        .flat_map(pairs_of)
        .collect();
    assert_eq!(covered, all);
    // Each is a network card in each guest: the bus has 32 slots.
    assert!(set.len() <= 24, "{} combinations", set.len());
}
