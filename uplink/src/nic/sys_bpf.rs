//! bpf(2), and what else has to be asked of a device before a program is attached to it; each call
//! behind a safe function.
#![allow(unsafe_code)] // see `sys.rs`

use std::ffi::CStr;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{c_int, c_ulong};

use super::sys::{checked, configure, request};

// Of `enum bpf_cmd`, `bpf_map_type`, `bpf_prog_type` and `bpf_attach_type` of `linux/bpf.h`.
const BPF_MAP_CREATE: c_int = 0;
const BPF_MAP_UPDATE_ELEM: c_int = 2;
const BPF_PROG_LOAD: c_int = 5;
const BPF_LINK_CREATE: c_int = 28;
const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;

/// One instruction (RFC 9669, section 3.1), in the byte order of this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    pub(super) opcode: u8,
    /// Destination in the low, source in the high four bits.
    pub(super) registers: u8,
    pub(super) offset: i16,
    pub(super) imm: i32,
}
const _: () = assert!(size_of::<Instruction>() == 8);

/// A map of `queues` AF_XDP sockets.
pub(super) fn create_socket_map(queues: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
    }
    let attr = Attr {
        map_type: BPF_MAP_TYPE_XSKMAP,
        key_size: 4,
        value_size: 4,
        max_entries: queues,
    };
    // SAFETY: the attributes have no pointers.
    owned(unsafe { bpf(BPF_MAP_CREATE, &attr) })
}

/// Puts a socket into a map, for `queue`.
pub(super) fn set_socket(map: &OwnedFd, queue: u32, socket: &OwnedFd) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        map: c_int,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let fd = socket.as_raw_fd();
    let attr = Attr {
        map: map.as_raw_fd(),
        padding: 0,
        key: &raw const queue as u64,
        value: &raw const fd as u64,
        flags: 0,
    };
    // SAFETY: key and value have the four bytes that the map was made with, and outlive the call.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &attr) }.map(drop)
}

/// Loads a program of type XDP.
pub(super) fn load_xdp(program: &[Instruction], license: &CStr) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
    }
    let attr = Attr {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"tandem_uplink\0\0\0",
        prog_ifindex: 0,
        expected_attach_type: BPF_XDP,
    };
    // SAFETY: the instructions are as many as is said, the licence ends with a zero, and both
    // outlive the call. The kernel verifies the program itself.
    owned(unsafe { bpf(BPF_PROG_LOAD, &attr) })
}

/// Attaches a program to a device, until the result is closed; `flags` are `XDP_FLAGS_*` of
/// `linux/if_link.h`.
pub(super) fn link_xdp(program: &OwnedFd, index: u32, flags: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        program: c_int,
        ifindex: u32,
        attach_type: u32,
        flags: u32,
    }
    let attr = Attr {
        program: program.as_raw_fd(),
        ifindex: index,
        attach_type: BPF_XDP,
        flags,
    };
    // SAFETY: the attributes have no pointers.
    owned(unsafe { bpf(BPF_LINK_CREATE, &attr) })
}

/// # Safety
/// `A` is the part of `union bpf_attr` for `command`, or the beginning of it, and what it points to
/// is as the command wants it.
unsafe fn bpf<A>(command: c_int, attr: &A) -> io::Result<c_int> {
    let (attr, len) = (&raw const *attr, size_of::<A>());
    // SAFETY: the kernel reads `len` bytes of the attributes, which outlive the call; the caller
    // vouches for the rest.
    checked(unsafe { libc::syscall(libc::SYS_bpf, command, attr, len) } as c_int)
}

fn owned(fd: io::Result<c_int>) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor was just made and is nobody else's.
    fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The MTU of the device `name`: bytes of IP.
pub(super) fn mtu(name: &str) -> io::Result<u32> {
    let mut request = request(name);
    configure(libc::SIOCGIFMTU as c_ulong, &mut request)?;
    // SAFETY: SIOCGIFMTU has filled in this field of the union.
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
}

/// `SIOCETHTOOL` of `linux/sockios.h`.
const SIOCETHTOOL: c_ulong = 0x8946;
// Commands and a flag of `linux/ethtool.h`.
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// Queues of the device `name` that frames can come in on.
pub(super) fn rx_queues(name: &str) -> io::Result<u32> {
    // `struct ethtool_channels`: the command, four maxima, then RX, TX, other and combined.
    let mut channels = [0; 9];
    channels[0] = ETHTOOL_GCHANNELS;
    match ethtool(name, &mut channels) {
        Ok(()) => Ok(channels[5].saturating_add(channels[8]).max(1)),
        // One that cannot have several.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(1),
        Err(e) => Err(e),
    }
}

/// Has the device `name` leave the VLAN tags in the frames. False: it refuses.
pub(super) fn leave_tags(name: &str) -> io::Result<bool> {
    let mut flags = [ETHTOOL_GFLAGS, 0];
    match ethtool(name, &mut flags) {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(true),
        Err(e) => return Err(e),
        Ok(()) if flags[1] & ETH_FLAG_RXVLAN == 0 => return Ok(true),
        Ok(()) => {}
    }
    let _refused = ethtool(name, &mut [ETHTOOL_SFLAGS, flags[1] & !ETH_FLAG_RXVLAN]);
    flags[0] = ETHTOOL_GFLAGS;
    ethtool(name, &mut flags)?;
    Ok(flags[1] & ETH_FLAG_RXVLAN == 0)
}

/// A request of ethtool, whose structure is `words`.
fn ethtool<const N: usize>(name: &str, words: &mut [u32; N]) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    configure(SIOCETHTOOL, &mut request)
}

/// A packet socket that gets no frames, but errors: the link is down, or the device is gone. As
/// long as it is open, the device takes frames for all addresses.
pub(super) fn watch(index: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: `socket` has no memory arguments.
    let fd = checked(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: the descriptor was just made and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut nothing = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let filter = libc::sock_fprog {
        len: 1,
        filter: &mut nothing,
    };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)?;
    let membership = libc::packet_mreq {
        mr_ifindex: index as c_int,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    let (level, option) = (libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP);
    set_option(&socket, level, option, &membership)?;
    // SAFETY: `sockaddr_ll` is plain old data, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    // Only one that is bound to a protocol is told of errors. This is for experiments (IEEE 802,
    // 9.2.4), so that the filter has next to nothing to do.
    address.sll_protocol = 0x88b6_u16.to_be();
    address.sll_ifindex = index as c_int;
    let len = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: `bind` reads `len` bytes of an address that outlives the call.
    checked(unsafe { libc::bind(fd, (&raw const address).cast(), len) })?;
    Ok(socket)
}

/// Has the kernel send up to `frames` frames in one call, instead of 32, where it can be told (Linux 6.17).
pub(super) fn set_budget(socket: &OwnedFd, frames: u32) {
    /// `XDP_MAX_TX_SKB_BUDGET` of `linux/if_xdp.h`.
    const XDP_MAX_TX_SKB_BUDGET: c_int = 9;
    let _unknown = set_option(socket, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &frames);
}

fn set_option<T>(socket: &OwnedFd, level: c_int, option: c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as u32;
    let value = (&raw const *value).cast();
    // SAFETY: `setsockopt` reads `len` bytes of a value that outlives the call.
    checked(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, len) })?;
    Ok(())
}
