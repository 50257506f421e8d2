//! Real QEMUs without a guest: one sends its machine to the other over a unix socket.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tandem_migration::vmm::{Outcome, Progress, Qmp, Vmm, VmmError, Wishes};

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);

/// QEMUs of this machine: the system's, and the newer one that `ci/setup` gets.
fn qemus() -> Vec<PathBuf> {
    let newer = std::env::var_os("TANDEM_LAB_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab"),
        PathBuf::from,
    );
    let newer = newer.join("qemu/usr/bin/qemu-system-x86_64");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = std::env::split_paths(&path).map(|dir| dir.join("qemu-system-x86_64"));
    let system = system.into_iter().find(|program| program.exists());
    let found = system.into_iter().chain([newer]);
    found.filter(|program| program.exists()).collect()
}

/// A machine of nothing but memory, that ends with the value.
struct Qemu {
    child: Child,
    monitor: PathBuf,
}

impl Qemu {
    fn start(program: &Path, dir: &Path, name: &str, arguments: &[&str]) -> Self {
        let monitor = dir.join(name);
        let child = Command::new(program)
            .args(["-machine", "none", "-m", "16", "-nodefaults"])
            .args(["-display", "none", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, monitor }
    }

    /// Once it listens.
    fn connect(&self) -> Qmp {
        let begun = Instant::now();
        loop {
            match Qmp::connect(&self.monitor) {
                Err(VmmError::NotRunning(_)) if begun.elapsed() < LIMIT => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                connected => return connected.unwrap(),
            }
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_machine_moves() {
    let qemus = qemus();
    if qemus.is_empty() {
        // Not captured, as what is printed is.
        let mut out = std::io::stderr();
        writeln!(out, "skipped: no qemu-system-x86_64; run ci/setup").unwrap();
    }
    for program in qemus {
        let dir = tempfile::tempdir().unwrap();
        let uri = format!("unix:{}", dir.path().join("vm").display());
        let to = Qemu::start(&program, dir.path(), "to", &["-incoming", &uri]);
        let from = Qemu::start(&program, dir.path(), "from", &[]);
        let (_listens, mut qmp) = (to.connect(), from.connect());
        let wishes = Wishes {
            max_bandwidth: Some(1 << 30),
            downtime: Some(Duration::from_millis(300)),
            ..Wishes::default()
        };
        qmp.migrate(&uri, &wishes).unwrap();
        let mut told = Vec::new();
        let outcome = qmp.follow(Instant::now() + LIMIT, &mut |p| told.push(p.clone()));
        let Ok(Some(Outcome::Completed {
            downtime_ms: Some(_),
            total_ms: Some(_),
        })) = outcome
        else {
            panic!("{}: {outcome:?}, {told:?}", program.display());
        };
        let last = told.last().unwrap();
        assert!(
            last.total.is_some() && last.stopped_at.is_some(),
            "{told:?}"
        );
        assert_eq!((&last.state[..], last.resumed_at), ("completed", None));
    }
}

#[test]
fn a_migration_is_cancelled() {
    for program in qemus() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("there");
        let _listener = UnixListener::bind(&there).unwrap();
        let from = Qemu::start(&program, dir.path(), "from", &[]);
        let mut qmp = from.connect();
        // A minute for what empty pages take.
        let wishes = Wishes {
            max_bandwidth: Some(1000),
            ..Wishes::default()
        };
        qmp.migrate(&format!("unix:{}", there.display()), &wishes)
            .unwrap();
        let begun = Instant::now();
        let mut active = false;
        while !active {
            assert!(begun.elapsed() < LIMIT);
            let each = &mut |p: &Progress| active |= p.state == "active";
            let soon = Instant::now() + Duration::from_millis(100);
            assert_eq!(qmp.follow(soon, each), Ok(None));
        }
        qmp.cancel().unwrap();
        let outcome = qmp.follow(Instant::now() + LIMIT, &mut |_| ());
        assert_eq!(outcome, Ok(Some(Outcome::Cancelled)));
    }
}

#[test]
fn nobody_waits_for_the_machine() {
    for program in qemus() {
        let dir = tempfile::tempdir().unwrap();
        let uri = format!("unix:{}", dir.path().join("nobody").display());
        let from = Qemu::start(&program, dir.path(), "from", &[]);
        let mut qmp = from.connect();
        let refused = qmp.migrate(&uri, &Wishes::default());
        let why = match refused {
            Err(VmmError::Refused { why, .. }) => why,
            begun => {
                begun.unwrap();
                let outcome = qmp.follow(Instant::now() + LIMIT, &mut |_| ());
                let Ok(Some(Outcome::Failed(why))) = outcome else {
                    panic!("{outcome:?}");
                };
                why
            }
        };
        assert!(why.contains("No such file"), "{why}");
    }
}
