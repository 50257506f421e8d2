//! The host's own port on the switch, a TAP device.

use anyhow::{Result, ensure};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use tandem_tests::lab::{Daemon, GuestConfig, Need, Nic, payload, scenario};

const TAP: &str = "tandem-e2e";
/// For tests of network devices (RFC 2544), so nobody's.
const HOST: &str = "198.18.66.1";
const GUEST: &str = "198.18.66.2";

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
        let daemon = Daemon::with_ports(lab.path(), &["a", &format!("host,tap={TAP}")])?;
        ip(&format!("addr add {HOST}/24 dev {TAP}"))?;
        ip(&format!("addr add fd66::1/64 dev {TAP} nodad"))?;
        ip(&format!("link set {TAP} up"))?;
        let nic = Nic::vhost_user(daemon.socket("a"), "52:54:00:00:00:0a");
        let mut a = GuestConfig::new("a").nic(nic).boot(lab.path())?;
        a.configure("eth0", &[&format!("{GUEST}/24"), "fd66::2/64"])?;
        std::thread::spawn(payload::serve);

        let output = Command::new("ping")
            .args(["-c", "3", "-i", "0.2", GUEST])
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        a.ping(HOST, &[1472, 5000])?;
        let peer: Ipv4Addr = GUEST.parse()?;
        payload::stream(SocketAddr::from((peer, payload::PORT)), 4 << 20, 1)?;
        let peer: Ipv6Addr = "fd66::2".parse()?;
        payload::stream(SocketAddr::from((peer, payload::PORT)), 4 << 20, 2)?;
        a.stream(HOST, 4 << 20)?;
        a.stream("fd66::1", 4 << 20)?;
        a.echo(HOST, &[1, 1472, 5000])?;
        ensure!(daemon.port("host")?.is_up(), "the host port is not up");
        daemon.check_arithmetic()?;
        drop(a);
        daemon.stop()?;
        let gone = Command::new("ip").args(["link", "show", TAP]).output()?;
        ensure!(!gone.status.success(), "{TAP} is still there");
        Ok(())
    })
}
