//! ICMP echo requests to a VM at a steady rate from a packet socket, and a log of what became of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use crate::lab::Namespace;
use crate::uplink::Socket;

/// From one request to the next.
pub const INTERVAL: Duration = Duration::from_millis(10);
/// An answer that takes longer is none.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes behind the ICMP header: the request's number.
const PAYLOAD: usize = 4;

/// A station with an address.
#[derive(Clone, Copy, Debug)]
pub struct Station {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its IPv4 address.
    pub ip: [u8; 4],
}

/// Time since 1970, as packet sockets and QEMU's events have it.
pub fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// An echo request or reply between two stations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Of which prober.
    pub id: u16,
    /// Its number.
    pub number: u32,
    /// It is the answer.
    pub reply: bool,
}

impl Echo {
    /// The echo in an Ethernet frame, if it is one of a prober's.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let (Some(NetSlice::Ipv4(_)), Some(TransportSlice::Icmpv4(icmp))) =
            (packet.net, packet.transport)
        else {
            return None;
        };
        // RFC 792: 8 is a request, 0 the reply; then code, checksum, identifier, sequence number.
        let reply = match icmp.type_u8() {
            8 => false,
            0 => true,
            _ => return None,
        };
        let [id_high, id_low, _, _] = icmp.bytes5to8();
        let number = icmp.payload().get(..PAYLOAD)?;
        Some(Self {
            id: u16::from_be_bytes([id_high, id_low]),
            number: u32::from_be_bytes(number.try_into().ok()?),
            reply,
        })
    }

    /// The request as a frame.
    fn request(&self, from: Station, to: Station) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(from.mac, to.mac)
            .ipv4(from.ip, to.ip, 64)
            .icmpv4_echo_request(self.id, self.number as u16)
            .write(&mut frame, &self.number.to_be_bytes())
            .expect("fits");
        frame
    }
}

/// A running prober.
#[derive(Debug)]
pub struct Prober {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Log>>>,
}

impl Prober {
    /// Asks `to` from now on, from a device of a namespace, whose address and MAC address are `from`.
    pub fn start(namespace: &Namespace, device: &str, [from, to]: [Station; 2]) -> Result<Self> {
        // The answers to one that was here before are not this one's.
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let socket = Socket::open(namespace, device)?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let probes = Vec::new();
            let log = Log { id, probes };
            let mut probing = Probing { socket, log };
            probing.run(from, to, &told)?;
            Ok(probing.log)
        });
        let thread = Some(thread);
        Ok(Self { stop, thread })
    }

    /// Stops asking; the log, once all are answered or overdue.
    pub fn stop(mut self) -> Result<Log> {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take().context("stopped before")?;
        thread.join().ok().context("the prober panicked")?
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

struct Probing {
    socket: Socket,
    log: Log,
}

impl Probing {
    fn run(&mut self, from: Station, to: Station, stop: &AtomicBool) -> Result<()> {
        let begun = Instant::now();
        while !stop.load(Ordering::Acquire) {
            let number = self.log.probes.len() as u32;
            self.listen_until(begun + INTERVAL * number, |_| false)?;
            let echo = Echo {
                id: self.log.id,
                number,
                reply: false,
            };
            let frame = echo.request(from, to);
            let sent = now();
            self.socket.send(&frame)?;
            self.log.probes.push(Probe {
                number,
                sent,
                answers: Vec::new(),
            });
        }
        // What is older is lost.
        let complete = |log: &Log| {
            let mut young = (log.probes.iter().rev()).take_while(|p| p.sent + TIMEOUT > now());
            young.all(|probe| !probe.answers.is_empty())
        };
        self.listen_until(Instant::now() + TIMEOUT, complete)
    }

    /// Takes answers until `end`, or the log is as wanted.
    fn listen_until(&mut self, end: Instant, enough: impl Fn(&Log) -> bool) -> Result<()> {
        while !enough(&self.log) {
            let left = end.saturating_duration_since(Instant::now());
            let Some(heard) = self.socket.recv(left)? else {
                break;
            };
            let echo =
                Echo::parse(&heard.frame).filter(|echo| echo.reply && echo.id == self.log.id);
            let Some(echo) = echo else { continue };
            let probe = self.log.probes.get_mut(echo.number as usize);
            let probe = probe.with_context(|| format!("an answer to {echo:?}, never asked"))?;
            probe.answers.push(heard.at);
        }
        Ok(())
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Its number, from 0 on.
    pub number: u32,
    /// When it was sent, since 1970.
    pub sent: Duration,
    /// When answers came.
    pub answers: Vec<Duration>,
}

impl Probe {
    /// When it was answered, if that was in time.
    pub fn answered(&self) -> Option<Duration> {
        let first = self.answers.first().copied();
        first.filter(|at| *at <= self.sent + TIMEOUT)
    }
}

/// What became of all requests.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// The identifier of its requests.
    pub id: u16,
    /// In the order they were sent.
    pub probes: Vec<Probe>,
}

/// A time without an answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gap {
    /// When it began.
    pub from: Duration,
    /// When it ended.
    pub to: Duration,
}

impl Gap {
    /// How long.
    pub fn length(&self) -> Duration {
        self.to.saturating_sub(self.from)
    }
}

impl Log {
    /// Requests without an answer in time.
    pub fn lost(&self) -> impl Iterator<Item = &Probe> {
        self.probes
            .iter()
            .filter(|probe| probe.answered().is_none())
    }

    /// Answers that came once more.
    pub fn duplicates(&self) -> usize {
        let more = |probe: &Probe| probe.answers.len().saturating_sub(1);
        self.probes.iter().map(more).sum()
    }

    /// Answers that came after one to a later request.
    pub fn reordered(&self) -> usize {
        let mut answers: Vec<_> = self
            .probes
            .iter()
            .filter_map(|probe| Some((probe.answered()?, probe.number)))
            .collect();
        answers.sort();
        let late = |pair: &&[(Duration, u32)]| pair[1].1 < pair[0].1;
        answers.windows(2).filter(late).count()
    }

    /// The longest time without an answer: between two, before the first, or after the last.
    pub fn longest_gap(&self) -> Gap {
        let mut times: Vec<_> = self.probes.iter().filter_map(Probe::answered).collect();
        times.extend(self.probes.first().map(|probe| probe.sent));
        let end = self
            .probes
            .last()
            .filter(|probe| probe.answered().is_none());
        times.extend(end.map(|probe| probe.sent));
        times.sort();
        let between = |pair: &[Duration]| Gap {
            from: pair[0],
            to: pair[1],
        };
        let gaps = times.windows(2).map(between);
        gaps.max_by_key(Gap::length).unwrap_or_default()
    }

    /// The longest time from a request to its answer.
    pub fn slowest(&self) -> Duration {
        let taken = |probe: &Probe| Some(probe.answered()?.saturating_sub(probe.sent));
        self.probes
            .iter()
            .filter_map(taken)
            .max()
            .unwrap_or_default()
    }

    /// An error unless the last requests were answered.
    pub fn check_alive(&self) -> Result<()> {
        let last = self.probes.len().saturating_sub(20);
        let answered = self.probes[last..].iter().filter_map(Probe::answered);
        ensure!(answered.count() > 0, "the VM does not answer any more");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(answers: &[(u64, &[u64])]) -> Log {
        let probe = |(number, (sent, answers)): (usize, &(u64, &[u64]))| Probe {
            number: number as u32,
            sent: Duration::from_millis(*sent),
            answers: answers
                .iter()
                .map(|ms| Duration::from_millis(*ms))
                .collect(),
        };
        Log {
            id: 1,
            probes: answers.iter().enumerate().map(probe).collect(),
        }
    }

    #[test]
    fn a_log_is_counted() {
        let log = log(&[
            (0, &[1]),
            (10, &[]),
            (20, &[2021]),
            (30, &[150, 151]),
            (40, &[140]),
            (50, &[160]),
        ]);
        let lost: Vec<u32> = log.lost().map(|probe| probe.number).collect();
        assert_eq!(lost, [1, 2], "the answer to 2 is too late");
        assert_eq!((log.duplicates(), log.reordered()), (1, 1));
        assert_eq!(log.longest_gap().length(), Duration::from_millis(139));
        assert_eq!(log.slowest(), Duration::from_millis(120));
        let ends = self::log(&[(0, &[1]), (10, &[]), (20, &[]), (300, &[])]);
        assert_eq!(ends.longest_gap().length(), Duration::from_millis(299));
    }

    #[test]
    fn a_request_is_read_back() {
        let station = |n| Station {
            mac: [2, 0, 0, 0, 0, n],
            ip: [10, 0, 0, n],
        };
        let echo = Echo {
            id: 7,
            number: 70_000,
            reply: false,
        };
        let frame = echo.request(station(1), station(2));
        assert_eq!(Echo::parse(&frame), Some(echo));
        assert_eq!(Echo::parse(&frame[..40]), None);
    }
}
