//! A guest's port: its queue pairs, what it offers the VM, and how frames reach it.
//!
//! Locks, in the order they may be taken: a pair's `tx`, then one foreign pair's `rx` or, after that,
//! its `wake`. `tx` and `rx` are not held across a system call that can block: guests are notified when
//! a burst is done. Control (a vhost-user session, the API) takes them one at a time to start, stop and
//! swap, so that when it returns nobody uses what was before.

mod change;
mod device;
mod hold;
mod pair;
mod state;

use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;
use log::warn;
use tandem_migration::state::PortState;
use tandem_uplink::{Forwarder, Outlet, PortId, Switch};
use tandem_virtio_net::queue::Stopped;
use tandem_virtio_net::ring::{Journal, RingConfig};
use tandem_virtio_net::spec::*;
use tandem_virtio_net::wire::{parse, plain_flow};
use tandem_virtio_net::{BURST, Batch, Counters, DropReason, Scratch};

use crate::capture::Captures;
use crate::sys::JournalFile;

use hold::Hold;
pub use pair::{Pair, RingState};

/// The set of features offered at feature level 1. A level never changes once released: a VM that
/// runs with it must find the same set on every version of Tandem and on every host.
pub const FEATURES_LEVEL_1: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_ANY_LAYOUT
    | 1 << VIRTIO_F_INDIRECT_DESC
    | 1 << VIRTIO_F_EVENT_IDX
    | 1 << VIRTIO_F_RING_PACKED
    | 1 << VIRTIO_F_IN_ORDER
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_HOST_USO
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6
    | 1 << VIRTIO_NET_F_MTU
    | 1 << VIRTIO_NET_F_MQ
    | 1 << VIRTIO_NET_F_CTRL_VQ
    | 1 << VIRTIO_NET_F_GUEST_ANNOUNCE;

/// Locks; a thread that panicked while holding the lock leaves data that is still whole.
pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a guest port is made from.
#[derive(Clone, Debug)]
pub struct GuestPortConfig {
    /// The port's name.
    pub name: String,
    /// 1 to 32.
    pub queue_pairs: u16,
    /// Longest packet, without Ethernet header.
    pub mtu: u16,
    /// The guest pairs this NIC with a VF: it must not announce by itself.
    pub failover: bool,
    /// The set of features that is offered.
    pub feature_level: u32,
    /// Where positions of rings are kept that must outlive us; nowhere: a crash loses them.
    pub journal: Option<PathBuf>,
}

/// A VM's NIC on the switch.
pub struct GuestPort {
    config: GuestPortConfig,
    pairs: Box<[Pair]>,
    acked: AtomicU64,
    /// Bit N: pair N's RX ring runs, is enabled and has been given buffers.
    active: AtomicU32,
    /// Bit N: pair N's RX ring runs and is enabled, but its driver has posted nothing yet.
    unpopulated: AtomicU32,
    /// Of the port as a whole: what the switch drops.
    pub from_vm: Arc<Counters>,
    segmented_frames: AtomicU64,
    segments: AtomicU64,
    hash: SeedableRandomState,
    journal: Mutex<Option<JournalFile>>,
    /// The driver is one that we served before, and is about to be served again.
    back: AtomicBool,
    /// It has run elsewhere, and not been served by us since.
    arrives: AtomicBool,
    /// What was brought from another host, until the driver goes on here.
    brought: Mutex<Option<PortState>>,
    /// What another host says that a VM has which comes from there, in case it brings nothing itself.
    expected: Mutex<Option<PortState>>,
    /// The driver that starts next is the one that a state was loaded or saved of.
    arrived: AtomicBool,
    /// A [`Way`].
    way: AtomicU8,
    /// The change of hosts that is on, or was last.
    pub(crate) change: change::Change,
    /// Its place on the switch.
    place: OnceLock<(Weak<Switch>, PortId)>,
    tell: OnceLock<Box<dyn Fn(Event) + Send + Sync>>,
    captures: Captures,
    hold: Hold,
    /// Of frames that were held.
    pub to_vm: Counters,
}

/// What happens to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The VMM is gone.
    Gone,
    /// A driver has started that knows nothing of what was before: another VM, or the same rebooted.
    NewDriver,
    /// A driver that was left without a back-end for a while is served again.
    Back,
    /// A driver is served that has run elsewhere before.
    Arrived,
    /// Its rings are stopped for a migration; frames for it are held.
    Held,
    /// What a report says of the port may be different.
    Changed,
}

impl GuestPort {
    /// Makes the port; nothing runs yet.
    pub fn new(config: GuestPortConfig) -> Self {
        let captures = Captures::default();
        let pairs = 0..config.queue_pairs.clamp(1, MAX_QUEUE_PAIRS);
        let pairs = pairs.map(|_| Pair::new(captures.tracepoint()));
        let seed = std::hash::RandomState::new().hash_one(&config.name);
        Self {
            pairs: pairs.collect(),
            config,
            acked: AtomicU64::new(0),
            active: AtomicU32::new(0),
            unpopulated: AtomicU32::new(0),
            from_vm: Arc::default(),
            segmented_frames: AtomicU64::new(0),
            segments: AtomicU64::new(0),
            hash: SeedableRandomState::with_seed(seed, SharedSeed::global_random()),
            journal: Mutex::default(),
            back: AtomicBool::new(false),
            arrives: AtomicBool::new(false),
            brought: Mutex::default(),
            expected: Mutex::default(),
            arrived: AtomicBool::new(false),
            way: AtomicU8::new(0),
            change: change::Change::default(),
            place: OnceLock::new(),
            tell: OnceLock::new(),
            captures,
            hold: Hold::default(),
            to_vm: Counters::default(),
        }
    }

    /// The port's name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Captures of its frames.
    pub(crate) fn captures(&self) -> &Captures {
        &self.captures
    }

    /// Its queue pairs.
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// Frames that were cut up for a VM without the offload, and their segments.
    pub fn segmented(&self) -> (u64, u64) {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (load(&self.segmented_frames), load(&self.segments))
    }

    /// The journal for a ring that is about to start, if it needs one.
    fn journal(&self, ring: u16, config: &RingConfig) -> Option<Journal> {
        let path = self.config.journal.as_ref()?;
        // A split RX ring tells all there is to know by itself.
        if ring.is_multiple_of(2) && !has(config.features, VIRTIO_F_RING_PACKED) {
            return None;
        }
        let mut file = lock(&self.journal);
        if file.is_none() {
            match JournalFile::open(path, 2 * self.pairs.len()) {
                Ok(opened) => *file = Some(opened),
                Err(e) => {
                    let (name, path) = (&self.config.name, path.display());
                    warn!("port {name}: {path}: {e}; its rings may not survive a restart");
                }
            }
        }
        file.as_ref()?.record(ring)
    }

    /// Removes the file in which positions are kept: no VMM will come back to them.
    pub fn forget_positions(&self) {
        if let Some(path) = &self.config.journal {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Has the VMM done what ends its session: taken memory back, or made a notification block?
    pub fn must_end(&self) -> bool {
        self.bell_is_stuck()
            || self
                .pairs
                .iter()
                .any(|p| lock(&p.rx).stopped() == Some(Stopped::Fault))
    }

    fn bell_is_stuck(&self) -> bool {
        let stuck = |p: &Pair| lock(&p.bells).iter().flatten().any(|b| b.is_stuck());
        self.pairs.iter().any(stuck)
    }

    /// Gives the port its place on the switch, each pair what forwards its frames, and the port whom to
    /// tell what happens to it.
    pub fn attach(
        &self,
        (switch, id): (&Arc<Switch>, PortId),
        tell: impl Fn(Event) + Send + Sync + 'static,
    ) {
        let _ = self.place.set((Arc::downgrade(switch), id));
        let _ = self.tell.set(Box::new(tell));
        for pair in &self.pairs {
            lock(&pair.tx).forwarder = Some(Forwarder::new(Arc::clone(switch), id));
        }
    }

    fn tell(&self, event: Event) {
        if let Some(tell) = self.tell.get() {
            tell(event);
        }
        self.change.told();
    }

    /// Notes whose driver has started the TX ring `ring`: whether it goes on where we were, and whether the
    /// state of its port came along. The first pair's speaks for all.
    fn driver_is(&self, ring: u16, goes_on: bool, has_state: bool) {
        if ring != 1 {
            return;
        }
        let known = goes_on || has_state;
        // One that has run, and not here, has come from elsewhere.
        let arrives = !goes_on && lock(&self.pairs[0].tx).queue.has_run();
        self.back.store(known, Ordering::Relaxed);
        self.arrives.store(arrives, Ordering::Relaxed);
        if !known {
            self.tell(Event::NewDriver);
        }
    }

    /// Says that a driver is back, once it can be sent frames.
    fn tell_if_back(&self) {
        let RingState {
            enabled, running, ..
        } = self.pairs[0].ring_state();
        if !enabled || !running {
            return;
        }
        if self.back.swap(false, Ordering::Relaxed) {
            self.tell(Event::Back);
        }
        if self.arrives.swap(false, Ordering::Relaxed) {
            self.tell(Event::Arrived);
        }
    }

    /// Looks again which pairs have been given buffers. Some drivers start rings they never use,
    /// and some VMMs enable rings their guest has not taken into use.
    pub fn look_for_buffers(&self) {
        let waiting = self.unpopulated.load(Ordering::Relaxed);
        if waiting == 0 {
            return;
        }
        for (i, pair) in self
            .pairs
            .iter()
            .enumerate()
            .filter(|(i, _)| waiting & 1 << i != 0)
        {
            // The masks follow the ring: both are changed with its lock held.
            let mut rx = lock(&pair.rx);
            if rx.is_running() && rx.is_enabled() && rx.is_populated() {
                self.active.fetch_or(1 << i, Ordering::Relaxed);
                self.unpopulated.fetch_and(!(1 << i), Ordering::Relaxed);
            }
        }
        self.end_hold_if_back();
    }

    /// Does the driver notify us of buffers where we see none? It posts those for what it receives
    /// before all else.
    pub fn is_notified_in_vain(&self) -> bool {
        let first = &self.pairs[0];
        let rings = first.ring_state();
        rings.running
            && rings.enabled
            && self.unpopulated.load(Ordering::Relaxed) & 1 != 0
            && first.kicks.load(Ordering::Relaxed) > 0
            && first.from_vm.frames() == 0
    }

    fn refresh(&self, i: usize) {
        let bit = 1 << i;
        let mut rx = lock(&self.pairs[i].rx);
        let up = rx.is_running() && rx.is_enabled();
        let populated = up && rx.is_populated();
        let set = |mask: &AtomicU32, on: bool| {
            if on {
                mask.fetch_or(bit, Ordering::Relaxed)
            } else {
                mask.fetch_and(!bit, Ordering::Relaxed)
            }
        };
        set(&self.active, populated);
        set(&self.unpopulated, up && !populated);
    }

    /// The pair that the flow of frame `i` goes to.
    #[inline]
    fn pair_for(&self, batch: &Batch, i: u8, active: u32) -> u32 {
        let head = batch.head(usize::from(i));
        let hash = match plain_flow(head) {
            Some([addresses, rest]) => {
                let mut hasher = self.hash.build_hasher();
                hasher.write_u64(addresses);
                hasher.write_u64(rest);
                hasher.finish()
            }
            None => {
                let parsed = parse(head, batch.frame_len(usize::from(i)));
                self.hash.hash_one(parsed.key)
            }
        };
        crate::spread::pick(hash, active)
    }

    fn deliver_spread(
        &self,
        batch: &mut Batch,
        frames: &[u8],
        scratch: &mut Scratch,
        (active, hold): (u32, Option<&Hold>),
    ) {
        let mut choice = [0u8; BURST];
        let mut wanted = 0u32;
        for (slot, i) in choice.iter_mut().zip(frames) {
            let pair = self.pair_for(batch, *i, active);
            *slot = pair as u8;
            wanted |= 1 << pair;
        }
        let mut list = [0u8; BURST];
        while wanted != 0 {
            let pair = wanted.trailing_zeros();
            wanted &= wanted - 1;
            let mut n = 0;
            for (slot, i) in choice.iter().zip(frames) {
                if u32::from(*slot) == pair {
                    list[n] = *i;
                    n += 1;
                }
            }
            self.fill(pair, batch, &list[..n], scratch, hold);
        }
    }

    fn fill(
        &self,
        pair: u32,
        batch: &mut Batch,
        frames: &[u8],
        scratch: &mut Scratch,
        hold: Option<&Hold>,
    ) {
        let segmented = self.pairs[pair as usize].fill(batch, frames, scratch, hold);
        if segmented.frames != 0 {
            self.segmented_frames
                .fetch_add(segmented.frames, Ordering::Relaxed);
            self.segments
                .fetch_add(segmented.segments, Ordering::Relaxed);
        }
    }

    /// Runs `f` on the queue's state of every ring.
    fn for_each_ring(&self, mut f: impl FnMut(&mut tandem_virtio_net::queue::QueueState)) {
        for pair in &self.pairs {
            f(&mut lock(&pair.tx).queue);
            f(&mut lock(&pair.rx));
        }
    }

    /// Whether frames are held for a VM that is on its way.
    pub fn is_holding(&self) -> bool {
        self.hold.is_on()
    }

    /// A batch for [`GuestPort::redirect_held`].
    pub fn batch_for_held() -> Batch {
        Batch::with_own_bytes(hold::BATCH)
    }

    /// Hands a burst of the frames that are held to `each`, which says how many it sent to where the VM is
    /// now. The others of these are dropped.
    pub fn redirect_held(&self, batch: &mut Batch, each: impl FnOnce(&mut Batch) -> u64) {
        self.hold.take_some(batch, |batch| {
            let sent = each(batch);
            let dropped = batch.len() as u64 - sent;
            self.to_vm.count_drop(DropReason::Redirected, sent);
            self.to_vm.count_drop(DropReason::HoldExpired, dropped);
        });
    }

    /// The number of the hold that is on, another one each time.
    pub fn hold_turn(&self) -> Option<u64> {
        self.hold.turn()
    }

    /// Ends the hold `turn`, if it is on, and drops what is held.
    pub fn end_hold(&self, turn: u64) {
        self.hold.end(Some(turn), |batch| {
            let dropped = batch.len() as u64;
            self.to_vm.count_drop(DropReason::HoldExpired, dropped);
        });
    }

    /// Holds frames from before the last ring is stopped in a migration.
    fn hold_before_stop(&self, ring: u16) {
        let bit = 1u32 << (ring / 2);
        let up = self.active.load(Ordering::Relaxed) | self.unpopulated.load(Ordering::Relaxed);
        if !self.log_all() {
            return;
        }
        self.change.begin();
        if ring.is_multiple_of(2) && up == bit && self.hold.begin() {
            self.tell(Event::Held);
        }
    }

    /// Gives the VM what was held for it, once it has buffers again.
    fn end_hold_if_back(&self) {
        if self.hold.is_on() && self.active.load(Ordering::Relaxed) != 0 {
            let mut scratch = Scratch::default();
            self.hold.end(None, |batch| {
                let (all, n): ([u8; BURST], _) = (std::array::from_fn(|i| i as u8), batch.len());
                self.deliver_now(batch, &all[..n], &mut scratch, None);
            });
            scratch.call_all();
        }
    }

    fn log_all(&self) -> bool {
        has(self.acked.load(Ordering::Relaxed), VHOST_F_LOG_ALL)
    }
}

impl GuestPort {
    /// Delivers frames; what finds its ring stopped goes to `hold`.
    fn deliver_now(
        &self,
        batch: &mut Batch,
        frames: &[u8],
        scratch: &mut Scratch,
        hold: Option<&Hold>,
    ) {
        let active = self.active.load(Ordering::Relaxed);
        if active & active.wrapping_sub(1) == 0 {
            // One pair, or none: the first one counts what it cannot take.
            let pair = if active == 0 {
                0
            } else {
                active.trailing_zeros()
            };
            self.fill(pair, batch, frames, scratch, hold);
        } else {
            self.deliver_spread(batch, frames, scratch, (active, hold));
        }
    }
}

impl Outlet for GuestPort {
    fn deliver(&self, batch: &mut Batch, frames: &[u8], scratch: &mut Scratch) {
        if self.hold.is_on() && self.hold.keep(batch, frames, &self.to_vm) {
            return;
        }
        self.deliver_now(batch, frames, scratch, Some(&self.hold));
    }

    fn ready(&self) -> bool {
        self.at_home() || self.hold.is_on()
    }

    fn at_home(&self) -> bool {
        self.has_rings()
    }
}
