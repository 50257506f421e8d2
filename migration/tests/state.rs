//! States travel whole, or are refused with a reason: from another version, damaged, cut off, or made
//! up by someone who means harm.

use std::net::IpAddr;

use proptest::collection::{hash_map, hash_set, vec};
use proptest::option;
use proptest::prelude::*;
use tandem_migration::state::{
    Counters, Identity, LearnedAddress, MAX_ADDRESSES, MAX_COUNT, MAX_LEN, MAX_NAME, Mac,
    Neighbour, PairCounters, PortCounters, PortState, StateError,
};

/// What version 1 of format and sections has written, by hand and for good.
const VERSION_1: &str = "
    544e444d504f5254 0100 0400 2e010000
    0100 0100 0100 14000000
        04 77656231 01 525400000001 01000000 0200 dc05
    0200 0100 0000 a2000000
        0700000000000000 5802000000000000
            0100 0b 73706f6f6665645f6d6163 0300000000000000
        0200
        0a00000000000000 e803000000000000 0000
        1400000000000000 d007000000000000
            0100 09 72696e675f66756c6c 0100000000000000
        0500000000000000 0600000000000000
        0000000000000000 0000000000000000 0000
        0000000000000000 0000000000000000 0000
        0000000000000000 0000000000000000
    0300 0100 0000 12000000
        0200
        525400000001 0000
        525400000001 0a00
    0400 0100 0000 2a000000
        0200
        04 0a000001 525400000001 0000 00
        06 fe800000000000000000000000000009 525400000001 0a00 01
    8d7c0738";

fn version_1() -> PortState {
    let mac = [0x52, 0x54, 0, 0, 0, 1];
    let drops = |reason: &str, frames| vec![(reason.to_owned(), frames)];
    let counters = |frames, bytes, drops| Counters {
        frames,
        bytes,
        drops,
    };
    let first = PairCounters {
        from_vm: counters(10, 1000, Vec::new()),
        to_vm: counters(20, 2000, drops("ring_full", 1)),
        kicks: 5,
        calls: 6,
    };
    let neighbour = |ip: &str, vlan, router| Neighbour {
        ip: ip.parse().unwrap(),
        mac,
        vlan,
        router,
    };
    PortState {
        identity: Identity {
            name: "web1".into(),
            mac: Some(mac),
            feature_level: 1,
            queue_pairs: 2,
            mtu: 1500,
        },
        counters: Some(PortCounters {
            switch: counters(7, 600, drops("spoofed_mac", 3)),
            pairs: vec![first, PairCounters::default()],
        }),
        addresses: vec![
            LearnedAddress { mac, vlan: 0 },
            LearnedAddress { mac, vlan: 10 },
        ],
        neighbours: vec![
            neighbour("10.0.0.1", None, false),
            neighbour("fe80::9", Some(10), true),
        ],
    }
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn restore(bytes: &[u8]) -> Result<PortState, StateError> {
    PortState::try_from(bytes)
}

/// Puts length and checksum right in what somebody has made up.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - 4;
    let len = (bytes.len() as u32).to_le_bytes();
    bytes[12..16].copy_from_slice(&len);
    let checksum = crc32fast::hash(&bytes[..end]).to_le_bytes();
    bytes[end..].copy_from_slice(&checksum);
    bytes
}

/// A state of these sections: id, version, flags, content.
fn of_sections(sections: &[(u16, u16, u16, &[u8])]) -> Vec<u8> {
    let mut bytes = b"TNDMPORT\x01\x00".to_vec();
    bytes.extend((sections.len() as u16).to_le_bytes());
    bytes.extend([0; 4]);
    for (id, version, flags, content) in sections {
        for field in [id, version, flags] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend((content.len() as u32).to_le_bytes());
        bytes.extend(*content);
    }
    bytes.extend([0; 4]);
    sealed(bytes)
}

/// The identity of a port without a name or pairs.
const IDENTITY: &[u8] = &[0; 16];

#[test]
fn version_1_stays_readable() {
    let bytes = bytes_of(VERSION_1);
    assert_eq!(restore(&bytes), Ok(version_1()));
    assert_eq!(version_1().to_bytes(), Ok(bytes));
}

#[test]
fn what_came_later_is_skipped_or_refused_by_name() {
    let new = (900, 1, 0, &b"anything"[..]);
    let with = |section| restore(&of_sections(&[(1, 1, 1, IDENTITY), section]));
    assert_eq!(with(new), Ok(PortState::default()));
    assert_eq!(with((900, 1, 1, b"")), Err(StateError::UnknownSection(900)));
    let newer = |section, version| StateError::NewerSection {
        section,
        version,
        known: 1,
    };
    assert_eq!(with((3, 2, 0, b"")), Err(newer("addresses", 2)));
    let refused = restore(&of_sections(&[(1, 7, 1, IDENTITY)])).unwrap_err();
    assert_eq!(refused, newer("identity", 7));
    let words = refused.to_string();
    assert!(words.contains("identity in version 7") && words.contains("update tandemd"));
    let mut format = bytes_of(VERSION_1);
    format[8] = 2;
    assert_eq!(restore(&sealed(format)), Err(StateError::NewerFormat(2)));
    // What the sender has not said is not made up.
    let alone = of_sections(&[(1, 1, 1, IDENTITY)]);
    assert_eq!(restore(&alone).unwrap().counters, None);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let times = |section, times| Err(StateError::Times { section, times });
    let identity = (1, 1, 1, IDENTITY);
    let empty = (3, 1, 0, &[0, 0][..]);
    assert_eq!(restore(&of_sections(&[])), times("identity", 0));
    assert_eq!(restore(&of_sections(&[empty])), times("identity", 0));
    let twice = of_sections(&[identity, empty, empty]);
    assert_eq!(restore(&twice), times("addresses", 2));
    // More sections than it says, fewer, and one that is longer than all.
    for (at, byte) in [(10, 0), (10, 2), (22, 0xff)] {
        let mut bytes = of_sections(&[identity]);
        bytes[at] = byte;
        let refused = restore(&sealed(bytes)).unwrap_err();
        assert!(matches!(refused, StateError::Malformed { .. }), "{refused}");
    }
    // Sections whose content is not theirs.
    let contents: [(u16, &[u8]); 9] = [
        (2, b""),
        (2, &[0; 21]),
        (3, b""),
        (3, &[1, 0]),
        (3, &[0xff, 0xff, 1, 2, 3]),
        (3, &[0, 0, 0]),
        (3, &[1, 0, 2, 0, 0, 0, 0, 1, 0xff, 0x0f]), // VLAN 4095
        (4, &[1, 0, 5, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0]), // IPv5
        (4, &[1, 0, 4, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 2]), // neither a router nor none
    ];
    for (id, content) in contents {
        let refused = restore(&of_sections(&[identity, (id, 1, 0, content)]));
        assert!(
            matches!(refused, Err(StateError::Malformed { .. })),
            "{content:?}: {refused:?}"
        );
    }
    assert_eq!(
        restore(b"#!/bin/sh, and more of it"),
        Err(StateError::NotAState)
    );
}

#[test]
fn what_is_too_large_is_neither_made_nor_read() {
    assert_eq!(restore(&vec![0; MAX_LEN + 1]), Err(StateError::TooLong));
    let addresses = |n: usize| PortState {
        addresses: (0..n as u32)
            .map(|i| LearnedAddress {
                mac: [2, 0, 0, 0, (i >> 8) as u8, i as u8],
                vlan: 0,
            })
            .collect(),
        ..PortState::default()
    };
    assert!(addresses(MAX_ADDRESSES).to_bytes().is_ok());
    assert!(addresses(MAX_ADDRESSES + 1).to_bytes().is_err());
    let mut state = version_1();
    state.addresses.push(state.addresses[0]);
    assert!(state.to_bytes().is_err());
    let mut state = version_1();
    state.identity.name = "x".repeat(MAX_NAME + 1);
    assert!(state.to_bytes().is_err());
    let mut state = version_1();
    state.identity.queue_pairs = 3;
    assert!(state.to_bytes().is_err());
    for counts in [[MAX_COUNT, 1], [u64::MAX, u64::MAX]] {
        let mut state = version_1();
        let counters = state.counters.as_mut().unwrap();
        [counters.switch.bytes, counters.pairs[1].kicks] = counts;
        assert!(state.to_bytes().is_err());
    }
}

#[test]
fn another_port_is_told_apart() {
    let ours = version_1().identity;
    assert_eq!(ours.check(&ours), Ok(()));
    let mut theirs = ours.clone();
    theirs.mtu = 9000;
    let refused = theirs.check(&ours).unwrap_err();
    assert_eq!(refused.key, "mtu");
    let words = refused.to_string();
    assert!(
        words.contains("mtu = 9000") && words.contains("1500"),
        "{words}"
    );
    type Change = fn(&mut Identity);
    let changes: [(&str, Change); 4] = [
        ("name", |id| id.name = "web2".into()),
        ("mac", |id| id.mac = None),
        ("feature_level", |id| id.feature_level = 2),
        ("queue_pairs", |id| id.queue_pairs = 1),
    ];
    for (key, change) in changes {
        let mut theirs = ours.clone();
        change(&mut theirs);
        assert_eq!(theirs.check(&ours).unwrap_err().key, key);
    }
}

#[test]
fn every_cut_and_every_flipped_bit_is_noticed() {
    let bytes = bytes_of(VERSION_1);
    for len in 0..bytes.len() {
        let refused = restore(&bytes[..len]).unwrap_err();
        assert!(
            matches!(refused, StateError::Cut { .. }),
            "{len}: {refused}"
        );
    }
    for bit in 0..8 * bytes.len() {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(restore(&flipped).is_err(), "bit {bit}");
    }
}

fn counters() -> impl Strategy<Value = Counters> {
    let count = || 0..MAX_COUNT / 256;
    let drops = hash_map("[a-z_]{1,20}", count(), 0..8);
    (count(), count(), drops).prop_map(|(frames, bytes, drops)| Counters {
        frames,
        bytes,
        drops: drops.into_iter().collect(),
    })
}

fn pair() -> impl Strategy<Value = PairCounters> {
    (counters(), counters(), any::<u32>(), any::<u32>()).prop_map(
        |(from_vm, to_vm, kicks, calls)| PairCounters {
            from_vm,
            to_vm,
            kicks: kicks.into(),
            calls: calls.into(),
        },
    )
}

fn neighbours() -> impl Strategy<Value = Vec<Neighbour>> {
    let claim = (any::<IpAddr>(), option::of(1..=4094u16));
    let said = (any::<Mac>(), any::<bool>());
    hash_map(claim, said, 0..16).prop_map(|all| {
        let neighbour = |((ip, vlan), (mac, router))| Neighbour {
            ip,
            mac,
            vlan,
            router,
        };
        all.into_iter().map(neighbour).collect()
    })
}

fn addresses() -> impl Strategy<Value = Vec<LearnedAddress>> {
    let address = (any::<Mac>(), 0..=4094u16).prop_map(|(mac, vlan)| LearnedAddress { mac, vlan });
    hash_set(address, 0..64).prop_map(|all| all.into_iter().collect())
}

fn states() -> impl Strategy<Value = PortState> {
    let identity = (
        ".{0,40}",
        option::of(any::<Mac>()),
        any::<u32>(),
        any::<u16>(),
    );
    let counted = option::of((counters(), vec(pair(), 0..5)));
    let parts = (identity, counted, addresses(), neighbours(), any::<u16>());
    parts.prop_map(|(id, counted, addresses, neighbours, pairs)| {
        let counters = counted.map(|(switch, pairs)| PortCounters { switch, pairs });
        let queue_pairs = counters.as_ref().map_or(pairs, |c| c.pairs.len() as u16);
        PortState {
            identity: Identity {
                name: id.0,
                mac: id.1,
                feature_level: id.2,
                queue_pairs,
                mtu: id.3,
            },
            counters,
            addresses,
            neighbours,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_state_comes_back_as_it_was(state in states()) {
        let bytes = state.to_bytes().unwrap();
        prop_assert_eq!(restore(&bytes), Ok(state));
    }

    #[test]
    fn a_damaged_state_is_refused(
        state in states(), bit in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>(),
    ) {
        let bytes = state.to_bytes().unwrap();
        prop_assert!(restore(&bytes[..cut.index(bytes.len())]).is_err());
        let mut flipped = bytes.clone();
        let bit = bit.index(8 * bytes.len());
        flipped[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(restore(&flipped).is_err());
        let longer = [bytes, vec![0]].concat();
        prop_assert!(restore(&longer).is_err());
    }

    /// Whoever gets the checksum right can still not make a state that has two forms, or breaks a
    /// limit: what is restored is what would be sent, but for sections that are skipped.
    #[test]
    fn a_forged_state_is_whole_or_refused(
        state in states(), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = state.to_bytes().unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(restored) = restore(&sealed(bytes)) {
            let again = restored.to_bytes().unwrap();
            prop_assert_eq!(restore(&again), Ok(restored));
        }
    }

    #[test]
    fn anything_else_is_refused(
        bytes in vec(any::<u8>(), 0..512), sections in prop_oneof![0..4u16, any::<u16>()],
    ) {
        prop_assert!(restore(&bytes).is_err());
        // And with a header and a checksum that are right, never half.
        let mut made_up = b"TNDMPORT\x01\x00".to_vec();
        made_up.extend(sections.to_le_bytes());
        made_up.extend([0; 4]);
        made_up.extend(bytes);
        made_up.extend([0; 4]);
        if let Ok(restored) = restore(&sealed(made_up)) {
            prop_assert!(restored.to_bytes().is_ok());
        }
    }
}
