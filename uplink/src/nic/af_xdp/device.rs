//! What takes privilege: everything up to file descriptors, which may be sent to another process.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::net::netdevice::name_to_index;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem, XdpOptionsFlags,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

use super::program;
use crate::Mac;
use crate::nic::sys;
use crate::nic::sys_bpf as bpf;
use crate::nic::sys_xdp::{self, Mapping};

/// Entries of each ring, and chunks of a queue for each direction: two milliseconds of a million
/// frames a second.
pub(super) const RING: u32 = 2048;
/// Bytes the kernel leaves free in front of a received frame (`XDP_PACKET_HEADROOM`).
const HEADROOM: u32 = 256;
/// Bytes of an Ethernet header with two tags.
const HEADERS: u32 = 22;
/// Sizes of chunks. The kernel knows none below the first, nor above a page.
const CHUNKS: [u32; 2] = [2048, 4096];
/// The largest MTU that a chunk has room for.
const MAX_MTU: u32 = CHUNKS[1] - HEADROOM - HEADERS;

/// A device or queue is free only a moment after its owner has ended: so often, and so long
/// apart, it is asked for.
const BUSY_TRIES: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

// `linux/if_link.h`.
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Why a device could not be had.
#[derive(Debug, thiserror::Error)]
pub enum AfXdpError {
    /// There is no such device.
    #[error("there is no network device {0}: see `ip link`")]
    NoDevice(String),
    /// The process may not load programs, or have such sockets.
    #[error(
        "device {0} needs CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF: run as root or grant the capabilities"
    )]
    NotPermitted(String),
    /// The device has a program, or one of its queues a socket.
    #[error(
        "device {0} has an XDP program or AF_XDP socket already: end its owner, or `ip link set {0} xdp off`"
    )]
    Busy(String),
    /// Frames do not fit.
    #[error(
        "device {0} has a larger MTU than the {MAX_MTU} that AF_XDP takes: use af_packet, or `ip link set {0} mtu {MAX_MTU}`"
    )]
    MtuTooLarge(String),
    /// VLAN tags would be lost.
    #[error(
        "device {0} takes VLAN tags out of frames, where AF_XDP does not see them, and cannot be told not to (`ethtool -K {0} rxvlan off`): use af_packet"
    )]
    StripsTags(String),
    /// The kernel has no such sockets.
    #[error(
        "this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS, Linux 5.10): device {0} needs af_packet"
    )]
    NotSupported(String),
    /// The kernel charges its memory to the user, who may not have as much.
    #[error(
        "device {0} needs memory that is locked, 8 MiB or more for each of its queues: grant CAP_IPC_LOCK, or raise the limit (LimitMEMLOCK=, ulimit -l)"
    )]
    NoMemory(String),
    /// Not what [`AfXdpDevice::open`] makes.
    #[error("device {0}: these are not the descriptors of an AF_XDP device")]
    NotADevice(String),
    /// Something else.
    #[error("device {name}: {what} failed ({error}): see the kernel's log")]
    Io {
        /// The device.
        name: String,
        /// What was tried.
        what: Cow<'static, str>,
        /// The kernel's answer.
        error: io::Error,
    },
}

impl AfXdpError {
    /// What the kernel, or [`AfXdpError::errno`] in another process, said of the device `name`.
    pub fn of(name: &str, error: io::Error) -> Self {
        Self::in_doing(name, "setting up AF_XDP", error)
    }

    pub(super) fn in_doing(name: &str, what: &'static str, error: io::Error) -> Self {
        let name = name.to_owned();
        match error.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => Self::NoDevice(name),
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted(name),
            Some(libc::EBUSY | libc::EEXIST) => Self::Busy(name),
            Some(libc::ENOBUFS) => Self::NoMemory(name),
            Some(libc::EAFNOSUPPORT) => Self::NotSupported(name),
            Some(MTU_TOO_LARGE) => Self::MtuTooLarge(name),
            Some(STRIPS_TAGS) => Self::StripsTags(name),
            _ => Self::Io {
                name,
                what: what.into(),
                error,
            },
        }
    }

    /// A number for the error, which [`AfXdpError::of`] makes one of again: the kernel's, if it is of the
    /// kernel.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NoDevice(_) => libc::ENODEV,
            Self::NotPermitted(_) => libc::EPERM,
            Self::Busy(_) => libc::EBUSY,
            Self::NotSupported(_) => libc::EAFNOSUPPORT,
            Self::NoMemory(_) => libc::ENOBUFS,
            Self::MtuTooLarge(_) => MTU_TOO_LARGE,
            Self::StripsTags(_) => STRIPS_TAGS,
            Self::NotADevice(_) => libc::EBADF,
            Self::Io { error, .. } => error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

/// Numbers that the kernel gives for nothing that is asked of it here.
const MTU_TOO_LARGE: i32 = libc::EMSGSIZE;
const STRIPS_TAGS: i32 = libc::EBADMSG;

/// How frames come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The device itself reads and writes our memory.
    ZeroCopy,
    /// The driver runs the program, and the kernel copies.
    Copy,
    /// As [`Mode::Copy`], but the driver knows nothing of it: the kernel makes its own kind of
    /// buffer of each frame first.
    Generic,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ZeroCopy => "native XDP, zero copy",
            Self::Copy => "native XDP, copied by the kernel",
            Self::Generic => "generic XDP, copied by the kernel",
        })
    }
}

/// An open device, set up. All that takes privilege is done; its descriptors and numbers may be
/// sent to another process. For one [`AfXdp`](super::AfXdp): the rings have one user.
///
/// ```text
///  memory   ┌ queue 0 ───────────────────────┬ queue 1 ──
///           │ 2048 chunks, in │ 2048 chunks, out │ …
/// ```
#[derive(Debug)]
pub struct AfXdpDevice {
    /// Keeps the program attached; when the last copy is closed, it is detached.
    pub link: OwnedFd,
    /// Keeps the device taking frames for all addresses, and tells of errors.
    pub watch: OwnedFd,
    /// The memory of all queues: a sealed memory file.
    pub memory: OwnedFd,
    /// A bound socket to receive for each queue, in order.
    pub sockets: Vec<OwnedFd>,
    /// And one to send, with the memory of the first: what is sent by a socket wakes, when it has left,
    /// whoever waits for frames at the same one.
    pub senders: Vec<OwnedFd>,
    /// Bytes of a chunk.
    pub chunk: u32,
    /// How frames come and go.
    pub mode: Mode,
}

impl AfXdpDevice {
    /// Takes all queues of the device `name`: what comes in on it goes to them, but for frames
    /// to the addresses `host`, which go to the host's network stack. Frames to group addresses do
    /// not. Its link is set up. Takes 8 MiB for a queue, 16 MiB if the MTU is larger than 1770.
    ///
    /// Sets the device to take frames for all addresses, until it is closed, and to leave VLAN tags
    /// in them (`ethtool -K NAME rxvlan off`), which stays. A device that coalesces frames (LRO)
    /// must be told not to. The other end of a veth pair leaves checksums and tags to its device,
    /// where they are lost: `ethtool -K PEER tx off txvlan off`.
    ///
    /// # Errors
    /// [`AfXdpError`], which says what to do.
    pub fn open(name: &str, host: &[Mac]) -> Result<Self, AfXdpError> {
        let failed = |what| move |error| AfXdpError::in_doing(name, what, error);
        let index = index(name).map_err(failed("finding it"))?;
        let chunk = chunk_for(name)?;
        if !sys::is_up(name).map_err(failed("asking for its link"))? {
            sys::set_up(name).map_err(failed("setting its link up"))?;
        }
        let queues = bpf::rx_queues(name).map_err(failed("counting its queues"))?;
        let map = bpf::create_socket_map(queues).map_err(failed("making a map of sockets"))?;
        let program = program::redirect(&map, host);
        let program =
            bpf::load_xdp(&program, c"Apache-2.0").map_err(failed("loading a program"))?;
        let (link, native) = attach(&program, index).map_err(failed("attaching a program"))?;
        if !bpf::leave_tags(name).map_err(failed("having it leave VLAN tags"))? {
            return Err(AfXdpError::StripsTags(name.to_owned()));
        }
        let watch = bpf::watch(index).map_err(failed("watching it"))?;
        let len = u64::from(queues) * queue_bytes(chunk);
        let memory = make_memory(len).map_err(failed("making its memory"))?;
        let (mut sockets, mut senders, mut zero_copy) = (Vec::new(), Vec::new(), native);
        for queue in 0..queues {
            let socket = open_queue(index, queue, native, &memory, chunk)
                .map_err(failed("making an AF_XDP socket"))?;
            zero_copy &= sockopt::xdp_options(&socket)
                .is_ok_and(|options| options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY));
            bpf::set_socket(&map, queue, &socket).map_err(failed("giving it a socket"))?;
            let sender = open_sender(index, queue, &socket, chunk);
            senders.push(sender.map_err(failed("making an AF_XDP socket to send"))?);
            sockets.push(socket);
        }
        Ok(Self {
            link,
            watch,
            memory,
            sockets,
            senders,
            chunk,
            mode: match (native, zero_copy) {
                (_, true) => Mode::ZeroCopy,
                (true, _) => Mode::Copy,
                _ => Mode::Generic,
            },
        })
    }
}

/// Bytes of a queue's memory, half of it for each direction.
pub(super) fn queue_bytes(chunk: u32) -> u64 {
    2 * u64::from(RING) * u64::from(chunk)
}

/// Is it a size of chunks?
pub(super) fn is_chunk(chunk: u32) -> bool {
    CHUNKS.contains(&chunk)
}

/// The smallest chunk that the frames of the device `name` fit.
fn chunk_for(name: &str) -> Result<u32, AfXdpError> {
    let mtu = bpf::mtu(name).map_err(|e| AfXdpError::in_doing(name, "asking for its MTU", e))?;
    let fits = |chunk: &u32| mtu.saturating_add(HEADERS + HEADROOM) <= *chunk;
    let chunk = CHUNKS.into_iter().find(fits);
    chunk.ok_or_else(|| AfXdpError::MtuTooLarge(name.to_owned()))
}

/// The kernel's number of the device `name`.
fn index(name: &str) -> io::Result<u32> {
    let any = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    Ok(name_to_index(any, name)?)
}

const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// Memory of `len` bytes as a file that can neither shrink nor grow: no mapping of it ever loses a
/// page.
pub(super) fn make_memory(len: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = memfd_create("tandem-af-xdp", flags)?;
    ftruncate(&memory, len)?;
    fcntl_add_seals(&memory, SEALS)?;
    Ok(memory)
}

/// Is it such a file?
pub(super) fn is_memory(file: &OwnedFd, len: u64) -> io::Result<bool> {
    let size = u64::try_from(fstat(file)?.st_size);
    Ok(size == Ok(len) && fcntl_get_seals(file)?.contains(SEALS))
}

/// Attaches a program in the driver, or else in front of the network stack. Whether in the driver.
fn attach(program: &OwnedFd, index: u32) -> io::Result<(OwnedFd, bool)> {
    match patiently(|| bpf::link_xdp(program, index, XDP_FLAGS_DRV_MODE)) {
        Ok(link) => Ok((link, true)),
        Err(e) if is_busy(&e) => Err(e),
        // A driver has many reasons: no such thing, its MTU, its queues, its offloads.
        Err(_) => bpf::link_xdp(program, index, XDP_FLAGS_SKB_MODE).map(|link| (link, false)),
    }
}

/// A socket bound to a queue, with its part of `memory`, to receive.
fn open_queue(
    index: u32,
    queue: u32,
    native: bool,
    memory: &OwnedFd,
    chunk: u32,
) -> io::Result<OwnedFd> {
    let bytes = queue_bytes(chunk);
    // Mapped only for the registration, which takes the pages.
    let mapping = Mapping::new(memory.as_fd(), u64::from(queue) * bytes, bytes as usize)?;
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::XDP, SocketType::RAW, flags, None)?;
    sys_xdp::register(&socket, &mapping, chunk)?;
    sockopt::set_xdp_umem_fill_ring_size(&socket, RING)?;
    sockopt::set_xdp_umem_completion_ring_size(&socket, RING)?;
    sockopt::set_xdp_rx_ring_size(&socket, RING)?;
    // Unless told to copy, the kernel does so only where the driver cannot do without.
    let mut flags = SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
    flags.set(SocketAddrXdpFlags::XDP_COPY, !native);
    let address = SocketAddrXdp::new(flags, index, queue);
    patiently(|| Ok(rustix::net::bind(&socket, &address)?))?;
    Ok(socket)
}

/// A socket to send by a queue out of the memory of its `receiver`.
fn open_sender(index: u32, queue: u32, receiver: &OwnedFd, chunk: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::XDP, SocketType::RAW, flags, None)?;
    sockopt::set_xdp_tx_ring_size(&socket, RING)?;
    // In copy mode the kernel makes a buffer of its own of each frame. A full ring of them is to fit, and
    // to be sent in one call.
    let _less = sockopt::set_socket_send_buffer_size_force(&socket, 2 * (RING * chunk) as usize);
    bpf::set_budget(&socket, RING);
    let flags = SocketAddrXdpFlags::XDP_SHARED_UMEM;
    let address = SocketAddrXdpWithSharedUmem {
        addr: SocketAddrXdp::new(flags, index, queue),
        shared_umem_fd: receiver.as_fd(),
    };
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// Tries again what finds something busy.
fn patiently<T>(mut what: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..BUSY_TRIES {
        match what() {
            Err(e) if is_busy(&e) => thread::sleep(BUSY_PAUSE),
            result => return result,
        }
    }
    what()
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}
