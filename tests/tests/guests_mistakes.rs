//! What people get wrong with a VMM, and that `tandem port show` says so in words.

use anyhow::{Result, ensure};
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use tandem_tests::lab::process::{Lifetime, Process};
use tandem_tests::lab::{Daemon, GuestConfig, Lab, Need, Nic, PATIENCE, qemus, scenario, tail};

/// Waits until the port says why it is down with all of these words, and that it says so to people.
fn expect_reason(daemon: &Daemon, words: &[&str]) -> Result<()> {
    daemon.wait_port("a", &format!("says {words:?}"), |port| {
        !port.is_up() && words.iter().all(|word| port.reason().contains(word))
    })?;
    let shown = daemon.cli(&["port", "show", "a"])?;
    ensure!(
        words.iter().all(|word| shown.contains(word)),
        "{words:?} is not in:\n{shown}"
    );
    Ok(())
}

/// The port works after the mistake is put right.
fn expect_recovery(lab: &Lab, daemon: &Daemon) -> Result<()> {
    let nic = Nic::vhost_user(daemon.socket("a"), "52:54:00:00:00:0a");
    let guest = GuestConfig::new("a").nic(nic).boot(lab.path())?;
    daemon.wait_port("a", "is up", |port| {
        port.is_up() && port.reason().is_empty()
    })?;
    drop(guest);
    Ok(())
}

#[test]
fn no_vmm() -> Result<()> {
    scenario("guests_mistakes::no_vmm", &[Need::Guests], |lab| {
        let daemon = Daemon::with_ports(lab.path(), &["a"])?;
        expect_reason(&daemon, &["no VMM"])?;
        expect_recovery(lab, &daemon)
    })
}

#[test]
fn memory_that_is_not_shared() -> Result<()> {
    scenario(
        "guests_mistakes::memory_that_is_not_shared",
        &[Need::Guests],
        |lab| {
            for qemu in qemus()? {
                let daemon = Daemon::with_ports(lab.path(), &["a"])?;
                let nic = Nic::vhost_user(daemon.socket("a"), "52:54:00:00:00:0a");
                let guest = GuestConfig::new("a").qemu(&qemu).private_memory().nic(nic);
                let guest = guest.start(lab.path())?;
                expect_reason(&daemon, &["share=on"])?;
                drop(guest);
                expect_recovery(lab, &daemon)?;
                daemon.stop()?;
            }
            Ok(())
        },
    )
}

#[test]
fn more_queues_than_the_port_has() -> Result<()> {
    scenario(
        "guests_mistakes::more_queues_than_the_port_has",
        &[Need::Guests],
        |lab| {
            let daemon = Daemon::with_ports(lab.path(), &["a"])?;
            let nic = Nic::vhost_user(daemon.socket("a"), "52:54:00:00:00:0a").pairs(2);
            let guest = GuestConfig::new("a").cpus(2).nic(nic).start(lab.path())?;
            expect_reason(&daemon, &["queue_pairs"])?;
            drop(guest);
            expect_recovery(lab, &daemon)
        },
    )
}

#[test]
fn a_socket_path_that_is_too_long() -> Result<()> {
    let name = "guests_mistakes::a_socket_path_that_is_too_long";
    scenario(name, &[], |lab| {
        let daemon = Daemon::start(lab.path(), &[])?;
        // unix(7): sun_path has 108 bytes, the last one NUL.
        let path = |length: usize| {
            let start = format!("{}/", lab.path().display());
            start.clone() + &"s".repeat(length - start.len())
        };
        let refused = daemon.cli_output(&["port", "add", "a", "--socket", &path(108)])?;
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success(), "it was not refused");
        ensure!(
            words.contains("socket") && words.contains("107"),
            "it does not say what is wrong: {words}"
        );
        ensure!(daemon.ports()?.is_empty(), "a refused port is there");
        daemon.cli(&["port", "add", "a", "--socket", &path(107)])?;
        ensure!(Path::new(&path(107)).exists(), "no socket");
        expect_reason(&daemon, &["no VMM", &path(107)])
    })
}

/// A user and a group that own nothing: `nobody` and `nogroup`.
const NOBODY: u32 = 65534;

/// QEMU as nobody, with a card on this socket. It gives up when it cannot connect.
fn qemu_as_nobody(dir: &Path, socket: &Path) -> Result<Process> {
    let qemu = qemus()?.remove(0);
    let chardev = format!("socket,id=c0,path={}", socket.display());
    Process::start(dir, "nobody", &qemu.program, Lifetime::Owner, |command| {
        command.uid(NOBODY).gid(NOBODY);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-S"]);
        command.args([
            "-M",
            "q35,accel=tcg",
            "-m",
            "64M",
            "-numa",
            "node,memdev=mem",
        ]);
        command.args(["-object", "memory-backend-memfd,id=mem,size=64M,share=on"]);
        command.args(["-chardev", &chardev]);
        command.args(["-netdev", "vhost-user,id=n0,chardev=c0"]);
        command.args(["-device", "virtio-net-pci,netdev=n0,romfile="]);
    })
}

#[test]
fn a_socket_of_another_user() -> Result<()> {
    let name = "guests_mistakes::a_socket_of_another_user";
    scenario(name, &[Need::Root, Need::Guests], |lab| {
        let daemon = Daemon::start(lab.path(), &[])?;
        // The way to the socket is open to all; only the socket itself is not.
        for dir in [lab.path(), &daemon.run_dir()] {
            set_permissions(dir, Permissions::from_mode(0o711))?;
        }
        daemon.cli(&["port", "add", "a"])?;
        let mut qemu = qemu_as_nobody(lab.path(), &daemon.socket("a"))?;
        let status = qemu.wait(PATIENCE)?;
        let said = tail(qemu.log(), 5);
        ensure!(
            !status.success() && said.contains("Permission denied"),
            "QEMU ended with {status}: {said}"
        );
        expect_reason(&daemon, &["no VMM", "0660", "socket_group"])?;

        daemon.cli(&["port", "remove", "a"])?;
        daemon.cli(&["port", "add", "a", "--socket-group", "nogroup"])?;
        let _qemu = qemu_as_nobody(lab.path(), &daemon.socket("a"))?;
        daemon.wait_port("a", "has a VMM", |port| {
            port.0["session"]["connected"] == true
        })
    })
}
