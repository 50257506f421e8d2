use proptest::prelude::*;

use super::*;

const HOST: Mac = Mac([2, 0, 0, 0, 0, 1]);
const MEMBER: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// A frame with these TLVs.
fn frame(tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    let mut frame = [&NEAREST_BRIDGE.0[..], &MEMBER.0, &[0x88, 0xcc]].concat();
    for (kind, value) in tlvs {
        put(&mut frame, *kind, &[value]);
    }
    frame
}

const CHASSIS: (u8, &[u8]) = (CHASSIS_ID, &[4, 2, 0, 0, 0, 0, 1]);
const PORT: (u8, &[u8]) = (PORT_ID, b"\x05eth0");
const TTL: (u8, &[u8]) = (TIME_TO_LIVE, &[0, 120]);

/// What is read of a frame with the mandatory TLVs and these.
fn read_with(tlvs: &[(u8, &[u8])]) -> Option<Neighbour> {
    Neighbour::read(&frame(&[&[CHASSIS, PORT, TTL], tlvs].concat()))
}

#[test]
fn what_is_announced_is_read() {
    let announcement = Announcement {
        chassis: HOST,
        port: "eth0",
        system_name: "host1.example",
        port_description: "team0 zu Gestell 7 ↑",
        ttl: Duration::from_millis(119_001),
    };
    let frame = announcement.frame(MEMBER);
    let read = Neighbour {
        chassis_id: HOST.to_string(),
        port_id: "eth0".into(),
        system_name: Some("host1.example".into()),
        port_description: Some("team0 zu Gestell 7 ↑".into()),
        vlan: None,
        ttl: Duration::from_secs(120),
    };
    assert_eq!(frame[6..12], MEMBER.0);
    assert_eq!(Neighbour::read(&frame), Some(read.clone()));
    assert!(!read.is_shutdown());
    // And goodbye.
    let ttl = Duration::ZERO;
    let frame = Announcement {
        ttl,
        ..announcement
    }
    .frame(MEMBER);
    assert_eq!(frame.len(), MIN_FRAME);
    let read = Neighbour::read(&frame).unwrap();
    assert!(read.is_shutdown() && read.system_name.is_none());
    // The largest that there is.
    let long = "ü".repeat(300);
    let frame = Announcement {
        port: &long,
        system_name: &long,
        port_description: &long,
        ttl: Duration::MAX,
        ..announcement
    }
    .frame(MEMBER);
    let read = Neighbour::read(&frame).unwrap();
    assert_eq!(read.port_id, "ü".repeat(127));
    assert_eq!(read.system_name, read.port_description);
    assert_eq!(read.ttl, Duration::from_secs(65_535));
}

/// A switch's frame, byte by byte as the figures of clause 8 have them.
#[rustfmt::skip]
const SWITCH: &[u8] = &[
    0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e, 0x00, 0x1b, 0x21, 0x00, 0x00, 0x07, 0x88, 0xcc,
    // Chassis ID, 7 octets: MAC address.
    0x02, 0x07, 0x04, 0x00, 0x1b, 0x21, 0x00, 0x00, 0x01,
    // Port ID, 8 octets: interface name.
    0x04, 0x08, 0x05, b'E', b't', b'h', b'1', b'/', b'4', b'7',
    // Time to live, 2 octets: 120 s.
    0x06, 0x02, 0x00, 0x78,
    // Port description, 6 octets.
    0x08, 0x06, b'r', b'a', b'c', b'k', b' ', b'7',
    // System name, 3 octets.
    0x0a, 0x03, b's', b'w', b'1',
    // System description, 2 octets.
    0x0c, 0x02, b'O', b'S',
    // System capabilities, 4 octets: a bridge that is on.
    0x0e, 0x04, 0x00, 0x04, 0x00, 0x04,
    // Management address, 12 octets: 192.0.2.1.
    0x10, 0x0c, 0x05, 0x01, 192, 0, 2, 1, 0x02, 0x00, 0x00, 0x00, 0x01, 0x00,
    // Organization IEEE 802.3, 9 octets: MAC/PHY configuration and status.
    0xfe, 0x09, 0x00, 0x12, 0x0f, 0x01, 0x03, 0xec, 0xc3, 0x00, 0x10,
    // Organization IEEE 802.1, 6 octets: port VLAN ID 100.
    0xfe, 0x06, 0x00, 0x80, 0xc2, 0x01, 0x00, 0x64,
    // A type that is reserved, 1 octet.
    0x14, 0x01, 0xff,
    // End of LLDPDU.
    0x00, 0x00,
];

#[test]
fn a_frame_of_the_standard_is_read() {
    let read = Neighbour {
        chassis_id: "00:1b:21:00:00:01".into(),
        port_id: "Eth1/47".into(),
        system_name: Some("sw1".into()),
        port_description: Some("rack 7".into()),
        vlan: Some(100),
        ttl: Duration::from_secs(120),
    };
    assert_eq!(Neighbour::read(SWITCH), Some(read.clone()));
    // What follows its end is padding.
    assert_eq!(Neighbour::read(&[SWITCH, &[0xff; 9]].concat()), Some(read));
    for at in [0, 5, 12, 13, 14, 23, 33] {
        let mut other = SWITCH.to_vec();
        other[at] ^= 8;
        assert_eq!(Neighbour::read(&other), None, "byte {at}");
    }
}

#[test]
fn a_frame_that_is_cut_is_refused() {
    // Where TLVs end after the third: the end itself may lack (8.5.1).
    let mut ends = vec![];
    let mut rest = &SWITCH[HEADER_LEN..];
    while take(&mut rest).is_some() {
        ends.push(SWITCH.len() - rest.len());
    }
    assert_eq!(ends.len(), 12);
    for len in 0..SWITCH.len() {
        let read = Neighbour::read(&SWITCH[..len]);
        assert_eq!(read.is_some(), ends[2..].contains(&len), "{len}");
    }
}

#[test]
fn each_kind_of_id_is_shown() {
    let shown = |kind: u8, subtype: u8, value: &[u8]| {
        let value = [&[subtype], value].concat();
        let (chassis, port) = match kind {
            CHASSIS_ID => ((CHASSIS_ID, &value[..]), PORT),
            _ => (CHASSIS, (PORT_ID, &value[..])),
        };
        let read = Neighbour::read(&frame(&[chassis, port, TTL]))?;
        Some(if kind == CHASSIS_ID {
            read.chassis_id
        } else {
            read.port_id
        })
    };
    let ipv6 = [&[2][..], &Ipv6Addr::LOCALHOST.octets()].concat();
    for (kind, mac, network) in [(CHASSIS_ID, 4, 5), (PORT_ID, 3, 4)] {
        let shown = |subtype, value: &[u8]| shown(kind, subtype, value);
        assert_eq!(
            shown(mac, &[2, 0, 0, 0, 0, 1]).unwrap(),
            "02:00:00:00:00:01"
        );
        assert_eq!(shown(network, &[1, 192, 0, 2, 1]).unwrap(), "192.0.2.1");
        assert_eq!(shown(network, &ipv6).unwrap(), "::1");
        // What is not as its subtype says.
        assert_eq!(shown(mac, b"abc").unwrap(), "61:62:63");
        assert_eq!(shown(network, &[1, 192, 0]).unwrap(), "c0:00");
        for subtype in [1, 2, 6, 7, 0, 200] {
            assert_eq!(shown(subtype, b"slot 3").unwrap(), "slot 3");
            assert_eq!(shown(subtype, b"slot 3\0").unwrap(), "slot 3");
            assert_eq!(shown(subtype, b"a\x1b[m").unwrap(), "61:1b:5b:6d");
            assert_eq!(shown(subtype, &[0, 0]).unwrap(), "00:00");
            assert_eq!(shown(subtype, b""), None);
            assert!(shown(subtype, &[b'a'; 255]).is_some());
            assert_eq!(shown(subtype, &[b'a'; 256]), None);
        }
    }
}

#[test]
fn what_is_mandatory_is_there_once_and_first() {
    assert!(read_with(&[]).is_some());
    for tlvs in [
        &[PORT, CHASSIS, TTL][..],
        &[CHASSIS, TTL, PORT],
        &[(SYSTEM_NAME, b"sw"), CHASSIS, PORT, TTL],
        &[CHASSIS, PORT],
        &[CHASSIS, PORT, (TIME_TO_LIVE, &[1])],
        &[CHASSIS, PORT, TTL, CHASSIS],
        &[CHASSIS, PORT, TTL, (SYSTEM_NAME, b"sw"), TTL],
        &[],
    ] {
        assert_eq!(Neighbour::read(&frame(tlvs)), None, "{tlvs:?}");
    }
}

#[test]
fn optional_tlvs_that_are_wrong_are_passed_over() {
    let pvid = |value: &[u8]| [&PORT_VLAN_ID, value].concat();
    for wrong in [
        pvid(&[0, 0]),
        pvid(&[0x0f, 0xff]),
        pvid(&[1]),
        pvid(&[0, 1, 0]),
        vec![],
    ] {
        let read = read_with(&[(ORGANIZATION, &wrong), (ORGANIZATION, &pvid(&[0, 5]))]);
        assert_eq!(read.unwrap().vlan, Some(5), "{wrong:?}");
    }
    let long = [b'a'; 256];
    for wrong in [&b""[..], b"\0\0", &long] {
        let read = read_with(&[
            (SYSTEM_NAME, wrong),
            (SYSTEM_NAME, b"sw"),
            (SYSTEM_NAME, b"no"),
        ]);
        assert_eq!(read.unwrap().system_name.unwrap(), "sw");
    }
    let read = read_with(&[(
        SYSTEM_NAME,
        "s\x1b[31mw\r\n\u{9b}\u{202e}ü\u{2028}".as_bytes(),
    )]);
    assert_eq!(
        read.unwrap().system_name.unwrap(),
        "s\u{fffd}[31mw\u{fffd}\u{fffd}\u{fffd}\u{fffd}ü\u{fffd}"
    );
    let read = read_with(&[(PORT_DESCRIPTION, b"a\xffb")]).unwrap();
    assert_eq!(read.port_description.unwrap(), "a\u{fffd}b");
}

fn check(neighbour: &Neighbour) {
    let texts = [Some(&neighbour.chassis_id), Some(&neighbour.port_id)];
    let names = [
        neighbour.system_name.as_ref(),
        neighbour.port_description.as_ref(),
    ];
    for text in texts.into_iter().chain(names).flatten() {
        assert!(text.chars().all(is_shown), "{text:?}");
        assert!(!text.is_empty() && text.len() <= 3 * MAX_TEXT);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let header = &SWITCH[..HEADER_LEN];
        let three = frame(&[CHASSIS, PORT, TTL]);
        for frame in [bytes.clone(), [header, &bytes].concat(), [&three[..], &bytes].concat()] {
            if let Some(neighbour) = Neighbour::read(&frame) {
                check(&neighbour);
            }
        }
    }

    #[test]
    fn any_values_are_shown(
        ids in prop::array::uniform2(prop::collection::vec(any::<u8>(), 0..300)),
        names in prop::array::uniform2(prop::collection::vec(any::<u8>(), 0..300)),
    ) {
        let tlvs: [(u8, &[u8]); 5] = [
            (CHASSIS_ID, &ids[0]),
            (PORT_ID, &ids[1]),
            TTL,
            (SYSTEM_NAME, &names[0]),
            (PORT_DESCRIPTION, &names[1]),
        ];
        if let Some(neighbour) = Neighbour::read(&frame(&tlvs)) {
            check(&neighbour);
        }
    }

    #[test]
    fn a_frame_with_one_byte_changed_is_read(at in 0..SWITCH.len(), value: u8) {
        let mut frame = SWITCH.to_vec();
        frame[at] = value;
        if let Some(neighbour) = Neighbour::read(&frame) {
            check(&neighbour);
        }
    }
}
