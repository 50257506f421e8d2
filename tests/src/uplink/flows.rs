//! Numbered frames of many flows, and what became of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etherparse::PacketBuilder;

use super::socket::{Heard, Socket};

/// Begins the payload of each frame.
const MAGIC: &[u8; 8] = b"numbered";
/// Where it stands: behind Ethernet, IPv4 and UDP.
const MAGIC_AT: usize = 14 + 20 + 8;
const FLOW_AT: usize = MAGIC_AT + 8;
const NUMBER_AT: usize = FLOW_AT + 2;
const LEN: usize = NUMBER_AT + 4;
/// How often frames are sent.
pub const TURN: Duration = Duration::from_millis(1);
/// Most frames of one turn.
const BURST: usize = 32;
/// Silence after which an ear that is to stop hears nothing more.
const SILENCE: Duration = Duration::from_millis(150);

/// The station that flow `flow` leads to or comes from.
pub fn station(flow: u16) -> [u8; 6] {
    let [high, low] = flow.to_be_bytes();
    [0x02, 0, 0, 1, high, low]
}

/// Frames of flows that differ in stations, addresses and ports, sent in turn at a fixed rate.
pub struct Flows {
    templates: Vec<Vec<u8>>,
    /// When each frame of each flow was sent.
    sent: Vec<Vec<Instant>>,
    /// Whose turn it is.
    turn: usize,
    rate: u32,
    /// Frames since [`Flows::begin`], and when that was.
    count: u64,
    begun: Instant,
}

impl Flows {
    /// `count` flows with `rate` frames a second in all, from one station each to another.
    pub fn from_one(mac: [u8; 6], count: u16, rate: u32) -> Self {
        Self::new(count, rate, |flow| (mac, station(flow)))
    }

    /// The same the other way round.
    pub fn to_one(mac: [u8; 6], count: u16, rate: u32) -> Self {
        Self::new(count, rate, |flow| (station(flow), mac))
    }

    fn new(count: u16, rate: u32, macs: impl Fn(u16) -> ([u8; 6], [u8; 6])) -> Self {
        let template = |flow: u16| {
            let (src, dst) = macs(flow);
            frame(src, dst, flow)
        };
        Self {
            templates: (0..count).map(template).collect(),
            sent: vec![Vec::new(); count.into()],
            turn: 0,
            rate,
            count: 0,
            begun: Instant::now(),
        }
    }

    /// The rate counts from now.
    pub fn begin(&mut self) {
        (self.count, self.begun) = (0, Instant::now());
    }

    /// The frames that are due.
    pub fn due(&mut self) -> Vec<Vec<u8>> {
        let now = Instant::now();
        let wanted = (now - self.begun).as_secs_f64() * f64::from(self.rate);
        let due = (wanted as u64).saturating_sub(self.count);
        (0..due.min(BURST as u64)).map(|_| self.next(now)).collect()
    }

    /// One frame of each flow.
    pub fn one_each(&mut self) -> Vec<Vec<u8>> {
        let now = Instant::now();
        (0..self.templates.len()).map(|_| self.next(now)).collect()
    }

    /// The next `n` frames of one flow.
    pub fn burst(&mut self, flow: usize, n: usize) -> Vec<Vec<u8>> {
        let now = Instant::now();
        (0..n).map(|_| self.next_of(flow, now)).collect()
    }

    fn next(&mut self, now: Instant) -> Vec<u8> {
        let flow = self.turn;
        self.turn = (flow + 1) % self.templates.len();
        self.count += 1;
        self.next_of(flow, now)
    }

    fn next_of(&mut self, flow: usize, now: Instant) -> Vec<u8> {
        let mut frame = self.templates[flow].clone();
        let number = self.sent[flow].len() as u32;
        frame[NUMBER_AT..LEN].copy_from_slice(&number.to_be_bytes());
        self.sent[flow].push(now);
        frame
    }

    /// Frames sent so far.
    pub fn sent(&self) -> usize {
        self.sent.iter().map(Vec::len).sum()
    }
}

fn frame(src: [u8; 6], dst: [u8; 6], flow: u16) -> Vec<u8> {
    let address = |mac: [u8; 6]| [10, mac[3], mac[4], mac[5]];
    let mut payload = MAGIC.to_vec();
    payload.extend(flow.to_be_bytes());
    payload.extend([0; 4]);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(src, dst)
        .ipv4(address(src), address(dst), 64)
        .udp(10_000 + flow, 20_000)
        .write(&mut frame, &payload)
        .expect("fits");
    // The number changes: without a checksum (RFC 768).
    frame[40..42].copy_from_slice(&[0, 0]);
    frame
}

/// A frame of a flow that came in.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// When; see [`Heard::at`].
    pub at: Duration,
    /// By which member, or to which port.
    pub by: usize,
    /// Of which flow.
    pub flow: u16,
    /// Its number in the flow.
    pub number: u32,
}

/// The flow and the number of a frame, if it is one of these.
pub fn parse(frame: &[u8]) -> Option<(u16, u32)> {
    if frame.get(MAGIC_AT..FLOW_AT)? != MAGIC {
        return None;
    }
    let flow = u16::from_be_bytes(frame.get(FLOW_AT..NUMBER_AT)?.try_into().ok()?);
    let number = u32::from_be_bytes(frame.get(NUMBER_AT..LEN)?.try_into().ok()?);
    Some((flow, number))
}

impl Arrival {
    /// Of a frame heard by `by`; none: it is no frame of a flow.
    pub fn of(heard: &Heard, by: usize) -> Option<Self> {
        let (flow, number) = parse(&heard.frame)?;
        Some(Self {
            at: heard.at,
            by,
            flow,
            number,
        })
    }
}

/// Threads that listen at sockets.
#[derive(Default)]
pub struct Ears {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Vec<Arrival>>>>,
}

impl Ears {
    /// Listens at each of these, which are members 0, 1 and so on.
    pub fn new(sockets: impl IntoIterator<Item = Socket>) -> Self {
        let mut ears = Self::default();
        for (by, socket) in sockets.into_iter().enumerate() {
            ears.add(by, socket);
        }
        ears
    }

    /// Listens at one more, which is member `by`.
    pub fn add(&mut self, by: usize, socket: Socket) {
        let stop = Arc::clone(&self.stop);
        let thread = std::thread::spawn(move || listen(socket, by, &stop));
        self.threads.push(thread);
    }

    /// All that was heard, once it is silent.
    pub fn stop(mut self) -> Result<Vec<Arrival>> {
        self.stop.store(true, Ordering::Release);
        let mut all = Vec::new();
        for thread in self.threads.drain(..) {
            let heard = thread.join().ok().context("an ear panicked")?;
            all.extend(heard?);
        }
        Ok(all)
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn listen(mut socket: Socket, by: usize, stop: &AtomicBool) -> Result<Vec<Arrival>> {
    let mut arrivals = Vec::new();
    loop {
        match socket.recv(SILENCE)? {
            Some(heard) => arrivals.extend(Arrival::of(&heard, by)),
            None if stop.load(Ordering::Acquire) => return Ok(arrivals),
            None => {}
        }
    }
}

/// What became of the frames of one flow.
#[derive(Clone, Debug, Default)]
pub struct Fate {
    /// In the order they came.
    pub arrivals: Vec<Arrival>,
    /// When those were sent that did not come.
    pub lost: Vec<Instant>,
    /// Frames that came once more.
    pub duplicates: usize,
    /// Frames that came after one sent later.
    pub reordered: usize,
}

impl Fate {
    /// The members that its frames came by.
    pub fn members(&self) -> BTreeSet<usize> {
        self.arrivals.iter().map(|arrival| arrival.by).collect()
    }

    /// The member of its first frame.
    pub fn home(&self) -> Option<usize> {
        self.arrivals.first().map(|arrival| arrival.by)
    }
}

/// What became of the frames of all flows.
#[derive(Clone, Debug)]
pub struct Outcome(pub Vec<Fate>);

impl Outcome {
    /// Compares what was sent with what came.
    pub fn of(flows: &Flows, mut arrivals: Vec<Arrival>) -> Self {
        arrivals.sort_by_key(|arrival| arrival.at);
        let mut fates = vec![Fate::default(); flows.sent.len()];
        for arrival in arrivals {
            fates[usize::from(arrival.flow)].arrivals.push(arrival);
        }
        for (fate, sent) in fates.iter_mut().zip(&flows.sent) {
            let (mut seen, mut next) = (BTreeSet::new(), 0);
            for arrival in &fate.arrivals {
                fate.duplicates += usize::from(!seen.insert(arrival.number));
                fate.reordered += usize::from(arrival.number < next);
                next = next.max(arrival.number);
            }
            let missing = |(number, _): &(usize, &Instant)| !seen.contains(&(*number as u32));
            let lost = sent.iter().enumerate().filter(missing);
            fate.lost = lost.map(|(_, at)| *at).collect();
        }
        Self(fates)
    }

    /// The flows whose first frame came by member `by`.
    pub fn at_home(&self, by: usize) -> Self {
        let mine = self.0.iter().filter(|fate| fate.home() == Some(by));
        Self(mine.cloned().collect())
    }

    /// Frames lost that were sent from `from` to `to`.
    pub fn lost_between(&self, from: Instant, to: Instant) -> usize {
        let all = self.0.iter().flat_map(|fate| &fate.lost);
        all.filter(|at| (from..to).contains(at)).count()
    }

    /// Frames lost.
    pub fn lost(&self) -> usize {
        self.0.iter().map(|fate| fate.lost.len()).sum()
    }

    /// From when the first lost frame was sent to when the last was, and a turn more.
    pub fn loss_time(&self) -> Duration {
        let lost = || self.0.iter().flat_map(|fate| &fate.lost).copied();
        match (lost().min(), lost().max()) {
            (Some(first), Some(last)) => last - first + TURN,
            _ => Duration::ZERO,
        }
    }

    /// Frames that came more than once.
    pub fn duplicates(&self) -> usize {
        self.0.iter().map(|fate| fate.duplicates).sum()
    }

    /// Frames that came after one of their flow sent later.
    pub fn reordered(&self) -> usize {
        self.0.iter().map(|fate| fate.reordered).sum()
    }

    /// Frames that came by member `by`.
    pub fn came_by(&self, by: usize) -> usize {
        let arrivals = self.0.iter().flat_map(|fate| &fate.arrivals);
        arrivals.filter(|arrival| arrival.by == by).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_frames() {
        let mut flows = Flows::from_one([2; 6], 2, 1);
        let frames: Vec<_> = (0..4).flat_map(|_| flows.one_each()).collect();
        let arrival = |at: u64, i: usize| Arrival {
            at: Duration::from_millis(at),
            by: i % 2,
            flow: parse(&frames[i]).unwrap().0,
            number: parse(&frames[i]).unwrap().1,
        };
        // Flow 0 has frames 0, 2, 4, 6; flow 1 the others.
        let came = vec![
            arrival(0, 0),
            arrival(3, 2),
            arrival(2, 4),
            arrival(1, 1),
            arrival(2, 1),
            arrival(4, 3),
            arrival(5, 5),
            arrival(6, 7),
        ];
        let outcome = Outcome::of(&flows, came);
        let counted: Vec<_> = (outcome.0.iter())
            .map(|f| (f.lost.len(), f.duplicates, f.reordered, f.home()))
            .collect();
        assert_eq!(counted, [(1, 0, 1, Some(0)), (0, 1, 0, Some(1))]);
        assert_eq!((outcome.came_by(0), outcome.came_by(1)), (3, 5));
        assert_eq!(outcome.at_home(1).duplicates(), 1);
        assert_eq!(outcome.loss_time(), TURN);
        assert_eq!(outcome.at_home(1).loss_time(), Duration::ZERO);
        assert_eq!(parse(&frames[0][..50]), None);
    }
}
