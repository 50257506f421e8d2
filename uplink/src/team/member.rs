//! A member of a team: a device, what may come in by it, and what waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use tandem_virtio_net::wire::ethernet::{TYPE_ARP, TYPE_AT, TYPE_IPV6, TYPE_LLDP, TYPE_SLOW};
use tandem_virtio_net::wire::vlan::{TAG_LEN, TPID_CUSTOMER};
use tandem_virtio_net::{BURST, Batch, Call, DropReason, Scratch};

use super::backlog::Backlog;
use crate::Mac;
use crate::nic::Nic;

/// A member takes what comes in (IEEE 802.1AX, 6.4: collecting).
pub const COLLECTS: u8 = 1;
/// It also takes frames to group addresses, which a network that knows nothing of the team sends to
/// each member.
pub const GROUPS: u8 = 1 << 1;
/// Frames to the device's own address are the team's: answers to its probes.
pub const PROBES: u8 = 1 << 2;

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
    broken: AtomicBool,
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
            broken: AtomicBool::new(false),
            unicast: AtomicU64::new(0),
            consumed: AtomicU64::new(0),
            load: AtomicU64::new(0),
        }
    }

    /// Says what may come in by it: of [`COLLECTS`], [`GROUPS`] and [`PROBES`].
    pub fn set_takes(&self, takes: u8) {
        self.takes.store(takes, Relaxed);
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
        let (mut ended, mut consumed, mut inactive, mut unicast) = (0, 0, 0, 0);
        for i in 0..batch.len() {
            let head = batch.head(i);
            let group = head.first().is_some_and(|byte| byte & 1 != 0);
            let ours = match group {
                true => is_for_team(head),
                false => takes & PROBES != 0 && is_answer(head, self.mac),
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
            }
            unicast += u64::from(!group);
        }
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

    /// The device is gone: nothing more is sent by it.
    pub fn give_up(&self) {
        self.broken.store(true, Relaxed);
    }

    /// Whether the device is gone.
    pub fn is_gone(&self) -> bool {
        self.broken.load(Relaxed)
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
fn is_for_team(head: &[u8]) -> bool {
    let Some(dst) = head.first_chunk().map(|mac| Mac(*mac)) else {
        return false;
    };
    match ethertype(head, TYPE_AT) {
        Some(TYPE_SLOW | TYPE_LLDP) => dst.is_link_local(),
        _ => dst == HEARTBEAT_GROUP,
    }
}

/// A frame to the device itself that may answer a probe.
fn is_answer(head: &[u8], mac: Mac) -> bool {
    let kind = match ethertype(head, TYPE_AT) {
        Some(TPID_CUSTOMER) => ethertype(head, TYPE_AT + TAG_LEN),
        kind => kind,
    };
    head.starts_with(&mac.0) && matches!(kind, Some(TYPE_ARP | TYPE_IPV6))
}
