//! Unix sockets in the file system.
//!
//! Whoever may write to a directory may put something else in a socket's place at any moment. So
//! nothing is done to a path that could hit another file: the directory is opened once, and the
//! file that `bind` has made is opened, looked at, and changed by its descriptor.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, chmod, chownat, fstat, open, openat, statat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect as connect_socket,
    listen as listen_on, socket_with,
};

use super::protocol::Failure;
use crate::sys;

/// Connections that may wait to be accepted. All but one are refused anyway.
const BACKLOG: i32 = 16;

/// A socket's file.
#[derive(Debug)]
pub(super) struct Made {
    path: PathBuf,
    identity: (u64, u64),
}

impl Made {
    /// Removes it, unless another one is there by now.
    pub(super) fn remove(self) {
        let Ok((directory, name)) = split(&self.path) else {
            return;
        };
        let there = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW);
        if there.is_ok_and(|stat| identity(&stat) == self.identity) {
            let _ = unlinkat(&directory, name, AtFlags::empty());
        }
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// The directory of a path, open, and the name in it.
fn split(path: &Path) -> Result<(OwnedFd, &OsStr), Failure> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Failure::NotASocket);
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((open(parent, flags, Mode::empty())?, name))
}

/// Listens at `path`. A socket can be connected to only once it listens, so permissions and group
/// are set before that.
pub(super) fn listen(
    path: &Path,
    permissions: u32,
    group: Option<&str>,
) -> Result<(OwnedFd, Made), Failure> {
    let group = match group {
        Some(name) => Some(Gid::from_raw(sys::group_id(name).ok_or(Failure::NoGroup)?)),
        None => None,
    };
    let (directory, name) = split(path)?;
    // By way of the directory's descriptor, if that fits.
    let here = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
    let here = SocketAddrUnix::new(here.join(name)).or_else(|_| SocketAddrUnix::new(path))?;
    let socket = socket()?;
    match bind(&socket, &here) {
        Err(Errno::ADDRINUSE) => {
            remove_stale(&directory, name, &here)?;
            bind(&socket, &here)?;
        }
        other => other?,
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&directory, name, flags, Mode::empty())?;
    let stat = fstat(&file)?;
    let made = Made {
        path: path.to_owned(),
        identity: identity(&stat),
    };
    let finished = finish(&socket, &file, &stat, permissions, group);
    match finished {
        Ok(()) => Ok((socket, made)),
        Err(failure) => {
            made.remove();
            Err(failure)
        }
    }
}

/// Gives the file that `bind` has made its owner and permissions.
fn finish(
    socket: &OwnedFd,
    file: &OwnedFd,
    stat: &Stat,
    permissions: u32,
    group: Option<Gid>,
) -> Result<(), Failure> {
    // With one name only: not another socket that was moved here.
    let ours = is_socket(stat) && stat.st_nlink == 1;
    if !ours || stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(Failure::NotASocket);
    }
    if group.is_some() {
        chownat(file, c"", None, group, AtFlags::EMPTY_PATH)?;
    }
    let file = format!("/proc/self/fd/{}", file.as_raw_fd());
    chmod(file, Mode::from_raw_mode(permissions & 0o777))?;
    Ok(listen_on(socket, BACKLOG)?)
}

fn is_socket(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Socket
}

/// Removes a socket that nobody listens at any more; anything else is somebody's.
fn remove_stale(directory: &OwnedFd, name: &OsStr, here: &SocketAddrUnix) -> Result<(), Failure> {
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if !is_socket(&stat) {
        return Err(Failure::NotASocket);
    }
    match connect_to(here) {
        Err(Errno::CONNREFUSED) => Ok(unlinkat(directory, name, AtFlags::empty())?),
        _ => Err(Failure::InUse),
    }
}

fn socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Connects without ever waiting.
pub(super) fn connect(path: &Path) -> rustix::io::Result<OwnedFd> {
    connect_to(&SocketAddrUnix::new(path)?)
}

fn connect_to(address: &SocketAddrUnix) -> rustix::io::Result<OwnedFd> {
    let socket = socket()?;
    connect_socket(&socket, address)?;
    Ok(socket)
}
