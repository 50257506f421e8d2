//! A port's vhost-user socket, and the thread that serves it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, eventfd};
use thiserror::Error;

use super::device::Device;
use super::serve::Server;
use super::session::{RING_PACKED, Session};
use super::socket::Gate;
use crate::broker::Broker;

/// Where the VMM is met.
#[derive(Debug)]
pub enum Source {
    /// We listen; the VMM connects.
    Listen {
        /// The socket's file, at most 107 bytes. It is removed when the endpoint is dropped.
        path: PathBuf,
        /// Its mode, such as `0o660`.
        permissions: u32,
        /// The group it belongs to, by name or number; none: the process's own.
        group: Option<String>,
    },
    /// The VMM listens; we connect, and connect again when it went away.
    Connect {
        /// The VMM's socket, at most 107 bytes.
        path: PathBuf,
    },
    /// A socket that was handed to us: one that listens, or the connection to one VMM.
    Socket(OwnedFd),
}

/// Why a port's socket could not be had. The words say what to do.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// A path does not fit into a socket address.
    #[error(
        "socket path {path} is {len} bytes long, more than the 107 a socket address has room for: \
         choose a shorter run_dir or socket"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// Somebody listens there.
    #[error("another process listens at {path}: end it, or choose another socket for this port")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// A file is in the way.
    #[error("{path} exists and is not a socket: remove it, or choose another socket for this port")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// There is no such group.
    #[error("there is no group {group}: create it, or choose another socket_group")]
    Group {
        /// Its name.
        group: String,
    },
    /// The socket cannot be made as asked.
    #[error(
        "cannot listen at {path} ({source}): its directory must exist and be writable, and changing \
         the group takes being a member of it or root"
    )]
    Listen {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What takes privilege cannot be done any more.
    #[error(
        "{path} cannot be had, because tandemd's privileged process has ended: restart tandemd"
    )]
    NoBroker {
        /// The path.
        path: PathBuf,
    },
    /// The descriptor handed over is something else.
    #[error(
        "the descriptor is not a unix stream socket that listens or is connected: hand over one of \
         those"
    )]
    NotASession,
    /// The system does not let us have what a socket takes.
    #[error("a socket cannot be served ({0}): see the limits on descriptors and threads")]
    Socket(#[source] io::Error),
}

/// What a port's session is at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionStatus {
    /// Is a VMM connected?
    pub connected: bool,
    /// VMMs that have connected since the endpoint was opened.
    pub connects: u64,
    /// Connections closed because there was a VMM already.
    pub refused_connections: u64,
    /// Messages that were answered or passed over because we do not know them.
    pub unsupported_messages: u64,
    /// Virtio features the driver has accepted.
    pub acked_features: u64,
    /// Are the rings packed ones?
    pub packed: bool,
    /// Regions of guest memory.
    pub memory_regions: usize,
    /// What last went wrong, in this session or an earlier one.
    pub last_error: Option<String>,
    /// The session that ended last, counted as `connects`, and what went wrong with it.
    pub last_end: Option<(u64, Option<String>)>,
    /// Why the port is down, in words with the remedy; none when it is up.
    pub reason: Option<String>,
}

/// What an endpoint's thread and those who ask share.
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) device: Arc<dyn Device>,
    /// An eventfd that tells the thread that `state` wants something of it.
    pub(super) wake: OwnedFd,
    pub(super) broker: Arc<Broker>,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    /// The counters, and what remains of earlier sessions.
    pub(super) status: SessionStatus,
    pub(super) session: Option<Arc<Session>>,
    /// Why there is no session, when none is there or it is about to end.
    pub(super) waiting: String,
    /// The VMM is gone, and the device is being told.
    pub(super) ending: bool,
    /// End the session, for this reason.
    pub(super) disconnect: Option<String>,
    /// End the thread.
    pub(super) stop: bool,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// A port's socket and its session. Dropping it ends the session and removes the socket.
pub struct Endpoint {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Endpoint {
    /// Opens a port's socket and starts to serve it. VMMs can connect when this returns.
    ///
    /// `name` names the port (threads carry it). `run_dir` must exist and be writable by us alone;
    /// a socket that VMMs do not see lies there for a moment when one connects. `broker` does what
    /// takes privilege.
    ///
    /// # Errors
    /// The socket cannot be had; nothing is left behind.
    pub fn open(
        name: &str,
        run_dir: &Path,
        source: Source,
        device: Arc<dyn Device>,
        broker: &Arc<Broker>,
    ) -> Result<Self, EndpointError> {
        let gate = Gate::open(source, broker)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| EndpointError::Socket(e.into()))?;
        let waiting = gate.waiting_for();
        let state = Mutex::new(State {
            waiting,
            ..State::default()
        });
        let shared = Arc::new(Shared {
            name: name.into(),
            device,
            wake,
            broker: Arc::clone(broker),
            state,
        });
        let server = Server::new(Arc::clone(&shared), gate, run_dir.into());
        let thread = thread::Builder::new()
            .name(thread_name(name, "door"))
            .spawn(move || server.run())
            .map_err(EndpointError::Socket)?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// What the session is at this moment.
    pub fn status(&self) -> SessionStatus {
        let state = self.shared.state();
        let mut status = state.status.clone();
        let Some(session) = state.session.clone() else {
            status.reason = Some(state.waiting.clone());
            return status;
        };
        let ending = state.ending.then(|| state.waiting.clone());
        drop(state);
        let broken = session.device.broken();
        let info = session.info();
        status.connected = true;
        status.unsupported_messages += info.unsupported_messages;
        status.acked_features = info.virtio_features();
        status.packed = status.acked_features & RING_PACKED != 0;
        status.memory_regions = info.memory.len();
        let complaint = info.complaints.values().next().cloned();
        status.last_error = broken.clone().or(complaint).or(status.last_error);
        status.reason = ending.or(broken).or_else(|| info.reason());
        status
    }

    /// Ends the session, if there is one, and says why. The VMM may connect again. Returns at
    /// once; [`Device::disconnected`] follows.
    pub fn disconnect(&self, reason: String) {
        let mut state = self.shared.state();
        if let Some(session) = &state.session {
            session.cancel_transfer();
            state.disconnect = Some(reason);
            self.shared.wake();
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.stop = true;
        if let Some(session) = &state.session {
            session.cancel_transfer();
        }
        drop(state);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A thread's name: 15 bytes at most, of which the port gets what is left.
pub(super) fn thread_name(port: &str, task: &str) -> String {
    let mut room = 14 - task.len();
    while !port.is_char_boundary(room.min(port.len())) {
        room -= 1;
    }
    format!("{} {task}", &port[..room.min(port.len())])
}

#[cfg(test)]
mod tests {
    use super::thread_name;

    #[test]
    fn thread_names_fit() {
        assert_eq!(thread_name("web1", "door"), "web1 door");
        assert_eq!(thread_name("a-long-port-name", "vhost"), "a-long-po vhost");
        assert_eq!(thread_name("ääääääääää", "door").len(), 15);
    }
}
