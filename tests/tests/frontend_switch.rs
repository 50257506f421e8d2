//! What the switch does with frames, seen from the guests.

use anyhow::Result;
use tandem_tests::frontend::driver::{Config, Nic};
use tandem_tests::frontend::frames::{
    BROADCAST, mac, number_of, numbered, payload, raw, tagged, untagged, vlans,
};
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::spec::{self, NetHdr};

const A: [u8; 6] = mac(1);
const B: [u8; 6] = mac(2);
const C: [u8; 6] = mac(3);
/// Ends every silence: a broadcast from a VM everyone hears.
const MARK: u64 = u64::MAX;

fn nics<const N: usize>(rig: &Rig, ports: [&str; N]) -> Result<[Nic; N]> {
    let config = Config::with(spec::MRG_RXBUF);
    let nics: Result<Vec<_>> = ports.iter().map(|p| rig.nic(p, &config)).collect();
    Ok(nics?.try_into().unwrap_or_else(|_| unreachable!()))
}

/// Frames that came to `nic` before the mark.
fn heard(nic: &mut Nic) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    loop {
        let frame = nic.recv().1;
        if number_of(&frame) == MARK {
            return frames;
        }
        frames.push(frame);
    }
}

/// Broadcast, multicast and unknown unicast reach everyone but the sender; known unicast one.
#[test]
fn flooding_and_learning() -> Result<()> {
    let rig = Rig::new(&["a", "b", "c"])?;
    let [mut a, mut b, mut c] = nics(&rig, ["a", "b", "c"])?;
    let multicast = [0x01, 0x00, 0x5e, 0x01, 0x02, 0x03];
    let sent = [
        numbered(A, BROADCAST, 1),
        numbered(A, multicast, 2),
        numbered(A, B, 3),
    ];
    sent.iter().for_each(|frame| a.send_plain(frame));
    a.send_plain(&numbered(A, BROADCAST, MARK));
    assert_eq!(heard(&mut b), sent);
    assert_eq!(heard(&mut c), sent, "b has not spoken yet: unknown");
    // Now b is known.
    b.send_plain(&numbered(B, A, 4));
    assert_eq!(number_of(&a.recv().1), 4);
    a.send_plain(&numbered(A, B, 5));
    a.send_plain(&numbered(A, BROADCAST, MARK));
    assert_eq!(heard(&mut b), [numbered(A, B, 5)]);
    assert!(heard(&mut c).is_empty(), "known unicast goes to one");
    assert!(a.try_recv(0).is_none(), "nothing comes back to its sender");
    let counters = rig.settled()?;
    assert_eq!(counters.switch("flooded"), 5);
    assert_eq!(counters.switch("copies"), 10);
    assert_eq!(counters.switch("unicast"), 2);
    let learned = rig.port("b")?["learned_macs"].clone();
    assert_eq!(learned, serde_json::json!(["52:54:00:00:00:02"]));
    Ok(())
}

/// A MAC address that moves to another port is found there.
#[test]
fn address_moves() -> Result<()> {
    let rig = Rig::new(&["a", "b", "c"])?;
    let [mut a, mut b, mut c] = nics(&rig, ["a", "b", "c"])?;
    b.send_plain(&numbered(C, A, 0));
    a.recv();
    c.recv();
    a.send_plain(&numbered(A, C, 1));
    assert_eq!(number_of(&b.recv().1), 1);
    // The same address now speaks from c.
    c.send_plain(&numbered(C, A, 2));
    assert_eq!(number_of(&a.recv().1), 2);
    a.send_plain(&numbered(A, C, 3));
    assert_eq!(number_of(&c.recv().1), 3);
    a.send_plain(&numbered(A, BROADCAST, MARK));
    assert!(heard(&mut b).is_empty(), "b no longer has the address");
    rig.settled()?;
    Ok(())
}

/// A port with a fixed address: known before it speaks, and nobody else's.
#[test]
fn static_mac() -> Result<()> {
    let rig = Rig::new(&["a", "b,mac=52:54:00:00:00:02", "c"])?;
    let [mut a, mut b, mut c] = nics(&rig, ["a", "b", "c"])?;
    a.send_plain(&numbered(A, B, 1));
    assert_eq!(number_of(&b.recv().1), 1);
    // c claims the address of b.
    c.send_plain(&numbered(B, A, 2));
    a.send_plain(&numbered(A, B, 3));
    a.send_plain(&numbered(A, BROADCAST, MARK));
    assert_eq!(heard(&mut b), [numbered(A, B, 3)]);
    assert!(heard(&mut c).is_empty());
    let counters = rig.settled()?;
    assert_eq!(
        counters.ports["c"].from_vm_drops.get("spoofed_mac"),
        Some(&1)
    );
    Ok(())
}

/// Access ports of two VLANs do not hear each other; frames on them carry no tag.
#[test]
fn access_vlans() -> Result<()> {
    let rig = Rig::new(&["a,vlan=10", "b,vlan=10", "c,vlan=20", "t,trunk_vlans=10+20"])?;
    let [mut a, mut b, mut c, mut t] = nics(&rig, ["a", "b", "c", "t"])?;
    a.send_plain(&numbered(A, BROADCAST, 1));
    let both = [
        tagged(&numbered(A, BROADCAST, MARK), 10),
        tagged(&numbered(A, BROADCAST, MARK), 20),
    ];
    let heard_b = b.recv().1;
    assert_eq!(heard_b, numbered(A, BROADCAST, 1));
    assert_eq!(
        t.recv().1,
        tagged(&numbered(A, BROADCAST, 1), 10),
        "the trunk sees the tag"
    );
    both.iter().for_each(|mark| t.send_plain(mark));
    assert!(heard(&mut c).is_empty(), "VLAN 20 does not hear VLAN 10");
    assert!(heard(&mut b).is_empty());
    assert!(heard(&mut a).is_empty());
    rig.settled()?;
    Ok(())
}

/// An access port may not send tagged frames, but may send priority-tagged ones (VLAN 0).
#[test]
fn tags_on_an_access_port() -> Result<()> {
    let rig = Rig::new(&["a,vlan=10", "b,vlan=10"])?;
    let [mut a, mut b] = nics(&rig, ["a", "b"])?;
    a.send_plain(&tagged(&numbered(A, BROADCAST, 1), 20));
    a.send_plain(&tagged(&numbered(A, BROADCAST, 2), 0));
    a.send_plain(&numbered(A, BROADCAST, MARK));
    let numbers: Vec<_> = heard(&mut b).iter().map(|f| number_of(f)).collect();
    assert_eq!(numbers, [2]);
    let counters = rig.settled()?;
    assert_eq!(
        counters.ports["a"].from_vm_drops.get("vlan_not_allowed"),
        Some(&1)
    );
    Ok(())
}

/// A trunk carries its VLANs tagged and its native VLAN without a tag; other tags are dropped.
#[test]
fn trunk_and_native_vlan() -> Result<()> {
    let rig = Rig::new(&[
        "t,trunk_vlans=5+10+20-29,native_vlan=5",
        "n,vlan=5",
        "x,vlan=25",
        "o,vlan=30",
    ])?;
    let [mut t, mut n, mut x, mut o] = nics(&rig, ["t", "n", "x", "o"])?;
    t.send_plain(&numbered(A, BROADCAST, 1));
    assert_eq!(n.recv().1, numbered(A, BROADCAST, 1));
    t.send_plain(&tagged(&numbered(A, BROADCAST, 2), 25));
    assert_eq!(x.recv().1, numbered(A, BROADCAST, 2));
    t.send_plain(&tagged(&numbered(A, BROADCAST, 3), 30));
    n.send_plain(&numbered(B, BROADCAST, 4));
    assert_eq!(t.recv().1, numbered(B, BROADCAST, 4), "native: no tag");
    x.send_plain(&numbered(C, BROADCAST, 5));
    let frame = t.recv().1;
    assert_eq!((untagged(&frame).0, vlans(&frame)), (Some(25), vec![25]));
    o.send_plain(&numbered(mac(9), BROADCAST, 6));
    o.flush();
    let counters = rig.settled()?;
    assert!(t.try_recv(0).is_none(), "VLAN 30 is not on the trunk");
    assert!(o.try_recv(0).is_none());
    assert_eq!(
        counters.ports["t"].from_vm_drops.get("vlan_not_allowed"),
        Some(&1)
    );
    assert_eq!(
        counters.ports["o"].from_vm_drops.get("no_receiver"),
        Some(&1)
    );
    Ok(())
}

/// The same address in two VLANs is two addresses (independent learning).
#[test]
fn learning_per_vlan() -> Result<()> {
    let rig = Rig::new(&[
        "a,vlan=10",
        "b,vlan=20",
        "t,trunk_vlans=10+20",
        "u,trunk_vlans=10+20",
    ])?;
    let [mut a, mut b, mut t, mut u] = nics(&rig, ["a", "b", "t", "u"])?;
    // The address C lives at t in VLAN 10 and at u in VLAN 20.
    t.send_plain(&tagged(&numbered(C, BROADCAST, 1), 10));
    u.send_plain(&tagged(&numbered(C, BROADCAST, 2), 20));
    assert_eq!(number_of(&a.recv().1), 1);
    assert_eq!(number_of(&u.recv().1), 1);
    assert_eq!(number_of(&b.recv().1), 2);
    assert_eq!(number_of(&t.recv().1), 2);
    a.send_plain(&numbered(A, C, 3));
    b.send_plain(&numbered(B, C, 4));
    assert_eq!(t.recv().1, tagged(&numbered(A, C, 3), 10));
    assert_eq!(u.recv().1, tagged(&numbered(B, C, 4), 20));
    rig.settled()?;
    assert!(t.try_recv(0).is_none() && u.try_recv(0).is_none());
    Ok(())
}

/// Two switches have nothing in common.
#[test]
fn two_switches() -> Result<()> {
    let rig = Rig::with_config(
        "[switch.left]\n[switch.right]\n[port.a]\nswitch = \"left\"\n\
         [port.b]\nswitch = \"left\"\n[port.c]\nswitch = \"right\"\n",
    )?;
    let [mut a, mut b, mut c] = nics(&rig, ["a", "b", "c"])?;
    a.send_plain(&numbered(A, BROADCAST, 1));
    assert_eq!(number_of(&b.recv().1), 1);
    rig.settled()?;
    assert!(c.try_recv(0).is_none());
    c.send_plain(&numbered(C, BROADCAST, 2));
    c.flush();
    let counters = rig.settled()?;
    assert_eq!(
        counters.ports["c"].from_vm_drops.get("no_receiver"),
        Some(&1)
    );
    Ok(())
}

/// More broadcasts than the limit are dropped and counted; unicast does not suffer.
#[test]
fn storm_limit() -> Result<()> {
    let rig = Rig::new(&["a,storm_limit=100", "b"])?;
    let [mut a, mut b] = nics(&rig, ["a", "b"])?;
    b.send_plain(&numbered(B, A, 0));
    a.recv();
    let storm: Vec<_> = (0..50)
        .map(|i| (NetHdr::default(), numbered(A, BROADCAST, i)))
        .collect();
    let mut got = 0;
    for _ in 0..100 {
        a.send_burst(&storm);
        a.flush();
        while b.try_recv(0).is_some() {
            got += 1;
        }
    }
    a.send_plain(&numbered(A, B, 7777));
    while number_of(&b.recv().1) != 7777 {
        got += 1;
    }
    let counters = rig.settled()?;
    let dropped = *counters.ports["a"]
        .from_vm_drops
        .get("storm_limit")
        .unwrap_or(&0);
    assert_eq!(got + dropped, 5000, "{counters:#?}");
    assert!(
        dropped >= 3000,
        "5000 in a moment, 100 a second allowed: {dropped} dropped"
    );
    assert!(got >= 5, "some pass: {got}");
    Ok(())
}

/// Frames longer than the port's MTU are dropped, in a jumbo port they pass.
#[test]
fn mtu() -> Result<()> {
    let rig = Rig::new(&["a,mtu=1500", "b", "j,mtu=9000", "k,mtu=9000"])?;
    let [mut a, mut b] = nics(&rig, ["a", "b"])?;
    b.send_plain(&numbered(B, A, 0));
    a.recv();
    a.send_plain(&raw(A, B, &payload(1, 1500)));
    assert_eq!(b.recv().1.len(), 1514);
    // Room for a tag is always granted, so four bytes more are not yet too many.
    a.send_plain(&raw(A, B, &payload(1, 1505)));
    a.send_plain(&numbered(A, B, 1));
    assert_eq!(number_of(&b.recv().1), 1);
    let counters = rig.settled()?;
    assert_eq!(
        counters.ports["a"].from_vm_drops.get("mtu_exceeded"),
        Some(&1)
    );
    drop((a, b));
    let [mut j, mut k] = nics(&rig, ["j", "k"])?;
    let jumbo = raw(mac(8), mac(9), &payload(2, 9000));
    j.send_plain(&jumbo);
    assert_eq!(k.recv().1, jumbo);
    Ok(())
}

/// The MTU is offered, and cloud-hypervisor reads it in the configuration.
#[test]
fn mtu_is_told() -> Result<()> {
    use tandem_tests::frontend::session::{Order, Session};
    let rig = Rig::new(&["a,mtu=4000,queue_pairs=3"])?;
    let session = Session::connect(&rig.socket("a"), Order::CloudHypervisor, 1)?;
    assert_ne!(session.offered & spec::MTU, 0);
    let field = |at: usize| u16::from_le_bytes([session.config[at], session.config[at + 1]]);
    assert_eq!(field(8), 3, "max_virtqueue_pairs");
    assert_eq!(field(10), 4000, "mtu");
    assert_eq!(session.queue_num, 6);
    Ok(())
}

/// Feature level 1 is what VMs were started with: it never changes. A port that a guest pairs with a
/// VF does not have its guest announce it.
#[test]
fn feature_level_1() -> Result<()> {
    use tandem_tests::frontend::session::{Order, Session};
    let rig = Rig::new(&["a,queue_pairs=2", "f,failover=true,queue_pairs=2"])?;
    let level_1 = spec::CSUM
        | spec::GUEST_CSUM
        | spec::MTU
        | spec::GUEST_TSO4
        | spec::GUEST_TSO6
        | spec::GUEST_ECN
        | spec::HOST_TSO4
        | spec::HOST_TSO6
        | spec::HOST_ECN
        | spec::MRG_RXBUF
        | spec::CTRL_VQ
        | spec::GUEST_ANNOUNCE
        | spec::MQ
        | spec::LOG_ALL
        | spec::ANY_LAYOUT
        | spec::INDIRECT
        | spec::EVENT_IDX
        | spec::PROTOCOL_FEATURES
        | spec::VERSION_1
        | spec::RING_PACKED
        | spec::IN_ORDER
        | spec::GUEST_USO4
        | spec::GUEST_USO6
        | spec::HOST_USO;
    let offered = |port| -> Result<u64> {
        Ok(Session::connect(&rig.socket(port), Order::Qemu72, 1)?.offered)
    };
    assert_eq!(format!("{:#x}", offered("a")?), format!("{level_1:#x}"));
    assert_eq!(offered("f")? & spec::GUEST_ANNOUNCE, 0);
    Ok(())
}

/// Frames no switch forwards: too short, too long, with a group address as source, to the bridge
/// itself. Each is counted with its reason.
#[test]
fn frames_that_are_none() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let [mut a, mut b] = nics(&rig, ["a", "b"])?;
    let stp = [0x01, 0x80, 0xc2, 0x00, 0x00, 0x00];
    let cases: [(&str, Vec<u8>); 5] = [
        ("too_short", vec![0xff; 13]),
        ("too_short", vec![]),
        (
            "bad_source_mac",
            numbered([0x01, 0, 0, 0, 0, 1], BROADCAST, 1),
        ),
        ("bad_source_mac", numbered([0; 6], BROADCAST, 1)),
        ("link_local", numbered(A, stp, 1)),
    ];
    for (_, frame) in &cases {
        a.send_plain(frame);
    }
    a.send_plain(&numbered(A, BROADCAST, MARK));
    assert!(heard(&mut b).is_empty());
    let counters = rig.settled()?;
    for (reason, _) in &cases {
        let expected = cases.iter().filter(|(r, _)| r == reason).count() as u64;
        let found = counters.ports["a"].from_vm_drops.get(*reason);
        assert_eq!(found, Some(&expected), "{reason}: {counters:#?}");
    }
    Ok(())
}
