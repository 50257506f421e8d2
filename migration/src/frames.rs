//! Frames that were for a VM on the host that it has left, on their way to where it is.
//!
//! ```text
//!   bytes
//!     4   length of the frame, N, in little endian
//!    12   its virtio-net header (virtio 1.3, 5.1.6.1)
//!     N   the frame, from its destination address on
//! ```
//! one after the other. What comes from another host is believed in nothing: who reads it looks at the header
//! and the frame as at those of a guest.

use thiserror::Error;

/// Most bytes of one message.
pub const MAX_LEN: usize = 1 << 20;
/// Bytes of a virtio-net header.
pub const HEADER_LEN: usize = 12;

/// A frame's virtio-net header, and its bytes.
pub type Frame<'a> = ([u8; HEADER_LEN], &'a [u8]);

/// The bytes are no frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a message of frames ends within one: see that both hosts have the same release of Tandem")]
pub struct FramesError;

/// Adds a frame of `len` bytes, which `write` writes.
pub fn add(
    bytes: &mut Vec<u8>,
    header: &[u8; HEADER_LEN],
    len: usize,
    write: impl FnOnce(&mut [u8]),
) {
    bytes.extend_from_slice(&(len as u32).to_le_bytes());
    bytes.extend_from_slice(header);
    let at = bytes.len();
    bytes.resize(at + len, 0);
    write(&mut bytes[at..]);
}

/// The frames of a message: header and bytes of each.
///
/// # Errors
/// It ends within one. None is to be used then.
pub fn all(mut bytes: &[u8]) -> Result<Vec<Frame<'_>>, FramesError> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (len, rest) = bytes.split_first_chunk::<4>().ok_or(FramesError)?;
        let (header, rest) = rest.split_first_chunk().ok_or(FramesError)?;
        let len = u32::from_le_bytes(*len) as usize;
        let (frame, rest) = rest.split_at_checked(len).ok_or(FramesError)?;
        frames.push((*header, frame));
        bytes = rest;
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_as_they_went_and_no_part_of_one() {
        let mut bytes = Vec::new();
        let sent: [(u8, &[u8]); 3] = [(1, b"frame"), (2, b""), (3, &[7; 1514])];
        for (mark, frame) in sent {
            add(&mut bytes, &[mark; HEADER_LEN], frame.len(), |room| {
                room.copy_from_slice(frame);
            });
        }
        let got = all(&bytes).unwrap();
        let expected = sent.map(|(mark, frame)| ([mark; HEADER_LEN], frame));
        assert_eq!(got, expected);
        assert_eq!(all(&[]), Ok(Vec::new()));
        for end in 1..21 {
            assert_eq!(all(&bytes[..end]), Err(FramesError), "{end}");
        }
        let long = [&u32::MAX.to_le_bytes()[..], &[0; 40]].concat();
        assert_eq!(all(&long), Err(FramesError));
    }
}
