//! What takes privilege while the switch runs, done by a process of its own.
//!
//! The daemon has no privileges once it has started (see `sandbox`), and yet a port may be added at
//! any time: a TAP device, a socket for another group, or one in a directory that is not the
//! daemon's. So before the daemon gives its privileges up, and before it has threads, it starts
//! itself once more as the broker, which keeps a few of them and does seven things only:
//!
//! | request | answer |
//! |---|---|
//! | open a TAP device | its descriptor |
//! | open a packet socket on a network device | its descriptor |
//! | open all queues of a network device by AF_XDP | descriptors: program, watch, memory, sockets |
//! | listen at a path, with permissions and a group | the socket's descriptor, and a number |
//! | remove the socket of that number | |
//! | connect to a VMM's socket | the connection's descriptor |
//! | has process P mapped file F for itself alone? | yes or no |
//!
//! ```text
//!   tandemd ──── request: version, JSON; 1 KiB at most ────► tandemd broker
//!           ◄─── answer, and descriptors (SCM_RIGHTS) ─────
//!                       a SOCK_SEQPACKET pair
//! ```
//!
//! The broker ends when the daemon's end of the pair is closed, which the kernel does whatever the
//! daemon dies of. Without privileges it works all the same, within the rights that its user has.

mod handler;
mod listen;
mod process;
mod protocol;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use tandem_uplink::nic::af_packet::{AfPacketError, PacketSockets};
use tandem_uplink::nic::af_xdp::{AfXdpDevice, AfXdpError};
use tandem_uplink::{Mac, TapDevice, TapError};

use crate::port::lock;
use handler::Handler;
use process::Child;
use protocol::{Done, Request};

pub use process::{ARGUMENT, run};
pub(crate) use protocol::Failure;

/// Does what takes privilege.
#[derive(Debug)]
pub struct Broker(Mutex<Where>);

/// Who does it.
#[derive(Debug)]
enum Where {
    /// Another process.
    Process(Child),
    /// This one, which has kept its privileges.
    Here(Handler),
}

/// The file of a listening socket. Dropping this removes it, unless another one is there by now.
#[derive(Debug)]
pub(crate) struct SocketFile {
    broker: Arc<Broker>,
    number: u32,
}

impl Broker {
    /// Starts the process. Only while this one has a single thread.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start() -> io::Result<Arc<Self>> {
        Child::start().map(|child| Arc::new(Self(Mutex::new(Where::Process(child)))))
    }

    /// Without a process: for tests, and for a daemon that gives up no privileges.
    pub fn in_process() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Where::Here(Handler::default()))))
    }

    fn ask(&self, request: Request) -> Result<(Done, Vec<OwnedFd>), Failure> {
        match &mut *lock(&self.0) {
            Where::Process(child) => child.ask(&request),
            Where::Here(handler) => handler.handle(request),
        }
    }

    /// Asks for what comes with one descriptor.
    fn ask_for_one(&self, request: Request) -> Result<(Done, OwnedFd), Failure> {
        let (done, mut fds) = self.ask(request)?;
        match (fds.pop(), fds.is_empty()) {
            (Some(fd), true) => Ok((done, fd)),
            _ => Err(Failure::no_answer()),
        }
    }

    /// A TAP device, see [`TapDevice::open`].
    pub(crate) fn tap(
        &self,
        name: &str,
        mtu: u16,
        mac: Option<Mac>,
    ) -> Result<TapDevice, TapError> {
        let request = Request::Tap {
            name: name.to_owned(),
            mtu,
            mac: mac.map(|mac| mac.0),
        };
        match self.ask_for_one(request) {
            Ok((Done::Tap { uso }, fd)) => Ok(TapDevice {
                file: File::from(fd),
                uso,
            }),
            Ok(_) => Err(Failure::no_answer().into_tap_error(name, mtu)),
            Err(failure) => Err(failure.into_tap_error(name, mtu)),
        }
    }

    /// Packet sockets, see [`AfPacket::open_sockets`](tandem_uplink::nic::af_packet::AfPacket::open_sockets).
    pub(crate) fn packet(&self, name: &str) -> Result<PacketSockets, AfPacketError> {
        let request = Request::Packet {
            name: name.to_owned(),
        };
        let (done, fds) = self
            .ask(request)
            .map_err(|failure| failure.into_packet_error(name))?;
        match (done, <[OwnedFd; 3]>::try_from(fds)) {
            (Done::Packet, Ok(fds)) => {
                let [receive, send, ring] = fds.map(File::from);
                Ok(PacketSockets {
                    receive,
                    send,
                    ring,
                })
            }
            _ => Err(Failure::no_answer().into_packet_error(name)),
        }
    }

    /// All queues of a device by AF_XDP, see [`AfXdpDevice::open`].
    pub(crate) fn xdp(&self, name: &str) -> Result<AfXdpDevice, AfXdpError> {
        let request = Request::Xdp {
            name: name.to_owned(),
        };
        let (done, fds) = self
            .ask(request)
            .map_err(|failure| failure.into_xdp_error(name))?;
        // As many to send as to receive.
        let mut fds = fds.into_iter();
        let queues = fds.len().saturating_sub(3) / 2;
        match (done, fds.next(), fds.next(), fds.next()) {
            (Done::Xdp { chunk, mode }, Some(link), Some(watch), Some(memory)) => Ok(AfXdpDevice {
                link,
                watch,
                memory,
                sockets: fds.by_ref().take(queues).collect(),
                senders: fds.collect(),
                chunk,
                mode: mode.into(),
            }),
            _ => Err(Failure::no_answer().into_xdp_error(name)),
        }
    }

    /// A socket at `path` that listens, with the file's `permissions` and `group`, by name or
    /// number. A socket that nobody listens at any more is replaced.
    pub(crate) fn listen(
        self: &Arc<Self>,
        path: &Path,
        permissions: u32,
        group: Option<&str>,
    ) -> Result<(UnixListener, SocketFile), Failure> {
        let request = Request::Listen {
            path: path.as_os_str().as_bytes().to_vec(),
            permissions,
            group: group.map(str::to_owned),
        };
        let (Done::Listening { number }, fd) = self.ask_for_one(request)? else {
            return Err(Failure::no_answer());
        };
        let broker = Arc::clone(self);
        Ok((fd.into(), SocketFile { broker, number }))
    }

    /// A connection to the socket at `path`, without ever waiting.
    pub(crate) fn connect(&self, path: &Path) -> io::Result<UnixStream> {
        let path = path.as_os_str().as_bytes().to_vec();
        match self.ask_for_one(Request::Connect { path }) {
            Ok((Done::Connected, fd)) => Ok(fd.into()),
            Ok(_) => Err(Failure::no_answer().into()),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Has `process` mapped the file `inode` of `device`, and only for itself (MAP_PRIVATE)? As
    /// far as can be known: not without the right to look, nor across process namespaces.
    pub(crate) fn is_private(&self, process: u32, device: u64, inode: u64) -> bool {
        let request = Request::IsPrivate {
            process,
            device,
            inode,
        };
        matches!(self.ask(request), Ok((Done::Private(true), _)))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let number = self.number;
        if let Err(failure) = self.broker.ask(Request::Remove { number }) {
            log::debug!("a socket's file stays: {failure}");
        }
    }
}
