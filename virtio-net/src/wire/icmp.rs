//! ICMP (RFC 792) and ICMPv6 (RFC 4443), with the message types of neighbour discovery.

use super::{Result, split};

/// Bytes both kinds of message start with: type, code, checksum.
pub const HEADER_LEN: usize = 4;

/// Types of ICMP (RFC 792).
pub mod v4 {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Code of [`UNREACHABLE`]: fragmentation needed and DF set (RFC 1191, 4).
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo.
    pub const ECHO: u8 = 8;
    /// Router advertisement (RFC 1256, 5).
    pub const ROUTER_ADVERTISEMENT: u8 = 9;
    /// Router solicitation (RFC 1256, 5).
    pub const ROUTER_SOLICITATION: u8 = 10;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
}

/// Types of ICMPv6.
pub mod v6 {
    /// Destination unreachable (RFC 4443, 3.1).
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big (RFC 4443, 3.2).
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Time exceeded (RFC 4443, 3.3).
    pub const TIME_EXCEEDED: u8 = 3;
    /// Echo request (RFC 4443, 4.1).
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply (RFC 4443, 4.2).
    pub const ECHO_REPLY: u8 = 129;
    /// Multicast listener query (RFC 2710, 3.1).
    pub const LISTENER_QUERY: u8 = 130;
    /// Multicast listener report (RFC 2710, 3.1).
    pub const LISTENER_REPORT: u8 = 131;
    /// Multicast listener done (RFC 2710, 3.1).
    pub const LISTENER_DONE: u8 = 132;
    /// Router solicitation (RFC 4861, 4.1).
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement (RFC 4861, 4.2).
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation (RFC 4861, 4.3).
    pub const NEIGHBOR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement (RFC 4861, 4.4).
    pub const NEIGHBOR_ADVERTISEMENT: u8 = 136;
    /// Redirect (RFC 4861, 4.5).
    pub const REDIRECT: u8 = 137;
    /// Version 2 multicast listener report (RFC 3810, 5.2).
    pub const LISTENER_REPORT_V2: u8 = 143;
}

/// A view of a message of either kind.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    header: &'a [u8; HEADER_LEN],
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Checks that the common header is there.
    ///
    /// # Errors
    /// [`Truncated`](super::Error::Truncated) when it is not.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self> {
        let (header, body) = split(bytes)?;
        Ok(Self { header, body })
    }

    /// The type: one of [`v4`] or [`v6`].
    #[inline]
    pub fn kind(&self) -> u8 {
        self.header[0]
    }

    /// The code.
    #[inline]
    pub fn code(&self) -> u8 {
        self.header[1]
    }

    /// The checksum.
    #[inline]
    pub fn checksum(&self) -> u16 {
        u16::from_be_bytes([self.header[2], self.header[3]])
    }

    /// The bytes behind the common header.
    #[inline]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }
}
