//! Real programs under test: the daemon, Linux guests, testpmd.
//!
//! A test is one [`scenario`]: a name, what it needs, and a body that gets a [`Lab`], which is a
//! directory of its own. Everything a body starts is a [`process::Process`] and ends with it: on
//! drop, and by the kernel if the test itself is killed. Waits are for events and have a limit; when one
//! runs out, the error says what was waited for and the scenario prints the end of every log.

pub mod agent;
pub mod container;
pub mod daemon;
pub mod guest;
pub mod image;
pub mod libvirtd;
pub mod namespace;
pub mod ovs;
pub mod payload;
pub mod process;
pub mod qmp;
pub mod readme;
pub mod testpmd;

pub use daemon::Daemon;
pub use guest::{Guest, GuestConfig, Nic, boot_all, boot_two};
pub use image::{Qemu, qemus};
pub use libvirtd::Libvirtd;
pub use namespace::Namespace;
pub use ovs::Ovs;
pub use testpmd::{Testpmd, TestpmdConfig};

use anyhow::{Context, Result, bail};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Ports and guests come up within this on a slow machine under emulation.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a scenario cannot do without.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// QEMU, busybox and the guest kernel that `ci/setup` gets.
    Guests,
    /// QEMU 10 beside an older system QEMU.
    NewerQemu,
    /// Hardware virtualisation with which a guest really boots. Named after [`Need::Guests`].
    Kvm,
    /// Root, for TAP devices.
    Root,
    /// A clean machine to boot, that `ci/setup` makes.
    CleanMachine,
    /// A program on the PATH, and the package it comes from.
    Program(&'static str, &'static str),
    /// A file, and the package it comes from.
    File(&'static str, &'static str),
}

impl Need {
    /// Why the need is not met on this machine; `None` when it is.
    pub fn missing(&self) -> Option<String> {
        match self {
            Need::Guests => image::missing(),
            Need::NewerQemu => qemus().is_ok_and(|found| found.len() < 2).then(|| {
                "no second QEMU: the system's is new, or there are no backports".to_string()
            }),
            Need::Kvm => match image::accelerator() {
                Ok(image::Accelerator::Kvm) => None,
                Ok(image::Accelerator::Tcg) => Some("no guest boots with KVM here".to_string()),
                Err(error) => Some(format!("KVM could not be tried: {error:#}")),
            },
            Need::Root => (!is_root()).then(|| "needs root".to_string()),
            Need::CleanMachine => (!container::root().exists())
                .then(|| "no root file system; run ci/setup as root".to_string()),
            Need::Program(program, package) => find_program(program)
                .is_none()
                .then(|| format!("{program} is not installed (package {package})")),
            Need::File(file, package) => (!Path::new(file).exists())
                .then(|| format!("{file} is not there (package {package})")),
        }
    }
}

/// A scenario's own directory, where sockets and logs go.
#[derive(Debug)]
pub struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    /// A new, empty directory with a short path: socket paths end at 107 bytes.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("tandem-").tempdir()?;
        Ok(Self { dir })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Prints the last lines of every log in the directory and those below.
    fn show_logs(&self) {
        let mut logs = vec![self.path().to_path_buf()];
        let mut at = 0;
        while let Some(path) = logs.get(at) {
            if let Ok(entries) = std::fs::read_dir(path) {
                logs.extend(entries.flatten().map(|entry| entry.path()));
            }
            at += 1;
        }
        logs.retain(|path| path.extension().is_some_and(|e| e == "log"));
        logs.sort();
        for log in logs {
            say(&format!("---- {}\n{}", log.display(), tail(&log, 40)));
        }
    }
}

/// Runs one end-to-end test, or says why not.
///
/// Without `TANDEM_E2E=1` it is skipped: guests take minutes, and `cargo test` is for every edit.
pub fn scenario(name: &str, needs: &[Need], body: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    if std::env::var_os("TANDEM_E2E").is_none_or(|value| value != "1") {
        skip(name, "end to end; run ci/test, or set TANDEM_E2E=1");
        return Ok(());
    }
    if let Some(why) = needs.iter().find_map(Need::missing) {
        skip(name, &why);
        return Ok(());
    }
    let lab = Lab::new()?;
    let start = Instant::now();
    say(&format!("  ... {name}"));
    let outcome = catch_unwind(AssertUnwindSafe(|| body(&lab)));
    match outcome {
        Ok(Ok(())) => {
            say(&format!(
                "  ok  {name} ({:.1} s)",
                start.elapsed().as_secs_f32()
            ));
            Ok(())
        }
        Ok(Err(error)) => {
            lab.show_logs();
            Err(error.context(name.to_string()))
        }
        Err(panic) => {
            lab.show_logs();
            resume_unwind(panic)
        }
    }
}

/// Whether there is time for more: `ci/test --long`.
pub fn long() -> bool {
    std::env::var_os("TANDEM_LONG").is_some()
}

/// Says that a whole test is skipped. `ci/test` counts these lines.
pub fn skip(name: &str, why: &str) {
    say(&format!("SKIPPED {name}: {why}"));
}

/// Says that a part of a test is skipped while the rest runs.
pub fn skip_part(name: &str, why: &str) {
    say(&format!("SKIPPED-PART {name}: {why}"));
}

/// Writes a line to standard error, past the capture of the test harness.
pub fn say(line: &str) {
    // Nobody to tell if standard error is gone.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Calls `ready` until it is true. For states that can only be looked at, not waited for.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !ready()? {
        if Instant::now() > deadline {
            bail!("not within {} s: {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The end of a text file; what is wrong with it when it cannot be read.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return error.to_string(),
    };
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The path of a program, looked for on the PATH and where administration programs live.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/local/sbin:/usr/sbin:/sbin";
    path.split(':')
        .map(|dir| Path::new(dir).join(name))
        .find(|file| file.is_file())
}

/// Whether this process may make TAP devices.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self")
        .is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

/// The first three numbers of an IPv4 network that this host has no route to: one of those for
/// documentation and tests (RFC 5737, RFC 2544).
pub fn free_network() -> Result<&'static str> {
    let output = Command::new("ip")
        .args(["-4", "route", "show", "table", "all"])
        .output()?;
    let routes = String::from_utf8_lossy(&output.stdout).into_owned();
    ["192.0.2", "198.51.100", "203.0.113", "198.18.66"]
        .into_iter()
        .find(|network| !routes.contains(&format!("{network}.")))
        .context("every network for tests is in use on this host")
}

/// A program that was built with this one: `tandemd`, `tandem`, `guest-agent`.
///
/// `TANDEM_BIN_DIR` names another directory, to test installed programs.
pub fn built_program(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let mut dirs: Vec<PathBuf> = here
        .ancestors()
        .skip(1)
        .take(2)
        .map(Path::to_path_buf)
        .collect();
    if name != "guest-agent"
        && let Some(dir) = std::env::var_os("TANDEM_BIN_DIR")
    {
        dirs = vec![dir.into()];
    }
    match dirs
        .iter()
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
    {
        Some(file) => Ok(file),
        None => bail!("{name} is not built: run cargo build"),
    }
}

/// Builds the daemon once, so that a test never runs yesterday's. Programs named by
/// `TANDEM_BIN_DIR` are taken as they are, as are all when cargo did not start this one.
pub fn build_daemon() -> Result<()> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let Some(cargo) = std::env::var_os("CARGO") else {
            return Ok(());
        };
        if std::env::var_os("TANDEM_BIN_DIR").is_some() {
            return Ok(());
        }
        let mut command = Command::new(cargo);
        command.args(["build", "--quiet", "--package", "tandem", "--bins"]);
        if !cfg!(debug_assertions) {
            command.arg("--release");
        }
        match command.status() {
            Ok(status) if status.success() => Ok(()),
            _ => Err("tandemd could not be built: run cargo build".to_string()),
        }
    });
    built.clone().map_err(anyhow::Error::msg)
}
