//! Cutting a segment offload into the frames it stands for.
//!
//! Every segment gets the headers of the whole frame and `gso_size` bytes of its payload, the
//! last one what remains. Then differ: the lengths; the identification of IPv4, which counts up;
//! the TCP sequence number; FIN and PSH, which only the last segment has; CWR, which only the
//! first has (RFC 3168, 6.1.2: the sender answers an ECN echo once); the checksums.

use super::{Checksum, HeaderError, validate_parsed};
use crate::spec::{NET_HDR_F_NEEDS_CSUM, NET_HDR_GSO_NONE, NetHdr};
use crate::wire::{IpVersion, Parsed, ipv4, ipv6, parse, protocol, tcp, udp};

/// Smallest segment size of a frame that may be cut into any number of segments.
///
/// Linux sends no less over TCP: a segment of 48 bytes less 40 bytes of options. A smaller one
/// would let a guest have 64 KiB of its work turned into megabytes of ours.
pub const MIN_GSO_SIZE: u16 = 8;
/// Most segments of a smaller size, which programs do ask for over UDP: Linux cuts one call into
/// no more.
pub const MAX_SMALL_SEGMENTS: usize = 128;
/// Largest value of the length field of IPv4 and of IPv6 (RFC 791, 3.1; RFC 8200, section 3).
const MAX_IP_LEN: usize = 65535;

/// Whether a frame may be cut into segments of `gso_size`.
pub(super) fn check_size(gso_size: u16, parsed: &Parsed, len: usize) -> Result<(), HeaderError> {
    let payload = len.saturating_sub(parsed.payload.into());
    let size = usize::from(gso_size);
    if size == 0 || (gso_size < MIN_GSO_SIZE && payload > MAX_SMALL_SEGMENTS * size) {
        return Err(HeaderError::GsoSize(gso_size));
    }
    // IPv6 does not count its own header.
    let counted = match parsed.ip_version() {
        Some(IpVersion::V6) => usize::from(parsed.l3) + ipv6::HEADER_LEN,
        _ => parsed.l3.into(),
    };
    let headers = usize::from(parsed.payload).saturating_sub(counted);
    if headers + size.min(payload) > MAX_IP_LEN {
        return Err(HeaderError::SegmentTooLong(gso_size));
    }
    Ok(())
}

/// The segments of one frame, in order.
#[derive(Clone, Debug)]
pub struct Segmenter<'a> {
    /// Up to the payload.
    headers: &'a [u8],
    /// What has not been sent yet.
    payload: &'a [u8],
    size: usize,
    /// Segments made so far.
    made: usize,
    count: usize,
    version: IpVersion,
    tcp: bool,
    l3: usize,
    l4: usize,
    /// The identification (IPv4) and the sequence number (TCP) of the first segment.
    id: u16,
    seq: u32,
    /// The sum of the pseudo header without the length.
    pseudo: u16,
    /// What every segment is delivered with.
    hdr: NetHdr,
}

impl<'a> Segmenter<'a> {
    /// Prepares to cut `frame`, which comes without its `virtio_net_hdr`.
    ///
    /// With `leave_partial` the segments have partial checksums and headers that say so, for a
    /// receiver with `GUEST_CSUM`.
    ///
    /// # Errors
    /// As for [`validate`](super::validate), and [`HeaderError::GsoType`] when `hdr` asks for no
    /// segment offload.
    pub fn new(hdr: &NetHdr, frame: &'a [u8], leave_partial: bool) -> Result<Self, HeaderError> {
        let parsed = parse(frame, frame.len());
        if hdr.gso_type == NET_HDR_GSO_NONE {
            return Err(HeaderError::GsoType(hdr.gso_type));
        }
        validate_parsed(hdr, &parsed, frame.len())?;
        Self::from_parsed(hdr, &parsed, frame, leave_partial).ok_or(HeaderError::Malformed)
    }

    /// `None` cannot be after validation; it is cheaper to say than to prove.
    fn from_parsed(
        hdr: &NetHdr,
        parsed: &Parsed,
        frame: &'a [u8],
        leave_partial: bool,
    ) -> Option<Self> {
        let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
        let (headers, payload) = frame.split_at_checked(parsed.payload.into())?;
        let version = parsed.ip_version()?;
        let tcp = parsed.protocol == protocol::TCP;
        let be16 = |at: usize| {
            headers
                .get(at..)?
                .first_chunk()
                .map(|b| u16::from_be_bytes(*b))
        };
        let be32 = |at: usize| {
            headers
                .get(at..)?
                .first_chunk()
                .map(|b| u32::from_be_bytes(*b))
        };
        let field = l4 + usize::from(hdr.csum_offset);
        let partial = NetHdr {
            flags: NET_HDR_F_NEEDS_CSUM,
            csum_start: hdr.csum_start,
            csum_offset: hdr.csum_offset,
            ..NetHdr::default()
        };
        Some(Self {
            headers,
            payload,
            size: hdr.gso_size.into(),
            made: 0,
            count: payload.len().div_ceil(hdr.gso_size.into()).max(1),
            version,
            tcp,
            l3,
            l4,
            id: be16(l3 + 4)?,
            seq: be32(l4 + 4)?,
            pseudo: without_length(be16(field)?, frame.len() - l4),
            hdr: if leave_partial {
                partial
            } else {
                NetHdr::default()
            },
        })
    }

    /// How many segments there are in all; at least one.
    #[inline]
    pub fn segments(&self) -> usize {
        self.count
    }

    /// Bytes of the longest segment still to come: what `out` of [`next`](Self::next) must have.
    #[inline]
    pub fn max_len(&self) -> usize {
        self.headers.len() + self.size.min(self.payload.len())
    }

    /// Writes the next segment into `out`; the result is its header, without `num_buffers`, and
    /// its length.
    ///
    /// `None` after the last one. Also when `out` is shorter than [`max_len`](Self::max_len) and
    /// the segment does not fit: then nothing is taken, and a longer `out` gets it.
    pub fn next(&mut self, out: &mut [u8]) -> Option<(NetHdr, usize)> {
        if self.made == self.count {
            return None;
        }
        let (data, rest) = self.payload.split_at(self.size.min(self.payload.len()));
        let len = self.headers.len() + data.len();
        let segment = out.get_mut(..len)?;
        let (headers, body) = segment.split_at_mut_checked(self.headers.len())?;
        headers.copy_from_slice(self.headers);
        body.copy_from_slice(data);
        self.patch_ip(headers.get_mut(self.l3..)?, len)?;
        self.patch_transport(segment.get_mut(self.l4..)?)?;
        self.payload = rest;
        self.made += 1;
        Some((self.hdr, len))
    }

    /// Lengths are checked: `check_size` has bounded what a segment can have.
    fn patch_ip(&self, ip: &mut [u8], len: usize) -> Option<()> {
        let len = len - self.l3;
        match self.version {
            IpVersion::V4 => {
                let mut header = ipv4::HeaderMut::new_checked(ip).ok()?;
                header.set_total_len(u16::try_from(len).ok()?);
                header.set_id(self.id.wrapping_add(self.made as u16));
                header.fill_checksum();
            }
            IpVersion::V6 => {
                let mut header = ipv6::HeaderMut::new_checked(ip).ok()?;
                header.set_payload_len(u16::try_from(len - ipv6::HEADER_LEN).ok()?);
            }
        }
        Some(())
    }

    /// `segment` starts with the transport header and ends with the payload.
    fn patch_transport(&self, segment: &mut [u8]) -> Option<()> {
        let len = u16::try_from(segment.len()).ok()?;
        let partial = Checksum::new().word(self.pseudo).word(len).partial();
        if self.tcp {
            let mut header = tcp::HeaderMut::new_checked(segment).ok()?;
            header.set_seq(self.seq.wrapping_add((self.made * self.size) as u32));
            let first = if self.made == 0 { 0 } else { tcp::CWR };
            let last = if self.made + 1 == self.count {
                0
            } else {
                tcp::FIN | tcp::PSH
            };
            header.clear_flags(first | last);
            header.set_checksum(partial);
        } else {
            let mut header = udp::HeaderMut::new_checked(segment).ok()?;
            header.set_length(len);
            header.set_checksum(partial);
        }
        if self.hdr.flags & NET_HDR_F_NEEDS_CSUM == 0 {
            let sum = Checksum::new()
                .bytes(segment)
                .finish_transport()
                .to_be_bytes();
            let at = if self.tcp {
                tcp::CHECKSUM_AT
            } else {
                udp::CHECKSUM_AT
            };
            *segment.get_mut(at.into()..)?.first_chunk_mut()? = sum;
        }
        Some(())
    }
}

/// Takes the length out of the sum of a pseudo header.
///
/// Starting from the sender's sum instead of the addresses in the IP header keeps it right where
/// the pseudo header has others: a routing header's last hop (RFC 8200, 8.1).
fn without_length(pseudo: u16, len: usize) -> u16 {
    let (high, low) = ((len >> 16) as u16, len as u16);
    Checksum::new()
        .word(pseudo)
        .word(!high)
        .word(!low)
        .partial()
}
