//! A stream that goes on until its client has enough: both halves are whole chunks, and the server's
//! last byte says that it got the client's right.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{CHUNK, GOOD, Pattern, SILENCE, first_difference};

/// In the place of a length. Behind the seed stands the rate, in bytes a second.
pub(super) const LENGTH: u64 = u64::MAX;

/// Sends the complement of the client's pattern until the client shuts down its half, and then, if
/// every byte of that was right, [`GOOD`].
pub(super) fn serve(mut stream: &TcpStream, seed: u64) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut rate = [0; 8];
    stream.read_exact(&mut rate)?;
    let enough = Arc::new(AtomicBool::new(false));
    let sender = Sender {
        stream: stream.try_clone()?,
        rate: u64::from_le_bytes(rate),
        enough: Arc::clone(&enough),
    };
    let sender = std::thread::spawn(move || sender.run(!seed));
    let received = check_chunks(stream, seed, &[], |_| {});
    if received.is_err() {
        let _ = stream.shutdown(Shutdown::Both);
    }
    enough.store(true, Ordering::Release);
    let sent = sender.join();
    received?;
    sent.unwrap_or_else(|_| Err(io::Error::other("the sender panicked")))?;
    stream.write_all(&[GOOD])?;
    stream.shutdown(Shutdown::Write)
}

/// Sends whole chunks of a pattern until that is enough.
struct Sender {
    stream: TcpStream,
    /// Bytes a second.
    rate: u64,
    enough: Arc<AtomicBool>,
}

impl Sender {
    fn run(mut self, seed: u64) -> io::Result<()> {
        let (mut pattern, mut chunk) = (Pattern::new(seed), vec![0; CHUNK]);
        let step = Duration::from_secs_f64(CHUNK as f64 / self.rate.max(1) as f64);
        let mut due = Instant::now();
        while !self.enough.load(Ordering::Acquire) {
            pattern.fill(&mut chunk);
            self.stream.write_all(&chunk)?;
            due += step;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }
}

/// Checks chunks of a pattern until the peer shuts down its half, and that `end` comes before that.
/// Tells `each` their number after each of them.
fn check_chunks(
    stream: &TcpStream,
    seed: u64,
    end: &[u8],
    mut each: impl FnMut(u64),
) -> io::Result<()> {
    let (mut pattern, mut expected) = (Pattern::new(seed), vec![0; CHUNK]);
    let mut got = Vec::with_capacity(CHUNK);
    for number in 0.. {
        got.clear();
        stream.take(CHUNK as u64).read_to_end(&mut got)?;
        if got.len() < CHUNK {
            let why = || io::Error::other(format!("ends after {number} chunks with {got:?}"));
            return if got == end { Ok(()) } else { Err(why()) };
        }
        pattern.fill(&mut expected);
        if let Some(at) = first_difference(&got, &expected) {
            let at = number * CHUNK as u64 + at as u64;
            return Err(io::Error::other(format!("wrong byte at {at}")));
        }
        each(number + 1);
    }
    Ok(())
}

/// A stream both ways at once to a server, at a steady rate, for as long as it is wanted.
#[derive(Debug)]
pub struct OpenStream {
    stream: TcpStream,
    enough: Arc<AtomicBool>,
    progress: Arc<Progress>,
    sender: JoinHandle<io::Result<()>>,
    receiver: JoinHandle<io::Result<()>>,
}

/// Chunks that have come back and were right.
#[derive(Debug, Default)]
struct Progress {
    chunks: Mutex<u64>,
    more: Condvar,
}

impl OpenStream {
    /// Begins one over a new connection to a server, with `rate` bytes a second each way.
    pub fn begin(mut stream: TcpStream, rate: u64, seed: u64) -> io::Result<Self> {
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        let header = [LENGTH, seed, rate].map(u64::to_le_bytes).concat();
        stream.write_all(&header)?;
        let enough = Arc::new(AtomicBool::new(false));
        let progress = Arc::new(Progress::default());
        let sending = Sender {
            stream: stream.try_clone()?,
            rate,
            enough: Arc::clone(&enough),
        };
        let half = stream.try_clone()?;
        let sender = std::thread::spawn(move || {
            sending.run(seed)?;
            half.shutdown(Shutdown::Write)
        });
        let (receiving, told) = (stream.try_clone()?, Arc::clone(&progress));
        let receiver = std::thread::spawn(move || {
            check_chunks(&receiving, !seed, &[GOOD], |chunks| told.set(chunks))
        });
        Ok(Self {
            stream,
            enough,
            progress,
            sender,
            receiver,
        })
    }

    /// Bytes that have come back and were right.
    pub fn received(&self) -> u64 {
        self.progress.get() * CHUNK as u64
    }

    /// Waits until `bytes` more have come.
    pub fn wait_more(&self, bytes: u64, limit: Duration) -> io::Result<()> {
        let chunks = self.progress.get() + bytes.div_ceil(CHUNK as u64);
        let came = self.progress.wait(chunks, limit);
        let what = format!("{bytes} bytes more did not come within {limit:?}");
        came.then_some(()).ok_or_else(|| io::Error::other(what))
    }

    /// Ends it; an error unless both ends got every byte right.
    pub fn end(self) -> io::Result<u64> {
        self.enough.store(true, Ordering::Release);
        let panicked = |_| Err(io::Error::other("a thread of the stream panicked"));
        let received = self.receiver.join().unwrap_or_else(panicked);
        if received.is_err() {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        let sent = self.sender.join().unwrap_or_else(panicked);
        received.and(sent)?;
        Ok(self.progress.get() * CHUNK as u64)
    }
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self) -> u64 {
        *self.lock()
    }

    fn set(&self, chunks: u64) {
        *self.lock() = chunks;
        self.more.notify_all();
    }

    fn wait(&self, chunks: u64, limit: Duration) -> bool {
        let waited = self
            .more
            .wait_timeout_while(self.lock(), limit, |now| *now < chunks);
        waited.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    #[test]
    fn an_open_stream_ends_when_it_is_told_to() {
        let (connection, theirs) = connected();
        let server = std::thread::spawn(move || super::super::serve_stream(theirs));
        let stream = OpenStream::begin(connection, 100 << 20, 7).unwrap();
        stream.wait_more(300_000, SILENCE).unwrap();
        assert!(stream.end().unwrap() >= 300_000);
        server.join().unwrap().unwrap();
    }

    #[test]
    fn a_wrong_byte_of_an_open_stream_is_named_at_either_end() {
        let (ours, theirs) = connected();
        // The server takes it for another pattern.
        let server = std::thread::spawn(move || {
            let mut header = [0; 16];
            (&theirs).read_exact(&mut header)?;
            serve(&theirs, 8)
        });
        let stream = OpenStream::begin(ours, 100 << 20, 7).unwrap();
        let error = server.join().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "wrong byte at 0");
        assert!(stream.wait_more(1 << 20, Duration::from_millis(1)).is_err());
        stream.end().unwrap_err();
    }
}
