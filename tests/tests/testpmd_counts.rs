//! Every frame that testpmd sends is delivered or counted as dropped, whatever its rings are like.

use anyhow::{Result, ensure};
use tandem_tests::lab::testpmd::PortStats;
use tandem_tests::lab::{
    Daemon, Lab, Need, PATIENCE, Testpmd, TestpmdConfig, long, scenario, wait_until,
};

const NEEDS: [Need; 1] = [Need::Program("dpdk-testpmd", "dpdk-dev")];
const MAC_A: &str = "52:54:00:00:00:0a";
const MAC_B: &str = "52:54:00:00:00:0b";

/// Two testpmds on one switch, neither forwarding yet.
fn two_testpmds(lab: &Lab, device: &str, pairs: usize) -> Result<(Daemon, Testpmd, Testpmd)> {
    let port = |name: &str, mac: &str| format!("{name},mac={mac},queue_pairs={pairs}");
    let daemon = Daemon::with_ports(lab.path(), &[&port("a", MAC_A), &port("b", MAC_B)])?;
    let start = |name: &str, mac: &str, core: usize| {
        TestpmdConfig::new(name, daemon.socket(name), mac, core)
            .pairs(pairs)
            .device(device)
            .argument("--port-topology=loop")
            .argument("--txonly-multi-flow")
            .start(lab.path())
    };
    let mut a = start("a", MAC_A, 0)?;
    let mut b = start("b", MAC_B, 1)?;
    a.command(&format!("set eth-peer 0 {MAC_B}"))?;
    b.command(&format!("set eth-peer 0 {MAC_A}"))?;
    Ok((daemon, a, b))
}

/// Waits until testpmd and the switch agree on a port to the frame.
fn agree(daemon: &Daemon, port: &str, testpmd: &mut Testpmd) -> Result<PortStats> {
    let mut seen = PortStats::default();
    let mut counted = PortStats::default();
    let outcome = wait_until("testpmd and the switch to agree", PATIENCE, || {
        seen = testpmd.stats()?;
        let port = daemon.port(port)?;
        counted = PortStats {
            received: port.frames("to_vm")?,
            sent: port.frames("from_vm")?,
        };
        Ok(seen == counted)
    });
    outcome.map_err(|error| {
        error.context(format!(
            "port {port}: testpmd has {seen:?}, the switch {counted:?}"
        ))
    })?;
    Ok(seen)
}

fn frames_enough() -> u64 {
    if long() { 20_000_000 } else { 300_000 }
}

/// One sends as fast as it can, the other receives what it can.
fn flood(lab: &Lab, device: &str, pairs: usize, packets: &str) -> Result<()> {
    let (daemon, mut a, mut b) = two_testpmds(lab, device, pairs)?;
    b.command("set fwd rxonly")?;
    b.command("start")?;
    a.command("set fwd txonly")?;
    a.command(&format!("set txpkts {packets}"))?;
    a.command("start")?;
    daemon.wait_port("a", "carries the flood", |port| {
        port.frames("from_vm")
            .is_ok_and(|frames| frames > frames_enough())
    })?;
    a.command("stop")?;
    let sent = agree(&daemon, "a", &mut a)?.sent;
    let received = agree(&daemon, "b", &mut b)?.received;
    let totals = daemon.check_arithmetic()?;
    let dropped = totals.refused + totals.undelivered;
    ensure!(
        sent == received + dropped,
        "{sent} sent, {received} received, {dropped} dropped"
    );
    let drops = [daemon.port("a")?, daemon.port("b")?].map(|port| port.0["counters"].to_string());
    ensure!(
        received > 10_000,
        "only {received} of {sent} frames were received: {drops:?}"
    );
    if pairs > 1 {
        for (port, direction) in [("a", "from_vm"), ("b", "to_vm")] {
            let queues = daemon.port(port)?.queue_frames(direction)?;
            ensure!(
                !queues.contains(&0),
                "{port} {direction}: a pair is unused: {queues:?}"
            );
        }
    }
    a.quit()?;
    b.quit()?;
    daemon.stop()
}

/// A few frames to and fro for ever: few enough that none may be lost.
fn ping_pong(lab: &Lab, device: &str, pairs: usize) -> Result<()> {
    let (daemon, mut a, mut b) = two_testpmds(lab, device, pairs)?;
    for testpmd in [&mut a, &mut b] {
        testpmd.command("set fwd macswap")?;
    }
    b.command("start")?;
    a.command("start tx_first 1")?;
    daemon.wait_port("a", "carries the exchange", |port| {
        port.frames("to_vm")
            .is_ok_and(|frames| frames > frames_enough() / 10)
    })?;
    // Stop one, then let both collect what is on its way.
    for testpmd in [&mut a, &mut b] {
        testpmd.command("stop")?;
        testpmd.command("set fwd rxonly")?;
        testpmd.command("start")?;
    }
    agree(&daemon, "a", &mut a)?;
    agree(&daemon, "b", &mut b)?;
    let totals = daemon.check_arithmetic()?;
    ensure!(
        totals.refused + totals.undelivered == 0,
        "frames were lost: {totals:?}"
    );
    a.quit()?;
    b.quit()?;
    daemon.stop()
}

fn check(name: &str, device: &str, pairs: usize) -> Result<()> {
    scenario(&format!("testpmd_counts::{name}"), &NEEDS, |lab| {
        flood(lab, device, pairs, "60")?;
        ping_pong(lab, device, pairs)
    })
}

#[test]
fn split() -> Result<()> {
    check("split", "packed_vq=0", 1)
}

#[test]
fn split_four_pairs() -> Result<()> {
    check("split_four_pairs", "packed_vq=0", 4)
}

#[test]
fn split_in_order() -> Result<()> {
    check("split_in_order", "packed_vq=0,in_order=1", 1)
}

#[test]
fn split_not_mergeable() -> Result<()> {
    check(
        "split_not_mergeable",
        "packed_vq=0,mrg_rxbuf=0,in_order=0",
        1,
    )
}

#[test]
fn packed() -> Result<()> {
    check("packed", "packed_vq=1", 1)
}

#[test]
fn packed_four_pairs() -> Result<()> {
    check("packed_four_pairs", "packed_vq=1", 4)
}

#[test]
fn packed_in_order() -> Result<()> {
    check("packed_in_order", "packed_vq=1,in_order=1", 1)
}

#[test]
fn packed_not_mergeable() -> Result<()> {
    check(
        "packed_not_mergeable",
        "packed_vq=1,mrg_rxbuf=0,in_order=0",
        1,
    )
}

/// Frames in several buffers, each a descriptor of its own. DPDK marks the header of such a frame
/// as writable by the device when its ring is packed; it is read all the same.
#[test]
fn frames_in_pieces() -> Result<()> {
    scenario("testpmd_counts::frames_in_pieces", &NEEDS, |lab| {
        flood(lab, "packed_vq=0,in_order=1", 1, "64,128,1000")?;
        flood(lab, "packed_vq=0,in_order=0", 1, "64,128,1000")?;
        flood(lab, "packed_vq=1", 1, "64,128,1000")
    })
}
