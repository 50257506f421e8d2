//! A member's place in a team: the device that is to be there, and the one that is.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use tandem_uplink::nic::Nic;
use tandem_uplink::nic::af_packet::AfPacket;
use tandem_uplink::nic::af_xdp::AfXdp;
use tandem_uplink::nic::links::Link;
use tandem_uplink::team::Member;
use tandem_uplink::{Forwarder, Now, Tap};
use tandem_virtio_net::spec::NetHdr;
use tandem_virtio_net::{Batch, Counters, Scratch};

use super::neighbour::Lldp;
use super::{Host, RETRY};
use crate::config::{Driver, Member as MemberConfig};
use crate::nic_thread::{Bell, ControlFrames, NicThread, Work};
use crate::status::Failover;

/// A member's place.
pub(super) struct Seat {
    /// The member's number, its own for good: the same after every restart.
    pub(super) id: u32,
    pub(super) config: MemberConfig,
    pub(super) open: Option<Open>,
    /// A TAP device that was made, and that the kernel has not told of yet.
    made: Option<Device>,
    /// Why the device could not be opened, and when to try again.
    pub(super) trouble: Option<(String, Now)>,
    pub(super) lldp: Lldp,
    /// Frames by this device and those that were here before.
    pub(super) received: Arc<Counters>,
    pub(super) sent: Arc<Counters>,
    /// Frames for the team itself, by devices that were here before.
    pub(super) consumed: u64,
    pub(super) failovers: u64,
    pub(super) last_failover: Option<Failover>,
}

/// A device that is there.
pub(super) struct Open {
    /// The kernel's number: a device that is made again under its name has another.
    pub(super) index: u32,
    pub(super) member: Arc<Member>,
    /// Why this driver.
    pub(super) driver_reason: Option<String>,
    /// What the device's thread has for the team.
    pub(super) control: Arc<ControlFrames>,
    /// Ends before the device is given back: fields drop in order.
    thread: NicThread,
}

impl Seat {
    pub(super) fn new(config: &MemberConfig) -> Self {
        let hasher = BuildHasherDefault::<DefaultHasher>::new();
        Self {
            id: (hasher.hash_one(&config.device) as u32).max(1),
            config: config.clone(),
            open: None,
            made: None,
            trouble: None,
            lldp: Lldp::default(),
            received: Arc::default(),
            sent: Arc::default(),
            consumed: 0,
            failovers: 0,
            last_failover: None,
        }
    }

    /// Gives the device back.
    pub(super) fn close(&mut self) {
        self.consumed += self.open.as_ref().map_or(0, |open| open.member.consumed());
        (self.open, self.made, self.trouble) = (None, None, None);
        self.lldp = Lldp::default();
    }

    /// Opens the device if it is there and is not open, and closes one that is gone. True if either was
    /// done.
    pub(super) fn follow(
        &mut self,
        links: &BTreeMap<String, Link>,
        host: &Host,
        forwarder: impl FnOnce() -> Option<Forwarder>,
        now: Now,
    ) -> bool {
        let link = links.get(&self.config.device);
        let index = link.map(|link| link.index);
        let gone = |open: &Open| Some(open.index) != index || open.thread.lost().is_some();
        let closed = self.open.take_if(|open| gone(open));
        self.consumed += closed.as_ref().map_or(0, |open| open.member.consumed());
        let closed = closed.is_some();
        if link.is_none() && self.config.driver != Driver::Tap {
            self.trouble = None;
        }
        if closed {
            (self.trouble, self.lldp) = (None, Lldp::default());
        }
        let may_try = self.trouble.as_ref().is_none_or(|(_, until)| *until <= now);
        // A TAP is made if it is not there.
        let wanted = link.is_some() || self.config.driver == Driver::Tap && self.made.is_none();
        if self.open.is_some() || !wanted || !may_try {
            return closed;
        }
        let device = match self.made.take() {
            Some(device) => Ok(device),
            None => self.device(link, host),
        };
        let opened = device.and_then(|device| match link {
            Some(link) => Ok(Some(self.start(device, link, host, forwarder())?)),
            None => {
                self.made = Some(device);
                Ok(None)
            }
        });
        match opened {
            Ok(open) => {
                self.trouble = None;
                self.open = open;
                closed || self.open.is_some()
            }
            Err(words) => {
                if self.trouble.as_ref().is_none_or(|(old, _)| *old != words) {
                    log::warn!("{}: {words}", self.config.device);
                }
                self.trouble = Some((words, now + RETRY));
                closed
            }
        }
    }

    /// Starts the thread of a device.
    fn start(
        &self,
        (nic, driver_reason): Device,
        link: &Link,
        host: &Host,
        forwarder: Option<Forwarder>,
    ) -> Result<Open, String> {
        let words = |e: std::io::Error| format!("a thread could not be started: {e}");
        let bell = Bell::new().map_err(words)?;
        let member = Member::new(self.id, Arc::clone(&nic), link.mac, bell.clone());
        let member = Arc::new(member);
        let control = ControlFrames::new(Arc::clone(&host.bell));
        let work = Work {
            nic,
            forwarder,
            member: Some((Arc::clone(&member), Arc::clone(&control))),
            cpus: host.cpus.clone(),
        };
        let thread = NicThread::start(&self.config.device, bell, work).map_err(words)?;
        Ok(Open {
            index: link.index,
            member,
            driver_reason,
            control,
            thread,
        })
    }
}

impl Open {
    /// Why nothing comes in by it any more, if that is so.
    pub(super) fn lost(&self) -> Option<String> {
        self.thread.lost()
    }
}

/// A device by its driver, and why by that one if it was not named.
type Device = (Arc<dyn Nic>, Option<String>);

impl Seat {
    /// Opens the device.
    fn device(&self, link: Option<&Link>, host: &Host) -> Result<Device, String> {
        let name = &self.config.device;
        let (received, sent) = (Arc::clone(&self.received), Arc::clone(&self.sent));
        match self.config.driver {
            Driver::Tap => {
                let mtu = link.map_or(1500, |link| link.mtu.min(65_521) as u16);
                let device = host.broker.tap(name, mtu, None);
                let device = device.map_err(|e| e.to_string())?;
                let tap = Tap::new(name, device).counting(received, sent);
                Ok((Arc::new(tap), None))
            }
            Driver::AfXdp => {
                let device = host.broker.xdp(name).map_err(|e| e.to_string())?;
                let xdp = AfXdp::new(name, device).map_err(|e| e.to_string())?;
                let reason = Some(xdp.mode().to_string());
                Ok((Arc::new(xdp.counting(received, sent)), reason))
            }
            Driver::Auto | Driver::AfPacket => {
                let sockets = host.broker.packet(name).map_err(|e| e.to_string())?;
                let auto = self.config.driver == Driver::Auto;
                let reason = auto.then(|| "segments of 64 KiB and checksums stay whole".to_owned());
                let device = AfPacket::new(name, sockets).map_err(|e| e.to_string())?;
                Ok((Arc::new(device.counting(received, sent)), reason))
            }
        }
    }
}

/// What it takes to send a frame of the team's own.
pub(super) struct Wire {
    batch: Batch,
    scratch: Scratch,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            batch: Batch::with_own_bytes(1 << 17),
            scratch: Scratch::default(),
        }
    }
}

impl Wire {
    /// Sends a frame in front of all that waits. False: the device has no room.
    pub(super) fn send(&mut self, nic: &dyn Nic, frame: &[u8]) -> bool {
        let pushed = self.batch.push_frame(NetHdr::default(), frame);
        let sent = pushed.is_ok() && nic.send(&mut self.batch, &[0], &mut self.scratch) == 1;
        self.batch.clear();
        sent
    }
}
