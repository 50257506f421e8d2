//! Requests, answers, and how they travel: one packet each, a byte with the version and then JSON.
//!
//! Both ends are one program, and the same file of it; the version is for whoever changes that.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tandem_uplink::TapError;
use tandem_uplink::nic::af_packet::AfPacketError;
use tandem_uplink::nic::af_xdp::{AfXdpError, Mode};
use thiserror::Error;

/// The version of the protocol.
const VERSION: u8 = 1;
/// Most descriptors that come with a packet: 253 is what Linux takes (unix(7), SCM_RIGHTS).
pub(super) const FDS_MAX: usize = 131;
/// Longest packet in bytes. A path takes up to four for each of its own.
pub(super) const PACKET_MAX: usize = 1024;

/// What can be asked of the broker.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum Request {
    /// Open a TAP device; `mtu` in bytes of IP.
    Tap {
        name: String,
        mtu: u16,
        mac: Option<[u8; 6]>,
    },
    /// Open a packet socket on a network device.
    Packet { name: String },
    /// Open all queues of a network device by AF_XDP.
    Xdp { name: String },
    /// Listen at an absolute path.
    Listen {
        path: Vec<u8>,
        permissions: u32,
        group: Option<String>,
    },
    /// Remove a socket that the broker has made.
    Remove { number: u32 },
    /// Connect to a socket at an absolute path.
    Connect { path: Vec<u8> },
    /// Has a process mapped a file, and only for itself?
    IsPrivate {
        process: u32,
        device: u64,
        inode: u64,
    },
}

/// What was done.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum Done {
    /// The device comes as a descriptor.
    Tap {
        uso: bool,
    },
    /// The socket comes as a descriptor.
    Packet,
    /// What keeps the program, what watches the device, its memory, and a socket for each queue come as
    /// descriptors, in this order.
    Xdp {
        chunk: u32,
        mode: XdpMode,
    },
    /// The listening socket comes as a descriptor.
    Listening {
        number: u32,
    },
    Removed,
    /// The connection comes as a descriptor; it does not block.
    Connected,
    Private(bool),
}

/// [`Mode`] of AF_XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum XdpMode {
    ZeroCopy,
    Copy,
    Generic,
}

impl From<Mode> for XdpMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::ZeroCopy => Self::ZeroCopy,
            Mode::Copy => Self::Copy,
            Mode::Generic => Self::Generic,
        }
    }
}

impl From<XdpMode> for Mode {
    fn from(mode: XdpMode) -> Self {
        match mode {
            XdpMode::ZeroCopy => Self::ZeroCopy,
            XdpMode::Copy => Self::Copy,
            XdpMode::Generic => Self::Generic,
        }
    }
}

/// Why it was not done.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(crate) enum Failure {
    /// The request makes no sense.
    #[error("the broker does not do this: {0}")]
    Refused(String),
    /// Somebody listens at this path.
    #[error("another process listens there")]
    InUse,
    /// Something else is at this path.
    #[error("it exists and is not a socket")]
    NotASocket,
    /// There is no such group.
    #[error("there is no such group")]
    NoGroup,
    /// The kernel said no.
    #[error("{}", io::Error::from_raw_os_error(*.errno))]
    System { errno: i32 },
    /// A TAP device was refused.
    #[error("a TAP cannot be had: {0:?}")]
    Tap(TapFailure),
    /// The broker is not there.
    #[error("the privileged process of tandemd has ended: restart tandemd")]
    Gone,
}

/// [`TapError`] without what the asking end knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(crate) enum TapFailure {
    BadName,
    NoTun,
    NotPermitted,
    Busy,
    NotATap,
    BadMtu,
    Io { what: String, errno: i32 },
}

impl Failure {
    /// The broker has said something else than it was asked.
    pub(super) fn no_answer() -> Self {
        Self::Refused("its answer is to another question".to_owned())
    }

    /// In the words of a packet socket.
    pub(super) fn into_packet_error(self, name: &str) -> AfPacketError {
        AfPacketError::of(name, self.into())
    }

    /// In the words of AF_XDP.
    pub(super) fn into_xdp_error(self, name: &str) -> AfXdpError {
        AfXdpError::of(name, self.into())
    }

    /// In the words of a TAP device.
    pub(super) fn into_tap_error(self, name: &str, mtu: u16) -> TapError {
        let name = name.to_owned();
        match self {
            Self::Tap(TapFailure::BadName) => TapError::BadName(name),
            Self::Tap(TapFailure::NoTun) => TapError::NoTun,
            Self::Tap(TapFailure::NotPermitted) => TapError::NotPermitted(name),
            Self::Tap(TapFailure::Busy) => TapError::Busy(name),
            Self::Tap(TapFailure::NotATap) => TapError::NotATap(name),
            Self::Tap(TapFailure::BadMtu) => TapError::BadMtu { name, mtu },
            Self::Tap(TapFailure::Io { what, errno }) => TapError::Io {
                name,
                what: what.into(),
                error: io::Error::from_raw_os_error(errno),
            },
            other => TapError::Io {
                name,
                what: "asking the privileged process".into(),
                error: other.into(),
            },
        }
    }
}

impl From<TapError> for Failure {
    fn from(error: TapError) -> Self {
        Self::Tap(match error {
            TapError::BadName(_) => TapFailure::BadName,
            TapError::NoTun => TapFailure::NoTun,
            TapError::NotPermitted(_) => TapFailure::NotPermitted,
            TapError::Busy(_) => TapFailure::Busy,
            TapError::NotATap(_) => TapFailure::NotATap,
            TapError::BadMtu { .. } => TapFailure::BadMtu,
            TapError::Io { what, error, .. } => TapFailure::Io {
                what: what.into_owned(),
                errno: error.raw_os_error().unwrap_or(libc::EIO),
            },
        })
    }
}

impl From<AfPacketError> for Failure {
    fn from(error: AfPacketError) -> Self {
        let errno = error.errno();
        Self::System { errno }
    }
}

impl From<AfXdpError> for Failure {
    fn from(error: AfXdpError) -> Self {
        let errno = error.errno();
        Self::System { errno }
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::System {
            errno: error.raw_os_error(),
        }
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::System { errno } => Self::from_raw_os_error(errno),
            other => Self::other(other),
        }
    }
}

/// Sends one packet.
pub(super) fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[OwnedFd],
) -> io::Result<()> {
    let mut packet = vec![VERSION];
    serde_json::to_writer(&mut packet, message)?;
    if packet.len() > PACKET_MAX || fds.len() > FDS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let bytes = [IoSlice::new(&packet)];
    rustix::io::retry_on_intr(|| sendmsg(&socket, &bytes, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// A packet that was received: nothing in it has been looked at.
pub(super) struct Packet {
    bytes: Vec<u8>,
    cut: bool,
    /// The descriptors that came with it.
    pub(super) fds: Vec<OwnedFd>,
}

/// Waits for one packet; none when the other end is closed.
pub(super) fn receive(socket: impl AsFd) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0; PACKET_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut room = [IoSliceMut::new(&mut bytes)];
        recvmsg(&socket, &mut room, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let (len, cut) = (received.bytes, received.flags.contains(ReturnFlags::TRUNC));
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(these) = message {
            fds.extend(these);
        }
    }
    bytes.truncate(len);
    // An empty packet would be one too, but nobody sends that.
    Ok((len != 0).then_some(Packet { bytes, cut, fds }))
}

impl Packet {
    /// What it says.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let refused = |words: String| Failure::Refused(words);
        match self.bytes.split_first() {
            _ if self.cut => Err(refused(format!("more than {PACKET_MAX} bytes"))),
            Some((&VERSION, json)) => {
                serde_json::from_slice(json).map_err(|error| refused(error.to_string()))
            }
            Some((version, _)) => Err(refused(format!("version {version}"))),
            None => Err(refused("nothing".to_owned())),
        }
    }
}
