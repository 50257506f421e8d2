//! The checked views, against headers made by etherparse and by hand.

mod offload_frames;

use std::net::{Ipv4Addr, Ipv6Addr};

use offload_frames::*;
use proptest::prelude::*;
use tandem_virtio_net::wire::ethernet::{Frame, FrameMut, MacAddr};
use tandem_virtio_net::wire::vlan::{Tag, Tci, tag};
use tandem_virtio_net::wire::{Error, arp, ethernet, icmp, ipv4, ipv6, protocol, tcp, udp, vlan};

/// Everything a view says, so that nothing of it can panic.
fn read_all(bytes: &[u8]) -> usize {
    let mut seen = 0;
    if let Ok(v) = Frame::new_checked(bytes) {
        seen += format!(
            "{} {} {} {:?}",
            v.dst(),
            v.src(),
            v.ethertype(),
            v.payload()
        )
        .len();
    }
    if let Ok(v) = Tag::new_checked(bytes) {
        seen += format!("{} {:?} {:?}", v.tpid(), v.tci(), v.rest()).len();
    }
    if let Ok(v) = arp::Packet::new_checked(bytes) {
        let ips = (v.sender_ip(), v.target_ip());
        seen += format!(
            "{} {} {} {ips:?}",
            v.operation(),
            v.sender_mac(),
            v.target_mac()
        )
        .len();
    }
    if let Ok(v) = ipv4::Packet::new_checked(bytes) {
        let bits = (
            v.traffic_class(),
            v.id(),
            v.ttl(),
            v.protocol(),
            v.checksum(),
        );
        seen += format!("{bits:?} {} {:?} {:?}", v.src(), v.options(), v.payload()).len();
        seen += usize::from(v.is_fragment()) + usize::from(v.verify_checksum());
    }
    if let Ok(v) = ipv6::Packet::new_checked(bytes) {
        let bits = (
            v.traffic_class(),
            v.flow_label(),
            v.next_header(),
            v.hop_limit(),
        );
        seen += format!("{bits:?} {} {} {:?}", v.src(), v.dst(), v.payload()).len();
    }
    if let Ok(v) = tcp::Segment::new_checked(bytes) {
        let bits = (
            v.src_port(),
            v.dst_port(),
            v.seq(),
            v.ack(),
            v.flags(),
            v.window(),
        );
        seen += format!(
            "{bits:?} {} {:?} {:?}",
            v.checksum(),
            v.options(),
            v.payload()
        )
        .len();
    }
    if let Ok(v) = udp::Datagram::new_checked(bytes) {
        seen += format!("{} {} {:?}", v.src_port(), v.length(), v.payload()).len();
    }
    if let Ok(v) = icmp::Message::new_checked(bytes) {
        seen += format!("{} {} {} {:?}", v.kind(), v.code(), v.checksum(), v.body()).len();
    }
    seen
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn no_bytes_make_a_view_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..100), v6: bool) {
        read_all(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = if v6 { 0x60 } else { 0x40 | *first & 0xf };
        }
        read_all(&bytes);
        if let Ok(mut header) = ipv4::HeaderMut::new_checked(&mut bytes) {
            header.fill_checksum();
        }
    }

    #[test]
    fn views_read_what_was_built(shape in shape(), len in 0..200usize) {
        let payload = payload(len);
        let frame = shape.frame(&payload);
        let eth = Frame::new_checked(&frame).unwrap();
        prop_assert_eq!((eth.dst(), eth.src()), (MacAddr(DST), MacAddr(SRC)));
        let mut rest = &frame[ethernet::TYPE_AT..];
        for i in 0..shape.tags {
            let tag = Tag::new_checked(rest).unwrap();
            prop_assert_eq!(tag.tci(), Tci::new(3, false, 100 + i as u16));
            rest = tag.rest();
        }
        prop_assert_eq!(Tag::new_checked(rest).unwrap_err(), Error::Malformed);
        let (proto, l4) = if shape.v6 { read_v6(&rest[2..]) } else { read_v4(&rest[2..], shape.id) };
        if shape.udp {
            prop_assert_eq!(proto, protocol::UDP);
            let udp = udp::Datagram::new_checked(l4).unwrap();
            prop_assert_eq!((udp.src_port(), udp.dst_port()), (SRC_PORT, DST_PORT));
            prop_assert_eq!(usize::from(udp.length()), 8 + len);
            prop_assert_eq!(udp.payload(), &payload);
        } else {
            prop_assert_eq!(proto, protocol::TCP);
            let tcp = tcp::Segment::new_checked(l4).unwrap();
            prop_assert_eq!((tcp.src_port(), tcp.dst_port()), (SRC_PORT, DST_PORT));
            prop_assert_eq!((tcp.seq(), tcp.ack(), tcp.window()), (shape.seq, 77, 512));
            let flags = [(true, tcp::ACK), (shape.fin, tcp::FIN), (shape.psh, tcp::PSH), (shape.cwr, tcp::CWR)];
            let flags = flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag);
            prop_assert_eq!(tcp.flags(), flags);
            prop_assert_eq!(tcp.options().len(), 4 * shape.tcp_extra);
            prop_assert_eq!(tcp.payload(), &payload);
        }
    }
}

fn read_v4(bytes: &[u8], id: u16) -> (u8, &[u8]) {
    let ip = ipv4::Packet::new_checked(bytes).unwrap();
    assert_eq!(
        (ip.src(), ip.dst()),
        (Ipv4Addr::from(SRC4), Ipv4Addr::from(DST4))
    );
    assert_eq!((ip.id(), ip.ttl()), (id, 64));
    assert_eq!(usize::from(ip.total_len()), bytes.len());
    assert!(ip.verify_checksum() && !ip.is_fragment());
    (ip.protocol(), ip.payload())
}

fn read_v6(bytes: &[u8]) -> (u8, &[u8]) {
    let ip = ipv6::Packet::new_checked(bytes).unwrap();
    assert_eq!(
        (ip.src(), ip.dst()),
        (Ipv6Addr::from(SRC6), Ipv6Addr::from(DST6))
    );
    assert_eq!(ip.hop_limit(), 64);
    assert_eq!(usize::from(ip.payload_len()), bytes.len() - 40);
    let upper = ipv6::walk_extensions(ip.next_header(), ip.payload()).unwrap();
    (upper.protocol, &ip.payload()[upper.offset..])
}

#[test]
fn headers_cut_short_are_refused() {
    type Check = fn(&[u8]) -> Option<Error>;
    let shape = Shape {
        ip_extra: 2,
        tcp_extra: 3,
        ..Shape::tcp4()
    };
    let frame = shape.frame(&[]);
    let v6 = Shape::udp6().frame(&[]);
    let checks: [(&[u8], usize, Check); 7] = [
        (&frame, 14, |b| Frame::new_checked(b).err()),
        (&frame[14..], 28, |b| ipv4::Packet::new_checked(b).err()),
        (&frame[42..], 32, |b| tcp::Segment::new_checked(b).err()),
        (&v6[14..], 40, |b| ipv6::Packet::new_checked(b).err()),
        (&v6[54..], 8, |b| udp::Datagram::new_checked(b).err()),
        (&frame, 4, |b| icmp::Message::new_checked(b).err()),
        (&[0x81, 0, 0, 1], 4, |b| Tag::new_checked(b).err()),
    ];
    for (i, (bytes, len, check)) in checks.into_iter().enumerate() {
        assert_eq!(check(&bytes[..len]), None, "check {i}");
        for short in 0..len {
            assert_eq!(
                check(&bytes[..short]),
                Some(Error::Truncated),
                "check {i} at {short}"
            );
        }
    }
}

#[test]
fn an_arp_request_of_a_linux_guest() {
    let packet = [
        0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10,
        0, 0, 2, 0xaa, 0xaa,
    ];
    let arp = arp::Packet::new_checked(&packet).unwrap();
    assert_eq!(arp.operation(), arp::REQUEST);
    assert_eq!(arp.sender_mac().to_string(), "52:54:00:12:34:56");
    assert_eq!(arp.sender_ip(), Ipv4Addr::new(10, 0, 0, 1));
    assert_eq!(arp.target_mac(), MacAddr::default());
    assert_eq!(arp.target_ip(), Ipv4Addr::new(10, 0, 0, 2));
    assert_eq!(
        arp::Packet::new_checked(&packet[..27]).unwrap_err(),
        Error::Truncated
    );
    for at in [0, 1, 2, 3, 4, 5] {
        let mut other = packet;
        other[at] ^= 0x10;
        assert_eq!(
            arp::Packet::new_checked(&other).unwrap_err(),
            Error::Malformed
        );
    }
}

#[test]
fn an_icmp_echo() {
    let message = icmp::Message::new_checked(&[8, 0, 0xf7, 0xfd, 0, 1, 0, 1]).unwrap();
    assert_eq!((message.kind(), message.code()), (icmp::v4::ECHO, 0));
    assert_eq!(
        (message.checksum(), message.body()),
        (0xf7fd, &[0, 1, 0, 1][..])
    );
}

#[test]
fn padding_behind_a_packet_is_left_out() {
    let mut frame = Shape::udp4().frame(&[1, 2, 3]);
    frame.resize(60, 0xee);
    let ip = ipv4::Packet::new_checked(&frame[14..]).unwrap();
    assert_eq!(ip.payload().len(), 11);
    assert_eq!(
        udp::Datagram::new_checked(ip.payload()).unwrap().payload(),
        &[1, 2, 3]
    );
    // A UDP length that does not cover the header.
    let short = [0, 1, 0, 2, 0, 7, 0, 0];
    assert_eq!(
        udp::Datagram::new_checked(&short).unwrap_err(),
        Error::Malformed
    );
}

#[test]
fn tags_are_built_and_read() {
    let bytes = tag(vlan::TPID_CUSTOMER, Tci::new(5, true, 0xabc));
    assert_eq!(bytes, [0x81, 0x00, 0xba, 0xbc]);
    let tci = Tag::new_checked(&bytes).unwrap().tci();
    assert_eq!((tci.pcp(), tci.dei(), tci.vid()), (5, true, 0xabc));
    assert_eq!(Tci::new(8, false, 0x1001), Tci(1));
}

#[test]
fn addresses_of_a_frame_can_be_set() {
    let mut bytes = [0; 14];
    let mut frame = FrameMut::new_checked(&mut bytes).unwrap();
    frame.set_dst(MacAddr::BROADCAST);
    frame.set_src(MacAddr(SRC));
    frame.set_ethertype(ethernet::TYPE_RARP);
    let frame = Frame::new_checked(&bytes).unwrap();
    assert_eq!(
        (frame.dst(), frame.src()),
        (MacAddr::BROADCAST, MacAddr(SRC))
    );
    assert_eq!(frame.ethertype(), ethernet::TYPE_RARP);
    assert!(FrameMut::new_checked(&mut [0; 13]).is_err());
}

#[test]
fn mac_addresses_are_read_and_written() {
    let mac: MacAddr = "52:54:00:aB:cd:EF".parse().unwrap();
    assert_eq!(mac.to_string(), "52:54:00:ab:cd:ef");
    assert!(mac.is_unicast() && !mac.is_multicast() && !mac.is_link_local());
    for bad in [
        "",
        "52:54:00:ab:cd",
        "52:54:00:ab:cd:ef:00",
        "52-54-00-ab-cd-ef",
        "+1:0:0:0:0:0",
        "52:54:00:ab:cd:+f",
        "52:54:00:ab:cd:e",
        "52:54:00:ab:cd:eg",
        "5:254:00:ab:cd:ef",
    ] {
        assert!(bad.parse::<MacAddr>().is_err(), "{bad:?}");
    }
    assert!(MacAddr::BROADCAST.is_broadcast() && MacAddr::BROADCAST.is_multicast());
    assert!(!MacAddr::default().is_unicast());
    let lacp: MacAddr = "01:80:c2:00:00:02".parse().unwrap();
    assert!(lacp.is_link_local() && lacp.is_multicast() && !lacp.is_broadcast());
    assert!(
        !"01:80:c2:00:00:10"
            .parse::<MacAddr>()
            .unwrap()
            .is_link_local()
    );
}
