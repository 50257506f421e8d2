//! Vnet headers that contradict their frames, and the segments and checksums made of those that
//! do not.

use tandem_virtio_net::offload::{
    HeaderError, Segmenter, Treatment, complete_checksum, delivered_header, receiver_takes,
    validate,
};
use tandem_virtio_net::spec::*;
use tandem_virtio_net::wire::{ipv4, parse};

use crate::{Input, packets};

/// Header, frame and what the receiver has negotiated.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.u8();
    let guest = input.u8();
    let cut = usize::from(input.u8());
    let mut frame = if mode & 1 == 0 {
        packets::frame(&mut input)
    } else {
        Vec::new()
    };
    let hdr = packets::header(&mut input, &frame);
    if mode & 1 != 0 {
        frame = input.rest().to_vec();
    }
    if frame.len() > MAX_FRAME {
        return;
    }
    anything(&hdr, &frame);
    // A sender's partial checksum is that of the pseudo header.
    let l4 = usize::from(hdr.csum_start);
    let field = l4 + usize::from(hdr.csum_offset);
    let mut right = false;
    if hdr.flags & 1 != 0
        && validate(&hdr, &frame, frame.len()).is_ok()
        && let Some(sum) = packets::pseudo(&frame, frame.len() - l4)
    {
        frame[field..field + 2].copy_from_slice(&sum.partial().to_be_bytes());
        right = true;
    }
    judged(&hdr, &frame, cut, features(guest), right);
}

fn features(bits: u8) -> u64 {
    let names = [
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_ECN,
        VIRTIO_NET_F_GUEST_USO4,
        VIRTIO_NET_F_GUEST_USO6,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_F_VERSION_1,
    ];
    let set = names.iter().enumerate().filter(|(i, _)| bits & 1 << i != 0);
    set.fold(0, |f, (_, bit)| f | 1 << bit)
}

/// What may be asked of any frame.
fn anything(hdr: &NetHdr, frame: &[u8]) {
    let mut copy = frame.to_vec();
    let at = usize::from(hdr.csum_start) + usize::from(hdr.csum_offset);
    match complete_checksum(&mut copy, hdr.csum_start, hdr.csum_offset) {
        Ok(()) => {
            copy[at..at + 2].copy_from_slice(&frame[at..at + 2]);
            assert!(copy == frame, "a byte beside the checksum was changed");
        }
        Err(_) => {
            assert!(at + 2 > frame.len(), "there was room for the checksum");
            assert!(copy == frame, "a refused frame was changed");
        }
    }
    let new = Segmenter::new(hdr, frame, false);
    let valid = validate(hdr, frame, frame.len());
    if hdr.gso_type == NET_HDR_GSO_NONE {
        assert!(new.is_err());
    } else {
        assert_eq!(new.err(), valid.err(), "two judges of one frame");
    }
}

/// What a frame becomes for one receiver.
fn judged(hdr: &NetHdr, frame: &[u8], cut: usize, features: u64, right: bool) {
    let mut have = cut.min(frame.len());
    let verdict = loop {
        match validate(hdr, &frame[..have], frame.len()) {
            Err(HeaderError::HeadTooShort { need }) => {
                assert!(have < need && need <= frame.len(), "{need} of {have}");
                have = need;
            }
            other => break other,
        }
    };
    assert_eq!(verdict, validate(hdr, frame, frame.len()));
    if verdict.is_err() {
        return;
    }
    let out = delivered_header(hdr, features);
    assert!(out.gso_type == 0 || out.flags & NET_HDR_F_NEEDS_CSUM != 0);
    match receiver_takes(hdr, frame, features) {
        Treatment::AsIs => {}
        Treatment::Checksum => {
            let mut done = frame.to_vec();
            complete_checksum(&mut done, hdr.csum_start, hdr.csum_offset).expect("validated");
            if right {
                is_summed(&done);
            }
        }
        Treatment::Segment { leave_partial } => segments(hdr, frame, leave_partial, right),
    }
}

fn segments(hdr: &NetHdr, frame: &[u8], leave_partial: bool, right: bool) {
    let headers = usize::from(parse(frame, frame.len()).payload);
    let l3 = usize::from(parse(frame, frame.len()).l3);
    let mut cutter = Segmenter::new(hdr, frame, leave_partial).expect("validated");
    let (count, longest) = (cutter.segments(), cutter.max_len());
    assert!(longest <= headers + usize::from(hdr.gso_size));
    let mut out = vec![0; longest];
    assert!(cutter.next(&mut out[..longest - 1]).is_none(), "no room");
    let (mut made, mut payload) = (0, headers);
    while let Some((hdr, len)) = cutter.next(&mut out) {
        made += 1;
        let body = &out[headers..len];
        assert_eq!(body, &frame[payload..payload + body.len()]);
        payload += body.len();
        assert!(len == longest || made == count, "a short one in between");
        assert_eq!(hdr.gso_type, NET_HDR_GSO_NONE);
        assert_eq!(hdr.flags & NET_HDR_F_NEEDS_CSUM != 0, leave_partial);
        let segment = &mut out[..len];
        let parsed = parse(segment, len);
        assert!(parsed.has_l4() && !parsed.is_malformed());
        if parsed.key.version == 4 {
            let packet = ipv4::Packet::new_checked(&segment[l3..]).expect("a packet");
            assert!(packet.verify_checksum());
            assert_eq!(usize::from(packet.total_len()), len - l3);
        }
        if leave_partial {
            complete_checksum(segment, hdr.csum_start, hdr.csum_offset).expect("a place");
        }
        if right {
            is_summed(segment);
        }
    }
    assert_eq!((made, payload), (count, frame.len()), "lost on the way");
}

/// The checksum of layer 4 holds.
fn is_summed(frame: &[u8]) {
    let l4 = usize::from(parse(frame, frame.len()).l4);
    if let Some(sum) = packets::pseudo(frame, frame.len() - l4) {
        assert_eq!(sum.bytes(&frame[l4..]).finish(), 0, "a wrong checksum");
    }
}
