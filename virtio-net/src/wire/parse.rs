//! One pass over the head of a frame: where its headers are, and what tells its flow.
//!
//! A header is looked at as an array of fixed size, so that each costs one length check. What
//! goes wrong is a flag, not an error: a switch still forwards a frame whose IP header is bad,
//! by its MAC addresses.

use std::hash::{Hash, Hasher};

use super::ethernet::{self, TYPE_IPV4, TYPE_IPV6};
use super::ipv6::WalkError;
use super::vlan::{self, Tci};
use super::{ipv4, ipv6, protocol, tcp, udp};

/// Tags looked behind: a customer tag inside a service tag (IEEE 802.1Q, clause 15).
pub const MAX_TAGS: usize = 2;

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpVersion {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// What tells flows apart at layers 3 and 4, to be hashed with a seed.
///
/// All zero when the frame is not IP. Ports are zero unless the packet is a whole TCP or UDP
/// packet: all fragments of one packet have the same key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowKey {
    /// The source address in network order; IPv4 in the first four bytes.
    pub src: [u8; 16],
    /// The destination address in network order; IPv4 in the first four bytes.
    pub dst: [u8; 16],
    /// The source port.
    pub src_port: u16,
    /// The destination port.
    pub dst_port: u16,
    /// The protocol: one of [`protocol`].
    pub protocol: u8,
    /// 4, 6, or 0 when the frame is not IP.
    pub version: u8,
}

impl FlowKey {
    /// The key as machine words; the order within is of no meaning, only that it is fixed.
    #[inline]
    pub fn words(&self) -> [u64; 5] {
        let half = |b: &[u8; 16], at: usize| u64::from_ne_bytes(std::array::from_fn(|i| b[at + i]));
        let rest = u64::from(self.src_port) << 32
            | u64::from(self.dst_port) << 16
            | u64::from(self.protocol) << 8
            | u64::from(self.version);
        [
            half(&self.src, 0),
            half(&self.src, 8),
            half(&self.dst, 0),
            half(&self.dst, 8),
            rest,
        ]
    }
}

impl Hash for FlowKey {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        for word in self.words() {
            state.write_u64(word);
        }
    }
}

/// What tells the commonest flows apart, in two words to be hashed with a seed: those of whole TCP
/// and UDP packets in IPv4 without options, in frames without a tag. None: it takes [`parse`].
///
/// All packets of a flow are of that kind or none is, but for what few senders do: fragments.
#[inline]
pub fn plain_flow(head: &[u8]) -> Option<[u64; 2]> {
    /// Version 4, a header of 5 words.
    const VERSION_LEN: u8 = 0x45;
    const L3: usize = ethernet::HEADER_LEN;
    const L4: usize = L3 + ipv4::HEADER_LEN;
    let h: &[u8; L4 + 4] = head.first_chunk()?;
    let ethertype = u16::from_be_bytes([h[12], h[13]]);
    let fragment = u16::from_be_bytes([h[L3 + 6], h[L3 + 7]]);
    let proto = h[L3 + 9];
    if ethertype != TYPE_IPV4
        || h[L3] != VERSION_LEN
        || fragment & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) != 0
        || !matches!(proto, protocol::TCP | protocol::UDP)
    {
        return None;
    }
    let addresses = std::array::from_fn(|i| h[L3 + 12 + i]);
    let ports = [h[L4], h[L4 + 1], h[L4 + 2], h[L4 + 3]];
    let rest = u64::from(u32::from_ne_bytes(ports)) << 8 | u64::from(proto);
    Some([u64::from_ne_bytes(addresses), rest])
}

/// What [`parse`] found. Offsets are from the start of the frame; zero means "not found".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Layers 3 and 4 of the flow.
    pub key: FlowKey,
    /// The type, or the length of an 802.3 frame, behind the tags; a TPID when there are more
    /// than [`MAX_TAGS`].
    pub ethertype: u16,
    /// TPID of the outermost tag, zero without one.
    pub tpid: u16,
    /// Control information of the tags, the outermost first.
    pub tci: [Tci; MAX_TAGS],
    /// Number of tags.
    pub tags: u8,
    /// The protocol behind IP and its extension headers, zero when not known.
    pub protocol: u8,
    flags: u8,
    /// What follows the length or type field.
    pub l3: u16,
    /// What follows IP and its extension headers, of a later fragment its data.
    pub l4: u16,
    /// What follows the TCP or UDP header; otherwise the same as `l4`.
    pub payload: u16,
    need: u16,
}

const HAS_L4: u8 = 1;
const FRAGMENT: u8 = 2;
const LATER_FRAGMENT: u8 = 4;
const MALFORMED: u8 = 8;

impl Parsed {
    /// A whole TCP or UDP header is in the head, at `l4`.
    #[inline]
    pub fn has_l4(&self) -> bool {
        self.flags & HAS_L4 != 0
    }

    /// The packet is a fragment. The first one may still have a layer 4 header.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.flags & FRAGMENT != 0
    }

    /// The packet is a fragment other than the first.
    #[inline]
    pub fn is_later_fragment(&self) -> bool {
        self.flags & LATER_FRAGMENT != 0
    }

    /// A header contradicts itself, or goes beyond its packet or the frame.
    #[inline]
    pub fn is_malformed(&self) -> bool {
        self.flags & MALFORMED != 0
    }

    /// The head ends inside a header: the frame's bytes needed to look further.
    ///
    /// Always more than were given and never more than the frame has, so that pulling up so many
    /// and parsing again ends.
    #[inline]
    pub fn needs(&self) -> Option<usize> {
        if self.need == 0 {
            None
        } else {
            Some(self.need.into())
        }
    }

    /// The version of IP, when there is an IP header.
    #[inline]
    pub fn ip_version(&self) -> Option<IpVersion> {
        match self.key.version {
            4 => Some(IpVersion::V4),
            6 => Some(IpVersion::V6),
            _ => None,
        }
    }
}

/// Parses the first bytes of a frame of `frame_len` bytes.
#[inline]
pub fn parse(head: &[u8], frame_len: usize) -> Parsed {
    let mut parsed = Parsed::default();
    let bytes = Bytes {
        head: head.get(..frame_len).unwrap_or(head),
        end: frame_len,
    };
    match link(&mut parsed, bytes) {
        Ok(()) => {}
        // Headers end below 18 KiB: offsets always fit.
        Err(Stop::Need(need)) => parsed.need = need as u16,
        Err(Stop::Malformed) => parsed.flags |= MALFORMED,
    }
    parsed
}

/// Why parsing ended before the last header.
enum Stop {
    Need(usize),
    Malformed,
}

/// The head, and where what is being parsed ends: the frame, then the IP packet in it.
#[derive(Clone, Copy)]
struct Bytes<'a> {
    head: &'a [u8],
    end: usize,
}

impl<'a> Bytes<'a> {
    #[inline]
    fn at<const N: usize>(self, at: usize) -> Result<&'a [u8; N], Stop> {
        self.check(at + N)?;
        self.head
            .get(at..)
            .and_then(<[u8]>::first_chunk)
            .ok_or(Stop::Need(at + N))
    }

    /// Whether a header may end at `end`.
    #[inline]
    fn check(self, end: usize) -> Result<(), Stop> {
        if end > self.end {
            Err(Stop::Malformed)
        } else {
            Ok(())
        }
    }

    /// Whether the header ending at `end` is whole in the head.
    #[inline]
    fn whole(self, end: usize) -> Result<(), Stop> {
        self.check(end)?;
        if end > self.head.len() {
            Err(Stop::Need(end))
        } else {
            Ok(())
        }
    }

    /// Narrows to an IP packet of `len` bytes behind `at`. Zero stands for all there is: a
    /// segment offload may be too long for the field (Linux, "BIG TCP").
    #[inline]
    fn narrow(self, at: usize, len: u16) -> Result<Self, Stop> {
        if len == 0 {
            return Ok(self);
        }
        let end = at + usize::from(len);
        self.check(end)?;
        Ok(Self { end, ..self })
    }
}

#[inline]
fn link(parsed: &mut Parsed, bytes: Bytes<'_>) -> Result<(), Stop> {
    let header = bytes.at::<{ ethernet::HEADER_LEN }>(0)?;
    parsed.ethertype = u16::from_be_bytes([header[12], header[13]]);
    let mut at = ethernet::HEADER_LEN;
    if vlan::is_tpid(parsed.ethertype) {
        at = tags(parsed, bytes)?;
    }
    parsed.l3 = at as u16;
    match parsed.ethertype {
        TYPE_IPV4 => v4(parsed, bytes, at),
        TYPE_IPV6 => v6(parsed, bytes, at),
        _ => Ok(()),
    }
}

/// Walks over the tags; the result is where layer 3 starts.
fn tags(parsed: &mut Parsed, bytes: Bytes<'_>) -> Result<usize, Stop> {
    let mut at = ethernet::HEADER_LEN;
    parsed.tpid = parsed.ethertype;
    for tci in &mut parsed.tci {
        if !vlan::is_tpid(parsed.ethertype) {
            break;
        }
        let [a, b, c, d] = *bytes.at::<{ vlan::TAG_LEN }>(at)?;
        *tci = Tci(u16::from_be_bytes([a, b]));
        parsed.ethertype = u16::from_be_bytes([c, d]);
        parsed.tags += 1;
        at += vlan::TAG_LEN;
    }
    Ok(at)
}

#[inline]
fn v4(parsed: &mut Parsed, bytes: Bytes<'_>, at: usize) -> Result<(), Stop> {
    let header = bytes.at::<{ ipv4::HEADER_LEN }>(at)?;
    let len = ipv4::header_len(header[0]).ok_or(Stop::Malformed)?;
    let bytes = bytes.narrow(at, u16::from_be_bytes([header[2], header[3]]))?;
    bytes.whole(at + len)?;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    if fragment & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) != 0 {
        parsed.flags |= FRAGMENT;
    }
    if fragment & ipv4::OFFSET_MASK != 0 {
        parsed.flags |= LATER_FRAGMENT;
    }
    let (src, dst) = (
        [header[12], header[13], header[14], header[15]],
        [header[16], header[17], header[18], header[19]],
    );
    parsed.key.src[..4].copy_from_slice(&src);
    parsed.key.dst[..4].copy_from_slice(&dst);
    parsed.key.version = 4;
    transport(parsed, bytes, header[9], at + len)
}

#[inline]
fn v6(parsed: &mut Parsed, bytes: Bytes<'_>, at: usize) -> Result<(), Stop> {
    let header = bytes.at::<{ ipv6::HEADER_LEN }>(at)?;
    if header[0] >> 4 != 6 {
        return Err(Stop::Malformed);
    }
    let at = at + ipv6::HEADER_LEN;
    let bytes = bytes.narrow(at, u16::from_be_bytes([header[4], header[5]]))?;
    parsed.key.src = std::array::from_fn(|i| header[8 + i]);
    parsed.key.dst = std::array::from_fn(|i| header[24 + i]);
    parsed.key.version = 6;
    let rest = bytes
        .head
        .get(at..bytes.end.min(bytes.head.len()))
        .unwrap_or_default();
    let upper = match ipv6::walk_extensions(header[6], rest) {
        Ok(upper) => upper,
        Err(WalkError::Truncated { need }) => {
            bytes.check(at + need)?;
            return Err(Stop::Need(at + need));
        }
        Err(WalkError::TooMany) => return Err(Stop::Malformed),
    };
    if upper.fragment {
        parsed.flags |= FRAGMENT;
    }
    if upper.later_fragment {
        parsed.flags |= LATER_FRAGMENT;
    }
    bytes.whole(at + upper.offset)?;
    transport(parsed, bytes, upper.protocol, at + upper.offset)
}

#[inline]
fn transport(parsed: &mut Parsed, bytes: Bytes<'_>, proto: u8, at: usize) -> Result<(), Stop> {
    parsed.protocol = proto;
    parsed.key.protocol = proto;
    parsed.l4 = at as u16;
    parsed.payload = at as u16;
    if parsed.is_later_fragment() {
        return Ok(());
    }
    let (ports, len) = match proto {
        protocol::TCP => {
            let header = bytes.at::<{ tcp::HEADER_LEN }>(at)?;
            let len = tcp::header_len(header[12]).ok_or(Stop::Malformed)?;
            ([header[0], header[1], header[2], header[3]], len)
        }
        protocol::UDP => {
            let header = bytes.at::<{ udp::HEADER_LEN }>(at)?;
            (
                [header[0], header[1], header[2], header[3]],
                udp::HEADER_LEN,
            )
        }
        _ => return Ok(()),
    };
    bytes.whole(at + len)?;
    parsed.payload = (at + len) as u16;
    parsed.flags |= HAS_L4;
    if !parsed.is_fragment() {
        parsed.key.src_port = u16::from_be_bytes([ports[0], ports[1]]);
        parsed.key.dst_port = u16::from_be_bytes([ports[2], ports[3]]);
    }
    Ok(())
}
