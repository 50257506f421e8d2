//! A queue pair: two virtqueues, and who looks after them.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tandem_uplink::{Forwarder, Now};
use tandem_virtio_net::{Batch, Call, Counters, Direction, RxQueue, Scratch, Tracepoint, TxQueue};

use super::hold::Hold;
use super::lock;
use crate::bell::Bell;
use crate::worker::Wake;

/// The TX side of a pair: its queue, and what forwards its frames.
#[derive(Default)]
pub(super) struct TxSide {
    pub(super) queue: TxQueue,
    pub(super) forwarder: Option<Forwarder>,
    /// When the last burst was taken.
    last: Now,
}

/// How long the buffers of a burst may be held over while no other follows.
const LATE: Duration = Duration::from_micros(100);

/// A queue pair.
pub struct Pair {
    /// Unlike that of any other pair: tells whose kick it was.
    pub(super) id: u64,
    pub(super) tx: Mutex<TxSide>,
    pub(super) rx: Mutex<RxQueue>,
    pub(super) kick: Mutex<Option<File>>,
    pub(super) wake: Mutex<Option<Wake>>,
    /// Our thread sleeps, and nobody has woken it yet.
    pub(crate) asleep: AtomicBool,
    /// Of the RX and of the TX queue.
    pub(super) bells: Mutex<[Option<Arc<Bell>>; 2]>,
    /// Of the TX queue, and drops before forwarding.
    pub from_vm: Counters,
    /// Of the RX queue.
    pub to_vm: Counters,
    /// Times the guest was notified.
    pub calls: Arc<AtomicU64>,
    /// Times the guest's notification woke our thread.
    pub kicks: AtomicU64,
    tracepoint: Arc<Tracepoint>,
}

impl Pair {
    /// A pair whose frames can be watched at `tracepoint`.
    pub(super) fn new(tracepoint: Arc<Tracepoint>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut tx = TxSide::default();
        tx.queue.set_tracepoint(Arc::clone(&tracepoint));
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            tx: Mutex::new(tx),
            rx: Mutex::default(),
            kick: Mutex::default(),
            wake: Mutex::default(),
            asleep: AtomicBool::new(false),
            bells: Mutex::default(),
            from_vm: Counters::default(),
            to_vm: Counters::default(),
            calls: Arc::default(),
            kicks: AtomicU64::new(0),
            tracepoint,
        }
    }

    /// Drains one burst of the pair's frames and delivers them. Frames taken; 0: nothing to do.
    pub fn serve(&self, batch: &mut Batch, scratch: &mut Scratch, now: Now) -> usize {
        let mut tx = lock(&self.tx);
        let TxSide {
            queue,
            forwarder,
            last,
        } = &mut *tx;
        let taken = queue.drain(batch, &self.from_vm);
        if taken == 0 {
            if queue.is_late() && *last + LATE < now {
                let call = queue.give_back();
                drop(tx);
                call.into_iter().for_each(|call| call.call());
            }
            return 0;
        }
        *last = now;
        if let Some(forwarder) = forwarder {
            forwarder.forward(batch, scratch, now);
        }
        batch.clear();
        let call = queue.complete();
        drop(tx);
        scratch.call_all();
        if let Some(call) = call {
            call.call();
        }
        taken
    }

    /// Asks the guest to notify us, or not to. With `on`, true if there is work already.
    pub fn set_kicks(&self, on: bool) -> bool {
        let mut tx = lock(&self.tx);
        let call = tx.queue.set_kicks(on);
        let work = on && tx.queue.has_work();
        drop(tx);
        call.into_iter().for_each(|call| call.call());
        work
    }

    /// Counts a kick if it was this pair's.
    pub(crate) fn count_kick(&self, id: u64) {
        if id == self.id {
            self.kicks.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lets the flow cache shrink; for when the VM has been quiet.
    pub fn rest(&self) {
        if let Some(f) = &mut lock(&self.tx).forwarder {
            f.shrink();
        }
    }

    /// Says who serves this pair and waits for its kicks; nobody: it is going away.
    pub(crate) fn set_wake(&self, new: Option<Wake>) {
        let mut wake = lock(&self.wake);
        let kick = lock(&self.kick);
        if let Some(old) = &*wake {
            old.replace_kick(self.id, kick.as_ref(), None);
        }
        if let Some(new) = &new {
            new.replace_kick(self.id, None, kick.as_ref());
        }
        *wake = new;
    }

    /// Delivers frames. If the ring has been stopped since it was chosen, for a change of hosts that `hold`
    /// knows of, they are held.
    pub(super) fn fill(
        &self,
        batch: &mut Batch,
        frames: &[u8],
        scratch: &mut Scratch,
        hold: Option<&Hold>,
    ) -> Segmented {
        let trace = self.tracepoint.start(batch);
        let mut segmented = Segmented::default();
        let mut left = frames;
        while !left.is_empty() {
            let mut rx = lock(&self.rx);
            if let Some(hold) = hold.filter(|hold| !rx.is_running() && hold.is_on()) {
                drop(rx);
                if hold.keep(batch, left, &self.to_vm) {
                    break;
                }
                // It has just ended: the ring runs again, or counts what it cannot take.
                continue;
            }
            let filled = rx.fill(batch, left, scratch, &self.to_vm);
            drop(rx);
            filled.call.into_iter().for_each(|c| scratch.keep_call(c));
            segmented.frames += filled.segmented.0;
            segmented.segments += filled.segmented.1;
            left = &left[filled.done..];
        }
        if let Some(trace) = trace {
            trace.see(Direction::ToVm, batch, frames);
        }
        if self.asleep.load(Ordering::Relaxed) {
            self.expect_answer(scratch);
        }
        segmented
    }

    /// The VM has got frames while our thread sleeps. If it is one that answers, the thread wakes up
    /// beside the VM rather than after it.
    #[cold]
    fn expect_answer(&self, scratch: &mut Scratch) {
        if let Some(wake) = &*lock(&self.wake)
            && let Some(call) = wake.for_an_answer()
        {
            self.asleep.store(false, Ordering::Relaxed);
            scratch.keep_call(call);
        }
    }

    /// Notifies the guest of what it may not have been told: that a ring was used which is started
    /// again, because we died in between, or because it was said through the call descriptor before
    /// this one. A notification too many is allowed (virtio 1.3, 2.9), one too few is a ring that
    /// stands still.
    pub(super) fn rouse(&self, ring: u16) {
        let running = if ring.is_multiple_of(2) {
            lock(&self.rx).is_running()
        } else {
            lock(&self.tx).queue.is_running()
        };
        let bell = lock(&self.bells)[usize::from(ring % 2)].clone();
        if let Some(bell) = bell.filter(|_| running) {
            bell.call();
        }
    }

    pub(super) fn wake(&self) {
        if let Some(wake) = &*lock(&self.wake) {
            wake.wake();
        }
    }

    /// Entries of the RX ring, and whether both rings run and may carry frames.
    pub fn ring_state(&self) -> RingState {
        let rx = lock(&self.rx);
        let mut state = RingState {
            size: rx.config().size,
            enabled: rx.is_enabled(),
            running: rx.is_running(),
        };
        drop(rx);
        let tx = lock(&self.tx);
        state.enabled &= tx.queue.is_enabled();
        state.running &= tx.queue.is_running();
        state
    }
}

#[derive(Default)]
pub(super) struct Segmented {
    pub(super) frames: u64,
    pub(super) segments: u64,
}

/// See [`Pair::ring_state`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingState {
    /// Entries; 0 before a driver started it.
    pub size: u16,
    /// The VMM lets it carry frames.
    pub enabled: bool,
    /// The driver has started it.
    pub running: bool,
}
