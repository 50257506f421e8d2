//! What a TX and an RX queue have in common: their ring, their memory and their life.
//!
//! ```text
//!            start                      break
//!  stopped ─────────► running ───────────────► broken
//!     ▲                  │                        │
//!     └──────── stop ────┴────────── stop ────────┘
//! ```
//!
//! A running queue carries frames while it is also enabled. Every method here is called with the
//! lock of the queue held, so when `stop` or `set_memory` returns nobody uses what was there.

use std::sync::Arc;

use crate::memory::{DirtyLog, Memory};
use crate::ring::{Journal, Queue, Ring, RingConfig, RingError, SetupError, Taken};
use crate::spec::NetHdr;

/// How a queue tells the VMM to notify the guest. Must not block.
pub trait Call: Send + Sync {
    /// Notifies the guest once.
    fn call(&self);
}

/// What keeps a queue from carrying frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Its driver has not started it, or the VMM has disabled it.
    NotReady,
    /// The ring broke the rules.
    Broken(RingError),
    /// A page of the VM's memory could not be had.
    Fault,
}

/// A virtqueue's ring, memory and state.
pub struct QueueState {
    pub(crate) ring: Option<Ring>,
    pub(crate) memory: Memory,
    pub(crate) hdr_len: usize,
    /// Chains taken from this ring that are still to be given back to it.
    pub(crate) held: usize,
    /// Those of the last burst of a TX queue, if they are given back late.
    pub(crate) late: Vec<Taken>,
    pub(crate) journal: Option<Journal>,
    config: RingConfig,
    call: Option<Arc<dyn Call>>,
    enabled: bool,
    broken: Option<RingError>,
}

impl Default for QueueState {
    fn default() -> Self {
        Self {
            ring: None,
            memory: Memory::empty(),
            hdr_len: NetHdr::len_for(0),
            held: 0,
            late: Vec::new(),
            journal: None,
            config: RingConfig::default(),
            call: None,
            enabled: false,
            broken: None,
        }
    }
}

impl QueueState {
    /// Starts the ring, or starts it again at another place, and asks the driver to notify or
    /// not. False: it runs with this configuration already, and nothing was changed, so that a
    /// VMM may repeat itself on a live ring.
    pub(crate) fn start(
        &mut self,
        config: &RingConfig,
        base: u16,
        kicks: bool,
    ) -> Result<bool, SetupError> {
        if self.ring.is_some() && self.config == *config {
            return Ok(false);
        }
        self.stop();
        let mut ring = Ring::start(config, &self.memory, base)?;
        ring.set_kicks(&self.memory, kicks);
        self.ring = Some(ring);
        self.config = *config;
        self.hdr_len = NetHdr::len_for(config.features);
        Ok(true)
    }

    /// Stops the ring. The position where whoever goes on must start, and is told; none if it did
    /// not run.
    pub fn stop(&mut self) -> Option<u16> {
        self.give_back_late();
        self.broken = None;
        self.held = 0;
        let ring = self.ring.take()?;
        if let Some(journal) = self.journal.take() {
            journal.clear();
        }
        Some(ring.base())
    }

    /// Gives back what was held over from the last burst. True if the guest wants to be notified.
    pub(crate) fn give_back_late(&mut self) -> bool {
        let wanted = match &mut self.ring {
            Some(_) if self.memory.fault().is_set() => false,
            Some(Ring::Split(r)) => r.give_back(&self.memory, &self.late),
            Some(Ring::Packed(r)) => r.give_back(&self.memory, &self.late),
            None => false,
        };
        self.late.clear();
        wanted
    }

    /// Keeps the position of the running ring in `journal`, or goes on where that says it was;
    /// and of a TX queue what of it is delivered. Nothing of the ring may have been taken yet. True
    /// if it is a ring that was served before and never stopped: its driver goes on.
    pub fn keep_position(&mut self, journal: Journal) -> bool {
        let Some(ring) = &mut self.ring else {
            return false;
        };
        let goes_on = ring.keep_position(&self.memory, &self.config, &journal);
        self.journal = Some(journal);
        goes_on
    }

    /// Ends everything a session set: the ring, its memory, how to call. Nobody is told where the
    /// ring was, so its journal keeps that.
    pub fn reset(&mut self) {
        self.give_back_late();
        *self = Self::default();
    }

    /// Swaps the memory, and with it the dirty log; a running ring is found again in it or stops
    /// with an error.
    pub fn set_memory(&mut self, memory: Memory) -> Result<(), SetupError> {
        // While what it lies in is still there.
        self.give_back_late();
        self.memory = memory;
        if let Some(ring) = &mut self.ring
            && let Err(e) = ring.remap(&self.config, &self.memory)
        {
            self.stop();
            return Err(e);
        }
        Ok(())
    }

    /// Starts, replaces or ends the recording of writes to guest memory.
    pub fn set_log(&mut self, log: Option<DirtyLog>) {
        self.memory.set_log(log);
    }

    /// Lets frames through, or not.
    pub fn set_enabled(&mut self, enabled: bool) {
        if !enabled {
            self.give_back_late();
        }
        self.enabled = enabled;
    }

    /// Says how to notify the guest; nothing: it polls.
    pub fn set_call(&mut self, call: Option<Arc<dyn Call>>) {
        self.call = call;
    }

    /// Who is to be called, if the guest wants it. Ask after each publish, call after unlocking.
    #[inline]
    pub(crate) fn callee(&mut self, wanted: bool) -> Option<Arc<dyn Call>> {
        if wanted { self.call.clone() } else { None }
    }

    /// Marks the ring as broken. It stays so until it is started anew.
    #[cold]
    pub(crate) fn break_ring(&mut self, error: RingError) {
        self.broken = Some(error);
    }

    /// Did the ring break the rules?
    #[inline]
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// What keeps the queue from carrying frames, if anything does.
    #[inline]
    pub fn stopped(&self) -> Option<Stopped> {
        // First: where memory is gone, rings look broken too.
        if self.memory.fault().is_set() {
            return Some(Stopped::Fault);
        }
        if let Some(error) = self.broken {
            return Some(Stopped::Broken(error));
        }
        (self.ring.is_none() || !self.enabled).then_some(Stopped::NotReady)
    }

    /// Has its driver used the ring before: here, or where it came from?
    pub fn has_run(&self) -> bool {
        // Where a ring starts (virtio 1.3, 2.7.13 and 2.8.10: both wrap counters are 1).
        match &self.ring {
            Some(ring @ Ring::Split(_)) => ring.base() != 0,
            Some(ring @ Ring::Packed(_)) => ring.base() != 1 << 15,
            None => false,
        }
    }

    /// Is there a ring?
    pub fn is_running(&self) -> bool {
        self.ring.is_some()
    }

    /// May it carry frames?
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Where the running ring lies and what was negotiated for it.
    pub fn config(&self) -> &RingConfig {
        &self.config
    }

    /// Asks the driver to notify, or not to notify, about buffers it makes available.
    pub fn set_kicks(&mut self, on: bool) {
        if self.stopped().is_none()
            && let Some(ring) = &mut self.ring
        {
            ring.set_kicks(&self.memory, on);
        }
    }

    /// Is a buffer available?
    pub fn has_work(&mut self) -> bool {
        self.stopped().is_none() && self.ring.as_mut().is_some_and(Ring::has_work)
    }
}
