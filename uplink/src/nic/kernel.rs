//! What devices of the kernel take of a frame, and what is done for them in software.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tandem_virtio_net::offload::{self, Segmenter, Treatment};
use tandem_virtio_net::spec::*;
use tandem_virtio_net::{Batch, Counters, DropReason, Scratch};

/// What the kernel takes in a frame given to its devices, whatever else was set. As the features of
/// a driver that receives (virtio 5.1.3).
const ALWAYS: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN;
/// And what a kernel takes that knows UDP segmentation (Linux 6.2).
const USO: u64 = 1 << VIRTIO_NET_F_GUEST_USO4 | 1 << VIRTIO_NET_F_GUEST_USO6;

/// The offloads of a device, and how often they had to be done for it.
pub(super) struct Offloads {
    /// As a driver's features.
    pub(super) takes: u64,
    segmented_frames: AtomicU64,
    segments: AtomicU64,
}

impl Offloads {
    /// Those of a kernel, `uso` if it knows UDP segmentation.
    pub(super) fn new(uso: bool) -> Self {
        Self {
            takes: if uso { ALWAYS | USO } else { ALWAYS },
            segmented_frames: AtomicU64::new(0),
            segments: AtomicU64::new(0),
        }
    }

    /// Those of a device that takes frames ready for the wire only.
    pub(super) fn none() -> Self {
        Self {
            takes: 0,
            ..Self::new(false)
        }
    }

    /// Counts a frame that was cut into `segments`.
    pub(super) fn count_segmented(&self, segments: u64) {
        self.segmented_frames.fetch_add(1, Ordering::Relaxed);
        self.segments.fetch_add(segments, Ordering::Relaxed);
    }

    /// Frames that were cut up because the kernel does not take them whole, and the segments
    /// written for them.
    pub(super) fn segmented(&self) -> (u64, u64) {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (load(&self.segmented_frames), load(&self.segments))
    }

    /// What frame `i` needs done.
    #[inline]
    pub(super) fn treatment(&self, batch: &Batch, i: usize) -> Treatment {
        let hdr = batch.hdr(i);
        if hdr.flags | hdr.gso_type == 0 {
            return Treatment::AsIs;
        }
        offload::receiver_takes(&hdr, batch.head(i), self.takes)
    }

    /// Gives frame `i` the header the kernel takes; the one it had, to be given back.
    #[inline]
    pub(super) fn prepare(&self, batch: &mut Batch, i: usize) -> NetHdr {
        let hdr = batch.hdr(i);
        if hdr.flags | hdr.gso_type != 0 {
            batch.set_hdr(i, offload::delivered_header(&hdr, self.takes));
        }
        hdr
    }

    /// Does what the kernel does not, and hands each frame that becomes of it, with its vnet header in
    /// front, to `write`.
    pub(super) fn complete(
        &self,
        treatment: Treatment,
        batch: &Batch,
        i: usize,
        scratch: &mut Scratch,
        mut write: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Sent {
        let hdr = batch.hdr(i);
        let mut written =
            |bytes: &[u8]| Sent::of(write(bytes), bytes.len().saturating_sub(NET_HDR_LEN));
        let (whole, room) = scratch.rooms();
        if let Treatment::Segment { leave_partial } = treatment {
            let n = batch.linearize(i, whole);
            let Ok(mut segmenter) = Segmenter::new(&hdr, &whole[..n], leave_partial) else {
                return Sent::failed(DropReason::OffloadFailed);
            };
            let (mut sent, mut segments) = (Sent::default(), 0);
            while let Some((hdr, n)) = segmenter.next(&mut room[NET_HDR_LEN..]) {
                room[..NET_HDR_LEN].copy_from_slice(&hdr.to_bytes());
                sent.add(written(&room[..NET_HDR_LEN + n]));
                segments += 1;
            }
            self.count_segmented(segments);
            return sent;
        }
        let n = batch.linearize(i, &mut whole[NET_HDR_LEN..]);
        whole[..NET_HDR_LEN].copy_from_slice(&NetHdr::default().to_bytes());
        let frame = &mut whole[NET_HDR_LEN..NET_HDR_LEN + n];
        match offload::complete_checksum(frame, hdr.csum_start, hdr.csum_offset) {
            Ok(()) => written(&whole[..NET_HDR_LEN + n]),
            Err(_) => Sent::failed(DropReason::OffloadFailed),
        }
    }
}

/// What became of frames that were written.
#[derive(Clone, Copy, Default)]
pub(super) struct Sent {
    pub(super) frames: u64,
    pub(super) bytes: u64,
    pub(super) refused: u64,
    pub(super) offload_failed: u64,
    pub(super) too_long: u64,
}

impl Sent {
    pub(super) fn of(result: io::Result<()>, len: usize) -> Self {
        match result {
            Ok(()) => Self {
                frames: 1,
                bytes: len as u64,
                ..Self::default()
            },
            Err(_) => Self::failed(DropReason::HostRefused),
        }
    }

    pub(super) fn failed(reason: DropReason) -> Self {
        match reason {
            DropReason::OffloadFailed => Self {
                offload_failed: 1,
                ..Self::default()
            },
            _ => Self {
                refused: 1,
                ..Self::default()
            },
        }
    }

    /// Why a part of a frame was dropped, if any was.
    pub(super) fn dropped(&self) -> Option<DropReason> {
        match (self.refused, self.offload_failed, self.too_long) {
            (0, 0, 0) => None,
            (0, 0, _) => Some(DropReason::MtuExceeded),
            (0, _, _) => Some(DropReason::OffloadFailed),
            _ => Some(DropReason::HostRefused),
        }
    }

    /// As [`Sent::dropped`], of what has been added since it was `before`.
    pub(super) fn dropped_since(&self, before: &Self) -> Option<DropReason> {
        let new = Self {
            refused: self.refused - before.refused,
            offload_failed: self.offload_failed - before.offload_failed,
            too_long: self.too_long - before.too_long,
            ..Self::default()
        };
        new.dropped()
    }

    /// A frame that was counted as sent was refused after all.
    pub(super) fn unsend(&mut self, bytes: u64) {
        self.frames = self.frames.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.refused += 1;
    }

    /// Counts all of it.
    pub(super) fn count(&self, to_vm: &Counters) {
        to_vm.add(self.frames, self.bytes);
        to_vm.count_drop(DropReason::HostRefused, self.refused);
        to_vm.count_drop(DropReason::OffloadFailed, self.offload_failed);
        to_vm.count_drop(DropReason::MtuExceeded, self.too_long);
    }

    pub(super) fn add(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.refused += other.refused;
        self.offload_failed += other.offload_failed;
        self.too_long += other.too_long;
    }
}
