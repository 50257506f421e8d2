//! vhost-user messages written by hand: what `vhost`'s `Frontend` refuses to
//! send (a ring enabled before SET_FEATURES, as QEMU does; 32-bit ring bases;
//! requests nobody supports; nonsense).

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// How long an answer may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Header flags (vhost-user specification, "Header"): version 1.
pub const VERSION: u32 = 1;
/// Header flag: this is an answer.
pub const REPLY: u32 = 1 << 2;
/// Header flag: an answer is wanted (protocol feature REPLY_ACK).
pub const NEED_REPLY: u32 = 1 << 3;

/// Request numbers (vhost-user specification, "Front-end message types").
pub mod request {
    #![allow(missing_docs)]
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SEND_RARP: u32 = 19;
    pub const NET_SET_MTU: u32 = 20;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const IOTLB_MSG: u32 = 22;
    pub const SET_VRING_ENDIAN: u32 = 23;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const POSTCOPY_ADVISE: u32 = 28;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const VRING_KICK: u32 = 35;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
    pub const GET_SHARED_OBJECT: u32 = 41;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
    pub const CHECK_DEVICE_STATE: u32 = 43;
}

/// An answer from the back-end.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The request it answers.
    pub request: u32,
    /// Its flags: version and [`REPLY`].
    pub flags: u32,
    /// What it carries.
    pub body: Vec<u8>,
}

impl Reply {
    /// The first eight bytes as a number: REPLY_ACK's zero for success, a feature set, a count.
    pub fn number(&self) -> Result<u64> {
        let bytes = self.body.get(..8).context("answer shorter than 8 bytes")?;
        Ok(u64::from_le_bytes(bytes.try_into()?))
    }
}

/// One end of a vhost-user connection, raw.
pub struct Wire {
    stream: UnixStream,
}

impl Wire {
    /// Writes and reads on `stream`.
    pub fn new(stream: UnixStream) -> Self {
        Wire { stream }
    }

    /// Connects to the back-end's socket.
    pub fn connect(path: &std::path::Path) -> Result<Self> {
        let stream =
            UnixStream::connect(path).with_context(|| format!("connecting to {path:?}"))?;
        Ok(Wire { stream })
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends one message with `flags` in addition to the version.
    pub fn send(
        &mut self,
        request: u32,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let mut message = header(request, VERSION | flags, body.len() as u32).to_vec();
        message.extend_from_slice(body);
        self.send_bytes(&message, fds)
    }

    /// Sends any bytes, with any descriptors attached to the first of them.
    pub fn send_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ensure!(
                ancillary.push(SendAncillaryMessage::ScmRights(fds)),
                "too many descriptors for one message"
            );
        }
        let first = sendmsg(
            &self.stream,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        self.stream.write_all(&bytes[first..])?;
        Ok(())
    }

    /// Sends a request and waits for its answer.
    pub fn ask(&mut self, request: u32, flags: u32, body: &[u8]) -> Result<Reply> {
        self.send(request, flags, body, &[])?;
        let reply = self.recv()?;
        ensure!(
            reply.request == request && reply.flags == VERSION | REPLY,
            "asked {request}, got the answer {reply:?}"
        );
        Ok(reply)
    }

    /// Sends a request that carries one number.
    pub fn send_number(&mut self, request: u32, flags: u32, number: u64) -> Result<()> {
        self.send(request, flags, &number.to_le_bytes(), &[])
    }

    /// Sends a request that carries a ring's index and a number (`struct vring_state`).
    pub fn send_state(&mut self, request: u32, flags: u32, index: u32, num: u32) -> Result<()> {
        self.send(request, flags, &state(index, num), &[])
    }

    /// Waits for one message.
    pub fn recv(&mut self) -> Result<Reply> {
        let mut head = [0; 12];
        self.read_exact(&mut head)?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        let size = word(8) as usize;
        ensure!(size <= 4096, "an answer of {size} bytes");
        let mut body = vec![0; size];
        self.read_exact(&mut body)?;
        Ok(Reply {
            request: word(0),
            flags: word(4),
            body,
        })
    }

    /// Waits until the back-end has closed the connection; fails when it says something else or
    /// stays.
    pub fn wait_closed(&mut self) -> Result<()> {
        let mut byte = [0];
        wait_readable(&self.stream, PATIENCE)?;
        match self.stream.read(&mut byte) {
            Ok(0) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
            other => bail!("expected the end of the connection, got {other:?}"),
        }
    }

    fn read_exact(&mut self, into: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < into.len() {
            wait_readable(&self.stream, PATIENCE)?;
            match self.stream.read(&mut into[done..])? {
                0 => bail!("the back-end closed the connection"),
                n => done += n,
            }
        }
        Ok(())
    }
}

/// The 12 bytes in front of every message.
pub fn header(request: u32, flags: u32, size: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&request.to_le_bytes());
    bytes[4..8].copy_from_slice(&flags.to_le_bytes());
    bytes[8..].copy_from_slice(&size.to_le_bytes());
    bytes
}

/// `struct vring_state`.
pub fn state(index: u32, num: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&index.to_le_bytes());
    bytes[4..].copy_from_slice(&num.to_le_bytes());
    bytes
}

/// Waits until `fd` can be read, for `limit` at most.
pub fn wait_readable(fd: impl AsFd, limit: Duration) -> Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left)?;
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => bail!("nothing came within {limit:?}"),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
