//! The judge accepts what is right and nothing else.

use super::*;

const SHAPE: Shape = Shape {
    v6: false,
    udp: false,
    ecn: false,
    offload: Offload::Checksum,
    len: 1000,
};

/// Whether the judge accepts a frame of `shape` after `spoil` has been at it.
fn accepts(shape: Shape, spoil: impl Fn(&mut NetHdr, &mut Vec<u8>)) -> bool {
    let bytes = payload(5, shape.len);
    let (mut hdr, mut frame) = shape.build(mac(1), mac(2), &bytes);
    spoil(&mut hdr, &mut frame);
    let judged = std::panic::catch_unwind(|| {
        let mut judge = Judge::new(shape, mac(1), mac(2), &bytes);
        judge.take(&hdr, &frame);
        assert!(judge.is_complete());
    });
    judged.is_ok()
}

/// Sends as `shape`, arrives with everything done.
fn complete(shape: Shape) -> impl Fn(&mut NetHdr, &mut Vec<u8>) {
    move |hdr, frame| {
        *hdr = NetHdr::default();
        *frame = shape.complete(mac(1), mac(2), &payload(5, shape.len));
    }
}

#[test]
fn accepts_what_is_right() {
    for v6 in [false, true] {
        for udp in [false, true] {
            for offload in [Offload::None, Offload::Checksum, Offload::Segment(400)] {
                let shape = Shape {
                    v6,
                    udp,
                    offload,
                    ..SHAPE
                };
                assert!(accepts(shape, |_, _| ()), "{shape:?}");
            }
            let shape = Shape { v6, udp, ..SHAPE };
            assert!(accepts(shape, complete(shape)), "{shape:?}");
        }
    }
}

#[test]
fn rejects_what_is_wrong() {
    // A partial checksum that is not announced, or a wrong one that is.
    assert!(!accepts(SHAPE, |hdr, _| hdr.flags = 0));
    assert!(!accepts(SHAPE, |_, frame| frame[51] ^= 1));
    assert!(!accepts(SHAPE, |hdr, _| hdr.csum_start += 2));
    // A byte of payload, of the addresses, of the IP header.
    assert!(!accepts(SHAPE, |_, frame| frame[500] ^= 1));
    assert!(!accepts(SHAPE, |_, frame| frame[0] ^= 2));
    assert!(!accepts(SHAPE, |_, frame| frame[26] ^= 1));
    // A byte too many.
    assert!(!accepts(SHAPE, |_, frame| frame.push(0)));
    // A whole large frame where segments were due.
    let large = Shape {
        offload: Offload::Segment(400),
        ..SHAPE
    };
    assert!(!accepts(large, complete(large)));
    assert!(!accepts(large, |hdr, _| hdr.gso_size = 401));
}
