//! The device's state, as QEMU 10 and cloud-hypervisor save and load it: through a pipe of the VMM's
//! (vhost-user specification, "Migrating back-end state").

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, ensure};

use super::Session;
use crate::frontend::wire::{PATIENCE, request, wait_readable};

/// Direction: from the back-end to the VMM.
pub const SAVE: u32 = 0;
/// Direction: from the VMM to the back-end.
pub const LOAD: u32 = 1;
/// Phase: the rings are stopped.
pub const STOPPED: u32 = 0;
/// The answer to SET_DEVICE_STATE_FD: it is done, and no descriptor of the back-end's comes with it.
pub const STARTED: u64 = 0x100;

impl Session {
    /// SET_DEVICE_STATE_FD with any direction, phase and descriptors; what it answers.
    pub fn set_state_fd(
        &mut self,
        direction: u32,
        phase: u32,
        fds: &[BorrowedFd<'_>],
    ) -> Result<u64> {
        let body = [direction.to_le_bytes(), phase.to_le_bytes()].concat();
        let wire = self.wire();
        wire.send(request::SET_DEVICE_STATE_FD, 0, &body, fds)?;
        let reply = wire.recv()?;
        let expected = request::SET_DEVICE_STATE_FD;
        ensure!(
            reply.request == expected && reply.body.len() == 8,
            "{reply:?}"
        );
        reply.number()
    }

    /// CHECK_DEVICE_STATE; zero if the back-end is content.
    pub fn check_state(&mut self) -> Result<u64> {
        self.wire()
            .ask(request::CHECK_DEVICE_STATE, 0, &[])?
            .number()
    }

    /// Saves the state; the rings are stopped.
    pub fn save_state(&mut self) -> Result<Vec<u8>> {
        let (mut reads, writes) = std::io::pipe()?;
        let answer = self.set_state_fd(SAVE, STOPPED, &[writes.as_fd()])?;
        ensure!(answer == STARTED, "SAVE was answered {answer:#x}");
        drop(writes);
        let (mut state, mut piece) = (Vec::new(), [0; 65536]);
        loop {
            wait_readable(&reads, PATIENCE).context("reading the state")?;
            match reads.read(&mut piece)? {
                0 => break,
                n => state.extend_from_slice(&piece[..n]),
            }
        }
        ensure!(self.check_state()? == 0, "the state was not saved");
        Ok(state)
    }

    /// Sends a state, without asking what has become of it.
    pub fn send_state(&mut self, state: &[u8]) -> Result<()> {
        let (reads, mut writes) = std::io::pipe()?;
        let answer = self.set_state_fd(LOAD, STOPPED, &[reads.as_fd()])?;
        ensure!(answer == STARTED, "LOAD was answered {answer:#x}");
        drop(reads);
        // The back-end may have had enough of it before the end.
        let _ = writes.write_all(state);
        Ok(())
    }

    /// Loads a state.
    pub fn load_state(&mut self, state: &[u8]) -> Result<()> {
        self.send_state(state)?;
        ensure!(self.check_state()? == 0, "the state was not loaded");
        Ok(())
    }
}
