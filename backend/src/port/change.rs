//! A VM's change of hosts, as its port sees it: what it costs, and whom to tell.
//!
//! ```text
//!   on the source       the first ring is about to be stopped … the VMM is gone, or the rings run again
//!   on the destination  a state is loaded, or rings are about to be started … they run
//! ```
//! What the VMM waits for in between, for answers of ours, is what the port adds to the time that the VM stands
//! still.

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tandem_virtio_net::DropReason;
use tokio::sync::watch;

use super::{GuestPort, lock};
use crate::control::Motion;

/// The change that is on, or was last.
#[derive(Debug)]
pub(crate) struct Change {
    cost: Mutex<Cost>,
    told: watch::Sender<()>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    on: bool,
    waited: Duration,
    starved: Duration,
}

impl Default for Change {
    fn default() -> Self {
        let (told, _) = watch::channel(());
        Self {
            cost: Mutex::default(),
            told,
        }
    }
}

impl Change {
    /// One begins, unless one is on.
    pub(super) fn begin(&self) {
        let mut cost = lock(&self.cost);
        if !cost.on {
            *cost = Cost {
                on: true,
                ..Cost::default()
            };
        }
    }

    /// It is over.
    pub(super) fn end(&self) {
        lock(&self.cost).on = false;
    }

    /// The VMM has waited so long for an answer, and our thread of that for a CPU.
    pub(super) fn answered(&self, waited: Duration, starved: Duration) {
        let mut cost = lock(&self.cost);
        if cost.on {
            cost.waited += waited;
            cost.starved += starved;
        }
    }

    /// Something is different.
    pub(super) fn told(&self) {
        self.told.send_replace(());
    }
}

impl GuestPort {
    /// How things are, for whoever looks after a change of hosts.
    pub fn motion(&self) -> Motion {
        let cost = *lock(&self.change.cost);
        let frames = self.pairs.iter().map(|pair| pair.from_vm.frames());
        let dropped = |reason| self.to_vm.dropped(reason);
        Motion {
            logging: self.log_all(),
            running: self.has_rings(),
            holding: self.is_holding(),
            frames: frames.sum(),
            followed: dropped(DropReason::Redirected),
            expired: dropped(DropReason::HoldExpired),
            overflowed: dropped(DropReason::HoldFull),
            waited: cost.waited,
            starved: cost.starved,
        }
    }

    /// Is told when that may be different.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.change.told.subscribe()
    }

    /// Whether a pair carries frames, or will once its driver has posted buffers.
    pub(super) fn has_rings(&self) -> bool {
        // In this order: a pair that gets its first buffers goes from one to the other.
        (self.unpopulated.load(Ordering::Acquire) | self.active.load(Ordering::Relaxed)) != 0
    }

    /// Notes whether the VM is said to run on another host.
    pub fn is_said_to_be_elsewhere(&self, elsewhere: bool) {
        self.elsewhere.store(elsewhere, Ordering::Relaxed);
    }

    /// Is it?
    pub fn is_elsewhere(&self) -> bool {
        self.elsewhere.load(Ordering::Relaxed)
    }
}
