//! The sockets a VMM and we meet at, and the private one between the front door and the crate.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with, sockopt,
};

use super::endpoint::{EndpointError, Source};
use crate::broker::{Broker, Failure, SocketFile};
use crate::sys;

/// Bytes of a path that fit into a socket address with their NUL (unix(7)).
const MAX_PATH: usize = 107;
/// Connections to the private socket that may wait: ours, and such as are let in and out again.
const BACKLOG: i32 = 16;

/// Where VMMs come from.
pub(super) enum Gate {
    /// They connect.
    Listening {
        /// The file to remove in the end, if it is ours, and where it is. It goes before the socket, while
        /// no other file can have its number: fields drop in order.
        file: Option<(SocketFile, PathBuf)>,
        /// Non-blocking.
        listener: UnixListener,
    },
    /// We connect.
    Connecting(PathBuf, Arc<Broker>),
    /// One VMM, already connected; none after it.
    Connected(RefCell<Option<UnixStream>>),
}

impl Gate {
    /// Opens a port's socket.
    pub(super) fn open(source: Source, broker: &Arc<Broker>) -> Result<Self, EndpointError> {
        match source {
            Source::Listen {
                path,
                permissions,
                group,
            } => {
                check_length(&path)?;
                listen_at(path, permissions, group.as_deref(), broker)
            }
            Source::Connect { path } => {
                check_length(&path)?;
                Ok(Self::Connecting(path, Arc::clone(broker)))
            }
            Source::Socket(fd) => given(fd),
        }
    }

    /// The listener's descriptor, to wait for connections.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Listening { listener, .. } => Some(listener.as_fd()),
            Self::Connecting(..) | Self::Connected(_) => None,
        }
    }

    /// The next VMM, if there is one now. The stream does not block.
    pub(super) fn next(&self) -> io::Result<Option<UnixStream>> {
        let stream = match self {
            Self::Listening { listener, .. } => match listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if is_transient(&e) => return Ok(None),
                Err(e) => return Err(e),
            },
            Self::Connecting(path, broker) => broker.connect(path)?,
            Self::Connected(stream) => match stream.take() {
                Some(stream) => stream,
                None => return Ok(None),
            },
        };
        stream.set_nonblocking(true)?;
        Ok(Some(stream))
    }

    /// What keeps a VMM from being here, when nothing went wrong.
    pub(super) fn waiting_for(&self) -> String {
        match self {
            Self::Listening {
                file: Some((_, path)),
                ..
            } => {
                let who = fs::metadata(path).map(|m| {
                    let (uid, gid, mode) = (m.uid(), m.gid(), m.mode() & 0o777);
                    format!(
                        " (owner {uid}, group {gid}, mode {mode:04o}; a VMM that runs as another \
                         user needs socket_group)"
                    )
                });
                format!(
                    "no VMM is connected: start one with a vhost-user NIC at {}{}",
                    path.display(),
                    who.unwrap_or_default()
                )
            }
            Self::Listening { file: None, .. } => {
                "no VMM is connected: start one with a vhost-user NIC at the socket handed over"
                    .into()
            }
            Self::Connected(_) => {
                "the VMM whose connection was handed over is gone: start the program again with a \
                 new one"
                    .into()
            }
            Self::Connecting(path, _) => {
                format!(
                    "no VMM is connected: none listens at {} yet",
                    path.display()
                )
            }
        }
    }
}

/// A socket that was handed to us: one to accept VMMs at, or the connection to one.
fn given(fd: OwnedFd) -> Result<Gate, EndpointError> {
    let ours = sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&fd) == Ok(SocketType::STREAM);
    let connected = rustix::net::getpeername(&fd).is_ok();
    if ours && connected {
        return Ok(Gate::Connected(RefCell::new(Some(UnixStream::from(fd)))));
    }
    if !ours || sockopt::socket_acceptconn(&fd) != Ok(true) {
        return Err(EndpointError::NotASession);
    }
    Ok(Gate::Listening {
        listener: nonblocking(fd)?,
        file: None,
    })
}

fn is_transient(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(e.kind(), WouldBlock | Interrupted | ConnectionAborted)
}

fn nonblocking(fd: OwnedFd) -> Result<UnixListener, EndpointError> {
    let listener = UnixListener::from(fd);
    listener
        .set_nonblocking(true)
        .map_err(EndpointError::Socket)?;
    Ok(listener)
}

fn check_length(path: &Path) -> Result<(), EndpointError> {
    let len = path.as_os_str().as_bytes().len();
    if len > MAX_PATH {
        return Err(EndpointError::PathTooLong {
            path: path.into(),
            len,
        });
    }
    Ok(())
}

/// Listens at `path`.
fn listen_at(
    path: PathBuf,
    permissions: u32,
    group: Option<&str>,
    broker: &Arc<Broker>,
) -> Result<Gate, EndpointError> {
    match broker.listen(&path, permissions, group) {
        Ok((listener, file)) => Ok(Gate::Listening {
            listener,
            file: Some((file, path)),
        }),
        Err(Failure::InUse) => Err(EndpointError::InUse { path }),
        Err(Failure::NotASocket) => Err(EndpointError::NotASocket { path }),
        Err(Failure::NoGroup) => Err(EndpointError::Group {
            group: group.unwrap_or_default().into(),
        }),
        Err(Failure::Gone) => Err(EndpointError::NoBroker { path }),
        Err(other) => Err(EndpointError::Listen {
            path,
            source: other.into(),
        }),
    }
}

fn socket(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | flags,
        None,
    )
}

/// A listening socket in the run directory that only we can connect to, for the one connection
/// the crate wants to make by path. Its file is gone when this is dropped.
pub(super) struct Inner {
    listener: UnixListener,
    path: String,
    _run_dir: OwnedFd,
}

impl Inner {
    pub(super) fn new(run_dir: &Path) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let run_dir = rustix::fs::open(run_dir, flags, Mode::empty())?;
        // By way of the descriptor the path is short and valid text, whatever the directory's is.
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let (dir, pid) = (run_dir.as_raw_fd(), process::id());
        let path = format!("/proc/self/fd/{dir}/.inner-{pid}-{n}");
        let fd = socket(SocketFlags::NONBLOCK)?;
        // The mode of the socket becomes that of its file, so that nobody else can connect.
        fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
        let _ = fs::remove_file(&path); // from a process of this number that was killed
        bind(&fd, &SocketAddrUnix::new(path.as_str())?)?;
        let inner = Self {
            listener: fd.into(),
            path,
            _run_dir: run_dir,
        };
        listen(&inner.listener, BACKLOG)?;
        Ok(inner)
    }

    /// Where to connect.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The connection this process has just made; others are dropped.
    pub(super) fn accept(self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept()?;
            if sys::peer(&stream)? == process::id() {
                return Ok(stream);
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
