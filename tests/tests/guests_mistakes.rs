//! What people get wrong with a VMM, and that `tandem port show` says so in words.

use anyhow::{Result, ensure};
use tandem_tests::lab::{Daemon, GuestConfig, Lab, Need, Nic, qemus, scenario};

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
