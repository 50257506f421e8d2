//! Frames that mean something, for the fuzzer to spoil.

use tandem_virtio_net::spec::{NET_HDR_LEN, NetHdr};
use tandem_virtio_net::wire::checksum::Checksum;
use tandem_virtio_net::wire::{parse, protocol};

use crate::Input;

/// A frame: headers by the bits of a byte, some payload, and then up to fifteen bytes of it
/// overwritten.
pub(crate) fn frame(input: &mut Input<'_>) -> Vec<u8> {
    let kind = input.u8();
    let payload = usize::from(input.u16());
    let payload = if payload < 0x8000 {
        payload % 4096
    } else {
        payload
    };
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if kind & 1 != 0 {
        frame.extend([0x81, 0, 0, 10]);
    }
    if kind & 2 != 0 {
        frame.extend([0x88, 0xa8, 0, 11]);
    }
    let udp = kind & 4 != 0;
    let proto = if udp { protocol::UDP } else { protocol::TCP };
    // Data offset 5, or 8 with twelve bytes of options.
    let tcp_options = kind & 8 != 0 && !udp;
    let l4 = if udp {
        8
    } else if tcp_options {
        32
    } else {
        20
    };
    let extra = kind & 16 != 0;
    let len = (l4 + payload) as u16;
    if kind & 32 == 0 {
        let words = if extra { 6 } else { 5 };
        frame.extend([8, 0, 0x40 | words, 0]);
        frame.extend((u16::from(words) * 4).wrapping_add(len).to_be_bytes());
        frame.extend([0, 1, 0x40, 0, 64, proto, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.resize(frame.len() + 4 * usize::from(words - 5), 1);
    } else {
        let more: u16 = if extra { 16 } else { 0 };
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(len.wrapping_add(more).to_be_bytes());
        let first = if extra { protocol::HOP_BY_HOP } else { proto };
        frame.extend([first, 64]);
        frame.extend([0xfd; 32]);
        if extra {
            frame.extend([protocol::DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0]);
            frame.extend([proto, 0, 1, 4, 0, 0, 0, 0]);
        }
    }
    frame.extend([0x12, 0x34, 0x56, 0x78]);
    if udp {
        frame.extend(len.to_be_bytes());
        frame.extend([0, 0]);
    } else {
        let offset = if tcp_options { 0x80 } else { 0x50 };
        frame.extend([0, 0, 0, 1, 0, 0, 0, 2, offset, 0x99, 0, 9, 0, 0, 0, 0]);
        frame.resize(frame.len() + l4 - 20, 1);
    }
    frame.extend((0..payload).map(|i| (i * 7 + i / 256) as u8));
    for _ in 0..input.u8() & 15 {
        let at = usize::from(input.u8()) % frame.len();
        frame[at] = input.u8();
    }
    if kind & 64 != 0 {
        frame.truncate(usize::from(input.u16()) % (frame.len() + 1));
    }
    frame
}

/// A vnet header; its checksum is where the frame has it, more often than not.
pub(crate) fn header(input: &mut Input<'_>, frame: &[u8]) -> NetHdr {
    let kind = input.u8();
    if kind & 1 == 0 {
        let mut bytes = [0; NET_HDR_LEN];
        bytes[..10].iter_mut().for_each(|b| *b = input.u8());
        return NetHdr::from_bytes(&bytes);
    }
    let parsed = parse(frame, frame.len());
    let udp = parsed.protocol == protocol::UDP;
    NetHdr {
        flags: 1 | kind & 2,
        gso_type: input.one_of(&[0, 1, 4, 5, 0x81, 0x84, 3]),
        hdr_len: parsed.payload,
        gso_size: input.u16(),
        csum_start: parsed.l4,
        csum_offset: if udp { 6 } else { 16 },
        num_buffers: 0,
    }
}

/// The sum of the pseudo header for `len` bytes of layer 4. None: addresses of a routing header or
/// the like would count.
pub(crate) fn pseudo(frame: &[u8], len: usize) -> Option<Checksum> {
    let parsed = parse(frame, frame.len());
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let addresses = match parsed.key.version {
        4 => frame.get(l3 + 12..l3 + 20)?,
        6 if l4 == l3 + 40 => frame.get(l3 + 8..l3 + 40)?,
        _ => return None,
    };
    let sum = Checksum::new().bytes(addresses);
    let sum = sum.word((len >> 16) as u16).word(len as u16);
    Some(sum.word(parsed.protocol.into()))
}
