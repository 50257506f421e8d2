//! Frames as a sender with offloads makes them, and an independent check of what arrives.
//!
//! Nothing here uses the code under test: headers are made and read by etherparse, checksums
//! summed the long way.

#![allow(dead_code)] // each test file uses a part

use etherparse::{
    EtherType, IpNumber, Ipv4Header, Ipv6Header, NetSlice, SlicedPacket, TcpHeader, TransportSlice,
    UdpHeader,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tandem_virtio_net::spec::*;

pub(crate) const SRC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
pub(crate) const DST: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
pub(crate) const SRC4: [u8; 4] = [10, 0, 0, 1];
pub(crate) const DST4: [u8; 4] = [10, 0, 0, 2];
pub(crate) const SRC6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
pub(crate) const DST6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
pub(crate) const SRC_PORT: u16 = 40000;
pub(crate) const DST_PORT: u16 = 5201;

/// The same cases in every run.
pub(crate) fn cases(n: u32) -> ProptestConfig {
    ProptestConfig {
        cases: n,
        rng_seed: RngSeed::Fixed(0x7461_6e64_656d),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// How a frame is built.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    pub(crate) tags: usize,
    /// IPv4 options in 4-byte words (0 to 10), IPv6 destination options headers (0 to 3).
    pub(crate) ip_extra: usize,
    /// TCP options in 4-byte words (0 to 10).
    pub(crate) tcp_extra: usize,
    /// FIN, PSH, CWR.
    pub(crate) fin: bool,
    pub(crate) psh: bool,
    pub(crate) cwr: bool,
    pub(crate) seq: u32,
    pub(crate) id: u16,
}

impl Shape {
    pub(crate) fn tcp4() -> Self {
        Self {
            v6: false,
            udp: false,
            tags: 0,
            ip_extra: 0,
            tcp_extra: 0,
            fin: true,
            psh: true,
            cwr: true,
            seq: 0xffff_f000,
            id: 0xfffe,
        }
    }

    pub(crate) fn tcp6() -> Self {
        Self {
            v6: true,
            ..Self::tcp4()
        }
    }

    pub(crate) fn udp4() -> Self {
        Self {
            udp: true,
            ..Self::tcp4()
        }
    }

    pub(crate) fn udp6() -> Self {
        Self {
            udp: true,
            ..Self::tcp6()
        }
    }

    pub(crate) fn l3(&self) -> usize {
        14 + 4 * self.tags
    }

    pub(crate) fn l4(&self) -> usize {
        let ip = if self.v6 {
            40 + 8 * self.ip_extra
        } else {
            20 + 4 * self.ip_extra
        };
        self.l3() + ip
    }

    pub(crate) fn payload(&self) -> usize {
        self.l4() + if self.udp { 8 } else { 20 + 4 * self.tcp_extra }
    }

    pub(crate) fn gso_type(&self) -> u8 {
        match (self.udp, self.v6) {
            (true, _) => NET_HDR_GSO_UDP_L4,
            (false, false) => NET_HDR_GSO_TCPV4 | if self.cwr { NET_HDR_GSO_ECN } else { 0 },
            (false, true) => NET_HDR_GSO_TCPV6 | if self.cwr { NET_HDR_GSO_ECN } else { 0 },
        }
    }

    /// The header of a frame with a partial checksum.
    pub(crate) fn partial(&self) -> NetHdr {
        NetHdr {
            flags: NET_HDR_F_NEEDS_CSUM,
            csum_start: self.l4() as u16,
            csum_offset: if self.udp { 6 } else { 16 },
            ..NetHdr::default()
        }
    }

    /// The header of a segment offload.
    pub(crate) fn gso(&self, size: u16) -> NetHdr {
        let hdr_len = self.payload() as u16;
        NetHdr {
            gso_type: self.gso_type(),
            gso_size: size,
            hdr_len,
            ..self.partial()
        }
    }

    /// The frame, its transport checksum partial: the sum of the pseudo header.
    pub(crate) fn frame(&self, payload: &[u8]) -> Vec<u8> {
        let mut frame = [DST, SRC].concat();
        for tag in 0..self.tags {
            let tpid: u16 = if tag == 0 && self.tags == 2 {
                0x88a8
            } else {
                0x8100
            };
            frame.extend(tpid.to_be_bytes());
            frame.extend((0x6000 + 100 + tag as u16).to_be_bytes());
        }
        let transport = self.transport(payload);
        frame.extend(if self.v6 {
            self.ip6(transport.len())
        } else {
            self.ip4(transport.len())
        });
        assert_eq!(frame.len(), self.l4());
        frame.extend(transport);
        frame
    }

    /// The sum of the pseudo header for `len` bytes of transport header and payload.
    pub(crate) fn pseudo_sum(&self, len: usize) -> u16 {
        let mut pseudo = if self.v6 {
            [SRC6, DST6].concat()
        } else {
            [SRC4, DST4].concat()
        };
        pseudo.extend((len as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, self.protocol().0]);
        naive_sum(&pseudo)
    }

    fn protocol(&self) -> IpNumber {
        if self.udp {
            IpNumber::UDP
        } else {
            IpNumber::TCP
        }
    }

    fn ip4(&self, len: usize) -> Vec<u8> {
        let mut ip = Ipv4Header::new(len as u16, 64, self.protocol(), SRC4, DST4).unwrap();
        ip.identification = self.id;
        ip.options = (&*vec![1; 4 * self.ip_extra]).try_into().unwrap();
        ip.set_payload_len(len).unwrap();
        ip.header_checksum = ip.calc_header_checksum();
        [&EtherType::IPV4.0.to_be_bytes()[..], &ip.to_bytes()].concat()
    }

    fn ip6(&self, len: usize) -> Vec<u8> {
        let options = IpNumber::IPV6_DESTINATION_OPTIONS;
        let next = |left| if left == 0 { self.protocol() } else { options };
        let ip = Ipv6Header {
            payload_length: (8 * self.ip_extra + len) as u16,
            next_header: next(self.ip_extra),
            hop_limit: 64,
            source: SRC6,
            destination: DST6,
            ..Ipv6Header::default()
        };
        let mut bytes = [&EtherType::IPV6.0.to_be_bytes()[..], &ip.to_bytes()].concat();
        for left in (0..self.ip_extra).rev() {
            // One PadN option over the rest of the header.
            bytes.extend([next(left).0, 0, 1, 4, 0, 0, 0, 0]);
        }
        bytes
    }

    fn transport(&self, payload: &[u8]) -> Vec<u8> {
        let (mut bytes, at) = if self.udp {
            let length = (8 + payload.len()) as u16;
            let (source_port, destination_port) = (SRC_PORT, DST_PORT);
            let udp = UdpHeader {
                source_port,
                destination_port,
                length,
                checksum: 0,
            };
            (udp.to_bytes().to_vec(), 6)
        } else {
            let mut tcp = TcpHeader::new(SRC_PORT, DST_PORT, self.seq, 512);
            (tcp.ack, tcp.acknowledgment_number) = (true, 77);
            (tcp.fin, tcp.psh, tcp.cwr) = (self.fin, self.psh, self.cwr);
            tcp.set_options_raw(&vec![1; 4 * self.tcp_extra]).unwrap();
            (tcp.to_bytes().to_vec(), 16)
        };
        bytes.extend(payload);
        let sum = self.pseudo_sum(bytes.len());
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

/// Any shape.
pub(crate) fn shape() -> impl Strategy<Value = Shape> {
    (
        any::<(bool, bool, bool, bool, bool, u32, u16)>(),
        0..3usize,
        0..4usize,
        0..11usize,
    )
        .prop_map(
            |((v6, udp, fin, psh, cwr, seq, id), tags, ip_extra, tcp_extra)| Shape {
                v6,
                udp,
                tags,
                ip_extra,
                tcp_extra,
                fin,
                psh,
                cwr,
                seq,
                id,
            },
        )
}

/// Bytes that differ from place to place, the same for the same length.
pub(crate) fn payload(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect()
}

/// The one's complement sum of 16-bit words, the long way (RFC 1071).
pub(crate) fn naive_sum(data: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in data.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// What a receiver sees of a whole, complete frame.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) payload: Vec<u8>,
    pub(crate) tcp: Option<TcpHeader>,
    /// IPv4 only.
    pub(crate) id: u16,
}

/// Reads a frame as a strict receiver: lengths exact, every checksum there and right.
pub(crate) fn receive(frame: &[u8]) -> Seen {
    let packet = SlicedPacket::from_ethernet(frame).expect("a frame that parses");
    let (id, v4, v6, ip_len) = match packet.net.as_ref().expect("IP") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(
                header.header_checksum,
                header.calc_header_checksum(),
                "IPv4 checksum"
            );
            let len = usize::from(header.total_len);
            (
                header.identification,
                Some((header.source, header.destination)),
                None,
                len,
            )
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            let len = 40 + usize::from(header.payload_length);
            (0, None, Some((header.source, header.destination)), len)
        }
        NetSlice::Arp(_) => panic!("ARP"),
    };
    let l3 = 14 + 4 * packet.vlan_ids().len();
    assert_eq!(l3 + ip_len, frame.len(), "the length in the IP header");
    match packet.transport.as_ref().expect("a transport header") {
        TransportSlice::Tcp(tcp) => {
            let sum = match (v4, v6) {
                (Some((src, dst)), _) => tcp.calc_checksum_ipv4(src, dst).unwrap(),
                (_, Some((src, dst))) => tcp.calc_checksum_ipv6(src, dst).unwrap(),
                _ => unreachable!(),
            };
            assert_eq!(tcp.checksum(), sum, "TCP checksum");
            Seen {
                payload: tcp.payload().to_vec(),
                tcp: Some(tcp.to_header()),
                id,
            }
        }
        TransportSlice::Udp(udp) => {
            let header = udp.to_header();
            let sum = match (v4, v6) {
                (Some((s, d)), _) => header.calc_checksum_ipv4_raw(s, d, udp.payload()).unwrap(),
                (_, Some((s, d))) => header.calc_checksum_ipv6_raw(s, d, udp.payload()).unwrap(),
                _ => unreachable!(),
            };
            assert_eq!(
                usize::from(header.length),
                8 + udp.payload().len(),
                "UDP length"
            );
            assert_eq!(header.checksum, sum, "UDP checksum");
            assert_ne!(header.checksum, 0, "no UDP checksum");
            Seen {
                payload: udp.payload().to_vec(),
                tcp: None,
                id,
            }
        }
        other => panic!("neither TCP nor UDP: {other:?}"),
    }
}
