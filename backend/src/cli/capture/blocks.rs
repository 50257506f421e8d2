//! A stream of pcapng, block by block: what is written of it is always whole.

use crate::capture::{DROPPED, LOST, PACKET, STATISTICS};

/// Bytes of a block's type and of its length, which is there twice.
const FRAME: usize = 12;

/// Puts the blocks of a stream together, and counts.
#[derive(Default)]
pub(super) struct Blocks {
    buffer: Vec<u8>,
    /// Bytes at its start that were given out.
    done: usize,
    begun: bool,
    frames: u64,
    lost: u64,
    /// As the daemon said last.
    said_lost: u64,
}

impl Blocks {
    /// Adds what has come; gives the blocks that are whole by now. None: it is no pcapng.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Option<&[u8]> {
        self.begun = true;
        self.buffer.drain(..self.done);
        self.buffer.extend_from_slice(bytes);
        self.done = 0;
        while let Some(len) = length(&self.buffer[self.done..]) {
            if len < FRAME || len % 4 != 0 {
                return None;
            }
            let Some(block) = self.buffer.get(self.done..self.done + len) else {
                break;
            };
            match kind(block) {
                PACKET => {
                    self.frames += 1;
                    self.lost += number(block, packet_options(block), LOST);
                }
                STATISTICS => self.said_lost = number(block, FRAME + 8, DROPPED),
                _ => {}
            }
            self.done += len;
        }
        Some(&self.buffer[..self.done])
    }

    /// Has anything come at all?
    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    /// Frames that have come.
    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    /// Frames that the capture has lost, as far as it has said.
    pub(super) fn lost(&self) -> u64 {
        self.lost.max(self.said_lost)
    }
}

/// The blocks in `bytes`.
pub(super) fn each(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = length(bytes).filter(|len| (FRAME..=bytes.len()).contains(len))?;
        let (block, rest) = bytes.split_at(len);
        bytes = rest;
        Some(block)
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

fn length(block: &[u8]) -> Option<usize> {
    word(block, 4).map(|len| len as usize)
}

/// What kind of block it is.
pub(super) fn kind(block: &[u8]) -> u32 {
    word(block, 0).unwrap_or_default()
}

/// The time of a packet in nanoseconds since 1970, the bytes that were captured, and its length.
pub(super) fn packet(block: &[u8]) -> Option<(u64, &[u8], u32)> {
    let at = u64::from(word(block, 12)?) << 32 | u64::from(word(block, 16)?);
    let captured = word(block, 20)? as usize;
    let bytes = block.get(28..28 + captured)?;
    Some((at, bytes, word(block, 24)?))
}

/// Where the options of a packet begin.
pub(super) fn packet_options(block: &[u8]) -> usize {
    let captured = word(block, 20).unwrap_or_default() as usize;
    28 + captured.next_multiple_of(4)
}

/// The value of the first option `code` of those that begin at `at`.
pub(super) fn option(block: &[u8], mut at: usize, code: u16) -> Option<&[u8]> {
    loop {
        let [c, d, l, m] = *block.get(at..block.len() - 4)?.first_chunk()?;
        let len = usize::from(u16::from_le_bytes([l, m]));
        match u16::from_le_bytes([c, d]) {
            0 => return None,
            found if found == code => return block.get(at + 4..at + 4 + len),
            _ => at += 4 + len.next_multiple_of(4),
        }
    }
}

fn number(block: &[u8], at: usize, code: u16) -> u64 {
    let value = option(block, at, code).and_then(<[u8]>::first_chunk);
    value.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
