//! The requests, one by one. This is all that runs with privileges.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};
use tandem_uplink::nic::af_packet::{AfPacket, PacketSockets};
use tandem_uplink::nic::af_xdp::AfXdpDevice;
use tandem_uplink::{Mac, TapDevice};

use super::listen::{self, Made};
use super::protocol::{Done, FDS_MAX, Failure, Request};

/// Bytes of a path that fit into a socket address with their NUL (unix(7)).
const PATH_MAX: usize = 107;

/// Does what is asked, and remembers the sockets it has made.
#[derive(Debug, Default)]
pub(super) struct Handler {
    sockets: BTreeMap<u32, Made>,
    next: u32,
}

impl Handler {
    /// Does one thing; what comes of it may have a descriptor.
    pub(super) fn handle(&mut self, request: Request) -> Result<(Done, Vec<OwnedFd>), Failure> {
        match request {
            Request::Tap { name, mtu, mac } => {
                let TapDevice { file, uso } = TapDevice::open(&name, mtu, mac.map(Mac))?;
                Ok((Done::Tap { uso }, vec![file.into()]))
            }
            Request::Packet { name } => {
                let PacketSockets {
                    receive,
                    send,
                    ring,
                } = AfPacket::open_sockets(&name)?;
                let fds = [receive, send, ring].map(OwnedFd::from);
                Ok((Done::Packet, fds.into()))
            }
            Request::Xdp { name } => {
                let device = AfXdpDevice::open(&name, &[])?;
                if 3 + 2 * device.sockets.len() > FDS_MAX {
                    let words = format!("{name} has more queues than {}", (FDS_MAX - 3) / 2);
                    return Err(Failure::Refused(words));
                }
                let done = Done::Xdp {
                    chunk: device.chunk,
                    mode: device.mode.into(),
                };
                let mut fds = vec![device.link, device.watch, device.memory];
                fds.extend(device.sockets);
                fds.extend(device.senders);
                Ok((done, fds))
            }
            Request::Listen {
                path,
                permissions,
                group,
            } => {
                let (socket, made) =
                    listen::listen(&checked(&path)?, permissions, group.as_deref())?;
                let number = self.next;
                self.next += 1;
                self.sockets.insert(number, made);
                Ok((Done::Listening { number }, vec![socket]))
            }
            Request::Remove { number } => match self.sockets.remove(&number) {
                Some(made) => {
                    made.remove();
                    Ok((Done::Removed, Vec::new()))
                }
                None => Err(Failure::Refused(format!("there is no socket {number}"))),
            },
            Request::Connect { path } => {
                let socket = listen::connect(&checked(&path)?)?;
                Ok((Done::Connected, vec![socket]))
            }
            Request::IsPrivate {
                process,
                device,
                inode,
            } => {
                let private = is_private(process, device, inode);
                Ok((Done::Private(private), Vec::new()))
            }
        }
    }
}

/// A path that can be that of a socket.
fn checked(bytes: &[u8]) -> Result<PathBuf, Failure> {
    let path = Path::new(OsStr::from_bytes(bytes));
    if bytes.len() > PATH_MAX || bytes.contains(&0) {
        return Err(Failure::Refused("that is no socket's path".to_owned()));
    }
    if !path.is_absolute() || path.file_name().is_none() {
        return Err(Failure::Refused("the path is not absolute".to_owned()));
    }
    Ok(path.to_owned())
}

/// Are all mappings of this file in that process private ones, and is there one?
fn is_private(process: u32, device: u64, inode: u64) -> bool {
    let Ok(maps) = File::open(format!("/proc/{process}/maps")) else {
        return false;
    };
    let device = format!("{:02x}:{:02x}", major(device), minor(device));
    let inode = inode.to_string();
    // start-end permissions offset device inode path (proc_pid_maps(5))
    let lines = BufReader::new(maps).split(b'\n').map_while(Result::ok);
    let mut kinds = lines.filter_map(|line| {
        let line = String::from_utf8_lossy(&line);
        let fields: Vec<_> = line.split_ascii_whitespace().take(5).collect();
        let here =
            fields.get(3) == Some(&device.as_str()) && fields.get(4) == Some(&inode.as_str());
        here.then(|| fields[1].ends_with('p'))
    });
    kinds
        .next()
        .is_some_and(|first| first && kinds.all(|private| private))
}
