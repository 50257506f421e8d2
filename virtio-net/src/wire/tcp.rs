//! TCP (RFC 9293).

use super::{Error, Result, split, split_mut, split_options};

/// Bytes of a header without options (3.1).
pub const HEADER_LEN: usize = 20;
/// Where the checksum is (3.1).
pub const CHECKSUM_AT: u16 = 16;
/// Flag: no more data from the sender (3.1).
pub const FIN: u8 = 0x01;
/// Flag: synchronise sequence numbers (3.1).
pub const SYN: u8 = 0x02;
/// Flag: reset the connection (3.1).
pub const RST: u8 = 0x04;
/// Flag: push (3.1).
pub const PSH: u8 = 0x08;
/// Flag: the acknowledgment field counts (3.1).
pub const ACK: u8 = 0x10;
/// Flag: the urgent pointer counts (3.1).
pub const URG: u8 = 0x20;
/// Flag: ECN echo (RFC 3168, 6.1).
pub const ECE: u8 = 0x40;
/// Flag: congestion window reduced (RFC 3168, 6.1).
pub const CWR: u8 = 0x80;

/// Bytes of the header with options, from its byte 12; `None` when it names less than the fixed
/// header.
#[inline]
pub const fn header_len(data_offset: u8) -> Option<usize> {
    let len = (data_offset >> 4) as usize * 4;
    if len >= HEADER_LEN { Some(len) } else { None }
}

/// A view of a segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    header: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Checks the data offset.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it lies inside the fixed header, [`Error::Truncated`] when the
    /// header is not whole.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self> {
        let (header, rest) = split::<HEADER_LEN>(bytes)?;
        let len = header_len(header[12]).ok_or(Error::Malformed)?;
        let (options, payload) = split_options(rest, len - HEADER_LEN)?;
        Ok(Self {
            header,
            options,
            payload,
        })
    }

    #[inline]
    fn u16_at<const AT: usize>(&self) -> u16 {
        u16::from_be_bytes([self.header[AT], self.header[AT + 1]])
    }

    #[inline]
    fn u32_at<const AT: usize>(&self) -> u32 {
        u32::from_be_bytes(std::array::from_fn(|i| self.header[AT + i]))
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

    /// The sequence number.
    #[inline]
    pub fn seq(&self) -> u32 {
        self.u32_at::<4>()
    }

    /// The acknowledgment number.
    #[inline]
    pub fn ack(&self) -> u32 {
        self.u32_at::<8>()
    }

    /// The flags: [`FIN`] to [`CWR`].
    #[inline]
    pub fn flags(&self) -> u8 {
        self.header[13]
    }

    /// The window, not scaled.
    #[inline]
    pub fn window(&self) -> u16 {
        self.u16_at::<14>()
    }

    /// The checksum, or the sum of the pseudo header while it is partial.
    #[inline]
    pub fn checksum(&self) -> u16 {
        self.u16_at::<16>()
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
}

impl<'a> HeaderMut<'a> {
    /// Checks that the fixed header is there.
    ///
    /// # Errors
    /// [`Error::Truncated`] when it is not.
    #[inline]
    pub fn new_checked(bytes: &'a mut [u8]) -> Result<Self> {
        let (header, _) = split_mut(bytes)?;
        Ok(Self { header })
    }

    /// The sequence number.
    #[inline]
    pub fn seq(&self) -> u32 {
        u32::from_be_bytes(std::array::from_fn(|i| self.header[4 + i]))
    }

    /// Sets the sequence number.
    #[inline]
    pub fn set_seq(&mut self, seq: u32) {
        self.header[4..8].copy_from_slice(&seq.to_be_bytes());
    }

    /// Clears flags: those of [`FIN`] to [`CWR`] that are set in `flags`.
    #[inline]
    pub fn clear_flags(&mut self, flags: u8) {
        self.header[13] &= !flags;
    }

    /// Sets the checksum field.
    #[inline]
    pub fn set_checksum(&mut self, checksum: u16) {
        [self.header[16], self.header[17]] = checksum.to_be_bytes();
    }
}
