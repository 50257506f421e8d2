//! VLAN tags (IEEE 802.1Q, 9.3 to 9.6).

use super::{Error, Result, split};

/// Bytes of a tag: TPID and TCI.
pub const TAG_LEN: usize = 4;
/// TPID of a customer tag, 802.1Q (table 9-1).
pub const TPID_CUSTOMER: u16 = 0x8100;
/// TPID of a service tag, 802.1ad (table 9-1).
pub const TPID_SERVICE: u16 = 0x88a8;
/// Largest VLAN a station can be in; 4095 is reserved (table 9-2).
pub const MAX_VID: u16 = 4094;

/// Tells whether a length or type field is the TPID of a tag.
#[inline]
pub const fn is_tpid(ethertype: u16) -> bool {
    matches!(ethertype, TPID_CUSTOMER | TPID_SERVICE)
}

/// Tag control information (9.6): priority, drop eligible, VLAN identifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tci(pub u16);

impl Tci {
    /// Builds it; bits of an argument that do not fit its field are left out.
    #[inline]
    pub const fn new(pcp: u8, dei: bool, vid: u16) -> Self {
        Self(((pcp & 7) as u16) << 13 | (dei as u16) << 12 | vid & 0xfff)
    }

    /// Priority code point, 0 to 7.
    #[inline]
    pub const fn pcp(self) -> u8 {
        (self.0 >> 13) as u8
    }

    /// Drop eligible indicator.
    #[inline]
    pub const fn dei(self) -> bool {
        self.0 & 0x1000 != 0
    }

    /// VLAN identifier; 0 says that the tag carries a priority only.
    #[inline]
    pub const fn vid(self) -> u16 {
        self.0 & 0xfff
    }
}

/// The bytes of a tag, to be put in front of a frame's length or type field.
#[inline]
pub const fn tag(tpid: u16, tci: Tci) -> [u8; TAG_LEN] {
    let ([a, b], [c, d]) = (tpid.to_be_bytes(), tci.0.to_be_bytes());
    [a, b, c, d]
}

/// A view of a tag.
#[derive(Clone, Copy, Debug)]
pub struct Tag<'a> {
    header: &'a [u8; TAG_LEN],
    rest: &'a [u8],
}

impl<'a> Tag<'a> {
    /// Checks that `bytes`, which start at a length or type field, start with a tag.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the field is not a TPID, [`Error::Truncated`] when bytes lack.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self> {
        let (header, rest) = split(bytes)?;
        let tag = Self { header, rest };
        if is_tpid(tag.tpid()) {
            Ok(tag)
        } else {
            Err(Error::Malformed)
        }
    }

    /// The tag protocol identifier.
    #[inline]
    pub fn tpid(&self) -> u16 {
        u16::from_be_bytes([self.header[0], self.header[1]])
    }

    /// The tag control information.
    #[inline]
    pub fn tci(&self) -> Tci {
        Tci(u16::from_be_bytes([self.header[2], self.header[3]]))
    }

    /// The bytes behind the tag, which start with the next length or type field.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}
