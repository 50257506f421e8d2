//! Segmentation in software, judged by an independent receiver.

mod offload_frames;

use offload_frames::*;
use proptest::prelude::*;
use tandem_virtio_net::offload::*;
use tandem_virtio_net::spec::*;

/// All segments, with their headers.
fn cut(hdr: &NetHdr, frame: &[u8], leave_partial: bool) -> Vec<(NetHdr, Vec<u8>)> {
    let mut segmenter = Segmenter::new(hdr, frame, leave_partial).unwrap();
    let mut out = vec![0xee; segmenter.max_len()];
    let mut segments = vec![];
    while let Some((hdr, len)) = segmenter.next(&mut out) {
        segments.push((hdr, out[..len].to_vec()));
    }
    assert_eq!(segments.len(), segmenter.segments());
    segments
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn segments_carry_the_payload_and_good_headers(
        shape in shape(),
        len in 0..20_000usize,
        size in 200..9000u16,
    ) {
        let payload = payload(len);
        let frame = shape.frame(&payload);
        let segments = cut(&shape.gso(size), &frame, false);
        prop_assert_eq!(segments.len(), len.div_ceil(size.into()).max(1));
        let mut received = vec![];
        for (i, (hdr, segment)) in segments.iter().enumerate() {
            let last = i + 1 == segments.len();
            prop_assert_eq!(*hdr, NetHdr::default());
            let seen = receive(segment);
            prop_assert!(last || seen.payload.len() == usize::from(size));
            if !shape.v6 {
                prop_assert_eq!(seen.id, shape.id.wrapping_add(i as u16));
            }
            if let Some(tcp) = seen.tcp {
                prop_assert_eq!(tcp.sequence_number, shape.seq.wrapping_add(received.len() as u32));
                prop_assert_eq!((tcp.fin, tcp.psh), (last && shape.fin, last && shape.psh));
                prop_assert_eq!(tcp.cwr, i == 0 && shape.cwr);
                prop_assert!(tcp.ack);
                prop_assert_eq!((tcp.acknowledgment_number, tcp.window_size), (77, 512));
                prop_assert_eq!(tcp.options.len(), 4 * shape.tcp_extra);
            }
            // Addresses, tags, and the ports are the sender's.
            prop_assert_eq!(&segment[..shape.l3()], &frame[..shape.l3()]);
            prop_assert_eq!(&segment[shape.l4()..shape.l4() + 4], &frame[shape.l4()..shape.l4() + 4]);
            received.extend(seen.payload);
        }
        prop_assert_eq!(received, payload);
    }

    #[test]
    fn partial_segments_become_the_complete_ones(
        shape in shape(),
        len in 0..5_000usize,
        size in 100..1500u16,
    ) {
        let frame = shape.frame(&payload(len));
        let hdr = shape.gso(size);
        let complete = cut(&hdr, &frame, false);
        let partial = cut(&hdr, &frame, true);
        prop_assert_eq!(complete.len(), partial.len());
        for ((_, complete), (hdr, mut segment)) in complete.into_iter().zip(partial) {
            prop_assert_eq!(hdr, shape.partial());
            prop_assert_eq!(validate(&hdr, &segment, segment.len()), Ok(()));
            complete_checksum(&mut segment, hdr.csum_start, hdr.csum_offset).unwrap();
            prop_assert_eq!(segment, complete);
        }
    }

    #[test]
    fn damaged_frames_and_headers_never_panic_and_always_end(
        shape in shape(),
        len in 0..600usize,
        hdr in any::<[u8; 12]>(),
        keep in any::<u8>(),
        damage in prop::collection::vec((0..200usize, any::<u8>()), 0..4),
        cut_at in prop::option::of(0..700usize),
    ) {
        let mut frame = shape.frame(&payload(len));
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(cut_at.unwrap_or(usize::MAX));
        // Some of the header's bytes stay good, so that the damage gets past the first checks.
        let mut bytes = shape.gso(50).to_bytes();
        for (i, byte) in hdr.into_iter().enumerate() {
            if keep >> (i % 8) & 1 == 0 {
                bytes[i] = byte;
            }
        }
        let hdr = NetHdr::from_bytes(&bytes);
        let judged = validate(&hdr, &frame, frame.len());
        receiver_takes(&hdr, &frame, u64::MAX);
        let _ = complete_checksum(&mut frame.clone(), hdr.csum_start, hdr.csum_offset);
        match Segmenter::new(&hdr, &frame, false) {
            Ok(mut segmenter) => {
                prop_assert_eq!(judged, Ok(()));
                let mut out = vec![0; segmenter.max_len()];
                for _ in 0..segmenter.segments() {
                    let (_, n) = segmenter.next(&mut out).expect("a segment, as announced");
                    prop_assert!(n <= out.len());
                }
                prop_assert_eq!(segmenter.next(&mut out), None);
            }
            Err(_) => prop_assert!(judged.is_err() || hdr.gso_type == NET_HDR_GSO_NONE),
        }
    }

    #[test]
    fn random_bytes_never_panic(
        hdr in any::<[u8; 12]>(),
        frame in prop::collection::vec(any::<u8>(), 0..300),
        frame_len in 0..70_000usize,
    ) {
        let hdr = NetHdr::from_bytes(&hdr);
        let _ = validate(&hdr, &frame, frame_len);
        let _ = Segmenter::new(&hdr, &frame, true);
        receiver_takes(&hdr, &frame, 0);
        let _ = complete_checksum(&mut frame.clone(), hdr.csum_start, hdr.csum_offset);
    }
}

#[test]
fn the_longest_frames_are_cut_to_the_byte() {
    for shape in [Shape::tcp4(), Shape::tcp6(), Shape::udp4(), Shape::udp6()] {
        let counted = if shape.v6 {
            shape.l3() + 40
        } else {
            shape.l3()
        };
        let payload = payload(65535 + counted - shape.payload());
        let frame = shape.frame(&payload);
        let received: Vec<u8> = cut(&shape.gso(1448), &frame, false)
            .iter()
            .flat_map(|(_, segment)| receive(segment).payload)
            .collect();
        assert!(received == payload, "{shape:?}");
    }
}

#[test]
fn ip_length_zero_stands_for_the_whole_frame() {
    for (shape, field) in [(Shape::tcp4(), 16), (Shape::tcp6(), 18)] {
        let payload = payload(3000);
        let mut frame = shape.frame(&payload);
        frame[field..field + 2].fill(0);
        let received: Vec<u8> = cut(&shape.gso(1000), &frame, false)
            .iter()
            .flat_map(|(_, segment)| receive(segment).payload)
            .collect();
        assert_eq!(received, payload);
    }
}

#[test]
fn a_frame_that_fits_one_segment_keeps_its_flags() {
    let shape = Shape::tcp4();
    for len in [0, 1, 1000] {
        let segments = cut(&shape.gso(1000), &shape.frame(&payload(len)), false);
        assert_eq!(segments.len(), 1);
        let tcp = receive(&segments[0].1).tcp.unwrap();
        assert!(tcp.fin && tcp.psh && tcp.cwr);
    }
}

#[test]
fn a_pseudo_header_with_other_addresses_is_kept() {
    // As with a routing header: the sender summed the last hop, not the address in the header.
    let shape = Shape {
        ip_extra: 1,
        ..Shape::tcp6()
    };
    let mut frame = shape.frame(&payload(2500));
    frame[shape.l3() + 39] = 9;
    for (_, mut segment) in cut(&shape.gso(1000), &frame, false) {
        segment[shape.l3() + 39] = DST6[15];
        receive(&segment);
    }
}

#[test]
fn small_segments_are_bounded() {
    let shape = Shape::udp4();
    let judge = |len: usize, size: u16| {
        let frame = shape.frame(&payload(len));
        Segmenter::new(&shape.gso(size), &frame, false).map(|s| s.segments())
    };
    assert_eq!(judge(MAX_SMALL_SEGMENTS, 1), Ok(MAX_SMALL_SEGMENTS));
    assert_eq!(
        judge(MAX_SMALL_SEGMENTS + 1, 1),
        Err(HeaderError::GsoSize(1))
    );
    assert_eq!(
        judge(65000, MIN_GSO_SIZE - 1),
        Err(HeaderError::GsoSize(MIN_GSO_SIZE - 1))
    );
    assert_eq!(
        judge(65000, MIN_GSO_SIZE),
        Ok(65000 / usize::from(MIN_GSO_SIZE))
    );
    assert_eq!(judge(0, 0), Err(HeaderError::GsoSize(0)));
}

#[test]
fn segments_that_no_ip_header_can_count_are_refused() {
    let shape = Shape::tcp4();
    let mut frame = shape.frame(&payload(60_000));
    frame[16..18].fill(0);
    frame.resize(80_000, 0);
    let most = 65535 - 40;
    assert!(Segmenter::new(&shape.gso(most), &frame, false).is_ok());
    let refused = Segmenter::new(&shape.gso(most + 1), &frame, false).unwrap_err();
    assert_eq!(refused, HeaderError::SegmentTooLong(most + 1));
}

#[test]
fn ipv6_does_not_count_its_own_header() {
    let shape = Shape::tcp6();
    let mut frame = shape.frame(&payload(60_000));
    frame[18..20].fill(0);
    frame.resize(80_000, 0);
    let most = 65535 - 20;
    assert!(Segmenter::new(&shape.gso(most), &frame, false).is_ok());
    let refused = Segmenter::new(&shape.gso(most + 1), &frame, false).unwrap_err();
    assert_eq!(refused, HeaderError::SegmentTooLong(most + 1));
}

#[test]
fn a_payload_too_long_for_16_bits_is_cut_right() {
    let shape = Shape::tcp6();
    let payload = payload(80_000);
    let mut frame = shape.frame(&[]);
    frame[18..20].fill(0);
    let sum = shape.pseudo_sum(20 + payload.len());
    frame[shape.l4() + 16..shape.l4() + 18].copy_from_slice(&sum.to_be_bytes());
    frame.extend(&payload);
    let received: Vec<u8> = cut(&shape.gso(1440), &frame, false)
        .iter()
        .flat_map(|(_, segment)| receive(segment).payload)
        .collect();
    assert!(received == payload);
}

#[test]
fn too_little_room_takes_nothing() {
    let shape = Shape::tcp4();
    let frame = shape.frame(&payload(1500));
    let mut segmenter = Segmenter::new(&shape.gso(1000), &frame, false).unwrap();
    let mut out = vec![0; segmenter.max_len()];
    let short = out.len() - 1;
    assert_eq!(segmenter.next(&mut out[..short]), None);
    let first = segmenter.next(&mut out).unwrap();
    assert_eq!(first.1, shape.payload() + 1000);
    // The last one is shorter, and so is the room it needs.
    assert_eq!(segmenter.max_len(), shape.payload() + 500);
    assert!(segmenter.next(&mut out[..shape.payload() + 500]).is_some());
    assert_eq!(segmenter.next(&mut out), None);
}

#[test]
fn a_frame_without_segment_offload_is_not_cut() {
    let shape = Shape::tcp4();
    let frame = shape.frame(&payload(100));
    let refused = Segmenter::new(&shape.partial(), &frame, false).unwrap_err();
    assert_eq!(refused, HeaderError::GsoType(NET_HDR_GSO_NONE));
}
