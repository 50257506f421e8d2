//! A port's vhost-user socket, and the thread that serves it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::device::Device;

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
    /// A listening socket that was handed to us.
    Listener(OwnedFd),
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
    /// Why the port is down, in words with the remedy; none when it is up.
    pub reason: Option<String>,
}

/// A port's socket and its session. Dropping it ends the session and removes the socket.
pub struct Endpoint {}

impl Endpoint {
    /// Opens a port's socket and starts to serve it. VMMs can connect when this returns.
    ///
    /// `name` names the port (threads carry it), `run_dir` must exist and be ours.
    ///
    /// # Errors
    /// The socket cannot be had; nothing is left behind.
    pub fn open(
        name: &str,
        run_dir: &Path,
        source: Source,
        device: Arc<dyn Device>,
    ) -> Result<Self, EndpointError> {
        let _ = (name, run_dir, source, device);
        Ok(Self {})
    }

    /// What the session is at this moment.
    pub fn status(&self) -> SessionStatus {
        SessionStatus::default()
    }

    /// Ends the session, if there is one, and says why. The VMM may connect again. Returns at
    /// once; [`Device::disconnected`] follows.
    pub fn disconnect(&self, reason: String) {
        let _ = reason;
    }
}
