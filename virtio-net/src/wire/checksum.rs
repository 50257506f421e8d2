//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! The one's complement sum does not care about byte order (RFC 1071, 2(B)), so that bytes are
//! added as native words, four at a time, and swapped once at the end. Four-byte words in a
//! 64-bit accumulator never carry out for the lengths a frame can have, and let the compiler
//! use vector registers.

/// A running sum over pieces of any length, in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checksum {
    sum: u64,
    /// An odd number of bytes so far: the next piece starts in the middle of a word.
    odd: bool,
}

impl Checksum {
    /// The sum of nothing.
    pub const fn new() -> Self {
        Self { sum: 0, odd: false }
    }

    /// Adds the next bytes.
    ///
    /// A sum holds up to 16 GiB; beyond that it is wrong, not undefined.
    #[inline]
    #[must_use]
    pub fn bytes(self, data: &[u8]) -> Self {
        let mut sum = sum_words(data);
        if self.odd {
            // In the other half of its word, every byte counts as if swapped (RFC 1071, 2(B)).
            sum = u64::from(fold(sum).swap_bytes());
        }
        Self {
            sum: self.sum.wrapping_add(sum),
            odd: self.odd ^ (data.len() % 2 == 1),
        }
    }

    /// Adds a 16-bit field given in host order, at an even place.
    #[inline]
    #[must_use]
    pub fn word(self, value: u16) -> Self {
        Self {
            sum: self.sum.wrapping_add(u64::from(value.to_be())),
            ..self
        }
    }

    /// The folded sum in host order, not complemented: what a partial checksum field holds.
    #[inline]
    pub fn partial(self) -> u16 {
        u16::from_be(fold(self.sum))
    }

    /// The checksum in host order: the complement of the sum.
    #[inline]
    pub fn finish(self) -> u16 {
        !self.partial()
    }

    /// The checksum for a transport header: never zero, which says "no checksum" in UDP
    /// (RFC 768). To TCP the two values mean the same.
    #[inline]
    pub fn finish_transport(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// The Internet checksum of `data`, in host order.
#[inline]
pub fn checksum(data: &[u8]) -> u16 {
    Checksum::new().bytes(data).finish()
}

/// The checksum after one 16-bit word that it covers changed (RFC 1624, equation 3).
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !Checksum::new()
        .word(!checksum)
        .word(!old)
        .word(new)
        .partial()
}

#[inline]
fn sum_words(data: &[u8]) -> u64 {
    let (words, tail) = data.as_chunks::<4>();
    let body = words.iter().fold(0u64, |sum, word| {
        sum.wrapping_add(u32::from_ne_bytes(*word).into())
    });
    // Bytes missing at the end count as zero (RFC 1071, 4.1).
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(tail) {
        *to = *from;
    }
    body.wrapping_add(u32::from_ne_bytes(last).into())
}

/// Folds to 16 bits with end-around carry.
#[inline]
fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    // Four folds leave no carry: 2^33, 2^18, 2^16 + 1, 2^16 - 1.
    sum as u16
}
