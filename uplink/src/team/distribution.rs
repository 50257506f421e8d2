//! Which member a frame leaves by: from what it is to a bucket, from the bucket to a member.
//!
//! ```text
//!   frame ──Distribution::hash──► bucket (one of 1024) ──Buckets──► member
//! ```
//!
//! Frames of one conversation share a bucket, and so keep their order. A bucket's member depends on
//! the members there are and on which of them work, and on nothing that was before: when a member
//! fails, the buckets it had go to others and no other bucket moves; when it is back, they come back.

use std::fmt;
use std::hash::BuildHasher;
use std::str::FromStr;

use foldhash::fast::FixedState;
use tandem_virtio_net::wire::protocol;
use tandem_virtio_net::wire::{FlowKey, parse};

/// Most members of a team.
pub const MAX_MEMBERS: usize = 32;
/// Buckets of a team.
pub const BUCKETS: usize = 1024;

/// What tells conversations apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distribution {
    /// IP addresses and TCP or UDP ports; for what has no ports (other protocols, IPsec, fragments)
    /// the IP addresses, and for what is not IP the MAC addresses.
    #[default]
    TransportPorts,
    /// IP addresses; for what is not IP the MAC addresses.
    IpAddresses,
    /// MAC addresses.
    MacAddresses,
    /// The port of the switch that the frame comes from.
    Port,
    /// As [`Distribution::TransportPorts`], and a bucket that was quiet for a moment may move to a
    /// member that has less to do.
    Dynamic,
}

/// Names, as the configuration has them.
const NAMES: [(Distribution, &str); 5] = [
    (Distribution::TransportPorts, "transport_ports"),
    (Distribution::IpAddresses, "ip_addresses"),
    (Distribution::MacAddresses, "mac_addresses"),
    (Distribution::Port, "port"),
    (Distribution::Dynamic, "dynamic"),
];

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(distribution, _)| distribution == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

impl FromStr for Distribution {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let named = NAMES.iter().find(|(_, name)| *name == text);
        named.map(|(distribution, _)| *distribution).ok_or(())
    }
}

impl Distribution {
    /// The bucket of a frame of `len` bytes with this head, from the port `port` of the switch. A fixed
    /// function: the same on every host and after every restart.
    pub fn bucket(self, head: &[u8], len: usize, port: u16) -> u16 {
        let words = match self {
            Self::Port => [u64::from(port), 1, 0, 0, 0],
            Self::MacAddresses => mac_words(head),
            Self::IpAddresses => match parse(head, len).key {
                FlowKey { version: 0, .. } => mac_words(head),
                key => addresses(key).words(),
            },
            Self::TransportPorts | Self::Dynamic => match parse(head, len).key {
                FlowKey { version: 0, .. } => mac_words(head),
                key if has_ports(&key) => key.words(),
                key => addresses(key).words(),
            },
        };
        (mix(&words) % BUCKETS as u64) as u16
    }
}

/// Whether the ports are there: the parser leaves them out of fragments.
fn has_ports(key: &FlowKey) -> bool {
    let transport = matches!(key.protocol, protocol::TCP | protocol::UDP);
    transport && (key.src_port, key.dst_port) != (0, 0)
}

/// The addresses alone: all that two hosts say to each other is one conversation.
fn addresses(key: FlowKey) -> FlowKey {
    FlowKey {
        src_port: 0,
        dst_port: 0,
        protocol: 0,
        ..key
    }
}

fn mac_words(head: &[u8]) -> [u64; 5] {
    let mac = |at: usize| {
        let bytes = head.get(at..at + 6).unwrap_or_default();
        bytes
            .iter()
            .fold(0, |mac, byte| mac << 8 | u64::from(*byte))
    };
    [mac(0), mac(6), 2, 0, 0]
}

fn mix(words: &[u64; 5]) -> u64 {
    // The seed is fixed so that a flow has its place everywhere and always.
    FixedState::with_seed(0x7461_6e64_656d).hash_one(words)
}

/// A member for each bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets([u8; BUCKETS]);

/// No member works.
const NONE: u8 = u8::MAX;

impl Buckets {
    /// Deals the buckets to the members that work; `members` has a number for each, which is its own
    /// for good, and whether it works. Each has as many as the next, or one more.
    pub fn deal(members: &[(u32, bool)]) -> Self {
        let members = &members[..members.len().min(MAX_MEMBERS)];
        // At home with all that there are, so that each comes home again.
        let homes = fill(&[NONE; BUCKETS], members, |_| true);
        let works = |at: usize| members[at].1;
        let mut kept = homes;
        for bucket in &mut kept {
            if *bucket != NONE && !works(usize::from(*bucket)) {
                *bucket = NONE;
            }
        }
        Self(fill(&kept, members, works))
    }

    /// The same with other places: `place` has the new one of each.
    #[must_use]
    pub fn renumbered(&self, place: impl Fn(usize) -> Option<usize>) -> Self {
        Self(self.0.map(|member| match member {
            NONE => NONE,
            member => place(member.into()).map_or(NONE, |place| place as u8),
        }))
    }

    /// The place in `members` of the member that has a bucket; none if no member works.
    #[inline]
    pub fn member(&self, bucket: u16) -> Option<usize> {
        let member = self.0[usize::from(bucket) % BUCKETS];
        (member != NONE).then_some(usize::from(member))
    }
}

/// Gives each bucket that has no member the one it likes best of those that may have more.
fn fill(
    buckets: &[u8; BUCKETS],
    members: &[(u32, bool)],
    may: impl Fn(usize) -> bool,
) -> [u8; BUCKETS] {
    let mut filled = *buckets;
    let mut has = [0usize; MAX_MEMBERS];
    for member in buckets.iter().filter(|member| **member != NONE) {
        has[usize::from(*member)] += 1;
    }
    let able = (0..members.len()).filter(|at| may(*at)).count();
    if able == 0 {
        return filled;
    }
    let most = BUCKETS.div_ceil(able);
    for (bucket, member) in filled.iter_mut().enumerate() {
        if *member != NONE {
            continue;
        }
        // The one with the highest number of its own for this bucket (rendezvous hashing).
        let liking = |at: &usize| mix(&[bucket as u64, members[*at].0.into(), 3, 0, 0]);
        let best = (0..members.len())
            .filter(|at| may(*at) && has[*at] < most)
            .max_by_key(liking);
        if let Some(best) = best {
            has[best] += 1;
            *member = best as u8;
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(buckets: &Buckets, members: usize) -> Vec<usize> {
        let mut counts = vec![0; members];
        (0..BUCKETS as u16)
            .filter_map(|bucket| buckets.member(bucket))
            .for_each(|member| counts[member] += 1);
        counts
    }

    fn differ(a: &Buckets, b: &Buckets) -> Vec<u16> {
        let all = 0..BUCKETS as u16;
        all.filter(|n| a.member(*n) != b.member(*n)).collect()
    }

    #[test]
    fn all_members_have_as_much() {
        for n in 1..=MAX_MEMBERS {
            let members: Vec<(u32, bool)> = (0..n as u32).map(|id| (7 * id + 3, true)).collect();
            let counts = count(&Buckets::deal(&members), n);
            let most = BUCKETS.div_ceil(n);
            assert_eq!(counts.iter().sum::<usize>(), BUCKETS);
            assert!(counts.iter().all(|c| *c <= most), "{counts:?}");
            // One that came last has what the others left.
            assert!(
                counts.iter().all(|c| 10 * c >= 7 * BUCKETS / n),
                "{n}: {counts:?}"
            );
        }
        let none = Buckets::deal(&[(1, false), (2, false)]);
        assert_eq!(none.member(5), None);
        assert_eq!(Buckets::deal(&[]).member(5), None);
    }

    #[test]
    fn a_failure_moves_the_buckets_of_that_member_only_and_they_come_back() {
        for n in 2..8usize {
            let mut members: Vec<(u32, bool)> = (0..n as u32).map(|id| (id, true)).collect();
            let before = Buckets::deal(&members);
            for failed in 0..n {
                members[failed].1 = false;
                let after = Buckets::deal(&members);
                for bucket in differ(&before, &after) {
                    assert_eq!(before.member(bucket), Some(failed));
                }
                let counts = count(&after, n);
                assert_eq!(counts[failed], 0);
                let most = BUCKETS.div_ceil(n - 1);
                assert!(counts.iter().all(|c| *c <= most), "{counts:?}");
                members[failed].1 = true;
                assert_eq!(Buckets::deal(&members), before);
            }
        }
    }

    #[test]
    fn a_member_that_is_added_takes_its_share_and_little_else_moves() {
        let four: Vec<(u32, bool)> = (0..4).map(|id| (id, true)).collect();
        let five: Vec<(u32, bool)> = (0..5).map(|id| (id, true)).collect();
        let (before, after) = (Buckets::deal(&four), Buckets::deal(&five));
        let moved = differ(&before, &after).len();
        assert!(moved < BUCKETS / 5 * 2, "{moved} of {BUCKETS} moved");
    }

    /// A frame of TCP or UDP over IPv4.
    fn frame(protocol: u8, addresses: [u8; 2], ports: [u16; 2], fragment: u16) -> Vec<u8> {
        let mut frame = vec![0; 14 + 20 + 20];
        frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, addresses[0]]);
        frame[12..14].copy_from_slice(&[8, 0]);
        let ip = &mut frame[14..];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&40u16.to_be_bytes());
        ip[6..8].copy_from_slice(&fragment.to_be_bytes());
        ip[9] = protocol;
        ip[12..16].copy_from_slice(&[10, 0, 0, addresses[0]]);
        ip[16..20].copy_from_slice(&[10, 0, 0, addresses[1]]);
        ip[20..22].copy_from_slice(&ports[0].to_be_bytes());
        ip[22..24].copy_from_slice(&ports[1].to_be_bytes());
        ip[32] = 0x50;
        frame
    }

    #[test]
    fn a_thousand_flows_are_spread_over_four_members() {
        let members: Vec<(u32, bool)> = (1..=4).map(|id| (id, true)).collect();
        let buckets = Buckets::deal(&members);
        let mut flows = [0; 4];
        for port in 0..1000 {
            let frame = frame(6, [1, 2], [40_000 + port, 443], 0);
            let bucket = Distribution::TransportPorts.bucket(&frame, frame.len(), 0);
            flows[buckets.member(bucket).unwrap()] += 1;
        }
        assert!(flows.iter().all(|n| *n <= 325), "{flows:?}");
    }

    #[test]
    fn what_has_no_ports_goes_by_addresses() {
        use Distribution::{Dynamic, IpAddresses, MacAddresses, Port, TransportPorts};
        let one = frame(6, [1, 2], [1000, 2000], 0);
        let other = frame(6, [1, 2], [1001, 2000], 0);
        assert_ne!(
            TransportPorts.bucket(&one, one.len(), 0),
            TransportPorts.bucket(&other, other.len(), 0)
        );
        assert_eq!(
            TransportPorts.bucket(&one, one.len(), 0),
            Dynamic.bucket(&one, one.len(), 0)
        );
        assert_eq!(
            IpAddresses.bucket(&one, one.len(), 0),
            IpAddresses.bucket(&other, other.len(), 0)
        );
        // ESP, and all fragments of a packet, are where the addresses are.
        let esp = frame(50, [1, 2], [1000, 2000], 0);
        let first = frame(17, [1, 2], [1000, 2000], 0x2000);
        let later = frame(17, [1, 2], [7, 8], 0x2010);
        let by_address = IpAddresses.bucket(&one, one.len(), 0);
        for frame in [&esp, &first, &later] {
            assert_eq!(TransportPorts.bucket(frame, frame.len(), 0), by_address);
        }
        let arp = [&one[..12], &[8, 6], &one[14..]].concat();
        assert_eq!(
            TransportPorts.bucket(&arp, arp.len(), 0),
            MacAddresses.bucket(&one, one.len(), 0)
        );
        assert_eq!(
            IpAddresses.bucket(&arp, arp.len(), 0),
            MacAddresses.bucket(&one, one.len(), 0)
        );
        assert_ne!(
            Port.bucket(&one, one.len(), 1),
            Port.bucket(&one, one.len(), 2)
        );
        assert_eq!(
            Port.bucket(&one, one.len(), 1),
            Port.bucket(&esp, esp.len(), 1)
        );
        for short in 0..14 {
            TransportPorts.bucket(&one[..short], short, 0);
        }
    }

    #[test]
    fn names_are_those_of_the_configuration() {
        for (distribution, name) in NAMES {
            assert_eq!(name.parse(), Ok(distribution));
            assert_eq!(distribution.to_string(), name);
        }
        assert_eq!("ports".parse::<Distribution>(), Err(()));
    }
}
