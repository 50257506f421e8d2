//! What a record in the ring says of its frame.

use std::time::Duration;

use tandem_virtio_net::spec::NetHdr;
use tandem_virtio_net::{Direction, DropReason};

/// Words of a [`Head`].
const WORDS: usize = 4;

/// What precedes the bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Since 1970.
    pub(super) at: Duration,
    pub(super) direction: Direction,
    /// Why it was dropped, if it was.
    pub(super) drop: Option<DropReason>,
    /// Bytes that it had.
    pub(super) len: u32,
    /// Those of them that were captured.
    pub(super) captured: u32,
    /// Frames that the capture lost since the one before.
    pub(super) lost: u64,
    /// What its sender left to others to do.
    pub(super) offload: Offload,
}

/// From the vnet header (virtio 1.3, 5.1.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offload {
    pub(super) flags: u8,
    pub(super) gso_type: u8,
    pub(super) gso_size: u16,
}

impl Offload {
    pub(super) fn of(hdr: &NetHdr) -> Self {
        Self {
            flags: hdr.flags,
            gso_type: hdr.gso_type,
            gso_size: hdr.gso_size,
        }
    }
}

impl Head {
    /// Bytes it takes.
    pub(super) const BYTES: usize = 8 * WORDS;

    pub(super) fn words(&self) -> [u64; WORDS] {
        let Offload {
            flags,
            gso_type,
            gso_size,
        } = self.offload;
        let [low, high] = gso_size.to_le_bytes();
        let drop = self.drop.map_or(0, |reason| 1 + reason as u8);
        let way = self.direction as u8;
        [
            self.at.as_nanos() as u64,
            u64::from(self.len) | u64::from(self.captured) << 32,
            u64::from_le_bytes([way, drop, flags, gso_type, low, high, 0, 0]),
            self.lost,
        ]
    }

    /// Reads a record: this, and the bytes of its frame.
    pub(super) fn read(record: &[u64]) -> Option<(Self, &[u64])> {
        let ([at, lengths, what, lost], bytes) = record.split_first_chunk::<WORDS>()?;
        let [way, drop, flags, gso_type, low, high, ..] = what.to_le_bytes();
        let head = Self {
            at: Duration::from_nanos(*at),
            direction: if way == Direction::FromVm as u8 {
                Direction::FromVm
            } else {
                Direction::ToVm
            },
            drop: drop
                .checked_sub(1)
                .and_then(|reason| DropReason::ALL.get(usize::from(reason)).copied()),
            len: *lengths as u32,
            captured: (lengths >> 32) as u32,
            lost: *lost,
            offload: Offload {
                flags,
                gso_type,
                gso_size: u16::from_le_bytes([low, high]),
            },
        };
        Some((head, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let drops = DropReason::ALL.iter().copied().map(Some);
        for drop in drops.chain([None]) {
            for direction in [Direction::FromVm, Direction::ToVm] {
                let head = Head {
                    at: Duration::from_nanos(1_234_567_890_123_456_789),
                    direction,
                    drop,
                    len: u32::MAX,
                    captured: 7,
                    lost: u64::MAX,
                    offload: Offload {
                        flags: 1,
                        gso_type: 0x84,
                        gso_size: 0xfedc,
                    },
                };
                let mut record = head.words().to_vec();
                record.push(5);
                assert_eq!(Head::read(&record), Some((head, &[5][..])));
            }
        }
        assert_eq!(Head::read(&[0; WORDS - 1]), None);
    }
}
