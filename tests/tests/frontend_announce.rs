//! VMs that have not noticed a restart say nothing of themselves: the switch says it for them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use tandem_tests::frontend::driver::{Config, Nic};
use tandem_tests::frontend::frames::{BROADCAST, mac};
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::session::Order;
use tandem_tests::frontend::spec::{self, NetHdr};
use tandem_tests::frontend::wire::PATIENCE;

/// An ARP request of the station `10.0.0.n` at `mac(n)`, for 10.0.0.99.
fn request(n: u8) -> Vec<u8> {
    let mut bytes = [BROADCAST, mac(n)].concat();
    bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend(mac(n));
    bytes.extend([10, 0, 0, n, 0, 0, 0, 0, 0, 0, 10, 0, 0, 99]);
    bytes
}

/// Sends it, and waits until the switch has taken note.
fn introduce(rig: &Rig, nic: &mut Nic, port: &str, n: u8) -> Result<()> {
    nic.send_plain(&request(n));
    let known = json!([format!("10.0.0.{n}")]);
    rig.wait_port(port, "should know its address", |p| p["addresses"] == known)?;
    // Kept within a second, for the next daemon.
    let file = rig.socket(port).with_extension("neighbours");
    let end = Instant::now() + PATIENCE;
    while !file.exists() {
        ensure!(Instant::now() < end, "{file:?} is not written");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Waits for the announcement of `10.0.0.n`.
fn hear(nic: &mut Nic, n: u8) {
    let announced = |frame: &[u8]| {
        let arp = frame[12..14] == [8, 6] && frame[28..32] == frame[38..42];
        arp && frame[22..32] == [&mac(n)[..], &[10, 0, 0, n]].concat()[..]
    };
    while !announced(&nic.recv().1) {}
}

fn both_ways(order: Order, features: u64, crash: bool) -> Result<()> {
    let mut rig = Rig::new(&["a", "b"])?;
    let config = Config {
        order,
        ..Config::with(features)
    };
    let (mut a, mut b) = (rig.nic("a", &config)?, rig.nic("b", &config)?);
    introduce(&rig, &mut a, "a", 1)?;
    introduce(&rig, &mut b, "b", 2)?;
    if crash {
        rig.daemon.restart_after_crash()?;
    } else {
        rig.daemon.restart()?;
    }
    for nic in [&mut a, &mut b] {
        let bases = nic.bases_after_loss();
        nic.reconnect(&bases)?;
    }
    hear(&mut a, 2);
    hear(&mut b, 1);
    let counters = rig.settled()?;
    ensure!(counters.switch("announced") >= 2, "{counters:#?}");
    // The switch has learned where they are, too.
    for (port, n) in [("a", 1), ("b", 2)] {
        let macs = json!([format!("52:54:00:00:00:0{n}")]);
        rig.wait_port(port, "should be known", |p| p["learned_macs"] == macs)?;
    }
    // A driver that starts anew is another station, for all we know.
    drop(b);
    rig.wait_disconnected("b")?;
    let _b = rig.nic("b", &config)?;
    rig.wait_port("b", "should be unknown", |p| p["addresses"] == json!([]))?;
    Ok(())
}

#[test]
fn after_a_crash_split() -> Result<()> {
    both_ways(Order::Qemu72, 0, true)
}

#[test]
fn after_a_crash_packed_in_cloud_hypervisors_order() -> Result<()> {
    both_ways(Order::CloudHypervisor, spec::RING_PACKED, true)
}

#[test]
fn after_a_restart_split() -> Result<()> {
    both_ways(Order::CloudHypervisor, 0, false)
}

#[test]
fn after_a_restart_packed() -> Result<()> {
    both_ways(Order::Qemu10, spec::RING_PACKED, false)
}

/// A VM that was never heard is not announced, and nobody's frames are taken for an address.
#[test]
fn nothing_is_made_up() -> Result<()> {
    let mut rig = Rig::new(&["a", "b"])?;
    let (mut a, mut b) = (
        rig.nic("a", &Config::default())?,
        rig.nic("b", &Config::default())?,
    );
    // The sender of the packet is not the sender of the frame.
    let mut forged = request(1);
    forged[22] ^= 4;
    a.send_burst(&[(NetHdr::default(), forged)]);
    b.recv();
    rig.daemon.restart_after_crash()?;
    for nic in [&mut a, &mut b] {
        let bases = nic.bases_after_loss();
        nic.reconnect(&bases)?;
    }
    rig.wait_port("a", "should be up", |p| p["state"] == "up")?;
    let counters = rig.settled()?;
    ensure!(counters.switch("announced") == 0, "{counters:#?}");
    Ok(())
}
