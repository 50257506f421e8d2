//! Notifying guests, and getting away when a VMM makes that block.
//!
//! A guest is notified by a write to an eventfd that its VMM gave us. The write must not block,
//! because the thread that makes it serves another VM. We set O_NONBLOCK, but the VMM shares the
//! open file and can clear it again, then fill the counter. There is no system call that writes to
//! an eventfd and ignores that flag. So every thread says when it is at a bell, and whoever finds
//! it there twice in a row interrupts it by a signal; that bell is not rung any more.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::thread::{Pid, gettid};
use tandem_virtio_net::Call;

use crate::port::lock;
use crate::sys;

/// By which a VMM is told to notify its guest.
pub(crate) struct Bell {
    event: File,
    calls: Arc<AtomicU64>,
    stuck: AtomicBool,
}

impl Bell {
    /// A bell on an eventfd; `calls` counts.
    pub(crate) fn new(event: OwnedFd, calls: Arc<AtomicU64>) -> Self {
        Self {
            event: File::from(event),
            calls,
            stuck: AtomicBool::new(false),
        }
    }

    /// Has its VMM made it block?
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed)
    }
}

impl Call for Bell {
    fn call(&self) {
        if self.is_stuck() {
            return;
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        let written = at_a_bell(|| (&self.event).write(&1u64.to_ne_bytes()));
        // A full counter (EAGAIN) is a notification that was not consumed yet: nothing is lost.
        if written.is_err_and(|e| e.kind() == ErrorKind::Interrupted) {
            self.stuck.store(true, Ordering::Relaxed);
        }
    }
}

/// A thread that rings bells.
struct Ringer {
    thread: Pid,
    /// Odd while it is at a bell.
    turn: AtomicU64,
}

static RINGERS: Mutex<Vec<Weak<Ringer>>> = Mutex::new(Vec::new());

thread_local! {
    static RINGER: OnceCell<Arc<Ringer>> = const { OnceCell::new() };
}

#[inline]
fn at_a_bell<T>(ring: impl FnOnce() -> T) -> T {
    RINGER.with(|me| {
        let me = me.get_or_init(enlist);
        me.turn.fetch_add(1, Ordering::Relaxed);
        let rung = ring();
        me.turn.fetch_add(1, Ordering::Relaxed);
        rung
    })
}

#[cold]
fn enlist() -> Arc<Ringer> {
    let me = Arc::new(Ringer {
        thread: gettid(),
        turn: AtomicU64::new(0),
    });
    lock(&RINGERS).push(Arc::downgrade(&me));
    me
}

/// How often threads are looked at while bells are rung, and while none is. The longest time that
/// a VMM can make another VM's thread wait is the sum.
const TICK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Frees threads that are stuck at a bell, until `stopped` is closed. Takes no lock that such a
/// thread may hold.
pub(crate) fn watch(stopped: &mpsc::Receiver<()>) {
    let mut watch = Watch::default();
    let mut pause = TICK.1;
    while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        pause = if watch.look() { TICK.0 } else { TICK.1 };
    }
}

/// What was seen of each thread.
#[derive(Default)]
struct Watch {
    seen: HashMap<Pid, u64>,
}

impl Watch {
    /// Interrupts the threads that are where they were the last time. True if any has been at a
    /// bell since then: look again soon.
    fn look(&mut self) -> bool {
        let mut busy = false;
        let before = std::mem::take(&mut self.seen);
        lock(&RINGERS).retain(|ringer| {
            let Some(ringer) = ringer.upgrade() else {
                return false;
            };
            let turn = ringer.turn.load(Ordering::Relaxed);
            let before = before.get(&ringer.thread).copied();
            self.seen.insert(ringer.thread, turn);
            busy |= before != Some(turn) || turn % 2 == 1;
            if turn % 2 == 1 && before == Some(turn) {
                sys::interrupt(ringer.thread);
            }
            true
        });
        busy
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn a_bell_that_blocks_is_given_up() {
        sys::install_interrupt().unwrap();
        // Blocking, and full: the next write waits for a reader.
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let bell = Arc::new(Bell::new(event, Arc::default()));
        let ringing = Arc::clone(&bell);
        let thread = std::thread::spawn(move || ringing.call());
        let mut watch = Watch::default();
        while !thread.is_finished() {
            watch.look();
            std::thread::yield_now();
        }
        thread.join().unwrap();
        assert!(bell.is_stuck());
        bell.call();
        assert_eq!(bell.calls.load(Ordering::Relaxed), 1, "not rung again");
    }

    #[test]
    fn a_full_counter_that_does_not_block_is_no_harm() {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let bell = Bell::new(event, Arc::default());
        bell.call();
        assert!(!bell.is_stuck());
    }
}
