//! The device's state, saved and loaded (vhost-user specification, VHOST_USER_SET_DEVICE_STATE_FD and
//! VHOST_USER_CHECK_DEVICE_STATE).
//!
//! A state that is refused or does not arrive costs what it holds, and nothing else here; whether
//! the migration goes on is up to the VMM, which hears of it when it asks.

use std::fs::File;
use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use vhost::vhost_user::VhostUserProtocolFeatures as ProtocolFeatures;
use vhost::vhost_user::message::FrontendReq as Request;

use super::door::{Answer, Door, Ended, answer};
use super::endpoint::thread_name;
use super::session::{Session, Topic};
use super::transfer::{Direction, Transfer};
use super::wire::{Message, u32_at};

/// How long a transfer may take; it is a part of the VM's downtime. Less than the crate may take for a
/// message, because CHECK_DEVICE_STATE waits for it.
const LIMIT: Duration = Duration::from_secs(5);

/// SET_DEVICE_STATE_FD's answer: bits 0 to 7 say whether it failed, bit 8 that no descriptor comes
/// with it.
const FAILED: u64 = 0x101;
/// The directions there are, save and load, and the phases: stopped.
const DIRECTIONS: std::ops::RangeInclusive<u32> = 0..=1;
const PHASE_STOPPED: u32 = 0;

impl Door {
    /// SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE.
    pub(super) fn device_state(
        &mut self,
        request: Request,
        message: &Message,
    ) -> Result<Answer, Ended> {
        let (header, body) = (&message.header, &message.body);
        let agreed = self.session.info().protocol_features & ProtocolFeatures::DEVICE_STATE.bits();
        if agreed == 0 {
            return self.unsupported(header, Some(request));
        }
        if request == Request::CHECK_DEVICE_STATE {
            return Ok(answer(header, &self.ask(request, body)?));
        }
        let wrong = if message.fds.is_empty() {
            Some("without a descriptor".to_owned())
        } else if !DIRECTIONS.contains(&u32_at(body, 0)) || u32_at(body, 4) != PHASE_STOPPED {
            let [direction, phase] = [u32_at(body, 0), u32_at(body, 4)];
            Some(format!("in direction {direction} and phase {phase}"))
        } else {
            None
        };
        if let Some(wrong) = wrong {
            let words = format!("the VMM wanted to transfer the port's state {wrong}");
            self.session.complain(Topic::State, words);
            return Ok(answer(header, &FAILED.to_ne_bytes()));
        }
        let reply = self.exchange(request, body, &message.fds)?;
        Ok(answer(header, &reply.body))
    }
}

impl Session {
    /// SET_DEVICE_STATE_FD: starts the transfer, instead of one that may still be on its way.
    pub(super) fn transfer_state(&self, load: bool, file: File) -> io::Result<()> {
        self.end_transfer();
        let direction = if load { "loaded" } else { "saved" };
        let started = self.start_transfer(load, file);
        started.map_err(|words| self.state_failed(direction, &words))
    }

    fn start_transfer(&self, load: bool, file: File) -> Result<(), String> {
        let direction = if load {
            if self.info().rings.iter().any(|ring| ring.running) {
                return Err("its queues are running: the VMM has to stop them first".into());
            }
            Direction::Load
        } else {
            Direction::Save(self.device.save()?)
        };
        let name = thread_name(&self.name, "state");
        let transfer = Transfer::start(name, direction, file, LIMIT).map_err(|e| e.to_string())?;
        *self.transfer() = Some(Arc::new(transfer));
        Ok(())
    }

    /// CHECK_DEVICE_STATE: what has become of it.
    pub(super) fn check_state(&self) -> io::Result<()> {
        // The lock is not held meanwhile: others may want to end it.
        let transfer = self.transfer().clone();
        let Some(transfer) = transfer else {
            return Err(self.state_failed("checked", "none was transferred"));
        };
        let outcome = transfer.wait().map_err(|e| e.to_string());
        self.transfer().take();
        let (direction, done) = if transfer.is_load {
            let running = self.info().rings.iter().any(|ring| ring.running);
            let loaded = match outcome {
                Ok(_) if running => Err("its queues were started meanwhile".to_owned()),
                Ok(state) => self.device.load(&state),
                Err(words) => Err(words),
            };
            ("loaded", loaded)
        } else {
            ("saved", outcome.map(|_| ()))
        };
        done.map_err(|words| self.state_failed(direction, &words))?;
        log::info!("port {}: its state was {direction}", self.name);
        self.settle(Topic::State);
        Ok(())
    }

    /// Ends a transfer that is on its way, and forgets one that nobody has asked for.
    pub(super) fn end_transfer(&self) {
        let transfer = self.transfer().take();
        drop(transfer);
    }

    /// The same without waiting for it, and from any thread.
    pub(super) fn cancel_transfer(&self) {
        if let Some(transfer) = &*self.transfer() {
            transfer.cancel();
        }
    }

    fn transfer(&self) -> MutexGuard<'_, Option<Arc<Transfer>>> {
        self.transfer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_failed(&self, what: &str, words: &str) -> io::Error {
        let words = format!("the port's state was not {what}: {words}");
        self.complain(Topic::State, words.clone());
        io::Error::other(words)
    }
}
