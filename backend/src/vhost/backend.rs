//! Our side of the vhost-user-backend crate: it keeps the protocol, the session does the rest.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::sync::{Arc, MutexGuard};

use vhost::vhost_user::VhostUserProtocolFeatures as ProtocolFeatures;
use vhost::vhost_user::message::{
    VhostTransferStateDirection as TransferDirection, VhostTransferStatePhase,
};
use vhost_user_backend::{
    VhostUserBackend, VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT,
};
use virtio_queue::Error as VirtQueueError;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::session::{LOG_ALL, PROTOCOL_FEATURES, Session};
use tandem_virtio_net::spec::MAX_QUEUE_SIZE;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Protocol features offered. Not RESET_DEVICE, STATUS, MTU, RARP: the crate cannot carry them.
pub(super) const OFFERED: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(ProtocolFeatures::LOG_SHMFD)
    .union(ProtocolFeatures::DEVICE_STATE);

/// A session as the crate sees it.
#[derive(Clone)]
pub(super) struct Backend(pub(super) Arc<Session>);

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        2 * usize::from(self.0.device.queue_pairs())
    }

    fn max_queue_size(&self) -> usize {
        usize::from(MAX_QUEUE_SIZE)
    }

    fn features(&self) -> u64 {
        self.0.device.features() | PROTOCOL_FEATURES | LOG_ALL
    }

    fn acked_features(&self, features: u64) {
        self.0.set_features(features);
    }

    fn protocol_features(&self) -> ProtocolFeatures {
        OFFERED
    }

    fn set_event_idx(&self, _enabled: bool) {}

    /// What lies beyond our configuration reads as zero: VMMs ask for as much as they know of.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.0.device.config();
        let mut bytes = config.get(offset as usize..).unwrap_or_default().to_vec();
        bytes.resize(size as usize, 0);
        bytes
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        self.0.set_memory(memory.memory().into_inner())
    }

    /// No threads of the crate's: kicks go to the device's own.
    fn queues_per_thread(&self) -> Vec<u64> {
        Vec::new()
    }

    fn stop_vring(&self, ring: u32) -> io::Result<()> {
        self.0.stop(ring as u16); // an index the crate has checked
        Ok(())
    }

    /// Over the VMM's pipe, never one of ours.
    fn set_device_state_fd(
        &self,
        direction: TransferDirection,
        _: VhostTransferStatePhase, // there is only one: all rings are stopped
        file: File,
    ) -> io::Result<Option<File>> {
        let load = direction == TransferDirection::LOAD;
        self.0.transfer_state(load, file).map(|()| None)
    }

    fn check_device_state(&self) -> io::Result<()> {
        self.0.check_state()
    }

    fn handle_event(&self, _: u16, _: EventSet, _: &[Ring], _: usize) -> io::Result<()> {
        Ok(())
    }
}

thread_local! {
    /// The session whose rings the crate is making on this thread, and the number of the next.
    static MAKING: RefCell<Option<(Arc<Session>, u16)>> = const { RefCell::new(None) };
}

/// Runs `make`, in which the crate makes a session's rings by [`VringT::new`]. That gets told
/// neither which ring nor whose, and is called once for each in order.
pub(super) fn making_rings<T>(session: &Arc<Session>, make: impl FnOnce() -> T) -> T {
    MAKING.set(Some((Arc::clone(session), 0)));
    let made = make();
    MAKING.set(None);
    made
}

/// A ring as the crate sees it: the seam by which the session learns what was set. The crate's
/// own ring behind it is left empty, and with it all that the crate would do to guest memory.
#[derive(Clone)]
pub(super) struct Ring {
    unused: VringMutex<Memory>,
    session: Arc<Session>,
    index: u16,
}

impl<'a> VringStateGuard<'a, Memory> for Ring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Ring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for Ring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, VirtQueueError> {
        let unused = VringMutex::new(memory, max_queue_size)?;
        MAKING.with_borrow_mut(|making| {
            let (session, next) = making.as_mut().ok_or(VirtQueueError::QueueNotReady)?;
            let ring = Self {
                unused,
                session: Arc::clone(session),
                index: *next,
            };
            *next += 1;
            Ok(ring)
        })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.unused.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.unused.get_mut()
    }

    fn set_enabled(&self, enabled: bool) {
        self.session.enable(self.index, enabled);
    }

    fn set_queue_info(&self, desc: u64, driver: u64, device: u64) -> Result<(), VirtQueueError> {
        self.session
            .set_addresses(self.index, [desc, driver, device]);
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.session.base(self.index)
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.session.set_base(self.index, base);
    }

    fn set_queue_size(&self, size: u16) {
        self.session.set_size(self.index, size);
    }

    fn set_kick(&self, file: Option<File>) {
        self.session.set_kick(self.index, file.map(Into::into));
    }

    fn set_call(&self, file: Option<File>) {
        self.session.set_call(self.index, file.map(Into::into));
    }

    // What follows is of no interest: errors are not signalled, and our rings keep their own
    // indices and read guest memory themselves.

    fn set_err(&self, _file: Option<File>) {}

    fn set_queue_ready(&self, _ready: bool) {}

    fn set_queue_event_idx(&self, _enabled: bool) {}

    fn set_queue_next_used(&self, _index: u16) {}

    fn queue_used_idx(&self) -> Result<u16, VirtQueueError> {
        Ok(0)
    }

    fn read_kick(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn add_used(&self, _index: u16, _len: u32) -> Result<(), VirtQueueError> {
        Ok(())
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        Ok(())
    }

    fn enable_notification(&self) -> Result<bool, VirtQueueError> {
        Ok(false)
    }

    fn disable_notification(&self) -> Result<(), VirtQueueError> {
        Ok(())
    }

    fn needs_notification(&self) -> Result<bool, VirtQueueError> {
        Ok(false)
    }
}
