//! A session: all that a VMM has told us since it connected, and what the device was made to do.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tandem_virtio_net::memory::{DirtyLog, Fault, Memory};
use tandem_virtio_net::ring::RingConfig;
use vhost::vhost_user::message::VhostUserVirtioFeatures as VirtioFeatures;
use vm_memory::GuestMemoryMmap;

use super::device::Device;
use super::memory::{REMEDY, RegionInfo, Vmm};
use super::transfer::Transfer;
use crate::sys;

/// VHOST_USER_F_PROTOCOL_FEATURES: bit 30.
pub(super) const PROTOCOL_FEATURES: u64 = VirtioFeatures::PROTOCOL_FEATURES.bits();
/// VHOST_F_LOG_ALL: bit 26.
pub(super) const LOG_ALL: u64 = VirtioFeatures::LOG_ALL.bits();
/// VIRTIO_F_RING_PACKED (virtio 6).
pub(super) const RING_PACKED: u64 = 1 << 34;

/// Refusals of a session that are logged.
const MAX_LOGGED: u64 = 16;

/// What was refused, so that the complaint can go when it is put right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    QueuePairs,
    Features,
    Memory,
    Ring(u16),
    /// The state that did not travel: the NIC works without.
    State,
}

/// What is known of a ring. Its descriptors are with the device.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RingInfo {
    pub(super) size: u16,
    /// Guest addresses of descriptor table, driver's area and device's area, once they are set.
    pub(super) addresses: Option<[u64; 3]>,
    pub(super) base: u16,
    pub(super) kick: bool,
    pub(super) enabled: bool,
    pub(super) running: bool,
}

/// All that a session is, besides descriptors and mappings: enough to inspect it, or to build it
/// anew.
#[derive(Default)]
pub(super) struct SessionInfo {
    pub(super) owned: bool,
    pub(super) protocol_features: u64,
    /// As the VMM sent them, with the two bits of vhost-user; none before SET_FEATURES.
    pub(super) features: Option<u64>,
    /// In guest-address order.
    pub(super) memory: Vec<RegionInfo>,
    /// The region removed last.
    pub(super) removed: Option<RegionInfo>,
    pub(super) log: Option<DirtyLog>,
    pub(super) rings: Vec<RingInfo>,
    /// What was refused and not put right since.
    pub(super) complaints: BTreeMap<Topic, String>,
    logged: u64,
    /// The most queue pairs the VMM has asked for, if that is more than there are.
    pub(super) pairs_asked: u64,
    pub(super) unsupported_messages: u64,
}

impl SessionInfo {
    /// The log that writes go to now.
    fn log_in_effect(&self) -> Option<DirtyLog> {
        let on = self.features.is_some_and(|f| f & LOG_ALL != 0);
        if on { self.log.clone() } else { None }
    }

    /// The features the driver has accepted, without those of vhost-user.
    pub(super) fn virtio_features(&self) -> u64 {
        self.features.unwrap_or(0) & !(PROTOCOL_FEATURES | LOG_ALL)
    }

    fn config(&self, ring: &RingInfo) -> Option<RingConfig> {
        let [desc, driver, device] = ring.addresses?;
        Some(RingConfig {
            size: ring.size,
            desc,
            driver,
            device,
            features: self.virtio_features(),
        })
    }

    /// Why no frames pass, in words; none if they can.
    pub(super) fn reason(&self) -> Option<String> {
        let mut complaints = self.complaints.iter();
        if let Some((_, words)) = complaints.find(|(topic, _)| **topic != Topic::State) {
            return Some(words.clone());
        }
        let words = if self.features.is_none() {
            "a VMM is connected, but the driver in its guest has not started the NIC yet".into()
        } else if self.memory.is_empty() {
            format!("a VMM is connected, but shares no memory: {REMEDY}")
        } else if !self.rings.iter().any(|r| r.running) {
            "the driver in the guest has not started its queues".into()
        } else if !self.rings.iter().any(|r| r.running && r.enabled) {
            "the VMM has enabled none of the queues".into()
        } else {
            return None;
        };
        Some(words)
    }
}

/// A session and the device it drives.
///
/// The front door and the crate's thread both call this, one waiting for the other, so that the
/// device is never called by two at once. The lock is for those who look, and is not held while
/// the device is called.
pub(super) struct Session {
    /// The port's name.
    pub(super) name: String,
    pub(super) vmm: Vmm,
    pub(super) device: Arc<dyn Device>,
    info: Mutex<SessionInfo>,
    /// The front door is setting up the crate; the VMM has said nothing yet.
    pub(super) priming: AtomicBool,
    pub(super) fault: Arc<Fault>,
    /// The device's state on its way, or arrived and not asked for.
    pub(super) transfer: Mutex<Option<Arc<Transfer>>>,
}

impl Session {
    pub(super) fn new(name: &str, vmm: Vmm, device: Arc<dyn Device>) -> Self {
        let rings = vec![RingInfo::default(); 2 * usize::from(device.queue_pairs())];
        Self {
            name: name.into(),
            vmm,
            device,
            info: Mutex::new(SessionInfo {
                rings,
                ..SessionInfo::default()
            }),
            priming: AtomicBool::new(false),
            fault: Arc::default(),
            transfer: Mutex::default(),
        }
    }

    pub(super) fn info(&self) -> MutexGuard<'_, SessionInfo> {
        self.info.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses something, in words. The log gets what is new of it, and of that a session's first.
    pub(super) fn complain(&self, topic: Topic, words: String) {
        let mut info = self.info();
        if !info.complaints.contains_key(&topic) && info.logged < MAX_LOGGED {
            info.logged += 1;
            log::warn!("port {}: {words}", self.name);
        }
        info.complaints.insert(topic, words);
    }

    pub(super) fn settle(&self, topic: Topic) {
        self.info().complaints.remove(&topic);
    }

    /// SET_FEATURES.
    pub(super) fn set_features(&self, features: u64) {
        if self.priming.load(Ordering::Relaxed) {
            return;
        }
        let log = {
            let mut info = self.info();
            info.features = Some(features);
            info.log_in_effect()
        };
        self.device.set_features(features & !PROTOCOL_FEATURES);
        self.device.set_log(log);
    }

    /// SET_LOG_BASE.
    pub(super) fn set_log(&self, log: DirtyLog) {
        let (log, old) = {
            let mut info = self.info();
            let old = info.log.replace(log);
            (info.log_in_effect(), old)
        };
        self.device.set_log(log);
        drop(old); // unmapped only now that nobody writes to it
    }

    /// SET_MEM_TABLE, ADD_MEM_REG, REM_MEM_REG: `map` is all there is now.
    pub(super) fn set_memory(&self, map: Arc<GuestMemoryMmap>) -> std::io::Result<()> {
        let mut memory = sys::guest_memory(map, &self.fault)?;
        self.stop_rings_outside(&memory);
        memory.set_log(self.info().log_in_effect());
        if self.device.set_memory(memory).is_err() {
            // Some ring has stopped. To start one that has not changes nothing, and the one that
            // has says why.
            self.info().rings.iter_mut().for_each(|r| r.running = false);
        }
        for ring in 0..self.rings() {
            self.start(ring);
        }
        Ok(())
    }

    /// A VMM may remove the region a ring is in and add it again at once, in another shape. The
    /// ring goes on then where it was.
    fn stop_rings_outside(&self, memory: &Memory) {
        for ring in 0..self.rings() {
            let inside = |at: &u64| memory.host(*at, 1).is_some();
            let outside = {
                let info = self.info();
                let r = &info.rings[usize::from(ring)];
                r.running && !r.addresses.iter().flatten().all(inside)
            };
            if outside {
                self.stop(ring);
            }
        }
    }

    /// SET_VRING_ADDR. VMMs repeat it on live rings, to say that writes are to be logged.
    pub(super) fn set_addresses(&self, ring: u16, addresses: [u64; 3]) {
        let (changed, running) = {
            let mut info = self.info();
            let r = &mut info.rings[usize::from(ring)];
            let changed = r.addresses.replace(addresses) != Some(addresses);
            (changed, r.running)
        };
        if changed && running {
            self.stop(ring);
        }
        self.start(ring);
    }

    /// SET_VRING_NUM; it counts from the next start on.
    pub(super) fn set_size(&self, ring: u16, size: u16) {
        self.info().rings[usize::from(ring)].size = size;
    }

    /// SET_VRING_BASE; it counts from the next start on.
    pub(super) fn set_base(&self, ring: u16, base: u16) {
        self.info().rings[usize::from(ring)].base = base;
    }

    /// Where the ring goes on when it is started next.
    pub(super) fn base(&self, ring: u16) -> u16 {
        self.info().rings[usize::from(ring)].base
    }

    /// SET_VRING_KICK: starts the ring.
    pub(super) fn set_kick(&self, ring: u16, kick: Option<OwnedFd>) {
        self.info().rings[usize::from(ring)].kick = kick.is_some();
        self.device.set_kick(ring, kick);
        self.start(ring);
    }

    /// SET_VRING_CALL.
    pub(super) fn set_call(&self, ring: u16, call: Option<OwnedFd>) {
        self.device.set_call(ring, call);
    }

    /// SET_VRING_ENABLE.
    pub(super) fn enable(&self, ring: u16, on: bool) {
        if self.priming.load(Ordering::Relaxed) {
            return;
        }
        self.info().rings[usize::from(ring)].enabled = on;
        self.device.enable_ring(ring, on);
    }

    /// GET_VRING_BASE: stops the ring.
    pub(super) fn stop(&self, ring: u16) {
        let base = self.device.stop_ring(ring);
        let mut info = self.info();
        let r = &mut info.rings[usize::from(ring)];
        r.running = false;
        r.base = base.unwrap_or(r.base);
        info.complaints.remove(&Topic::Ring(ring));
    }

    /// Starts a ring that has all it needs and does not run.
    fn start(&self, ring: u16) {
        let (config, base) = {
            let info = self.info();
            let r = &info.rings[usize::from(ring)];
            match info.config(r) {
                Some(config) if r.kick && !r.running => (config, r.base),
                _ => return,
            }
        };
        match self.device.start_ring(ring, config, base) {
            Ok(()) => {
                self.info().rings[usize::from(ring)].running = true;
                self.settle(Topic::Ring(ring));
            }
            Err(e) => self.complain(Topic::Ring(ring), format!("queue {ring} cannot start: {e}")),
        }
    }

    fn rings(&self) -> u16 {
        2 * self.device.queue_pairs()
    }
}
