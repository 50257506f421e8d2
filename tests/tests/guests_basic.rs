//! Two Linux guests on one switch: the least that must work, with every QEMU there is.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use tandem_tests::lab::{
    Daemon, Guest, GuestConfig, Need, Nic, Qemu, boot_two, long, qemus, scenario, skip,
};

const SIZES: [usize; 4] = [0, 56, 1472, 6000];
const MAC_A: &str = "52:54:00:00:00:0a";
const MAC_B: &str = "52:54:00:00:00:0b";

fn stream_bytes() -> u64 {
    if long() { 256 << 20 } else { 4 << 20 }
}

/// Ports `a` and `b`, a guest of the same name on each, addressed and up.
fn two_guests(
    dir: &Path,
    daemon: &Daemon,
    [qemu_a, qemu_b]: [&Qemu; 2],
    option: &str,
) -> Result<(Guest, Guest)> {
    let guest = |name: &str, qemu: &Qemu, mac: &str| {
        let nic = Nic::vhost_user(daemon.socket(name), mac).option(option);
        GuestConfig::new(name).qemu(qemu).nic(nic)
    };
    let (mut a, mut b) = boot_two(dir, guest("a", qemu_a, MAC_A), guest("b", qemu_b, MAC_B))?;
    a.configure("eth0", &["10.0.0.1/24", "fd00::1/64"])?;
    b.configure("eth0", &["10.0.0.2/24", "fd00::2/64"])?;
    Ok((a, b))
}

fn check_traffic(a: &mut Guest, b: &mut Guest) -> Result<()> {
    a.ping("10.0.0.2", &SIZES)?;
    b.ping("fd00::1", &SIZES)?;
    a.stream("10.0.0.2", stream_bytes())?;
    b.stream("fd00::1", stream_bytes())?;
    a.echo("10.0.0.2", &[1, 100, 1472, 5000, 30000])?;
    b.echo("fd00::1", &[1, 100, 1452, 5000, 30000])
}

fn ring(daemon: &Daemon, port: &str) -> Result<String> {
    Ok(daemon.port(port)?.0["session"]["ring"]
        .as_str()
        .unwrap_or("none")
        .to_string())
}

/// What both ports dropped, and why.
fn drops(daemon: &Daemon) -> String {
    ["a", "b"]
        .map(|port| match daemon.port(port) {
            Ok(port) => port.0["counters"].to_string(),
            Err(error) => error.to_string(),
        })
        .join("\n")
}

fn talk(dir: &Path, qemus: [&Qemu; 2], packed: bool) -> Result<()> {
    let daemon = Daemon::with_ports(dir, &["a", "b"])?;
    let option = if packed { "packed=on" } else { "packed=off" };
    let (mut a, mut b) = two_guests(dir, &daemon, qemus, option)?;
    // A card that comes up is flooded to a card that is not up yet, and has no buffers.
    let undelivered = daemon.check_arithmetic()?.undelivered;
    check_traffic(&mut a, &mut b).with_context(|| drops(&daemon))?;
    let expected = if packed { "packed" } else { "split" };
    for port in ["a", "b"] {
        let ring = ring(&daemon, port)?;
        ensure!(
            ring == expected,
            "port {port} has a {ring} ring, not a {expected} one"
        );
        ensure!(daemon.port(port)?.is_up(), "port {port} is not up");
    }
    let totals = daemon.check_arithmetic()?;
    ensure!(
        totals.undelivered == undelivered,
        "frames were dropped on the way to a guest: {totals:?}\n{}",
        drops(&daemon)
    );
    // A new driver on the same connection, however the machine restarts.
    b.reset()?;
    b.configure("eth0", &["10.0.0.2/24", "fd00::2/64"])?;
    a.ping("10.0.0.2", &[])?;
    a.reboot()?;
    a.configure("eth0", &["10.0.0.1/24", "fd00::1/64"])?;
    check_traffic(&mut a, &mut b)?;
    drop((a, b));
    daemon.stop()
}

#[test]
fn split_rings() -> Result<()> {
    scenario("guests_basic::split_rings", &[Need::Guests], |lab| {
        let system = qemus()?.remove(0);
        talk(lab.path(), [&system, &system], false)
    })
}

#[test]
fn packed_rings() -> Result<()> {
    scenario("guests_basic::packed_rings", &[Need::Guests], |lab| {
        let system = qemus()?.remove(0);
        talk(lab.path(), [&system, &system], true)
    })
}

#[test]
fn newer_qemu_split_rings() -> Result<()> {
    let name = "guests_basic::newer_qemu_split_rings";
    // By day newer_qemu_packed_rings has the newer program, and the older one has split rings.
    if !long() {
        skip(name, "packed rings by day; ci/test --long");
        return Ok(());
    }
    scenario(name, &[Need::Guests, Need::NewerQemu], |lab| {
        let qemus = qemus()?;
        talk(lab.path(), [&qemus[1], &qemus[0]], false)
    })
}

#[test]
fn newer_qemu_packed_rings() -> Result<()> {
    scenario(
        "guests_basic::newer_qemu_packed_rings",
        &[Need::Guests, Need::NewerQemu],
        |lab| {
            let qemus = qemus()?;
            talk(lab.path(), [&qemus[1], &qemus[1]], true)
        },
    )
}

/// iperf3 is not ours, and so a second opinion on a stream.
#[test]
fn iperf_both_ways() -> Result<()> {
    let needs = [Need::Guests, Need::Program("iperf3", "iperf3")];
    scenario("guests_basic::iperf_both_ways", &needs, |lab| {
        let daemon = Daemon::with_ports(lab.path(), &["a", "b"])?;
        let system = qemus()?.remove(0);
        let (mut a, mut b) = two_guests(lab.path(), &daemon, [&system, &system], "packed=off")?;
        b.serve_iperf()?;
        a.exec("/real/iperf3 -c 10.0.0.2 -t 2")?;
        a.exec("/real/iperf3 -c 10.0.0.2 -t 2 -R")?;
        a.exec("/real/iperf3 -c 10.0.0.2 -t 2 -u -b 20M")?;
        daemon.check_arithmetic().map(drop)
    })
}

/// Large frames end to end, without segmentation hiding that they are large.
#[test]
fn jumbo_frames() -> Result<()> {
    scenario("guests_basic::jumbo_frames", &[Need::Guests], |lab| {
        let daemon = Daemon::with_ports(lab.path(), &["a,mtu=9000", "b,mtu=9000"])?;
        let system = qemus()?.remove(0);
        let (mut a, mut b) = two_guests(lab.path(), &daemon, [&system, &system], "host_mtu=9000")?;
        for guest in [&mut a, &mut b] {
            let mtu = guest.exec("cat /sys/class/net/eth0/mtu")?;
            ensure!(mtu.trim() == "9000", "{} has an MTU of {mtu}", guest.name());
        }
        // ICMP is never segmented by a device: one frame of 9014 bytes, or nothing.
        let before = daemon.port("b")?.0["counters"]["to_vm"].clone();
        a.exec("/real/ping -M do -c 3 -i 0.2 -s 8972 10.0.0.2")?;
        let after = daemon.port("b")?.0["counters"]["to_vm"].clone();
        let grown =
            |key: &str| after[key].as_u64().unwrap_or(0) - before[key].as_u64().unwrap_or(0);
        ensure!(
            grown("bytes") >= 3 * 9014,
            "{} bytes delivered",
            grown("bytes")
        );
        ensure!(grown("frames") < 10, "{} frames delivered", grown("frames"));
        check_traffic(&mut a, &mut b)
    })
}
