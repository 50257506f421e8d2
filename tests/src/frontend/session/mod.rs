//! A vhost-user session as a VMM holds it, message for message.
//!
//! [`Order`] says which VMM is copied.

mod orders;
pub mod state;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::memory::{DirtyLog, GuestRam, USER_OFFSET};
use super::spec;
use super::wire::{NEED_REPLY, PATIENCE, Wire, request, wait_readable};

/// Whose order of messages a session follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// QEMU 7.2.
    Qemu72,
    /// QEMU 10: ENABLE waits for an answer.
    Qemu10,
    /// cloud-hypervisor.
    CloudHypervisor,
}

impl Order {
    /// All of them.
    pub const ALL: [Order; 3] = [Order::Qemu72, Order::Qemu10, Order::CloudHypervisor];
}

/// A ring as the guest's driver has laid it out; addresses are guest physical.
pub struct RingSetup {
    /// Descriptors.
    pub size: u16,
    /// Descriptor table, or the packed ring.
    pub desc: u64,
    /// Available ring, or the driver's event suppression area.
    pub avail: u64,
    /// Used ring, or the device's event suppression area.
    pub used: u64,
    /// What SET_VRING_BASE says; `u32` because packed rings carry two positions with wrap bits.
    pub base: u32,
    /// The driver's doorbell.
    pub kick: Arc<EventFd>,
    /// The device's.
    pub call: Arc<EventFd>,
}

/// A connection to the back-end, from the VMM's side.
pub struct Session {
    frontend: Frontend,
    wire: Wire,
    order: Order,
    pairs: usize,
    /// What GET_FEATURES said.
    pub offered: u64,
    /// What GET_PROTOCOL_FEATURES said, restricted to what the VMM knows.
    pub protocol: VhostUserProtocolFeatures,
    /// What GET_QUEUE_NUM said (zero without MQ).
    pub queue_num: u64,
    /// What GET_CONFIG said (cloud-hypervisor only).
    pub config: Vec<u8>,
    errs: Vec<EventFd>,
    /// Regions given by ADD_MEM_REG; QEMU gives each once a connection.
    slots: BTreeSet<usize>,
}

impl Session {
    /// Connects to the port's socket and does all a VMM does before the guest runs.
    pub fn connect(path: &Path, order: Order, pairs: usize) -> Result<Self> {
        let stream =
            UnixStream::connect(path).with_context(|| format!("connecting to {path:?}"))?;
        Self::over(stream, order, pairs)
    }

    /// Waits for the back-end to connect (`socket_role = "connect"`).
    pub fn accept(listener: &UnixListener, order: Order, pairs: usize) -> Result<Self> {
        wait_readable(listener, PATIENCE).context("the back-end did not connect")?;
        let (stream, _) = listener.accept()?;
        Self::over(stream, order, pairs)
    }

    /// The same on a connected socket.
    pub fn over(stream: UnixStream, order: Order, pairs: usize) -> Result<Self> {
        let frontend = Frontend::from_stream(stream.try_clone()?, 2 * pairs as u64);
        let mut session = Session {
            frontend,
            wire: Wire::new(stream),
            order,
            pairs,
            offered: 0,
            protocol: VhostUserProtocolFeatures::empty(),
            queue_num: 0,
            config: Vec::new(),
            errs: Vec::new(),
            slots: BTreeSet::new(),
        };
        match order {
            Order::CloudHypervisor => session.create_cloud_hypervisor()?,
            Order::Qemu72 | Order::Qemu10 => session.create_qemu()?,
        }
        Ok(session)
    }

    fn has_slots(&self) -> bool {
        self.protocol
            .contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn has_reply_ack(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK)
    }

    /// All a VMM does when the driver says DRIVER_OK: `rings` in order (receive, transmit, receive,
    /// …), of which the first `pairs_in_use` pairs are used by the driver.
    pub fn start(
        &mut self,
        features: u64,
        ram: &GuestRam,
        rings: &[RingSetup],
        pairs_in_use: usize,
    ) -> Result<()> {
        match self.order {
            Order::CloudHypervisor => self.activate_cloud_hypervisor(features, ram, rings)?,
            Order::Qemu72 | Order::Qemu10 => {
                self.start_qemu(features, ram, rings, pairs_in_use)?;
            }
        }
        // Where the VMM waits for nothing, know at least that all of it was read.
        self.sync()
    }

    /// Stops `rings` rings and gives what GET_VRING_BASE said of each.
    pub fn stop(&mut self, rings: usize) -> Result<Vec<u32>> {
        let mut bases = Vec::new();
        for ring in 0..rings {
            if self.order == Order::CloudHypervisor {
                self.frontend.set_vring_enable(ring, false)?;
            }
            bases.push(self.frontend.get_vring_base(ring)?);
        }
        Ok(bases)
    }

    /// Sets the features, always with the bit the VMM itself needs.
    pub fn set_features(&mut self, features: u64) -> Result<()> {
        self.reply_wanted(features & spec::LOG_ALL != 0);
        let result = self
            .frontend
            .set_features(features | spec::PROTOCOL_FEATURES);
        self.reply_usual();
        Ok(result?)
    }

    /// Gives all memory: by slots as QEMU does where it can, else as a table.
    pub fn give_memory(&mut self, ram: &GuestRam) -> Result<()> {
        if self.order == Order::CloudHypervisor || !self.has_slots() {
            return self.set_mem_table(ram, 0..ram.regions());
        }
        let missing: Vec<_> = (0..ram.regions())
            .filter(|region| !self.slots.contains(region))
            .collect();
        missing
            .into_iter()
            .try_for_each(|region| self.add_region(ram, region))
    }

    /// SET_MEM_TABLE with `regions` of `ram`.
    pub fn set_mem_table(
        &mut self,
        ram: &GuestRam,
        regions: impl Iterator<Item = usize>,
    ) -> Result<()> {
        let table: Vec<_> = regions.map(|r| ram.region_info(r)).collect();
        self.reply_wanted(true);
        let result = self.frontend.set_mem_table(&table);
        self.reply_usual();
        result?;
        Ok(())
    }

    /// ADD_MEM_REG.
    pub fn add_region(&mut self, ram: &GuestRam, region: usize) -> Result<()> {
        self.reply_wanted(true);
        let result = self.frontend.add_mem_region(&ram.region_info(region));
        self.reply_usual();
        result?;
        self.slots.insert(region);
        Ok(())
    }

    /// REM_MEM_REG.
    pub fn remove_region(&mut self, ram: &GuestRam, region: usize) -> Result<()> {
        self.reply_wanted(true);
        let result = self.frontend.remove_mem_region(&ram.region_info(region));
        self.reply_usual();
        self.slots.remove(&region);
        Ok(result?)
    }

    /// SET_VRING_ENABLE, also before SET_FEATURES.
    pub fn enable(&mut self, ring: usize, on: bool) -> Result<()> {
        let waits = self.order != Order::Qemu72 && self.has_reply_ack();
        let (ring, on) = (ring as u32, u32::from(on));
        let flags = if waits { NEED_REPLY } else { 0 };
        self.wire
            .send_state(request::SET_VRING_ENABLE, flags, ring, on)?;
        if waits {
            let reply = self.wire.recv()?;
            ensure!(
                reply.request == request::SET_VRING_ENABLE && reply.number()? == 0,
                "ENABLE of ring {ring} was refused: {reply:?}"
            );
        }
        Ok(())
    }

    /// SET_VRING_BASE; all 32 bits, which `Frontend` does not carry.
    pub fn set_base(&mut self, ring: usize, base: u32) -> Result<()> {
        let waits = self.order == Order::CloudHypervisor && self.has_reply_ack();
        let flags = if waits { NEED_REPLY } else { 0 };
        self.wire
            .send_state(request::SET_VRING_BASE, flags, ring as u32, base)?;
        if waits {
            ensure!(self.wire.recv()?.number()? == 0, "BASE was refused");
        }
        Ok(())
    }

    /// SET_VRING_ADDR, with or without the flag that asks for writes to the used ring to be logged.
    pub fn set_addr(&mut self, index: usize, ring: &RingSetup, log: bool) -> Result<()> {
        // QEMU names the used ring's address for the log whether or not it wants one.
        let log_addr = (log || self.order != Order::CloudHypervisor).then_some(ring.used);
        let config = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: u32::from(log),
            desc_table_addr: ring.desc + USER_OFFSET,
            avail_ring_addr: ring.avail + USER_OFFSET,
            used_ring_addr: ring.used + USER_OFFSET,
            log_addr,
        };
        self.reply_wanted(log);
        let result = self.frontend.set_vring_addr(index, &config);
        self.reply_usual();
        Ok(result?)
    }

    /// SET_LOG_BASE: the dirty log from now on; waits for the answer, which may be empty.
    pub fn set_log(&mut self, log: &DirtyLog) -> Result<()> {
        let mut body = log.size().to_le_bytes().to_vec();
        body.extend_from_slice(&0u64.to_le_bytes());
        let fds = [log.file().as_fd()];
        self.wire.send(request::SET_LOG_BASE, 0, &body, &fds)?;
        let reply = self.wire.recv()?;
        ensure!(
            reply.request == request::SET_LOG_BASE,
            "SET_LOG_BASE: {reply:?}"
        );
        Ok(())
    }

    /// Starts dirty logging on running rings as QEMU does when migration begins.
    pub fn start_logging(&mut self, features: u64, rings: &[RingSetup]) -> Result<()> {
        for (pair, pair_rings) in rings.chunks(2).enumerate() {
            self.set_features(features | spec::LOG_ALL)?;
            for (i, ring) in pair_rings.iter().enumerate() {
                self.set_addr(2 * pair + i, ring, true)?;
            }
        }
        Ok(())
    }

    /// Ends it, as QEMU does when a migration is given up.
    pub fn stop_logging(&mut self, features: u64, rings: &[RingSetup]) -> Result<()> {
        for (pair, pair_rings) in rings.chunks(2).enumerate() {
            self.set_features(features & !spec::LOG_ALL)?;
            for (i, ring) in pair_rings.iter().enumerate() {
                self.set_addr(2 * pair + i, ring, false)?;
            }
        }
        Ok(())
    }

    /// Asks something harmless and waits: all messages before it have then been read.
    pub fn sync(&mut self) -> Result<()> {
        self.wire.ask(request::GET_FEATURES, 0, &[])?;
        Ok(())
    }

    /// `Frontend` for what has no method here.
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// The raw connection, shared with [`Self::frontend`].
    pub fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Whose order this session follows.
    pub fn order(&self) -> Order {
        self.order
    }

    /// Whether the back-end has ended the session; waits for that.
    pub fn wait_closed(&mut self) -> Result<()> {
        self.wire.wait_closed()
    }

    fn reply_wanted(&mut self, wanted: bool) {
        if wanted && self.has_reply_ack() {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
    }

    fn reply_usual(&mut self) {
        let always = self.order == Order::CloudHypervisor && self.has_reply_ack();
        self.frontend.set_hdr_flags(if always {
            VhostUserHeaderFlag::NEED_REPLY
        } else {
            VhostUserHeaderFlag::empty()
        });
    }
}

impl AsRawFd for Session {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.frontend.as_raw_fd()
    }
}
