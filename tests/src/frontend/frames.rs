//! Frames to send, and an independent judge of frames received.
//!
//! `etherparse` builds and reads them, so no checksum here comes from the code
//! under test.

use etherparse::{
    EtherType, LinkExtSlice, LinkSlice, NetSlice, PacketBuilder, SlicedPacket, TcpHeader,
    TransportSlice, UdpSlice,
};

use super::spec::{self, NetHdr};

/// A locally administered MAC address for the `n`-th VM.
pub const fn mac(n: u8) -> [u8; 6] {
    [0x52, 0x54, 0x00, 0x00, 0x00, n]
}

/// The broadcast address.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// A frame that is no IP: local experimental EtherType (IEEE 802, 9.2.3), then `body`.
pub fn raw(src: [u8; 6], dst: [u8; 6], body: &[u8]) -> Vec<u8> {
    let mut frame = [&dst[..], &src[..], &[0x88, 0xb5]].concat();
    frame.extend_from_slice(body);
    // The shortest frame a NIC sends, without its check sequence (IEEE 802.3, 4.2.3.3).
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The same with a number to tell it from others; see [`number_of`].
pub fn numbered(src: [u8; 6], dst: [u8; 6], number: u64) -> Vec<u8> {
    raw(src, dst, &number.to_be_bytes())
}

/// The number of a frame made by [`numbered`], tagged or not.
pub fn number_of(frame: &[u8]) -> u64 {
    let frame = untagged(frame).1;
    u64::from_be_bytes(frame[14..22].try_into().expect("8 bytes"))
}

/// Puts a VLAN tag (IEEE 802.1Q, 9.6) behind the addresses.
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let tag = [&[0x81, 0x00], &vlan.to_be_bytes()[..]].concat();
    [&frame[..12], &tag[..], &frame[12..]].concat()
}

/// Takes the outer VLAN tag off; gives its VLAN if there was one.
pub fn untagged(frame: &[u8]) -> (Option<u16>, Vec<u8>) {
    if frame.len() >= 18 && frame[12..14] == [0x81, 0x00] {
        let vlan = u16::from_be_bytes([frame[14], frame[15]]) & 0xfff;
        (Some(vlan), [&frame[..12], &frame[16..]].concat())
    } else {
        (None, frame.to_vec())
    }
}

/// Bytes that differ from place to place and from `seed` to `seed`.
pub fn payload(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 11) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// What a test frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// IPv6, else IPv4.
    pub v6: bool,
    /// UDP, else TCP.
    pub udp: bool,
    /// TCP with CWR and ECE.
    pub ecn: bool,
    /// What the sender leaves to others.
    pub offload: Offload,
    /// Bytes of payload.
    pub len: usize,
}

/// What a sender leaves to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// Nothing.
    None,
    /// The checksum.
    Checksum,
    /// Checksum and cutting into segments of so many payload bytes.
    Segment(u16),
}

/// TCP sequence number of every test frame: near the end, so that it wraps in long ones.
const SEQUENCE: u32 = u32::MAX - 20_000;

/// IPv4 identification of every test frame.
const IDENTIFICATION: u16 = 0xfffe;

/// UDP and TCP ports of every test frame.
const PORTS: (u16, u16) = (4000, 5000);

impl Shape {
    /// Features a sender needs for it.
    pub fn sender_features(&self) -> u64 {
        match self.offload {
            Offload::None => 0,
            Offload::Checksum => spec::CSUM,
            Offload::Segment(_) if self.udp => spec::CSUM | spec::HOST_USO,
            Offload::Segment(_) => {
                let tso = if self.v6 {
                    spec::HOST_TSO6
                } else {
                    spec::HOST_TSO4
                };
                spec::CSUM | tso | if self.ecn { spec::HOST_ECN } else { 0 }
            }
        }
    }

    /// Features with which a receiver can be given the whole, or 0 if anyone can.
    pub fn receiver_features(&self) -> u64 {
        match self.offload {
            Offload::None => 0,
            Offload::Checksum => spec::GUEST_CSUM,
            Offload::Segment(_) if self.udp => {
                let uso = if self.v6 {
                    spec::GUEST_USO6
                } else {
                    spec::GUEST_USO4
                };
                spec::GUEST_CSUM | uso
            }
            Offload::Segment(_) => {
                let tso = if self.v6 {
                    spec::GUEST_TSO6
                } else {
                    spec::GUEST_TSO4
                };
                spec::GUEST_CSUM | tso | if self.ecn { spec::GUEST_ECN } else { 0 }
            }
        }
    }

    /// The frame and its header, as a guest's network stack hands them to its driver.
    pub fn build(&self, src: [u8; 6], dst: [u8; 6], payload: &[u8]) -> (NetHdr, Vec<u8>) {
        let mut frame = self.complete(src, dst, payload);
        if self.offload == Offload::None {
            return (NetHdr::default(), frame);
        }
        let l4 = self.l4_offset();
        let (field, l4_len) = if self.udp { (6, 8) } else { (16, 20) };
        let sum = pseudo_sum(&frame[14..l4], (frame.len() - l4) as u32);
        frame[l4 + field..l4 + field + 2].copy_from_slice(&sum.to_be_bytes());
        let mut hdr = NetHdr {
            flags: spec::HDR_NEEDS_CSUM,
            csum_start: l4 as u16,
            csum_offset: field as u16,
            ..NetHdr::default()
        };
        if let Offload::Segment(size) = self.offload {
            hdr.gso_size = size;
            hdr.hdr_len = (l4 + l4_len) as u16;
            hdr.gso_type = match (self.udp, self.v6) {
                (true, _) => spec::GSO_UDP_L4,
                (false, false) => spec::GSO_TCPV4,
                (false, true) => spec::GSO_TCPV6,
            } | if self.ecn { spec::GSO_ECN } else { 0 };
        }
        (hdr, frame)
    }

    fn l4_offset(&self) -> usize {
        14 + if self.v6 { 40 } else { 20 }
    }

    /// The frame with everything done.
    fn complete(&self, src: [u8; 6], dst: [u8; 6], payload: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(src, dst);
        let ip = if self.v6 {
            let mut addresses = [[0xfd; 16]; 2];
            (addresses[0][15], addresses[1][15]) = (src[5], dst[5]);
            ethernet.ipv6(addresses[0], addresses[1], 64)
        } else {
            ethernet.ipv4([10, 0, 0, src[5]], [10, 0, 0, dst[5]], 64)
        };
        let mut frame = Vec::new();
        if self.udp {
            let packet = ip.udp(PORTS.0, PORTS.1);
            packet.write(&mut frame, payload).expect("fits");
        } else {
            let mut header = TcpHeader::new(PORTS.0, PORTS.1, SEQUENCE, 1000);
            (header.ack, header.psh) = (true, true);
            (header.cwr, header.ece) = (self.ecn, self.ecn);
            let packet = ip.tcp_header(header);
            packet.write(&mut frame, payload).expect("fits");
        }
        if !self.v6 {
            frame[18..20].copy_from_slice(&IDENTIFICATION.to_be_bytes());
            let sum = ipv4_header_sum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        frame
    }
}

/// Reads the identification as set: the header checksum by `etherparse`.
fn ipv4_header_sum(header: &[u8]) -> u16 {
    let header = etherparse::Ipv4HeaderSlice::from_slice(header).expect("a header of ours");
    header.to_header().calc_header_checksum()
}

/// The sum a sender of partial checksums leaves in the field: over the pseudo-header, folded, not
/// inverted (virtio 1.2, 5.1.6.2).
fn pseudo_sum(ip: &[u8], l4_len: u32) -> u16 {
    let (addresses, protocol) = if ip[0] >> 4 == 4 {
        (&ip[12..20], ip[9])
    } else {
        (&ip[8..40], ip[6])
    };
    let words = addresses.chunks_exact(2);
    let mut sum: u32 = words.map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
    sum += u32::from(protocol) + (l4_len >> 16) + (l4_len & 0xffff);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// Collects what a receiver is given of one frame sent, and judges it.
pub struct Judge<'a> {
    shape: Shape,
    src: [u8; 6],
    dst: [u8; 6],
    expected: &'a [u8],
    got: usize,
    frames: usize,
}

impl<'a> Judge<'a> {
    /// Waits for `payload`, sent as `shape`.
    pub fn new(shape: Shape, src: [u8; 6], dst: [u8; 6], payload: &'a [u8]) -> Self {
        Judge {
            shape,
            src,
            dst,
            expected: payload,
            got: 0,
            frames: 0,
        }
    }

    /// Whether all of it was received.
    pub fn is_complete(&self) -> bool {
        self.frames > 0 && self.got == self.expected.len()
    }

    /// Frames it took.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Judges the next frame received; panics on anything wrong.
    pub fn take(&mut self, hdr: &NetHdr, frame: &[u8]) {
        let packet = SlicedPacket::from_ethernet(frame).expect("a sound frame");
        let Some(LinkSlice::Ethernet2(ethernet)) = &packet.link else {
            panic!("not Ethernet: {packet:?}");
        };
        assert_eq!(ethernet.source(), self.src);
        assert_eq!(ethernet.destination(), self.dst);
        assert_eq!(self.shape.v6, ethernet.ether_type() == EtherType::IPV6);
        let l4 = self.shape.l4_offset();
        self.judge_ip(&packet, frame);
        let payload = match &packet.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                self.judge_tcp(hdr, tcp);
                tcp.payload()
            }
            Some(TransportSlice::Udp(udp)) => udp.payload(),
            other => panic!("neither TCP nor UDP: {other:?}"),
        };
        judge_checksum(hdr, &packet, frame, l4);
        self.judge_payload(hdr, payload);
        self.frames += 1;
    }

    fn judge_ip(&self, packet: &SlicedPacket<'_>, frame: &[u8]) {
        match &packet.net {
            Some(NetSlice::Ipv4(ip)) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                assert_eq!(usize::from(header.total_len), frame.len() - 14);
                let id = IDENTIFICATION.wrapping_add(self.frames as u16);
                assert_eq!(header.identification, id, "identification counts segments");
            }
            Some(NetSlice::Ipv6(ip)) => {
                let len = usize::from(ip.header().payload_length());
                assert_eq!(len, frame.len() - 54);
            }
            other => panic!("not IP: {other:?}"),
        }
    }

    fn judge_tcp(&self, hdr: &NetHdr, tcp: &etherparse::TcpSlice<'_>) {
        assert_eq!(
            tcp.sequence_number(),
            SEQUENCE.wrapping_add(self.got as u32)
        );
        let last = self.got + tcp.payload().len() == self.expected.len();
        assert_eq!(tcp.psh(), last, "PSH on the last segment only");
        assert!(tcp.ack());
        assert_eq!(tcp.ece(), self.shape.ecn);
        let first = self.frames == 0;
        assert_eq!(tcp.cwr(), self.shape.ecn && first, "CWR on the first only");
        if hdr.gso_type != spec::GSO_NONE {
            assert_eq!(hdr.gso_type & spec::GSO_ECN != 0, self.shape.ecn);
        }
    }

    fn judge_payload(&mut self, hdr: &NetHdr, payload: &[u8]) {
        let end = self.got + payload.len();
        assert!(end <= self.expected.len(), "more payload than was sent");
        assert!(
            self.expected[self.got..end] == *payload,
            "payload differs in bytes {}..{end}",
            self.got
        );
        if let Offload::Segment(size) = self.shape.offload {
            if hdr.gso_type == spec::GSO_NONE {
                let expected = (self.expected.len() - self.got).min(usize::from(size));
                assert_eq!(payload.len(), expected, "segments are full but the last");
            } else {
                assert_eq!(hdr.gso_size, size, "gso_size travels unchanged");
                assert_eq!(payload.len(), self.expected.len());
            }
        } else {
            assert_eq!(hdr.gso_type, spec::GSO_NONE);
        }
        self.got = end;
    }
}

/// The checksum must be right, or be announced as partial and be a right partial one.
fn judge_checksum(hdr: &NetHdr, packet: &SlicedPacket<'_>, frame: &[u8], l4: usize) {
    let (found, field) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.checksum(), 16),
        Some(TransportSlice::Udp(udp)) => (udp.checksum(), 6),
        other => panic!("neither TCP nor UDP: {other:?}"),
    };
    if hdr.flags & spec::HDR_NEEDS_CSUM != 0 {
        assert_eq!(usize::from(hdr.csum_start), l4, "{hdr:?}");
        assert_eq!(usize::from(hdr.csum_offset), field, "{hdr:?}");
        let partial = pseudo_sum(&frame[14..l4], (frame.len() - l4) as u32);
        assert_eq!(found, partial, "the partial checksum");
        return;
    }
    let right = match (&packet.net, &packet.transport) {
        (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) => {
            let ip = ip.header();
            tcp.calc_checksum_ipv4(ip.source(), ip.destination()).ok()
        }
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Tcp(tcp))) => {
            let ip = ip.header();
            tcp.calc_checksum_ipv6(ip.source(), ip.destination()).ok()
        }
        (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) => udp_sum4(ip, udp),
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Udp(udp))) => udp_sum6(ip, udp),
        other => panic!("cannot judge {other:?}"),
    };
    assert_eq!(Some(found), right, "the transport checksum");
}

fn udp_sum4(ip: &etherparse::Ipv4Slice<'_>, udp: &UdpSlice<'_>) -> Option<u16> {
    let ip = ip.header();
    let header = udp.to_header();
    header
        .calc_checksum_ipv4_raw(ip.source(), ip.destination(), udp.payload())
        .ok()
}

fn udp_sum6(ip: &etherparse::Ipv6Slice<'_>, udp: &UdpSlice<'_>) -> Option<u16> {
    let ip = ip.header();
    let header = udp.to_header();
    header
        .calc_checksum_ipv6_raw(ip.source(), ip.destination(), udp.payload())
        .ok()
}

/// The VLAN tags of a frame, outermost first, as `etherparse` sees them.
pub fn vlans(frame: &[u8]) -> Vec<u16> {
    let packet = SlicedPacket::from_ethernet(frame).expect("a sound frame");
    let ids = packet.link_exts.iter().filter_map(|ext| match ext {
        LinkExtSlice::Vlan(vlan) => Some(vlan.vlan_identifier().value()),
        _ => None,
    });
    ids.collect()
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
