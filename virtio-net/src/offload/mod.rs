//! Checksum and segmentation in software, for a receiver that did not negotiate them.
//!
//! A frame keeps its `virtio_net_hdr` from the sender to the receiver. [`validate`] judges, once,
//! what the sender claims in it. [`receiver_takes`] then says for each receiver whether the frame
//! goes as it is, with its checksum completed ([`complete_checksum`]), or cut into segments
//! ([`Segmenter`]); [`delivered_header`] is the header that a frame sent as it is gets.
//!
//! Everything here is a pure function over bytes that Tandem has copied out of guest memory.

mod header;
mod segment;

pub use crate::wire::checksum::{Checksum, checksum};
pub use header::{Treatment, complete_checksum, delivered_header, receiver_takes};
pub use header::{validate, validate_parsed};
pub use segment::{MAX_SMALL_SEGMENTS, MIN_GSO_SIZE, Segmenter};

/// What is wrong with a `virtio_net_hdr` and the frame behind it.
///
/// All but [`HeadTooShort`](Self::HeadTooShort) end the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not a fault: the head ends inside a header. Bring more bytes and ask again.
    #[error("{need} bytes of the frame are needed to find its headers")]
    HeadTooShort {
        /// Bytes from the start of the frame.
        need: usize,
    },
    /// A `gso_type` that does not exist or that Tandem does not offer.
    #[error("segment offload type {0} is not offered")]
    GsoType(u8),
    /// The ECN bit without a TCP segment offload.
    #[error("the ECN bit goes with TCP segment offload only")]
    EcnWithoutTcp,
    /// A segment offload without a partial checksum (virtio 5.1.6.2).
    #[error("segment offload needs NEEDS_CSUM")]
    GsoWithoutChecksum,
    /// A segment size of zero, or one so small that it serves only to make work.
    #[error("a segment size of {0} is too small")]
    GsoSize(u16),
    /// Segments that do not fit the length field of IP.
    #[error("segments of {0} bytes do not fit in IP packets")]
    SegmentTooLong(u16),
    /// The frame is not of the protocol that `gso_type` says.
    #[error("the frame is not of the protocol of its segment offload type {0}")]
    GsoMismatch(u8),
    /// `hdr_len` is beyond the end of the frame.
    #[error("a header length of {0} is beyond the end of the frame")]
    HdrLen(u16),
    /// A partial checksum in a frame that has no whole TCP or UDP packet.
    #[error("a partial checksum, but no TCP or UDP header")]
    NoTransport,
    /// `csum_start` and `csum_offset` are not those of the frame's TCP or UDP checksum.
    #[error("the partial checksum at {start}+{offset} is not that of the TCP or UDP header")]
    ChecksumPlace {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
    },
    /// The headers of the frame contradict themselves.
    #[error("the headers of the frame contradict themselves")]
    Malformed,
}
