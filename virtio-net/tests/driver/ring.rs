//! A driver's ring of either layout.

use tandem_virtio_net::ring::RingConfig;
use tandem_virtio_net::spec::*;

use super::{Heap, Packed, Ram, Rng, Split};

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buf {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) writable: bool,
}

/// What the device gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    /// Which chain: the number it was offered with.
    pub(crate) token: u64,
    /// Bytes the device says it has written. None: it was only counted in an in-order batch.
    pub(crate) written: Option<u32>,
}

/// Where the table of an indirect chain lies, and how many buffers come in the ring before it
/// (split only).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Indirect {
    pub(crate) table: u64,
    pub(crate) direct: usize,
}

pub(crate) enum Ring {
    Split(Split),
    Packed(Packed),
}

impl Ring {
    /// A ring in free memory, at position `base`: of a ring that has been in use for a while.
    pub(crate) fn new(
        ram: &Ram,
        heap: &mut Heap,
        size: u16,
        features: u64,
        base: u16,
        rng: &mut Rng,
    ) -> Self {
        let n = u64::from(size);
        let packed = has(features, VIRTIO_F_RING_PACKED);
        let (driver, device) = if packed {
            (4, 4)
        } else {
            (6 + 2 * n, 6 + 8 * n)
        };
        let mut take = |len, align| heap.take(len, align, rng).expect("room for a ring");
        let config = RingConfig {
            size,
            desc: take(16 * n, 16),
            driver: take(driver, 4),
            device: take(device, 4),
            features,
        };
        if packed {
            Ring::Packed(Packed::new(ram.clone(), config, base))
        } else {
            Ring::Split(Split::new(ram.clone(), config, base))
        }
    }

    pub(crate) fn config(&self) -> RingConfig {
        match self {
            Ring::Split(r) => r.config,
            Ring::Packed(r) => r.config,
        }
    }

    /// Sees the ring in other memory from now on.
    pub(crate) fn set_ram(&mut self, ram: &Ram) {
        match self {
            Ring::Split(r) => r.ram = ram.clone(),
            Ring::Packed(r) => r.ram = ram.clone(),
        }
    }

    /// Makes a chain available; false: there are not enough descriptors.
    pub(crate) fn offer(&mut self, bufs: &[Buf], indirect: Option<Indirect>, token: u64) -> bool {
        match self {
            Ring::Split(r) => r.offer(bufs, indirect, token),
            Ring::Packed(r) => r.offer(bufs, indirect.map(|i| i.table), token),
        }
    }

    /// Takes back the next used chain.
    pub(crate) fn used(&mut self) -> Option<Used> {
        match self {
            Ring::Split(r) => r.used(),
            Ring::Packed(r) => r.used(),
        }
    }

    /// Whether the device wants to know of what was offered since last asked.
    pub(crate) fn must_kick(&mut self) -> bool {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        match self {
            Ring::Split(r) => r.must_kick(),
            Ring::Packed(r) => r.must_kick(),
        }
    }

    /// Asks to be called at the next used chain; true: there is one already.
    pub(crate) fn arm(&mut self) -> bool {
        match self {
            Ring::Split(r) => r.arm(),
            Ring::Packed(r) => r.arm(),
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        match self {
            Ring::Split(r) => r.has_used(),
            Ring::Packed(r) => r.has_used(),
        }
    }

    /// Asks not to be called.
    pub(crate) fn disarm(&mut self) {
        match self {
            Ring::Split(r) => r.disarm(),
            Ring::Packed(r) => r.disarm(),
        }
    }
}

/// 2.7.10: whether going from `old` to `new` makes entry `event` available or used.
pub(crate) fn passed(event: u16, new: u16, old: u16) -> bool {
    let mut at = old;
    while at != new {
        if at == event {
            return true;
        }
        at = at.wrapping_add(1);
    }
    false
}
