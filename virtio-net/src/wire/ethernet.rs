//! Ethernet frames (IEEE 802.3, clause 3).

use std::fmt;
use std::str::FromStr;

use super::{Error, Result, split};

/// Bytes of the header: two addresses and the length or type field (clause 3.1.1).
pub const HEADER_LEN: usize = 14;
/// Where the length or type field is; a tag goes in here (IEEE 802.1Q, 9.3).
pub const TYPE_AT: usize = 12;
/// Smallest value that is a type and not a length (clause 3.2.6).
pub const MIN_TYPE: u16 = 0x0600;

/// EtherType of IPv4 (RFC 894).
pub const TYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP (RFC 826).
pub const TYPE_ARP: u16 = 0x0806;
/// EtherType of RARP (RFC 903).
pub const TYPE_RARP: u16 = 0x8035;
/// EtherType of IPv6 (RFC 2464).
pub const TYPE_IPV6: u16 = 0x86dd;
/// EtherType of the slow protocols, LACP among them (IEEE 802.3, 57A).
pub const TYPE_SLOW: u16 = 0x8809;
/// EtherType of LLDP (IEEE 802.1AB, 7.4).
pub const TYPE_LLDP: u16 = 0x88cc;

/// A MAC address (IEEE 802, clause 8).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The broadcast address.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Tells whether this is a group address; broadcast is one too (IEEE 802, 8.4).
    #[inline]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Tells whether this is the broadcast address.
    #[inline]
    pub const fn is_broadcast(self) -> bool {
        matches!(self.0, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff])
    }

    /// Tells whether this can be one station's address: not a group, not all zero.
    #[inline]
    pub const fn is_unicast(self) -> bool {
        !self.is_multicast() && !matches!(self.0, [0, 0, 0, 0, 0, 0])
    }

    /// Tells whether a bridge must not forward frames to this address (IEEE 802.1Q, table 8-1).
    #[inline]
    pub const fn is_link_local(self) -> bool {
        matches!(self.0, [0x01, 0x80, 0xc2, 0x00, 0x00, 0x00..=0x0f])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text is not a MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a MAC address; write six pairs of hex digits, such as 52:54:00:12:34:56")]
pub struct ParseMacError;

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> std::result::Result<Self, ParseMacError> {
        let mut parts = text.split(':');
        let mut mac = [0; 6];
        for byte in &mut mac {
            let part = parts.next().ok_or(ParseMacError)?;
            // from_str_radix alone would take "+1".
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(ParseMacError);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| ParseMacError)?;
        }
        if parts.next().is_some() {
            Err(ParseMacError)
        } else {
            Ok(Self(mac))
        }
    }
}

/// A view of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Checks that `bytes` hold the header.
    ///
    /// # Errors
    /// [`Error::Truncated`] when they do not.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self> {
        let (header, payload) = split(bytes)?;
        Ok(Self { header, payload })
    }

    /// The destination address.
    #[inline]
    pub fn dst(&self) -> MacAddr {
        let [a, b, c, d, e, f, ..] = *self.header;
        MacAddr([a, b, c, d, e, f])
    }

    /// The source address.
    #[inline]
    pub fn src(&self) -> MacAddr {
        let [_, _, _, _, _, _, a, b, c, d, e, f, ..] = *self.header;
        MacAddr([a, b, c, d, e, f])
    }

    /// The length or type field; of a tagged frame, the first tag's TPID.
    #[inline]
    pub fn ethertype(&self) -> u16 {
        u16::from_be_bytes([self.header[12], self.header[13]])
    }

    /// The bytes behind the length or type field.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// Changes addresses of a frame.
#[derive(Debug)]
pub struct FrameMut<'a> {
    header: &'a mut [u8; HEADER_LEN],
}

impl<'a> FrameMut<'a> {
    /// Checks that `bytes` hold the header.
    ///
    /// # Errors
    /// [`Error::Truncated`] when they do not.
    pub fn new_checked(bytes: &'a mut [u8]) -> Result<Self> {
        let header = bytes.first_chunk_mut().ok_or(Error::Truncated)?;
        Ok(Self { header })
    }

    /// Sets the destination address.
    pub fn set_dst(&mut self, mac: MacAddr) {
        self.header[..6].copy_from_slice(&mac.0);
    }

    /// Sets the source address.
    pub fn set_src(&mut self, mac: MacAddr) {
        self.header[6..12].copy_from_slice(&mac.0);
    }

    /// Sets the length or type field.
    pub fn set_ethertype(&mut self, ethertype: u16) {
        self.header[12..].copy_from_slice(&ethertype.to_be_bytes());
    }
}
