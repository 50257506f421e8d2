//! The IP addresses behind a port, as its stations tell them by themselves.
//!
//! Nothing is asked. What is believed is what other stations believe: the sender of an ARP packet
//! (RFC 826), the source of a neighbour solicitation, the target of a neighbour advertisement
//! (RFC 4861, 7.2.3 and 7.2.5), each only where it names the link-layer address that the frame
//! comes from. So a router's packets do not make their senders its neighbours.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tandem_virtio_net::wire::arp;
use tandem_virtio_net::wire::checksum::Checksum;
use tandem_virtio_net::wire::ethernet::{self, TYPE_ARP, TYPE_IPV4, TYPE_IPV6};
use tandem_virtio_net::wire::icmp::{self, v6};
use tandem_virtio_net::wire::vlan::{TAG_LEN, TPID_CUSTOMER, Tci, tag};
use tandem_virtio_net::wire::{ipv6, protocol};

use super::PortId;
use super::snapshot::Port;
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
/// Flag of an advertisement: the sender is a router.
const ROUTER: u8 = 0x80;
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
    /// It says that it is an IPv6 router. Whoever is told otherwise forgets its routes through it
    /// (RFC 4861, 7.2.5).
    pub router: bool,
}

/// What a frame says of its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heard {
    neighbour: Neighbour,
    /// Whether it says if it is a router at all.
    says_router: bool,
}

impl Neighbour {
    /// What a frame that starts with `head`, with a tag or without, says of its sender.
    #[inline]
    fn heard(head: &[u8], tag: Option<u16>) -> Option<Heard> {
        let at = ethernet::TYPE_AT + if tag.is_some() { TAG_LEN } else { 0 };
        let (kind, packet) = head.get(at..)?.split_first_chunk()?;
        match u16::from_be_bytes(*kind) {
            TYPE_ARP | TYPE_IPV6 => Self::parse(head, packet, tag),
            _ => None,
        }
    }

    fn parse(head: &[u8], packet: &[u8], tag: Option<u16>) -> Option<Heard> {
        let src = ethernet::Frame::new_checked(head).ok()?.src();
        let (ip, mac, router) = match arp::Packet::new_checked(packet) {
            Ok(arp) => (arp.sender_ip().into(), arp.sender_mac(), None),
            Err(_) => discovery(packet, src)?,
        };
        let vlan = tag.map(|tci| Tci(tci).vid()).filter(|vid| *vid != 0);
        let neighbour = Self {
            ip,
            mac: src,
            vlan,
            router: router == Some(true),
        };
        let heard = Heard {
            neighbour,
            says_router: router.is_some(),
        };
        (mac == src && neighbour.is_station()).then_some(heard)
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
        let flags = OVERRIDE | if self.router { ROUTER } else { 0 };
        let mut message = vec![v6::NEIGHBOR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
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

/// The addresses in a message of neighbour discovery from `src`, if they are the sender's, and whether
/// it says that it is a router, if it says.
fn discovery(packet: &[u8], src: Mac) -> Option<(IpAddr, Mac, Option<bool>)> {
    let packet = ipv6::Packet::new_checked(packet).ok()?;
    if (packet.next_header(), packet.hop_limit()) != (protocol::ICMPV6, HOP_LIMIT) {
        return None;
    }
    let message = packet.payload();
    let kind = icmp::Message::new_checked(message).ok()?.kind();
    if kind == v6::ROUTER_ADVERTISEMENT {
        // Its link-layer address is optional, and its sender's own.
        return Some((packet.src().into(), src, Some(true)));
    }
    let flags = *message.get(icmp::HEADER_LEN)?;
    let target = message.get(ADDRESS_AT..)?.first_chunk::<16>()?;
    let (ip, option, router) = match kind {
        v6::NEIGHBOR_SOLICITATION => (packet.src(), SOURCE_ADDRESS, None),
        v6::NEIGHBOR_ADVERTISEMENT => {
            let router = Some(flags & ROUTER != 0);
            (Ipv6Addr::from(*target), TARGET_ADDRESS, router)
        }
        _ => return None,
    };
    // Linux sends this option first, and alone.
    match message.get(ADDRESS_AT + 16..)?.first_chunk::<OPTION>()? {
        [kind, 1, mac @ ..] if *kind == option => Some((ip.into(), Mac(*mac), router)),
        _ => None,
    }
}

/// Which of two claims to an address was heard later, on whatever port. Zero: before we started.
static HEARD: AtomicU64 = AtomicU64::new(1);

/// The neighbours that one port has, those heard last first, and when each was.
#[derive(Debug, Default)]
pub(crate) struct Neighbours(Mutex<Vec<(Neighbour, u64)>>);

impl Neighbours {
    /// Those heard before we started.
    pub(super) fn new(known: Vec<Neighbour>) -> Self {
        let stations = known.into_iter().filter(Neighbour::is_station);
        let list = stations.take(MAX_NEIGHBOURS).map(|n| (n, 0)).collect();
        Self(Mutex::new(list))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Neighbour, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a frame says of its sender. For frames that the flow cache does not know: those
    /// that are flooded, and the first of a flow.
    #[inline]
    pub(super) fn hear(&self, head: &[u8], tag: Option<u16>) {
        if let Some(heard) = Neighbour::heard(head, tag) {
            self.note(heard);
        }
    }

    fn note(&self, heard: Heard) {
        // Whoever has the lock looks at the list: the station will say it again.
        let Ok(mut list) = self.0.try_lock() else {
            return;
        };
        let mut new = heard.neighbour;
        let same = |(n, _): &(Neighbour, u64)| (n.ip, n.vlan) == (new.ip, new.vlan);
        let old = list.iter().position(same).map(|at| list.remove(at).0);
        if !heard.says_router {
            new.router = old.is_some_and(|old| old.mac == new.mac && old.router);
        }
        if new.router {
            // So are all its addresses.
            for (other, _) in list.iter_mut() {
                other.router |= other.mac == new.mac && other.ip.is_ipv6();
            }
        }
        list.truncate(MAX_NEIGHBOURS - 1);
        list.insert(0, (new, HEARD.fetch_add(1, Relaxed)));
    }

    /// All, those heard last first.
    pub(super) fn list(&self) -> Vec<Neighbour> {
        self.lock().iter().map(|(n, _)| *n).collect()
    }

    /// Has `known` instead, those heard last first; all heard now.
    pub(super) fn replace(&self, known: Vec<Neighbour>) {
        let stations = known.into_iter().filter(Neighbour::is_station);
        let mut list: Vec<_> = stations.take(MAX_NEIGHBOURS).map(|n| (n, 0)).collect();
        for (_, heard) in list.iter_mut().rev() {
            *heard = HEARD.fetch_add(1, Relaxed);
        }
        *self.lock() = list;
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }
}

/// An address belongs to who claimed it last, in its VLAN: the others' claims are forgotten, and
/// those of which nobody knows which is the later.
pub(super) fn settle<'a>(ports: impl Iterator<Item = &'a Port> + Clone) {
    struct Claim {
        heard: u64,
        port: PortId,
        sure: bool,
    }
    let key = |port: &Port, n: &Neighbour| Some((n.ip, port.vlan.ingress(n.vlan)?.vid));
    let mut latest: HashMap<(IpAddr, u16), Claim> = HashMap::new();
    for port in ports.clone() {
        for (n, heard) in port.neighbours.lock().iter() {
            let claim = || Claim {
                heard: *heard,
                port: port.id,
                sure: true,
            };
            let Some(key) = key(port, n) else { continue };
            let best = latest.entry(key).or_insert_with(claim);
            if *heard > best.heard {
                *best = claim();
            } else if *heard == best.heard && port.id != best.port {
                best.sure = false;
            }
        }
    }
    for port in ports {
        port.neighbours.lock().retain(|(n, _)| {
            let best = key(port, n).and_then(|key| latest.get(&key));
            best.is_some_and(|claim| claim.sure && claim.port == port.id)
        });
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
            router: false,
        }
    }

    /// Hears a frame as the switch would.
    fn hear(frame: &[u8]) -> Option<Neighbour> {
        let tagged = frame[12..14] == [0x81, 0];
        let tci = tagged.then(|| u16::from_be_bytes([frame[14], frame[15]]));
        let heard = Neighbour::heard(&frame[..frame.len().min(128)], tci);
        heard.map(|heard| heard.neighbour)
    }

    /// A router advertisement (RFC 4861, 4.2) from a link-local address.
    fn router_advertisement() -> Vec<u8> {
        let mut frame = neighbour("fe80::9").announcement();
        frame[54] = v6::ROUTER_ADVERTISEMENT;
        frame
    }

    #[test]
    fn a_router_stays_one() {
        let list = Neighbours::default();
        let host = neighbour("2001:db8::9").announcement();
        list.hear(&host, None);
        list.hear(&neighbour("10.0.0.9").announcement(), None);
        assert!(list.list().iter().all(|n| !n.router));
        // By its advertisement all its IPv6 addresses are a router's, and what is announced says so.
        list.hear(&router_advertisement(), None);
        let is_router = |ip: &str| {
            let all = list.list();
            all.iter().find(|n| n.ip.to_string() == ip).unwrap().router
        };
        assert!(is_router("fe80::9") && is_router("2001:db8::9") && !is_router("10.0.0.9"));
        let told = list.list()[0].announcement();
        assert_eq!(told[58], OVERRIDE | ROUTER);
        assert!(hear(&told).unwrap().router);
        // A solicitation says nothing of it; an advertisement without the flag does.
        let mut asks = neighbour("2001:db8::9").announcement();
        (asks[54], asks[78]) = (v6::NEIGHBOR_SOLICITATION, SOURCE_ADDRESS);
        list.hear(&asks, None);
        assert!(is_router("2001:db8::9"));
        list.hear(&host, None);
        assert!(!is_router("2001:db8::9"));
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
