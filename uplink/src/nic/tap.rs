//! The host itself as a port: a TAP device with vnet header.
//!
//! The kernel's frames come out of it with their `virtio_net_hdr`, and a guest's go in with
//! theirs, so that partial checksums and segment offloads cross between host and guests as they
//! do between guests. The kernel copies; its network stack does the rest (addresses, IPv6, DHCP).

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use tandem_virtio_net::offload::Treatment;
use tandem_virtio_net::spec::*;
use tandem_virtio_net::{BURST, Batch, Counters, Direction, DropReason, Scratch, Tracepoint};

use super::kernel::{Offloads, Sent};
use super::sys;
use crate::{Mac, Outlet};

/// The device through which TAPs are made.
const TUN: &str = "/dev/net/tun";

/// `TUN_F_CSUM`, `TUN_F_TSO4`, `TUN_F_TSO6`, `TUN_F_TSO_ECN` of `linux/if_tun.h`.
const TUN_F_TCP: u32 = 1 | 2 | 4 | 8;
/// `TUN_F_USO4`, `TUN_F_USO6` of `linux/if_tun.h`.
const TUN_F_USO: u32 = 0x20 | 0x40;

/// What was tried when a device does not take its MAC address.
const SETTING_MAC: &str = "setting its MAC address";

/// Why a TAP could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No device can have this name.
    #[error(
        "\"{0}\" cannot be the name of a TAP: use 1 to 15 characters, none of them a space, \"/\", \":\" or \"%\""
    )]
    BadName(String),
    /// There is no `/dev/net/tun`.
    #[error(
        "there is no {TUN}: load the kernel module with `modprobe tun`, or give the container the device"
    )]
    NoTun,
    /// The process may not make a TAP.
    #[error("TAP {0} needs CAP_NET_ADMIN and access to {TUN}: run as root or grant the capability")]
    NotPermitted(String),
    /// Another process has the device.
    #[error("TAP {0} is in use by another program: stop it or choose another name")]
    Busy(String),
    /// There is such a device and it is no TAP, or one of another kind.
    #[error("{0} exists and is not a TAP with one queue: choose another name")]
    NotATap(String),
    /// The kernel refused the MTU.
    #[error("TAP {name} cannot have an MTU of {mtu}: use 68 to 65,521")]
    BadMtu {
        /// The device.
        name: String,
        /// What was asked for.
        mtu: u16,
    },
    /// Something else.
    #[error("TAP {name}: {what} failed ({error}): see the kernel's log")]
    Io {
        /// The device.
        name: String,
        /// What was tried.
        what: Cow<'static, str>,
        /// The kernel's answer.
        error: io::Error,
    },
}

impl TapError {
    /// Is it about the MAC address?
    pub fn is_about_mac(&self) -> bool {
        matches!(self, Self::Io { what, .. } if what == SETTING_MAC)
    }
}

/// An open TAP device, set up. All that takes privilege is done; it may be sent to another process.
#[derive(Debug)]
pub struct TapDevice {
    /// What frames are read from and written to; does not block.
    pub file: File,
    /// Whether the kernel takes frames that are yet to be cut into UDP packets.
    pub uso: bool,
}

impl TapDevice {
    /// Makes the device `name`, or attaches to it if it is there and free, and sets its link up.
    /// `mtu` is in bytes of IP; without `mac` the kernel makes an address up.
    ///
    /// # Errors
    /// [`TapError`], which says what to do.
    pub fn open(name: &str, mtu: u16, mac: Option<Mac>) -> Result<Self, TapError> {
        check_name(name)?;
        let file = open_tun(name)?;
        sys::attach_tap(&file, name, NET_HDR_LEN).map_err(|e| attach_error(name, e))?;
        let failed = |what: &'static str| {
            move |error| TapError::Io {
                name: name.to_owned(),
                what: what.into(),
                error,
            }
        };
        let uso = sys::set_offloads(&file, TUN_F_TCP | TUN_F_USO).is_ok();
        if !uso {
            sys::set_offloads(&file, TUN_F_TCP).map_err(failed("setting its offloads"))?;
        }
        sys::set_mtu(name, mtu).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => TapError::BadMtu {
                name: name.to_owned(),
                mtu,
            },
            _ => failed("setting its MTU")(error),
        })?;
        if let Some(mac) = mac {
            sys::set_mac(name, mac.0).map_err(failed(SETTING_MAC))?;
        }
        sys::set_up(name).map_err(failed("setting its link up"))?;
        Ok(Self { file, uso })
    }
}

/// A TAP device of the host. It goes away when this is dropped, unless it was made persistent
/// beforehand.
pub struct Tap {
    file: File,
    name: String,
    from_vm: Arc<Counters>,
    to_vm: Arc<Counters>,
    offloads: Offloads,
    tracepoint: Option<Arc<Tracepoint>>,
}

impl Tap {
    /// Own bytes of a batch for [`Tap::read`]: a full burst of small frames, or several of
    /// 64 KiB.
    pub const BATCH_BYTES: usize = 512 * 1024;

    /// [`TapDevice::open`] and [`Tap::new`] in one.
    ///
    /// # Errors
    /// [`TapError`], which says what to do.
    pub fn open(name: &str, mtu: u16) -> Result<Self, TapError> {
        Ok(Self::new(name, TapDevice::open(name, mtu, None)?))
    }

    /// A port on a device that was opened here or by another process.
    pub fn new(name: &str, device: TapDevice) -> Self {
        let TapDevice { file, uso } = device;
        Self {
            file,
            name: name.to_owned(),
            from_vm: Arc::default(),
            to_vm: Arc::default(),
            offloads: Offloads::new(uso),
            tracepoint: None,
        }
    }

    /// The same, whose frames to the host can be watched.
    #[must_use]
    pub fn watched(self, tracepoint: Arc<Tracepoint>) -> Self {
        let tracepoint = Some(tracepoint);
        Self { tracepoint, ..self }
    }

    /// Is its link up? Somebody else may have set it down, or removed the device.
    pub fn link_is_up(&self) -> bool {
        sys::is_up(&self.name).unwrap_or(false)
    }

    /// The same, which goes on counting where another has left off.
    #[must_use]
    pub fn counting(self, received: Arc<Counters>, sent: Arc<Counters>) -> Self {
        Self {
            from_vm: received,
            to_vm: sent,
            ..self
        }
    }

    /// The name of the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Frames from the host into the switch: those read, and those that the switch drops.
    pub fn from_vm(&self) -> &Arc<Counters> {
        &self.from_vm
    }

    /// Frames to the host.
    pub fn to_vm(&self) -> &Arc<Counters> {
        &self.to_vm
    }

    /// Frames that were cut up because the kernel does not take them whole, and the segments
    /// written for them.
    pub fn segmented(&self) -> (u64, u64) {
        self.offloads.segmented()
    }

    /// Reads frames until there are none, or `batch` is full; how many. `batch` has own bytes,
    /// best [`Tap::BATCH_BYTES`]. Frames that are no Ethernet frames are dropped and counted.
    ///
    /// # Errors
    /// Of `read(2)`, and only when no frame was read; never `WouldBlock`.
    pub fn read(&self, batch: &mut Batch) -> io::Result<usize> {
        let (mut frames, mut bytes, mut tries) = (0, 0, BURST);
        while let Some(room) = batch.own_room()
            && tries > 0
        {
            tries -= 1;
            match (&self.file).read(room) {
                Ok(n) => {
                    frames += 1;
                    bytes += n.saturating_sub(NET_HDR_LEN) as u64;
                    if let Err(reason) = batch.push_own(n) {
                        self.from_vm.count_drop(reason, 1);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if frames == 0 => return Err(e),
                Err(_) => break,
            }
        }
        self.from_vm.add(frames, bytes);
        Ok(batch.len())
    }

    /// Writes a frame as the kernel takes it; the frames and bytes that became of it.
    fn write(&self, batch: &mut Batch, i: usize, scratch: &mut Scratch) -> Sent {
        match self.offloads.treatment(batch, i) {
            Treatment::AsIs => {
                let hdr = self.offloads.prepare(batch, i);
                let sent = Sent::of(sys::write_frame(&self.file, batch, i), batch.frame_len(i));
                batch.set_hdr(i, hdr);
                sent
            }
            treatment => self
                .offloads
                .complete(treatment, batch, i, scratch, |bytes| {
                    (&self.file).write(bytes).map(drop)
                }),
        }
    }
}

impl Tap {
    /// Writes frames, and counts each as written or dropped.
    pub(super) fn write_all(&self, batch: &mut Batch, frames: &[u8], scratch: &mut Scratch) {
        let mut sent = Sent::default();
        for &i in frames {
            let of_one = self.write(batch, i.into(), scratch);
            if let Some(reason) = of_one.dropped() {
                batch.set_end(i.into(), reason);
            }
            sent.add(of_one);
        }
        self.to_vm.add(sent.frames, sent.bytes);
        self.to_vm.count_drop(DropReason::HostRefused, sent.refused);
        self.to_vm
            .count_drop(DropReason::OffloadFailed, sent.offload_failed);
    }
}

impl Outlet for Tap {
    fn deliver(&self, batch: &mut Batch, frames: &[u8], scratch: &mut Scratch) {
        let trace = self.tracepoint.as_ref().and_then(|t| t.start(batch));
        self.write_all(batch, frames, scratch);
        if let Some(trace) = trace {
            trace.see(Direction::ToVm, batch, frames);
        }
    }

    /// The kernel says no itself, frame by frame, when the link is down.
    fn ready(&self) -> bool {
        true
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Checks what the kernel would take as a pattern, cut off or refuse without saying why.
fn check_name(name: &str) -> Result<(), TapError> {
    let bad = |b: u8| b.is_ascii_whitespace() || b.is_ascii_control() || b"/:%".contains(&b);
    let len_ok = (1..sys::NAME_SIZE).contains(&name.len());
    if !len_ok || name.bytes().any(bad) || name == "." || name == ".." {
        return Err(TapError::BadName(name.to_owned()));
    }
    Ok(())
}

fn open_tun(name: &str) -> Result<File, TapError> {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(TUN);
    file.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoTun,
        Some(libc::EACCES | libc::EPERM) => TapError::NotPermitted(name.to_owned()),
        _ => TapError::Io {
            name: name.to_owned(),
            what: "opening /dev/net/tun".into(),
            error,
        },
    })
}

fn attach_error(name: &str, error: io::Error) -> TapError {
    let name = name.to_owned();
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted(name),
        Some(libc::EBUSY) => TapError::Busy(name),
        Some(libc::EINVAL) => TapError::NotATap(name),
        _ => TapError::Io {
            name,
            what: "making the device".into(),
            error,
        },
    }
}

#[cfg(test)]
#[path = "tap_tests.rs"]
mod tests;
