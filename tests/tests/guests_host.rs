//! The host's own port on the switch, a TAP device.

use anyhow::{Result, ensure};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use tandem_tests::lab::{Daemon, GuestConfig, Need, Nic, free_network, payload, scenario};

const TAP: &str = "tandem-e2e";
fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    ensure!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Segments and unfinished checksums cross between the host's stack and a guest's.
#[test]
fn host_and_guest_reach_each_other() -> Result<()> {
    let name = "guests_host::host_and_guest_reach_each_other";
    scenario(name, &[Need::Guests, Need::Root], |lab| {
        let network = free_network()?;
        let host = format!("{network}.1");
        let guest = format!("{network}.2");
        let daemon = Daemon::with_ports(lab.path(), &["a", &format!("host,tap={TAP}")])?;
        ip(&format!("addr add {host}/24 dev {TAP}"))?;
        ip(&format!("addr add fd66::1/64 dev {TAP} nodad"))?;
        ip(&format!("link set {TAP} up"))?;
        let nic = Nic::vhost_user(daemon.socket("a"), "52:54:00:00:00:0a");
        let mut a = GuestConfig::new("a").nic(nic).boot(lab.path())?;
        a.configure("eth0", &[&format!("{guest}/24"), "fd66::2/64"])?;
        std::thread::spawn(payload::serve);

        let output = Command::new("ping")
            .args(["-c", "3", "-i", "0.2", guest.as_str()])
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        a.ping(&host, &[1472, 5000])?;
        let peer: Ipv4Addr = guest.parse()?;
        payload::stream(SocketAddr::from((peer, payload::PORT)), 4 << 20, 1)?;
        let peer: Ipv6Addr = "fd66::2".parse()?;
        payload::stream(SocketAddr::from((peer, payload::PORT)), 4 << 20, 2)?;
        a.stream(&host, 4 << 20)?;
        a.stream("fd66::1", 4 << 20)?;
        a.echo(&host, &[1, 1472, 5000])?;
        ensure!(daemon.port("host")?.is_up(), "the host port is not up");
        daemon.check_arithmetic()?;
        drop(a);
        daemon.stop()?;
        let gone = Command::new("ip").args(["link", "show", TAP]).output()?;
        ensure!(!gone.status.success(), "{TAP} is still there");
        Ok(())
    })
}

/// Somebody sets the link down, or removes the device: the port says so, and is added again.
#[test]
fn a_device_that_is_taken_away_is_named() -> Result<()> {
    let name = "guests_host::a_device_that_is_taken_away_is_named";
    scenario(name, &[Need::Root], |lab| {
        let tap = "tandem-gone";
        let daemon = Daemon::with_ports(lab.path(), &[&format!("host,tap={tap}")])?;
        ensure!(daemon.port("host")?.is_up(), "the host port is not up");
        ip(&format!("link set {tap} down"))?;
        let port = daemon.port("host")?;
        let words = format!("ip link set {tap} up");
        ensure!(
            !port.is_up() && port.reason().contains(&words),
            "{}",
            port.reason()
        );
        ip(&format!("link del {tap}"))?;
        daemon.wait_port("host", "is gone", |port| {
            port.reason().contains("was removed")
        })?;
        daemon.cli(&["port", "remove", "host"])?;
        daemon.cli(&["port", "add", "host", "--tap", tap])?;
        ensure!(daemon.port("host")?.is_up(), "the host port is not back");
        daemon.stop()
    })
}
