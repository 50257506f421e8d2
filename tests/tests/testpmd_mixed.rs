//! Guests and testpmds on one switch, and ports that come and go beside them.

use anyhow::{Context, Result, ensure};
use tandem_tests::lab::{
    Daemon, GuestConfig, Need, Nic, Testpmd, TestpmdConfig, boot_two, scenario,
};

const NEEDS: [Need; 2] = [Need::Guests, Need::Program("dpdk-testpmd", "dpdk-dev")];

fn testpmd(daemon: &Daemon, dir: &std::path::Path, name: &str, mac: &str) -> Result<Testpmd> {
    TestpmdConfig::new(name, daemon.socket(name), mac, 0)
        .argument("--port-topology=loop")
        .start(dir)
}

/// Nobody who stays loses a frame.
#[test]
fn ports_come_and_go_beside_traffic() -> Result<()> {
    scenario(
        "testpmd_mixed::ports_come_and_go_beside_traffic",
        &NEEDS,
        |lab| {
            let ports = [
                "a",
                "b",
                "c,mac=52:54:00:00:00:0c",
                "d,mac=52:54:00:00:00:0d",
            ];
            let daemon = Daemon::with_ports(lab.path(), &ports)?;
            let guest = |name: &str, mac: &str| {
                GuestConfig::new(name).nic(Nic::vhost_user(daemon.socket(name), mac))
            };
            let (mut a, mut b) = boot_two(
                lab.path(),
                guest("a", "52:54:00:00:00:0a"),
                guest("b", "52:54:00:00:00:0b"),
            )?;
            a.configure("eth0", &["10.0.0.1/24"])?;
            b.configure("eth0", &["10.0.0.2/24"])?;
            a.ping("10.0.0.2", &[])?;
            let mut c = testpmd(&daemon, lab.path(), "c", "52:54:00:00:00:0c")?;
            let mut d = testpmd(&daemon, lab.path(), "d", "52:54:00:00:00:0d")?;
            c.command("set eth-peer 0 52:54:00:00:00:0d")?;
            for testpmd in [&mut d, &mut c] {
                testpmd.command("set fwd macswap")?;
            }
            // Testpmd starts its ring before it gives it buffers: what the guests say to everybody
            // in between has no room.
            let early = [drops_to(&daemon, "c")?, drops_to(&daemon, "d")?];
            d.command("start")?;
            c.command("start tx_first 1")?;

            // A lost or changed datagram, of 3000, ends this with an error.
            let sizes = "1 100 700 1472 ".repeat(750);
            a.exec(&format!(
                "(/real/guest-agent echo 10.0.0.2 {sizes} >/tmp/echo 2>&1; echo $? >/tmp/status) &"
            ))?;
            let mut rounds = 0;
            while a.try_exec("test -e /tmp/status")?.status != 0 {
                // In a VLAN of its own: its flood must not fill the rings of those who stay.
                daemon.cli(&["port", "add", "visitor", "--vlan", "7"])?;
                if rounds % 3 == 0 {
                    come_and_go(&daemon, lab.path())?;
                }
                daemon.cli(&["port", "remove", "visitor"])?;
                rounds += 1;
            }
            ensure!(rounds > 2, "the echoes were over after {rounds} rounds");
            let status = a.exec("cat /tmp/status")?;
            ensure!(
                status.trim() == "0",
                "an echo was lost: {}",
                a.exec("cat /tmp/echo")?
            );
            a.stream("10.0.0.2", 4 << 20)?;

            let before = daemon.port("c")?.frames("to_vm")?;
            daemon.wait_port("c", "still carries its exchange", |port| {
                port.frames("to_vm").is_ok_and(|frames| frames > before)
            })?;
            for (name, early) in ["c", "d"].into_iter().zip(early) {
                let lost = drops_to(&daemon, name)? - early;
                let counters = &daemon.port(name)?.0["counters"];
                ensure!(lost == 0, "{lost} frames to {name} were lost: {counters}");
            }
            c.quit()?;
            d.quit()?;
            drop((a, b));
            daemon.stop()
        },
    )
}

fn drops_to(daemon: &Daemon, port: &str) -> Result<u64> {
    daemon.port(port)?.drops("to_vm")
}

/// A testpmd on the port that is about to go: sends to everybody, and is killed.
fn come_and_go(daemon: &Daemon, dir: &std::path::Path) -> Result<()> {
    let mut visitor = testpmd(daemon, dir, "visitor", "52:54:00:00:00:0e")?;
    // An address nobody has: flooded, up to the storm limit, and to nobody.
    visitor.command("set eth-peer 0 52:54:00:00:00:99")?;
    visitor.command("set fwd txonly")?;
    visitor.command("set txpkts 60")?;
    visitor.command("start")?;
    daemon
        .wait_port("visitor", "sends", |port| {
            port.frames("from_vm").is_ok_and(|n| n > 10_000)
        })
        .context("the visitor")?;
    visitor.process().kill()
}
