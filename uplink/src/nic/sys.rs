//! The system calls of the drivers, each behind a safe function.
#![allow(unsafe_code)] // the one place of this crate that has it

use std::fs::File;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{c_int, c_short, c_uint, c_ulong, ifreq};
use tandem_virtio_net::Batch;

/// Bytes of a device name with its final zero (Linux `IFNAMSIZ`).
pub(super) const NAME_SIZE: usize = libc::IFNAMSIZ;
/// Most buffers of one frame: more are not collected for one.
const MAX_BUFFERS: usize = 320;

/// `TUNSETVNETHDRSZ` of `linux/if_tun.h`.
const TUNSETVNETHDRSZ: c_ulong = 0x4004_54d8;
/// `TUNSETOFFLOAD` of `linux/if_tun.h`.
const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;

pub(super) fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

pub(super) fn request(name: &str) -> ifreq {
    // SAFETY: `ifreq` is plain old data, for which zero is a value.
    let mut request: ifreq = unsafe { zeroed() };
    // The last byte stays zero, whatever the length of the name.
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(name.bytes().take(NAME_SIZE - 1))
    {
        *to = from as libc::c_char;
    }
    request
}

/// Makes `file`, which is `/dev/net/tun`, the TAP device `name` with a vnet header of
/// `header_len` bytes in front of each frame.
pub(super) fn attach_tap(file: &File, name: &str, header_len: usize) -> io::Result<()> {
    let mut request = request(name);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as c_ulong, &mut request) })?;
    let len = header_len as c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one `int`, which outlives the call.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &len) })?;
    Ok(())
}

/// Sets the offloads (`TUN_F_*`) that the kernel may leave to whoever reads from the device.
pub(super) fn set_offloads(file: &File, offloads: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, c_ulong::from(offloads)) })?;
    Ok(())
}

/// Sets the MTU of the device `name`.
pub(super) fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_mtu = mtu.into();
    configure(libc::SIOCSIFMTU as c_ulong, &mut request)
}

/// Sets the link of the device `name` up.
pub(super) fn set_up(name: &str) -> io::Result<()> {
    let mut request = request(name);
    configure(libc::SIOCGIFFLAGS as c_ulong, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has filled in this field of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as c_short;
    configure(libc::SIOCSIFFLAGS as c_ulong, &mut request)
}

/// Is the link of the device `name` set up?
pub(super) fn is_up(name: &str) -> io::Result<bool> {
    let mut request = request(name);
    configure(libc::SIOCGIFFLAGS as c_ulong, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has filled in this field of the union.
    Ok(unsafe { request.ifr_ifru.ifru_flags } & libc::IFF_UP as c_short != 0)
}

/// Gives the device `name` a MAC address.
pub(super) fn set_mac(name: &str, mac: [u8; 6]) -> io::Result<()> {
    let mut request = request(name);
    // SAFETY: `sockaddr` is plain old data, for which zero is a value.
    let mut address: libc::sockaddr = unsafe { zeroed() };
    address.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in address.sa_data.iter_mut().zip(mac) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = address;
    configure(libc::SIOCSIFHWADDR as c_ulong, &mut request)
}

pub(super) fn configure(what: c_ulong, request: &mut ifreq) -> io::Result<()> {
    // SAFETY: `socket` has no memory arguments.
    let fd =
        checked(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just made and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: every request passed here reads or writes one `ifreq`, which outlives the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), what, request) })?;
    Ok(())
}

/// Writes frame `i` of `batch` with its vnet header, in one call.
pub(super) fn write_frame(file: &File, batch: &mut Batch, i: usize) -> io::Result<()> {
    let mut buffers = [libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    }; MAX_BUFFERS];
    let mut n = 0;
    batch.io_slices(i, |base, len| {
        if let Some(buffer) = buffers.get_mut(n) {
            *buffer = libc::iovec {
                iov_base: base.cast_mut().cast(),
                iov_len: len,
            };
        }
        n += 1;
    });
    if n > MAX_BUFFERS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the first `n` buffers are set, and stay valid until `Batch::clear`, for which the
    // batch is borrowed. `writev` only reads them; where a guest changes or its memory lacks a
    // page, the kernel copies what is there or returns EFAULT.
    let written = unsafe { libc::writev(file.as_raw_fd(), buffers.as_ptr(), n as c_int) };
    if written < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
pub(super) use self::testing::{PacketSocket, is_readable, leave_network, wait_readable};

/// The host's side of a device, for tests.
#[cfg(test)]
mod testing {
    use std::io::{Read, Write};
    use std::os::fd::BorrowedFd;

    use super::*;

    /// Waits until there is something to read.
    ///
    /// # Panics
    /// After 30 s: something is wrong.
    pub(in crate::nic) fn wait_readable(fd: BorrowedFd<'_>) {
        assert!(is_readable(&[fd], 30_000), "a frame comes");
    }

    /// Is there something to read on any of them, at the latest after so many milliseconds?
    pub(in crate::nic) fn is_readable(fds: &[BorrowedFd<'_>], milliseconds: c_int) -> bool {
        let polled = fds.iter().map(|fd| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        let mut polled: Vec<_> = polled.collect();
        let n = polled.len() as libc::nfds_t;
        // SAFETY: `poll` reads and writes `n` of `pollfd`, which outlive the call.
        unsafe { libc::poll(polled.as_mut_ptr(), n, milliseconds) > 0 }
    }

    /// Gives this thread, and the processes it starts, a network without any devices of the host's.
    pub(in crate::nic) fn leave_network() -> io::Result<()> {
        // SAFETY: `unshare` has no memory arguments.
        checked(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
        Ok(())
    }

    /// Sends and receives frames of the experimental EtherType and of IPv4 on one device.
    pub(in crate::nic) struct PacketSocket(File);

    impl PacketSocket {
        pub(in crate::nic) fn bind(device: &str) -> io::Result<Self> {
            let all = (libc::ETH_P_ALL as u16).to_be();
            // SAFETY: `socket` has no memory arguments.
            let fd = checked(unsafe {
                libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0)
            })?;
            // SAFETY: the descriptor was just made and is nobody else's.
            let file = unsafe { File::from_raw_fd(fd) };
            let name = request(device);
            // SAFETY: the name in the request ends with a zero.
            let index = unsafe { libc::if_nametoindex(name.ifr_name.as_ptr()) };
            // SAFETY: `sockaddr_ll` is plain old data, for which zero is a value.
            let mut address: libc::sockaddr_ll = unsafe { zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = all;
            address.sll_ifindex = index as c_int;
            let len = size_of::<libc::sockaddr_ll>() as u32;
            // SAFETY: `bind` reads `len` bytes of an address that outlives the call.
            checked(unsafe { libc::bind(fd, (&raw const address).cast(), len) })?;
            Ok(Self(file))
        }

        pub(in crate::nic) fn send(&self, frame: &[u8]) {
            assert_eq!((&self.0).write(frame).unwrap(), frame.len());
        }

        /// The next frame that a test sent.
        pub(in crate::nic) fn receive(&self) -> Vec<u8> {
            use std::os::fd::AsFd;
            let mut frame = vec![0; 65_536];
            loop {
                wait_readable(self.0.as_fd());
                let n = (&self.0).read(&mut frame).unwrap();
                if matches!(frame[12..14], [0x88, 0xb5] | [8, 0])
                    && frame[6..12] == [2, 0, 0, 0, 0, 2]
                {
                    frame.truncate(n);
                    return frame;
                }
            }
        }
    }
}
