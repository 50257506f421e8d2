//! What is sent to probe, and what answers it, as it is on the wire.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tandem_virtio_net::wire::arp;
use tandem_virtio_net::wire::checksum::Checksum;
use tandem_virtio_net::wire::ethernet::{HEADER_LEN, TYPE_ARP, TYPE_AT, TYPE_IPV4, TYPE_IPV6};
use tandem_virtio_net::wire::icmp::{self, v6};
use tandem_virtio_net::wire::vlan::{self, TPID_CUSTOMER, Tci};
use tandem_virtio_net::wire::{ipv6, protocol};

use crate::Mac;
use crate::team::HEARTBEAT_GROUP;

/// Shortest frame, without the frame check sequence (IEEE 802.3, 3.2.8).
const MIN_FRAME: usize = 60;

/// Bytes of a solicitation with one option, and of an advertisement without (RFC 4861, 4.3 and 4.4).
const SOLICITATION_LEN: usize = 32;
const ADVERTISEMENT_LEN: usize = 24;
/// The option with the address of the sender, of one unit of 8 bytes (RFC 4861, 4.6.1).
const SOURCE_LINK_LAYER: [u8; 2] = [1, 1];
/// The flag of an advertisement that answers a solicitation (RFC 4861, 4.4).
const SOLICITED: u8 = 0x40;
/// Discovery is not for what came through a router (RFC 4861, 7.1).
const HOP_LIMIT: u8 = 255;

/// EtherType of heartbeats: Local Experimental 1 (IEEE 802, 9.2.3).
const TYPE_EXPERIMENTAL: u16 = 0x88b5;
/// What tells heartbeats from the experiments of others; the last byte is the version.
const MAGIC: [u8; 8] = *b"tandem\0\x01";

/// A frame of the VLAN `vid`, without a tag if there is none.
fn header(dst: Mac, src: Mac, vid: Option<u16>, ethertype: u16) -> Vec<u8> {
    let mut frame = [dst.0, src.0].concat();
    if let Some(vid) = vid {
        frame.extend(vlan::tag(TPID_CUSTOMER, Tci::new(0, false, vid)));
    }
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(MIN_FRAME), 0);
    frame
}

/// What a frame of the VLAN `vid` carries, if it is of this type; a tag may give a priority only.
fn payload(frame: &[u8], vid: Option<u16>, ethertype: u16) -> Option<&[u8]> {
    let typed = frame.get(TYPE_AT..)?;
    let (tagged, typed) = match vlan::Tag::new_checked(typed) {
        Ok(tag) if tag.tpid() == TPID_CUSTOMER => (tag.tci().vid(), tag.rest()),
        _ => (0, typed),
    };
    let payload = typed.strip_prefix(&ethertype.to_be_bytes())?;
    (tagged == vid.unwrap_or(0)).then_some(payload)
}

/// Asks for the address `target` in the name of the member `source`: the station `to`, or all.
pub(super) fn request(target: IpAddr, to: Option<Mac>, source: Mac, vid: Option<u16>) -> Vec<u8> {
    match target {
        IpAddr::V4(target) => arp_request(target, to, source, vid),
        IpAddr::V6(target) => solicitation(target, to, source, vid),
    }
}

/// An ARP probe (RFC 5227, 2.1.1): it has no address as sender, which all answer and none notes.
fn arp_request(target: Ipv4Addr, to: Option<Mac>, source: Mac, vid: Option<u16>) -> Vec<u8> {
    let mut frame = header(to.unwrap_or(Mac::BROADCAST), source, vid, TYPE_ARP);
    frame.extend(arp::HARDWARE_ETHERNET.to_be_bytes());
    frame.extend(TYPE_IPV4.to_be_bytes());
    frame.extend([6, 4]);
    frame.extend(arp::REQUEST.to_be_bytes());
    frame.extend(source.0);
    frame.extend(Ipv4Addr::UNSPECIFIED.octets());
    frame.extend(Mac::default().0);
    frame.extend(target.octets());
    padded(frame)
}

/// A neighbour solicitation. Without a source address it would be for duplicate address detection, and
/// be answered to all (RFC 4861, 7.2.4), so it has the address that the member's MAC address makes.
fn solicitation(target: Ipv6Addr, to: Option<Mac>, source: Mac, vid: Option<u16>) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    );
    // RFC 2464, 7.
    let group_mac = Mac([0x33, 0x33, 0xff, a, b, c]);
    let (dst, dst_mac) = to.map_or((group, group_mac), |to| (target, to));
    let src = link_local(source);
    let mut message = [v6::NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0].to_vec();
    message.extend(target.octets());
    message.extend(SOURCE_LINK_LAYER);
    message.extend(source.0);
    let sum = pseudo_header(src, dst, SOLICITATION_LEN as u32).bytes(&message);
    message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    let mut frame = header(dst_mac, source, vid, TYPE_IPV6);
    frame.extend([
        0x60,
        0,
        0,
        0,
        0,
        SOLICITATION_LEN as u8,
        protocol::ICMPV6,
        HOP_LIMIT,
    ]);
    frame.extend(src.octets());
    frame.extend(dst.octets());
    frame.extend(message);
    padded(frame)
}

/// The link-local address made of a MAC address (RFC 4291, 2.5.1 and 2.5.6).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ])
}

/// The sum of the pseudo-header of ICMPv6 (RFC 8200, 8.1).
fn pseudo_header(src: Ipv6Addr, dst: Ipv6Addr, len: u32) -> Checksum {
    let sum = Checksum::new().bytes(&src.octets()).bytes(&dst.octets());
    sum.bytes(&len.to_be_bytes()).word(protocol::ICMPV6.into())
}

/// Whether a frame answers [`request`]. The station that answers, if it does.
pub(super) fn answer(frame: &[u8], target: IpAddr, member: Mac, vid: Option<u16>) -> Option<Mac> {
    if !frame.starts_with(&member.0) {
        return None;
    }
    let answers = match target {
        IpAddr::V4(target) => {
            let packet = arp::Packet::new_checked(payload(frame, vid, TYPE_ARP)?).ok()?;
            let whose = (packet.operation(), packet.sender_ip(), packet.target_mac());
            whose == (arp::REPLY, target, member)
        }
        IpAddr::V6(target) => is_advertisement(payload(frame, vid, TYPE_IPV6)?, target),
    };
    let source = frame.get(6..HEADER_LEN).and_then(|rest| rest.first_chunk());
    let source = source.map(|mac| Mac(*mac));
    source.filter(|mac| answers && mac.is_unicast())
}

/// As RFC 4861, 7.1.2 wants it, for what was asked.
fn is_advertisement(packet: &[u8], target: Ipv6Addr) -> bool {
    let Ok(packet) = ipv6::Packet::new_checked(packet) else {
        return false;
    };
    let (bytes, whole) = (packet.payload(), usize::from(packet.payload_len()));
    if packet.next_header() != protocol::ICMPV6
        || packet.hop_limit() != HOP_LIMIT
        || bytes.len() != whole
        || bytes.len() < ADVERTISEMENT_LEN
    {
        return false;
    }
    let Ok(message) = icmp::Message::new_checked(bytes) else {
        return false;
    };
    let sum = pseudo_header(packet.src(), packet.dst(), whole as u32).bytes(bytes);
    let body = message.body();
    (message.kind(), message.code(), sum.finish()) == (v6::NEIGHBOR_ADVERTISEMENT, 0, 0)
        && body[0] & SOLICITED != 0
        && body[4..20] == target.octets()
}

/// What one member says to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heartbeat {
    pub(super) team: u64,
    pub(super) member: u32,
    pub(super) sequence: u64,
}

impl Heartbeat {
    pub(super) fn frame(&self, source: Mac, vid: Option<u16>) -> Vec<u8> {
        let mut frame = header(HEARTBEAT_GROUP, source, vid, TYPE_EXPERIMENTAL);
        frame.extend(MAGIC);
        frame.extend(self.team.to_be_bytes());
        frame.extend(self.member.to_be_bytes());
        frame.extend(self.sequence.to_be_bytes());
        padded(frame)
    }

    pub(super) fn read(frame: &[u8], vid: Option<u16>) -> Option<Self> {
        if !frame.starts_with(&HEARTBEAT_GROUP.0) {
            return None;
        }
        let rest = payload(frame, vid, TYPE_EXPERIMENTAL)?.strip_prefix(&MAGIC)?;
        let (team, rest) = rest.split_first_chunk()?;
        let (member, rest) = rest.split_first_chunk()?;
        let sequence = rest.first_chunk()?;
        Some(Self {
            team: u64::from_be_bytes(*team),
            member: u32::from_be_bytes(*member),
            sequence: u64::from_be_bytes(*sequence),
        })
    }
}
