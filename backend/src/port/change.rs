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

use tandem_migration::frames;
use tandem_uplink::Outlet;
use tandem_virtio_net::spec::NetHdr;
use tandem_virtio_net::{BURST, Batch, DropReason, Scratch, offload};
use tokio::sync::watch;

use super::{GuestPort, lock};
use crate::control::{Motion, Way};

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

    /// By what way held frames are to follow the VM.
    pub fn set_way(&self, way: Way) {
        self.way.store(way as u8, Ordering::Relaxed);
    }

    /// See [`GuestPort::set_way`].
    pub fn way(&self) -> Way {
        let way = self.way.load(Ordering::Relaxed);
        let known = [Way::Network, Way::Awaited, Way::Daemons].into_iter();
        known
            .into_iter()
            .find(|one| *one as u8 == way)
            .unwrap_or_default()
    }

    /// Takes a burst of the frames that are held; none: there are none.
    pub fn take_held(&self, room: &mut Batch) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        self.redirect_held(room, |batch| {
            for i in 0..batch.len() {
                let header = batch.hdr(i).to_bytes();
                frames::add(&mut bytes, &header, batch.frame_len(i), |room| {
                    batch.linearize(i, room);
                });
            }
            batch.len() as u64
        });
        (!bytes.is_empty()).then_some(bytes)
    }

    /// Delivers frames that another host has held for the VM. How many were no frames.
    pub fn deliver_followers(&self, all: &[frames::Frame<'_>]) -> u64 {
        let mut batch = Self::batch_for_held();
        let (mut scratch, mut bad) = (Scratch::default(), 0);
        for burst in all.chunks(BURST) {
            for (header, frame) in burst {
                let hdr = NetHdr::from_bytes(header);
                let valid = offload::validate(&hdr, frame, frame.len())
                    .map_err(|_| DropReason::BadVnetHeader);
                if let Err(reason) = valid.and_then(|()| batch.push_frame(hdr, frame)) {
                    self.to_vm.count_drop(reason, 1);
                    bad += 1;
                }
            }
            let (list, n): ([u8; BURST], _) = (std::array::from_fn(|i| i as u8), batch.len());
            self.deliver(&mut batch, &list[..n], &mut scratch);
            batch.clear();
        }
        scratch.call_all();
        bad
    }
}
