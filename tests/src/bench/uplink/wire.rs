//! The wire of a switch: a veth pair, whose far end is in a network namespace of its own.
//!
//! ```text
//!   our namespace                                    far namespace
//!   VM ─ vhost-user ─┐
//!                    switch ─ u-KIND ════ veth ════ f-KIND
//!   h-KIND ──────────┘
//! ```
//! `h-KIND` is the host on the switch: Tandem's TAP; with Open vSwitch one end of another
//! pair, of which the switch has the other, `d-KIND`, by net_af_packet: its own TAP is not served by the threads
//! that forward.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::bench::mac;
use crate::bench::switch::Kind;
use crate::lab::process::{Lifetime, Process};
use crate::lab::{PATIENCE, find_program, wait_until};

/// The number of the station at the far end, among the VMs.
pub(super) const FAR: usize = 0xfe;
/// The number of its device, which takes no frames for that station: they are to be counted, not
/// answered.
const DEVICE: usize = 0xfd;

/// A wire.
pub struct Wire {
    kind: Kind,
    /// Keeps the far namespace.
    far: Process,
}

/// The switch's end of the wire.
pub fn uplink_device(kind: Kind) -> String {
    format!("u-{}", kind.name())
}

/// The device by which the host is on the switch.
pub fn host_device(kind: Kind) -> String {
    format!("h-{}", kind.name())
}

/// The switch's end of that, if it is a pair.
pub fn switch_side(kind: Kind) -> String {
    format!("d-{}", kind.name())
}

/// An error unless this process has another network namespace than whoever started it: one where nothing
/// else is disturbed.
pub fn own_namespace() -> Result<()> {
    let of = |process: u32| fs::read_link(format!("/proc/{process}/ns/net"));
    let shared = of(std::process::id())? == of(std::os::unix::process::parent_id())?;
    ensure!(
        !shared,
        "the uplink is measured in a network namespace: start this by ci/bench"
    );
    no_noise(&mut Command::new("sh"))
}

/// No frames but those that are measured, and no answer for an address of another device.
fn no_noise(shell: &mut Command) -> Result<()> {
    let settings = "for of in all default; do \
         [ ! -d /proc/sys/net/ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/$of/disable_ipv6; \
         echo 1 >/proc/sys/net/ipv4/conf/$of/arp_ignore; done; ip link set lo up";
    run(shell.args(["-ec", settings]))
}

impl Wire {
    /// Lays the wire, and the pair of the host's port, for a switch of this kind.
    pub fn new(dir: &Path, kind: Kind) -> Result<Self> {
        let unshare = find_program("unshare").context("no unshare (package util-linux)")?;
        let name = format!("far-{}", kind.name());
        let far = Process::start(dir, &name, &unshare, Lifetime::Owner, |command| {
            command.args(["--net", "sleep", "infinity"]);
        })?;
        let wire = Self { kind, far };
        let own = fs::read_link("/proc/self/ns/net")?;
        wait_until("a network namespace", PATIENCE, || {
            Ok(fs::read_link(wire.namespace())? != own)
        })?;
        no_noise(&mut wire.far_command("sh"))?;
        let (near, far, pid) = (uplink_device(kind), wire.device(), wire.far.pid());
        ip(&format!(
            "link add {near} type veth peer name {far} netns {pid}"
        ))?;
        ip(&format!("link set {near} up"))?;
        wire.far_ip(&format!("link set {far} address {} up", mac(DEVICE)))?;
        if kind == Kind::Ovs {
            let (host, switch) = (host_device(kind), switch_side(kind));
            ip(&format!("link add {host} type veth peer name {switch}"))?;
            ip(&format!("link set {switch} up"))?;
            ip(&format!("link set {host} up"))?;
            run(Command::new("ethtool").args(["-K", &host, "tx", "off"]))?;
        }
        Ok(wire)
    }

    /// Has the far end, and the host on the switch, reach each other by IP. With `complete` the far end finishes its
    /// frames itself: the switch's driver takes neither partial checksums nor segments.
    pub fn give_addresses(&mut self, complete: bool) -> Result<()> {
        let (near, far) = (host_device(self.kind), self.device());
        ip(&format!("address add {}/24 dev {near}", self.address(1)))?;
        self.far_ip(&format!("address add {}/24 dev {far}", self.address(2)))?;
        if complete {
            run(self
                .far_command("ethtool")
                .args(["-K", &far, "tx", "off", "txvlan", "off"]))?;
        }
        Ok(())
    }

    /// The far end's IP address.
    pub fn far_address(&self) -> String {
        self.address(2)
    }

    fn address(&self, host: u8) -> String {
        // For benchmarks (RFC 2544, C.2.2).
        format!("198.18.{}.{host}", 100 + self.kind as u8)
    }

    /// The far end of the pair.
    pub fn device(&self) -> String {
        format!("f-{}", self.kind.name())
    }

    fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.far.pid()))
    }

    /// What to put in front of a command line that is to run in the far namespace.
    pub fn far_prefix(&self) -> Vec<String> {
        let namespace = format!("--net={}", self.namespace().display());
        ["nsenter".into(), namespace, "--".into()].to_vec()
    }

    fn far_command(&self, program: &str) -> Command {
        let prefix = self.far_prefix();
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).arg(program);
        command
    }

    fn far_ip(&self, arguments: &str) -> Result<()> {
        run(self.far_command("ip").args(arguments.split(' ')))
    }

    /// Has the switch learn where the station at the far end is: the kernel asks for some address in its
    /// name.
    pub fn announce(&self) -> Result<()> {
        let (device, address) = (self.device(), self.address(2));
        let script = format!(
            "ip address replace {address}/24 dev {device}; \
             ip link set {device} address {}; \
             echo >/dev/udp/{}/9; \
             ip link set {device} address {}",
            mac(FAR),
            self.address(9),
            mac(DEVICE)
        );
        run(self.far_command("bash").args(["-ec", &script]))
    }

    /// Frames that came out at the far end so far, and their bytes.
    pub fn received(&self) -> Result<(u64, u64)> {
        received_by(self.far.pid(), &self.device())
    }

    /// Frames that the host got from the switch so far, and their bytes.
    pub fn received_by_host(&self) -> Result<(u64, u64)> {
        received_by(std::process::id(), &host_device(self.kind))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // A namespace lives on for a moment after its last process, and the names are needed again.
        for device in [uplink_device(self.kind), host_device(self.kind)] {
            let _ = ip(&format!("link delete {device}"));
        }
    }
}

/// Frames that a device has received, in the namespace of a process, and their bytes (proc(5)).
fn received_by(pid: u32, device: &str) -> Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    received(&text, device).with_context(|| format!("no {device} in {text}"))
}

fn received(text: &str, device: &str) -> Option<(u64, u64)> {
    let line = text.lines().find_map(|line| {
        let (name, rest) = line.split_once(':')?;
        (name.trim() == device).then_some(rest)
    })?;
    let mut fields = line.split_whitespace();
    let (bytes, frames) = (fields.next()?, fields.next()?);
    Some((frames.parse().ok()?, bytes.parse().ok()?))
}

fn ip(arguments: &str) -> Result<()> {
    run(Command::new("ip").args(arguments.split(' ')))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn received_frames_are_found() {
        let text = "Inter-|   Receive\n face |bytes    packets errs\n    lo:       0       1\n\
                    f-ovs:  1234      56    0    0\n";
        assert_eq!(received(text, "f-ovs"), Some((56, 1234)));
        assert_eq!(received(text, "ovs"), None);
    }
}
