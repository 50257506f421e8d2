//! Where the frames of a port can be watched, with what became of each.
//!
//! While nobody watches, a tracepoint costs one load for each burst.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use crate::frame::Batch;

/// Which way a frame goes, seen from the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// The VM sends it.
    FromVm,
    /// The VM is sent it.
    ToVm,
}

/// What watches frames. It runs on the data path: it must neither wait nor allocate.
pub trait Probe: Send + Sync {
    /// Sees the frames `frames` (indices into `batch`) that came by at the time `at`;
    /// [`Batch::end`] says which of them were dropped, and why.
    fn see(&self, at: SystemTime, direction: Direction, batch: &Batch, frames: &[u8]);
}

/// A place of a port where its frames can be watched; off at first.
pub struct Tracepoint {
    on: AtomicBool,
    probe: Box<dyn Probe>,
}

impl Tracepoint {
    /// One whose frames `probe` sees.
    pub fn new(probe: impl Probe + 'static) -> Self {
        Self {
            on: AtomicBool::new(false),
            probe: Box::new(probe),
        }
    }

    /// Turns it on or off. A burst that is on its way may not notice.
    pub fn turn(&self, on: bool) {
        self.on.store(on, Ordering::Release);
    }

    /// If it is on: what the burst in `batch` is to be shown with once its frames were dealt with.
    /// From here on [`Batch::end`] says what becomes of them.
    #[inline]
    pub fn start(&self, batch: &mut Batch) -> Option<Trace<'_>> {
        if self.on.load(Ordering::Acquire) {
            Some(self.start_on(batch))
        } else {
            None
        }
    }

    #[cold]
    fn start_on(&self, batch: &mut Batch) -> Trace<'_> {
        batch.forget_ends();
        Trace {
            probe: &*self.probe,
            at: SystemTime::now(),
        }
    }
}

/// A burst that is watched, and when it came by.
pub struct Trace<'a> {
    probe: &'a dyn Probe,
    at: SystemTime,
}

impl Trace<'_> {
    /// Shows frames of the burst.
    #[cold]
    pub fn see(&self, direction: Direction, batch: &Batch, frames: &[u8]) {
        self.probe.see(self.at, direction, batch, frames);
    }
}
