//! IPv4 (RFC 791).

use std::net::Ipv4Addr;

use super::checksum::Checksum;
use super::{Error, Result, split, split_mut, split_options};

/// Bytes of a header without options (3.1).
pub const HEADER_LEN: usize = 20;
/// Flag: do not fragment (3.1).
pub const DONT_FRAGMENT: u16 = 0x4000;
/// Flag: more fragments follow (3.1).
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset, in units of 8 bytes (3.1).
pub const OFFSET_MASK: u16 = 0x1fff;

/// Bytes of the header with options, from its first byte; `None` when that is not IPv4 or
/// names less than the fixed header.
#[inline]
pub const fn header_len(first: u8) -> Option<usize> {
    if matches!(first, 0x45..=0x4f) {
        Some((first & 0xf) as usize * 4)
    } else {
        None
    }
}

/// A view of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    header: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Checks version and lengths; bytes behind the packet's total length are left out.
    ///
    /// # Errors
    /// [`Error::Malformed`] when version or lengths are wrong, [`Error::Truncated`] when the
    /// header is not whole.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self> {
        let (header, rest) = split(bytes)?;
        let len = header_len(header[0]).ok_or(Error::Malformed)?;
        let (options, rest) = split_options(rest, len - HEADER_LEN)?;
        let mut packet = Self {
            header,
            options,
            payload: rest,
        };
        let payload = usize::from(packet.total_len())
            .checked_sub(len)
            .ok_or(Error::Malformed)?;
        packet.payload = rest.get(..payload).unwrap_or(rest);
        Ok(packet)
    }

    #[inline]
    fn u16_at<const AT: usize>(&self) -> u16 {
        u16::from_be_bytes([self.header[AT], self.header[AT + 1]])
    }

    /// Differentiated services and ECN (RFC 2474, RFC 3168).
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        self.header[1]
    }

    /// Bytes of the packet, header included.
    #[inline]
    pub fn total_len(&self) -> u16 {
        self.u16_at::<2>()
    }

    /// The identification.
    #[inline]
    pub fn id(&self) -> u16 {
        self.u16_at::<4>()
    }

    /// Flags and fragment offset, as they are in the header.
    #[inline]
    pub fn flags_and_offset(&self) -> u16 {
        self.u16_at::<6>()
    }

    /// Tells whether this is a fragment, the first one included.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.flags_and_offset() & (MORE_FRAGMENTS | OFFSET_MASK) != 0
    }

    /// Time to live.
    #[inline]
    pub fn ttl(&self) -> u8 {
        self.header[8]
    }

    /// The protocol of the payload: one of [`super::protocol`].
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.header[9]
    }

    /// The header checksum.
    #[inline]
    pub fn checksum(&self) -> u16 {
        self.u16_at::<10>()
    }

    /// Tells whether the header checksum is right.
    #[inline]
    pub fn verify_checksum(&self) -> bool {
        Checksum::new()
            .bytes(self.header)
            .bytes(self.options)
            .finish()
            == 0
    }

    /// The source address.
    #[inline]
    pub fn src(&self) -> Ipv4Addr {
        Ipv4Addr::new(
            self.header[12],
            self.header[13],
            self.header[14],
            self.header[15],
        )
    }

    /// The destination address.
    #[inline]
    pub fn dst(&self) -> Ipv4Addr {
        Ipv4Addr::new(
            self.header[16],
            self.header[17],
            self.header[18],
            self.header[19],
        )
    }

    /// The options.
    #[inline]
    pub fn options(&self) -> &'a [u8] {
        self.options
    }

    /// The payload, as much of it as is at hand.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// Changes a header.
#[derive(Debug)]
pub struct HeaderMut<'a> {
    header: &'a mut [u8; HEADER_LEN],
    options: &'a mut [u8],
}

impl<'a> HeaderMut<'a> {
    /// Checks version and header length; the total length may still be wrong.
    ///
    /// # Errors
    /// As for [`Packet::new_checked`].
    #[inline]
    pub fn new_checked(bytes: &'a mut [u8]) -> Result<Self> {
        let (header, rest) = split_mut::<HEADER_LEN>(bytes)?;
        let len = header_len(header[0]).ok_or(Error::Malformed)?;
        let options = rest.get_mut(..len - HEADER_LEN).ok_or(Error::Truncated)?;
        Ok(Self { header, options })
    }

    #[inline]
    fn put<const AT: usize>(&mut self, value: u16) {
        [self.header[AT], self.header[AT + 1]] = value.to_be_bytes();
    }

    /// Sets the bytes of the packet, header included.
    #[inline]
    pub fn set_total_len(&mut self, len: u16) {
        self.put::<2>(len);
    }

    /// Sets the identification.
    #[inline]
    pub fn set_id(&mut self, id: u16) {
        self.put::<4>(id);
    }

    /// Computes the header checksum; the last change to make.
    #[inline]
    pub fn fill_checksum(&mut self) {
        self.put::<10>(0);
        let sum = Checksum::new()
            .bytes(self.header)
            .bytes(self.options)
            .finish();
        self.put::<10>(sum);
    }
}
