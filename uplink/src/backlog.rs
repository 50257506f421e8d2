//! What waits: for a device that has no room at the moment, or for a VM that is on its way.
//!
//! Frames are copied here by whoever sends them, so that a guest's ring is free for its other frames. The memory is shared by all ports: one may
//! take as much as it leaves free (dynamic thresholds, Choudhury and Hahne 1998), so that a single one
//! has half of it and there is always room for another. The ports take turns by bytes (deficit round
//! robin, Shreedhar and Varghese 1995), in each of two traffic classes: frames of priority 4 and above
//! (IEEE 802.1Q, table 8-5: with two classes) come first, and of eight frames one is of the others.
//!
//! ```text
//!  queues  [3, low]   head ─► chunk ─► chunk ─► chunk ◄─ tail    a frame starts a chunk of its own:
//!          [8, high]  head ─► chunk ◄─ tail                      length 4 · vnet header 12 · frame
//!  free    ──► chunk ─► chunk ─► …
//!  turns   low: 3     high: 8
//! ```

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tandem_virtio_net::spec::NET_HDR_LEN;
use tandem_virtio_net::wire::vlan::Tci;
use tandem_virtio_net::{BURST, Batch, DropReason};

use crate::switch::MAX_PORTS;

/// Bytes of a chunk: of a usual frame none is wasted much.
const CHUNK: usize = 512;
/// Chunks of a backlog: 4 MiB, of which memory is taken as far as they are used.
const CHUNKS: usize = 8192;
/// Bytes in front of a frame: its length.
const LENGTH: usize = 4;
/// Bytes that a port may send in a turn.
const QUANTUM: u32 = 16 * 1024;
/// Traffic classes: low and high.
const CLASSES: usize = 2;
/// Of so many frames one is of the low class, if any is.
const LOW_SHARE: u32 = 8;
/// The least priority of the high class.
const HIGH_PRIORITY: u8 = 4;
/// No chunk.
const NONE: u16 = u16::MAX;
const _: () = assert!(CHUNKS < NONE as usize && LENGTH + NET_HDR_LEN < CHUNK);

/// Frames of all ports that wait for one device.
pub struct Backlog {
    waiting: AtomicBool,
    /// Frames with priority do not go first.
    in_order: bool,
    queues: Mutex<Queues>,
}

impl Default for Backlog {
    fn default() -> Self {
        Self::new()
    }
}

struct Queues {
    bytes: Vec<u8>,
    /// The chunk behind each.
    next: Vec<u16>,
    free: u16,
    free_chunks: u16,
    /// Of each port, by class.
    ports: Vec<[Queue; CLASSES]>,
    /// The ports with frames of each class, in the order of their turns.
    turns: [VecDeque<u16>; CLASSES],
    /// Frames taken, to tell whose turn it is.
    taken: u32,
}

/// The frames of one port and class. All zero: none, and it has never had any.
#[derive(Clone, Copy, Default)]
struct Queue {
    /// Meaningless without chunks.
    head: u16,
    tail: u16,
    chunks: u16,
    /// Bytes it may send before the next has its turn.
    deficit: u32,
}

impl Backlog {
    /// One without frames.
    pub fn new() -> Self {
        let queues = Queues {
            bytes: vec![0; CHUNKS * CHUNK],
            next: (1..=CHUNKS as u16).collect(),
            free: 0,
            free_chunks: CHUNKS as u16,
            ports: vec![[Queue::default(); CLASSES]; MAX_PORTS],
            turns: [const { VecDeque::new() }; CLASSES].map(|mut turns: VecDeque<u16>| {
                turns.reserve(MAX_PORTS);
                turns
            }),
            taken: 0,
        };
        Self {
            waiting: AtomicBool::new(false),
            in_order: false,
            queues: Mutex::new(queues),
        }
    }

    /// The same whose frames keep their order, whatever their priority.
    pub fn in_order() -> Self {
        Self {
            in_order: true,
            ..Self::new()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Are there frames? Then those that come have to wait behind them.
    #[inline]
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// Lets frames of a port wait; how many found no room, which are dropped. True if there were none
    /// before: the device's thread is to be told.
    pub fn push(&self, batch: &mut Batch, frames: &[u8], port: u16) -> (u64, bool) {
        let mut queues = self.lock();
        let mut dropped = 0;
        for &i in frames {
            if !queues.push(batch, i.into(), port, self.in_order) {
                batch.set_end(i.into(), DropReason::UplinkFull);
                dropped += 1;
            }
        }
        let waits = queues.turns.iter().any(|turns| !turns.is_empty());
        let first = waits && !self.waiting.swap(true, Ordering::AcqRel);
        (dropped, first)
    }

    /// Moves frames of one port into `batch`, which is empty and has own bytes, and names it as their
    /// source; none: nothing waits any more, and those that come need not.
    pub fn pull(&self, batch: &mut Batch) {
        let mut queues = self.lock();
        while batch.len() < BURST && queues.pull(batch) {}
        if batch.is_empty() {
            self.waiting.store(false, Ordering::Release);
        }
    }
}

impl Queues {
    fn push(&mut self, batch: &Batch, i: usize, port: u16, in_order: bool) -> bool {
        let len = NET_HDR_LEN + batch.frame_len(i);
        let chunks = (LENGTH + len).div_ceil(CHUNK) as u16;
        let is_high = |tci| !in_order && Tci(tci).pcp() >= HIGH_PRIORITY;
        let class = usize::from(batch.tag(i).is_some_and(is_high));
        let Some(queues) = self.ports.get(usize::from(port)) else {
            return false;
        };
        let mut queue = queues[class];
        let has: u16 = queues.iter().map(|queue| queue.chunks).sum();
        if has + chunks > self.free_chunks - chunks.min(self.free_chunks) {
            return false;
        }
        let mut at = 0;
        for n in 0..chunks {
            let chunk = self.free;
            self.free = self.next[usize::from(chunk)];
            self.next[usize::from(chunk)] = NONE;
            let room = usize::from(chunk) * CHUNK;
            let mut room = &mut self.bytes[room..room + CHUNK];
            if n == 0 {
                let (front, rest) = room.split_at_mut(LENGTH + NET_HDR_LEN);
                front[..LENGTH].copy_from_slice(&(len as u32).to_ne_bytes());
                front[LENGTH..].copy_from_slice(&batch.hdr(i).to_bytes());
                room = rest;
            }
            at += batch.read_at(i, at, room);
            match queue.chunks + n {
                0 => queue.head = chunk,
                _ => self.next[usize::from(queue.tail)] = chunk,
            }
            queue.tail = chunk;
        }
        if queue.chunks == 0 {
            queue.deficit = QUANTUM;
            self.turns[class].push_back(port);
        }
        queue.chunks += chunks;
        self.free_chunks -= chunks;
        self.ports[usize::from(port)][class] = queue;
        true
    }

    /// Moves one frame; false if there is none, or no room for it.
    fn pull(&mut self, batch: &mut Batch) -> bool {
        let low_first = self.taken % LOW_SHARE == LOW_SHARE - 1;
        let order = if low_first { [0, 1] } else { [1, 0] };
        let front = |class: usize| self.turns[class].front().map(|port| (class, *port));
        let Some((class, port)) = order.into_iter().find_map(front) else {
            return false;
        };
        let mut queue = self.ports[usize::from(port)][class];
        let start = usize::from(queue.head) * CHUNK;
        let length = self.bytes[start..start + LENGTH]
            .try_into()
            .unwrap_or_default();
        let len = u32::from_ne_bytes(length);
        if queue.deficit < len {
            // The next has its turn; this one is a quantum nearer to its own.
            queue.deficit += QUANTUM;
            self.ports[usize::from(port)][class] = queue;
            self.turns[class].rotate_left(1);
            return true;
        }
        if !batch.is_empty() && batch.source() != port {
            return false;
        }
        batch.set_source(port);
        let Some(room) = batch.own_room().filter(|room| room.len() >= len as usize) else {
            return false;
        };
        let (mut at, mut skip) = (0, LENGTH);
        let chunks = (LENGTH + len as usize).div_ceil(CHUNK) as u16;
        for _ in 0..chunks {
            let chunk = usize::from(queue.head);
            let n = (CHUNK - skip).min(len as usize - at);
            let from = chunk * CHUNK + skip;
            room[at..at + n].copy_from_slice(&self.bytes[from..from + n]);
            (at, skip) = (at + n, 0);
            queue.head = self.next[chunk];
            self.next[chunk] = self.free;
            self.free = chunk as u16;
        }
        // It was a frame before, and is one now.
        let _ = batch.push_own(len as usize);
        queue.chunks -= chunks;
        queue.deficit -= len;
        self.free_chunks += chunks;
        if queue.chunks == 0 {
            self.turns[class].pop_front();
        }
        self.ports[usize::from(port)][class] = queue;
        self.taken = self.taken.wrapping_add(1);
        true
    }
}

#[cfg(test)]
mod tests {
    use tandem_virtio_net::spec::NetHdr;

    use super::*;

    fn frame(port: u8, number: u32, len: usize) -> Vec<u8> {
        let mut frame = vec![number as u8; len];
        frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, port]);
        frame[12..14].copy_from_slice(&[0x88, 0xb5]);
        frame[14..18].copy_from_slice(&number.to_be_bytes());
        frame
    }

    fn batch_of(frames: &[Vec<u8>]) -> Batch {
        let mut batch = Batch::with_own_bytes(1 << 18);
        for frame in frames {
            batch.push_frame(NetHdr::default(), frame).unwrap();
        }
        batch
    }

    fn push(backlog: &Backlog, port: u8, frame: Vec<u8>) -> bool {
        backlog.push(&mut batch_of(&[frame]), &[0], port.into()).0 == 0
    }

    /// All that waits, in the order it goes out: port and number.
    fn drain(backlog: &Backlog) -> Vec<(u8, Vec<u8>)> {
        let mut out = Vec::new();
        let mut batch = Batch::with_own_bytes(1 << 20);
        loop {
            backlog.pull(&mut batch);
            if batch.is_empty() {
                return out;
            }
            for i in 0..batch.len() {
                let mut bytes = vec![0; batch.frame_len(i)];
                batch.linearize(i, &mut bytes);
                out.push((bytes[11], bytes));
            }
            batch.clear();
        }
    }

    #[test]
    fn frames_of_all_sizes_come_out_as_they_were_in_their_order() {
        let backlog = Backlog::new();
        let mut sent = Vec::new();
        for (number, len) in [18, 60, 495, 496, 497, 1007, 1008, 1514, 9014, 65_549, 64]
            .into_iter()
            .enumerate()
        {
            sent.push(frame(1, number as u32, len));
        }
        let mut batch = batch_of(&sent);
        let hdr = NetHdr {
            flags: 1,
            csum_start: 34,
            csum_offset: 16,
            ..NetHdr::default()
        };
        batch.set_hdr(3, hdr);
        let all: Vec<u8> = (0..sent.len() as u8).collect();
        assert_eq!(backlog.push(&mut batch, &all, 1), (0, true));
        assert_eq!(backlog.push(&mut batch, &all, 1), (0, false));
        assert!(backlog.is_waiting());
        let mut first = Batch::with_own_bytes(1 << 20);
        backlog.pull(&mut first);
        assert_eq!(first.hdr(3), hdr);
        first.clear();
        let twice: Vec<Vec<u8>> = drain(&backlog)
            .into_iter()
            .map(|(_, bytes)| bytes)
            .collect();
        assert!(sent.ends_with(&twice) || [sent.clone(), sent].concat().ends_with(&twice));
        assert!(!backlog.is_waiting());
    }

    #[test]
    fn one_port_leaves_room_for_another_and_all_of_it_comes_back() {
        let backlog = Backlog::new();
        let fill = |port: u8| {
            let mut n = 0;
            while n < 100_000 && push(&backlog, port, frame(port, n, 1000)) {
                n += 1;
            }
            n
        };
        for _ in 0..3 {
            let (greedy, other, third) = (fill(1), fill(2), fill(3));
            assert_eq!(greedy, CHUNKS as u32 / 4);
            assert!(
                other >= greedy / 3 && third >= greedy / 6,
                "{other} {third}"
            );
            let out = drain(&backlog);
            assert_eq!(out.len() as u32, greedy + other + third);
            let mine = out.iter().filter(|(port, _)| *port == 2);
            let numbers: Vec<u32> = mine
                .map(|(_, f)| u32::from_be_bytes(f[14..18].try_into().unwrap()))
                .collect();
            assert!(numbers.is_sorted());
        }
    }

    #[test]
    fn what_has_priority_goes_first_and_leaves_a_share_to_the_rest() {
        let backlog = Backlog::new();
        let send = |priority: u8, number: u32| {
            let mut batch = batch_of(&[frame(1, number, 100)]);
            batch.set_tag(0, Some(Tci::new(priority, false, 7).0));
            assert_eq!(backlog.push(&mut batch, &[0], 1).0, 0);
        };
        (0..700).for_each(|n| send(3, n));
        (0..700).for_each(|n| send(4, n));
        let out = drain(&backlog);
        let high = |f: &[u8]| f[14] >> 5 == 4;
        let first = out[..800].iter().filter(|(_, f)| high(f)).count();
        assert_eq!((out.len(), first), (1400, 700));
        for class in [true, false] {
            let numbers = out.iter().filter(|(_, f)| high(f) == class);
            let numbers = numbers.map(|(_, f)| u32::from_be_bytes(f[18..22].try_into().unwrap()));
            assert!(numbers.collect::<Vec<_>>().is_sorted());
        }
    }

    #[test]
    fn ports_take_turns_by_bytes() {
        let backlog = Backlog::new();
        for n in 0..1000 {
            assert!(push(&backlog, 1, frame(1, n, 1500)));
        }
        for n in 0..2000 {
            assert!(push(&backlog, 2, frame(2, n, 100)));
        }
        let out = drain(&backlog);
        let bytes = |port: u8| {
            let first = out.iter().take(1500).filter(|(p, _)| *p == port);
            first.map(|(_, f)| f.len()).sum::<usize>() as f64
        };
        let ratio = bytes(1) / bytes(2);
        assert!((0.7..1.4).contains(&ratio), "{ratio}");
    }
}
