//! The bounded ring between the threads that carry frames and the one that writes a capture.
//!
//! ```text
//!             tail          head
//!              ▼             ▼
//!  entries  ───┬───┬───┬───┬──────      each the number of its record, once that is whole,
//!              │ 7 │ 8 │ 1 │            and its words; else that of a lap before
//!           ───┴─┬─┴─┬─┴─┬─┴──────
//!  words    ──┬──┴─┬─┴───┴───┬────
//!             │ ## │ ####### │ ##       ## being written: the reader waits here
//!           ──┴────┴─────────┴────
//! ```
//!
//! Writers of any number reserve an entry and words by moving `head`, fill the words, and last write the
//! entry. The reader takes records in that order and moves `tail`. Nobody waits for anybody: a writer that
//! finds no room loses its record.
//!
//! The words are atomics, stored and loaded as plain ones are: so two threads may share the memory
//! without `unsafe`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a word.
const WORD: usize = 8;
/// Words for each entry: as many as a short frame takes.
const WORDS_PER_ENTRY: usize = 16;

/// Records and words since the start, modulo 2^32 each.
#[derive(Clone, Copy)]
struct Place {
    records: u32,
    words: u32,
}

impl Place {
    fn pack(self) -> u64 {
        u64::from(self.records) << 32 | u64::from(self.words)
    }

    fn unpack(packed: u64) -> Self {
        Self {
            records: (packed >> 32) as u32,
            words: packed as u32,
        }
    }

    fn after(self, words: u32) -> Self {
        Self {
            records: self.records.wrapping_add(1),
            words: self.words.wrapping_add(words),
        }
    }

    /// From `earlier` to here.
    fn since(self, earlier: Self) -> (usize, usize) {
        (
            self.records.wrapping_sub(earlier.records) as usize,
            self.words.wrapping_sub(earlier.words) as usize,
        )
    }
}

/// Two lines: processors fetch lines in pairs.
#[repr(align(128))]
struct Line(AtomicU64);

/// The writers' end.
pub(super) struct Ring {
    words: Box<[AtomicU64]>,
    entries: Box<[AtomicU64]>,
    /// What was ever reserved.
    head: Line,
    /// What was ever read.
    tail: Line,
}

/// The reader's end.
pub(super) struct Reader(Arc<Ring>);

/// Room for one record, which counts as written when this is dropped.
pub(super) struct Room<'a> {
    ring: &'a Ring,
    place: Place,
    words: u32,
    /// Words written.
    done: usize,
}

impl Ring {
    /// A ring of at least `bytes`, all of them touched.
    pub(super) fn new(bytes: usize) -> (Arc<Self>, Reader) {
        let words = (bytes / WORD).next_power_of_two();
        let entries = (words / WORDS_PER_ENTRY).max(1) as u32;
        // As if there had been a lap before.
        let entry = |record: u32| AtomicU64::new(record.wrapping_sub(entries).into());
        let ring = Arc::new(Self {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            entries: (0..entries).map(entry).collect(),
            head: Line(AtomicU64::new(0)),
            tail: Line(AtomicU64::new(0)),
        });
        (Arc::clone(&ring), Reader(ring))
    }

    // Both numbers are powers of two, and stay so modulo 2^32.

    #[inline]
    fn entry(&self, place: Place) -> &AtomicU64 {
        &self.entries[place.records as usize & (self.entries.len() - 1)]
    }

    /// `n` words from word `from` of a record on: up to the end of the ring, and from its start.
    #[inline]
    fn words(&self, place: Place, from: usize, n: usize) -> (&[AtomicU64], &[AtomicU64]) {
        let start = (place.words as usize + from) & (self.words.len() - 1);
        let first = n.min(self.words.len() - start);
        (&self.words[start..start + first], &self.words[..n - first])
    }

    /// Room for a record of so many bytes.
    #[inline]
    pub(super) fn reserve(&self, bytes: usize) -> Option<Room<'_>> {
        let words = bytes.div_ceil(WORD);
        let mut head = self.head.0.load(Ordering::Relaxed);
        loop {
            let place = Place::unpack(head);
            // What is read there must have been read before it is written to.
            let tail = Place::unpack(self.tail.0.load(Ordering::Acquire));
            let (records, used) = place.since(tail);
            if records > self.entries.len() {
                // The tail has overtaken what we know of the head.
                head = self.head.0.load(Ordering::Relaxed);
                continue;
            }
            if records == self.entries.len() || used + words > self.words.len() {
                return None;
            }
            let next = place.after(words as u32).pack();
            let moved =
                self.head
                    .0
                    .compare_exchange_weak(head, next, Ordering::Relaxed, Ordering::Relaxed);
            match moved {
                Ok(_) => {
                    return Some(Room {
                        ring: self,
                        place,
                        words: words as u32,
                        done: 0,
                    });
                }
                Err(now) => head = now,
            }
        }
    }
}

impl Room<'_> {
    /// Adds bytes; all but the last call give a multiple of eight. What does not fit is left out.
    #[inline]
    pub(super) fn put(&mut self, bytes: &[u8]) {
        let (whole, rest) = bytes.as_chunks::<WORD>();
        let n = whole.len().min(self.words as usize - self.done);
        let (near, far) = self.ring.words(self.place, self.done, n);
        for (word, bytes) in near.iter().chain(far).zip(whole) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        self.done += n;
        if !rest.is_empty() {
            let mut last = [0; WORD];
            last[..rest.len()].copy_from_slice(rest);
            self.put(&last);
        }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let entry = u64::from(self.words) << 32 | u64::from(self.place.records);
        self.ring.entry(self.place).store(entry, Ordering::Release);
    }
}

impl Reader {
    /// Takes the next record into `record`; false if there is none that is whole.
    pub(super) fn take(&mut self, record: &mut Vec<u64>) -> bool {
        let ring = &*self.0;
        let place = Place::unpack(ring.tail.0.load(Ordering::Relaxed));
        let entry = ring.entry(place).load(Ordering::Acquire);
        if entry as u32 != place.records {
            return false;
        }
        let words = (entry >> 32) as u32;
        let (near, far) = ring.words(place, 0, words as usize);
        record.clear();
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        record.extend(near.iter().map(load));
        record.extend(far.iter().map(load));
        let next = place.after(words).pack();
        ring.tail.0.store(next, Ordering::Release);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(record: &[u64]) -> Vec<u8> {
        record.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn records_come_out_as_they_went_in() {
        let (ring, mut reader) = Ring::new(256);
        assert_eq!(ring.entries.len(), 2);
        let mut record = Vec::new();
        for n in 0..1000usize {
            let sent: Vec<u8> = (0..n % 100).map(|i| (i + n) as u8).collect();
            let mut room = ring.reserve(sent.len()).expect("room");
            let (front, back) = sent.split_at(sent.len() / 2 / 8 * 8);
            room.put(front);
            room.put(back);
            assert!(!reader.take(&mut record), "not before it is whole");
            drop(room);
            assert!(reader.take(&mut record));
            assert_eq!(bytes(&record)[..sent.len()], sent);
        }
        assert!(!reader.take(&mut record));
    }

    #[test]
    fn a_full_ring_takes_nothing_and_loses_nothing() {
        let (ring, mut reader) = Ring::new(512);
        assert!(ring.reserve(513).is_none());
        let mut record = Vec::new();
        for round in 0..100 {
            for n in 0..4 {
                ring.reserve(8)
                    .expect("room")
                    .put(&u64::to_le_bytes(round * 4 + n));
            }
            assert!(ring.reserve(0).is_none());
            for n in 0..4 {
                assert!(reader.take(&mut record));
                assert_eq!(record, [round * 4 + n]);
            }
        }
    }

    #[test]
    fn writers_do_not_mix_their_records() {
        const EACH: u64 = 20_000;
        let (ring, mut reader) = Ring::new(4096);
        let mut lost = 0;
        let mut next = [0; 3];
        std::thread::scope(|s| {
            let writers: Vec<_> = (0..3u64)
                .map(|who| {
                    let ring = Arc::clone(&ring);
                    s.spawn(move || {
                        (0..EACH)
                            .filter(|n| {
                                let words = 2 + (n % 7) as usize;
                                let room = ring.reserve(8 * words);
                                room.map(|mut room| {
                                    (0..words)
                                        .for_each(|_| room.put(&(who << 32 | n).to_le_bytes()));
                                })
                                .is_none()
                            })
                            .count()
                    })
                })
                .collect();
            let mut record = Vec::new();
            loop {
                let ended = writers.iter().all(|w| w.is_finished());
                if reader.take(&mut record) {
                    let (who, n) = ((record[0] >> 32) as usize, record[0] & 0xffff_ffff);
                    assert!(record.iter().all(|word| *word == record[0]));
                    assert_eq!(record.len() as u64, 2 + n % 7);
                    assert!(n >= next[who], "in the order of each writer");
                    next[who] = n + 1;
                    lost -= 1;
                } else if ended {
                    break;
                }
            }
            for writer in writers {
                lost += EACH as i64 - writer.join().expect("a writer") as i64;
            }
        });
        assert_eq!(lost, 0);
    }
}
