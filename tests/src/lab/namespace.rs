//! Network namespaces without a name: they end with the last program and socket in them, however the
//! test ends, and no two runs meet.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace with a loopback device that is up. Its devices have no IPv6 addresses, and answer
/// ARP for their own IPv4 addresses only.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// A new one. Needs root.
    pub fn new() -> Result<Self> {
        let made = std::thread::scope(|scope| scope.spawn(make).join());
        let file = made.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let namespace = Self { file };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// A path by which other programs open it, for as long as this value lives.
    pub fn path(&self) -> PathBuf {
        let fd = self.file.as_raw_fd();
        format!("/proc/{}/fd/{fd}", std::process::id()).into()
    }

    /// Runs `body` on a thread in the namespace. Sockets made there stay in it.
    pub fn inside<T: Send>(&self, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let run = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
            body()
        };
        let outcome = std::thread::scope(|scope| scope.spawn(run).join());
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The words in front of a program's, so that it runs in the namespace as the same process.
    pub fn prefix(&self) -> Vec<String> {
        vec![
            "nsenter".into(),
            format!("--net={}", self.path().display()),
            "--".into(),
        ]
    }

    /// A program in the namespace.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let prefix = self.prefix();
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).arg(program.as_ref());
        command
    }

    /// Runs a program in the namespace; an error when it fails. Gives what it prints.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("no program")?;
        let output = self.command(program).args(words).output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            let said = String::from_utf8_lossy(&output.stdout);
            bail!("{line}: {error}{said}");
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs `ip` (iproute2) in the namespace.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        self.run(&format!("ip {arguments}"))
    }
}

fn make() -> Result<File> {
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
    // A device answers for its own addresses only: of a switch's host, the ports are in the same
    // namespace, and would answer, too.
    std::fs::write("/proc/sys/net/ipv4/conf/all/arp_ignore", "1")?;
    // Absent where the kernel has no IPv6.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    Ok(File::open("/proc/thread-self/ns/net")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::is_root;

    #[test]
    fn programs_and_threads_are_inside() -> Result<()> {
        if !is_root() {
            return Ok(());
        }
        let namespace = Namespace::new()?;
        namespace.ip("link add u0 type veth peer name f0")?;
        let devices = std::fs::read_to_string("/proc/thread-self/net/dev")?;
        assert!(!devices.contains("u0:") || !devices.contains("f0:"));
        let inside = namespace.inside(|| Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?));
        assert!(inside?.contains("f0:"));
        assert!(namespace.run("ip link show f1").is_err());
        Ok(())
    }
}
