//! Between a VMM and a port: every vhost-user message with the moment it passed; for a negative control, a back-end
//! that is never told to keep a dirty log; and for a VMM that cannot migrate, one that is told to.

use std::collections::BTreeMap;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::prober::now;
use crate::frontend::memory::DirtyLog;
use crate::frontend::spec;
use crate::frontend::wire::{REPLY, Wire, request};
use crate::lab::{PATIENCE, wait_until};

/// Bytes in front of each message (vhost-user specification, "Message Specification").
const HEADER: usize = 12;
/// VHOST_VRING_F_LOG, of the flags in SET_VRING_ADDR.
const VRING_LOG: u8 = 1;

/// A message that passed.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// When, since 1970.
    pub at: Duration,
    /// Its number; see [`request`].
    pub request: u32,
    /// It is the back-end's answer.
    pub reply: bool,
    /// The first bytes it carries: a ring's index, or features.
    pub value: u64,
}

/// What the VMM has said last, for messages of ours.
#[derive(Debug, Default)]
struct Known {
    /// The connection to the port.
    port: Option<UnixStream>,
    features: u64,
    /// Where its memory ends.
    end: u64,
    /// SET_VRING_ADDR, of each ring.
    rings: BTreeMap<u32, Vec<u8>>,
}

/// A socket that leads to a port's.
#[derive(Debug)]
pub struct Relay {
    listener: UnixListener,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    messages: Mutex<Vec<Message>>,
    known: Mutex<Known>,
    /// The answer to a message of ours is not for the VMM.
    asked: AtomicBool,
    /// The back-end gets the log, and is never told to write it.
    no_log: AtomicBool,
}

impl Relay {
    /// Listens at `path` for VMMs, and connects each to the port's socket.
    pub fn start(path: &Path, port: PathBuf) -> Result<Self> {
        let listener = UnixListener::bind(path)?;
        let shared = Arc::<Shared>::default();
        let (accepting, ours) = (listener.try_clone()?, Arc::clone(&shared));
        std::thread::spawn(move || {
            while let Ok((vmm, _)) = accepting.accept() {
                // Without a port the VMM sees its connection closed, as it would without us.
                if let Ok(port) = UnixStream::connect(&port) {
                    connect(&vmm, &port, &ours);
                }
            }
        });
        Ok(Self { listener, shared })
    }

    /// What has passed.
    pub fn messages(&self) -> Vec<Message> {
        lock(&self.shared.messages).clone()
    }

    /// Has the back-end log its writes, as QEMU does when a migration begins, though the VMM knows nothing of it.
    pub fn start_log(&self) -> Result<DirtyLog> {
        let log = DirtyLog::new(lock(&self.shared.known).end)?;
        let body = [log.size(), 0].map(u64::to_le_bytes).concat();
        self.shared.asked.store(true, Ordering::Release);
        self.port()?
            .send(request::SET_LOG_BASE, 0, &body, &[log.file().as_fd()])?;
        wait_until("the back-end has the log", PATIENCE, || {
            Ok(!self.shared.asked.load(Ordering::Acquire))
        })?;
        self.set_log(true)?;
        Ok(log)
    }

    /// Has it end.
    pub fn stop_log(&self) -> Result<()> {
        self.set_log(false)
    }

    fn set_log(&self, on: bool) -> Result<()> {
        let mut port = self.port()?;
        let known = lock(&self.shared.known);
        ensure!(!known.rings.is_empty(), "no ring has been started");
        let log = if on { spec::LOG_ALL } else { 0 };
        port.send_number(request::SET_FEATURES, 0, known.features | log)?;
        for body in known.rings.values() {
            let mut body = body.clone();
            body[4] = u8::from(on) * VRING_LOG;
            // The log address is that of the used ring (`struct vring_addr`): guest and VMM have the same here.
            body.copy_within(16..24, 32);
            port.send(request::SET_VRING_ADDR, 0, &body, &[])?;
        }
        Ok(())
    }

    fn port(&self) -> Result<Wire> {
        let known = lock(&self.shared.known);
        let port = known.port.as_ref().context("no VMM is connected")?;
        Ok(Wire::new(port.try_clone()?))
    }

    /// From now on the back-end gets the dirty log and is never told to write it.
    pub fn strip_log(&self) {
        self.shared.no_log.store(true, Ordering::Release);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Known {
    /// Remembers what a VMM's message says.
    fn learn(&mut self, message: &[u8]) {
        let body = &message[HEADER..];
        match word(message, 0) {
            request::SET_FEATURES => self.features = number(body),
            request::SET_VRING_ADDR if body.len() == 40 => {
                self.rings.insert(word(body, 0), body.to_vec());
            }
            request::SET_MEM_TABLE => {
                // Regions of four numbers, of which the first two are guest address and size.
                let regions = body.get(8..).unwrap_or_default().chunks_exact(32);
                let end = |region: &[u8]| number(region) + number(&region[8..]);
                self.end = regions.map(end).max().unwrap_or_default();
            }
            _ => {}
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Ends the thread that accepts; nothing to do about it if that fails.
        let _ =
            nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }
}

/// A thread each way, until one end closes.
fn connect(vmm: &UnixStream, port: &UnixStream, shared: &Arc<Shared>) {
    *lock(&shared.known) = Known {
        port: port.try_clone().ok(),
        ..Known::default()
    };
    for (from, to) in [(vmm, port), (port, vmm)] {
        let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
            return;
        };
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            let end = from.try_clone();
            // An end that closes is no fault, and a fault shows at both ends as a closed connection.
            let _ = pump(from, Wire::new(to), &shared);
            let _ = end.map(|end| end.shutdown(Shutdown::Both));
        });
    }
}

fn pump(mut from: UnixStream, mut to: Wire, shared: &Shared) -> Result<()> {
    let outcome = loop {
        let (mut message, fds) = match receive(&mut from) {
            Ok(Some(received)) => received,
            Ok(None) => break Ok(()),
            Err(e) => break Err(e),
        };
        if shared.no_log.load(Ordering::Acquire) {
            strip(&mut message);
        }
        let noted = Message {
            at: now(),
            request: word(&message, 0),
            reply: word(&message, 4) & REPLY != 0,
            value: number(&message[HEADER..]),
        };
        lock(&shared.messages).push(noted);
        if !noted.reply {
            lock(&shared.known).learn(&message);
        } else if noted.request == request::SET_LOG_BASE
            && shared.asked.swap(false, Ordering::AcqRel)
        {
            continue;
        }
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if let Err(e) = to.send_bytes(&message, &fds) {
            break Err(e);
        }
    };
    let _ = to.stream().shutdown(Shutdown::Both);
    outcome
}

/// A whole message with its descriptors; none: the connection is closed.
fn receive(from: &mut UnixStream) -> Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut message = vec![0; HEADER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        &from,
        &mut [IoSliceMut::new(&mut message)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if got.bytes == 0 {
        return Ok(None);
    }
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = part {
            fds.extend(sent);
        }
    }
    from.read_exact(&mut message[got.bytes..])?;
    let size = word(&message, 8) as usize;
    if size > 1 << 16 {
        bail!("a message of {size} bytes");
    }
    message.resize(HEADER + size, 0);
    from.read_exact(&mut message[HEADER..])
        .context("the rest of a message")?;
    Ok(Some((message, fds)))
}

fn word(message: &[u8], at: usize) -> u32 {
    let bytes = message.get(at..at + 4).and_then(|b| b.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}

fn number(body: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let length = body.len().min(8);
    bytes[..length].copy_from_slice(&body[..length]);
    u64::from_le_bytes(bytes)
}

/// Takes out of a front-end's message that writes are to be logged.
fn strip(message: &mut [u8]) {
    let is_reply = word(message, 4) & REPLY != 0;
    let body = HEADER..HEADER + 8;
    match word(message, 0) {
        request::SET_FEATURES if message.len() >= body.end => {
            let features = number(&message[HEADER..]) & !spec::LOG_ALL;
            message[body].copy_from_slice(&features.to_le_bytes());
        }
        // Behind the ring's index (`struct vring_addr`).
        request::SET_VRING_ADDR if !is_reply && message.len() >= body.end => {
            message[HEADER + 4] &= !VRING_LOG;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::wire::VERSION;

    #[test]
    fn messages_pass_whole_and_without_the_log() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (path, port) = (dir.path().join("relay"), dir.path().join("port"));
        let listener = UnixListener::bind(&port)?;
        let relay = Relay::start(&path, port)?;
        relay.strip_log();
        let mut vmm = Wire::connect(&path)?;
        let (mut backend, _) = listener.accept()?;

        let features = spec::VERSION_1 | spec::LOG_ALL;
        vmm.send_number(request::SET_FEATURES, 0, features)?;
        let (message, fds) = receive(&mut backend)?.context("closed")?;
        assert_eq!(number(&message[HEADER..]), spec::VERSION_1);
        assert!(fds.is_empty());

        let file = tempfile::tempfile()?;
        vmm.send(request::SET_LOG_BASE, 0, &[0; 16], &[file.as_fd()])?;
        let (message, fds) = receive(&mut backend)?.context("closed")?;
        assert_eq!((message.len(), fds.len()), (HEADER + 16, 1));
        let seen: Vec<u32> = relay.messages().iter().map(|m| m.request).collect();
        assert_eq!(seen, [request::SET_FEATURES, request::SET_LOG_BASE]);

        Wire::new(backend).send(request::SET_LOG_BASE, VERSION | REPLY, &[], &[])?;
        assert_eq!(vmm.recv()?.flags, VERSION | REPLY);
        vmm.wait_closed()
    }
}
