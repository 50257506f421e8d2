//! LACP with the bonding driver of Linux as the partner, in a guest: its cards are the members' wires.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tandem_tests::lab::{GuestConfig, Need, Nic, say, scenario};
use tandem_tests::uplink::{Cables, Rig};

/// The driver takes part in LACP only with links of a known speed.
const SPEED: [&str; 2] = ["speed=10000", "duplex=full"];
const HOST: &str = "192.0.2.1";
const BOND: &str = "192.0.2.2";

#[test]
fn linux_bonding_is_the_partner() -> Result<()> {
    let name = "uplink_bonding::linux_bonding_is_the_partner";
    scenario(name, &[Need::Guests, Need::Root], |lab| {
        let cables = Cables::new(0)?;
        let mut config = GuestConfig::new("partner").inside(&cables.near);
        for i in 0..2 {
            let tap = format!("tap,ifname=u{i},script=no,downscript=no");
            let nic = Nic::other(&tap, &format!("52:54:00:00:0b:0{i}"));
            config = config.nic(SPEED.iter().fold(nic, |nic, option| nic.option(option)));
        }
        let partner = config.start(lab.path())?;
        let port = "[port.host]\ntap = \"host0\"\n";
        let rig = Rig::start(lab, cables, 2, "mode = \"lacp\"", port)?;
        rig.cables
            .near
            .ip(&format!("addr add {HOST}/24 dev host0"))?;
        let mut partner = partner;
        partner.wait_ready(tandem_tests::lab::PATIENCE)?;
        for i in 0..2 {
            rig.wait_member(i, "has a link", |member| member["link_up"] == true)?;
        }
        partner.exec(
            "while read -r module; do insmod /modules/$module max_bonds=0 2>/dev/null || \
             insmod /modules/$module; done </modules/bonding; \
             cd /sys/class/net && echo +bond0 >bonding_masters && cd bond0/bonding && \
             echo 802.3ad >mode && echo 100 >miimon && echo fast >lacp_rate && \
             echo layer3+4 >xmit_hash_policy && echo +eth0 >slaves && echo +eth1 >slaves",
        )?;
        partner.configure("bond0", &[&format!("{BOND}/24")])?;
        let begun = Instant::now();
        for i in 0..2 {
            rig.wait_state(i, "active")?;
        }
        let took = begun.elapsed();
        say(&format!("      up after {:.2} s", took.as_secs_f64()));
        ensure!(took <= Duration::from_secs(3), "up only after {took:?}");
        partner.ping(HOST, &[56, 1472])?;
        // Streams of many ports, both ways at once: whatever link each end chooses.
        let host = rig.cables.near.inside(|| {
            std::thread::spawn(tandem_tests::lab::payload::serve);
            Ok(())
        });
        host?;
        partner.exec("for i in 1 2 3 4 5 6 7 8; do /real/guest-agent stream 192.0.2.1 200000 || exit 1; done")?;
        let theirs = partner.exec("cat /proc/net/bonding/bond0")?;
        let ports = theirs.matches("Number of ports: 2").count();
        ensure!(ports == 1, "{theirs}");
        let member = rig.member(1)?;
        let system = &member["lacp"]["partner"]["system"];
        ensure!(system.is_string(), "{member:#}");
        // One card of the guest loses its carrier: the other carries all.
        partner.exec("ip link set eth0 down")?;
        partner.ping(HOST, &[56])?;
        rig.daemon.stop()
    })
}
