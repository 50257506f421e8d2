//! The API's socket in the file system.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::config::check::{API_SOCKET, SOCKET_PATH_MAX};
use crate::control::{Refused, RefusedKind};

/// The group that may use the API, if the host has it.
const GROUP: &str = "tandem";

/// A listening `api.sock`, removed when dropped.
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ApiSocket {
    /// Makes `api.sock` in `run_dir`, for its owner and the group `tandem`. One that a daemon left
    /// behind when it was killed is replaced.
    ///
    /// # Errors
    /// `Conflict` if somebody answers there, `Invalid` if the path is too long, `System` if the
    /// directory cannot be written.
    pub fn open(run_dir: &Path) -> Result<Self, Refused> {
        let path = run_dir.join(API_SOCKET);
        let bytes = path.as_os_str().as_bytes().len();
        if bytes > SOCKET_PATH_MAX {
            let reason = format!("{} has {bytes} bytes", path.display());
            let remedy =
                format!("a socket's path has at most {SOCKET_PATH_MAX}: use a shorter one");
            return Err(Refused::new(RefusedKind::Invalid, reason, remedy).about("--run-dir"));
        }
        refuse_living(&path)?;
        let failed = |error: io::Error| {
            let reason = format!("cannot make {}: {error}", path.display());
            let remedy = "check the directory's owner and permissions, or choose another";
            Refused::new(RefusedKind::System, reason, remedy).about("--run-dir")
        };
        // Nobody can connect before owner and permissions are right, and a dead socket is replaced
        // in one step.
        let beside = run_dir.join("api.new");
        let _ = fs::remove_file(&beside);
        let listener = UnixListener::bind(&beside).map_err(failed)?;
        let placed = permit(&beside).and_then(|()| fs::rename(&beside, &path));
        if let Err(error) = placed {
            let _ = fs::remove_file(&beside);
            return Err(failed(error));
        }
        Ok(Self { listener, path })
    }

    /// The socket, not blocking.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.set_nonblocking(true)?;
        self.listener.try_clone()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Tells a socket that nobody listens on from everything else that may be there.
fn refuse_living(path: &Path) -> Result<(), Refused> {
    let conflict = |reason: String, remedy: &str| {
        Err(Refused::new(RefusedKind::Conflict, reason, remedy).about("--run-dir"))
    };
    match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(meta) if !meta.file_type().is_socket() => {
            conflict(format!("{} is no socket", path.display()), "move it away")
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            let reason = format!("a daemon answers on {}", path.display());
            conflict(reason, "stop it, or choose another directory")
        }
        Ok(_) => Ok(()),
    }
}

fn permit(path: &Path) -> io::Result<()> {
    if let Some(group) = group_id(GROUP)
        && let Err(error) = chown(path, None, Some(group))
    {
        log::warn!("api.sock cannot be given to group {GROUP}: {error}");
    }
    fs::set_permissions(path, Permissions::from_mode(0o660))
}

/// The number of a group of this host, from group(5).
fn group_id(name: &str) -> Option<u32> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        fields.nth(1)?.parse().ok()
    })
}
