//! UDP (RFC 768).

use super::{Result, split, split_mut};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// Where the checksum is.
pub const CHECKSUM_AT: u16 = 6;

/// A view of a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Checks that the header is there; bytes behind the datagram's length are left out.
    ///
    /// # Errors
    /// [`Truncated`](super::Error::Truncated) when the header is not whole,
    /// [`Malformed`](super::Error::Malformed) when the length does not cover it.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self> {
        let (header, rest) = split::<HEADER_LEN>(bytes)?;
        let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let payload = len.checked_sub(HEADER_LEN).ok_or(super::Error::Malformed)?;
        Ok(Self {
            header,
            payload: rest.get(..payload).unwrap_or(rest),
        })
    }

    #[inline]
    fn u16_at<const AT: usize>(&self) -> u16 {
        u16::from_be_bytes([self.header[AT], self.header[AT + 1]])
    }

    /// The source port.
    #[inline]
    pub fn src_port(&self) -> u16 {
        self.u16_at::<0>()
    }

    /// The destination port.
    #[inline]
    pub fn dst_port(&self) -> u16 {
        self.u16_at::<2>()
    }

    /// Bytes of the datagram, header included.
    #[inline]
    pub fn length(&self) -> u16 {
        self.u16_at::<4>()
    }

    /// The checksum, or the sum of the pseudo header while it is partial; zero for none.
    #[inline]
    pub fn checksum(&self) -> u16 {
        self.u16_at::<6>()
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
}

impl<'a> HeaderMut<'a> {
    /// Checks that the header is there.
    ///
    /// # Errors
    /// [`Truncated`](super::Error::Truncated) when it is not.
    #[inline]
    pub fn new_checked(bytes: &'a mut [u8]) -> Result<Self> {
        let (header, _) = split_mut(bytes)?;
        Ok(Self { header })
    }

    /// Sets the bytes of the datagram, header included.
    #[inline]
    pub fn set_length(&mut self, length: u16) {
        [self.header[4], self.header[5]] = length.to_be_bytes();
    }

    /// Sets the checksum field.
    #[inline]
    pub fn set_checksum(&mut self, checksum: u16) {
        [self.header[6], self.header[7]] = checksum.to_be_bytes();
    }
}
