//! The IP addresses behind a port, as its stations tell them by themselves.
//!
//! Nothing is asked. What is believed is what other stations believe: the sender of an ARP packet
//! (RFC 826), the source of a neighbour solicitation, the target of a neighbour advertisement
//! (RFC 4861, 7.2.3 and 7.2.5), each only where it names the link-layer address that the frame
//! comes from. So a router's packets do not make their senders its neighbours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tandem_virtio_net::wire::arp;
use tandem_virtio_net::wire::checksum::Checksum;
use tandem_virtio_net::wire::ethernet::{self, TYPE_ARP, TYPE_IPV4, TYPE_IPV6};
use tandem_virtio_net::wire::icmp::{self, v6};
use tandem_virtio_net::wire::vlan::{TAG_LEN, TPID_CUSTOMER, Tci, tag};
use tandem_virtio_net::wire::{ipv6, protocol};

use crate::Mac;

/// Addresses that are remembered of a port. Of more, those heard last.
pub const MAX_NEIGHBOURS: usize = 16;

/// Where a solicitation and an advertisement have their target (RFC 4861, 4.3 and 4.4).
const ADDRESS_AT: usize = icmp::HEADER_LEN + 4;
/// Bytes of an option with a link-layer address (RFC 4861, 4.6.1).
const OPTION: usize = 8;
/// The options with the link-layer address of source and target.
const SOURCE_ADDRESS: u8 = 1;
const TARGET_ADDRESS: u8 = 2;
/// Flag of an advertisement: what was known before is wrong (RFC 4861, 4.4).
const OVERRIDE: u8 = 0x20;
/// Hop limit of neighbour discovery: the packet has not been forwarded (RFC 4861, 7.1).
const HOP_LIMIT: u8 = 255;
/// All nodes on the link (RFC 4291, 2.7.1), and its Ethernet address (RFC 2464, 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// An IP address and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Neighbour {
    /// The address.
    pub ip: IpAddr,
    /// The station's.
    pub mac: Mac,
    /// The VLAN in the tag that the station puts on its frames; none: it sends them untagged.
    pub vlan: Option<u16>,
}

impl Neighbour {
    /// What a frame that starts with `head`, with a tag or without, says of its sender.
    #[inline]
    fn heard(head: &[u8], tag: Option<u16>) -> Option<Self> {
        let at = ethernet::TYPE_AT + if tag.is_some() { TAG_LEN } else { 0 };
        let (kind, packet) = head.get(at..)?.split_first_chunk()?;
        match u16::from_be_bytes(*kind) {
            TYPE_ARP | TYPE_IPV6 => Self::parse(head, packet, tag),
            _ => None,
        }
    }

    fn parse(head: &[u8], packet: &[u8], tag: Option<u16>) -> Option<Self> {
        let src = ethernet::Frame::new_checked(head).ok()?.src();
        let (ip, mac) = match arp::Packet::new_checked(packet) {
            Ok(arp) => (arp.sender_ip().into(), arp.sender_mac()),
            Err(_) => discovery(packet)?,
        };
        let vlan = tag.map(|tci| Tci(tci).vid()).filter(|vid| *vid != 0);
        let this = Self { ip, mac: src, vlan };
        (mac == src && this.is_station()).then_some(this)
    }

    /// Can these be one station's addresses?
    fn is_station(&self) -> bool {
        let ip = match self.ip {
            // A probe has none yet (RFC 5227, 2.1.1).
            IpAddr::V4(ip) => !(ip.octets()[0] == 0 || ip.is_multicast() || ip.is_broadcast()),
            IpAddr::V6(ip) => !(ip.is_unspecified() || ip.is_multicast()),
        };
        ip && !self.ip.is_loopback() && self.mac.is_unicast()
    }

    /// The frame by which the station would tell all others where it is: an ARP announcement
    /// (RFC 5227, 2.3), or an unsolicited neighbour advertisement (RFC 4861, 7.2.6). Both only
    /// change what a station knows already, or is asking for.
    pub(super) fn announcement(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        let to = match self.ip {
            IpAddr::V4(_) => Mac::BROADCAST,
            IpAddr::V6(_) => ALL_NODES_MAC,
        };
        frame.extend(to.0);
        frame.extend(self.mac.0);
        if let Some(vid) = self.vlan {
            frame.extend(tag(TPID_CUSTOMER, Tci::new(0, false, vid)));
        }
        match self.ip {
            IpAddr::V4(ip) => self.announce_v4(&mut frame, ip),
            IpAddr::V6(ip) => self.announce_v6(&mut frame, ip),
        }
        frame
    }

    fn announce_v4(&self, frame: &mut Vec<u8>, ip: Ipv4Addr) {
        for word in [TYPE_ARP, arp::HARDWARE_ETHERNET, TYPE_IPV4] {
            frame.extend(word.to_be_bytes());
        }
        frame.extend([6, 4]);
        frame.extend(arp::REQUEST.to_be_bytes());
        frame.extend(self.mac.0);
        frame.extend(ip.octets());
        frame.extend([0; 6]);
        frame.extend(ip.octets());
    }

    fn announce_v6(&self, frame: &mut Vec<u8>, ip: Ipv6Addr) {
        let mut message = vec![v6::NEIGHBOR_ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
        message.extend(ip.octets());
        message.extend([TARGET_ADDRESS, 1]);
        message.extend(self.mac.0);
        let length = (message.len() as u16).to_be_bytes();
        let sum = Checksum::new()
            .bytes(&ip.octets())
            .bytes(&ALL_NODES.octets())
            .bytes(&length)
            .bytes(&[0, protocol::ICMPV6])
            .bytes(&message)
            .finish();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        frame.extend(TYPE_IPV6.to_be_bytes());
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(length);
        frame.extend([protocol::ICMPV6, HOP_LIMIT]);
        frame.extend(ip.octets());
        frame.extend(ALL_NODES.octets());
        frame.extend(message);
    }
}

/// The addresses in a message of neighbour discovery, if they are the sender's.
fn discovery(packet: &[u8]) -> Option<(IpAddr, Mac)> {
    let packet = ipv6::Packet::new_checked(packet).ok()?;
    if (packet.next_header(), packet.hop_limit()) != (protocol::ICMPV6, HOP_LIMIT) {
        return None;
    }
    let message = packet.payload();
    let kind = icmp::Message::new_checked(message).ok()?.kind();
    let target = message.get(ADDRESS_AT..)?.first_chunk::<16>()?;
    let (ip, option) = match kind {
        v6::NEIGHBOR_SOLICITATION => (packet.src(), SOURCE_ADDRESS),
        v6::NEIGHBOR_ADVERTISEMENT => (Ipv6Addr::from(*target), TARGET_ADDRESS),
        _ => return None,
    };
    // Linux sends this option first, and alone.
    match message.get(ADDRESS_AT + 16..)?.first_chunk::<OPTION>()? {
        [kind, 1, mac @ ..] if *kind == option => Some((ip.into(), Mac(*mac))),
        _ => None,
    }
}

/// The neighbours that one port has.
#[derive(Debug, Default)]
pub(super) struct Neighbours(Mutex<Vec<Neighbour>>);

impl Neighbours {
    /// Those heard before.
    pub(super) fn new(mut known: Vec<Neighbour>) -> Self {
        known.retain(Neighbour::is_station);
        known.truncate(MAX_NEIGHBOURS);
        Self(Mutex::new(known))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Neighbour>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a frame says of its sender. For frames that the flow cache does not know: those
    /// that are flooded, and the first of a flow.
    #[inline]
    pub(super) fn hear(&self, head: &[u8], tag: Option<u16>) {
        if let Some(neighbour) = Neighbour::heard(head, tag) {
            self.note(neighbour);
        }
    }

    fn note(&self, neighbour: Neighbour) {
        // Whoever has the lock looks at the list: the station will say it again.
        let Ok(mut list) = self.0.try_lock() else {
            return;
        };
        let same = |n: &Neighbour| (n.ip, n.vlan) == (neighbour.ip, neighbour.vlan);
        let at = list.iter().position(same).unwrap_or(list.len());
        if at == list.len() {
            list.truncate(MAX_NEIGHBOURS - 1);
            list.push(neighbour);
        }
        let at = at.min(list.len() - 1);
        list[at] = neighbour;
        list[..=at].rotate_right(1);
    }

    /// All, those heard last first.
    pub(super) fn list(&self) -> Vec<Neighbour> {
        self.lock().clone()
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);

    fn neighbour(ip: &str) -> Neighbour {
        Neighbour {
            ip: ip.parse().unwrap(),
            mac: MAC,
            vlan: None,
        }
    }

    /// Hears a frame as the switch would.
    fn hear(frame: &[u8]) -> Option<Neighbour> {
        let tagged = frame[12..14] == [0x81, 0];
        let tci = tagged.then(|| u16::from_be_bytes([frame[14], frame[15]]));
        Neighbour::heard(&frame[..frame.len().min(128)], tci)
    }

    #[test]
    fn an_announcement_says_what_was_heard() {
        for ip in ["10.0.0.1", "fe80::5054:ff:fe00:1", "2001:db8::7"] {
            for vlan in [None, Some(7)] {
                let told = Neighbour {
                    vlan,
                    ..neighbour(ip)
                };
                let frame = told.announcement();
                assert_eq!(hear(&frame), Some(told));
                for length in 0..frame.len() {
                    let cut = &frame[..length];
                    assert_eq!(Neighbour::heard(cut, vlan), None, "{ip} {length}");
                }
            }
        }
    }

    /// RFC 4861, 7.1.2: what a receiver checks.
    #[test]
    fn an_advertisement_is_valid() {
        let frame = neighbour("2001:db8::7").announcement();
        let packet = ipv6::Packet::new_checked(&frame[14..]).unwrap();
        let message = packet.payload();
        let sum = Checksum::new()
            .bytes(&packet.src().octets())
            .bytes(&packet.dst().octets())
            .word(packet.payload_len())
            .word(58)
            .bytes(message)
            .finish();
        assert_eq!((sum, packet.hop_limit()), (0, 255));
        assert_eq!((message.len(), message[1], message[4]), (32, 0, OVERRIDE));
    }

    #[test]
    fn what_is_not_a_stations_own_is_not_believed() {
        // An address that is nobody's.
        for ip in [
            "0.0.0.0",
            "224.0.0.1",
            "127.0.0.1",
            "255.255.255.255",
            "::",
            "ff02::1",
            "::1",
        ] {
            assert_eq!(hear(&neighbour(ip).announcement()), None, "{ip}");
        }
        // Another station's: the frame comes from elsewhere.
        for ip in ["10.0.0.1", "fe80::1"] {
            let mut frame = neighbour(ip).announcement();
            frame[11] ^= 1;
            assert_eq!(hear(&frame), None, "{ip}");
        }
        // Forwarded by a router, or no neighbour discovery at all.
        let v6 = neighbour("fe80::1").announcement();
        for (at, value) in [(21, 254), (20, 17), (54, 128), (78, 1), (79, 2)] {
            let mut frame = v6.clone();
            frame[at] = value;
            assert_eq!(hear(&frame), None, "{at}");
        }
    }

    #[test]
    fn of_many_those_heard_last_are_kept() {
        let list = Neighbours::default();
        let ip = |i: usize| neighbour(&format!("10.0.0.{}", i + 1));
        for i in 0..MAX_NEIGHBOURS {
            list.hear(&ip(i).announcement(), None);
        }
        list.hear(&ip(0).announcement(), None);
        list.hear(&ip(99).announcement(), None);
        let kept = list.list();
        assert_eq!(kept.len(), MAX_NEIGHBOURS);
        assert_eq!(kept[..2], [ip(99), ip(0)]);
        assert!(!kept.contains(&ip(1)) && kept.contains(&ip(2)));
        // It moves with its station.
        let moved = Neighbour {
            mac: Mac([2; 6]),
            ..ip(5)
        };
        list.hear(&moved.announcement(), None);
        assert_eq!((list.list()[0], list.list().len()), (moved, MAX_NEIGHBOURS));
        assert!(!list.list().contains(&ip(5)));
    }
}
