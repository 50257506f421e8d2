//! The thread of a network device of the host: it reads frames and forwards them, and of a member of a
//! team also sends what waits for the device to have room.
//!
//! Frames to the device need no thread as long as there is room: senders give them to it themselves.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use log::error;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use rustix::fd::OwnedFd;
use tandem_uplink::nic::Nic;
use tandem_uplink::team::{Member, Rest};
use tandem_uplink::{Forwarder, Now};
use tandem_virtio_net::wire::ethernet::MacAddr;
use tandem_virtio_net::{Batch, Call, DropReason, Scratch};

use crate::port::lock;

/// After so long without a frame the flow cache may shrink.
const QUIET: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// After this many frames without a pause it is looked for more after a nap, not when the kernel says that there
/// are some: each time it wakes the thread costs whoever sends, and the more frames are taken at once the less each
/// costs. The slowest that are waited for so are 400,000 a second.
const MANY: usize = 16;
const NAP: Duration = Duration::from_micros(40);

/// After a read that failed.
const PAUSE: Duration = Duration::from_millis(1);

/// What a thread does.
pub(crate) struct Work {
    /// The device.
    pub(crate) nic: Arc<dyn Nic>,
    /// Where its frames go; none: they are dropped.
    pub(crate) forwarder: Option<Forwarder>,
    /// What it is in a team, and where the team's own frames go.
    pub(crate) member: Option<(Arc<Member>, Arc<ControlFrames>)>,
    /// The CPUs it runs on.
    pub(crate) cpus: Vec<usize>,
}

/// The thread of a device. Ends when dropped.
pub(crate) struct NicThread {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

/// Wakes the thread of a device.
pub(crate) struct Bell {
    stop: AtomicBool,
    event: OwnedFd,
    /// Why nothing is read any more.
    lost: Mutex<Option<String>>,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self {
            stop: AtomicBool::new(false),
            event,
            lost: Mutex::default(),
        }))
    }

    /// Takes note of all calls so far.
    pub(crate) fn hear(&self) {
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Call for Bell {
    fn call(&self) {
        // A full counter is a wake-up on its way.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

impl NicThread {
    /// Starts the thread `name`, which `bell` wakes.
    pub(crate) fn start(name: &str, bell: Arc<Bell>, work: Work) -> io::Result<Self> {
        bell.stop.store(false, Ordering::Release);
        let mine = Arc::clone(&bell);
        let name: String = name.chars().filter(char::is_ascii).take(15).collect();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            if let Err(e) = crate::cpus::pin(&work.cpus) {
                log::warn!("the thread's CPUs cannot be set: {e}");
            }
            // Naps are as long as they are meant to be.
            let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1000));
            crate::sandbox::enter_data_path();
            run(&mine, work);
        })?;
        Ok(Self {
            bell,
            thread: Some(thread),
        })
    }

    /// Why nothing is read any more, if that is so.
    pub(crate) fn lost(&self) -> Option<String> {
        lock(&self.bell.lost).clone()
    }
}

impl Drop for NicThread {
    fn drop(&mut self) {
        self.bell.stop.store(true, Ordering::Release);
        self.bell.call();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the thread of a network device ended by a panic");
        }
    }
}

/// A member's frames for its team, on their way from the device's thread to control.
pub(crate) struct ControlFrames {
    /// LACP and LLDP, and the rest, of which a station may send many.
    frames: Mutex<[VecDeque<Vec<u8>>; 2]>,
    bell: Arc<Bell>,
}

impl ControlFrames {
    /// Frames of each kind that are kept, and the longest: a flood of them costs who sends it, and no
    /// memory.
    const MOST: usize = 64;
    const LONGEST: usize = 1600;

    /// `bell` is rung when there are some.
    pub(crate) fn new(bell: Arc<Bell>) -> Arc<Self> {
        let frames = Mutex::default();
        Arc::new(Self { frames, bell })
    }

    fn put(&self, batch: &Batch, i: usize) {
        let head = batch.head(i).first_chunk().map(|mac| MacAddr(*mac));
        let slow = head.is_some_and(MacAddr::is_link_local);
        let mut frames = lock(&self.frames);
        let first = frames.iter().all(VecDeque::is_empty);
        let queue = &mut frames[usize::from(!slow)];
        if queue.len() == Self::MOST || batch.frame_len(i) > Self::LONGEST {
            return;
        }
        let mut bytes = vec![0; batch.frame_len(i)];
        batch.linearize(i, &mut bytes);
        queue.push_back(bytes);
        drop(frames);
        if first {
            self.bell.call();
        }
    }

    /// All there are.
    pub(crate) fn take(&self) -> Vec<Vec<u8>> {
        let mut frames = lock(&self.frames);
        frames
            .iter_mut()
            .flat_map(|queue| queue.drain(..))
            .collect()
    }
}

fn run(bell: &Bell, work: Work) {
    let Work {
        nic,
        mut forwarder,
        member,
        ..
    } = work;
    let mut batch = Batch::with_own_bytes(nic.batch_bytes());
    let mut scratch = Scratch::default();
    let mut rest = Rest::default();
    let mut trouble = None;
    let mut found = 0;
    while !bell.stop.load(Ordering::Acquire) {
        let full = match &member {
            Some((member, _)) if member.is_waiting() => {
                !member.send_waiting(&mut rest, &mut scratch)
            }
            _ => false,
        };
        match nic.read(&mut batch) {
            Ok(0) if std::mem::take(&mut found) >= MANY => std::thread::sleep(NAP),
            Ok(0) => {
                if !wait(bell, Some((&*nic, full)), Some(QUIET)) {
                    if let Some(forwarder) = &mut forwarder {
                        forwarder.shrink();
                    }
                    wait(bell, Some((&*nic, full)), None);
                }
            }
            Ok(n) => {
                found += n;
                let ended = member.as_ref().map_or(0, |(member, control)| {
                    member.sift(&mut batch, |batch, i| control.put(batch, i))
                });
                if let Some(forwarder) = &mut forwarder {
                    forwarder.forward_but(ended, &mut batch, &mut scratch, Now::monotonic());
                }
            }
            // The link is down; it may come up again, and control knows.
            Err(e) if e.raw_os_error() == Some(libc::ENETDOWN) => {}
            Err(e) if is_gone(&e) => {
                lose(bell, nic.name(), &e);
                if let Some((_, control)) = &member {
                    control.bell.call();
                }
                wait(bell, None, None);
            }
            // Such as a frame of a kind that the kernel cannot describe.
            Err(e) => {
                if trouble.replace(e.kind()) != Some(e.kind()) {
                    error!("device {}: {e}; it is tried again", nic.name());
                }
                nic.received().count_drop(DropReason::HostRefused, 1);
                std::thread::sleep(PAUSE);
            }
        }
        batch.clear();
        scratch.call_all();
    }
    if let Some((member, _)) = &member {
        member.let_go(&mut rest);
    }
}

/// The device is gone for good.
fn is_gone(e: &io::Error) -> bool {
    let errno = e.raw_os_error().unwrap_or(libc::EIO);
    matches!(
        errno,
        libc::ENODEV | libc::ENXIO | libc::EBADF | libc::EBADFD | libc::EIO
    )
}

fn lose(bell: &Bell, name: &str, e: &io::Error) {
    let mut lost = lock(&bell.lost);
    if lost.is_none() {
        error!("device {name}: {e}; nothing is read from it until it is added again");
    }
    *lost = Some(format!("the device {name} was removed ({e})"));
}

/// Waits until the bell rings, or the device has frames, or, if it is full, room. False if the time was up
/// before.
fn wait(bell: &Bell, device: Option<(&dyn Nic, bool)>, time: Option<Timespec>) -> bool {
    let mut polled = Vec::with_capacity(3);
    polled.push(PollFd::from_borrowed_fd(bell.event.as_fd(), PollFlags::IN));
    if let Some((nic, full)) = device {
        polled.push(PollFd::from_borrowed_fd(nic.readable(), PollFlags::IN));
        if full {
            polled.push(PollFd::from_borrowed_fd(nic.writable(), PollFlags::OUT));
        }
    }
    match rustix::event::poll(&mut polled, time.as_ref()) {
        Ok(n) => {
            if !polled[0].revents().is_empty() {
                bell.hear();
            }
            n != 0
        }
        Err(rustix::io::Errno::INTR) => true,
        Err(e) => {
            error!("waiting for a network device failed: {e}");
            // Not a busy loop on an error that stays.
            std::thread::sleep(Duration::from_millis(100));
            true
        }
    }
}
