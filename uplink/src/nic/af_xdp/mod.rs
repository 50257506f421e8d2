//! A network device of the host as the way to the wire, past the host's network stack: AF_XDP
//! sockets, two for each queue of the device (Linux 5.10,
//! `Documentation/networking/af_xdp.rst`).
//!
//! Frames come and go through rings that are shared with the kernel. A received frame stays in the
//! memory it was received into until it has been delivered: its payload is copied once, to where
//! it goes. There are no offloads: checksums are completed, and segments cut, on the way into the
//! chunk that is sent.
//!
//! [`AfXdpDevice`] is what takes privilege, [`AfXdp`] the rest.

mod device;
mod program;
mod receive;
mod transmit;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tandem_virtio_net::{Batch, Counters, DropReason, Scratch};

pub use self::device::{AfXdpDevice, AfXdpError, Mode};
use self::device::{RING, is_chunk, is_memory, queue_bytes};
use self::receive::Receiver;
use self::transmit::Transmitter;
use super::kernel::Offloads;
use super::sys;
use super::sys_xdp::{Rings, TxMemory};

/// Microseconds after which frames that the device had no room for are tried again, at first, and
/// at most: with a link that is lost it has none for long.
const RETRY: (u32, u32) = (100, 10_000);

/// A network device.
pub struct AfXdp {
    name: String,
    mode: Mode,
    sockets: Vec<Arc<OwnedFd>>,
    /// One for each queue.
    transmitters: Vec<Mutex<Transmitter>>,
    receiver: Mutex<Receiver>,
    watch: OwnedFd,
    /// Wakes whoever reads, to try again what there was no room for.
    retry: OwnedFd,
    to_retry: AtomicBool,
    /// Microseconds that the timer was set to last; 0: there has been room since.
    pause: AtomicU32,
    /// The sockets, `watch` and `retry` in one.
    events: OwnedFd,
    offloads: Offloads,
    /// Of [`AfXdp::missed`], what has been counted.
    counted: AtomicU64,
    from_wire: Arc<Counters>,
    to_wire: Arc<Counters>,
    // The last: the program is detached when nobody uses the sockets any more.
    _link: OwnedFd,
}

impl AfXdp {
    /// Own bytes of a batch for [`AfXdp::read`]: none, frames stay where they were received.
    pub const BATCH_BYTES: usize = 0;

    /// [`AfXdpDevice::open`] and [`AfXdp::new`] in one; nothing is left for the host.
    ///
    /// # Errors
    /// [`AfXdpError`], which says what to do.
    pub fn open(name: &str) -> Result<Self, AfXdpError> {
        Self::new(name, AfXdpDevice::open(name, &[])?)
    }

    /// A port on a device that was opened here or by another process.
    ///
    /// # Errors
    /// [`AfXdpError::NotADevice`], and what mapping its memory can fail with.
    pub fn new(name: &str, device: AfXdpDevice) -> Result<Self, AfXdpError> {
        let failed = |error| AfXdpError::in_doing(name, "mapping its rings", error);
        let bytes = queue_bytes(device.chunk);
        let len = device.sockets.len() as u64 * bytes;
        let usable = !device.sockets.is_empty()
            && device.senders.len() == device.sockets.len()
            && is_chunk(device.chunk);
        if !usable || !is_memory(&device.memory, len).map_err(failed)? {
            return Err(AfXdpError::NotADevice(name.to_owned()));
        }
        let sockets: Vec<_> = device.sockets.into_iter().map(Arc::new).collect();
        let (half, copies) = ((bytes / 2) as usize, device.mode != Mode::ZeroCopy);
        let (mut transmitters, mut incoming) = (Vec::new(), Vec::new());
        for (queue, (socket, sender)) in sockets.iter().zip(device.senders).enumerate() {
            let rings = Rings::map(socket.as_fd(), sender.as_fd(), RING).map_err(failed)?;
            let offset = queue as u64 * bytes + bytes / 2;
            let memory = TxMemory::map(device.memory.as_fd(), offset, half).map_err(failed)?;
            transmitters.push(Mutex::new(Transmitter::new(
                sender,
                (rings.tx, rings.completion),
                (memory, bytes / 2),
                device.chunk as usize,
                copies,
            )));
            incoming.push((Arc::clone(socket), rings.fill, rings.rx));
        }
        let receiver = Receiver::new(device.memory.as_fd(), device.chunk, incoming);
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let retry = timerfd_create(TimerfdClockId::Monotonic, flags);
        let retry = retry.map_err(|e| failed(e.into()))?;
        let fds = sockets.iter().map(|socket| socket.as_fd());
        let fds = fds.chain([device.watch.as_fd(), retry.as_fd()]);
        Ok(Self {
            events: epoll_of(fds).map_err(failed)?,
            name: name.to_owned(),
            mode: device.mode,
            sockets,
            transmitters,
            receiver: Mutex::new(receiver.map_err(failed)?),
            watch: device.watch,
            retry,
            to_retry: AtomicBool::new(false),
            pause: AtomicU32::new(0),
            offloads: Offloads::none(),
            counted: AtomicU64::new(0),
            from_wire: Arc::default(),
            to_wire: Arc::default(),
            _link: device.link,
        })
    }

    /// The same, which goes on counting where another has left off.
    #[must_use]
    pub fn counting(self, received: Arc<Counters>, sent: Arc<Counters>) -> Self {
        Self {
            from_wire: received,
            to_wire: sent,
            ..self
        }
    }

    /// The name of the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How frames come and go.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// How many queues it has.
    pub fn queues(&self) -> usize {
        self.sockets.len()
    }

    /// Is its link up? Somebody else may have set it down, or removed the device.
    pub fn link_is_up(&self) -> bool {
        sys::is_up(&self.name).unwrap_or(false)
    }

    /// Frames that came in.
    pub fn received(&self) -> &Arc<Counters> {
        &self.from_wire
    }

    /// Frames that went out.
    pub fn sent(&self) -> &Arc<Counters> {
        &self.to_wire
    }

    /// Frames that were cut up because the device does not take them whole, and the segments sent
    /// for them.
    pub fn segmented(&self) -> (u64, u64) {
        self.offloads.segmented()
    }

    /// Frames from the wire that the kernel dropped because we were too slow, or because they were
    /// longer than a chunk; since the device was opened.
    pub fn missed(&self) -> u64 {
        let all = self.sockets.iter().flat_map(sockopt::xdp_statistics);
        all.map(|of| of.rx_dropped + of.rx_ring_full.unwrap_or(0))
            .sum()
    }

    /// Counts of those what has been dropped since the last time.
    pub fn count_missed(&self) {
        let all = self.missed();
        let new = all.saturating_sub(self.counted.swap(all, Ordering::Relaxed));
        self.from_wire.add(new, 0);
        self.from_wire.count_drop(DropReason::Missed, new);
    }

    /// Takes a burst of frames into `batch`, which is empty, and needs no own bytes; how many. None is
    /// no error. They are lent: their memory is received into again from the next call on, before
    /// which the batch is to be cleared. Checksums have not been looked at: the vnet headers
    /// are those of plain frames.
    ///
    /// # Errors
    /// The link is down or the device is gone (`ENETDOWN`), once.
    pub fn read(&self, batch: &mut Batch) -> io::Result<usize> {
        let mut receiver = lock(&self.receiver);
        receiver.give_back();
        if self.to_retry.load(Ordering::Acquire) {
            self.send_again();
        }
        let (frames, bytes) = receiver.take(batch, |reason| self.from_wire.count_drop(reason, 1));
        self.from_wire.add(frames, bytes);
        if frames == 0 {
            match rustix::io::read(&self.watch, &mut [0; 1]) {
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(batch.len())
    }

    /// Sends frames in order, without waiting; how many were dealt with: there is no room for the rest
    /// now, and [`AfXdp::as_fd`] becomes readable when it is time to try again. See
    /// [`Nic::send`](super::Nic::send).
    pub fn send(&self, batch: &mut Batch, frames: &[u8], scratch: &mut Scratch) -> usize {
        // By where the frames come from, whoever sends them: those of a flow stay in order, also when some
        // of them had to wait.
        let queue = usize::from(batch.source()) % self.queues();
        let Some(transmitter) = self.transmitters.get(queue) else {
            return 0;
        };
        let mut transmitter = lock(transmitter);
        transmitter.start();
        let mut done = 0;
        for &i in frames {
            match transmitter.send(batch, i.into(), scratch, &self.offloads) {
                None => break,
                Some(Ok(())) => {}
                Some(Err(reason)) => batch.set_end(i.into(), reason),
            }
            done += 1;
        }
        let left = transmitter.flush();
        let sent = transmitter.take_sent();
        drop(transmitter);
        sent.count(&self.to_wire);
        self.retry_if(left || done < frames.len());
        done
    }

    /// Tries once more what the device had no room for.
    fn send_again(&self) {
        // Only when it is time: else whoever waits for that is never woken.
        if rustix::io::read(&self.retry, &mut [0; 8]).is_err() {
            return;
        }
        self.to_retry.store(false, Ordering::Relaxed);
        let mut left = false;
        for transmitter in &self.transmitters {
            let mut transmitter = lock(transmitter);
            transmitter.start();
            left |= transmitter.flush() || transmitter.is_full();
            transmitter.take_sent().count(&self.to_wire);
        }
        if left {
            self.retry_if(true);
        }
    }

    /// Has whoever reads look again after a pause, which grows until nothing is `left`.
    fn retry_if(&self, left: bool) {
        let pause = self.pause.load(Ordering::Relaxed);
        if !left && pause != 0 {
            self.pause.store(0, Ordering::Relaxed);
        }
        if left && !self.to_retry.load(Ordering::Relaxed) {
            let pause = (2 * pause).clamp(RETRY.0, RETRY.1);
            self.pause.store(pause, Ordering::Relaxed);
            // The timer first: who sees the flag stops it.
            set_timer(&self.retry, pause);
            self.to_retry.store(true, Ordering::Release);
        }
    }
}

/// Readable when there is something to do for [`AfXdp::read`]; never writable.
impl AsFd for AfXdp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// One descriptor for the events of all these.
fn epoll_of<'a>(all: impl Iterator<Item = BorrowedFd<'a>>) -> io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for fd in all {
        let none = epoll::EventData::new_u64(0);
        epoll::add(&epoll, fd, none, epoll::EventFlags::IN)?;
    }
    Ok(epoll)
}

/// Makes `timer` not readable, and so again in `microseconds`, less than a second; 0: not again.
fn set_timer(timer: &OwnedFd, microseconds: u32) {
    let it_value = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(microseconds) * 1000,
    };
    let value = Itimerspec {
        it_interval: Timespec::default(),
        it_value,
    };
    // It cannot fail: the descriptor is a timer, and the time is one.
    let _before = timerfd_settime(timer, TimerfdTimerFlags::empty(), &value);
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod tests;
