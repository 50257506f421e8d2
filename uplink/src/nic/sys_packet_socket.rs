//! Packet sockets with vnet headers (packet(7)): opened, and frames through their queues.
#![allow(unsafe_code)] // see `sys.rs`

use std::fs::File;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd};

use libc::{c_int, c_uint};
use tandem_virtio_net::spec::*;
use tandem_virtio_net::{BURST, Batch};

use super::sys::{checked, request};
use super::{sys_packet, sys_packet_tx};

/// Bytes of the vnet header of a packet socket: without `num_buffers` (packet(7), PACKET_VNET_HDR).
pub(super) const PACKET_HDR_LEN: usize = 10;
/// `PACKET_IGNORE_OUTGOING` of `linux/if_packet.h`.
const PACKET_IGNORE_OUTGOING: c_int = 23;
/// Bytes of frames that wait at a packet socket because they are too long for its ring: some of 64 KiB
/// (socket(7), `SO_RCVBUF`).
const LONG_FRAMES: c_int = 8 << 20;
/// Buffers of one call of `sendmmsg`.
const SEND_BUFFERS: usize = 512;

/// Three packet sockets on one device, of which each does one thing: what is sent by a socket wakes, when
/// it has left, whoever waits for frames at the same one.
#[derive(Debug)]
pub struct PacketSockets {
    /// For all frames that come in, with a ring of them in memory.
    pub receive: File,
    /// To send frames by calls.
    pub send: File,
    /// To send frames out of a ring in memory.
    pub ring: File,
}

impl PacketSockets {
    /// On the device `name`, which takes frames for any address from now on, with vnet headers.
    pub(super) fn open(name: &str) -> io::Result<Self> {
        let request = request(name);
        // SAFETY: the name in the request ends with a zero.
        let index = unsafe { libc::if_nametoindex(request.ifr_name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        let index = index as c_int;
        let [send, ring] = [open_socket()?, open_socket()?];
        sys_packet_tx::set_up_ring(&ring)?;
        // Without a protocol nothing comes by them.
        bind(&send, index, 0)?;
        bind(&ring, index, 0)?;
        Ok(Self {
            receive: open_receiver(index)?,
            send,
            ring,
        })
    }
}

/// A packet socket with vnet headers that is bound to nothing: with no protocol it gets nothing until it
/// is, and so nothing from other devices.
fn open_socket() -> io::Result<File> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: `socket` has no memory arguments.
    let fd = checked(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: the descriptor was just made and is nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    set_packet_option(&file, libc::PACKET_VNET_HDR, &1 as &c_int)?;
    Ok(file)
}

fn open_receiver(index: c_int) -> io::Result<File> {
    let file = open_socket()?;
    for option in [libc::PACKET_AUXDATA, PACKET_IGNORE_OUTGOING] {
        set_packet_option(&file, option, &1 as &c_int)?;
    }
    set_receive_buffer(&file)?;
    sys_packet::set_up_ring(&file)?;
    let membership = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_packet_option(&file, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
    bind(&file, index, libc::ETH_P_ALL as u16)?;
    Ok(file)
}

fn bind(file: &File, index: c_int, protocol: u16) -> io::Result<()> {
    // SAFETY: `sockaddr_ll` is plain old data, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index;
    let len = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: `bind` reads `len` bytes of an address that outlives the call.
    checked(unsafe { libc::bind(file.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(())
}

pub(super) fn set_packet_option<T>(file: &File, option: c_int, value: &T) -> io::Result<()> {
    set_option(file, libc::SOL_PACKET, option, value)
}

/// Lets long frames wait until they are read, also where the host limits others to less (`rmem_max`).
fn set_receive_buffer(file: &File) -> io::Result<()> {
    let bytes = LONG_FRAMES;
    set_option(file, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)
        .or_else(|_| set_option(file, libc::SOL_SOCKET, libc::SO_RCVBUF, &bytes))
}

fn set_option<T>(file: &File, level: c_int, option: c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as u32;
    let value = (&raw const *value).cast();
    // SAFETY: `setsockopt` reads `len` bytes of a value that outlives the call.
    checked(unsafe { libc::setsockopt(file.as_raw_fd(), level, option, value, len) })?;
    Ok(())
}

/// Frames that the kernel has dropped at a packet socket since it was asked last (packet(7),
/// `PACKET_STATISTICS`).
pub(super) fn packet_drops(file: &File) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut len = size_of::<libc::tpacket_stats>() as u32;
    let (level, option) = (libc::SOL_PACKET, libc::PACKET_STATISTICS);
    let value = (&raw mut statistics).cast();
    // SAFETY: `getsockopt` writes up to `len` bytes of a value that outlives the call.
    checked(unsafe { libc::getsockopt(file.as_raw_fd(), level, option, value, &raw mut len) })?;
    Ok(statistics.tp_drops)
}

/// A frame that was received.
#[derive(Clone, Copy, Default)]
pub(super) struct Received {
    /// Bytes in its room, with a vnet header of 12 bytes in front.
    pub(super) len: usize,
    /// The tag that the kernel has taken out of it, if it is one of IEEE 802.1Q.
    pub(super) tag: Option<u16>,
    /// It did not fit, or had another tag.
    pub(super) unusable: bool,
}

/// The error that waits at a socket of which no frame is received, if there is one: its link is
/// down, or the device is gone. It is told once.
pub(super) fn waiting_error(file: &File) -> io::Result<()> {
    // A frame may have come meanwhile. It stays, and without room for its vnet header that is an error.
    let mut room = [0_u8; PACKET_HDR_LEN];
    let mut buffer = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len(),
    };
    // SAFETY: plain old data, for which zero is a value.
    let mut message: libc::mmsghdr = unsafe { zeroed() };
    (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (&raw mut buffer, 1);
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    let (fd, forever) = (file.as_raw_fd(), std::ptr::null_mut());
    // SAFETY: one message, which with its buffer outlives the call.
    let got = unsafe { libc::recvmmsg(fd, &raw mut message, 1, flags, forever) };
    match checked(got) {
        Err(e) if !matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Err(e),
        _ => Ok(()),
    }
}

/// Receives frames into `room`, the first at its start, each further `stride` bytes on, as many as there is
/// place for in `frames`, which is [`BURST`] at most. Never blocks.
pub(super) fn receive_frames(
    file: &File,
    room: &mut [u8],
    stride: usize,
    frames: &mut [Received],
) -> io::Result<usize> {
    const HDR: usize = NET_HDR_LEN;
    let rooms = room.chunks_exact_mut(stride).take(frames.len().min(BURST));
    // SAFETY: all of these are plain old data, for which zero is a value.
    let (mut messages, mut buffers, mut control): (
        [libc::mmsghdr; BURST],
        [[libc::iovec; 2]; BURST],
        [Control; BURST],
    ) = unsafe { (zeroed(), zeroed(), zeroed()) };
    let mut n = 0;
    for room in rooms {
        // What the header does not have.
        room[PACKET_HDR_LEN..HDR].fill(0);
        let (hdr, frame) = room.split_at_mut(HDR);
        buffers[n] =
            [(hdr, PACKET_HDR_LEN), (frame, stride - HDR)].map(|(part, len)| libc::iovec {
                iov_base: part.as_mut_ptr().cast(),
                iov_len: len,
            });
        let message = &mut messages[n].msg_hdr;
        message.msg_iov = buffers[n].as_mut_ptr();
        message.msg_iovlen = 2;
        message.msg_control = control[n].0.as_mut_ptr().cast();
        message.msg_controllen = size_of::<Control>();
        n += 1;
    }
    // SAFETY: the first `n` messages are set; what they point to is in `room`, `buffers` and `control`,
    // which are borrowed or ours, and outlive the call.
    let got = unsafe {
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        libc::recvmmsg(
            file.as_raw_fd(),
            messages.as_mut_ptr(),
            n as c_uint,
            flags,
            std::ptr::null_mut(),
        )
    };
    let got = checked(got)? as usize;
    for (frame, message) in frames.iter_mut().zip(&messages[..got]) {
        let len = message.msg_len as usize + HDR - PACKET_HDR_LEN;
        let tag = tag_of(&message.msg_hdr);
        *frame = Received {
            len,
            tag: tag.ok().flatten(),
            unusable: len > stride || tag.is_err(),
        };
    }
    Ok(got)
}

/// Room for one `tpacket_auxdata`.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 64]);

/// The tag of IEEE 802.1Q that the kernel has taken out of a frame; an error if it is another one.
fn tag_of(message: &libc::msghdr) -> Result<Option<u16>, ()> {
    // SAFETY: the kernel has filled in the control messages that `message` points to.
    let first = unsafe { libc::CMSG_FIRSTHDR(message) };
    if first.is_null() {
        return Ok(None);
    }
    // SAFETY: it is not null, and so a whole header.
    let header = unsafe { &*first };
    // SAFETY: `CMSG_LEN` only calculates.
    let whole = unsafe { libc::CMSG_LEN(size_of::<libc::tpacket_auxdata>() as u32) } as usize;
    let kind = (header.cmsg_level, header.cmsg_type);
    if kind != (libc::SOL_PACKET, libc::PACKET_AUXDATA) || (header.cmsg_len as usize) < whole {
        return Ok(None);
    }
    // SAFETY: the message is long enough for what its kind says it holds.
    let auxdata: libc::tpacket_auxdata = unsafe {
        libc::CMSG_DATA(first)
            .cast::<libc::tpacket_auxdata>()
            .read_unaligned()
    };
    if auxdata.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return Ok(None);
    }
    let named = auxdata.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    match auxdata.tp_vlan_tpid {
        0x8100 => Ok(Some(auxdata.tp_vlan_tci)),
        _ if !named => Ok(Some(auxdata.tp_vlan_tci)),
        _ => Err(()),
    }
}

/// Sends frames of `batch` as they are, without waiting; how many, from the first.
pub(super) fn send_frames(file: &File, batch: &mut Batch, frames: &[u8]) -> io::Result<usize> {
    // SAFETY: both are plain old data, for which zero is a value.
    let (mut messages, mut buffers): ([libc::mmsghdr; BURST], [libc::iovec; SEND_BUFFERS]) =
        unsafe { (zeroed(), zeroed()) };
    let (mut n, mut used) = (0, 0);
    for &i in frames.iter().take(BURST) {
        let start = used;
        let mut fits = true;
        batch.io_slices(i.into(), |base, len| {
            // The first has the vnet header, of which the socket takes less.
            let (first, rest) = if used == start {
                let frame = (NET_HDR_LEN, len - NET_HDR_LEN);
                ((0, PACKET_HDR_LEN), Some(frame))
            } else {
                ((0, len), None)
            };
            for (at, len) in [first].into_iter().chain(rest) {
                match buffers.get_mut(used) {
                    Some(buffer) => {
                        buffer.iov_base = base.wrapping_add(at).cast_mut().cast();
                        buffer.iov_len = len;
                        used += 1;
                    }
                    None => fits = false,
                }
            }
        });
        if !fits {
            break;
        }
        let message = &mut messages[n].msg_hdr;
        message.msg_iov = buffers[start..].as_mut_ptr();
        message.msg_iovlen = used - start;
        n += 1;
    }
    if n == 0 {
        // One frame of more pieces than there is room for.
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: the first `n` messages are set, and point to buffers that stay valid until
    // `Batch::clear`, for which the batch is borrowed. The call only reads them; where a guest changes
    // or its memory lacks a page, the kernel copies what is there or returns EFAULT.
    let sent =
        unsafe { libc::sendmmsg(file.as_raw_fd(), messages.as_mut_ptr(), n as c_uint, flags) };
    Ok(checked(sent)? as usize)
}

/// Sends one frame that is in one piece, with a vnet header of 12 bytes in front, without waiting.
pub(super) fn send_bytes(file: &File, bytes: &[u8]) -> io::Result<()> {
    let part = |at: usize, len: usize| libc::iovec {
        iov_base: bytes[at..].as_ptr().cast_mut().cast(),
        iov_len: len,
    };
    let buffers = [
        part(0, PACKET_HDR_LEN),
        part(NET_HDR_LEN, bytes.len() - NET_HDR_LEN),
    ];
    // SAFETY: `writev` only reads the two buffers, which are borrowed.
    let written = unsafe { libc::writev(file.as_raw_fd(), buffers.as_ptr(), 2) };
    if written < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
