//! Programs that end without a word, and come back: the VMM, and the daemon.

use anyhow::{Result, ensure};
use tandem_tests::lab::{Daemon, Guest, GuestConfig, Lab, Need, Nic, boot_two, long, scenario};

fn two_guests(lab: &Lab, daemon: &Daemon, option: &str) -> Result<(Guest, Guest)> {
    let guest = |name: &str, mac: &str| {
        let nic = Nic::vhost_user(daemon.socket(name), mac).option(option);
        GuestConfig::new(name).nic(nic)
    };
    let (mut a, mut b) = boot_two(
        lab.path(),
        guest("a", "52:54:00:00:00:0a"),
        guest("b", "52:54:00:00:00:0b"),
    )?;
    a.configure("eth0", &["10.0.0.1/24"])?;
    b.configure("eth0", &["10.0.0.2/24"])?;
    a.ping("10.0.0.2", &[])?;
    Ok((a, b))
}

/// The VMM dies in the middle of a transfer, ten times over.
#[test]
fn the_vmm_is_killed_and_started_again() -> Result<()> {
    let name = "guests_crash::the_vmm_is_killed_and_started_again";
    scenario(name, &[Need::Guests], |lab| {
        let mut daemon = Daemon::with_ports(lab.path(), &["a", "b"])?;
        let (mut a, mut b) = two_guests(lab, &daemon, "packed=off")?;
        let mut descriptors = None;
        for _ in 0..if long() { 100 } else { 10 } {
            a.exec("/real/guest-agent stream 10.0.0.2 1000000000 >/dev/null 2>&1 &")?;
            let before = daemon.port("b")?.frames("to_vm")?;
            daemon.wait_port("b", "carries the transfer", |port| {
                port.frames("to_vm")
                    .is_ok_and(|frames| frames > before + 100)
            })?;
            b.kill()?;
            daemon.wait_port("b", "notices", |port| {
                !port.is_up() && !port.reason().is_empty()
            })?;
            a.exec("killall guest-agent || true")?;
            b.start_again(lab.path())?;
            b.configure("eth0", &["10.0.0.2/24"])?;
            a.ping("10.0.0.2", &[1472])?;
            a.stream("10.0.0.2", 1 << 20)?;
            let now = daemon.process().descriptors()?;
            ensure!(
                now == *descriptors.get_or_insert(now),
                "descriptors grow: {now}"
            );
        }
        daemon.check_arithmetic()?;
        drop((a, b));
        daemon.stop()
    })
}

fn survive_the_daemon(lab: &Lab, option: &str) -> Result<()> {
    let mut daemon = Daemon::with_ports(lab.path(), &["a", "b"])?;
    let (mut a, mut b) = two_guests(lab, &daemon, option)?;
    for _ in 0..3 {
        a.exec("/real/guest-agent stream 10.0.0.2 1000000000 >/dev/null 2>&1 &")?;
        daemon.wait_port("b", "carries the transfer", |port| {
            port.frames("to_vm").is_ok_and(|frames| frames > 100)
        })?;
        daemon.restart_after_crash()?;
        for port in ["a", "b"] {
            daemon.wait_port(port, "is up again", |port| port.is_up())?;
        }
        a.exec("killall guest-agent || true")?;
        a.ping("10.0.0.2", &[1472])?;
        b.stream("10.0.0.1", 1 << 20)?;
    }
    drop((a, b));
    daemon.stop()
}

/// The daemon dies in the middle of a transfer; the guests go on with the next one.
#[test]
fn the_daemon_is_killed_and_started_again() -> Result<()> {
    let name = "guests_crash::the_daemon_is_killed_and_started_again";
    scenario(name, &[Need::Guests], |lab| {
        survive_the_daemon(lab, "packed=off")
    })
}

#[test]
fn the_daemon_is_killed_and_started_again_packed() -> Result<()> {
    let name = "guests_crash::the_daemon_is_killed_and_started_again_packed";
    scenario(name, &[Need::Guests], |lab| {
        survive_the_daemon(lab, "packed=on")
    })
}
