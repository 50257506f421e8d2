//! The orders of messages.
//!
//! Three VMMs are copied. Recorded from QEMU 7.2 (two queue pairs, a driver
//! without MQ), and read from the sources of QEMU 10 and cloud-hypervisor:
//!
//! ```text
//! QEMU, at connect        for each pair: GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES,
//!                         [first pair: GET_QUEUE_NUM], GET_MAX_MEM_SLOTS, [first pair: SET_OWNER],
//!                         GET_FEATURES, then per ring CALL, ERR;
//!                         several times over: ENABLE 1 for the first pair's rings, 0 for the others'
//! QEMU, at DRIVER_OK      for each pair: ENABLE 1 (if in use), SET_FEATURES, [first pair: the memory],
//!                         per ring NUM, BASE, ADDR, KICK, CALL; ENABLE for pairs the driver adds later
//! QEMU, at reset          GET_VRING_BASE of each ring
//! cloud-hypervisor        SET_OWNER, GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES,
//!                         GET_QUEUE_NUM, GET_CONFIG; at activation SET_FEATURES, SET_MEM_TABLE, all NUM,
//!                         per ring ADDR, BASE, CALL, KICK, then ENABLE all; at reset ENABLE 0 and
//!                         GET_VRING_BASE of each ring
//! ```
//!
//! QEMU gives memory by ADD_MEM_REG where CONFIGURE_MEM_SLOTS was agreed. It
//! asks for an answer there, and with the log flag; QEMU 10 also for ENABLE.
//! cloud-hypervisor asks for an answer to everything.

use anyhow::{Result, ensure};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
};
use vmm_sys_util::eventfd::EventFd;

use super::{RingSetup, Session};
use crate::frontend::memory::GuestRam;
use crate::frontend::spec;
use crate::frontend::wire::request;

impl Session {
    pub(super) fn create_qemu(&mut self) -> Result<()> {
        for pair in 0..self.pairs {
            self.offered = self.frontend.get_features()?;
            self.negotiate_protocol(
                VhostUserProtocolFeatures::MQ
                    | VhostUserProtocolFeatures::LOG_SHMFD
                    | VhostUserProtocolFeatures::REPLY_ACK
                    | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
                    | VhostUserProtocolFeatures::DEVICE_STATE,
            )?;
            if pair == 0 && self.protocol.contains(VhostUserProtocolFeatures::MQ) {
                // QEMU takes the number of rings for the number of pairs, and so may use more than
                // there are; `Frontend` would not let it.
                let reply = self.wire.ask(request::GET_QUEUE_NUM, 0, &[])?;
                self.queue_num = reply.number()?;
                ensure!(self.queue_num >= self.pairs as u64, "too many queue pairs");
            }
            if self.has_slots() {
                self.frontend.get_max_mem_slots()?;
            }
            if pair == 0 {
                self.frontend.set_owner()?;
            }
            self.frontend.get_features()?;
            for ring in [2 * pair, 2 * pair + 1] {
                // Not yet the guest's interrupt: the VMM's "masked" notifier.
                let (masked, err) = (EventFd::new(0)?, EventFd::new(0)?);
                self.frontend.set_vring_call(ring, &masked)?;
                self.frontend.set_vring_err(ring, &err)?;
                self.errs.push(err);
            }
        }
        for _ in 0..5 {
            for ring in 0..2 * self.pairs {
                self.enable(ring, ring < 2)?;
            }
        }
        Ok(())
    }

    pub(super) fn create_cloud_hypervisor(&mut self) -> Result<()> {
        self.frontend.set_owner()?;
        self.offered = self.frontend.get_features()?;
        self.negotiate_protocol(
            VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::INFLIGHT_SHMFD
                | VhostUserProtocolFeatures::LOG_SHMFD
                | VhostUserProtocolFeatures::DEVICE_STATE
                | VhostUserProtocolFeatures::CONFIG,
        )?;
        if self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if self.protocol.contains(VhostUserProtocolFeatures::MQ) {
            self.queue_num = self.frontend.get_queue_num()?;
            ensure!(
                self.queue_num >= 2 * self.pairs as u64,
                "too many queues: the back-end has {}",
                self.queue_num
            );
        }
        if self.protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            // struct virtio_net_config up to supported_hash_types (virtio 1.2, 5.1.4).
            let flags = VhostUserConfigFlags::WRITABLE;
            self.config = self.frontend.get_config(0, 24, flags, &[0; 24])?.1;
        }
        Ok(())
    }

    fn negotiate_protocol(&mut self, known: VhostUserProtocolFeatures) -> Result<()> {
        if self.offered & spec::PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        self.protocol = self.frontend.get_protocol_features()? & known;
        self.frontend.set_protocol_features(self.protocol)?;
        Ok(())
    }

    pub(super) fn start_qemu(
        &mut self,
        features: u64,
        ram: &GuestRam,
        rings: &[RingSetup],
        pairs_in_use: usize,
    ) -> Result<()> {
        for (pair, pair_rings) in rings.chunks(2).enumerate() {
            // The others are enabled when the driver sets VQ_PAIRS, after DRIVER_OK.
            if pair == 0 {
                self.enable(0, true)?;
                self.enable(1, true)?;
            }
            self.set_features(features)?;
            if pair == 0 {
                self.give_memory(ram)?;
            }
            for (i, ring) in pair_rings.iter().enumerate() {
                let index = 2 * pair + i;
                self.frontend.set_vring_num(index, ring.size)?;
                self.set_base(index, ring.base)?;
                self.set_addr(index, ring, features & spec::LOG_ALL != 0)?;
                self.frontend.set_vring_kick(index, &ring.kick)?;
                self.frontend.set_vring_call(index, &ring.call)?;
            }
        }
        for ring in 2..2 * pairs_in_use {
            self.enable(ring, true)?;
        }
        Ok(())
    }

    pub(super) fn activate_cloud_hypervisor(
        &mut self,
        features: u64,
        ram: &GuestRam,
        rings: &[RingSetup],
    ) -> Result<()> {
        self.set_features(features)?;
        self.set_mem_table(ram, 0..ram.regions())?;
        for (index, ring) in rings.iter().enumerate() {
            self.frontend.set_vring_num(index, ring.size)?;
        }
        for (index, ring) in rings.iter().enumerate() {
            self.set_addr(index, ring, false)?;
            self.set_base(index, ring.base)?;
            self.frontend.set_vring_call(index, &ring.call)?;
            self.frontend.set_vring_kick(index, &ring.kick)?;
        }
        for index in 0..rings.len() {
            self.frontend.set_vring_enable(index, true)?;
        }
        Ok(())
    }
}
