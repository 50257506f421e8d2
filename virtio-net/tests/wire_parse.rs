//! One pass over a frame's head, against the way the frame was built.

mod offload_frames;

use std::collections::HashSet;

use offload_frames::*;
use proptest::prelude::*;
use tandem_virtio_net::wire::vlan::Tci;
use tandem_virtio_net::wire::{FlowKey, IpVersion, Parsed, ethernet, parse, plain_flow, protocol};

fn whole(frame: &[u8]) -> Parsed {
    parse(frame, frame.len())
}

/// Parses as a switch does that pulls up what is asked for.
fn pulled_up(frame: &[u8], mut have: usize) -> Parsed {
    loop {
        let parsed = parse(&frame[..have], frame.len());
        let Some(need) = parsed.needs() else {
            return parsed;
        };
        assert!(
            need > have && need <= frame.len(),
            "{need} after {have} of {}",
            frame.len()
        );
        assert!(!parsed.has_l4() && !parsed.is_malformed());
        have = need;
    }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn headers_are_found_where_they_were_put(shape in shape(), len in 0..300usize) {
        let parsed = whole(&shape.frame(&payload(len)));
        let offsets = (parsed.l3.into(), parsed.l4.into(), parsed.payload.into());
        prop_assert_eq!(offsets, (shape.l3(), shape.l4(), shape.payload()));
        prop_assert!(parsed.has_l4() && !parsed.is_fragment() && !parsed.is_malformed());
        prop_assert_eq!(parsed.needs(), None);
        let version = if shape.v6 { IpVersion::V6 } else { IpVersion::V4 };
        prop_assert_eq!(parsed.ip_version(), Some(version));
        let proto = if shape.udp { protocol::UDP } else { protocol::TCP };
        prop_assert_eq!((parsed.protocol, parsed.key.protocol), (proto, proto));
        prop_assert_eq!((parsed.key.src_port, parsed.key.dst_port), (SRC_PORT, DST_PORT));
        if shape.v6 {
            prop_assert_eq!((parsed.key.src, parsed.key.dst), (SRC6, DST6));
        } else {
            prop_assert_eq!((&parsed.key.src[..4], &parsed.key.dst[..4]), (&SRC4[..], &DST4[..]));
            prop_assert_eq!((&parsed.key.src[4..], &parsed.key.dst[4..]), (&[0; 12][..], &[0; 12][..]));
        }
        prop_assert_eq!(usize::from(parsed.tags), shape.tags);
        let tpid = [0, 0x8100, 0x88a8][shape.tags];
        prop_assert_eq!(parsed.tpid, tpid);
        for (i, tci) in parsed.tci.iter().enumerate() {
            let built = if i < shape.tags { Tci::new(3, false, 100 + i as u16) } else { Tci(0) };
            prop_assert_eq!(*tci, built);
        }
    }

    #[test]
    fn a_short_head_leads_to_the_same_result(
        shape in shape(),
        len in 0..100usize,
        damage in prop::collection::vec((12..150usize, any::<u8>()), 0..4),
        have in 0..200usize,
    ) {
        let mut frame = shape.frame(&payload(len));
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        prop_assert_eq!(pulled_up(&frame, have.min(frame.len())), whole(&frame));
    }

    #[test]
    fn any_bytes_parse_to_offsets_in_order_inside_the_frame(
        head in prop::collection::vec(any::<u8>(), 0..400),
        ethertype in prop::sample::select(vec![0x0800u16, 0x86dd, 0x8100, 0x88a8, 0x0806]),
        inner in prop::sample::select(vec![0x0800u16, 0x86dd, 0x8100]),
        extra in 0..70_000usize,
    ) {
        let mut head = head;
        for (at, value) in [(12, ethertype), (16, inner)] {
            if let Some(bytes) = head.get_mut(at..at + 2) {
                bytes.copy_from_slice(&value.to_be_bytes());
            }
        }
        let frame_len = head.len() + extra;
        let parsed = parse(&head, frame_len);
        if let Some(need) = parsed.needs() {
            prop_assert!(need > head.len() && need <= frame_len);
        }
        if parsed.has_l4() {
            prop_assert!(parsed.l3 < parsed.l4 && parsed.l4 < parsed.payload);
            prop_assert!(usize::from(parsed.payload) <= head.len());
        }
        // Bytes behind the frame are none of it.
        let short = head.len() / 2;
        prop_assert_eq!(parse(&head, short), parse(&head[..short], short));
    }
}

#[test]
fn frames_other_than_ip_have_no_flow() {
    let mut arp = vec![0; 60];
    arp[12..14].copy_from_slice(&[8, 6]);
    let parsed = whole(&arp);
    assert_eq!(
        (parsed.ethertype, parsed.l3, parsed.l4),
        (ethernet::TYPE_ARP, 14, 0)
    );
    assert_eq!(parsed.key, FlowKey::default());
    assert_eq!(parsed.ip_version(), None);

    // A length, not a type: 802.3 with LLC.
    let mut llc = vec![0; 60];
    llc[13] = 46;
    assert_eq!((whole(&llc).ethertype, whole(&llc).l3), (46, 14));
}

#[test]
fn a_third_tag_ends_the_walk() {
    let mut frame = Shape {
        tags: 2,
        ..Shape::udp4()
    }
    .frame(&[]);
    frame.splice(12..12, [0x88, 0xa8, 0x00, 0x07]);
    let parsed = whole(&frame);
    assert_eq!((parsed.tags, parsed.ethertype, parsed.l3), (2, 0x8100, 22));
    assert_eq!(parsed.tci[0].vid(), 7);
    assert!(!parsed.has_l4() && !parsed.is_malformed());
}

#[test]
fn all_fragments_of_a_packet_have_one_key() {
    let frame = Shape::udp4().frame(&payload(64));
    let fragment = |field: u16| {
        let mut frame = frame.clone();
        frame[20..22].copy_from_slice(&field.to_be_bytes());
        whole(&frame)
    };
    let (first, later, last) = (fragment(0x2000), fragment(0x2001), fragment(0x0002));
    assert!(first.has_l4() && first.is_fragment() && !first.is_later_fragment());
    for parsed in [later, last] {
        assert!(!parsed.has_l4() && parsed.is_fragment() && parsed.is_later_fragment());
        assert_eq!((parsed.l4, parsed.payload, parsed.key), (34, 34, first.key));
    }
    assert_eq!((first.key.src_port, first.key.dst_port), (0, 0));
    assert_ne!(first.key, whole(&frame).key);
    // "Do not fragment" is not a fragment.
    assert_eq!(fragment(0x4000), whole(&frame));
}

/// An IPv6 UDP frame whose one extension header is replaced.
fn v6_with(next: u8, extension: [u8; 8]) -> Parsed {
    let mut frame = Shape {
        ip_extra: 1,
        ..Shape::udp6()
    }
    .frame(&payload(64));
    frame[20] = next;
    frame[54..62].copy_from_slice(&extension);
    whole(&frame)
}

#[test]
fn ipv6_fragments_are_told() {
    let fragment = |field: u16| {
        let [a, b] = field.to_be_bytes();
        v6_with(protocol::FRAGMENT, [protocol::UDP, 0, a, b, 0, 0, 0, 1])
    };
    let (first, later) = (fragment(1), fragment(8));
    assert!(first.has_l4() && first.is_fragment() && !first.is_later_fragment());
    assert!(!later.has_l4() && later.is_later_fragment());
    assert_eq!(
        (later.l4, later.protocol, later.key),
        (62, protocol::UDP, first.key)
    );
    // An atomic fragment is a whole packet (RFC 6946).
    let atomic = fragment(0);
    assert!(atomic.has_l4() && !atomic.is_fragment());
    assert_eq!(atomic.key.dst_port, DST_PORT);
}

#[test]
fn extension_headers_have_their_own_units() {
    // An authentication header counts 4-byte units less 2: length 4 is 24 bytes.
    let ah = v6_with(
        protocol::AUTHENTICATION,
        [protocol::UDP, 4, 0, 0, 0, 0, 0, 0],
    );
    assert_eq!((ah.l4, ah.has_l4()), (78, true));
    // Others count 8-byte units less 1: length 1 is 16 bytes, over the UDP header.
    let long = v6_with(protocol::ROUTING, [protocol::UDP, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!((long.l4, long.has_l4()), (70, true));
    // Over all that there is, and one too many.
    let all = v6_with(protocol::ROUTING, [protocol::ICMPV6, 9, 0, 0, 0, 0, 0, 0]);
    assert_eq!((all.l4, all.is_malformed()), (134, false));
    let beyond = v6_with(protocol::ROUTING, [protocol::ICMPV6, 10, 0, 0, 0, 0, 0, 0]);
    assert_eq!((beyond.l4, beyond.is_malformed()), (0, true));
    let esp = v6_with(protocol::ESP, [protocol::UDP, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        (esp.l4, esp.protocol, esp.has_l4()),
        (54, protocol::ESP, false)
    );
}

#[test]
fn a_chain_of_extension_headers_is_walked_to_a_bound() {
    let shape = |ip_extra| Shape {
        ip_extra,
        ..Shape::tcp6()
    };
    assert!(whole(&shape(8).frame(&[])).has_l4());
    let parsed = whole(&shape(9).frame(&[]));
    assert!(parsed.is_malformed() && !parsed.has_l4());
}

#[test]
fn headers_that_contradict_themselves_are_malformed() {
    let damage = |shape: Shape, at: usize, value: u8| {
        let mut frame = shape.frame(&payload(20));
        frame[at] = value;
        let parsed = whole(&frame);
        assert!(
            parsed.is_malformed() && !parsed.has_l4(),
            "{shape:?} {at} {value:#x}"
        );
    };
    damage(Shape::tcp4(), 14, 0x65); // version
    damage(Shape::tcp4(), 14, 0x44); // header length below the minimum
    damage(Shape::tcp4(), 17, 19); // total length below the header
    damage(Shape::tcp4(), 17, 39); // total length inside the TCP header
    damage(Shape::tcp4(), 16, 9); // total length beyond the frame
    damage(Shape::tcp4(), 46, 0x40); // data offset inside the fixed header
    damage(Shape::tcp4(), 46, 0xf0); // data offset beyond the packet
    damage(Shape::tcp6(), 14, 0x45); // version
    damage(Shape::tcp6(), 19, 19); // payload length inside the TCP header
    damage(Shape::tcp6(), 18, 9); // payload length beyond the frame
    let frame = Shape::tcp4().frame(&[]);
    for len in 0..frame.len() {
        let parsed = whole(&frame[..len]);
        assert!(
            parsed.is_malformed() && !parsed.has_l4() && parsed.needs().is_none(),
            "{len}"
        );
    }
}

#[test]
fn padding_is_not_part_of_the_packet() {
    let mut frame = Shape::udp4().frame(&[]);
    frame[17] = 20 + 7; // one byte short of a UDP header
    frame.resize(60, 0);
    assert!(whole(&frame).is_malformed());
    frame[17] = 20 + 8;
    assert!(whole(&frame).has_l4());
}

#[test]
fn every_field_of_a_key_tells_flows_apart() {
    let key = whole(&Shape::tcp6().frame(&[])).key;
    let mut all = HashSet::from([key.words()]);
    for i in 0..16 {
        let (mut a, mut b) = (key, key);
        a.src[i] ^= 0x80;
        b.dst[i] ^= 0x80;
        assert!(
            all.insert(a.words()) && all.insert(b.words()),
            "address byte {i}"
        );
    }
    for i in 0..16 {
        assert!(
            all.insert(
                FlowKey {
                    src_port: key.src_port ^ 1 << i,
                    ..key
                }
                .words()
            )
        );
        assert!(
            all.insert(
                FlowKey {
                    dst_port: key.dst_port ^ 1 << i,
                    ..key
                }
                .words()
            )
        );
    }
    assert!(
        all.insert(
            FlowKey {
                protocol: 17,
                ..key
            }
            .words()
        )
    );
    assert!(all.insert(FlowKey { version: 4, ..key }.words()));
}

proptest! {
    #![proptest_config(cases(500))]

    /// The short way knows a flow when the long way finds the same things, and tells apart what
    /// that tells apart.
    #[test]
    fn the_commonest_flows_are_known_by_two_words(shape in shape(), at in 0..38usize, bit in 0..8) {
        let frame = shape.frame(&payload(40));
        let commonest = !shape.v6 && shape.tags == 0 && shape.l4() - shape.l3() == 20;
        prop_assert_eq!(plain_flow(&frame).is_some(), commonest);
        let mut other = frame.clone();
        other[at] ^= 1u8 << bit;
        let (key, changed) = (whole(&frame).key, whole(&other).key);
        if let (Some(words), Some(others)) = (plain_flow(&frame), plain_flow(&other)) {
            prop_assert!(whole(&other).is_malformed() || (key == changed) == (words == others));
        }
        prop_assert_eq!(plain_flow(&frame[..37]), None);
    }
}
