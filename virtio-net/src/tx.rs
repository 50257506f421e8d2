//! Draining a TX queue: from a guest's ring into a [`Batch`].

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::counters::{Counters, DropReason};
use crate::frame::{BURST, Batch, FrameStart};
use crate::memory::Memory;
use crate::offload::{self, HeaderError};
use crate::queue::{Call, QueueState};
use crate::ring::{Queue, Ring, RingConfig, RingError, SetupError, Taken};
use crate::spec::*;
use crate::trace::{Direction, Tracepoint};
use crate::wire::parse;

/// The part of a ring that may be given back late.
const LATE_SHARE: u32 = 4;

/// Bytes a frame may be longer than the MTU: addresses, type and one tag.
const L2_BYTES: usize = 14 + 4;

/// A queue of frames from the VM.
pub struct TxQueue {
    state: QueueState,
    taken: [Taken; BURST],
    /// The frames of the chains in `taken`, in the same places.
    started: Box<[FrameStart; BURST]>,
    /// Longest frame that is no segment offload.
    max_frame: usize,
    may: MaySend,
    tracepoint: Option<Arc<Tracepoint>>,
}

/// What the driver may say in a vnet header, from the negotiated features.
#[derive(Clone, Copy, Default)]
struct MaySend {
    csum: bool,
    tso4: bool,
    tso6: bool,
    ecn: bool,
    uso: bool,
}

impl MaySend {
    fn new(features: u64) -> Self {
        Self {
            csum: has(features, VIRTIO_NET_F_CSUM),
            tso4: has(features, VIRTIO_NET_F_HOST_TSO4),
            tso6: has(features, VIRTIO_NET_F_HOST_TSO6),
            ecn: has(features, VIRTIO_NET_F_HOST_ECN),
            uso: has(features, VIRTIO_NET_F_HOST_USO),
        }
    }

    fn allows(self, hdr: &NetHdr) -> bool {
        let gso = match hdr.gso_type & !NET_HDR_GSO_ECN {
            NET_HDR_GSO_NONE => true,
            NET_HDR_GSO_TCPV4 => self.tso4,
            NET_HDR_GSO_TCPV6 => self.tso6,
            NET_HDR_GSO_UDP_L4 => self.uso,
            _ => false,
        };
        gso && (self.csum || hdr.flags & NET_HDR_F_NEEDS_CSUM == 0)
            && (self.ecn || hdr.gso_type & NET_HDR_GSO_ECN == 0)
    }
}

impl Default for TxQueue {
    fn default() -> Self {
        Self {
            state: QueueState::default(),
            taken: [Taken::default(); BURST],
            started: Box::new([FrameStart::default(); BURST]),
            max_frame: MAX_FRAME,
            may: MaySend::default(),
            tracepoint: None,
        }
    }
}

impl Deref for TxQueue {
    type Target = QueueState;
    fn deref(&self) -> &QueueState {
        &self.state
    }
}

impl DerefMut for TxQueue {
    fn deref_mut(&mut self) -> &mut QueueState {
        &mut self.state
    }
}

impl TxQueue {
    /// Starts the ring, or starts it again at another place. A repeat with the configuration that
    /// is already running changes nothing and gives false, so that a VMM may repeat itself on a live
    /// ring. `mtu` bounds the frames; `None`: no bound.
    pub fn start(
        &mut self,
        config: &RingConfig,
        base: u16,
        mtu: Option<u16>,
    ) -> Result<bool, SetupError> {
        let anew = self.state.start(config, base, true)?;
        self.state.late.reserve(BURST);
        self.may = MaySend::new(config.features);
        self.max_frame = mtu.map_or(MAX_FRAME, |m| usize::from(m) + L2_BYTES);
        Ok(anew)
    }

    /// Shows the frames that it drops from now on. Those that it takes are for others to show, who know
    /// what becomes of them.
    pub fn set_tracepoint(&mut self, tracepoint: Arc<Tracepoint>) {
        self.tracepoint = Some(tracepoint);
    }

    /// Takes up to a burst of frames from the ring into the empty `batch`, and counts them. Each
    /// is validated; a bad one is counted and left out. Returns the chains taken; as long as that
    /// is not 0, [`TxQueue::complete`] must follow, after the frames were delivered.
    pub fn drain(&mut self, batch: &mut Batch, counters: &Counters) -> usize {
        if self.state.stopped().is_some() {
            return 0;
        }
        let Some(mut ring) = self.state.ring.take() else {
            return 0;
        };
        let result = match &mut ring {
            Ring::Split(r) => self.drain_ring(r, batch, counters),
            Ring::Packed(r) => self.drain_ring(r, batch, counters),
        };
        self.state.ring = Some(ring);
        if let Err(e) = result {
            self.state.break_ring(e);
        }
        self.state.held
    }

    fn drain_ring<Q: Queue>(
        &mut self,
        ring: &mut Q,
        batch: &mut Batch,
        counters: &Counters,
    ) -> Result<(), RingError> {
        if !ring.poll()? {
            return Ok(());
        }
        batch.attach(&self.state.memory);
        ring.prefetch(BURST as u16);
        let QueueState { memory, held, .. } = &mut self.state;
        let first = *held;
        let places = self.taken[first..].iter_mut();
        let mut result = Ok(());
        // First all chains, then all heads: by then they are on their way into the cache.
        for (taken, f) in places.zip(&mut self.started[first..]) {
            if !batch.has_room() {
                break;
            }
            match take_frame(ring, memory, batch, f) {
                Ok(Some(chain)) => *taken = chain,
                Ok(None) => break,
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
            *held += 1;
        }
        if let Some(journal) = &self.state.journal {
            journal.deliver(ring.place());
        }
        let mut bytes = 0;
        for f in &self.started[first..self.state.held] {
            if let Err(reason) = self.add_frame(batch, f, &mut bytes) {
                counters.count_drop(reason, 1);
                self.show_refused(batch, f, reason);
            }
        }
        counters.add((self.state.held - first) as u64, bytes);
        result
    }

    /// Shows a frame that [`TxQueue::drain`] leaves out to whoever watches.
    #[cold]
    fn show_refused(&self, batch: &mut Batch, f: &FrameStart, reason: DropReason) {
        let Some(tracepoint) = &self.tracepoint else {
            return;
        };
        if let Some(trace) = tracepoint.start(batch)
            && batch.salvage(f, self.state.hdr_len, reason)
        {
            let place = batch.len();
            batch.set_end(place, reason);
            trace.see(Direction::FromVm, batch, &[place as u8]);
        }
    }

    /// Adds a frame whose buffers were collected, if it is good, and its bytes.
    #[inline]
    fn add_frame(
        &self,
        batch: &mut Batch,
        f: &FrameStart,
        bytes: &mut u64,
    ) -> Result<(), DropReason> {
        let mut plain = None;
        if self.state.hdr_len == NET_HDR_LEN {
            plain = batch.end_whole(f, self.max_frame);
        }
        if plain.is_none() {
            batch.end_frame(f, self.state.hdr_len)?;
        }
        // What is not a frame has only the bytes that its guest says it has: counted from here.
        *bytes += f.frame_bytes(self.state.hdr_len);
        if plain == Some(true) {
            return Ok(());
        }
        self.judge(batch)
    }

    /// Checks the frame added last against what was negotiated; takes it back if it is bad.
    fn judge(&self, batch: &mut Batch) -> Result<(), DropReason> {
        let i = batch.len() - 1;
        let result = if !batch.make_plain(i) {
            self.judge_offload(batch, i)
        } else if batch.frame_len(i) > self.max_frame {
            Err(DropReason::MtuExceeded)
        } else {
            Ok(())
        };
        if result.is_err() {
            batch.pop();
        }
        result
    }

    fn judge_offload(&self, batch: &mut Batch, i: usize) -> Result<(), DropReason> {
        let mut hdr = batch.hdr(i);
        hdr.flags &= NET_HDR_F_NEEDS_CSUM;
        if !self.may.allows(&hdr) {
            return Err(DropReason::BadVnetHeader);
        }
        let len = batch.frame_len(i);
        batch.set_hdr(i, hdr);
        let parsed = loop {
            let parsed = parse(batch.head(i), len);
            match offload::validate_parsed(&hdr, &parsed, len) {
                Ok(()) => break parsed,
                Err(HeaderError::HeadTooShort { need }) if batch.pull_up(i, need) => {}
                Err(HeaderError::HeadTooShort { .. }) => return Err(DropReason::HeadersTooLong),
                Err(_) => return Err(DropReason::BadVnetHeader),
            }
        };
        // Of a segment offload each segment must fit, with the headers it gets.
        let unit = match hdr.gso_type {
            NET_HDR_GSO_NONE => len,
            _ => usize::from(parsed.payload) + usize::from(hdr.gso_size),
        };
        if unit > self.max_frame {
            return Err(DropReason::MtuExceeded);
        }
        Ok(())
    }

    /// Gives all drained buffers back to the guest, at once. Whom to call after unlocking.
    ///
    /// A driver that polls gets those of the last burst one burst late, or when
    /// [`TxQueue::give_back`] is called, or before we sleep. Such a driver cleans up when its ring
    /// is full: if all of it is used by then, it frees the whole ring's buffers at once, more than
    /// its caches hold, and the next ones it takes are cold for it and for us. While a burst is out
    /// it frees one burst.
    pub fn complete(&mut self) -> Option<Arc<dyn Call>> {
        let mut wanted = self.state.give_back_late();
        let state = &mut self.state;
        let chains = &self.taken[..std::mem::take(&mut state.held)];
        let few = chains.iter().map(|c| u32::from(c.slots)).sum::<u32>()
            <= u32::from(state.config().size) / LATE_SHARE;
        let polls = match &state.ring {
            Some(Ring::Split(r)) => r.driver_polls(),
            Some(Ring::Packed(r)) => r.driver_polls(),
            None => return None,
        };
        state.late.extend_from_slice(chains);
        if !(few && polls) {
            wanted |= state.give_back_late();
        }
        state.callee(wanted)
    }

    /// Is there something to be given back?
    #[inline]
    pub fn is_late(&self) -> bool {
        !self.state.late.is_empty()
    }

    /// Asks the driver to notify us, or not to, about buffers it makes available. Whoever asks for
    /// it is about to sleep: what was held over is given back. Whom to call after unlocking.
    #[must_use]
    pub fn set_kicks(&mut self, on: bool) -> Option<Arc<dyn Call>> {
        let call = if on { self.give_back() } else { None };
        self.state.set_kicks(on);
        call
    }

    /// Gives back what was held over from the last burst: no other followed. Whom to call after
    /// unlocking.
    #[must_use]
    pub fn give_back(&mut self) -> Option<Arc<dyn Call>> {
        let wanted = self.state.give_back_late();
        self.state.callee(wanted)
    }
}

#[inline]
fn take_frame<Q: Queue>(
    ring: &mut Q,
    memory: &Memory,
    batch: &mut Batch,
    f: &mut FrameStart,
) -> Result<Option<Taken>, RingError> {
    let mark = ring.mark();
    if let Some((taken, addr, len)) = ring.take_buffer(false, MIN_FRAME as u32) {
        if batch.whole_piece(f, memory, addr, len) {
            return Ok(Some(taken));
        }
        ring.rewind(mark);
    }
    take_chain(ring, memory, batch, f)
}

fn take_chain<Q: Queue>(
    ring: &mut Q,
    memory: &Memory,
    batch: &mut Batch,
    f: &mut FrameStart,
) -> Result<Option<Taken>, RingError> {
    batch.start_frame(f);
    // A network device has nothing to write in a TX chain (5.1.6.2). DPDK's packed rings mark the
    // vnet header of a frame in several buffers as writable all the same, and mean it to be read.
    let taken = ring.take(memory, |addr, len, _writable| {
        batch.piece(f, memory, addr, len);
    });
    match taken {
        Ok(Some(_)) => batch.end_pieces(f),
        Ok(None) => {}
        Err(_) => batch.abandon_frame(f),
    }
    taken
}
