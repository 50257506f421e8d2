//! vhost-user messages as bytes and descriptors on a stream (vhost-user specification, "Message
//! Specification").

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;

/// Bytes of a header.
pub(super) const HEADER_LEN: usize = 12;
/// Most bytes of a body. The largest there is, a table of 32 regions, has 1032.
pub(super) const MAX_BODY: usize = 4096;
/// Most descriptors a message can have: one for each region of a memory table.
pub(super) const MAX_FDS: usize = 32;

/// Header flags: the version of the protocol.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
/// Header flag: this is an answer.
const REPLY: u32 = 1 << 2;
/// Header flag: an answer is wanted (protocol feature REPLY_ACK).
pub(super) const NEED_REPLY: u32 = 1 << 3;

/// Why a stream cannot be followed any further.
#[derive(Debug, Error)]
pub(super) enum WireError {
    /// The peer closed it between two messages.
    #[error("the connection was closed")]
    Closed,
    /// The peer closed it within a message.
    #[error("the connection was closed in the middle of a message")]
    Cut,
    /// Not a header of this protocol.
    #[error("message {request} has flags {flags:#x}, which is not vhost-user version 1")]
    Flags { request: u32, flags: u32 },
    /// A body nobody sends.
    #[error("message {request} says that it is {size} bytes long, more than {MAX_BODY}")]
    Size { request: u32, size: u32 },
    /// More descriptors than any message has.
    #[error("a message came with more than {MAX_FDS} file descriptors")]
    Descriptors,
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for WireError {
    fn from(e: Errno) -> Self {
        if e == Errno::CONNRESET {
            Self::Closed
        } else {
            Self::Io(e.into())
        }
    }
}

/// A message's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) request: u32,
    pub(super) flags: u32,
    pub(super) size: u32,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let at = |i| u32_at(bytes, i);
        Self {
            request: at(0),
            flags: at(4),
            size: at(8),
        }
    }

    /// Is an answer wanted?
    pub(super) fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

/// A message with its descriptors.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) body: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

/// The 32 bits at byte `at`. Native endian, as the protocol has it.
///
/// # Panics
/// If `bytes` is shorter: the length of a body is checked before.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The 64 bits at byte `at`.
///
/// # Panics
/// As [`u32_at`].
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A message's bytes.
fn encode(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
    for field in [request, flags, body.len() as u32] {
        bytes.extend_from_slice(&field.to_ne_bytes());
    }
    bytes.extend_from_slice(body);
    bytes
}

/// The bytes of an answer.
pub(super) fn reply(request: u32, body: &[u8]) -> Vec<u8> {
    encode(request, VERSION | REPLY, body)
}

/// Sends a request to a peer that is known to read; blocks for as long as the socket lets it.
pub(super) fn send(
    stream: &UnixStream,
    request: u32,
    flags: u32,
    body: &[u8],
    fds: &[OwnedFd],
) -> Result<(), WireError> {
    let bytes = encode(request, VERSION | flags, body);
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(WireError::Descriptors);
    }
    // A stream with a time limit is not restarted after a stop and a continue: signal(7).
    let sent = retry_on_intr(|| {
        let iov = [IoSlice::new(&bytes)];
        sendmsg(stream, &iov, &mut control, SendFlags::NOSIGNAL)
    })?;
    // A message this short travels whole on a unix stream, or not at all.
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(WireError::Cut)
    }
}

/// A message on its way in.
#[derive(Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Inbox {
    /// Reads on. None: the rest of the message is not there yet, or, on a blocking stream, did not
    /// come within its time limit. Never reads beyond the message, so descriptors stay with it.
    pub(super) fn read(&mut self, stream: &UnixStream) -> Result<Option<Message>, WireError> {
        loop {
            let wanted = self.wanted()?;
            if self.bytes.len() == wanted {
                return Ok(Some(self.take()));
            }
            match self.receive(stream, wanted - self.bytes.len()) {
                Ok(0) if self.bytes.is_empty() => return Err(WireError::Closed),
                Ok(0) => return Err(WireError::Cut),
                Ok(_) => {}
                Err(WireError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(WireError::Io(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Bytes the message has as far as is known: those of its header, or all.
    fn wanted(&self) -> Result<usize, WireError> {
        let Some(header) = self.bytes.first_chunk::<HEADER_LEN>() else {
            return Ok(HEADER_LEN);
        };
        let Header {
            request,
            flags,
            size,
        } = Header::parse(header);
        if flags & VERSION_MASK != VERSION || flags & !(VERSION_MASK | REPLY | NEED_REPLY) != 0 {
            return Err(WireError::Flags { request, flags });
        }
        if size as usize > MAX_BODY {
            return Err(WireError::Size { request, size });
        }
        Ok(HEADER_LEN + size as usize)
    }

    fn receive(&mut self, stream: &UnixStream, len: usize) -> Result<usize, WireError> {
        let have = self.bytes.len();
        self.bytes.resize(have + len, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(&mut self.bytes[have..])];
        let received = recvmsg(stream, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC);
        self.bytes
            .truncate(have + received.as_ref().map_or(0, |r| r.bytes));
        let received = received?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > MAX_FDS {
            return Err(WireError::Descriptors);
        }
        Ok(received.bytes)
    }

    fn take(&mut self) -> Message {
        let mut bytes = std::mem::take(&mut self.bytes);
        let body = bytes.split_off(HEADER_LEN);
        let header = bytes.first_chunk().map(Header::parse).unwrap_or_default();
        Message {
            header,
            body,
            fds: std::mem::take(&mut self.fds),
        }
    }
}

/// Is this an answer?
pub(super) fn is_reply(header: &Header) -> bool {
    header.flags & REPLY != 0
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn a_message_that_comes_in_pieces_is_whole_in_the_end() {
        let (mut a, b) = UnixStream::pair().unwrap();
        b.set_nonblocking(true).unwrap();
        let mut inbox = Inbox::default();
        let bytes = encode(7, VERSION | NEED_REPLY, &[1, 2, 3, 4, 5]);
        for byte in &bytes {
            assert!(inbox.read(&b).unwrap().is_none());
            a.write_all(&[*byte]).unwrap();
        }
        let m = inbox.read(&b).unwrap().unwrap();
        assert_eq!(
            m.header,
            Header {
                request: 7,
                flags: 9,
                size: 5
            }
        );
        assert_eq!(m.body, [1, 2, 3, 4, 5]);
        a.write_all(&bytes[..3]).unwrap();
        drop(a);
        assert!(matches!(inbox.read(&b), Err(WireError::Cut)));
    }

    #[test]
    fn descriptors_stay_with_their_message() {
        let (a, b) = UnixStream::pair().unwrap();
        let fds: Vec<_> = (0..MAX_FDS)
            .map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap())
            .collect();
        send(&a, 1, 0, &[0; 8], &fds[..2]).unwrap();
        send(&a, 2, 0, &[], &[]).unwrap();
        send(&a, 3, 0, &[0; MAX_BODY], &fds).unwrap();
        let mut inbox = Inbox::default();
        let counts: Vec<_> = (0..3)
            .map(|_| inbox.read(&b).unwrap().unwrap().fds.len())
            .collect();
        assert_eq!(counts, [2, 0, MAX_FDS]);
    }

    #[test]
    fn nonsense_is_told_apart() {
        let read = |bytes: &[u8]| {
            let (mut a, b) = UnixStream::pair().unwrap();
            a.write_all(bytes).unwrap();
            drop(a);
            Inbox::default().read(&b).map(|_| ())
        };
        assert!(matches!(read(&[]), Err(WireError::Closed)));
        assert!(matches!(
            read(&encode(1, 2, &[])),
            Err(WireError::Flags { .. })
        ));
        assert!(matches!(
            read(&encode(1, VERSION | 16, &[])),
            Err(WireError::Flags { .. })
        ));
        let long = encode(1, VERSION, &[0; MAX_BODY + 1]);
        assert!(matches!(read(&long), Err(WireError::Size { .. })));
        assert!(read(&encode(1, VERSION, &[0; MAX_BODY])).is_ok());
    }
}
