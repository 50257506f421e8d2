//! Several queue pairs: all of them carry traffic, both ways.

use anyhow::{Result, bail};
use tandem_tests::lab::{Daemon, GuestConfig, Need, Nic, boot_two, qemus, scenario};

const PAIRS: usize = 4;

/// Pairs that carried nothing yet, by port and direction.
fn unused(daemon: &Daemon) -> Result<Vec<String>> {
    let mut found = vec![];
    for port in ["a", "b"] {
        for direction in ["from_vm", "to_vm"] {
            let frames = daemon.port(port)?.queue_frames(direction)?;
            if frames.len() != PAIRS || frames.contains(&0) {
                found.push(format!("{port} {direction} {frames:?}"));
            }
        }
    }
    Ok(found)
}

fn check(lab: &tandem_tests::lab::Lab, option: &str) -> Result<()> {
    let daemon = Daemon::with_ports(lab.path(), &["a,queue_pairs=4", "b,queue_pairs=4"])?;
    let system = qemus()?.remove(0);
    let guest = |name: &str, mac: &str| {
        let nic = Nic::vhost_user(daemon.socket(name), mac)
            .pairs(PAIRS)
            .option(option);
        GuestConfig::new(name).qemu(&system).cpus(PAIRS).nic(nic)
    };
    let (mut a, mut b) = boot_two(
        lab.path(),
        guest("a", "52:54:00:00:00:0a"),
        guest("b", "52:54:00:00:00:0b"),
    )?;
    a.configure("eth0", &["10.0.0.1/24"])?;
    b.configure("eth0", &["10.0.0.2/24"])?;
    a.ping("10.0.0.2", &[])?;
    // A guest sends on the queue of the CPU; what it gets is spread by flow, and so by chance. A
    // queue is left out after 64 flows once in a hundred million runs.
    for _ in 0..8 {
        for cpu in 0..PAIRS {
            a.exec(&format!(
                "taskset -c {cpu} /real/guest-agent stream 10.0.0.2 300000"
            ))?;
            b.exec(&format!(
                "taskset -c {cpu} /real/guest-agent stream 10.0.0.1 300000"
            ))?;
        }
        if unused(&daemon)?.is_empty() {
            break;
        }
    }
    let unused = unused(&daemon)?;
    if !unused.is_empty() {
        bail!("queue pairs without traffic: {unused:?}");
    }
    // Fewer queues than the device has, then all again, with traffic in between.
    for channels in [1, PAIRS] {
        a.exec(&format!("/real/ethtool -L eth0 combined {channels}"))?;
        a.stream("10.0.0.2", 1 << 20)?;
    }
    daemon.check_arithmetic()?;
    drop((a, b));
    daemon.stop()
}

#[test]
fn four_split_pairs_carry_traffic_both_ways() -> Result<()> {
    let name = "guests_queues::four_split_pairs_carry_traffic_both_ways";
    scenario(name, &[Need::Guests], |lab| check(lab, "packed=off"))
}

#[test]
fn four_packed_pairs_carry_traffic_both_ways() -> Result<()> {
    let name = "guests_queues::four_packed_pairs_carry_traffic_both_ways";
    scenario(name, &[Need::Guests], |lab| check(lab, "packed=on"))
}
