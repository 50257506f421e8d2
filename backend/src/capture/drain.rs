//! The thread that turns what a capture has copied into pcapng.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyper::body::Bytes;
use log::debug;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::pcapng::{self, Statistics};
use super::record::Head;
use super::ring::Reader;
use super::seen::Capture;

/// Bytes given on at once; more only by the last frame.
const CHUNK: usize = 128 << 10;
/// Chunks that wait for whoever reads.
const WAITING: usize = 4;
/// How often a quiet port is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// How often what was counted is written, if it has changed.
const COUNT: Duration = Duration::from_secs(1);
/// The lowest priority: frames go first (setpriority(2)).
const NICE: i32 = 19;

/// Reads a capture's ring.
pub(super) struct Drain {
    capture: Arc<Capture>,
    reader: Reader,
    left: Option<u64>,
    started: Duration,
    counted: Instant,
    /// Frames received when they were written last.
    received: u64,
    chunk: Vec<u8>,
    record: Vec<u64>,
}

fn now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
}

impl Drain {
    /// `count` frames are written, or all; first `header`.
    pub(super) fn new(
        capture: Arc<Capture>,
        reader: Reader,
        count: Option<u64>,
        header: Vec<u8>,
    ) -> Self {
        Self {
            capture,
            reader,
            left: count,
            started: now(),
            counted: Instant::now(),
            received: 0,
            chunk: header,
            record: Vec::new(),
        }
    }

    /// Starts the thread. It lets go of `guard` at its end, before what it gives here ends.
    pub(super) fn start(
        self,
        port: &str,
        guard: impl Send + 'static,
    ) -> io::Result<Receiver<Bytes>> {
        let (sender, receiver) = channel(WAITING);
        let name: String = port.chars().take(7).chain(" capture".chars()).collect();
        std::thread::Builder::new().name(name).spawn(move || {
            if let Err(e) = rustix::process::nice(NICE) {
                debug!("the capture's priority cannot be set: {e}");
            }
            self.run(&sender);
            drop(guard);
        })?;
        Ok(receiver)
    }

    fn run(mut self, to: &Sender<Bytes>) {
        loop {
            // First this: what is in the ring by then is all there is.
            let ended = self.capture.ended.load(Ordering::Acquire);
            let empty = self.fill_chunk();
            let ended = self.left == Some(0) || (ended && empty);
            if ended || (empty && self.counted.elapsed() >= COUNT) {
                self.count(ended);
            }
            if !self.chunk.is_empty() && !self.send(to) || to.is_closed() || ended {
                return;
            }
            if empty {
                std::thread::sleep(LOOK);
            }
        }
    }

    /// Writes frames until the chunk is full, or there are no more: true.
    fn fill_chunk(&mut self) -> bool {
        while self.chunk.len() < CHUNK && self.left != Some(0) {
            if !self.reader.take(&mut self.record) {
                return true;
            }
            if let Some((head, bytes)) = Head::read(&self.record) {
                pcapng::packet(&mut self.chunk, &head, bytes);
            }
            self.left = self.left.map(|left| left - 1);
        }
        false
    }

    fn count(&mut self, always: bool) {
        self.counted = Instant::now();
        let counted = &self.capture.counted;
        let received = counted.received.load(Ordering::Relaxed);
        if received != self.received || always {
            self.received = received;
            let statistics = Statistics {
                start: self.started,
                end: now(),
                received,
                accepted: counted.accepted.load(Ordering::Relaxed),
                dropped: counted.lost.load(Ordering::Relaxed),
            };
            pcapng::statistics(&mut self.chunk, &statistics);
        }
    }

    /// Waits for whoever reads; false: nobody does any more.
    fn send(&mut self, to: &Sender<Bytes>) -> bool {
        let next = Vec::with_capacity(self.chunk.len());
        let chunk = std::mem::replace(&mut self.chunk, next);
        to.blocking_send(chunk.into()).is_ok()
    }
}
