//! A device that records what a session does to it, and a VMM that can say anything.
#![allow(dead_code, unreachable_pub)] // each test file uses a part

use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tandem::broker::Broker;
use tandem::vhost::{Device, Endpoint, SessionStatus, Source};
use tandem_virtio_net::memory::{DirtyLog, Memory};
use tandem_virtio_net::ring::{Ring, RingConfig, SetupError};
use tempfile::TempDir;
pub use vhost::vhost_user::message::FrontendReq as Request;

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const VERSION: u32 = 1;
pub const REPLY: u32 = 4;
pub const NEED_REPLY: u32 = 8;

pub const LOG_ALL: u64 = 1 << 26;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
pub const VERSION_1: u64 = 1 << 32;
pub const RING_PACKED: u64 = 1 << 34;
/// MQ, LOG_SHMFD, REPLY_ACK, CONFIG, CONFIGURE_MEM_SLOTS, DEVICE_STATE.
pub const PROTOCOL: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 9 | 1 << 15 | 1 << 19;

/// What a session did to the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Connected,
    Disconnected,
    Features(u64),
    Memory(usize),
    Log(bool),
    Start(u16, RingConfig, u16),
    StartFailed(u16),
    Stop(u16, Option<u16>),
    Enable(u16, bool),
    Kick(u16, bool),
    Call(u16, bool),
    Save,
    Load(Vec<u8>),
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    memory: Option<Memory>,
    log: Option<DirtyLog>,
    rings: Vec<Option<(RingConfig, Ring)>>,
    calls: Vec<Option<OwnedFd>>,
    kicks: Vec<Option<OwnedFd>>,
    broken: Option<String>,
    inside: bool,
}

pub struct MockDevice {
    pairs: u16,
    pub features: u64,
    state: Mutex<State>,
    changed: Condvar,
}

impl MockDevice {
    pub fn new(pairs: u16) -> Arc<Self> {
        let rings = usize::from(2 * pairs);
        let state = State {
            rings: (0..rings).map(|_| None).collect(),
            calls: (0..rings).map(|_| None).collect(),
            kicks: (0..rings).map(|_| None).collect(),
            ..State::default()
        };
        let features = VERSION_1 | RING_PACKED | 1 << 22;
        Arc::new(Self {
            pairs,
            features,
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    /// Runs a call of the session's, and checks that there is never another at the same time.
    fn call<T>(&self, event: impl FnOnce(&mut State) -> (Event, T)) -> T {
        let entered = std::mem::replace(&mut self.state.lock().unwrap().inside, true);
        assert!(!entered, "two calls at once");
        std::thread::yield_now();
        let mut state = self.state.lock().unwrap();
        let (event, result) = event(&mut state);
        state.events.push(event);
        state.inside = false;
        self.changed.notify_all();
        result
    }

    pub fn events(&self) -> Vec<Event> {
        self.state.lock().unwrap().events.clone()
    }

    pub fn forget(&self) {
        self.state.lock().unwrap().events.clear();
    }

    pub fn count(&self, event: impl Fn(&Event) -> bool) -> usize {
        self.events().iter().filter(|e| event(e)).count()
    }

    /// Waits until an event has happened `times` times.
    pub fn wait(&self, event: &Event, times: usize) {
        let state = self.state.lock().unwrap();
        let missing = |s: &mut State| s.events.iter().filter(|e| *e == event).count() < times;
        let (state, time) = self
            .changed
            .wait_timeout_while(state, PATIENCE, missing)
            .unwrap();
        assert!(!time.timed_out(), "no {event:?} among {:?}", state.events);
    }

    pub fn set_broken(&self, broken: Option<&str>) {
        self.state.lock().unwrap().broken = broken.map(Into::into);
    }

    /// Writes a byte to guest memory as a queue would.
    pub fn touch(&self, addr: u64) {
        let state = self.state.lock().unwrap();
        let memory = state.memory.as_ref().expect("memory");
        let dst = memory.host(addr, 1).expect("an address in memory");
        #[allow(unsafe_code)]
        // SAFETY: `dst` is one byte of this memory, the source one byte of a constant.
        unsafe {
            memory.write(addr, dst, [7u8].as_ptr(), 1);
        }
        memory.mark_all();
    }

    pub fn has_faulted(&self) -> bool {
        self.state
            .lock()
            .unwrap()
            .memory
            .as_ref()
            .expect("memory")
            .fault()
            .is_set()
    }

    /// Signals the guest through a ring's call descriptor.
    pub fn signal(&self, ring: u16) {
        let state = self.state.lock().unwrap();
        let call = state.calls[usize::from(ring)]
            .as_ref()
            .expect("a call descriptor");
        rustix::io::write(call, &1u64.to_ne_bytes()).unwrap();
    }

    /// Takes what the guest has signalled; none if it has not, or the descriptor would block.
    pub fn kicks(&self, ring: u16) -> Option<u64> {
        let state = self.state.lock().unwrap();
        let kick = state.kicks[usize::from(ring)]
            .as_ref()
            .expect("a kick descriptor");
        let mut count = [0; 8];
        rustix::io::read(kick, &mut count).ok()?;
        Some(u64::from_ne_bytes(count))
    }
}

impl Device for MockDevice {
    fn queue_pairs(&self) -> u16 {
        self.pairs
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn config(&self) -> Vec<u8> {
        (1..=12).collect()
    }

    fn connected(&self) {
        self.call(|_| (Event::Connected, ()));
    }

    fn disconnected(&self) {
        self.call(|s| {
            s.memory = None;
            s.log = None;
            s.rings.iter_mut().for_each(|r| *r = None);
            s.calls
                .iter_mut()
                .chain(&mut s.kicks)
                .for_each(|f| *f = None);
            (Event::Disconnected, ())
        });
    }

    fn set_features(&self, acked: u64) {
        self.call(|_| (Event::Features(acked), ()));
    }

    fn set_memory(&self, memory: Memory) -> Result<(), SetupError> {
        self.call(|s| {
            let mut result = Ok(());
            for slot in &mut s.rings {
                if let Some((config, ring)) = slot
                    && let Err(e) = ring.remap(config, &memory)
                {
                    *slot = None;
                    result = Err(e);
                }
            }
            let regions = memory.regions();
            s.memory = Some(memory);
            (Event::Memory(regions), result)
        })
    }

    fn set_log(&self, log: Option<DirtyLog>) {
        self.call(|s| {
            let on = log.is_some();
            if let Some(memory) = &mut s.memory {
                memory.set_log(log);
            }
            (Event::Log(on), ())
        });
    }

    fn start_ring(&self, ring: u16, config: RingConfig, base: u16) -> Result<(), SetupError> {
        self.call(|s| {
            let memory = s.memory.as_ref().expect("memory comes before rings");
            match Ring::start(&config, memory, base) {
                Ok(started) => {
                    s.rings[usize::from(ring)] = Some((config, started));
                    (Event::Start(ring, config, base), Ok(()))
                }
                Err(e) => (Event::StartFailed(ring), Err(e)),
            }
        })
    }

    fn stop_ring(&self, ring: u16) -> Option<u16> {
        self.call(|s| {
            let base = s.rings[usize::from(ring)].take().map(|(_, r)| r.base());
            (Event::Stop(ring, base), base)
        })
    }

    fn enable_ring(&self, ring: u16, on: bool) {
        self.call(|_| (Event::Enable(ring, on), ()));
    }

    fn set_kick(&self, ring: u16, kick: Option<OwnedFd>) {
        self.call(|s| {
            let event = Event::Kick(ring, kick.is_some());
            s.kicks[usize::from(ring)] = kick;
            (event, ())
        });
    }

    fn set_call(&self, ring: u16, call: Option<OwnedFd>) {
        self.call(|s| {
            let event = Event::Call(ring, call.is_some());
            s.calls[usize::from(ring)] = call;
            (event, ())
        });
    }

    fn save(&self) -> Result<Vec<u8>, String> {
        self.call(|_| (Event::Save, Ok(b"as it is".to_vec())))
    }

    fn load(&self, state: &[u8]) -> Result<(), String> {
        let result = match state {
            b"as it is" => Ok(()),
            _ => Err("it is another device's".into()),
        };
        self.call(|_| (Event::Load(state.to_vec()), result))
    }

    fn broken(&self) -> Option<String> {
        self.state.lock().unwrap().broken.clone()
    }
}

/// A listening endpoint with a recording device.
pub struct Rig {
    pub endpoint: Endpoint,
    pub device: Arc<MockDevice>,
    pub path: PathBuf,
    pub dir: TempDir,
}

impl Rig {
    pub fn new(pairs: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.sock");
        let device = MockDevice::new(pairs);
        let endpoint = listen(dir.path(), &path, Arc::clone(&device)).unwrap();
        Self {
            endpoint,
            device,
            path,
            dir,
        }
    }

    pub fn connect(&self) -> Vmm {
        Vmm::new(UnixStream::connect(&self.path).unwrap())
    }

    /// Waits for the endpoint to be in a state.
    pub fn until(&self, what: &str, is: impl Fn(&SessionStatus) -> bool) -> SessionStatus {
        until(&self.endpoint, what, is)
    }
}

pub fn listen(
    dir: &Path,
    path: &Path,
    device: Arc<MockDevice>,
) -> Result<Endpoint, tandem::vhost::EndpointError> {
    let source = Source::Listen {
        path: path.into(),
        permissions: 0o600,
        group: None,
    };
    Endpoint::open("p", dir, source, device, &Broker::in_process())
}

/// Status has no event of its own: look until it is so.
pub fn until(
    endpoint: &Endpoint,
    what: &str,
    is: impl Fn(&SessionStatus) -> bool,
) -> SessionStatus {
    let start = Instant::now();
    loop {
        let status = endpoint.status();
        if is(&status) {
            return status;
        }
        assert!(start.elapsed() < PATIENCE, "never {what}: {status:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The VMM's side of a connection.
pub struct Vmm {
    pub stream: UnixStream,
    /// Sent with every request, such as [`NEED_REPLY`].
    pub flags: u32,
}

impl Vmm {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, flags: 0 }
    }

    pub fn send_raw(&self, request: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        let bytes = message(request, flags, body);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let iov = [std::io::IoSlice::new(&bytes)];
        let sent = sendmsg(&self.stream, &iov, &mut control, SendFlags::NOSIGNAL).unwrap();
        assert_eq!(sent, bytes.len());
    }

    /// Sends a request; with NEED_REPLY in `flags` nothing is waited for yet.
    pub fn send(&self, request: Request, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.send_raw(request.into(), VERSION | self.flags, body, fds);
    }

    /// Reads an answer.
    pub fn answer(&self) -> (u32, Vec<u8>) {
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header).unwrap();
        let field = |i: usize| u32::from_ne_bytes(header[i..i + 4].try_into().unwrap());
        assert_eq!(field(4), VERSION | REPLY);
        let mut body = vec![0; field(8) as usize];
        (&self.stream).read_exact(&mut body).unwrap();
        (field(0), body)
    }

    /// Sends a request that has an answer of its own.
    pub fn ask(&self, request: Request, body: &[u8]) -> Vec<u8> {
        self.send(request, body, &[]);
        let (answered, body) = self.answer();
        assert_eq!(answered, u32::from(request));
        body
    }

    /// Sends a request and says whether it was carried out. Takes REPLY_ACK.
    pub fn done(&self, request: Request, body: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        self.send_raw(request.into(), VERSION | NEED_REPLY, body, fds);
        let (answered, body) = self.answer();
        assert_eq!(answered, u32::from(request));
        u64::from_ne_bytes(body.try_into().unwrap()) == 0
    }

    /// As [`Vmm::done`], which must be.
    pub fn must(&self, request: Request, body: &[u8], fds: &[BorrowedFd<'_>]) {
        assert!(self.done(request, body, fds), "{request:?} was refused");
    }

    /// Waits until all that was sent has been dealt with.
    pub fn sync(&self) {
        self.ask(Request::GET_FEATURES, &[]);
    }

    /// Waits for the other side to close the connection.
    pub fn closed(&self) {
        let mut rest = Vec::new();
        match (&self.stream).read_to_end(&mut rest) {
            Ok(_) => {}
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }

    /// What every VMM says first.
    pub fn hello(&self) {
        self.ask(Request::GET_FEATURES, &[]);
        self.ask(Request::GET_PROTOCOL_FEATURES, &[]);
        self.send(Request::SET_PROTOCOL_FEATURES, &u64_body(PROTOCOL), &[]);
        self.send(Request::SET_OWNER, &[], &[]);
    }

    /// Shares memory and starts one ring as QEMU does at DRIVER_OK.
    pub fn start(&self, guest: &Guest, features: u64) {
        self.must(
            Request::SET_FEATURES,
            &u64_body(features | PROTOCOL_FEATURES),
            &[],
        );
        self.must(
            Request::SET_MEM_TABLE,
            &guest.table(),
            &[guest.file.as_fd()],
        );
    }

    pub fn start_ring(&self, ring: u8, guest: &Guest) {
        let index = u32::from(ring);
        self.must(Request::SET_VRING_NUM, &pair_body(index, 256), &[]);
        self.must(Request::SET_VRING_BASE, &pair_body(index, 0), &[]);
        self.must(Request::SET_VRING_ADDR, &guest.addresses(ring, 0), &[]);
        let fd = event();
        self.must(
            Request::SET_VRING_KICK,
            &u64_body(u64::from(ring)),
            &[fd.as_fd()],
        );
        self.must(
            Request::SET_VRING_CALL,
            &u64_body(u64::from(ring)),
            &[event().as_fd()],
        );
    }
}

/// Guest memory: one memfd of 1 MiB at guest address 0.
pub struct Guest {
    pub file: OwnedFd,
}

/// Bytes of [`Guest`]'s memory.
pub const GUEST: u64 = 1 << 20;
/// Where the VMM has it mapped.
pub const USER: u64 = 0x7f00_0000_0000;

impl Guest {
    pub fn new() -> Self {
        Self { file: memfd(GUEST) }
    }

    pub fn table(&self) -> Vec<u8> {
        table(&[(0, GUEST, USER, 0)])
    }

    /// SET_VRING_ADDR of a ring: 16 KiB each, with room for 256 entries.
    pub fn addresses(&self, ring: u8, flags: u32) -> Vec<u8> {
        let [desc, driver, device] = places(ring).map(|a| USER + a);
        let mut body = pair_body(u32::from(ring), flags);
        for field in [desc, device, driver, 0] {
            body.extend(field.to_ne_bytes());
        }
        body
    }
}

/// Guest addresses of a ring's descriptors, driver's area, device's area.
pub fn places(ring: u8) -> [u64; 3] {
    let at = 0x4000 * u64::from(ring);
    [at, at + 0x1000, at + 0x2000]
}

pub fn config(ring: u8, features: u64) -> RingConfig {
    let [desc, driver, device] = places(ring);
    RingConfig {
        size: 256,
        desc,
        driver,
        device,
        features,
    }
}

/// SET_MEM_TABLE's body: guest address, size, address in the VMM, offset.
pub fn table(regions: &[(u64, u64, u64, u64)]) -> Vec<u8> {
    let mut body = u64_body(regions.len() as u64);
    for r in regions {
        body.extend([r.0, r.1, r.2, r.3].iter().flat_map(|f| f.to_ne_bytes()));
    }
    body
}

/// ADD_MEM_REG's and REM_MEM_REG's body.
pub fn region(guest: u64, size: u64, user: u64, offset: u64) -> Vec<u8> {
    let mut body = u64_body(0);
    body.extend(
        [guest, size, user, offset]
            .iter()
            .flat_map(|f| f.to_ne_bytes()),
    );
    body
}

pub fn u64_body(value: u64) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

pub fn pair_body(index: u32, value: u32) -> Vec<u8> {
    [index.to_ne_bytes(), value.to_ne_bytes()].concat()
}

pub fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in [request, flags, body.len() as u32] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.extend(body);
    bytes
}

pub fn memfd(len: u64) -> OwnedFd {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, len).unwrap();
    fd
}

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

/// Writes bytes, whole or not.
pub fn write(mut stream: &UnixStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}
