//! The thread of an endpoint: waits for VMMs, and carries the messages of one at a time.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::door::{Door, Ended};
use super::endpoint::{Shared, thread_name};
use super::memory::Vmm;
use super::session::Session;
use super::socket::Gate;
use super::wire::{Inbox, WireError};
use crate::sys;

/// How long to wait before trying again to meet a VMM; doubles up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

pub(super) struct Server {
    shared: Arc<Shared>,
    gate: Gate,
    run_dir: PathBuf,
}

/// What a poll found.
struct Ready {
    vmm: PollFlags,
    knock: bool,
}

impl Server {
    pub(super) fn new(shared: Arc<Shared>, gate: Gate, run_dir: PathBuf) -> Self {
        Self {
            shared,
            gate,
            run_dir,
        }
    }

    pub(super) fn run(self) {
        let mut connected_before = false;
        while let Some(stream) = self.meet(connected_before) {
            self.session(&stream);
            connected_before = true;
        }
    }

    /// Waits for the next VMM; none when it is time to stop.
    fn meet(&self, connected_before: bool) -> Option<UnixStream> {
        let mut pause = RETRY.0;
        // A VMM that lets us in and throws us out must not keep us busy.
        let mut wait = connected_before && self.gate.listener().is_none();
        loop {
            if wait {
                self.wait(&[], Some(pause));
                pause = (2 * pause).min(RETRY.1);
            }
            if self.shared.state().stop {
                return None;
            }
            match self.gate.next() {
                Ok(Some(stream)) => return Some(stream),
                Ok(None) => {
                    wait = false;
                    self.wait(self.gate.listener().as_slice(), None);
                }
                Err(e) => {
                    wait = true;
                    self.cannot_meet(&e);
                }
            }
        }
    }

    fn cannot_meet(&self, e: &io::Error) {
        let awaited = matches!(
            e.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
        );
        let words = self.gate.waiting_for();
        let words = if awaited {
            words
        } else {
            format!("{words}: {e}")
        };
        let mut state = self.shared.state();
        if !awaited && state.waiting != words {
            log::warn!("port {}: {words}", self.shared.name);
            state.status.last_error = Some(words.clone());
        }
        state.waiting = words;
    }

    /// Waits for descriptors to become readable, a time to pass or someone to wake us.
    fn wait(&self, fds: &[BorrowedFd<'_>], time: Option<Duration>) {
        let mut polled = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        polled.extend(fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let time = time.and_then(|t| Timespec::try_from(t).ok());
        let _ = poll(&mut polled, time.as_ref());
        if !polled[0].revents().is_empty() {
            let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
        }
    }

    /// Serves a VMM to its end.
    fn session(&self, stream: &UnixStream) {
        let name = &self.shared.name;
        let pid = sys::peer(stream).unwrap_or(0);
        log::info!("port {name}: VMM connected (process {pid})");
        let vmm = Vmm {
            process: pid,
            broker: Arc::clone(&self.shared.broker),
        };
        let session = Arc::new(Session::new(name, vmm, Arc::clone(&self.shared.device)));
        session.device.connected();
        {
            let mut state = self.shared.state();
            state.status.connects += 1;
            state.disconnect = None;
            state.session = Some(Arc::clone(&session));
        }
        session.device.changed();
        let ended = self.serve(stream, &session);
        self.remember(&session, &ended);
        session.end_transfer();
        session.device.disconnected();
        let mut state = self.shared.state();
        state.session = None;
        state.ending = false;
        drop(state);
        session.device.changed();
    }

    /// Records how a session has ended.
    fn remember(&self, session: &Session, ended: &Ended) {
        let name = &self.shared.name;
        let complaint = session.info().complaints.values().next().cloned();
        let error = match ended {
            Ended::Closed => complaint,
            other => Some(other.to_string()),
        };
        match ended {
            Ended::Closed => log::info!("port {name}: {ended}"),
            other => log::warn!("port {name}: session ended: {other}"),
        }
        let mut state = self.shared.state();
        state.ending = true;
        state.waiting = self.gate.waiting_for();
        state.status.last_end = Some((state.status.connects, error.clone()));
        state.status.unsupported_messages += session.info().unsupported_messages;
        if let Some(error) = error {
            state.waiting = format!("{}; the last session: {error}", state.waiting);
            state.status.last_error = Some(error);
        }
    }

    fn serve(&self, stream: &UnixStream, session: &Arc<Session>) -> Ended {
        let thread = thread_name(&self.shared.name, "vhost");
        match Door::new(Arc::clone(session), &thread, &self.run_dir) {
            Ok(mut door) => self.relay(stream, &mut door).err().unwrap_or(Ended::Closed),
            Err(ended) => ended,
        }
    }

    /// Carries messages in and answers out, until one side ends it. An answer the VMM does not
    /// take holds up its next message, and nothing else.
    fn relay(&self, stream: &UnixStream, door: &mut Door) -> Result<(), Ended> {
        let (mut inbox, mut outbox) = (Inbox::default(), Vec::new());
        loop {
            let wanted = if outbox.is_empty() {
                PollFlags::IN
            } else {
                PollFlags::OUT
            };
            let ready = self.poll(stream, wanted);
            // A VMM that comes after this one has died is not a second one: it waits. Looked at
            // again, because `poll` looks at one descriptor after the other: this one may have
            // died, and the next have come, in between.
            if ready.knock && !has_left(stream) {
                self.refuse_connection();
            }
            self.asked_to_end()?;
            if ready.vmm.contains(PollFlags::OUT) {
                flush(stream, &mut outbox)?;
            } else if ready.vmm.contains(PollFlags::IN) {
                let Some(message) = inbox.read(stream)? else {
                    continue;
                };
                let (begin, starved) = (Instant::now(), sys::starved());
                outbox.extend(door.handle(message)?.unwrap_or_default());
                let starved = sys::starved().saturating_sub(starved);
                self.shared.device.answered(begin.elapsed(), starved);
                self.shared.device.changed();
                flush(stream, &mut outbox)?;
            } else if ready.vmm.intersects(PollFlags::HUP | PollFlags::ERR) {
                return Ok(());
            }
        }
    }

    fn asked_to_end(&self) -> Result<(), Ended> {
        let mut state = self.shared.state();
        match state.disconnect.take() {
            Some(reason) => Err(Ended::Refused(reason)),
            None if state.stop => Err(Ended::Closed),
            None => Ok(()),
        }
    }

    fn poll(&self, stream: &UnixStream, wanted: PollFlags) -> Ready {
        let mut fds = vec![
            PollFd::new(&self.shared.wake, PollFlags::IN),
            PollFd::new(stream, wanted),
        ];
        let listener = self.gate.listener();
        fds.extend(listener.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        if poll(&mut fds, None).is_err() {
            return Ready {
                vmm: PollFlags::empty(),
                knock: false,
            }; // interrupted
        }
        if !fds[0].revents().is_empty() {
            let _ = rustix::io::read(self.shared.wake.as_fd(), &mut [0; 8]);
        }
        Ready {
            vmm: fds[1].revents(),
            knock: fds.get(2).is_some_and(|f| !f.revents().is_empty()),
        }
    }

    /// A port has one VMM. Another one is let in and out, so that it is told at once.
    fn refuse_connection(&self) {
        match self.gate.next() {
            Ok(Some(_)) => {
                let mut state = self.shared.state();
                state.status.refused_connections += 1;
                if state.status.refused_connections == 1 {
                    log::warn!(
                        "port {}: refused a second VMM; refusals are counted from here on",
                        self.shared.name
                    );
                }
            }
            Ok(None) => {}
            // Out of descriptors, most likely, and still to be accepted: do not spin on it.
            Err(_) => self.wait(&[], Some(RETRY.0)),
        }
    }
}

/// Has the VMM closed its end?
fn has_left(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec::default();
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

/// Writes what the VMM takes.
fn flush(stream: &UnixStream, outbox: &mut Vec<u8>) -> Result<(), Ended> {
    while !outbox.is_empty() {
        match (&mut &*stream).write(outbox) {
            Ok(n) => drop(outbox.drain(..n)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Err(Ended::Closed),
            Err(e) => return Err(WireError::Io(e).into()),
        }
    }
    Ok(())
}
