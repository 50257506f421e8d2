//! The daemon's own lists, entered as the daemon enters them, in a process of their own.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread::Builder;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process};
use vm_memory::MmapRegion;

use super::*;

/// Runs this test once more as the only one of a process; there, a directory that the process that
/// waits for it makes and removes.
fn in_a_process_of_its_own(test: &str) -> Option<PathBuf> {
    const DIR: &str = "TANDEM_TEST_SANDBOX";
    if let Some(dir) = std::env::var_os(DIR) {
        return Some(dir.into());
    }
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", &format!("sandbox::tests::{test}")])
        .env(DIR, dir.path())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{said}");
    let skipped = said.lines().filter(|line| line.starts_with("SKIPPED"));
    skipped.for_each(|line| println!("{line}"));
    None
}

fn error<T>(result: io::Result<T>, what: &str) -> i32 {
    let error = result
        .err()
        .unwrap_or_else(|| panic!("{what} is not refused"));
    error
        .raw_os_error()
        .unwrap_or_else(|| panic!("{what}: {error}"))
}

fn refused<T>(what: &str, result: io::Result<T>) {
    assert_eq!(error(result, what), libc::ENOSYS, "{what}");
}

fn map(prot: i32) -> io::Result<MmapRegion<()>> {
    let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE;
    MmapRegion::build(None, 4096, prot, flags).map_err(|error| match error {
        vm_memory::mmap::MmapRegionError::Mmap(error) => error,
        other => io::Error::other(other),
    })
}

#[test]
fn a_call_that_is_not_listed_is_refused() {
    let Some(dir) = in_a_process_of_its_own("a_call_that_is_not_listed_is_refused") else {
        return;
    };
    let at = |name: &str| dir.join(name);
    let paths = Paths {
        own: vec![dir.clone()],
        ..Paths::default()
    };
    let report = enter(&paths).unwrap();
    assert!(report.calls.is_some(), "{report}");
    let init = Pid::from_raw(1).unwrap();

    refused("execve", Command::new("true").status());
    refused("socket(AF_INET)", TcpListener::bind("127.0.0.1:0"));
    refused("mmap(PROT_EXEC)", map(libc::PROT_READ | libc::PROT_EXEC));
    refused(
        "memfd_create",
        memfd_create("x", MemfdFlags::CLOEXEC).map_err(Into::into),
    );
    refused("kill", kill_process(init, Signal::CONT).map_err(Into::into));
    refused(
        "chmod",
        fs::set_permissions(&dir, fs::metadata("/").unwrap().permissions()),
    );
    refused("symlink", symlink("/", at("l")));
    let dumpable = rustix::process::DumpableBehavior::NotDumpable;
    let dumpable = rustix::process::set_dumpable_behavior(dumpable);
    refused("prctl(PR_SET_DUMPABLE)", dumpable.map_err(Into::into));

    map(libc::PROT_READ | libc::PROT_WRITE).unwrap();
    UnixStream::pair().unwrap();
    crate::store::replace_file(&at("file"), b"text").unwrap();
    assert_eq!(fs::read(at("file")).unwrap(), b"text");
    fs::read("/proc/self/schedstat").unwrap();
    let file = at("file");
    Builder::new()
        .spawn(move || on_the_data_path(&file))
        .unwrap()
        .join()
        .unwrap();
}

/// A thread that carries frames may do less than that.
fn on_the_data_path(file: &std::path::Path) {
    let event = rustix::event::eventfd(1, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    enter_data_path();
    refused("openat", fs::File::open(file));
    refused("unlink", fs::remove_file(file));
    refused("socketpair", UnixStream::pair());
    refused("clone", Builder::new().spawn(|| ()));
    refused("mmap(PROT_EXEC)", map(libc::PROT_READ | libc::PROT_EXEC));
    rustix::io::read(&event, &mut [0; 8]).unwrap();
    rustix::io::write(&event, &1u64.to_ne_bytes()).unwrap();
    map(libc::PROT_READ | libc::PROT_WRITE).unwrap();
    crate::cpus::pin(&crate::cpus::allowed().unwrap()).unwrap();
    crate::sys::set_slice(std::time::Duration::from_micros(100)).unwrap();
    crate::sys::add_up_time();
}

#[test]
fn files_elsewhere_are_out_of_reach() {
    let Some(dir) = in_a_process_of_its_own("files_elsewhere_are_out_of_reach") else {
        return;
    };
    let [own, read, other] = ["own", "read", "other"].map(|name| {
        let dir = dir.join(name);
        fs::create_dir_all(dir.join("empty")).unwrap();
        fs::write(dir.join("file"), "text").unwrap();
        dir
    });
    let paths = Paths {
        own: vec![own.clone()],
        read: vec![read.clone(), "/no/such".into()],
        ..Paths::default()
    };
    if enter(&paths).unwrap().landlock.is_none() {
        return println!("SKIPPED sandbox::tests::files: this kernel has no Landlock");
    }
    let denied = |what: &str, result: io::Result<()>| {
        assert_eq!(error(result, what), libc::EACCES, "{what}");
    };
    denied("read", fs::read("/etc/passwd").map(drop));
    denied("read", fs::read(other.join("file")).map(drop));
    denied("write", fs::write(other.join("new"), ""));
    denied("write", fs::write(read.join("file"), ""));
    denied("remove", fs::remove_file(other.join("file")));
    denied("remove a directory", fs::remove_dir(other.join("empty")));
    denied(
        "listen",
        std::os::unix::net::UnixListener::bind(other.join("s")).map(drop),
    );
    fs::read(read.join("file")).unwrap();
    fs::write(own.join("file"), "changed").unwrap();
    std::os::unix::net::UnixListener::bind(own.join("s")).unwrap();
}

/// A daemon that talks to other hosts: TCP, and nothing else.
#[test]
fn other_hosts_are_reached_by_tcp_only() {
    if in_a_process_of_its_own("other_hosts_are_reached_by_tcp_only").is_none() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let paths = Paths {
        connects: true,
        ..Paths::default()
    };
    let report = enter(&paths).unwrap();
    assert!(report.calls.is_some(), "{report}");
    std::net::TcpStream::connect(address).unwrap();
    listener.accept().unwrap();
    refused(
        "socket(SOCK_DGRAM)",
        std::net::UdpSocket::bind("127.0.0.1:0"),
    );
    if report.landlock >= Some(4) {
        let bound = TcpListener::bind("127.0.0.1:0").map(drop);
        assert_eq!(error(bound, "bind"), libc::EACCES);
    }
}

/// Kernels without Landlock, and then without seccomp as well.
#[test]
fn an_older_kernel_is_no_error() {
    if in_a_process_of_its_own("an_older_kernel_is_no_error").is_none() {
        return;
    }
    rustix::thread::set_no_new_privs(true).unwrap();
    let lacks = |call| assert!(filter::install_quiet(&filter::quiet(&[call]).unwrap()).unwrap());
    lacks(libc::SYS_landlock_create_ruleset);
    let without_landlock = |calls| Report {
        calls,
        landlock: None,
    };
    let in_a_thread = || std::thread::spawn(|| enter(&Paths::default()).unwrap()).join();
    let all = calls::daemon(false).len();
    assert_eq!(in_a_thread().unwrap(), without_landlock(Some(all)));
    lacks(libc::SYS_seccomp);
    let report = in_a_thread().unwrap();
    assert_eq!(report, without_landlock(None));
    let words = report.to_string();
    assert!(
        report.is_partial() && words.contains("no Landlock"),
        "{words}"
    );
}
