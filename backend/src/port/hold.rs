//! Frames for a VM that is on its way: from when its rings are stopped, while its writes are logged for
//! a migration, until they are started again, here or on another host.
//!
//! ```text
//!   rings run ──► stopped, with the log on ──► held ─┬─ started again here ──► into the rings, in order
//!                                                    ├─ heard elsewhere ─────► there, for 2 s
//!                                                    └─ nothing for 3 s ─────► dropped
//! ```
//!
//! While frames are held everyone appends: none overtakes another. 2 MiB at most. A network takes a
//! while to send what is for the VM to where it is now: what still comes here follows it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tandem_uplink::backlog::Backlog;
use tandem_virtio_net::{Batch, Counters, DropReason};

use super::lock;

/// Own bytes of a batch for frames that were held.
pub(super) const BATCH: usize = 512 * 1024;

/// The frames that are held for one port.
#[derive(Default)]
pub(super) struct Hold {
    on: AtomicBool,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    frames: Option<Backlog>,
    turn: u64,
}

impl Hold {
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Holds frames from now on. False: it did already.
    pub(super) fn begin(&self) -> bool {
        let mut held = lock(&self.held);
        let begins = held.frames.is_none();
        if begins {
            held.frames = Some(Backlog::in_order());
            held.turn += 1;
            self.on.store(true, Ordering::Release);
        }
        begins
    }

    /// Which hold it is that is on.
    pub(super) fn turn(&self) -> Option<u64> {
        let held = lock(&self.held);
        held.frames.as_ref().map(|_| held.turn)
    }

    /// Holds these frames. False: they need not be held any more.
    #[cold]
    pub(super) fn keep(&self, batch: &mut Batch, frames: &[u8], to_vm: &Counters) -> bool {
        match &lock(&self.held).frames {
            Some(held) => {
                let (dropped, _) = held.push(batch, frames, 0);
                to_vm.count_drop(DropReason::HoldFull, dropped);
                true
            }
            None => false,
        }
    }

    /// Hands the first frames to `each`, a burst of them, and goes on holding those that come. One thread at a
    /// time does.
    pub(super) fn take_some(&self, batch: &mut Batch, each: impl FnOnce(&mut Batch)) {
        let held = lock(&self.held);
        if let Some(held) = held.frames.as_ref().filter(|held| held.is_waiting()) {
            held.pull(batch);
        }
        // Where they go frames may be held as well.
        drop(held);
        if !batch.is_empty() {
            each(batch);
            batch.clear();
        }
    }

    /// The same with all, and holds none any more, unless it is not the hold `turn` that is on. Who has a
    /// frame meanwhile waits until this is done.
    pub(super) fn end(&self, turn: Option<u64>, each: impl FnMut(&mut Batch)) {
        let mut held = lock(&self.held);
        if turn.is_some_and(|turn| turn != held.turn) {
            return;
        }
        if let Some(held) = held.frames.take() {
            hand_over(&held, &mut Batch::with_own_bytes(BATCH), each);
        }
        self.on.store(false, Ordering::Release);
    }
}

fn hand_over(held: &Backlog, batch: &mut Batch, mut each: impl FnMut(&mut Batch)) {
    loop {
        held.pull(batch);
        if batch.is_empty() {
            return;
        }
        each(batch);
        batch.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use tandem_virtio_net::spec::NetHdr;
    use tandem_virtio_net::{Direction, Probe, Scratch, Tracepoint};

    use super::*;
    use crate::port::Pair;

    struct Nobody;

    impl Probe for Nobody {
        fn see(&self, _: SystemTime, _: Direction, _: &Batch, _: &[u8]) {}
    }

    fn held(hold: &Hold) -> usize {
        let mut n = 0;
        hold.take_some(&mut Batch::with_own_bytes(BATCH), |batch| n = batch.len());
        n
    }

    #[test]
    fn a_burst_for_a_ring_that_has_just_stopped_is_held() {
        let pair = Pair::new(Arc::new(Tracepoint::new(Nobody)));
        let (hold, mut scratch) = (Hold::default(), Scratch::default());
        let frame = [[2; 12].as_slice(), &[0x88, 0xb5], &[0; 46]].concat();
        let mut batch = Batch::with_own_bytes(BATCH);
        batch.push_frame(NetHdr::default(), &frame).unwrap();
        pair.fill(&mut batch, &[0], &mut scratch, Some(&hold));
        assert_eq!(pair.to_vm.dropped(DropReason::NotReady), 1, "no hold is on");
        assert!(hold.begin());
        pair.fill(&mut batch, &[0], &mut scratch, Some(&hold));
        assert_eq!((held(&hold), held(&hold)), (1, 0));
        assert_eq!(pair.to_vm.dropped(DropReason::NotReady), 1);
        // What is handed over is not held again.
        pair.fill(&mut batch, &[0], &mut scratch, None);
        assert_eq!(pair.to_vm.dropped(DropReason::NotReady), 2);
    }

    #[test]
    fn who_looked_after_one_hold_does_not_end_the_next() {
        let hold = Hold::default();
        assert_eq!(hold.turn(), None);
        assert!(hold.begin() && !hold.begin());
        let first = hold.turn();
        hold.end(None, |_| {});
        assert_eq!((hold.turn(), hold.is_on()), (None, false));
        assert!(hold.begin());
        assert_ne!(hold.turn(), first);
        hold.end(first, |_| {});
        assert!(hold.is_on());
        hold.end(hold.turn(), |_| {});
        assert!(!hold.is_on());
    }
}
