//! What a sender may claim, and what a receiver is given.

mod offload_frames;

use offload_frames::*;
use proptest::prelude::*;
use tandem_virtio_net::offload::*;
use tandem_virtio_net::spec::*;

fn judge(hdr: NetHdr, frame: &[u8]) -> Result<(), HeaderError> {
    validate(&hdr, frame, frame.len())
}

fn bits(names: &[u32]) -> u64 {
    names.iter().fold(0, |bits, bit| bits | 1 << bit)
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn what_a_driver_sends_is_valid_and_can_be_completed(shape in shape(), len in 0..3000usize) {
        let payload = payload(len);
        let mut frame = shape.frame(&payload);
        prop_assert_eq!(judge(shape.gso(700), &frame), Ok(()));
        let hdr = shape.partial();
        prop_assert_eq!(judge(hdr, &frame), Ok(()));
        complete_checksum(&mut frame, hdr.csum_start, hdr.csum_offset).unwrap();
        prop_assert_eq!(receive(&frame).payload, payload);
    }

    #[test]
    fn no_receiver_is_given_what_it_did_not_negotiate(
        shape in shape(),
        gso in any::<bool>(),
        flags in any::<u8>(),
        features in any::<u64>(),
    ) {
        let mut hdr = if gso { shape.gso(1000) } else { shape.partial() };
        hdr.flags |= flags;
        let frame = shape.frame(&payload(2000));
        prop_assert_eq!(judge(hdr, &frame), Ok(()));
        let partial = has(features, VIRTIO_NET_F_GUEST_CSUM);
        match receiver_takes(&hdr, &frame, features) {
            Treatment::AsIs => {
                let out = delivered_header(&hdr, features);
                prop_assert!(partial);
                prop_assert_eq!(out.flags, NET_HDR_F_NEEDS_CSUM);
                prop_assert_eq!(out.gso_type, hdr.gso_type);
                let needed = match (hdr.gso_type & !NET_HDR_GSO_ECN, shape.v6) {
                    (NET_HDR_GSO_NONE, _) => VIRTIO_NET_F_GUEST_CSUM,
                    (NET_HDR_GSO_TCPV4, _) => VIRTIO_NET_F_GUEST_TSO4,
                    (NET_HDR_GSO_TCPV6, _) => VIRTIO_NET_F_GUEST_TSO6,
                    (_, false) => VIRTIO_NET_F_GUEST_USO4,
                    (_, true) => VIRTIO_NET_F_GUEST_USO6,
                };
                prop_assert!(has(features, needed));
                let ecn = hdr.gso_type & NET_HDR_GSO_ECN != 0;
                prop_assert!(!ecn || has(features, VIRTIO_NET_F_GUEST_ECN));
            }
            Treatment::Checksum => prop_assert!(!gso && !partial),
            Treatment::Segment { leave_partial } => {
                prop_assert!(gso);
                prop_assert_eq!(leave_partial, partial);
            }
        }
    }
}

#[test]
fn a_frame_without_offloads_is_not_looked_at() {
    assert_eq!(judge(NetHdr::default(), &[]), Ok(()));
    // Bits that mean nothing to a device are ignored (virtio 5.1.6.2.2).
    assert_eq!(
        judge(
            NetHdr {
                flags: 0xfe,
                csum_start: 9999,
                ..NetHdr::default()
            },
            &[]
        ),
        Ok(())
    );
}

#[test]
fn a_partial_checksum_is_that_of_the_transport_header_only() {
    for shape in [Shape::tcp4(), Shape::tcp6(), Shape::udp4(), Shape::udp6()] {
        let frame = shape.frame(&payload(200));
        let good = shape.partial();
        for at in 0..frame.len() as u16 {
            let wrong = NetHdr {
                csum_start: at,
                ..good
            };
            let fits = at == good.csum_start;
            assert_eq!(judge(wrong, &frame).is_ok(), fits, "{shape:?} start {at}");
            let wrong = NetHdr {
                csum_offset: at,
                ..good
            };
            let fits = at == good.csum_offset;
            assert_eq!(judge(wrong, &frame).is_ok(), fits, "{shape:?} offset {at}");
        }
    }
}

#[test]
fn a_partial_checksum_needs_a_whole_tcp_or_udp_packet() {
    let hdr = Shape::udp4().partial();
    let mut arp = vec![0; 60];
    arp[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(judge(hdr, &arp), Err(HeaderError::NoTransport));

    let mut icmp = Shape::udp4().frame(&payload(100));
    icmp[23] = 1;
    assert_eq!(judge(hdr, &icmp), Err(HeaderError::NoTransport));

    for flags in [0x20, 0x00] {
        let mut fragment = Shape::udp4().frame(&payload(100));
        fragment[20..22].copy_from_slice(&[flags, if flags == 0 { 8 } else { 0 }]);
        assert_eq!(judge(hdr, &fragment), Err(HeaderError::NoTransport));
    }

    let mut bad = Shape::udp4().frame(&payload(100));
    bad[14] = 0x44;
    assert_eq!(judge(hdr, &bad), Err(HeaderError::Malformed));
}

#[test]
fn a_short_head_asks_for_what_it_needs() {
    let shape = Shape {
        ip_extra: 3,
        tcp_extra: 10,
        tags: 2,
        ..Shape::tcp6()
    };
    let frame = shape.frame(&payload(500));
    let mut have = 0;
    while let Err(error) = validate(&shape.gso(100), &frame[..have], frame.len()) {
        let HeaderError::HeadTooShort { need } = error else {
            panic!("{error}")
        };
        assert!(
            need > have && need <= shape.payload(),
            "{need} after {have}"
        );
        have = need;
    }
    assert_eq!(have, shape.payload());
}

#[test]
fn a_segment_offload_is_what_the_frame_is() {
    let shapes = [Shape::tcp4(), Shape::tcp6(), Shape::udp4(), Shape::udp6()];
    for of in &shapes {
        let frame = of.frame(&payload(3000));
        for kind in &shapes {
            let gso_type = kind.gso_type();
            let hdr = NetHdr {
                gso_type,
                ..of.gso(1000)
            };
            let fits = gso_type == of.gso_type();
            let wanted = if fits {
                Ok(())
            } else {
                Err(HeaderError::GsoMismatch(gso_type))
            };
            assert_eq!(judge(hdr, &frame), wanted, "{of:?} as {kind:?}");
        }
    }
}

#[test]
fn wrong_claims_are_named() {
    let shape = Shape::tcp4();
    let frame = shape.frame(&payload(3000));
    let good = shape.gso(1000);
    let wrong = |hdr| judge(hdr, &frame).unwrap_err();
    for gso_type in [2, NET_HDR_GSO_UDP, 6, 0x7f, 0x83, 0xff] {
        assert_eq!(
            wrong(NetHdr { gso_type, ..good }),
            HeaderError::GsoType(gso_type)
        );
    }
    for gso_type in [NET_HDR_GSO_ECN, NET_HDR_GSO_ECN | NET_HDR_GSO_UDP_L4] {
        assert_eq!(
            wrong(NetHdr { gso_type, ..good }),
            HeaderError::EcnWithoutTcp
        );
    }
    assert_eq!(
        wrong(NetHdr { flags: 0, ..good }),
        HeaderError::GsoWithoutChecksum
    );
    assert_eq!(
        wrong(NetHdr {
            gso_size: 0,
            ..good
        }),
        HeaderError::GsoSize(0)
    );
    let hdr_len = frame.len() as u16;
    assert_eq!(judge(NetHdr { hdr_len, ..good }, &frame), Ok(()));
    let hdr_len = hdr_len + 1;
    assert_eq!(
        wrong(NetHdr { hdr_len, ..good }),
        HeaderError::HdrLen(hdr_len)
    );
}

#[test]
fn receivers_get_whole_offloads_they_negotiated() {
    let csum = VIRTIO_NET_F_GUEST_CSUM;
    let plain = |shape: Shape| Shape {
        cwr: false,
        ..shape
    };
    let whole = [
        (plain(Shape::tcp4()), bits(&[csum, VIRTIO_NET_F_GUEST_TSO4])),
        (plain(Shape::tcp6()), bits(&[csum, VIRTIO_NET_F_GUEST_TSO6])),
        (
            Shape::tcp4(),
            bits(&[csum, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_ECN]),
        ),
        (
            Shape::tcp6(),
            bits(&[csum, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_ECN]),
        ),
        (Shape::udp4(), bits(&[csum, VIRTIO_NET_F_GUEST_USO4])),
        (Shape::udp6(), bits(&[csum, VIRTIO_NET_F_GUEST_USO6])),
    ];
    for (shape, features) in whole {
        let frame = shape.frame(&payload(9000));
        let hdr = shape.gso(1000);
        // A head is what the switch has at hand, not the frame.
        let head = &frame[..shape.payload()];
        assert_eq!(
            receiver_takes(&hdr, head, features),
            Treatment::AsIs,
            "{shape:?}"
        );
        assert_eq!(delivered_header(&hdr, features), hdr);
        for bit in (0..64).filter(|bit| has(features, *bit)) {
            let leave_partial = bit != csum;
            let treatment = receiver_takes(&hdr, head, features & !(1 << bit));
            assert_eq!(
                treatment,
                Treatment::Segment { leave_partial },
                "{shape:?} less {bit}"
            );
        }
    }
}

#[test]
fn a_good_checksum_is_told_to_those_who_ask() {
    let sent = NetHdr {
        flags: !NET_HDR_F_NEEDS_CSUM,
        gso_size: 7,
        ..NetHdr::default()
    };
    let told = NetHdr {
        flags: NET_HDR_F_DATA_VALID,
        ..NetHdr::default()
    };
    assert_eq!(receiver_takes(&sent, &[], 0), Treatment::AsIs);
    assert_eq!(delivered_header(&sent, 0), NetHdr::default());
    assert_eq!(
        delivered_header(&sent, bits(&[VIRTIO_NET_F_GUEST_CSUM])),
        told
    );
}

#[test]
fn completing_outside_the_frame_is_an_error() {
    let mut frame = [1u8; 40];
    assert!(complete_checksum(&mut frame, 34, 4).is_ok());
    for (start, offset) in [(34, 5), (34, 6), (41, 0), (u16::MAX, u16::MAX), (0, 39)] {
        let before = frame;
        let wanted = HeaderError::ChecksumPlace { start, offset };
        assert_eq!(complete_checksum(&mut frame, start, offset), Err(wanted));
        assert_eq!(frame, before);
    }
}

#[test]
fn a_udp_checksum_is_never_sent_as_none() {
    // Choose the payload so that everything sums to 0xffff, whose complement is zero.
    let shape = Shape::udp4();
    let mut frame = shape.frame(&[0, 0]);
    let sum = naive_sum(&frame[shape.l4()..]);
    let at = shape.payload();
    frame[at..at + 2].copy_from_slice(&(!sum).to_be_bytes());
    let hdr = shape.partial();
    complete_checksum(&mut frame, hdr.csum_start, hdr.csum_offset).unwrap();
    assert_eq!(frame[shape.l4() + 6..shape.l4() + 8], [0xff, 0xff]);
}
