//! The driver's side of a packed virtqueue (virtio 1.3, 2.8).

use std::collections::{HashMap, VecDeque};

use tandem_virtio_net::ring::RingConfig;
use tandem_virtio_net::spec::*;

use super::{Buf, Ram, Used};

/// A place in a ring: how many descriptors were passed since one before the start. Wrap counter
/// and index follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At(pub(crate) u64);

impl At {
    pub(crate) fn from_base(base: u16, size: u16) -> Self {
        // Laps 2, 4, … have the wrap counter 1, as the first one of a new ring.
        let lap = if base & 0x8000 != 0 { 2 } else { 3 };
        Self(lap * u64::from(size) + u64::from(base & 0x7fff))
    }

    pub(crate) fn index(self, size: u16) -> u16 {
        (self.0 % u64::from(size)) as u16
    }

    pub(crate) fn wrap(self, size: u16) -> bool {
        (self.0 / u64::from(size)).is_multiple_of(2)
    }

    /// As in event suppression and in SET_VRING_BASE.
    pub(crate) fn off_wrap(self, size: u16) -> u16 {
        self.index(size) | u16::from(self.wrap(size)) << 15
    }
}

pub(crate) struct Packed {
    pub(crate) ram: Ram,
    pub(crate) config: RingConfig,
    ids: VecDeque<u16>,
    /// By id: token and number of descriptors.
    chains: HashMap<u16, (u64, u16)>,
    order: VecDeque<u16>,
    pub(crate) avail: At,
    kicked: At,
    pub(crate) seen: At,
    batch: Option<(u16, u32)>,
}

impl Packed {
    pub(crate) fn new(ram: Ram, config: RingConfig, base: u16) -> Self {
        let at = At::from_base(base, config.size);
        let ring = Self {
            ram,
            config,
            ids: (0..config.size).rev().collect(),
            chains: HashMap::new(),
            order: VecDeque::new(),
            avail: at,
            kicked: at,
            seen: at,
            batch: None,
        };
        // All descriptors were used: those before `at` in this lap, the others in the last.
        for i in 0..config.size {
            let used = at.wrap(config.size) == (i < at.index(config.size));
            let flags = if used {
                PACKED_F_AVAIL | PACKED_F_USED
            } else {
                0
            };
            ring.ram.store(ring.desc(i) + 14, flags);
        }
        ring
    }

    pub(crate) fn desc(&self, index: u16) -> u64 {
        self.config.desc + 16 * u64::from(index)
    }

    fn write(&self, at: u64, b: (u64, u32), id: u16) {
        self.ram.write(at, &b.0.to_le_bytes());
        self.ram.write(at + 8, &b.1.to_le_bytes());
        self.ram.write(at + 12, &id.to_le_bytes());
    }

    /// Bytes of buffers go into a table if there is one. The first flags are written last.
    pub(crate) fn offer(&mut self, bufs: &[Buf], table: Option<u64>, token: u64) -> bool {
        let size = self.config.size;
        let slots = if table.is_some() { 1 } else { bufs.len() };
        let in_flight = self.avail.0 - self.seen.0;
        if in_flight + slots as u64 > u64::from(size) {
            return false;
        }
        let write = |b: &Buf| if b.writable { DESC_F_WRITE } else { 0 };
        let id = self.ids.pop_front().expect("as many ids as descriptors");
        let mut list: Vec<((u64, u32), u16)> = Vec::new();
        match table {
            Some(table) => {
                for (i, b) in bufs.iter().enumerate() {
                    let at = table + 16 * i as u64;
                    self.write(at, (b.addr, b.len), 0x5555);
                    self.ram.write(at + 14, &write(b).to_le_bytes());
                }
                list.push(((table, 16 * bufs.len() as u32), DESC_F_INDIRECT));
            }
            None => list.extend(bufs.iter().enumerate().map(|(i, b)| {
                let next = if i + 1 < bufs.len() { DESC_F_NEXT } else { 0 };
                ((b.addr, b.len), write(b) | next)
            })),
        }
        for i in (0..list.len()).rev() {
            let at = At(self.avail.0 + i as u64);
            let desc = self.desc(at.index(size));
            self.write(desc, list[i].0, id);
            let avail = if at.wrap(size) {
                PACKED_F_AVAIL
            } else {
                PACKED_F_USED
            };
            self.ram.store(desc + 14, list[i].1 | avail);
        }
        self.avail.0 += slots as u64;
        self.chains.insert(id, (token, slots as u16));
        self.order.push_back(id);
        true
    }

    fn is_used(&self) -> bool {
        let size = self.config.size;
        let flags = self.ram.load(self.desc(self.seen.index(size)) + 14);
        let wrap = self.seen.wrap(size);
        (flags & PACKED_F_AVAIL != 0) == wrap && (flags & PACKED_F_USED != 0) == wrap
    }

    pub(crate) fn has_used(&self) -> bool {
        self.batch.is_some() || self.is_used()
    }

    pub(crate) fn used(&mut self) -> Option<Used> {
        if !self.has_used() {
            return None;
        }
        let (last, len) = match self.batch {
            Some(b) => b,
            None => {
                let at = self.desc(self.seen.index(self.config.size));
                let len = u32::from_le_bytes(self.ram.read(at + 8, 4).try_into().unwrap());
                let flags = self.ram.load(at + 14);
                assert_eq!(
                    flags & DESC_F_WRITE != 0,
                    len != 0,
                    "2.8.12: written, or not"
                );
                (self.ram.load(at + 12), len)
            }
        };
        let in_order = has(self.config.features, VIRTIO_F_IN_ORDER);
        let id = if in_order {
            self.order.pop_front().expect("a chain was offered")
        } else {
            self.order.retain(|i| *i != last);
            last
        };
        let (token, slots) = self.chains.remove(&id).expect("the chain was offered");
        self.ids.push_front(id);
        self.seen.0 += u64::from(slots);
        self.batch = (id != last).then_some((last, len));
        Some(Used {
            token,
            written: (id == last).then_some(len),
        })
    }

    pub(crate) fn must_kick(&mut self) -> bool {
        let size = self.config.size;
        let old = std::mem::replace(&mut self.kicked, self.avail);
        match self.ram.load(self.config.device + 2) {
            EVENT_FLAGS_ENABLE => true,
            EVENT_FLAGS_DISABLE => false,
            _ => {
                let event = self.ram.load(self.config.device);
                (old.0..self.avail.0).any(|at| At(at).off_wrap(size) == event)
            }
        }
    }

    pub(crate) fn arm(&mut self) {
        if has(self.config.features, VIRTIO_F_EVENT_IDX) {
            let event = self.seen.off_wrap(self.config.size);
            self.ram.store(self.config.driver, event);
            self.ram.store(self.config.driver + 2, EVENT_FLAGS_DESC);
        } else {
            self.ram.store(self.config.driver + 2, EVENT_FLAGS_ENABLE);
        }
    }

    pub(crate) fn disarm(&mut self) {
        self.ram.store(self.config.driver + 2, EVENT_FLAGS_DISABLE);
    }
}
