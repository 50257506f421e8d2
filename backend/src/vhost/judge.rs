//! What the front door does with each message.

use rustix::io::ioctl_fionbio;
use vhost::vhost_user::VhostUserProtocolFeatures as ProtocolFeatures;
use vhost::vhost_user::message::FrontendReq as Request;

use super::door::{Answer, Door, Ended, answer};
use super::memory::{self, MemoryRefused, REGION_LEN, RegionInfo};
use super::session::{LOG_ALL, PROTOCOL_FEATURES, RING_PACKED, Topic};
use super::wire::{self, Header, Message, u32_at, u64_at};
use crate::sys;
use tandem_virtio_net::spec::MAX_QUEUE_SIZE;

/// SET_VRING_KICK, CALL, ERR: no descriptor comes with the message.
const NO_FD: u64 = 1 << 8;

/// Bytes the body of a message has, and descriptors that may come with it.
fn shape(request: Request) -> Option<(std::ops::RangeInclusive<usize>, usize)> {
    use Request as R;
    Some(match request {
        R::SET_OWNER | R::RESET_OWNER | R::GET_FEATURES | R::GET_PROTOCOL_FEATURES => (0..=0, 0),
        R::GET_QUEUE_NUM | R::GET_MAX_MEM_SLOTS => (0..=0, 0),
        R::SET_FEATURES | R::SET_PROTOCOL_FEATURES => (8..=8, 0),
        R::SET_MEM_TABLE => (8..=8 + wire::MAX_FDS * REGION_LEN, wire::MAX_FDS),
        // A descriptor with REM_MEM_REG is an old mistake that the specification allows for.
        R::ADD_MEM_REG | R::REM_MEM_REG => (8 + REGION_LEN..=8 + REGION_LEN, 1),
        R::SET_LOG_BASE => (8..=16, 1),
        R::SET_VRING_NUM | R::SET_VRING_BASE | R::GET_VRING_BASE => (8..=8, 0),
        R::SET_VRING_ENABLE => (8..=8, 0),
        R::SET_VRING_ADDR => (40..=40, 0),
        R::SET_VRING_KICK | R::SET_VRING_CALL | R::SET_VRING_ERR => (8..=8, 1),
        R::GET_CONFIG => (12..=wire::MAX_BODY, 0),
        R::SET_DEVICE_STATE_FD => (8..=8, 1),
        R::CHECK_DEVICE_STATE => (0..=0, 0),
        _ => return None,
    })
}

impl Door {
    /// Handles one message.
    ///
    /// # Errors
    /// The session cannot go on.
    pub(super) fn handle(&mut self, mut message: Message) -> Result<Answer, Ended> {
        let header = message.header;
        if wire::is_reply(&header) {
            return Err(Ended::Refused(format!(
                "the VMM answered message {}",
                header.request
            )));
        }
        let request = Request::try_from(header.request).ok();
        let Some((request, (sizes, fds))) = request.and_then(|r| Some((r, shape(r)?))) else {
            return self.unsupported(&header, request);
        };
        if !sizes.contains(&message.body.len()) || message.fds.len() > fds {
            return Err(Ended::Refused(format!(
                "the VMM sent {request:?} with {} bytes and {} file descriptors",
                message.body.len(),
                message.fds.len(),
            )));
        }
        match request {
            Request::SET_MEM_TABLE => self.set_mem_table(&mut message),
            Request::ADD_MEM_REG => self.add_region(&message),
            Request::REM_MEM_REG => self.remove_region(&message),
            Request::SET_LOG_BASE => self.set_log_base(&message),
            Request::SET_VRING_KICK | Request::SET_VRING_CALL | Request::SET_VRING_ERR => {
                self.ring_descriptor(request, &message)
            }
            Request::SET_VRING_NUM
            | Request::SET_VRING_BASE
            | Request::GET_VRING_BASE
            | Request::SET_VRING_ENABLE
            | Request::SET_VRING_ADDR => self.ring_value(request, &message),
            _ => self.device_value(request, &message),
        }
    }

    /// Messages about the device as a whole.
    fn device_value(&mut self, request: Request, message: &Message) -> Result<Answer, Ended> {
        let (header, body) = (&message.header, &message.body);
        match request {
            Request::SET_OWNER => {
                if !std::mem::replace(&mut self.session.info().owned, true) {
                    self.relay(request, body, &[])?;
                }
                Ok(self.ack(header, true))
            }
            // Long deprecated: "back-ends should ignore it".
            Request::RESET_OWNER => Ok(self.ack(header, true)),
            Request::SET_PROTOCOL_FEATURES => {
                self.session.info().protocol_features = u64_at(body, 0);
                Ok(self.ack(header, true))
            }
            Request::SET_FEATURES => self.set_features(message),
            Request::GET_CONFIG => self.get_config(message),
            Request::SET_DEVICE_STATE_FD | Request::CHECK_DEVICE_STATE => {
                self.device_state(request, message)
            }
            // GET_FEATURES, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_MAX_MEM_SLOTS.
            _ => Ok(answer(header, &self.ask(request, body)?)),
        }
    }

    fn set_features(&mut self, message: &Message) -> Result<Answer, Ended> {
        let features = u64_at(&message.body, 0);
        let offered = self.session.device.features() | PROTOCOL_FEATURES | LOG_ALL;
        let extra = features & !offered;
        if extra != 0 {
            let words = format!(
                "the VMM insists on features {extra:#x} that this port does not offer: turn them \
                 off for this NIC in the VMM, or use the feature_level it was started with"
            );
            return Ok(self.refuse(&message.header, Topic::Features, words));
        }
        self.relay(Request::SET_FEATURES, &message.body, &[])?;
        self.session.settle(Topic::Features);
        Ok(self.ack(&message.header, true))
    }

    fn get_config(&mut self, message: &Message) -> Result<Answer, Ended> {
        let body = &message.body;
        let [offset, size, flags] = [u32_at(body, 0), u32_at(body, 4), u32_at(body, 8)];
        let end = offset.checked_add(size).map_or(usize::MAX, |e| e as usize);
        let possible = size != 0 && end <= wire::MAX_BODY - 12 && flags & !3 == 0;
        if possible && body.len() == 12 + size as usize {
            return Ok(answer(
                &message.header,
                &self.ask(Request::GET_CONFIG, body)?,
            ));
        }
        // No payload says that there is no such thing.
        let mut none = body[..12].to_vec();
        none[4..8].fill(0);
        Ok(answer(&message.header, &none))
    }

    /// Numbers of a ring.
    fn ring_value(&mut self, request: Request, message: &Message) -> Result<Answer, Ended> {
        let (header, body) = (&message.header, &message.body);
        let (index, value) = (u32_at(body, 0), u32_at(body, 4));
        let Some(ring) = self.ring(index) else {
            let refused = self.no_such_ring(header, index);
            let stopped = request == Request::GET_VRING_BASE;
            return Ok(if stopped {
                base_reply(header, index, 0)
            } else {
                refused
            });
        };
        let wrong = match request {
            Request::GET_VRING_BASE => return self.get_base(message),
            Request::SET_VRING_NUM => (value == 0 || value > u32::from(MAX_QUEUE_SIZE))
                .then(|| format!("{value} is not a queue size")),
            Request::SET_VRING_ADDR => self.wrong_addresses(body),
            Request::SET_VRING_ENABLE => self.wrong_enable(value),
            _ => None,
        };
        if let Some(wrong) = wrong {
            let words = format!("the VMM set up queue {ring} wrongly: {wrong}");
            return Ok(self.refuse(header, Topic::Ring(ring), words));
        }
        self.relay(request, body, &[])?;
        Ok(self.ack(header, true))
    }

    fn get_base(&mut self, message: &Message) -> Result<Answer, Ended> {
        let reply = self.ask(Request::GET_VRING_BASE, &message.body)?;
        if reply.len() != 8 {
            return Err(Ended::Inner("GET_VRING_BASE has no answer".into()));
        }
        let base = u32_at(&reply, 4);
        // Packed: the used position in the high half; nothing is held, so it is the same.
        let packed = self.session.info().virtio_features() & RING_PACKED != 0;
        let base = if packed { base | base << 16 } else { base };
        Ok(base_reply(&message.header, u32_at(&reply, 0), base))
    }

    /// What the crate would end the session over, in words.
    fn wrong_addresses(&self, body: &[u8]) -> Option<String> {
        let info = self.session.info();
        if info.memory.is_empty() {
            return Some(format!("it has shared no memory yet: {}", memory::REMEDY));
        }
        if u32_at(body, 4) & !1 != 0 {
            return Some(format!("address flags {:#x} are unknown", u32_at(body, 4)));
        }
        for (name, at, align) in [("descriptor", 8, 16), ("used", 16, 4), ("available", 24, 2)] {
            let address = u64_at(body, at);
            if !address.is_multiple_of(align) {
                return Some(format!("its {name} ring at {address:#x} is not aligned"));
            }
            if !info.memory.iter().any(|r| r.has_user(address)) {
                return Some(format!(
                    "its {name} ring at {address:#x} is not in shared memory"
                ));
            }
        }
        None
    }

    fn wrong_enable(&self, value: u32) -> Option<String> {
        if value > 1 {
            return Some(format!(
                "it can be enabled by 1 or disabled by 0, not by {value}"
            ));
        }
        let features = self.session.info().features.unwrap_or(PROTOCOL_FEATURES);
        let negotiated = features & PROTOCOL_FEATURES != 0;
        (!negotiated).then(|| "it was enabled without VHOST_USER_F_PROTOCOL_FEATURES".into())
    }

    /// A ring's eventfds.
    fn ring_descriptor(&mut self, request: Request, message: &Message) -> Result<Answer, Ended> {
        let (header, value) = (&message.header, u64_at(&message.body, 0));
        let index = (value & 0xff) as u32;
        let Some(ring) = self.ring(index) else {
            return Ok(self.no_such_ring(header, index));
        };
        let wrong = match (message.fds.first(), value & NO_FD != 0) {
            (None, true) if request == Request::SET_VRING_KICK => {
                Some("it wants it polled, without a descriptor that tells of new buffers")
            }
            (None, true) => None,
            (Some(fd), false) if memory::is_eventfd(fd) => {
                // Whoever writes to it must never wait for whoever reads.
                ioctl_fionbio(fd, true)
                    .err()
                    .map(|_| "its eventfd cannot be made non-blocking")
            }
            (Some(_), false) => Some("a descriptor that is not an eventfd came with it"),
            _ => Some("the descriptor does not agree with the message"),
        };
        if let Some(wrong) = wrong {
            let words = format!("the VMM set up queue {ring} wrongly ({request:?}): {wrong}");
            return Ok(self.refuse(header, Topic::Ring(ring), words));
        }
        self.relay(request, &message.body, &message.fds)?;
        Ok(self.ack(header, true))
    }

    fn set_mem_table(&mut self, message: &mut Message) -> Result<Answer, Ended> {
        let table: Vec<_> = message.body[8..]
            .chunks_exact(REGION_LEN)
            .map(RegionInfo::parse)
            .collect();
        let (said, fds) = (u32_at(&message.body, 0) as usize, message.fds.len());
        if said != table.len() || said != fds || said == 0 {
            let words = MemoryRefused::Descriptors { regions: said, fds }.to_string();
            return Ok(self.refuse(&message.header, Topic::Memory, words));
        }
        let mut regions: Vec<_> = table.into_iter().zip(message.fds.drain(..)).collect();
        // The crate wants them in order.
        regions.sort_by_key(|(region, _)| region.guest);
        let mut accepted = Vec::new();
        for (region, file) in &regions {
            if let Err(e) = memory::check_region(&accepted, region, file, &self.session.vmm) {
                return Ok(self.refuse(&message.header, Topic::Memory, e.to_string()));
            }
            accepted.push(*region);
        }
        let mut body = (said as u64).to_ne_bytes().to_vec();
        body.extend(accepted.iter().flat_map(RegionInfo::encode));
        let fds: Vec<_> = regions.into_iter().map(|(_, file)| file).collect();
        self.relay(Request::SET_MEM_TABLE, &body, &fds)?;
        Ok(self.remember_memory(&message.header, accepted))
    }

    fn add_region(&mut self, message: &Message) -> Result<Answer, Ended> {
        let region = RegionInfo::parse(&message.body[8..]);
        let mut table = self.session.info().memory.clone();
        // QEMU before 8.0 adds every region once for each queue pair.
        if table.contains(&region) {
            return Ok(self.ack(&message.header, true));
        }
        let checked = match message.fds.first() {
            Some(file) => memory::check_region(&table, &region, file, &self.session.vmm),
            None => Err(MemoryRefused::Descriptors { regions: 1, fds: 0 }),
        };
        if let Err(e) = checked {
            return Ok(self.refuse(&message.header, Topic::Memory, e.to_string()));
        }
        self.relay(Request::ADD_MEM_REG, &message.body, &message.fds)?;
        let at = table.partition_point(|r| r.guest < region.guest);
        table.insert(at, region);
        Ok(self.remember_memory(&message.header, table))
    }

    fn remove_region(&mut self, message: &Message) -> Result<Answer, Ended> {
        let region = RegionInfo::parse(&message.body[8..]);
        let mut table = self.session.info().memory.clone();
        let same =
            |r: &RegionInfo| (r.guest, r.size, r.user) == (region.guest, region.size, region.user);
        let Some(at) = table.iter().position(same) else {
            // And removes it once for each.
            if self.session.info().removed.as_ref().is_some_and(same) {
                return Ok(self.ack(&message.header, true));
            }
            let words = MemoryRefused::Unknown(region.guest).to_string();
            return Ok(self.refuse(&message.header, Topic::Memory, words));
        };
        self.relay(Request::REM_MEM_REG, &message.body, &[])?;
        let removed = table.remove(at);
        self.session.info().removed = Some(removed);
        Ok(self.remember_memory(&message.header, table))
    }

    fn remember_memory(&self, header: &Header, table: Vec<RegionInfo>) -> Answer {
        self.session.info().memory = table;
        self.session.settle(Topic::Memory);
        self.ack(header, true)
    }

    /// The log is mapped here: the crate's own would not be checked nor ever be let go of. There
    /// is no way to refuse but to end the session; a migration without a log would lose writes.
    fn set_log_base(&mut self, message: &Message) -> Result<Answer, Ended> {
        let refused =
            |words: String| Ended::Refused(format!("the VMM's dirty log is of no use: {words}"));
        let (Some(file), 16) = (message.fds.first(), message.body.len()) else {
            return Err(refused("it came without shared memory (LOG_SHMFD)".into()));
        };
        let (size, offset) = (u64_at(&message.body, 0), u64_at(&message.body, 8));
        memory::check_log(size, offset, file).map_err(|e| refused(e.to_string()))?;
        let end = self.session.info().memory.last().map_or(0, RegionInfo::end);
        if size < end.div_ceil(8 * 4096) {
            return Err(refused(format!(
                "{size} bytes do not cover memory up to {end:#x}"
            )));
        }
        let log = sys::map_log(file, offset, size, &self.session.fault)
            .map_err(|e| refused(e.to_string()))?;
        self.session.set_log(log);
        Ok(answer(&message.header, &message.body))
    }

    /// A message we do not know or have not offered.
    pub(super) fn unsupported(
        &self,
        header: &Header,
        request: Option<Request>,
    ) -> Result<Answer, Ended> {
        use Request as R;
        self.session.info().unsupported_messages += 1;
        let body: &[u8] = match request {
            // Nothing needs to be told when the log changes.
            Some(R::SET_LOG_FD) => return Ok(self.ack(header, true)),
            // Nothing kept in flight; a status of zero.
            Some(R::GET_INFLIGHT_FD) => &[0; 24],
            Some(R::GET_STATUS) => &[0; 8],
            // Failed, and bit 8: no descriptor.
            Some(R::SET_DEVICE_STATE_FD) => &0x101u64.to_ne_bytes(),
            Some(R::CHECK_DEVICE_STATE) => &1u64.to_ne_bytes(),
            Some(R::POSTCOPY_ADVISE | R::GET_SHARED_OBJECT) => &[],
            Some(R::GET_SHMEM_CONFIG) => &[0; 8 + 256 * 8],
            Some(r @ R::CREATE_CRYPTO_SESSION) => {
                return Err(Ended::Refused(format!(
                    "the VMM takes this NIC for another device ({r:?})"
                )));
            }
            _ => return Ok(self.ack(header, false)),
        };
        Ok(answer(header, body))
    }

    /// A ring's number, if there is such a ring.
    fn ring(&self, index: u32) -> Option<u16> {
        let rings = 2 * u32::from(self.session.device.queue_pairs());
        (index < rings).then_some(index as u16)
    }

    fn no_such_ring(&self, header: &Header, index: u32) -> Answer {
        let pairs = self.session.device.queue_pairs();
        let asked = {
            let mut info = self.session.info();
            info.pairs_asked = info.pairs_asked.max(u64::from(index) / 2 + 1);
            info.pairs_asked
        };
        let words = format!(
            "the VMM asked for queue pair {asked} of {pairs}: set queues={pairs} (QEMU) or \
             num_queues={} (cloud-hypervisor) for this NIC, or more queue_pairs for this port",
            2 * pairs,
        );
        self.refuse(header, Topic::QueuePairs, words)
    }

    /// Says no, as far as the VMM wants to hear it, and remembers why.
    fn refuse(&self, header: &Header, topic: Topic, words: String) -> Answer {
        self.session.complain(topic, words);
        self.ack(header, false)
    }

    /// Says whether a message that has no answer of its own was carried out (REPLY_ACK).
    fn ack(&self, header: &Header, done: bool) -> Answer {
        let acks = ProtocolFeatures::REPLY_ACK.bits();
        let wanted = self.session.info().protocol_features & acks != 0 && header.needs_reply();
        if wanted {
            answer(header, &u64::from(!done).to_ne_bytes())
        } else {
            None
        }
    }
}

/// GET_VRING_BASE's answer.
fn base_reply(header: &Header, index: u32, base: u32) -> Answer {
    let mut body = index.to_ne_bytes().to_vec();
    body.extend(base.to_ne_bytes());
    answer(header, &body)
}
