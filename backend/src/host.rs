//! The host's own port: a thread that reads frames from a TAP device and forwards them.
//!
//! Frames to the host need no thread: senders write them to the TAP themselves.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use log::error;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use rustix::fd::OwnedFd;
use tandem_uplink::{Forwarder, Now, Tap};
use tandem_virtio_net::{Batch, Scratch};

use crate::port::lock;

/// After so long without a frame the flow cache may shrink.
const QUIET: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// The thread of a host port. Ends when dropped.
pub(crate) struct HostThread {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

struct Stop {
    asked: AtomicBool,
    event: OwnedFd,
    /// Why nothing is read any more.
    lost: Mutex<Option<String>>,
}

impl HostThread {
    /// Forwards what the host sends through `tap`, on one of `cpus`.
    pub(crate) fn start(
        name: &str,
        tap: Arc<Tap>,
        forwarder: Forwarder,
        cpus: Vec<usize>,
    ) -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let stop = Arc::new(Stop {
            asked: AtomicBool::new(false),
            event,
            lost: Mutex::default(),
        });
        let mine = Arc::clone(&stop);
        let name: String = name.chars().filter(char::is_ascii).take(15).collect();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            if let Err(e) = crate::cpus::pin(&cpus) {
                log::warn!("the thread's CPUs cannot be set: {e}");
            }
            crate::sandbox::enter_data_path();
            run(&mine, &tap, forwarder);
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Why the port is down, if it is.
    pub(crate) fn lost(&self) -> Option<String> {
        lock(&self.stop.lost).clone()
    }
}

impl Drop for HostThread {
    fn drop(&mut self) {
        self.stop.asked.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.stop.event, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the host port's thread ended by a panic");
        }
    }
}

fn run(stop: &Stop, tap: &Tap, mut forwarder: Forwarder) {
    let mut batch = Batch::with_own_bytes(Tap::BATCH_BYTES);
    let mut scratch = Scratch::default();
    while !stop.asked.load(Ordering::Acquire) {
        match tap.read(&mut batch) {
            Ok(0) => {
                if !wait(&[tap.as_fd(), stop.event.as_fd()], Some(QUIET)) {
                    forwarder.shrink();
                    wait(&[tap.as_fd(), stop.event.as_fd()], None);
                }
            }
            Ok(_) => forwarder.forward(&mut batch, &mut scratch, Now::monotonic()),
            Err(e) => {
                error!(
                    "TAP {}: {e}; its port is down until it is added again",
                    tap.name()
                );
                *lock(&stop.lost) = Some(format!(
                    "the device {} was removed ({e}): remove the port and add it again",
                    tap.name()
                ));
                wait(&[stop.event.as_fd()], None);
            }
        }
        batch.clear();
        scratch.call_all();
    }
}

/// Waits until there is something to read; false if the time was up before.
fn wait<const N: usize>(fds: &[BorrowedFd<'_>; N], time: Option<Timespec>) -> bool {
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    match rustix::event::poll(&mut polled, time.as_ref()) {
        Ok(n) => n != 0,
        Err(rustix::io::Errno::INTR) => true,
        Err(e) => {
            error!("waiting for the TAP failed: {e}");
            // Not a busy loop on an error that stays.
            std::thread::sleep(Duration::from_millis(100));
            true
        }
    }
}
