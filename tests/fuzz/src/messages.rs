//! A VMM that sends any messages to a port, with a guest that runs any rings in any memory.
//!
//! The VMM and the port's data path take turns here, so that an input does the same every time;
//! only messages that nothing waits for are handled beside us.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io, process};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tandem::broker::Broker;
use tandem::port::{GuestPort, GuestPortConfig};
use tandem::vhost::{Device, Endpoint, Source};
use tandem_uplink::{Now, PortId, PortSpec, Switch, SwitchConfig};
use tandem_virtio_net::spec::NetHdr;
use tandem_virtio_net::{Batch, Scratch};

use crate::{Input, packets};

/// Steps of one input.
const MAX_OPERATIONS: usize = 120;
/// VMMs that come one after the other.
const MAX_SESSIONS: u32 = 4;
/// How long an answer, or the end of a session, may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Inputs between two looks at the descriptors of the process.
const LOOK_EVERY: u32 = 64;

/// Guest memory: as the VMM has it mapped, and its bytes.
const USER: u64 = 0x7f00_0000_0000;
const GUEST: u64 = 0x2_0000;

const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;

/// MQ, LOG_SHMFD, REPLY_ACK, CONFIG, CONFIGURE_MEM_SLOTS.
const PROTOCOL: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 9 | 1 << 15;
/// VERSION_1 and VHOST_USER_F_PROTOCOL_FEATURES.
const BASIC: u64 = 1 << 32 | 1 << 30;

/// Every VMM says these, in this order or in another.
const USUAL: [u32; 24] = [
    GET_FEATURES,
    SET_FEATURES,
    SET_OWNER,
    4, // RESET_OWNER
    SET_MEM_TABLE,
    6, // SET_LOG_BASE
    7, // SET_LOG_FD
    SET_VRING_NUM,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    GET_VRING_BASE,
    SET_VRING_KICK,
    SET_VRING_CALL,
    14, // SET_VRING_ERR
    15, // GET_PROTOCOL_FEATURES
    SET_PROTOCOL_FEATURES,
    17, // GET_QUEUE_NUM
    SET_VRING_ENABLE,
    19, // SEND_RARP
    24, // GET_CONFIG
    36, // GET_MAX_MEM_SLOTS
    37, // ADD_MEM_REG
    38, // REM_MEM_REG
    31, // GET_INFLIGHT_FD
];

/// What a VMM and its guest do.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(input.u8());
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() || world.sessions > MAX_SESSIONS {
            break;
        }
        world.step(&mut input);
    }
    world.end();
    world.tear_down();
    look_at_descriptors();
}

/// Where sockets and journals lie for a moment.
fn run_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("tandem-fuzz-{}", process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        dir
    })
}

/// All that was opened is closed again.
fn look_at_descriptors() {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    static AT_FIRST: Mutex<Option<usize>> = Mutex::new(None);
    // The first ones open what is kept for good.
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    if run < 4 || !run.is_multiple_of(LOOK_EVERY) {
        return;
    }
    let count = fs::read_dir("/proc/self/fd").expect("/proc").count();
    let mut first = AT_FIRST.lock().unwrap_or_else(PoisonError::into_inner);
    let first = *first.get_or_insert(count);
    assert!(count <= first, "{count} descriptors, {first} before");
}

struct World {
    port: Arc<GuestPort>,
    switch: Arc<Switch>,
    /// The port's places on the switch.
    places: [PortId; 2],
    session: Option<(Endpoint, Vmm)>,
    sessions: u32,
    memory: OwnedFd,
    size: u64,
    batch: Batch,
    scratch: Scratch,
    now: Now,
    /// Available indices of the split rings.
    avail: [u16; 4],
}

impl World {
    fn new(kind: u8) -> Self {
        let port = Arc::new(GuestPort::new(GuestPortConfig {
            name: "fuzz".into(),
            queue_pairs: 2,
            mtu: 1500,
            failover: kind & 1 != 0,
            feature_level: 1,
            journal: (kind & 2 == 0).then(|| run_dir().join("fuzz.rings")),
        }));
        port.forget_positions();
        // The second port is the first one's neighbour, and the same: what it sends comes back.
        let config = SwitchConfig {
            mac_entries: 64,
            flow_cache_bytes: 0,
            ..SwitchConfig::default()
        };
        let switch = Arc::new(Switch::new("fuzz", config));
        let add = |name: &str| {
            let spec = PortSpec::new(name, Arc::clone(&port.from_vm), port.clone() as _);
            switch.add_port(spec).expect("a new switch takes the port")
        };
        let places = [add("one"), add("two")];
        port.attach((&switch, places[0]), |_| ());
        let mut world = Self {
            port,
            switch,
            places,
            session: None,
            sessions: 0,
            memory: memfd(GUEST),
            size: GUEST,
            batch: Batch::new(),
            scratch: Scratch::default(),
            now: Now(1_000_000_000),
            avail: [0; 4],
        };
        world.connect();
        if kind & 4 == 0 {
            let features = if kind & 8 == 0 {
                BASIC
            } else {
                BASIC | 1 << 34 | 1 << 15
            };
            world.hello(features);
        }
        world
    }

    fn connect(&mut self) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let endpoint = Endpoint::open(
            "fuzz",
            run_dir(),
            Source::Socket(theirs.into()),
            Arc::clone(&self.port) as Arc<dyn Device>,
            &Broker::in_process(),
        );
        self.session = Some((endpoint.expect("a session"), Vmm::new(ours)));
        self.sessions += 1;
        self.avail = [0; 4];
    }

    /// Ends the session; the port must be as it was before.
    fn end(&mut self) {
        if let Some((endpoint, mut vmm)) = self.session.take() {
            let _ = vmm.stream.shutdown(std::net::Shutdown::Write);
            vmm.until_closed();
            drop(vmm);
            let start = Instant::now();
            while endpoint.status().connected {
                assert!(start.elapsed() < PATIENCE, "a session that does not end");
                std::thread::sleep(Duration::from_micros(20));
            }
            drop(endpoint);
        }
        for pair in self.port.pairs() {
            let state = pair.ring_state();
            assert!(!state.running && !state.enabled, "rings after a session");
        }
        assert!(self.port.broken().is_none());
    }

    /// The port holds the switch, and the switch the port, until it is taken off. Then nobody else
    /// does: whatever a session has started has ended.
    fn tear_down(self) {
        for id in self.places {
            assert!(self.switch.remove_port(id));
        }
        self.switch.age(self.now);
        assert_eq!(Arc::strong_count(&self.port), 1, "the port is still held");
    }

    /// What QEMU says up to where its guest sends and receives.
    fn hello(&mut self, features: u64) {
        let table = table(&[(0, GUEST, USER, 0)]);
        let memory = self.memory.try_clone().expect("a descriptor");
        self.send(SET_PROTOCOL_FEATURES, VERSION, &PROTOCOL.to_ne_bytes(), &[]);
        self.send(SET_OWNER, VERSION, &[], &[]);
        self.send(SET_FEATURES, VERSION, &features.to_ne_bytes(), &[]);
        self.send(SET_MEM_TABLE, VERSION, &table, &[memory.as_fd()]);
        for ring in 0..4 {
            self.start_ring(ring, features);
        }
    }

    fn start_ring(&mut self, ring: u32, features: u64) {
        let base = if features & 1 << 34 != 0 { 0x8000 } else { 0 };
        let index = u64::from(ring).to_ne_bytes();
        self.send(SET_VRING_NUM, VERSION, &pair(ring, 64), &[]);
        self.send(SET_VRING_BASE, VERSION, &pair(ring, base), &[]);
        self.send(SET_VRING_ADDR, VERSION, &addresses(ring), &[]);
        self.send(SET_VRING_CALL, VERSION, &index, &[event().as_fd()]);
        self.send(SET_VRING_KICK, VERSION, &index, &[event().as_fd()]);
        self.send(SET_VRING_ENABLE, VERSION, &pair(ring, 1), &[]);
    }

    fn send(&mut self, request: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        if let Some((_, vmm)) = &mut self.session {
            vmm.send(&message(request, flags, body), fds);
            if request == GET_FEATURES && body.is_empty() {
                vmm.asked += 1;
            }
        }
    }

    fn sync(&mut self) {
        self.send(GET_FEATURES, VERSION, &[], &[]);
        if let Some((_, vmm)) = &mut self.session {
            vmm.until_answered();
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let op = input.u8();
        match op & 15 {
            0..=6 => self.any_message(op >> 4, input),
            7 => self.start_ring(u32::from(op >> 4 & 3), input.u64()),
            8..=9 => self.guest_writes(input),
            10..=11 => self.offer(usize::from(op >> 4 & 3), input),
            12..=13 => self.serve(),
            14 => match op >> 4 {
                0..=1 => self.truncate(input),
                2 => self.hello(BASIC | input.u64() & 0xf_0000_8000),
                3 => self.cut(input),
                4 => {
                    if let Some((endpoint, _)) = &self.session {
                        endpoint.disconnect("the fuzzer says so".into());
                    }
                }
                5..=7 => {
                    self.end();
                    self.connect();
                }
                _ => self.sync(),
            },
            _ => {
                if let Some((endpoint, _)) = &self.session {
                    let _ = endpoint.status();
                }
                self.port.look_for_buffers();
                let _ = (self.port.broken(), self.port.must_end());
            }
        }
    }

    /// A message whose header is sound, more often than not.
    fn any_message(&mut self, bits: u8, input: &mut Input<'_>) {
        let request = match input.u8() {
            r @ 0..=239 => USUAL[usize::from(r) % USUAL.len()],
            _ => u32::from(input.u8() % 60),
        };
        let flags = match bits & 7 {
            0..=4 => VERSION,
            5..=6 => VERSION | NEED_REPLY,
            _ => u32::from(input.u8() & 15),
        };
        let body = any_body(request, input);
        let fds = self.any_descriptors(request, input);
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.send(request, flags, &body, &fds);
        // A burst of messages that nobody waits for may still be on its way when it is served.
        if bits & 8 == 0 {
            self.sync();
        }
    }

    /// Those the message wants, or others.
    fn any_descriptors(&self, request: u32, input: &mut Input<'_>) -> Vec<OwnedFd> {
        let kind = input.u8();
        let memory = || self.memory.try_clone().expect("a descriptor");
        if kind < 160 {
            return match request {
                SET_MEM_TABLE => (0..1 + usize::from(kind & 1)).map(|_| memory()).collect(),
                6 | 37 => vec![memory()],
                SET_VRING_KICK | SET_VRING_CALL | 14 if kind & 7 != 7 => vec![event()],
                _ => Vec::new(),
            };
        }
        let n = match kind & 7 {
            0..=2 => 1,
            3..=4 => 2,
            5 => 0,
            6 => 33,
            _ => 8,
        };
        let open = |path: &str, flags| {
            rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).expect("a device")
        };
        let one = |what: u8| match what % 8 {
            0..=1 => memory(),
            2 => memfd(u64::from(what) * 0x1000),
            3 => event(),
            4 => UnixStream::pair().expect("a pair of sockets").0.into(),
            5 => open("/dev/null", OFlags::RDWR),
            6 => open("/dev/zero", OFlags::RDONLY),
            _ => rustix::pipe::pipe().expect("a pipe").1,
        };
        (0..n).map(|_| one(input.u8())).collect()
    }

    /// Bytes that are not a whole message: nothing can follow them.
    fn cut(&mut self, input: &mut Input<'_>) {
        let n = usize::from(input.u8());
        let mut bytes = input.take(n).to_vec();
        if bytes.first().is_some_and(|b| b & 1 == 0) && bytes.len() > 12 {
            let request = u32::from(bytes[0] >> 1);
            bytes[..4].copy_from_slice(&request.to_ne_bytes());
            bytes[4..8].copy_from_slice(&VERSION.to_ne_bytes());
        }
        if let Some((_, vmm)) = &mut self.session {
            vmm.send(&bytes, &[]);
        }
        self.end();
        self.connect();
    }

    fn guest_writes(&mut self, input: &mut Input<'_>) {
        let at = u64::from(input.u16()) + u64::from(input.u8() & 1) * 0x1_0000;
        let n = usize::from(input.u8() % 32);
        self.write(at, input.take(n));
    }

    /// Never beyond the file's end, which would make it longer again.
    fn write(&self, at: u64, bytes: &[u8]) {
        let n = (self.size.saturating_sub(at) as usize).min(bytes.len());
        let _ = rustix::io::pwrite(&self.memory, &bytes[..n], at);
    }

    /// A buffer in a split ring, where `hello` has it.
    fn offer(&mut self, ring: usize, input: &mut Input<'_>) {
        let at = 0x4000 * ring as u64;
        let buffer = 0x1_0000 + u64::from(input.u16() % 0x8000);
        let mut len = u32::from(input.u16() % 0x2000);
        if ring % 2 == 1 {
            let frame = packets::frame(input);
            let hdr = if input.bool() {
                packets::header(input, &frame)
            } else {
                NetHdr::default()
            };
            let bytes = [&hdr.to_bytes()[..], &frame].concat();
            self.write(buffer, &bytes);
            if len & 7 != 0 {
                len = bytes.len() as u32;
            }
        }
        let slot = u64::from(self.avail[ring] % 64);
        let flags: u16 = if ring.is_multiple_of(2) { 2 } else { 0 };
        let mut desc = buffer.to_le_bytes().to_vec();
        desc.extend(len.to_le_bytes());
        desc.extend(flags.to_le_bytes());
        desc.extend(0u16.to_le_bytes());
        self.write(at + 16 * slot, &desc);
        self.write(at + 0x1004 + 2 * slot, &(slot as u16).to_le_bytes());
        self.avail[ring] = self.avail[ring].wrapping_add(1);
        self.write(at + 0x1002, &self.avail[ring].to_le_bytes());
    }

    /// The port's thread gets a turn.
    fn serve(&mut self) {
        self.sync();
        self.port.look_for_buffers();
        for pair in self.port.pairs() {
            self.now = self.now + Duration::from_micros(60);
            pair.serve(&mut self.batch, &mut self.scratch, self.now);
            pair.set_kicks(true);
            pair.serve(&mut self.batch, &mut self.scratch, self.now);
            assert!(self.batch.is_empty());
        }
    }

    /// Takes back memory, in use or not, or gives more. It is seen when it is served next.
    fn truncate(&mut self, input: &mut Input<'_>) {
        let size = u64::from(input.u8() % 40) * 0x1000;
        if ftruncate(&self.memory, size).is_ok() {
            self.size = size;
        }
    }
}

/// The VMM's side of a connection.
struct Vmm {
    stream: UnixStream,
    answers: Vec<u8>,
    closed: bool,
    /// GET_FEATURES sent, and answered.
    asked: u64,
    answered: u64,
}

impl Vmm {
    fn new(stream: UnixStream) -> Self {
        stream.set_nonblocking(true).expect("a socket");
        Self {
            stream,
            answers: Vec::new(),
            closed: false,
            asked: 0,
            answered: 0,
        }
    }

    /// Sends bytes, and takes answers meanwhile.
    fn send(&mut self, mut bytes: &[u8], mut fds: &[BorrowedFd<'_>]) {
        while !bytes.is_empty() && !self.closed {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
            }
            let iov = [IoSlice::new(bytes)];
            match sendmsg(&self.stream, &iov, &mut control, SendFlags::NOSIGNAL) {
                Ok(n) => {
                    bytes = &bytes[n..];
                    fds = &[];
                }
                Err(e) if e == rustix::io::Errno::AGAIN => self.wait(PollFlags::OUT),
                // What it has answered before is still to be read.
                Err(_) => return,
            }
        }
    }

    fn until_answered(&mut self) {
        while self.answered < self.asked && !self.closed {
            self.wait(PollFlags::empty());
        }
    }

    fn until_closed(&mut self) {
        while !self.closed {
            self.wait(PollFlags::empty());
        }
    }

    /// Waits for room, if that is wanted, or for answers, which are read.
    fn wait(&mut self, wanted: PollFlags) {
        let mut fds = [PollFd::new(&self.stream, wanted | PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).expect("a time");
        match poll(&mut fds, Some(&patience)) {
            Ok(0) => panic!("no answer within {PATIENCE:?}"),
            Ok(_) if fds[0].revents() == PollFlags::OUT => return,
            _ => {}
        }
        let mut bytes = [0; 4096];
        match (&self.stream).read(&mut bytes) {
            Ok(0) => self.closed = true,
            Ok(n) => self.answers.extend(&bytes[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => {
                // Reset: it had not read all of ours.
                self.answers.clear();
                self.closed = true;
            }
        }
        self.read_answers();
    }

    fn read_answers(&mut self) {
        while let Some(header) = self.answers.first_chunk::<12>() {
            let field = |i: usize| u32::from_ne_bytes(std::array::from_fn(|n| header[4 * i + n]));
            let (request, flags, size) = (field(0), field(1), field(2) as usize);
            assert_eq!(flags, VERSION | REPLY, "an answer to {request}");
            assert!(size <= 4096, "an answer to {request}");
            if self.answers.len() < 12 + size {
                break;
            }
            self.answers.drain(..12 + size);
            self.answered += u64::from(request == GET_FEATURES && size == 8);
        }
    }
}

/// The body a message wants, with values that mean something, or anything.
fn any_body(request: u32, input: &mut Input<'_>) -> Vec<u8> {
    let kind = input.u8();
    if kind >= 224 {
        let n = usize::from(input.u8());
        return input.take(n).to_vec();
    }
    let ring = u32::from(kind & 3) + if kind & 28 == 28 { 3 } else { 0 };
    let mut body = match request {
        SET_FEATURES => (BASIC ^ input.u64() & input.u64()).to_ne_bytes().to_vec(),
        SET_PROTOCOL_FEATURES => (PROTOCOL ^ u64::from(input.u16())).to_ne_bytes().to_vec(),
        SET_MEM_TABLE => {
            let n = 1 + usize::from(kind & 1);
            table(&(0..n).map(|_| any_region(input)).collect::<Vec<_>>())
        }
        37 | 38 => {
            let mut body = vec![0; 8];
            body.extend(&table(&[any_region(input)])[8..]);
            body
        }
        6 => {
            let size = u64::from(input.u16());
            let offset = u64::from(input.u8() & 3) * 0x1000;
            [size.to_ne_bytes(), offset.to_ne_bytes()].concat()
        }
        SET_VRING_NUM => pair(
            ring,
            u32::from(input.one_of(&[64u16, 1, 2, 7, 128, 256, 0, 32768])),
        ),
        SET_VRING_BASE => pair(ring, u32::from(input.u16())),
        SET_VRING_ENABLE => pair(ring, u32::from(input.u8() & 1)),
        SET_VRING_ADDR => {
            let mut body = addresses(ring);
            if kind & 32 != 0 {
                let at = 4 * usize::from(input.u8() % 10);
                body[at..at + 4].copy_from_slice(&input.u32().to_ne_bytes());
            }
            body
        }
        GET_VRING_BASE => pair(ring, 0),
        SET_VRING_KICK | SET_VRING_CALL | 14 => {
            let none = u64::from(kind & 32 != 0) << 8;
            (u64::from(ring) | none).to_ne_bytes().to_vec()
        }
        24 => {
            let size = u32::from(input.u8() % 16);
            let mut body = pair(u32::from(input.u8() % 16), size);
            body.resize(12 + size as usize, 0);
            body
        }
        GET_FEATURES | SET_OWNER | 4 | 15 | 17 | 36 => Vec::new(),
        _ => vec![0; usize::from(input.u8() % 64)],
    };
    // Some of it wrong.
    if kind & 64 != 0 && !body.is_empty() {
        let at = usize::from(input.u8()) % body.len();
        body[at] ^= input.u8();
    }
    body
}

/// A part of guest memory, somewhere.
fn any_region(input: &mut Input<'_>) -> (u64, u64, u64, u64) {
    let kind = input.u8();
    let page = |n: u8| u64::from(n & 31) * 0x1000;
    let guest = if kind & 1 == 0 { 0 } else { page(input.u8()) };
    let size = if kind & 2 == 0 {
        GUEST
    } else {
        page(input.u8())
    };
    let offset = if kind & 4 == 0 { 0 } else { page(input.u8()) };
    let user = USER
        + if kind & 8 == 0 {
            guest
        } else {
            page(input.u8())
        };
    let odd = if kind & 0xf0 == 0xf0 { input.u64() } else { 0 };
    (guest ^ odd, size ^ odd.rotate_left(16), user, offset)
}

fn pair(a: u32, b: u32) -> Vec<u8> {
    [a.to_ne_bytes(), b.to_ne_bytes()].concat()
}

/// SET_VRING_ADDR's body: 16 KiB for each ring.
fn addresses(ring: u32) -> Vec<u8> {
    let at = USER + 0x4000 * u64::from(ring);
    let mut body = pair(ring, 0);
    for field in [at, at + 0x2000, at + 0x1000, 0] {
        body.extend(field.to_ne_bytes());
    }
    body
}

/// SET_MEM_TABLE's body: guest address, size, address in the VMM, offset.
fn table(regions: &[(u64, u64, u64, u64)]) -> Vec<u8> {
    let mut body = (regions.len() as u64).to_ne_bytes().to_vec();
    for r in regions {
        body.extend([r.0, r.1, r.2, r.3].iter().flat_map(|f| f.to_ne_bytes()));
    }
    body
}

fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let fields = [request, flags, body.len() as u32];
    let mut bytes: Vec<u8> = fields.iter().flat_map(|f| f.to_ne_bytes()).collect();
    bytes.extend(body);
    bytes
}

fn memfd(len: u64) -> OwnedFd {
    // With seals, as QEMU makes it, it could not be truncated.
    let fd = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&fd, len).expect("memory");
    fd
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")
}
