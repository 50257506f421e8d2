//! Checked views of the headers in a frame.
//!
//! `new_checked` looks at lengths and fixed fields once and splits the bytes into arrays of known
//! size; the accessors of the view then cannot panic. Views work on the head of a frame: the
//! payload they show is what the bytes hold, which may be less than the header promises.
//!
//! [`parse()`] is the hot path's way through the same headers: one pass, offsets only.

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
mod parse;
pub mod tcp;
pub mod udp;
pub mod vlan;

pub use parse::{FlowKey, IpVersion, MAX_TAGS, Parsed, parse, plain_flow};

/// Why bytes are not the header they were taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The header is longer than the bytes at hand.
    #[error("the header is cut short")]
    Truncated,
    /// A fixed field or a length of the header is wrong.
    #[error("the header contradicts itself")]
    Malformed,
}

/// The result of a check.
pub type Result<T> = std::result::Result<T, Error>;

/// Protocol numbers of IPv4 and next headers of IPv6 (IANA, Assigned Internet Protocol Numbers).
pub mod protocol {
    /// IPv6 hop-by-hop options (RFC 8200, 4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// IPv6 routing header (RFC 8200, 4.4).
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header (RFC 8200, 4.5).
    pub const FRAGMENT: u8 = 44;
    /// GRE (RFC 2784).
    pub const GRE: u8 = 47;
    /// Encapsulating security payload (RFC 4303).
    pub const ESP: u8 = 50;
    /// Authentication header (RFC 4302).
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// No next header (RFC 8200, 4.7).
    pub const NO_NEXT_HEADER: u8 = 59;
    /// IPv6 destination options (RFC 8200, 4.6).
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// IPv6 mobility header (RFC 6275, 6.1).
    pub const MOBILITY: u8 = 135;
    /// Host identity protocol (RFC 7401).
    pub const HIP: u8 = 139;
    /// Shim6 (RFC 5533).
    pub const SHIM6: u8 = 140;
}

/// Splits a header of fixed size off `bytes`.
#[inline]
fn split<const N: usize>(bytes: &[u8]) -> Result<(&[u8; N], &[u8])> {
    bytes.split_first_chunk().ok_or(Error::Truncated)
}

/// The same for a header that is going to be changed.
#[inline]
fn split_mut<const N: usize>(bytes: &mut [u8]) -> Result<(&mut [u8; N], &mut [u8])> {
    bytes.split_first_chunk_mut().ok_or(Error::Truncated)
}

/// Splits `len` bytes of options off `bytes`.
#[inline]
fn split_options(bytes: &[u8], len: usize) -> Result<(&[u8], &[u8])> {
    bytes.split_at_checked(len).ok_or(Error::Truncated)
}
