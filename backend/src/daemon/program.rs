//! The back-end program conventions of the vhost-user specification: one VM, started by its VMM's
//! manager.

use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::args::{Args, absolute};
use crate::config::{Origin, PortConfig};
use crate::control::{Refused, RefusedKind};

/// What `--print-capabilities` prints (Backend program conventions, "vhost-user-net").
pub const CAPABILITIES: &str = r#"{"type": "net", "features": []}"#;

/// The name of the only port.
const NAME: &str = "net0";

/// The port that `--socket-path` or `--fd` asks for.
pub(super) fn port(args: &Args) -> Result<Option<PortConfig>, Refused> {
    let mut port = PortConfig::new(NAME);
    if let Some(path) = &args.socket_path {
        port.socket = Some(absolute(path, "--socket-path")?);
    } else if let Some(fd) = args.fd {
        port.socket_fd = Some(Arc::new(socket(fd)?));
    } else {
        return Ok(None);
    }
    port.origin.insert("socket", Origin::CommandLine);
    Ok(Some(port))
}

fn socket(number: RawFd) -> Result<OwnedFd, Refused> {
    let invalid = |reason: String| {
        let remedy = "pass the number of an inherited unix socket that listens or is connected";
        Refused::new(RefusedKind::Invalid, reason, remedy).about("--fd")
    };
    let fd = duplicate(number)
        .map_err(|error| invalid(format!("descriptor {number} cannot be used: {error}")))?;
    match rustix::net::sockopt::socket_type(&fd) {
        Ok(_) => Ok(fd),
        Err(_) => Err(invalid(format!("descriptor {number} is no socket"))),
    }
}

/// Another descriptor of the same file. It travels through a socket of ours, because a bare number
/// cannot be taken for a descriptor without `unsafe`.
fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    let (here, there) = UnixStream::pair()?;
    here.send_with_fd(&[0u8][..], number)?;
    let (_, file): (_, Option<File>) = there.recv_with_fd(&mut [0u8])?;
    file.map(OwnedFd::from)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}
