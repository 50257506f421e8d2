//! The front door: every message of a VMM is judged here before the crate sees it.
//!
//! The crate ends the connection over anything it does not like, which costs a VM its network. So
//! it gets only what it will accept; the rest is answered here, as far as the protocol has an
//! answer, and the port says in words what was wrong.
//!
//! The door and the crate go in step. Whatever the VMM wants, the crate is asked for an answer to
//! every message, and the next one is looked at only when that has come. So the door knows what
//! became of each, the device is never called by two threads at once, and no queue builds up.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use thiserror::Error;
use vhost::vhost_user::message::FrontendReq as Request;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::backend::{Backend, OFFERED, making_rings};
use super::session::{PROTOCOL_FEATURES, Session};
use super::socket::Inner;
use super::wire::{self, Header, Inbox, Message, NEED_REPLY, WireError, u64_at};

/// How long the crate may take for one message. It waits for queues to fall quiet, which takes
/// microseconds, and for nothing else.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a session ends.
#[derive(Debug, Error)]
pub(super) enum Ended {
    /// The VMM went away in good order.
    #[error("the VMM disconnected")]
    Closed,
    /// The VMM's end of the connection cannot be followed.
    #[error("the VMM broke the vhost-user protocol: {0}")]
    Wire(#[source] WireError),
    /// A message the protocol has no answer for.
    #[error("{0}")]
    Refused(String),
    /// The connection to the crate failed.
    #[error("the session could not be served: {0}")]
    Inner(String),
}

impl From<WireError> for Ended {
    fn from(e: WireError) -> Self {
        if matches!(e, WireError::Closed) {
            Self::Closed
        } else {
            Self::Wire(e)
        }
    }
}

/// A session's front door, and the crate behind it. Dropping it ends the crate's thread.
pub(super) struct Door {
    pub(super) session: Arc<Session>,
    daemon: VhostUserDaemon<Backend>,
    stream: UnixStream,
    inbox: Inbox,
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Err(e) = self.daemon.wait() {
            log::debug!("vhost-user-backend: {e}");
        }
    }
}

impl Door {
    /// Starts the crate on a session. `thread` names its thread; `run_dir` is where the socket
    /// between the two lies for a moment.
    pub(super) fn new(session: Arc<Session>, thread: &str, run_dir: &Path) -> Result<Self, Ended> {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let backend = Backend(Arc::clone(&session));
        let inner = |e: &dyn std::fmt::Display| Ended::Inner(e.to_string());
        let mut daemon = making_rings(&session, || {
            VhostUserDaemon::new(thread.into(), backend, memory)
        })
        .map_err(|e| inner(&e))?;
        let stream = connect(&mut daemon, run_dir).map_err(|e| {
            Ended::Inner(format!(
                "no socket can be made in {}: {e}",
                run_dir.display()
            ))
        })?;
        let mut door = Self {
            session,
            daemon,
            stream,
            inbox: Inbox::default(),
        };
        door.prime()?;
        Ok(door)
    }

    /// Makes the crate accept what VMMs do: QEMU enables rings before it sets features, and not
    /// every VMM asks for what it then uses.
    fn prime(&mut self) -> Result<(), Ended> {
        self.session.priming.store(true, Ordering::Relaxed);
        self.ask(Request::GET_FEATURES, &[])?;
        self.relay(
            Request::SET_PROTOCOL_FEATURES,
            &OFFERED.bits().to_ne_bytes(),
            &[],
        )?;
        self.relay(Request::SET_FEATURES, &PROTOCOL_FEATURES.to_ne_bytes(), &[])?;
        self.session.priming.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Passes on a message that the crate has been seen to accept.
    pub(super) fn relay(
        &mut self,
        request: Request,
        body: &[u8],
        fds: &[OwnedFd],
    ) -> Result<(), Ended> {
        let reply = self.exchange(request, body, fds)?;
        if reply.body.len() == 8 && u64_at(&reply.body, 0) == 0 {
            return Ok(());
        }
        Err(Ended::Inner(format!("{request:?} failed")))
    }

    /// Passes on a message that has an answer of its own.
    pub(super) fn ask(&mut self, request: Request, body: &[u8]) -> Result<Vec<u8>, Ended> {
        self.exchange(request, body, &[]).map(|reply| reply.body)
    }

    pub(super) fn exchange(
        &mut self,
        request: Request,
        body: &[u8],
        fds: &[OwnedFd],
    ) -> Result<Message, Ended> {
        let failed = |e: WireError| Ended::Inner(format!("{request:?}: {e}"));
        wire::send(&self.stream, request.into(), NEED_REPLY, body, fds).map_err(failed)?;
        let reply = self.inbox.read(&self.stream).map_err(failed)?;
        reply.ok_or_else(|| Ended::Inner(format!("{request:?} takes longer than {PATIENCE:?}")))
    }
}

/// Connects the crate to us: it can only connect by path, or accept.
fn connect(daemon: &mut VhostUserDaemon<Backend>, run_dir: &Path) -> io::Result<UnixStream> {
    let inner = Inner::new(run_dir)?;
    daemon
        .start_client(inner.path())
        .map_err(|e| io::Error::other(e.to_string()))?;
    let stream = inner.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// What a VMM hears in answer to a message: nothing, or these bytes.
pub(super) type Answer = Option<Vec<u8>>;

/// An answer with a body.
pub(super) fn answer(header: &Header, body: &[u8]) -> Answer {
    Some(wire::reply(header.request, body))
}
