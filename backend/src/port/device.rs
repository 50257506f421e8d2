//! What a vhost-user session does to a port.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tandem_migration::state::PortState;
use tandem_virtio_net::Call;
use tandem_virtio_net::memory::{DirtyLog, Memory};
use tandem_virtio_net::queue::Stopped;
use tandem_virtio_net::ring::{RingConfig, SetupError};
use tandem_virtio_net::spec::*;

use super::{Event, FEATURES_LEVEL_1, GuestPort, lock};
use crate::bell::Bell;
use crate::vhost::Device;

/// Ring numbers of the vhost-user protocol: 2i is pair i's RX queue, 2i + 1 its TX queue
/// (virtio 1.3, 5.1.2).
impl Device for GuestPort {
    fn queue_pairs(&self) -> u16 {
        self.pairs.len() as u16
    }

    fn features(&self) -> u64 {
        let mut features = FEATURES_LEVEL_1;
        if self.config.failover {
            features &= !(1 << VIRTIO_NET_F_GUEST_ANNOUNCE);
        }
        features
    }

    /// `struct virtio_net_config` (virtio 1.3, 5.1.4). The address is the VMM's to say.
    fn config(&self) -> Vec<u8> {
        let mut c = vec![0; 12];
        c[6..8].copy_from_slice(&1u16.to_le_bytes()); // status: link up
        c[8..10].copy_from_slice(&self.queue_pairs().to_le_bytes());
        c[10..12].copy_from_slice(&self.config.mtu.to_le_bytes());
        c
    }

    fn connected(&self) {}

    fn disconnected(&self) {
        for (i, pair) in self.pairs.iter().enumerate() {
            self.set_kick(2 * i as u16 + 1, None);
            lock(&pair.tx).queue.reset();
            lock(&pair.rx).reset();
            *lock(&pair.bells) = [None, None];
            self.refresh(i);
        }
        self.acked.store(0, Ordering::Relaxed);
        self.give_up_state();
        self.change.end();
        self.back.store(false, Ordering::Relaxed);
        self.tell(Event::Gone);
    }

    fn set_features(&self, acked: u64) {
        if !self.has_rings() {
            self.change.begin();
        }
        self.acked.store(acked, Ordering::Relaxed);
        if !self.log_all() {
            self.for_each_ring(|q| q.set_log(None));
        }
    }

    fn set_memory(&self, memory: Memory) -> Result<(), SetupError> {
        let mut result = Ok(());
        self.for_each_ring(|q| {
            if let Err(e) = q.set_memory(memory.clone()) {
                result = Err(e);
            }
        });
        (0..self.pairs.len()).for_each(|i| self.refresh(i));
        result
    }

    fn set_log(&self, log: Option<DirtyLog>) {
        self.for_each_ring(|q| q.set_log(log.clone()));
    }

    fn start_ring(&self, ring: u16, config: RingConfig, base: u16) -> Result<(), SetupError> {
        let Some(pair) = self.pairs.get(usize::from(ring / 2)) else {
            return Ok(());
        };
        self.settle_in();
        let mut journal = self.journal(ring, &config);
        if ring.is_multiple_of(2) {
            let mut rx = lock(&pair.rx);
            if rx.start(&config, base)? {
                if rx.has_run() {
                    self.settle_expected();
                }
                journal.take().into_iter().for_each(|j| {
                    rx.keep_position(j);
                });
            }
        } else {
            let mut tx = lock(&pair.tx);
            if tx.queue.start(&config, base, Some(self.config.mtu))? {
                if tx.queue.has_run() {
                    self.settle_expected();
                }
                let goes_on = journal.is_some_and(|j| tx.queue.keep_position(j));
                drop(tx);
                self.driver_is(ring, goes_on, self.has_arrived(ring));
            }
            pair.wake();
        }
        self.refresh(usize::from(ring / 2));
        self.end_hold_if_back();
        pair.rouse(ring);
        self.tell_if_back();
        Ok(())
    }

    fn stop_ring(&self, ring: u16) -> Option<u16> {
        let pair = self.pairs.get(usize::from(ring / 2))?;
        self.hold_before_stop(ring);
        let base = if ring.is_multiple_of(2) {
            lock(&pair.rx).stop()
        } else {
            lock(&pair.tx).queue.stop()
        };
        self.refresh(usize::from(ring / 2));
        base
    }

    fn enable_ring(&self, ring: u16, on: bool) {
        let Some(pair) = self.pairs.get(usize::from(ring / 2)) else {
            return;
        };
        if ring.is_multiple_of(2) {
            lock(&pair.rx).set_enabled(on);
            self.refresh(usize::from(ring / 2));
            self.end_hold_if_back();
        } else {
            lock(&pair.tx).queue.set_enabled(on);
            pair.wake();
        }
        self.tell_if_back();
    }

    fn set_kick(&self, ring: u16, kick: Option<OwnedFd>) {
        // A full RX ring is dropped on: nothing waits for its kicks.
        if ring.is_multiple_of(2) {
            return;
        }
        let Some(pair) = self.pairs.get(usize::from(ring / 2)) else {
            return;
        };
        let new = kick.map(File::from);
        let wake = lock(&pair.wake);
        let mut slot = lock(&pair.kick);
        if let Some(wake) = &*wake {
            wake.replace_kick(pair.id, slot.as_ref(), new.as_ref());
        }
        *slot = new;
    }

    fn set_call(&self, ring: u16, call: Option<OwnedFd>) {
        let Some(pair) = self.pairs.get(usize::from(ring / 2)) else {
            return;
        };
        let bell = call.map(|fd| Arc::new(Bell::new(fd, Arc::clone(&pair.calls))));
        lock(&pair.bells)[usize::from(ring % 2)] = bell.clone();
        let call = bell.map(|bell| bell as Arc<dyn Call>);
        if ring.is_multiple_of(2) {
            lock(&pair.rx).set_call(call);
        } else {
            lock(&pair.tx).queue.set_call(call);
        }
        pair.rouse(ring);
    }

    fn save(&self) -> Result<Vec<u8>, String> {
        let state = self.state().to_bytes().map_err(|e| e.to_string())?;
        // Should the VM stay after all, its driver goes on.
        self.expect_driver();
        Ok(state)
    }

    fn load(&self, state: &[u8]) -> Result<(), String> {
        let state = PortState::try_from(state).map_err(|e| e.to_string())?;
        let ours = self.identity();
        state.identity.check(&ours).map_err(|e| e.to_string())?;
        self.change.begin();
        *lock(&self.brought) = Some(state);
        Ok(())
    }

    fn answered(&self, waited: Duration, starved: Duration) {
        self.change.answered(waited, starved);
        if self.has_rings() && !self.log_all() {
            self.change.end();
        }
    }

    fn changed(&self) {
        self.tell(Event::Changed);
    }

    fn broken(&self) -> Option<String> {
        if self.bell_is_stuck() {
            return Some("the VMM made an eventfd that notifies its guest block".to_owned());
        }
        let mut words = None;
        let mut ring = 0;
        self.for_each_ring(|q| {
            match q.stopped() {
                Some(Stopped::Broken(e)) if words.is_none() => {
                    let (dir, pair) = (if ring % 2 == 0 { "TX" } else { "RX" }, ring / 2);
                    words = Some(format!("the guest broke its {dir} ring {pair}: {e}"));
                }
                Some(Stopped::Fault) => {
                    words = Some("a page of the VM's memory could not be had".to_owned());
                }
                _ => {}
            }
            ring += 1;
        });
        words
    }
}
