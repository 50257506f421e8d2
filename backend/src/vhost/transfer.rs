//! The device's state on its way through a VMM's pipe (vhost-user specification, "Migrating
//! back-end state").
//!
//! A VMM gives one end of a pipe and writes or reads the other. Whether it does is its own business:
//! a thread of the transfer's waits for it, for some seconds and not longer, and ends at once when the
//! session does. O_NONBLOCK helps only as far as the VMM leaves it alone, because it shares the
//! open file; so a thread that is stuck all the same is interrupted by a signal.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::io::ioctl_fionbio;
use rustix::thread::{Pid, gettid};
use tandem_migration::state::MAX_LEN;
use thiserror::Error;

use crate::sys;

/// How often a thread that does not end is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// What a pipe that has room takes without blocking (PIPE_BUF, pipe(7)).
const PIECE: usize = 4096;

/// Why a state has not travelled.
#[derive(Debug, Error)]
pub(super) enum TransferError {
    #[error("the VMM gave a descriptor for it that is no pipe or socket, or the wrong end of one")]
    Descriptor,
    #[error("the VMM has not transferred it within {0:?}")]
    TooSlow(Duration),
    #[error("the VMM sent more than {MAX_LEN} bytes, the most that a state has")]
    TooLong,
    #[error("the session ended before")]
    Cancelled,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Which way.
pub(super) enum Direction {
    /// These bytes, to the VMM.
    Save(Vec<u8>),
    /// From the VMM.
    Load,
}

/// What has been read, in a load.
type Outcome = Result<Vec<u8>, TransferError>;

/// A state on its way. Dropping it ends that.
pub(super) struct Transfer {
    /// It was a load.
    pub(super) is_load: bool,
    shared: Arc<Shared>,
    outcome: Mutex<Receiver<Outcome>>,
    end: Instant,
}

struct Shared {
    cancelled: AtomicBool,
    /// An eventfd that tells the thread so.
    wake: OwnedFd,
    thread: OnceLock<Pid>,
}

impl Transfer {
    /// Starts one that may take up to `limit`. `file` is the VMM's; `name` is that of the thread.
    ///
    /// # Errors
    /// The descriptor is of another kind, or the system does not let us have what it takes.
    pub(super) fn start(
        name: String,
        direction: Direction,
        file: File,
        limit: Duration,
    ) -> Result<Self, TransferError> {
        // A file could be on a file system that stalls whoever reads it.
        let kind = fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let other_end = match direction {
            Direction::Save(_) => OFlags::RDONLY,
            Direction::Load => OFlags::WRONLY,
        };
        let is_other = fcntl_getfl(&file).is_ok_and(|flags| flags & OFlags::RWMODE == other_end);
        if !matches!(kind, Ok(FileType::Fifo | FileType::Socket)) || is_other {
            return Err(TransferError::Descriptor);
        }
        ioctl_fionbio(&file, true).map_err(io::Error::from)?;
        sys::install_interrupt()?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let shared = Arc::new(Shared {
            cancelled: AtomicBool::new(false),
            wake: eventfd(0, flags).map_err(io::Error::from)?,
            thread: OnceLock::new(),
        });
        let (sender, outcome) = channel();
        let transfer = Self {
            is_load: matches!(direction, Direction::Load),
            shared: Arc::clone(&shared),
            outcome: Mutex::new(outcome),
            end: Instant::now() + limit,
        };
        let work = Work {
            shared,
            file,
            limit,
            end: transfer.end,
        };
        std::thread::Builder::new()
            .name(name)
            .spawn(move || work.run(direction, &sender))?;
        Ok(transfer)
    }

    /// Ends it, from any thread.
    pub(super) fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Relaxed);
        let _ = rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes());
    }

    /// Waits for its end, which comes by the time limit; a second time there is nothing any more.
    pub(super) fn wait(&self) -> Outcome {
        let outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match outcome.recv_timeout(LOOK) {
                Ok(outcome) => return outcome,
                Err(RecvTimeoutError::Disconnected) => return Err(TransferError::Cancelled),
                Err(RecvTimeoutError::Timeout) => self.free(),
            }
        }
    }

    /// Interrupts a thread that should have ended.
    fn free(&self) {
        let late = self.shared.cancelled.load(Ordering::Relaxed) || self.end < Instant::now();
        if let Some(thread) = self.shared.thread.get().filter(|_| late) {
            sys::interrupt(*thread);
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.cancel();
        let _ = self.wait();
    }
}

/// What the thread has.
struct Work {
    shared: Arc<Shared>,
    file: File,
    limit: Duration,
    end: Instant,
}

impl Work {
    fn run(mut self, direction: Direction, outcome: &Sender<Outcome>) {
        let _ = self.shared.thread.set(gettid());
        let result = match direction {
            Direction::Save(state) => self.save(&state).map(|()| Vec::new()),
            Direction::Load => self.load(),
        };
        let _ = outcome.send(result);
        // With that the VMM reads the end of a state that is saved.
        drop(self.file);
    }

    fn save(&mut self, state: &[u8]) -> Result<(), TransferError> {
        let mut left = state;
        while !left.is_empty() {
            self.wait(PollFlags::OUT)?;
            match self.file.write(&left[..left.len().min(PIECE)]) {
                Ok(n) => left = &left[n..],
                Err(e) => again(e)?,
            }
        }
        Ok(())
    }

    fn load(&mut self) -> Outcome {
        let (mut state, mut piece) = (Vec::new(), [0; PIECE]);
        loop {
            self.wait(PollFlags::IN)?;
            match self.file.read(&mut piece) {
                Ok(0) => return Ok(state),
                Ok(n) if state.len() + n > MAX_LEN => return Err(TransferError::TooLong),
                Ok(n) => state.extend_from_slice(&piece[..n]),
                Err(e) => again(e)?,
            }
        }
    }

    /// Waits until the VMM has done its part.
    fn wait(&self, wanted: PollFlags) -> Result<(), TransferError> {
        loop {
            let left = self.end.saturating_duration_since(Instant::now());
            if self.shared.cancelled.load(Ordering::Relaxed) {
                return Err(TransferError::Cancelled);
            }
            if left.is_zero() {
                return Err(TransferError::TooSlow(self.limit));
            }
            let mut fds = [
                PollFd::new(&self.file, wanted),
                PollFd::new(&self.shared.wake, PollFlags::IN),
            ];
            let time = Timespec::try_from(left).ok();
            match poll(&mut fds, time.as_ref()) {
                Ok(_) if !fds[0].revents().is_empty() => return Ok(()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(io::Error::from(e).into()),
            }
        }
    }
}

/// An error after which it goes on.
fn again(e: io::Error) -> Result<(), TransferError> {
    match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(()),
        _ => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(50);

    fn start(direction: Direction, fd: OwnedFd, limit: Duration) -> Transfer {
        Transfer::start("state".into(), direction, fd.into(), limit).unwrap()
    }

    fn ends() -> (OwnedFd, OwnedFd) {
        let (reads, writes) = io::pipe().unwrap();
        (reads.into(), writes.into())
    }

    #[test]
    fn bytes_travel_both_ways_and_end() {
        let state: Vec<u8> = (0..MAX_LEN).map(|i| (i / 7) as u8).collect();
        let (reads, writes) = ends();
        let save = start(Direction::Save(state.clone()), writes, LONG);
        let mut read = Vec::new();
        File::from(reads).read_to_end(&mut read).unwrap();
        assert!(read == state && save.wait().is_ok());
        let (reads, writes) = ends();
        let load = start(Direction::Load, reads, LONG);
        File::from(writes).write_all(&state).unwrap();
        assert!(load.is_load && load.wait().unwrap() == state);
        assert!(load.wait().is_err(), "there is one outcome");
        // Sockets are as good.
        let (ours, theirs) = UnixStream::pair().unwrap();
        let load = start(Direction::Load, ours.into(), LONG);
        (&theirs).write_all(b"state").unwrap();
        drop(theirs);
        assert_eq!(load.wait().unwrap(), b"state");
    }

    #[test]
    fn a_vmm_that_does_nothing_is_waited_for_so_long() {
        let (reads, writes) = ends();
        let load = start(Direction::Load, reads, SHORT);
        assert!(matches!(load.wait(), Err(TransferError::TooSlow(_))));
        drop(writes);
        let (_reads, writes) = ends();
        let save = start(Direction::Save(vec![0; MAX_LEN]), writes, SHORT);
        assert!(matches!(save.wait(), Err(TransferError::TooSlow(_))));
    }

    #[test]
    fn it_ends_when_it_is_told_or_the_vmm_goes() {
        let (reads, _writes) = ends();
        let load = start(Direction::Load, reads, LONG);
        load.cancel();
        assert!(matches!(load.wait(), Err(TransferError::Cancelled)));
        let (reads, writes) = ends();
        let save = start(Direction::Save(vec![0; MAX_LEN]), writes, LONG);
        drop(reads);
        assert!(matches!(save.wait(), Err(TransferError::Io(_))));
        let (reads, _writes) = ends();
        drop(start(Direction::Load, reads, LONG));
    }

    #[test]
    fn too_much_and_other_descriptors_are_refused() {
        let (reads, writes) = ends();
        let load = start(Direction::Load, reads, LONG);
        let _ = File::from(writes).write_all(&vec![0; MAX_LEN + 1]);
        assert!(matches!(load.wait(), Err(TransferError::TooLong)));
        let refused = |direction, file| {
            let refused = Transfer::start("state".into(), direction, file, LONG).err();
            assert!(matches!(refused, Some(TransferError::Descriptor)));
        };
        refused(Direction::Load, File::open("/dev/null").unwrap());
        let (reads, writes) = ends();
        refused(Direction::Load, writes.into());
        refused(Direction::Save(Vec::new()), reads.into());
    }

    /// A VMM makes the descriptor block and takes away what the thread has seen in the pipe, until it
    /// waits in a read; and then the session ends.
    #[test]
    fn a_thread_that_a_vmm_has_made_block_is_freed() {
        let (reads, writes) = ends();
        ioctl_fionbio(&writes, true).unwrap();
        let ours = reads.try_clone().unwrap();
        let load = start(Direction::Load, reads, LONG);
        for _ in 0..20_000 {
            let _ = ioctl_fionbio(&ours, false);
            let _ = rustix::io::write(&writes, &[0]);
            let _ = ioctl_fionbio(&ours, true);
            let _ = rustix::io::read(&ours, &mut [0; 1]);
        }
        let _ = ioctl_fionbio(&ours, false);
        drop(load);
    }
}
