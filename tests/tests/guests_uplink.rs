//! A guest, and the host itself, reach the network by a team.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tandem_tests::lab::{Guest, GuestConfig, Lab, Need, Nic, Ovs, long, payload, say, scenario};
use tandem_tests::uplink::{Cables, Rig};

const GUEST: &str = "192.0.2.2";
const HOST: &str = "192.0.2.1";
/// A station on the wire.
const FAR: &str = "192.0.2.9";
const OVS: Need = Need::Program("ovs-vswitchd", "openvswitch-switch");
const ETHTOOL: Need = Need::Program("ethtool", "ethtool");

/// Everything a guest's stack may leave to its card, off.
const NO_OFFLOADS: &str = "/real/ethtool -K eth0 rx off tx off tso off gso off gro off";

fn boot(lab: &Lab, rig: &Rig) -> Result<Guest> {
    let nic = Nic::vhost_user(rig.daemon.socket("a"), "52:54:00:00:00:0a");
    let mut guest = GuestConfig::new("a").nic(nic).boot(lab.path())?;
    guest.configure("eth0", &[&format!("{GUEST}/24")])?;
    Ok(guest)
}

/// Answers streams and echoes at the far end, for good.
fn serve(rig: &Rig) -> Result<()> {
    rig.cables.far.inside(|| {
        std::thread::spawn(payload::serve);
        Ok(())
    })
}

/// Every byte that a guest and the far end send each other is checked at both.
fn talk(rig: &Rig, guest: &mut Guest, largest: usize) -> Result<()> {
    let bytes = if long() { 64 << 20 } else { 1 << 20 };
    guest.ping(FAR, &[56, 1472])?;
    let there = guest.stream(FAR, bytes)?;
    let peer: SocketAddr = (GUEST.parse::<std::net::Ipv4Addr>()?, payload::PORT).into();
    rig.cables
        .far
        .inside(|| Ok(payload::stream(peer, bytes, 7)?))?;
    guest.echo(FAR, &[1, 1472, largest])?;
    say(&format!("      {}", there.trim()));
    Ok(())
}

/// In each mode over two members, with a switch at the other end that fits the mode.
#[test]
fn guest_reaches_the_wire_in_each_mode() -> Result<()> {
    let name = "guests_uplink::guest_reaches_the_wire_in_each_mode";
    scenario(name, &[Need::Guests, Need::Root, OVS, ETHTOOL], |lab| {
        let cables = Cables::new(2)?;
        let ovs = start_far_switch(lab, &cables)?;
        let rig = Rig::start(lab, cables, 2, "", "[port.a]\n")?;
        // This switch in user space takes no frames with work left to do.
        for i in 0..2 {
            let off = "rx off tx off tso off gso off gro off";
            rig.cables.near.run(&format!("ethtool -K u{i} {off}"))?;
        }
        serve(&rig)?;
        let mut guest = boot(lab, &rig)?;
        for mode in ["switch_independent", "static", "lacp"] {
            say(&format!("      {mode}"));
            far_end(&ovs, mode)?;
            rig.daemon.cli(&["team", "set", "team0", "--mode", mode])?;
            for i in 0..2 {
                rig.wait_state(i, "active")?;
            }
            talk(&rig, &mut guest, 9000).context(mode)?;
        }
        guest.exec(NO_OFFLOADS)?;
        talk(&rig, &mut guest, 9000)?;
        drop(guest);
        rig.daemon.stop()
    })
}

/// A switch at the other end, on which the far station is.
fn start_far_switch(lab: &Lab, cables: &Cables) -> Result<Ovs> {
    let ovs = Ovs::inside(lab.path(), &cables.far)?;
    ovs.vsctl("add-br br0 -- set bridge br0 datapath_type=netdev")?;
    cables.far.ip(&format!("addr add {FAR}/24 dev br0"))?;
    cables.far.ip("link set br0 up")?;
    Ok(ovs)
}

/// Makes the switch at the other end what a mode needs, in the order of the modes.
fn far_end(ovs: &Ovs, mode: &str) -> Result<()> {
    match mode {
        "switch_independent" => ovs.vsctl("add-port br0 f0 -- add-port br0 f1"),
        "static" => {
            // A link group without a protocol: each flow leaves by either port, and nothing goes from
            // one to the other.
            ovs.vsctl("set interface f0 ofport_request=11 -- set interface f1 ofport_request=12")?;
            ovs.ofctl(
                "add-group",
                "group_id=1,type=select,bucket=output:11,bucket=output:12",
            )?;
            ovs.ofctl("add-flow", "priority=9,in_port=11,actions=LOCAL")?;
            ovs.ofctl("add-flow", "priority=9,in_port=12,actions=LOCAL")?;
            ovs.ofctl("add-flow", "priority=9,in_port=LOCAL,actions=group:1")
        }
        _ => {
            for port in ["11", "12", "LOCAL"] {
                ovs.ofctl("del-flows", &format!("in_port={port}"))?;
            }
            ovs.ofctl("add-flow", "priority=0,actions=NORMAL")?;
            ovs.vsctl("del-port f0 -- del-port f1")?;
            ovs.vsctl(
                "add-bond br0 bond0 f0 f1 bond_mode=balance-tcp lacp=active other_config:lacp-time=fast",
            )
        }
    }
}

/// Segments and checksums that are left to the card cross the wire as they are; and the same bytes come
/// when none is.
#[test]
fn offloads_reach_the_wire() -> Result<()> {
    let name = "guests_uplink::offloads_reach_the_wire";
    scenario(name, &[Need::Guests, Need::Root, ETHTOOL], |lab| {
        let rig = Rig::new(lab, 2, "standby = \"u1\"", "[port.a]\n")?;
        rig.cables.far.ip(&format!("addr add {FAR}/24 dev f0"))?;
        serve(&rig)?;
        let mut guest = boot(lab, &rig)?;
        talk(&rig, &mut guest, 60_000)?;
        let sent = rig.member(0)?["to_wire"].take();
        let count = |what: &str| sent[what].as_u64().unwrap_or(0);
        let mean = count("bytes") / count("frames").max(1);
        say(&format!("      {mean} bytes in a frame"));
        // Acknowledgements of what comes the other way are among them.
        ensure!(mean > 1514, "segments were cut before the wire");
        // The wire takes nothing unfinished: the kernel does it for the device.
        rig.cables
            .near
            .run("ethtool -K u0 tx off tso off gso off")?;
        talk(&rig, &mut guest, 60_000)?;
        guest.exec(NO_OFFLOADS)?;
        talk(&rig, &mut guest, 60_000)?;
        drop(guest);
        rig.daemon.stop()
    })
}

/// The host's address moves from a device to a TAP port before the device is a member, and the host is
/// reached as before; also after a member has failed, because its switch is told where the port is now.
#[test]
fn the_host_is_reached_by_a_tap() -> Result<()> {
    let name = "guests_uplink::the_host_is_reached_by_a_tap";
    scenario(name, &[Need::Root, OVS], |lab| {
        let cables = Cables::new(2)?;
        let ovs = start_far_switch(lab, &cables)?;
        far_end(&ovs, "switch_independent")?;
        cables.near.ip(&format!("addr add {HOST}/24 dev u0"))?;
        cables.near.ip("link set u0 up")?;
        let ping = format!("ping -c 3 -i 0.1 -w 5 {HOST}");
        cables.far.run(&ping)?;
        let rig = Rig::start(lab, cables, 2, "", "[port.host]\ntap = \"mgmt0\"\n")?;
        let (near, far) = (&rig.cables.near, &rig.cables.far);
        for i in 0..2 {
            rig.wait_state(i, "active")?;
        }
        near.ip(&format!("addr del {HOST}/24 dev u0"))?;
        near.ip(&format!("addr add {HOST}/24 dev mgmt0"))?;
        // As a host is before it is told.
        near.run("sysctl net.ipv4.conf.all.arp_ignore=0")?;
        for i in 0..2 {
            near.run(&format!("sysctl net.ipv4.conf.u{i}.arp_ignore=1"))?;
        }
        far.ip("neigh flush all")?;
        far.run(&ping)?;
        let neighbour = far.ip(&format!("neigh show {HOST}"))?;
        let device = near.ip("link show mgmt0")?;
        let mut words = device.split_whitespace();
        let mac = words.find(|word| *word == "link/ether");
        let mac = mac.and(words.next()).context("no MAC address")?;
        ensure!(neighbour.contains(mac), "{neighbour} is not {device}");
        for i in [0, 1] {
            rig.cables.cut(i)?;
            rig.wait_state(i, "down")?;
            far.run(&ping)?;
            rig.cables.mend(i)?;
            rig.wait_state(i, "active")?;
            far.run(&ping)?;
        }
        rig.daemon.stop()
    })
}
