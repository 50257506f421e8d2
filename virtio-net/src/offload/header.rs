//! What a `virtio_net_hdr` may claim, and what becomes of it on the way to a receiver.

use super::{Checksum, HeaderError, segment};
use crate::spec::{
    NET_HDR_F_DATA_VALID, NET_HDR_F_NEEDS_CSUM, NET_HDR_GSO_ECN, NET_HDR_GSO_NONE,
    NET_HDR_GSO_TCPV4, NET_HDR_GSO_TCPV6, NET_HDR_GSO_UDP_L4, NetHdr, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, has,
};
use crate::wire::{IpVersion, Parsed, parse, protocol, tcp, udp};

#[inline]
fn needs_csum(hdr: &NetHdr) -> bool {
    hdr.flags & NET_HDR_F_NEEDS_CSUM != 0
}

/// Judges what a sender claims about a frame of `frame_len` bytes that starts with `head`.
///
/// Flag bits that are not known are ignored, as virtio 5.1.6.2.2 asks; [`delivered_header`] keeps
/// them from the receiver. The partial checksum has to be that of the TCP or UDP header found in
/// the head: completing it writes two bytes into a frame the switch has already judged, and they
/// must not be an address, a port, or part of an ARP packet.
///
/// # Errors
/// [`HeaderError`]; [`HeaderError::HeadTooShort`] asks for more bytes, the others are final.
#[inline]
pub fn validate(hdr: &NetHdr, head: &[u8], frame_len: usize) -> Result<(), HeaderError> {
    if !needs_csum(hdr) && hdr.gso_type == NET_HDR_GSO_NONE {
        return Ok(());
    }
    validate_parsed(hdr, &parse(head, frame_len), frame_len)
}

/// [`validate`] for a head that has been parsed.
///
/// # Errors
/// As for [`validate`].
#[inline]
pub fn validate_parsed(hdr: &NetHdr, parsed: &Parsed, frame_len: usize) -> Result<(), HeaderError> {
    if !needs_csum(hdr) && hdr.gso_type == NET_HDR_GSO_NONE {
        return Ok(());
    }
    let gso = Gso::of(hdr)?;
    if !needs_csum(hdr) {
        return Err(HeaderError::GsoWithoutChecksum);
    }
    checksum_place(hdr, parsed)?;
    match gso {
        Some(gso) => gso.check(hdr, parsed, frame_len),
        None => Ok(()),
    }
}

/// Whether the partial checksum is that of the frame's TCP or UDP header.
fn checksum_place(hdr: &NetHdr, parsed: &Parsed) -> Result<(), HeaderError> {
    if let Some(need) = parsed.needs() {
        return Err(HeaderError::HeadTooShort { need });
    }
    if parsed.is_malformed() {
        return Err(HeaderError::Malformed);
    }
    // The checksum of a fragment covers more than this frame.
    if !parsed.has_l4() || parsed.is_fragment() {
        return Err(HeaderError::NoTransport);
    }
    let offset = if parsed.protocol == protocol::TCP {
        tcp::CHECKSUM_AT
    } else {
        udp::CHECKSUM_AT
    };
    if (hdr.csum_start, hdr.csum_offset) != (parsed.l4, offset) {
        return Err(HeaderError::ChecksumPlace {
            start: hdr.csum_start,
            offset: hdr.csum_offset,
        });
    }
    Ok(())
}

/// A segment offload by what it needs of the frame.
struct Gso {
    protocol: u8,
    /// `None`: the type is the same for both versions.
    version: Option<IpVersion>,
}

impl Gso {
    fn of(hdr: &NetHdr) -> Result<Option<Self>, HeaderError> {
        let (protocol, version) = match hdr.gso_type & !NET_HDR_GSO_ECN {
            NET_HDR_GSO_TCPV4 => (protocol::TCP, Some(IpVersion::V4)),
            NET_HDR_GSO_TCPV6 => (protocol::TCP, Some(IpVersion::V6)),
            NET_HDR_GSO_UDP_L4 => (protocol::UDP, None),
            NET_HDR_GSO_NONE => (0, None),
            _ => return Err(HeaderError::GsoType(hdr.gso_type)),
        };
        if hdr.gso_type & NET_HDR_GSO_ECN != 0 && protocol != protocol::TCP {
            return Err(HeaderError::EcnWithoutTcp);
        }
        Ok((protocol != 0).then_some(Self { protocol, version }))
    }

    fn check(&self, hdr: &NetHdr, parsed: &Parsed, len: usize) -> Result<(), HeaderError> {
        let version = self.version.is_none() || self.version == parsed.ip_version();
        if self.protocol != parsed.protocol || !version {
            return Err(HeaderError::GsoMismatch(hdr.gso_type));
        }
        // Only a hint (virtio 5.1.6.2), but a receiver may refuse one that cannot be.
        if usize::from(hdr.hdr_len) > len {
            return Err(HeaderError::HdrLen(hdr.hdr_len));
        }
        segment::check_size(hdr.gso_size, parsed, len)
    }
}

/// What a frame needs before a receiver can take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// Nothing: deliver it with [`delivered_header`].
    AsIs,
    /// Its checksum completed, see [`complete_checksum`]; deliver it with an all-zero header.
    Checksum,
    /// Cutting into segments, see [`Segmenter`](super::Segmenter).
    Segment {
        /// The receiver takes partial checksums: segments need not be summed.
        leave_partial: bool,
    },
}

/// What a receiver with these negotiated features needs done to a frame that [`validate`] passed
/// and that starts with `head`.
#[inline]
pub fn receiver_takes(hdr: &NetHdr, head: &[u8], features: u64) -> Treatment {
    let partial = has(features, VIRTIO_NET_F_GUEST_CSUM);
    let offload = match hdr.gso_type & !NET_HDR_GSO_ECN {
        NET_HDR_GSO_NONE if needs_csum(hdr) && !partial => return Treatment::Checksum,
        NET_HDR_GSO_NONE => return Treatment::AsIs,
        NET_HDR_GSO_TCPV4 => has(features, VIRTIO_NET_F_GUEST_TSO4),
        NET_HDR_GSO_TCPV6 => has(features, VIRTIO_NET_F_GUEST_TSO6),
        // One type for both versions of IP, but a feature for each.
        NET_HDR_GSO_UDP_L4 => match parse(head, usize::MAX).ip_version() {
            Some(IpVersion::V4) => has(features, VIRTIO_NET_F_GUEST_USO4),
            Some(IpVersion::V6) => has(features, VIRTIO_NET_F_GUEST_USO6),
            None => false,
        },
        _ => false,
    };
    let ecn = hdr.gso_type & NET_HDR_GSO_ECN == 0 || has(features, VIRTIO_NET_F_GUEST_ECN);
    // Every segment offload comes with a partial checksum (virtio 5.1.3.1).
    if offload && ecn && partial {
        Treatment::AsIs
    } else {
        Treatment::Segment {
            leave_partial: partial,
        }
    }
}

/// The header a frame is delivered with as it is, to a receiver with these negotiated features:
/// the sender's, less what means nothing or was not negotiated. `num_buffers` is left zero.
#[inline]
pub fn delivered_header(hdr: &NetHdr, features: u64) -> NetHdr {
    let mut out = NetHdr::default();
    if !has(features, VIRTIO_NET_F_GUEST_CSUM) {
        return out;
    }
    if needs_csum(hdr) {
        out.flags = NET_HDR_F_NEEDS_CSUM;
        out.csum_start = hdr.csum_start;
        out.csum_offset = hdr.csum_offset;
    } else {
        out.flags = hdr.flags & NET_HDR_F_DATA_VALID;
    }
    if hdr.gso_type != NET_HDR_GSO_NONE {
        out.gso_type = hdr.gso_type;
        out.gso_size = hdr.gso_size;
        out.hdr_len = hdr.hdr_len;
    }
    out
}

/// Completes a partial checksum in place: the field at `csum_start + csum_offset` holds the sum
/// of the pseudo header, the sum over all bytes from `csum_start` on replaces it (virtio 5.1.6.2).
///
/// # Errors
/// [`HeaderError::ChecksumPlace`] when the field is not inside the frame.
#[inline]
pub fn complete_checksum(
    frame: &mut [u8],
    csum_start: u16,
    csum_offset: u16,
) -> Result<(), HeaderError> {
    let outside = HeaderError::ChecksumPlace {
        start: csum_start,
        offset: csum_offset,
    };
    let covered = frame.get_mut(usize::from(csum_start)..).ok_or(outside)?;
    let sum = Checksum::new().bytes(covered).finish_transport();
    let field = covered
        .get_mut(usize::from(csum_offset)..)
        .and_then(<[u8]>::first_chunk_mut);
    *field.ok_or(outside)? = sum.to_be_bytes();
    Ok(())
}
