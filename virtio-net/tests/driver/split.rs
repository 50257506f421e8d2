//! The driver's side of a split virtqueue (virtio 1.3, 2.7).

use std::collections::{HashMap, VecDeque};

use tandem_virtio_net::ring::RingConfig;
use tandem_virtio_net::spec::*;

use super::{Buf, Indirect, Ram, Used, passed};

pub(crate) struct Split {
    pub(crate) ram: Ram,
    pub(crate) config: RingConfig,
    free: VecDeque<u16>,
    /// By head: token and all descriptors.
    chains: HashMap<u16, (u64, Vec<u16>)>,
    /// Heads in the order they were offered.
    order: VecDeque<u16>,
    pub(crate) avail: u16,
    kicked: u16,
    pub(crate) seen: u16,
    /// What is left of an in-order batch: heads, the last one.
    batch: Option<(u16, u32)>,
}

impl Split {
    pub(crate) fn new(ram: Ram, config: RingConfig, base: u16) -> Self {
        ram.store(config.driver + 2, base);
        ram.store(config.device + 2, base);
        let in_order = has(config.features, VIRTIO_F_IN_ORDER);
        // In order: the descriptors too (2.7.5.2). Else in no order at all.
        let start = if in_order {
            base & (config.size - 1)
        } else {
            0
        };
        let mut free: VecDeque<u16> = (0..config.size)
            .map(|i| (start + i) & (config.size - 1))
            .collect();
        if !in_order {
            free.make_contiguous().reverse();
            free.rotate_left(usize::from(config.size) / 3);
        }
        Self {
            ram,
            config,
            free,
            chains: HashMap::new(),
            order: VecDeque::new(),
            avail: base,
            kicked: base,
            seen: base,
            batch: None,
        }
    }

    fn event_idx(&self) -> bool {
        has(self.config.features, VIRTIO_F_EVENT_IDX)
    }

    /// A descriptor's bytes.
    pub(crate) fn desc_bytes(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
        let mut d = [0; 16];
        d[..8].copy_from_slice(&addr.to_le_bytes());
        d[8..12].copy_from_slice(&len.to_le_bytes());
        d[12..14].copy_from_slice(&flags.to_le_bytes());
        d[14..].copy_from_slice(&next.to_le_bytes());
        d
    }

    pub(crate) fn write_desc(&self, at: u64, buf: (u64, u32), flags: u16, next: u16) {
        self.ram.write(at, &buf.0.to_le_bytes());
        self.ram.write(at + 8, &buf.1.to_le_bytes());
        self.ram.write(at + 12, &flags.to_le_bytes());
        self.ram.write(at + 14, &next.to_le_bytes());
    }

    pub(crate) fn offer(&mut self, bufs: &[Buf], indirect: Option<Indirect>, token: u64) -> bool {
        let direct = indirect.map_or(bufs.len(), |i| i.direct);
        let need = direct + usize::from(indirect.is_some());
        if need > self.free.len() {
            return false;
        }
        let descs: Vec<u16> = self.free.drain(..need).collect();
        let write = |b: &Buf| if b.writable { DESC_F_WRITE } else { 0 };
        for (i, b) in bufs[..direct].iter().enumerate() {
            let next = descs.get(i + 1);
            let flags = write(b) | if next.is_some() { DESC_F_NEXT } else { 0 };
            let at = self.config.desc + 16 * u64::from(descs[i]);
            self.write_desc(at, (b.addr, b.len), flags, next.copied().unwrap_or(0x7777));
        }
        if let Some(Indirect { table, .. }) = indirect {
            let rest = &bufs[direct..];
            // Backwards, because the table may be in any order too.
            let n = rest.len() as u16;
            let place = |i: u16| if i == 0 { 0 } else { n - i };
            for (i, b) in rest.iter().enumerate() {
                let last = i + 1 == rest.len();
                let flags = write(b) | if last { 0 } else { DESC_F_NEXT };
                let (here, next) = (place(i as u16), place((i as u16 + 1) % n));
                self.write_desc(table + 16 * u64::from(here), (b.addr, b.len), flags, next);
            }
            let at = self.config.desc + 16 * u64::from(descs[direct]);
            self.write_desc(at, (table, 16 * rest.len() as u32), DESC_F_INDIRECT, 0);
        }
        let head = descs[0];
        self.chains.insert(head, (token, descs));
        self.order.push_back(head);
        self.put(head);
        true
    }

    /// Publishes one entry of the available ring.
    pub(crate) fn put(&mut self, head: u16) {
        let slot = u64::from(self.avail & (self.config.size - 1));
        self.ram.store(self.config.driver + 4 + 2 * slot, head);
        self.avail = self.avail.wrapping_add(1);
        self.ram.store(self.config.driver + 2, self.avail);
    }

    pub(crate) fn has_used(&self) -> bool {
        self.batch.is_some() || self.ram.load(self.config.device + 2) != self.seen
    }

    pub(crate) fn used(&mut self) -> Option<Used> {
        if !self.has_used() {
            return None;
        }
        let (last, len) = match self.batch {
            Some(b) => b,
            None => {
                let slot = u64::from(self.seen & (self.config.size - 1));
                let at = self.config.device + 4 + 8 * slot;
                let id = self.ram.load(at);
                assert_eq!(self.ram.load(at + 2), 0, "an id has 16 bits");
                let len = self.ram.read(at + 4, 4);
                (id, u32::from_le_bytes(len.try_into().unwrap()))
            }
        };
        let in_order = has(self.config.features, VIRTIO_F_IN_ORDER);
        let head = if in_order {
            self.order.pop_front().expect("a chain was offered")
        } else {
            self.order.retain(|h| *h != last);
            last
        };
        let (token, descs) = self.chains.remove(&head).expect("the chain was offered");
        if in_order {
            self.free.extend(descs);
        } else {
            descs.into_iter().for_each(|d| self.free.push_front(d));
        }
        self.seen = self.seen.wrapping_add(1);
        self.batch = (head != last).then_some((last, len));
        Some(Used {
            token,
            written: (head == last).then_some(len),
        })
    }

    pub(crate) fn must_kick(&mut self) -> bool {
        let old = std::mem::replace(&mut self.kicked, self.avail);
        if self.event_idx() {
            let event = self.config.device + 4 + 8 * u64::from(self.config.size);
            passed(self.ram.load(event), self.avail, old)
        } else {
            self.ram.load(self.config.device) & USED_F_NO_NOTIFY == 0
        }
    }

    /// The place of `used_event`.
    pub(crate) fn event_addr(&self) -> u64 {
        self.config.driver + 4 + 2 * u64::from(self.config.size)
    }

    pub(crate) fn arm(&mut self) {
        if self.event_idx() {
            self.ram.store(self.event_addr(), self.seen);
        } else {
            self.ram.store(self.config.driver, 0);
        }
    }

    pub(crate) fn disarm(&mut self) {
        if self.event_idx() {
            self.ram.store(self.event_addr(), self.seen.wrapping_sub(1));
        } else {
            self.ram.store(self.config.driver, AVAIL_F_NO_INTERRUPT);
        }
    }
}
