//! What goes to the wire and comes from it: tags, large frames, frames for all.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tandem_tests::frontend::driver::Nic;
use tandem_tests::frontend::frames::{
    BROADCAST, mac, number_of, numbered, payload, raw, tagged, untagged,
};
use tandem_tests::lab::{Lab, Need, Ovs, PATIENCE, scenario, wait_until};
use tandem_tests::uplink::{Cables, Rig, Socket, Tcpdump};

const A: [u8; 6] = mac(1);
const B: [u8; 6] = mac(2);
/// A station on the wire.
const W: [u8; 6] = mac(9);
/// Ends every silence: a frame to one VM.
const MARK: u64 = u64::MAX;
const TCPDUMP: Need = Need::Program("tcpdump", "tcpdump");
const TWO_PORTS: &str =
    "[port.a]\nmac = \"52:54:00:00:00:01\"\n[port.b]\nmac = \"52:54:00:00:00:02\"";

/// The next frame of these tests at the wire: its VLAN, and its number.
fn next(tcpdump: &Tcpdump) -> Result<(Option<u16>, u64)> {
    loop {
        let frame = tcpdump.recv()?;
        let (vlan, plain) = untagged(&frame);
        if plain[12..14] == [0x88, 0xb5] {
            return Ok((vlan, number_of(&frame)));
        }
    }
}

/// The numbers of frames that came to `nic` before the mark.
fn heard(nic: &mut Nic) -> Vec<u64> {
    let numbers = std::iter::from_fn(|| Some(number_of(&nic.recv().1)));
    numbers.take_while(|number| *number != MARK).collect()
}

/// Drops for a reason that the team counts, in `to_wire` or `from_wire`.
fn drops(team: &Value, direction: &str, reason: &str) -> u64 {
    team[direction]["drops"][reason].as_u64().unwrap_or(0)
}

/// VLANs reach the wire tagged, the native one without a tag, others not at all; and the same the
/// other way.
#[test]
fn tags() -> Result<()> {
    scenario("uplink_vlans::tags", &[Need::Root, TCPDUMP], |lab| {
        let text = "[switch.default]\nuplink = \"u0\"\nuplink_vlans = \"10,20-21\"\n\
                    uplink_native_vlan = 20\n[port.a]\nvlan = 10\n[port.b]\nvlan = 20\n\
                    [port.c]\nvlan = 30\n[port.d]\n[port.t]\ntrunk_vlans = \"10,20-21\"\n";
        let rig = Rig::with_config(lab, Cables::new(1)?, text)?;
        rig.wait_uplink()?;
        let tcpdump = Tcpdump::start(lab.path(), &rig.cables.far, "f0")?;
        let ports = ["a", "b", "c", "d", "t"];
        let nics: Result<Vec<_>> = ports.iter().map(|port| rig.nic(port)).collect();
        let [mut a, mut b, mut c, mut d, mut t] =
            <[Nic; 5]>::try_from(nics?).ok().context("five ports")?;
        for (nic, number) in [(&mut c, 3), (&mut d, 4), (&mut a, 1), (&mut b, 2)] {
            nic.send_plain(&numbered(mac(number), BROADCAST, number.into()));
            nic.flush();
        }
        t.send_plain(&tagged(&numbered(mac(5), BROADCAST, 5), 21));
        // Of c nothing is to reach the wire; of d as `uplink_native_vlan` says: not either.
        ensure!(next(&tcpdump)? == (Some(10), 1), "VLAN 10 keeps its tag");
        ensure!(next(&tcpdump)? == (None, 2), "the native VLAN has none");
        ensure!(
            next(&tcpdump)? == (Some(21), 5),
            "a trunk's VLAN keeps its tag"
        );

        let wire = rig.cables.socket(0)?;
        wire.send(&tagged(&numbered(W, BROADCAST, 30), 30))?;
        wire.send(&tagged(&numbered(W, BROADCAST, 10), 10))?;
        wire.send(&numbered(W, BROADCAST, 20))?;
        let from_wire = |nic: &mut Nic| loop {
            let (vlan, frame) = untagged(&nic.recv().1);
            if frame[6..12] == W {
                return (vlan, number_of(&frame));
            }
        };
        ensure!(from_wire(&mut a) == (None, 10), "VLAN 10");
        ensure!(from_wire(&mut b) == (None, 20), "the native VLAN");
        ensure!(from_wire(&mut t) == (Some(10), 10), "a trunk has the tag");
        ensure!(from_wire(&mut t) == (Some(20), 20), "a trunk has the tag");
        for nic in [&mut c, &mut d] {
            let strangers = std::iter::from_fn(|| nic.try_recv(0)).filter(|f| f.1[6..12] == W);
            ensure!(
                strangers.count() == 0,
                "a VLAN that does not reach the wire"
            );
        }
        rig.daemon.stop()
    })
}

/// Without a native VLAN the frames of ports without one are untagged on the wire, and all tags pass.
#[test]
fn untagged_ports_and_all_vlans() -> Result<()> {
    let name = "uplink_vlans::untagged_ports_and_all_vlans";
    scenario(name, &[Need::Root, TCPDUMP], |lab| {
        let text = "[switch.default]\nuplink = \"u0\"\n[port.a]\n[port.b]\nvlan = 4094\n";
        let rig = Rig::with_config(lab, Cables::new(1)?, text)?;
        rig.wait_uplink()?;
        let tcpdump = Tcpdump::start(lab.path(), &rig.cables.far, "f0")?;
        let (mut a, mut b) = (rig.nic("a")?, rig.nic("b")?);
        a.send_plain(&numbered(A, BROADCAST, 1));
        ensure!(next(&tcpdump)? == (None, 1), "no VLAN, no tag");
        b.send_plain(&numbered(B, BROADCAST, 2));
        ensure!(next(&tcpdump)? == (Some(4094), 2), "VLAN 4094");
        let wire = rig.cables.socket(0)?;
        wire.send(&tagged(&numbered(W, BROADCAST, 3), 4094))?;
        wire.send(&numbered(W, BROADCAST, 4))?;
        ensure!(b.recv().1 == numbered(W, BROADCAST, 3), "VLAN 4094");
        ensure!(a.recv().1 == numbered(W, BROADCAST, 4), "untagged");
        rig.daemon.stop()
    })
}

/// Frames of 9000 bytes cross both ways, tagged or not; where the wire takes only 1500, they are
/// dropped and counted, and no other is.
#[test]
fn large_frames() -> Result<()> {
    scenario("uplink_vlans::large_frames", &[Need::Root], |lab| {
        let cables = Cables::new(2)?;
        cables.near.ip("link set u0 mtu 9000")?;
        cables.far.ip("link set f0 mtu 9000")?;
        let ports = "[port.a]\nmac = \"52:54:00:00:00:01\"\nmtu = 9000\n";
        let team = "standby = \"u1\"";
        let rig = Rig::start(lab, cables, 2, team, ports)?;
        rig.wait_state(0, "active")?;
        rig.wait_state(1, "standby")?;
        let mut a = rig.nic("a")?;
        let mut wire = rig.cables.socket(0)?;
        let jumbo = |src, dst, seed| raw(src, dst, &payload(seed, 9000));
        for seed in 0..50 {
            a.send_plain(&jumbo(A, W, seed));
            wire.send(&jumbo(W, A, seed))?;
            let got = wire.wait("a jumbo frame", |frame| frame[6..12] == A)?;
            ensure!(got == jumbo(A, W, seed), "changed on its way to the wire");
            ensure!(a.recv().1 == jumbo(W, A, seed), "changed on its way back");
        }
        // The other member's wire is as most are.
        rig.cables.cut(0)?;
        rig.wait_state(1, "active")?;
        let mut wire = rig.cables.socket(1)?;
        a.send_plain(&jumbo(A, W, 1));
        a.send_plain(&numbered(A, W, 2));
        let got = wire.wait("a frame behind", |frame| frame[6..12] == A)?;
        ensure!(number_of(&got) == 2, "a frame larger than the MTU was sent");
        let refused = drops(&rig.member(1)?, "to_wire", "host_refused");
        ensure!(refused == 1, "{refused} refused");
        rig.daemon.stop()
    })
}

/// Frames for all leave by one member only, and are not taken for a station's on the wire when they come
/// back by another.
#[test]
fn broadcast_is_sent_once_and_not_echoed() -> Result<()> {
    let name = "uplink_vlans::broadcast_is_sent_once_and_not_echoed";
    scenario(name, &[Need::Root], |lab| {
        let rig = Rig::new(lab, 2, "", TWO_PORTS)?;
        for mode in ["switch_independent", "static"] {
            rig.daemon.cli(&["team", "set", "team0", "--mode", mode])?;
            for i in 0..2 {
                rig.wait_state(i, "active")?;
            }
            sent_once(&rig, mode)?;
            rig.daemon
                .wait_port("b", "loses its VMM", |port| !port.is_up())?;
        }
        rig.daemon.stop()
    })
}

fn sent_once(rig: &Rig, mode: &str) -> Result<()> {
    let (mut a, mut b) = (rig.nic("a")?, rig.nic("b")?);
    let mut sockets = [rig.cables.socket(0)?, rig.cables.socket(1)?];
    let before = rig.team()?;
    let broadcasts: Vec<_> = (0..20).map(|n| numbered(A, BROADCAST, n)).collect();
    for frame in &broadcasts {
        a.send_plain(frame);
        ensure!(&b.recv().1 == frame, "the neighbour hears each once");
    }
    let mut came = 0;
    wait_until("each broadcast on the wire", PATIENCE, || {
        for socket in &mut sockets {
            let frames = socket.drain()?;
            came += frames
                .iter()
                .filter(|f| broadcasts.contains(&f.frame))
                .count();
        }
        Ok(came >= broadcasts.len())
    })?;
    // What a switch would flood to the other member, and what a loop brings back by the same one.
    for socket in &sockets {
        for frame in &broadcasts {
            socket.send(frame)?;
        }
        socket.send(&numbered(W, A, MARK))?;
        socket.send(&numbered(W, B, MARK))?;
    }
    for _ in &sockets {
        ensure!(heard(&mut a).is_empty(), "its own came back");
        ensure!(heard(&mut b).is_empty(), "heard once more");
    }
    for socket in &mut sockets {
        let more = socket.drain()?;
        came += more
            .iter()
            .filter(|f| broadcasts.contains(&f.frame))
            .count();
    }
    ensure!(
        came == 20,
        "{mode}: {came} frames on the wire for 20 broadcasts"
    );
    let after = rig.team()?;
    let more = |reason| drops(&after, "from_wire", reason) - drops(&before, "from_wire", reason);
    let (own, inactive) = (more("own_frame"), more("inactive_member"));
    let expected = match mode {
        "static" => (40, 0),
        _ => (20, 20),
    };
    ensure!(
        (own, inactive) == expected,
        "{mode}: own {own}, inactive {inactive}"
    );
    Ok(())
}

/// A switch that knows nothing of the team floods a station's broadcast to each member: it is delivered
/// once. So is what a VM sends, and its unicast comes to it by whatever member.
#[test]
fn far_switch_floods_to_both_members() -> Result<()> {
    let name = "uplink_vlans::far_switch_floods_to_both_members";
    let ovs = Need::Program("ovs-vswitchd", "openvswitch-switch");
    scenario(name, &[Need::Root, ovs], floods)
}

fn floods(lab: &Lab) -> Result<()> {
    let cables = Cables::new(2)?;
    cables.make_host("h0", "p0")?;
    let ovs = Ovs::inside(lab.path(), &cables.far)?;
    ovs.vsctl(
        "add-br br0 -- set bridge br0 datapath_type=netdev -- add-port br0 p0 \
         -- add-port br0 f0 -- add-port br0 f1",
    )?;
    let rig = Rig::start(lab, cables, 2, "", TWO_PORTS)?;
    for i in 0..2 {
        rig.wait_state(i, "active")?;
    }
    let (mut a, mut b) = (rig.nic("a")?, rig.nic("b")?);
    let mut host = Socket::open(&rig.cables.far, "h0")?;
    for number in 0..100 {
        host.send(&numbered(W, BROADCAST, number))?;
    }
    for nic in [&mut a, &mut b] {
        for number in 0..100 {
            let got = number_of(&nic.recv().1);
            ensure!(got == number, "frame {got} and not {number}");
        }
    }
    for number in 200..300 {
        a.send_plain(&numbered(A, BROADCAST, number));
        ensure!(
            number_of(&b.recv().1) == number,
            "the neighbour hears each once"
        );
    }
    for number in 200..300 {
        let got = host.wait("a broadcast of the VM", |frame| frame[6..12] == A)?;
        ensure!(
            number_of(&got) == number,
            "frame {} and not {number}",
            number_of(&got)
        );
    }
    // Both behind whatever came before.
    host.send(&numbered(W, A, MARK))?;
    host.send(&numbered(W, B, MARK))?;
    ensure!(heard(&mut a).is_empty(), "a frame came twice");
    ensure!(heard(&mut b).is_empty(), "a frame came twice");
    rig.daemon.stop()
}
