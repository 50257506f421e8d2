//! Captures: the frames of a port, as pcapng.
//!
//! ```text
//!   threads that carry frames                a thread for each capture         the API
//!   tracepoint ─► filter ─► copy ─► ring ──► pcapng, at the lowest priority ─► connection
//! ```
//!
//! A frame is copied where it is dealt with, once it is known what becomes of it; frames that the
//! filter does not want are not. Nothing there waits: a full ring loses the frame for the capture, and
//! counts it, and so does a capture that has had its share of the time. Who reads too slowly, and a
//! host without CPU time to spare, so lose captured frames, and no others.

mod budget;
mod drain;
mod filter;
mod pcapng;
mod record;
mod ring;
mod seen;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use hyper::body::Bytes;
use tandem_virtio_net::{Batch, Direction, Probe, Tracepoint};
use tokio::sync::mpsc::Receiver;

use self::seen::Capture;
use crate::control::{Refused, RefusedKind};
use crate::port::lock;
use crate::status::CaptureStatus;

pub use self::filter::{Filter, FilterError};
pub(crate) use self::pcapng::{COMMENT, DROPPED, LOST, PACKET, STATISTICS};

/// Captures at once, of all ports.
pub const MOST: u32 = 8;
/// Longest part of a frame that can be asked for; longer than any frame, and what tcpdump asks for.
pub const MAX_SNAPLEN: u32 = 262_144;

/// Which frames, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drops {
    /// Those that were delivered and those that were dropped.
    #[default]
    With,
    /// Those that were dropped.
    Only,
    /// Those that were not.
    Without,
}

/// What is to be captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// One direction; none: both.
    pub direction: Option<Direction>,
    /// By what became of them.
    pub drops: Drops,
    /// Bytes of each frame, at most.
    pub snaplen: u32,
    /// Frames after which it ends.
    pub count: Option<u64>,
    /// The filter.
    pub filter: Option<Filter>,
    /// How the filter was written, for the file.
    pub expression: Option<String>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            direction: None,
            drops: Drops::default(),
            snaplen: MAX_SNAPLEN,
            count: None,
            filter: None,
            expression: None,
        }
    }
}

/// How many captures run.
#[derive(Clone, Default)]
pub(crate) struct Slots(Arc<AtomicU32>);

/// One of them.
struct Slot(Arc<AtomicU32>);

impl Slots {
    fn take(&self) -> Result<Slot, Refused> {
        let more = |n: u32| (n < MOST).then_some(n + 1);
        let taken = (self.0).fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.map(|_| Slot(Arc::clone(&self.0))).map_err(|n| {
            let reason = format!("{n} captures run already");
            Refused::new(RefusedKind::Conflict, reason, "end one of them first")
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The captures of one port.
pub(crate) struct Captures {
    tracepoint: Arc<Tracepoint>,
    running: Arc<Running>,
}

/// What the tracepoint shows its frames to.
#[derive(Default)]
struct Running {
    /// Read on the data path.
    list: ArcSwap<Vec<Arc<Capture>>>,
    /// Held for a change of the list.
    change: Mutex<()>,
    /// Frames that captures have lost.
    lost: Arc<AtomicU64>,
}

/// The probe, which does not keep the captures' port.
struct Watcher(Arc<Running>);

impl Probe for Watcher {
    fn see(&self, at: SystemTime, direction: Direction, batch: &Batch, frames: &[u8]) {
        let at = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        for capture in self.0.list.load().iter() {
            capture.see(at, direction, batch, frames);
        }
    }
}

impl Default for Captures {
    fn default() -> Self {
        let running = Arc::new(Running::default());
        let watcher = Watcher(Arc::clone(&running));
        Self {
            tracepoint: Arc::new(Tracepoint::new(watcher)),
            running,
        }
    }
}

impl Captures {
    /// Where the port's frames are to be shown.
    pub(crate) fn tracepoint(&self) -> Arc<Tracepoint> {
        Arc::clone(&self.tracepoint)
    }

    /// Starts a capture of the port `name` of a switch. It ends when the other end of what it gives is
    /// gone, or the port.
    ///
    /// # Errors
    /// `Conflict`: there are [`MOST`] already. `System`: its thread could not be started.
    pub(crate) fn start(
        &self,
        (name, switch): (&str, &str),
        request: &Request,
        slots: &Slots,
    ) -> Result<Receiver<Bytes>, Refused> {
        let slot = slots.take()?;
        let (capture, reader) = Capture::new(request, Arc::clone(&self.running.lost));
        let capture = Arc::new(capture);
        let mut header = Vec::new();
        let description = format!(
            "port {name} of switch {switch}; inbound frames come from the VM, outbound ones go to it"
        );
        let interface = pcapng::Interface {
            port: name,
            description: &description,
            snaplen: request.snaplen,
            expression: request.expression.as_deref(),
        };
        pcapng::header(&mut header, &interface);
        self.change(|list| list.push(Arc::clone(&capture)));
        let leave = self.leave(&capture);
        let drain = drain::Drain::new(capture, reader, request.count, header);
        drain.start(name, (leave, slot)).map_err(|e| {
            let reason = format!("a thread could not be started: {e}");
            Refused::new(RefusedKind::System, reason, "see the limits on threads")
        })
    }

    /// Ends all captures: the port goes away.
    pub(crate) fn end(&self) {
        self.change(|list| {
            for capture in list.drain(..) {
                capture.ended.store(true, Ordering::Release);
            }
        });
    }

    pub(crate) fn status(&self) -> CaptureStatus {
        CaptureStatus {
            active: self.running.list.load().len() as u32,
            dropped_frames: self.running.lost.load(Ordering::Relaxed),
        }
    }

    fn leave(&self, capture: &Arc<Capture>) -> Leave {
        Leave {
            captures: Self {
                tracepoint: self.tracepoint(),
                running: Arc::clone(&self.running),
            },
            capture: Arc::clone(capture),
        }
    }

    /// Changes the list. No burst uses what was taken off it when this returns.
    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Capture>>)) {
        let _one_at_a_time = lock(&self.running.change);
        let old = self.running.list.load_full();
        let mut new = old.to_vec();
        change(&mut new);
        let on = !new.is_empty();
        self.running.list.store(Arc::new(new));
        self.tracepoint.turn(on);
        // So that none is freed on the data path.
        while Arc::strong_count(&old) > 1 {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// Takes a capture off the list when it is dropped.
struct Leave {
    captures: Captures,
    capture: Arc<Capture>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let mine = &self.capture;
        (self.captures).change(|list| list.retain(|capture| !Arc::ptr_eq(capture, mine)));
    }
}
