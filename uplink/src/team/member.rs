//! A member of a team: a device, what may come in by it, and what waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use tandem_virtio_net::wire::ethernet::{TYPE_ARP, TYPE_AT, TYPE_IPV6, TYPE_LLDP, TYPE_SLOW};
use tandem_virtio_net::wire::icmp::v6;
use tandem_virtio_net::wire::vlan::{TAG_LEN, TPID_CUSTOMER};
use tandem_virtio_net::wire::{ipv6, protocol};
use tandem_virtio_net::{BURST, Batch, Call, DropReason, Scratch};

use super::table::NEXT_HEADER;
use crate::Mac;
use crate::backlog::Backlog;
use crate::nic::Nic;

/// A member takes what comes in (IEEE 802.1AX, 6.4: collecting).
pub const COLLECTS: u8 = 1;
/// It also takes frames to group addresses, which a network that knows nothing of the team sends to
/// each member.
pub const GROUPS: u8 = 1 << 1;
/// Answers to the team's probes, and heartbeats, are the team's.
pub const PROBES: u8 = 1 << 2;
/// Frames leave by it, also those that wait (distributing).
pub const WORKS: u8 = 1 << 3;
/// The address of the device is also that of a port: what is for it is for the switch.
pub const SHARED: u8 = 1 << 4;

/// Where the team's heartbeats go: a group address of our own (locally administered).
pub const HEARTBEAT_GROUP: Mac = Mac([0x03, 0x74, 0x61, 0x6e, 0x64, 0x6d]);

/// A device of a team.
pub struct Member {
    /// Its number in the team, its own for good; not zero.
    pub id: u32,
    /// The device.
    pub nic: Arc<dyn Nic>,
    /// The device's own address.
    pub mac: Mac,
    backlog: Backlog,
    /// Tells the device's thread that something waits.
    wake: Arc<dyn Call>,
    takes: AtomicU8,
    /// Addresses of all members' devices: answers to one's probe may come in by another.
    macs: ArcSwap<Vec<Mac>>,
    unicast: AtomicU64,
    consumed: AtomicU64,
    /// Bytes that were to go out by it, sent or not.
    pub(super) load: AtomicU64,
}

impl Member {
    /// A member that takes nothing yet. `wake` is called when frames begin to wait for the device.
    pub fn new(id: u32, nic: Arc<dyn Nic>, mac: Mac, wake: Arc<dyn Call>) -> Self {
        Self {
            id,
            nic,
            mac,
            backlog: Backlog::new(),
            wake,
            takes: AtomicU8::new(0),
            macs: ArcSwap::default(),
            unicast: AtomicU64::new(0),
            consumed: AtomicU64::new(0),
            load: AtomicU64::new(0),
        }
    }

    /// Says what may come in and leave by it: of [`COLLECTS`], [`GROUPS`], [`PROBES`], [`WORKS`] and
    /// [`SHARED`].
    pub fn set_takes(&self, takes: u8) {
        let old = self.takes.swap(takes, Relaxed);
        if old & !takes & WORKS != 0 && self.backlog.is_waiting() {
            // What waits is let go of.
            self.wake.call();
        }
    }

    /// Says which addresses the members have.
    pub(super) fn set_macs(&self, macs: &Arc<Vec<Mac>>) {
        self.macs.store(Arc::clone(macs));
    }

    /// Frames to single stations that came in: a sign that the path is alive.
    pub fn unicast(&self) -> u64 {
        self.unicast.load(Relaxed)
    }

    /// Frames that were for the team itself.
    pub fn consumed(&self) -> u64 {
        self.consumed.load(Relaxed)
    }

    /// The frames of `batch`, read from the device, that the switch is not to have: those for the team,
    /// which `control` gets, and those that may not come in by this member. Bit `i` for frame `i`.
    pub fn sift(&self, batch: &mut Batch, mut control: impl FnMut(&Batch, usize)) -> u64 {
        let takes = self.takes.load(Relaxed);
        let probes = takes & PROBES != 0;
        let macs = probes.then(|| self.macs.load());
        let (mut ended, mut consumed, mut unicast) = (0, 0, 0);
        let (mut inactive, mut for_host) = (0, 0);
        for i in 0..batch.len() {
            let head = batch.head(i);
            let group = head.first().is_some_and(|byte| byte & 1 != 0);
            let ours = match (group, &macs) {
                (true, _) => is_for_team(head, probes),
                (false, Some(macs)) => is_answer(head, macs),
                (false, None) => false,
            };
            if ours {
                control(batch, i);
                consumed += 1;
                ended |= 1 << i;
                continue;
            }
            let needs = if group { COLLECTS | GROUPS } else { COLLECTS };
            if takes & needs != needs {
                batch.set_end(i, DropReason::InactiveMember);
                inactive += 1;
                ended |= 1 << i;
            } else if !group && takes & SHARED == 0 && head.starts_with(&self.mac.0) {
                // The host has it, or nobody: no port is to see what is said to the host.
                batch.set_end(i, DropReason::ForHost);
                for_host += 1;
                ended |= 1 << i;
            }
            unicast += u64::from(!group);
        }
        (self.nic.received()).count_drop(DropReason::ForHost, for_host);
        if consumed != 0 {
            self.consumed.fetch_add(consumed, Relaxed);
        }
        if unicast != 0 {
            self.unicast.fetch_add(unicast, Relaxed);
        }
        (self.nic.received()).count_drop(DropReason::InactiveMember, inactive);
        ended
    }

    /// Sends frames of the port `port`, or lets them wait.
    pub(super) fn send(&self, batch: &mut Batch, frames: &[u8], port: u16, scratch: &mut Scratch) {
        let mut sent = 0;
        if !self.backlog.is_waiting() {
            sent = self.nic.send(batch, frames, scratch);
        }
        if sent < frames.len() {
            let (dropped, first) = self.backlog.push(batch, &frames[sent..], port);
            (self.nic.sent()).count_drop(DropReason::UplinkFull, dropped);
            if first {
                self.wake.call();
            }
        }
    }

    /// Counts what is to go out by it.
    #[inline]
    pub(super) fn count_load(&self, batch: &Batch, frames: &[u8]) {
        let bytes = frames.iter().map(|i| batch.frame_len((*i).into()) as u64);
        self.load.fetch_add(bytes.sum(), Relaxed);
    }

    /// Whether frames wait for the device to have room.
    pub fn is_waiting(&self) -> bool {
        self.backlog.is_waiting()
    }

    /// Sends what waits, for as long as there is room; for the device's thread, which keeps `rest` from
    /// one call to the next. False: there is no room for the next frame.
    pub fn send_waiting(&self, rest: &mut Rest, scratch: &mut Scratch) -> bool {
        if self.takes.load(Relaxed) & WORKS == 0 {
            // It would come after what left by others meanwhile.
            self.let_go(rest);
            return true;
        }
        loop {
            if rest.from == rest.batch.len() {
                rest.batch.clear();
                rest.from = 0;
                self.backlog.pull(&mut rest.batch);
                if rest.batch.is_empty() {
                    return true;
                }
            }
            let all: [u8; BURST] = std::array::from_fn(|i| i as u8);
            let left = &all[rest.from..rest.batch.len()];
            let sent = self.nic.send(&mut rest.batch, left, scratch);
            rest.from += sent;
            if sent < left.len() {
                return false;
            }
        }
    }

    /// Drops what waits; also when the device is given back.
    pub fn let_go(&self, rest: &mut Rest) {
        let mut dropped = rest.batch.len() - rest.from;
        loop {
            rest.batch.clear();
            rest.from = 0;
            self.backlog.pull(&mut rest.batch);
            if rest.batch.is_empty() {
                break;
            }
            dropped += rest.batch.len();
        }
        (self.nic.sent()).count_drop(DropReason::UplinkDown, dropped as u64);
    }
}

/// What was taken out of a backlog and not sent yet.
pub struct Rest {
    batch: Batch,
    from: usize,
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            batch: Batch::with_own_bytes(512 * 1024),
            from: 0,
        }
    }
}

fn ethertype(head: &[u8], at: usize) -> Option<u16> {
    let bytes = head.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// A frame to a group address that is between us and the next bridge, or between our members.
fn is_for_team(head: &[u8], probes: bool) -> bool {
    let Some(dst) = head.first_chunk().map(|mac| Mac(*mac)) else {
        return false;
    };
    match ethertype(head, TYPE_AT) {
        Some(TYPE_SLOW | TYPE_LLDP) => dst.is_link_local(),
        _ => probes && dst == HEARTBEAT_GROUP,
    }
}

/// A frame to one of the devices that may answer a probe: ARP, or a neighbour advertisement.
fn is_answer(head: &[u8], macs: &[Mac]) -> bool {
    let at = match ethertype(head, TYPE_AT) {
        Some(TPID_CUSTOMER) => TYPE_AT + TAG_LEN,
        _ => TYPE_AT,
    };
    let packet = head.get(at + 2..).unwrap_or_default();
    let answers = match ethertype(head, at) {
        Some(TYPE_ARP) => true,
        Some(TYPE_IPV6) => {
            let icmp = packet.get(NEXT_HEADER) == Some(&protocol::ICMPV6);
            icmp && packet.get(ipv6::HEADER_LEN) == Some(&v6::NEIGHBOR_ADVERTISEMENT)
        }
        _ => false,
    };
    answers && macs.iter().any(|mac| head.starts_with(&mac.0))
}
