//! A control group (cgroup v2) for the threads of each VM.
//!
//! ```text
//!  …/tandemd.service      delegated to us; without processes but for those of the service manager
//!   └── main              a domain: the daemon
//!        ├── vm-web       threaded: web/0, web/1
//!        └── vm-db        threaded: db/0
//! ```
//!
//! The level `main` is there because a group with threaded ones below cannot have other groups
//! with processes, and systemd makes one (`.control`) for the commands of a unit.
//!
//! With the `cpu` controller the kernel then shares the CPUs between VMs, however many threads each
//! has, by `cpu.weight`, which is left as it is made: 100, the same for all. `cpu.stat` says what a VM
//! has used. A group is never given a limit (`cpu.max`): a thread that is throttled may hold a lock
//! of another VM's queue.
//!
//! Groups are made only below a group that was delegated to this process, as a service manager does
//! on demand; without one all works the same, and the kernel shares the CPUs between threads.
//!
//! Source: the kernel's admin-guide/cgroup-v2.rst, "Threads" and "Delegation".

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// With it no name of a VM makes that of one of the kernel's files.
const PREFIX: &str = "vm-";

/// What it means that there are no groups.
const ALL_THE_SAME: &str = "the CPUs are shared between threads instead of VMs";

/// A thread that was joined leaves its group a moment later, when the kernel is done with it.
const LEAVING: (u32, Duration) = (50, Duration::from_millis(1));

/// Makes the groups of VMs.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// The group of this process, with those of VMs below; none if we may not make any.
    main: Option<PathBuf>,
    complained: AtomicBool,
}

impl Groups {
    /// Moves this process, and what else is in its group, one level down, if that group was
    /// delegated to it.
    pub(crate) fn of_this_process() -> Self {
        let own = own_group().filter(|dir| is_delegated(dir));
        let main = own.and_then(|own| match move_down(&own) {
            Ok(main) => {
                log::info!("threads of VMs are in {}/vm-*", main.display());
                Some(main)
            }
            Err(error) => {
                log::warn!("{}: {error}; {ALL_THE_SAME}", own.display());
                None
            }
        });
        Self {
            main,
            complained: AtomicBool::new(false),
        }
    }

    /// The group of this process, below which those of VMs are made; none if we may not make any.
    pub(crate) fn main(&self) -> Option<&Path> {
        self.main.as_deref()
    }

    /// The group of a VM; none where there are no groups. One that a crash left behind is taken over.
    pub(crate) fn make(&self, vm: &str) -> Option<Arc<Group>> {
        let main = self.main.as_ref()?;
        match Group::make(main, vm) {
            Ok(group) => Some(Arc::new(group)),
            Err(error) => {
                // Once: what fails for one VM fails for all.
                if !self.complained.swap(true, Ordering::Relaxed) {
                    log::warn!("{}: {error}; {ALL_THE_SAME}", main.display());
                }
                None
            }
        }
    }
}

/// Moves the processes of the group `own` into a group `main` below it, and gives that.
fn move_down(own: &Path) -> io::Result<PathBuf> {
    let main = own.join("main");
    remove_leftovers(own, &main);
    make_dir(&main)?;
    // Those that were started meanwhile are in the next list; it ends when none is left.
    for _ in 0..100 {
        let processes = fs::read_to_string(own.join("cgroup.procs"))?;
        if processes.is_empty() {
            enable_cpu(own)?;
            return Ok(main);
        }
        for process in processes.lines() {
            match write(&main.join("cgroup.procs"), process) {
                // It has just ended.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                result => result?,
            }
        }
    }
    Err(io::Error::other("new processes come all the time"))
}

/// What a daemon that crashed here has left, or it could not be entered: this process has made `own` a
/// group of threads. As far as possible: what does not go shows when it is made again.
fn remove_leftovers(own: &Path, main: &Path) {
    for entry in fs::read_dir(main).into_iter().flatten().flatten() {
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(PREFIX.as_bytes())
        {
            let _ = fs::remove_dir(entry.path());
        }
    }
    let _ = fs::remove_dir(main);
    let _ = write(&own.join("cgroup.subtree_control"), "-cpu");
}

/// Writes to a file of the kernel's, which is there: nothing is made or cut short.
fn write(file: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(file)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Lets the groups below `dir` share the CPUs by weight, if the controller is there.
fn enable_cpu(dir: &Path) -> io::Result<()> {
    let controllers = fs::read_to_string(dir.join("cgroup.controllers"))?;
    if controllers.split_whitespace().any(|name| name == "cpu") {
        write(&dir.join("cgroup.subtree_control"), "+cpu")?;
    }
    Ok(())
}

/// The group of a VM. Removed when dropped; its threads have ended by then.
#[derive(Debug)]
pub(crate) struct Group {
    dir: PathBuf,
}

impl Group {
    fn make(main: &Path, vm: &str) -> io::Result<Self> {
        let dir = main.join(format!("{PREFIX}{vm}"));
        make_dir(&dir)?;
        let group = Self { dir };
        write(&group.dir.join("cgroup.type"), "threaded")?;
        // Not before: a group with processes and without threaded ones below may not have it.
        enable_cpu(main)?;
        Ok(group)
    }

    /// Takes the calling thread in.
    ///
    /// # Errors
    /// Those of writing `cgroup.threads`.
    pub(crate) fn join(&self) -> io::Result<()> {
        write(&self.dir.join("cgroup.threads"), "0")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let (times, moment) = LEAVING;
        for _ in 0..times {
            match fs::remove_dir(&self.dir) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(moment);
                }
                // The service manager removes what we cannot.
                _ => return,
            }
        }
        log::debug!("{} is still in use", self.dir.display());
    }
}

/// The directory of this process's group.
fn own_group() -> Option<PathBuf> {
    let group = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    find_group(&group, &mounts)
}

/// The same from the text of cgroup(7) `/proc/PID/cgroup` and proc_pid_mountinfo(5).
fn find_group(group: &str, mounts: &str) -> Option<PathBuf> {
    let path = group.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        if !kind.starts_with("cgroup2 ") {
            return None;
        }
        // id parent device root mount-point options…
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let below = Path::new(path).strip_prefix(root).ok()?;
        Some(Path::new(point).join(below))
    })
}

/// May this process divide its group? A service manager that says so marks the group (systemd's
/// CGROUP_DELEGATION), or gives it to the user that the process runs as.
fn is_delegated(dir: &Path) -> bool {
    let marked = |name: &str| {
        let mut value = [0; 8];
        rustix::fs::getxattr(dir, name, &mut value).is_ok_and(|len| value[..len] == *b"1")
    };
    let user = rustix::process::geteuid();
    let given = || fs::metadata(dir).is_ok_and(|meta| meta.uid() == user.as_raw());
    marked("user.delegate") || marked("trusted.delegate") || (!user.is_root() && given())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
24 30 0:22 / /proc rw - proc proc rw
31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
35 24 0:29 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw
";

    #[test]
    fn the_group_of_a_process_is_found() {
        let found = |group: &str, mounts: &str| find_group(group, mounts);
        let group = "8:pids:/x\n0::/system.slice/tandemd.service\n";
        let dir = "/sys/fs/cgroup/unified/system.slice/tandemd.service";
        assert_eq!(found(group, MOUNTS), Some(dir.into()));
        assert_eq!(
            found("0::/\n", MOUNTS),
            Some("/sys/fs/cgroup/unified/".into())
        );
        // Another part of the tree is mounted, or none of this version.
        let part = MOUNTS.replace("0:29 /", "0:29 /system.slice");
        let below = "/sys/fs/cgroup/unified/tandemd.service";
        assert_eq!(found(group, &part), Some(below.into()));
        assert_eq!(found("0::/user.slice\n", &part), None);
        assert_eq!(found("0::/../other\n", &part), None);
        assert_eq!(found("8:pids:/x\n", MOUNTS), None);
        assert_eq!(found(group, "24 30 0:22 / /proc rw - proc proc rw\n"), None);
    }

    #[test]
    fn what_is_not_delegated_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let ours = !rustix::process::geteuid().is_root();
        assert_eq!(is_delegated(dir.path()), ours);
        assert!(!is_delegated(Path::new("/")));
        assert!(Groups::default().make("web").is_none());
    }
}
