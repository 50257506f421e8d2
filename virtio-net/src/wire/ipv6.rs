//! IPv6 (RFC 8200).

use std::net::Ipv6Addr;

use super::{Error, Result, protocol, split, split_mut};

/// Bytes of the header without extension headers (section 3).
pub const HEADER_LEN: usize = 40;
/// Extension headers looked behind. RFC 8200, 4.1 allows seven in a packet; a guest that sends
/// longer chains only hides what follows.
pub const MAX_EXTENSIONS: usize = 8;
/// The fragment header's offset field, in units of 8 bytes once shifted (4.5).
pub const OFFSET_MASK: u16 = 0xfff8;
/// The fragment header's flag: more fragments follow (4.5).
pub const MORE_FRAGMENTS: u16 = 1;

/// A view of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Checks the version; bytes behind the packet's payload length are left out.
    ///
    /// # Errors
    /// [`Error::Malformed`] for another version, [`Error::Truncated`] when the header is not
    /// whole.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self> {
        let (header, rest) = split::<HEADER_LEN>(bytes)?;
        if header[0] >> 4 != 6 {
            return Err(Error::Malformed);
        }
        let packet = Self {
            header,
            payload: rest,
        };
        let payload = rest.get(..packet.payload_len().into()).unwrap_or(rest);
        Ok(Self { payload, ..packet })
    }

    /// Differentiated services and ECN (RFC 2474, RFC 3168).
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        self.header[0] << 4 | self.header[1] >> 4
    }

    /// The flow label (RFC 6437), 20 bits.
    #[inline]
    pub fn flow_label(&self) -> u32 {
        u32::from_be_bytes([0, self.header[1] & 0xf, self.header[2], self.header[3]])
    }

    /// Bytes behind this header, extension headers included.
    #[inline]
    pub fn payload_len(&self) -> u16 {
        u16::from_be_bytes([self.header[4], self.header[5]])
    }

    /// What follows: an extension header or an upper-layer protocol, see [`walk_extensions`].
    #[inline]
    pub fn next_header(&self) -> u8 {
        self.header[6]
    }

    /// The hop limit.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        self.header[7]
    }

    /// The source address.
    #[inline]
    pub fn src(&self) -> Ipv6Addr {
        Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|i| self.header[8 + i]))
    }

    /// The destination address.
    #[inline]
    pub fn dst(&self) -> Ipv6Addr {
        Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|i| self.header[24 + i]))
    }

    /// The payload, extension headers included, as much of it as is at hand.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// Changes a header.
#[derive(Debug)]
pub struct HeaderMut<'a> {
    header: &'a mut [u8; HEADER_LEN],
}

impl<'a> HeaderMut<'a> {
    /// Checks the version.
    ///
    /// # Errors
    /// As for [`Packet::new_checked`].
    #[inline]
    pub fn new_checked(bytes: &'a mut [u8]) -> Result<Self> {
        let (header, _) = split_mut::<HEADER_LEN>(bytes)?;
        if header[0] >> 4 == 6 {
            Ok(Self { header })
        } else {
            Err(Error::Malformed)
        }
    }

    /// Sets the bytes behind this header.
    #[inline]
    pub fn set_payload_len(&mut self, len: u16) {
        [self.header[4], self.header[5]] = len.to_be_bytes();
    }
}

/// What stands behind the extension headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upper {
    /// The upper-layer protocol, or of a later fragment what the fragment header names.
    pub protocol: u8,
    /// Where it starts, from the start of the walked bytes.
    pub offset: usize,
    /// The packet is a fragment.
    pub fragment: bool,
    /// The packet is a fragment that does not start with the upper-layer header.
    pub later_fragment: bool,
}

/// Why a walk over extension headers ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// So many of the walked bytes are needed to go on.
    Truncated {
        /// Bytes from the start.
        need: usize,
    },
    /// More than [`MAX_EXTENSIONS`].
    TooMany,
}

/// Walks over the extension headers in `bytes`, the first of which is a `next_header`.
///
/// ESP ends the walk like an upper-layer protocol: what follows is encrypted.
///
/// # Errors
/// [`WalkError`] when a header is not whole or the chain is too long.
#[inline]
pub fn walk_extensions(next_header: u8, bytes: &[u8]) -> std::result::Result<Upper, WalkError> {
    let mut upper = Upper {
        protocol: next_header,
        ..Upper::default()
    };
    for _ in 0..=MAX_EXTENSIONS {
        if !is_extension(upper.protocol) {
            return Ok(upper);
        }
        step(&mut upper, bytes)?;
        if upper.later_fragment {
            return Ok(upper);
        }
    }
    Err(WalkError::TooMany)
}

/// Tells whether a next header names an extension header that can be walked over (RFC 7045,
/// section 4).
#[inline]
const fn is_extension(next_header: u8) -> bool {
    matches!(
        next_header,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY
            | protocol::HIP
            | protocol::SHIM6
    )
}

/// Steps over one extension header; every kind has at least 8 bytes.
fn step(upper: &mut Upper, bytes: &[u8]) -> std::result::Result<(), WalkError> {
    let header: &[u8; 8] = bytes
        .get(upper.offset..)
        .and_then(<[u8]>::first_chunk)
        .ok_or(WalkError::Truncated {
            need: upper.offset + 8,
        })?;
    let len = match upper.protocol {
        protocol::FRAGMENT => {
            let offset = u16::from_be_bytes([header[2], header[3]]);
            // Offset zero without more fragments is a whole packet (RFC 6946).
            upper.fragment |= offset & (OFFSET_MASK | MORE_FRAGMENTS) != 0;
            upper.later_fragment = offset & OFFSET_MASK != 0;
            8
        }
        // Counted in 4-byte units, less 2 (RFC 4302, 2.2).
        protocol::AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
        _ => (usize::from(header[1]) + 1) * 8,
    };
    upper.protocol = header[0];
    upper.offset += len;
    Ok(())
}
