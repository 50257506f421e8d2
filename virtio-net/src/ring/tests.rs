//! What only shows between two steps of a burst.

#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::*;
use crate::memory::{DirtyLog, Region};
use crate::spec::*;

const SIZE: u16 = 4;
const DESC: u64 = 0;
const DRIVER: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const PAGES: usize = 4;

/// Guest memory at address zero, as words, and its dirty log.
struct Guest {
    words: Arc<Vec<AtomicU64>>,
    log: Arc<AtomicU8>,
    memory: Memory,
}

impl Guest {
    fn new() -> Self {
        let words: Vec<AtomicU64> = (0..PAGES * 512).map(|_| AtomicU64::new(0)).collect();
        let words = Arc::new(words);
        let log = Arc::new(AtomicU8::new(0));
        let host = words.as_ptr().cast_mut().cast::<u8>();
        // SAFETY: the words live as long as the memory's `keep`.
        let region = unsafe { Region::new(0, 4096 * PAGES as u64, host) }.backed_by(7);
        let keep = Arc::clone(&words);
        let mut memory = Memory::new(vec![region], Arc::default(), keep).unwrap();
        // SAFETY: the one byte lives as long as the log's `keep`.
        memory.set_log(Some(unsafe {
            DirtyLog::new(log.as_ptr(), 1, Arc::clone(&log) as Arc<_>)
        }));
        Self { words, log, memory }
    }

    fn bytes(&self, addr: u64) -> [u8; 8] {
        self.words[addr as usize / 8]
            .load(Ordering::Relaxed)
            .to_le_bytes()
    }

    fn u16(&self, addr: u64) -> u16 {
        let at = addr as usize % 8;
        let b = self.bytes(addr);
        u16::from_le_bytes([b[at], b[at + 1]])
    }

    fn set_u16(&self, addr: u64, v: u16) {
        let mut b = self.bytes(addr);
        b[addr as usize % 8..][..2].copy_from_slice(&v.to_le_bytes());
        self.words[addr as usize / 8].store(u64::from_le_bytes(b), Ordering::Relaxed);
    }

    /// Pages marked since last asked.
    fn marked(&self) -> u8 {
        self.log.swap(0, Ordering::Relaxed)
    }

    fn config(features: u64) -> RingConfig {
        RingConfig {
            size: SIZE,
            desc: DESC,
            driver: DRIVER,
            device: DEVICE,
            features,
        }
    }

    /// A packed descriptor made available in the first lap.
    fn packed(&self, index: u16, id: u16, flags: u16) {
        let at = DESC + 16 * u64::from(index);
        self.set_u16(at + 12, id);
        self.set_u16(at + 14, flags | PACKED_F_AVAIL);
    }

    fn packed_ring(&self, features: u64) -> PackedRing {
        PackedRing::start(&Self::config(features), &self.memory, 0x8000).unwrap()
    }

    fn split_ring(&self, features: u64) -> SplitRing {
        SplitRing::start(&Self::config(features), &self.memory).unwrap()
    }
}

const USED: u16 = PACKED_F_AVAIL | PACKED_F_USED;

#[test]
fn a_packed_burst_is_seen_only_when_its_first_descriptor_is() {
    let g = Guest::new();
    let mut ring = g.packed_ring(0);
    (0..3).for_each(|i| g.packed(i, 10 + i, DESC_F_WRITE));
    for i in 0..3 {
        let taken = ring.take(&g.memory, |_, _, _| {}).unwrap().unwrap();
        assert_eq!((taken.id, taken.slots), (10 + i, 1));
        ring.use_one(&g.memory, taken, 7);
    }
    for i in 0..3 {
        assert_eq!(g.u16(16 * i + 14), DESC_F_WRITE | PACKED_F_AVAIL, "not yet");
    }
    g.marked();
    ring.publish(&g.memory);
    assert_eq!(g.u16(14), DESC_F_WRITE | USED);
    // The log may have been read in between.
    assert_eq!(g.marked(), 1);
    ring.publish(&g.memory);
    assert_eq!(g.marked(), 0, "nothing was staged");
}

#[test]
fn a_split_burst_is_seen_only_when_the_index_is() {
    let g = Guest::new();
    let mut ring = g.split_ring(0);
    g.set_u16(DRIVER + 4, 3);
    g.set_u16(DRIVER + 6, 1);
    g.set_u16(DRIVER + 2, 2);
    assert!(ring.poll().unwrap());
    for id in [3, 1] {
        let taken = ring.take(&g.memory, |_, _, _| {}).unwrap().unwrap();
        assert_eq!(taken.id, id);
        ring.use_one(&g.memory, taken, 9);
    }
    assert!(ring.take(&g.memory, |_, _, _| {}).unwrap().is_none());
    assert_eq!(g.u16(DEVICE + 2), 0, "not yet");
    g.marked();
    ring.publish(&g.memory);
    assert_eq!((g.u16(DEVICE + 2), g.marked()), (2, 1 << 2));
    assert_eq!(g.bytes(DEVICE + 8)[4..], [1, 0, 0, 0], "the second entry");
}

#[test]
fn an_in_order_batch_has_one_used_entry() {
    let taken: Vec<Taken> = [(5, 1), (6, 2), (8, 1)]
        .map(|(id, slots)| Taken { id, slots })
        .to_vec();
    let g = Guest::new();
    let mut ring = g.packed_ring(1 << VIRTIO_F_IN_ORDER);
    ring.use_all(&g.memory, &taken[..2]);
    ring.publish(&g.memory);
    assert_eq!((g.u16(12), g.u16(14)), (6, USED));
    assert_eq!((g.u16(16 + 14), g.u16(32 + 14)), (0, 0), "skipped");
    assert_eq!(ring.base(), 0x8003);
    ring.use_all(&g.memory, &taken[2..]);
    ring.publish(&g.memory);
    assert_eq!((g.u16(48 + 12), ring.base()), (8, 0));

    let g = Guest::new();
    let mut ring = g.split_ring(1 << VIRTIO_F_IN_ORDER);
    ring.use_all(&g.memory, &taken);
    ring.publish(&g.memory);
    assert_eq!((g.u16(DEVICE + 4), g.u16(DEVICE + 2)), (8, 3));
    assert_eq!(g.bytes(DEVICE + 8), [0; 8], "skipped");
}

#[test]
fn what_is_rewound_is_taken_again() {
    let g = Guest::new();
    let mut ring = g.packed_ring(0);
    (0..4).for_each(|i| g.packed(i, i, if i == 2 { DESC_F_NEXT } else { 0 }));
    let ids = |ring: &mut PackedRing| {
        let mut ids = Vec::new();
        while let Some(t) = ring.take(&g.memory, |_, _, _| {}).unwrap() {
            ids.push((t.id, t.slots));
        }
        ids
    };
    let start = ring.mark();
    assert_eq!(ids(&mut ring), [(0, 1), (1, 1), (3, 2)]);
    ring.rewind(start);
    assert_eq!(ids(&mut ring), [(0, 1), (1, 1), (3, 2)]);
    assert_eq!(ring.base(), 0x8000, "nothing was used");
}

#[test]
fn chains_that_break_the_rules_are_refused() {
    let g = Guest::new();
    let take = |ring: &mut SplitRing| ring.take(&g.memory, |_, _, _| {}).unwrap_err();
    // A loop of one.
    g.set_u16(12, DESC_F_NEXT);
    g.set_u16(DRIVER + 2, 1);
    let mut ring = g.split_ring(0);
    assert!(ring.poll().unwrap());
    assert_eq!(take(&mut ring), RingError::ChainTooLong);
    // On to a descriptor there is not, then from one.
    g.set_u16(14, SIZE);
    assert_eq!(take(&mut ring), RingError::DescriptorIndex(SIZE));
    g.set_u16(DRIVER + 4, 0xffff);
    assert_eq!(take(&mut ring), RingError::DescriptorIndex(0xffff));
    g.set_u16(DRIVER + 4, 0);
    // Tables: empty, cut, with a chain behind, nested, elsewhere.
    let bad = |addr: u16, len: u16, flags: u16, ring: &mut SplitRing| {
        g.set_u16(0, addr);
        g.set_u16(8, len);
        g.set_u16(12, flags | DESC_F_INDIRECT);
        assert_eq!(take(ring), RingError::IndirectTable(addr.into()));
    };
    bad(0x3000, 0, 0, &mut ring);
    bad(0x3000, 24, 0, &mut ring);
    bad(0x3000, 16, DESC_F_NEXT, &mut ring);
    bad(0x3ff8, 16, 0, &mut ring);
    g.set_u16(0x300c, DESC_F_INDIRECT);
    bad(0x3000, 16, 0, &mut ring);
    g.set_u16(DRIVER + 2, SIZE + 1);
    assert!(matches!(ring.poll(), Err(RingError::AvailIndex { .. })));
    // Packed: every descriptor says there is another.
    let g = Guest::new();
    (0..SIZE).for_each(|i| g.packed(i, 0, DESC_F_NEXT));
    let mut ring = g.packed_ring(0);
    let e = ring.take(&g.memory, |_, _, _| {}).unwrap_err();
    assert_eq!(e, RingError::ChainTooLong);
}

#[test]
fn every_wish_for_kicks_is_marked() {
    for event in [0, 1 << VIRTIO_F_EVENT_IDX] {
        let g = Guest::new();
        let mut split = g.split_ring(event);
        split.set_kicks(&g.memory, true);
        // Without the feature nothing changes: a new ring asks for kicks.
        assert_eq!(g.marked(), if event == 0 { 0 } else { 1 << 2 });
        split.set_kicks(&g.memory, false);
        assert_eq!(g.marked(), if event == 0 { 1 << 2 } else { 0 });
        let mut packed = g.packed_ring(event);
        for on in [true, false] {
            packed.set_kicks(&g.memory, on);
            assert_eq!(g.marked(), 1 << 2);
        }
    }
}

/// A record that outlives the rings that use it.
fn record() -> Arc<Vec<AtomicU64>> {
    Arc::new((0..JOURNAL_BYTES / 8).map(|_| AtomicU64::new(0)).collect())
}

fn journal(record: &Arc<Vec<AtomicU64>>) -> Journal {
    let words = record.as_ptr().cast_mut().cast::<u8>();
    // SAFETY: the record has JOURNAL_BYTES and lives as long as `keep`; rings use it in turn.
    unsafe { Journal::new(words, Arc::clone(record) as Arc<_>) }
}

/// The ring as it is started after a crash: the VMM repeats where it once was.
fn restarted(g: &Guest, record: &Arc<Vec<AtomicU64>>) -> PackedRing {
    let mut ring = g.packed_ring(0);
    ring.keep_position(&g.memory, journal(record));
    ring
}

/// Uses `n` chains of the ring.
fn use_some(g: &Guest, ring: &mut PackedRing, n: u16) {
    for _ in 0..n {
        let taken = ring.take(&g.memory, |_, _, _| {}).unwrap().unwrap();
        ring.use_one(&g.memory, taken, 9);
    }
}

#[test]
fn a_packed_ring_goes_on_where_it_was_left_without_a_word() {
    let (g, record) = (Guest::new(), record());
    let mut ring = restarted(&g, &record);
    assert_eq!(ring.base(), 0x8000, "nothing is known yet");
    (0..4).for_each(|i| g.packed(i, i, DESC_F_WRITE));
    use_some(&g, &mut ring, 3);
    ring.publish(&g.memory);
    drop(ring);
    let mut ring = restarted(&g, &record);
    assert_eq!(ring.base(), 0x8003);
    use_some(&g, &mut ring, 1);
    ring.publish(&g.memory);
    assert_eq!(restarted(&g, &record).base(), 0, "a lap later");
}

#[test]
fn a_burst_that_was_cut_off_is_finished() {
    for written in 0..3 {
        let (g, record) = (Guest::new(), record());
        let mut ring = restarted(&g, &record);
        (0..4).for_each(|i| g.packed(i, i, DESC_F_WRITE));
        use_some(&g, &mut ring, 3);
        let (staged, next) = (ring.staged.clone(), ring.base());
        journal(&record).begin(&staged, next);
        // The process dies when it has written this many of all but the first.
        staged[1..].iter().take(written).for_each(|e| {
            ring.write_id(&g.memory, e);
            ring.write_flags(&g.memory, e);
        });
        drop(ring);
        let ring = restarted(&g, &record);
        assert_eq!(ring.base(), 0x8003);
        for i in 0..3 {
            assert_eq!(g.u16(16 * i + 14), DESC_F_WRITE | USED, "{written}: {i}");
            assert_eq!(g.bytes(16 * i + 8)[..6], [9, 0, 0, 0, i as u8, 0]);
        }
    }
}

#[test]
fn what_the_driver_has_taken_up_is_not_written_again() {
    let (g, record) = (Guest::new(), record());
    let mut ring = restarted(&g, &record);
    (0..2).for_each(|i| g.packed(i, i, DESC_F_WRITE));
    use_some(&g, &mut ring, 2);
    let (staged, next) = (ring.staged.clone(), ring.base());
    journal(&record).begin(&staged, next);
    ring.write_all(&g.memory, &staged);
    drop(ring); // it dies before the journal is told
    let later = DESC_F_WRITE | PACKED_F_USED; // available in the second lap
    g.set_u16(16 + 12, 77);
    g.set_u16(16 + 14, later);
    assert_eq!(restarted(&g, &record).base(), 0x8002);
    assert_eq!((g.u16(16 + 12), g.u16(16 + 14)), (77, later));
}

#[test]
fn a_journal_of_another_ring_says_nothing() {
    let (g, record) = (Guest::new(), record());
    let mut ring = restarted(&g, &record);
    (0..3).for_each(|i| g.packed(i, i, DESC_F_WRITE));
    use_some(&g, &mut ring, 2);
    ring.publish(&g.memory);
    drop(ring);
    let fresh = Guest::new();
    assert_eq!(
        restarted(&fresh, &record).base(),
        0x8000,
        "made anew, empty"
    );

    let record = self::record();
    let mut ring = restarted(&g, &record);
    use_some(&g, &mut ring, 0);
    let (g, mut ring) = (Guest::new(), ring);
    (0..3).for_each(|i| g.packed(i, i, DESC_F_WRITE));
    ring.remap(&Guest::config(0), &g.memory).unwrap();
    use_some(&g, &mut ring, 2);
    ring.publish(&g.memory);
    journal(&record).clear();
    drop(ring);
    assert_eq!(
        restarted(&g, &record).base(),
        0x8000,
        "stopped in good order"
    );
}
