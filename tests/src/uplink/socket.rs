//! A packet socket (packet(7)) at a network device: all frames that come in there, and frames out.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind,
    recvmsg, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::lab::{Namespace, PATIENCE};

/// What may wait to be read: the reader may be kept from the CPU for long.
const BUFFER: usize = 64 << 20;
/// The largest frame, with segments not cut.
const LARGEST: usize = 70_000;

/// A socket that gets each frame a device receives, but for its own; tags of VLANs are not in them.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    device: String,
    buffer: Vec<u8>,
    cmsgs: Vec<u8>,
}

/// A frame that came in.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When the kernel had it, since 1970: in this order frames came in, by whatever device.
    pub at: Duration,
    /// Another on this side has sent it.
    pub outgoing: bool,
    /// Its bytes.
    pub frame: Vec<u8>,
}

impl Socket {
    /// At `device` of a namespace.
    pub fn open(namespace: &Namespace, device: &str) -> Result<Self> {
        let fd = namespace.inside(|| open(device));
        Ok(Self {
            fd: fd.with_context(|| format!("a packet socket at {device}"))?,
            device: device.to_string(),
            buffer: vec![0; LARGEST],
            cmsgs: nix::cmsg_space!(TimeSpec),
        })
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.fd.as_raw_fd(), frame, MsgFlags::empty());
        let sent =
            sent.with_context(|| format!("sending {} bytes at {}", frame.len(), self.device))?;
        ensure!(sent == frame.len(), "{sent} bytes of {}", frame.len());
        Ok(())
    }

    /// The next frame, if one comes within `limit`. A link that is down brings none.
    pub fn recv(&mut self, limit: Duration) -> Result<Option<Heard>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(heard) = self.try_recv()? {
                return Ok(Some(heard));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let time = Timespec::try_from(left)?;
            let mut polled = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut polled, Some(&time)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Waits for a frame that `wanted` says is one; others are passed over.
    pub fn wait(&mut self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let heard = self.recv(left)?;
            let heard = heard.with_context(|| format!("{what} did not come to {}", self.device))?;
            if wanted(&heard.frame) {
                return Ok(heard.frame);
            }
        }
    }

    /// All frames that are there now.
    pub fn drain(&mut self) -> Result<Vec<Heard>> {
        std::iter::from_fn(|| self.try_recv().transpose()).collect()
    }

    fn try_recv(&mut self) -> Result<Option<Heard>> {
        let mut pieces = [IoSliceMut::new(&mut self.buffer)];
        let fd = self.fd.as_raw_fd();
        let message = recvmsg::<LinkAddr>(
            fd,
            &mut pieces,
            Some(&mut self.cmsgs),
            MsgFlags::MSG_DONTWAIT,
        );
        let message = match message {
            Ok(message) => message,
            // The link went down: said once, while frames from before may still be there.
            Err(Errno::ENETDOWN) => return self.try_recv(),
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("receiving at {}", self.device)),
        };
        let at = message.cmsgs()?.find_map(|cmsg| match cmsg {
            ControlMessageOwned::ScmTimestampns(time) => {
                Some(Duration::new(time.tv_sec() as u64, time.tv_nsec() as u32))
            }
            _ => None,
        });
        let from = message.address.context("no address")?;
        let outgoing = from.pkttype() == libc::PACKET_OUTGOING;
        let (at, bytes) = (at.context("no time of arrival")?, message.bytes);
        Ok(Some(Heard {
            at,
            outgoing,
            frame: self.buffer[..bytes].to_vec(),
        }))
    }
}

/// Has the kernel note the time of each frame for as long as this process lives. It begins to a moment after
/// the first socket wants to know; until then a frame has the time at which it is read.
fn keep_time() -> Result<()> {
    static WANTS: OnceLock<OwnedFd> = OnceLock::new();
    if WANTS.get().is_none() {
        let (none, flags) = (None, SockFlag::SOCK_CLOEXEC);
        let fd = socket(AddressFamily::Inet, SockType::Datagram, flags, none)?;
        setsockopt(&fd, sockopt::ReceiveTimestampns, &true)?;
        let _another_was_first = WANTS.set(fd);
    }
    Ok(())
}

fn open(device: &str) -> Result<OwnedFd> {
    keep_time()?;
    let address = getifaddrs()?
        .filter(|interface| interface.interface_name == device)
        .find_map(|interface| interface.address?.as_link_addr().copied());
    let address = address.with_context(|| format!("no device {device}"))?;
    let fd = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )?;
    setsockopt(&fd, sockopt::RcvBufForce, &BUFFER)?;
    setsockopt(&fd, sockopt::ReceiveTimestampns, &true)?;
    bind(fd.as_raw_fd(), &address)?;
    // What came in by other devices before the socket was bound to this one.
    let mut one = [0; 1];
    while nix::sys::socket::recv(fd.as_raw_fd(), &mut one, MsgFlags::MSG_DONTWAIT).is_ok() {}
    Ok(fd)
}
