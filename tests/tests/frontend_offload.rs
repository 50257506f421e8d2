//! Offloads: every kind of frame a sender may hand over, to every kind of
//! receiver. A receiver gets no more than it negotiated; payload, lengths and
//! checksums are judged by an independent reading of the frames.

use anyhow::Result;
use tandem_tests::frontend::driver::{Config, Nic};
use tandem_tests::frontend::frames::{
    Judge, Offload, Shape, mac, numbered, payload, tagged, untagged, vlans,
};
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::spec::{self, NetHdr};

const A: [u8; 6] = mac(1);
const B: [u8; 6] = mac(2);
/// b is known without having spoken, so nothing is flooded.
const PORTS: &[&str] = &["a", "b,mac=52:54:00:00:00:02"];

/// Everything a sender may be.
const ALL_HOST: u64 =
    spec::CSUM | spec::HOST_TSO4 | spec::HOST_TSO6 | spec::HOST_ECN | spec::HOST_USO;

/// Every kind of frame, with the lengths where cutting goes wrong.
fn shapes() -> Vec<Shape> {
    let mut all = Vec::new();
    for v6 in [false, true] {
        for udp in [false, true] {
            let plain = Shape {
                v6,
                udp,
                ecn: false,
                offload: Offload::None,
                len: 1000,
            };
            all.push(plain);
            all.push(Shape { len: 0, ..plain });
            for len in [0, 1, 1399, 1400] {
                let offload = Offload::Checksum;
                all.push(Shape {
                    offload,
                    len,
                    ..plain
                });
            }
            for (size, len) in [(1400, 1401), (1428, 14280), (1428, 40_001), (536, 5000)] {
                let offload = Offload::Segment(size);
                all.push(Shape {
                    offload,
                    len,
                    ..plain
                });
                if !udp {
                    all.push(Shape {
                        offload,
                        len,
                        ecn: true,
                        ..plain
                    });
                }
            }
        }
    }
    all
}

/// Every set of receive offloads a driver may negotiate (virtio 1.2, 5.1.3.1: TSO and USO require
/// GUEST_CSUM, ECN requires a TSO).
fn receivers() -> Vec<u64> {
    let tso = spec::GUEST_TSO4 | spec::GUEST_TSO6;
    let uso = spec::GUEST_USO4 | spec::GUEST_USO6;
    let mut all = vec![0, spec::GUEST_CSUM];
    for tso in [0, spec::GUEST_TSO4, spec::GUEST_TSO6, tso] {
        for ecn in [0, spec::GUEST_ECN] {
            for uso in [0, uso] {
                if tso | uso != 0 && (ecn == 0 || tso != 0) {
                    all.push(spec::GUEST_CSUM | tso | ecn | uso);
                }
            }
        }
    }
    all
}

/// A receiver with room for all segments of the largest frame, also in chains of 18 descriptors.
fn receiver(features: u64) -> Config {
    Config {
        queue_size: 1024,
        ..Config::with(features)
    }
}

/// Sends one frame of `shape` and judges what arrives.
fn cross(a: &mut Nic, b: &mut Nic, shape: Shape, seed: u32) {
    let bytes = payload(seed, shape.len);
    let (hdr, frame) = shape.build(A, B, &bytes);
    a.send(hdr, &frame);
    let mut judge = Judge::new(shape, A, B, &bytes);
    while !judge.is_complete() {
        let (hdr, frame) = b.recv();
        judge.take(&hdr, &frame);
    }
    let wants = shape.receiver_features();
    if b.features & wants == wants {
        assert_eq!(
            judge.frames(),
            1,
            "{shape:?} travels whole to who can take it"
        );
    }
}

/// Every shape to one kind of receiver.
fn all_shapes_to(features: u64, ring: u64) -> Result<()> {
    let rig = Rig::new(PORTS)?;
    let mut a = rig.nic("a", &Config::with(ALL_HOST | ring))?;
    let mut b = rig.nic("b", &receiver(features | ring))?;
    let shapes = shapes();
    for (i, shape) in shapes.iter().enumerate() {
        cross(&mut a, &mut b, *shape, i as u32);
    }
    let counters = rig.settled()?;
    assert_eq!(counters.ports["a"].from_vm, shapes.len() as u64);
    assert_eq!(counters.ports["a"].drops() + counters.ports["b"].drops(), 0);
    let cut = counters.switch("segmented_frames");
    let whole = counters.ports["b"].to_vm - counters.switch("segments");
    assert_eq!(cut + whole, shapes.len() as u64, "each once, whole or cut");
    Ok(())
}

/// Every receiver, so many at once as there are kinds of buffers and rings.
macro_rules! receivers {
    ($($name:ident: $ring:expr;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            receivers().into_iter().try_for_each(|receiver| all_shapes_to(receiver, $ring))
        }
    )*};
}

receivers! {
    every_receiver_chained: 0;
    every_receiver_mergeable: spec::MRG_RXBUF;
    every_receiver_packed: spec::RING_PACKED | spec::MRG_RXBUF | spec::EVENT_IDX;
    every_receiver_packed_indirect: spec::RING_PACKED | spec::INDIRECT;
}

/// Every set of offloads a sender may negotiate, by the same rules.
fn senders() -> Vec<u64> {
    let translate = |receiver: u64| {
        [
            (spec::GUEST_CSUM, spec::CSUM),
            (spec::GUEST_TSO4, spec::HOST_TSO4),
            (spec::GUEST_TSO6, spec::HOST_TSO6),
            (spec::GUEST_ECN, spec::HOST_ECN),
            (spec::GUEST_USO4, spec::HOST_USO),
        ]
        .into_iter()
        .filter(|(guest, _)| receiver & guest != 0)
        .fold(0, |all, (_, host)| all | host)
    };
    receivers().into_iter().map(translate).collect()
}

/// The full product: every sender sends what it may to every receiver.
fn product(buffers: u64) -> Result<()> {
    let rig = Rig::new(PORTS)?;
    let shapes = shapes();
    for features in receivers() {
        let mut b = rig.nic("b", &receiver(features | buffers))?;
        for sender in senders() {
            let mut a = rig.nic("a", &Config::with(sender))?;
            for (i, shape) in shapes.iter().enumerate() {
                let needs = shape.sender_features();
                if sender & needs == needs {
                    cross(&mut a, &mut b, *shape, i as u32);
                }
            }
            drop(a);
            rig.wait_disconnected("a")?;
        }
        drop(b);
        rig.wait_disconnected("b")?;
    }
    let counters = rig.settled()?;
    assert_eq!(counters.ports["a"].drops() + counters.ports["b"].drops(), 0);
    Ok(())
}

#[test]
fn every_sender_to_every_receiver_chained() -> Result<()> {
    product(0)
}

#[test]
fn every_sender_to_every_receiver_mergeable() -> Result<()> {
    product(spec::MRG_RXBUF)
}

/// The largest frame IPv4 allows, and the largest a driver has room for (65,562 bytes with the
/// header: virtio 1.2, 5.1.6.3.1), to receivers that take it whole, in pieces, and cut.
#[test]
fn largest_frame() -> Result<()> {
    let rig = Rig::new(PORTS)?;
    for v6 in [false, true] {
        let shape = Shape {
            v6,
            udp: false,
            ecn: false,
            offload: Offload::Segment(1428),
            len: if v6 { 65_550 - 74 } else { 65_535 - 40 },
        };
        let whole = spec::GUEST_CSUM | spec::GUEST_TSO4 | spec::GUEST_TSO6;
        for features in [0, whole, spec::MRG_RXBUF, whole | spec::MRG_RXBUF] {
            let mut a = rig.nic("a", &Config::with(ALL_HOST))?;
            let mut b = rig.nic("b", &receiver(features))?;
            cross(&mut a, &mut b, shape, 7);
            drop((a, b));
            rig.wait_disconnected("a")?;
            rig.wait_disconnected("b")?;
        }
    }
    let counters = rig.settled()?;
    assert_eq!(counters.ports["b"].drops(), 0);
    Ok(())
}

/// One large frame flooded to receivers that differ: each gets it its own way.
#[test]
fn flooded_to_different_receivers() -> Result<()> {
    let rig = Rig::new(&["a", "b", "c", "d"])?;
    let mut a = rig.nic("a", &Config::with(ALL_HOST))?;
    let whole = spec::GUEST_CSUM | spec::GUEST_TSO4 | spec::GUEST_TSO6;
    let kinds = [
        0,
        spec::GUEST_CSUM | spec::MRG_RXBUF,
        whole | spec::MRG_RXBUF,
    ];
    let mut others = Vec::new();
    for (port, kind) in ["b", "c", "d"].into_iter().zip(kinds) {
        others.push(rig.nic(port, &receiver(kind))?);
    }
    for shape in shapes() {
        let bytes = payload(3, shape.len);
        let (hdr, frame) = shape.build(A, B, &bytes);
        a.send(hdr, &frame);
        for nic in &mut others {
            let mut judge = Judge::new(shape, A, B, &bytes);
            while !judge.is_complete() {
                let (hdr, frame) = nic.recv();
                judge.take(&hdr, &frame);
            }
        }
    }
    let counters = rig.settled()?;
    assert_eq!(counters.switch("flooded"), shapes().len() as u64);
    assert_eq!(counters.switch("copies"), 3 * shapes().len() as u64);
    Ok(())
}

/// A tag pushed or popped on the way moves the checksum with it: from an access port to a trunk and
/// back, every shape, to receivers that take everything and nothing.
#[test]
fn tags_and_offloads() -> Result<()> {
    let rig = Rig::new(&["a,vlan=10", "t,trunk_vlans=10"])?;
    let whole = spec::GUEST_CSUM | spec::GUEST_TSO4 | spec::GUEST_TSO6 | spec::GUEST_ECN;
    let uso = spec::GUEST_USO4 | spec::GUEST_USO6;
    for takes in [0, spec::GUEST_CSUM, whole | uso] {
        let config = receiver(ALL_HOST | takes | spec::MRG_RXBUF);
        let mut a = rig.nic("a", &config)?;
        let mut t = rig.nic("t", &config)?;
        for (i, shape) in shapes().into_iter().enumerate() {
            let bytes = payload(i as u32, shape.len);
            let (hdr, frame) = shape.build(A, B, &bytes);
            a.send(hdr, &frame);
            let mut judge = Judge::new(shape, A, B, &bytes);
            while !judge.is_complete() {
                let (hdr, frame) = t.recv();
                assert_eq!(vlans(&frame), [10]);
                judge.take(&moved(hdr, -4), &untagged(&frame).1);
            }
            let (hdr, frame) = shape.build(B, A, &bytes);
            t.send(moved(hdr, 4), &tagged(&frame, 10));
            let mut judge = Judge::new(shape, B, A, &bytes);
            while !judge.is_complete() {
                let (hdr, frame) = a.recv();
                judge.take(&hdr, &frame);
            }
        }
        drop((a, t));
        rig.wait_disconnected("a")?;
        rig.wait_disconnected("t")?;
    }
    let counters = rig.settled()?;
    assert_eq!(counters.ports["a"].drops() + counters.ports["t"].drops(), 0);
    Ok(())
}

/// A header whose frame got `by` bytes longer in front.
fn moved(hdr: NetHdr, by: i16) -> NetHdr {
    let moves = |at: u16, is: bool| if is { at.wrapping_add_signed(by) } else { at };
    NetHdr {
        csum_start: moves(hdr.csum_start, hdr.flags & spec::HDR_NEEDS_CSUM != 0),
        hdr_len: moves(hdr.hdr_len, hdr.gso_type != spec::GSO_NONE),
        ..hdr
    }
}

/// Headers that lie: each is dropped and counted on its sender, and the next good frame passes.
#[test]
fn lying_headers() -> Result<()> {
    let rig = Rig::new(PORTS)?;
    let mut a = rig.nic("a", &Config::with(ALL_HOST))?;
    let mut b = rig.nic("b", &Config::with(0))?;
    let shape = Shape {
        v6: false,
        udp: false,
        ecn: false,
        offload: Offload::Segment(1000),
        len: 3000,
    };
    let (good, frame) = shape.build(A, B, &payload(1, 3000));
    let lies = [
        NetHdr {
            csum_start: 5000,
            ..good
        },
        NetHdr {
            csum_start: u16::MAX,
            csum_offset: u16::MAX,
            ..good
        },
        NetHdr {
            csum_offset: 2965,
            ..good
        },
        NetHdr {
            gso_type: 0x55,
            ..good
        },
        NetHdr {
            gso_type: spec::GSO_TCPV6,
            ..good
        },
        NetHdr {
            gso_type: spec::GSO_UDP_L4,
            ..good
        },
        NetHdr {
            gso_size: 0,
            ..good
        },
        NetHdr {
            gso_size: 1,
            ..good
        },
        NetHdr { flags: 0, ..good },
    ];
    for (i, lie) in lies.iter().enumerate() {
        a.send(*lie, &frame);
        a.send_plain(&numbered(A, B, i as u64));
        let (_, next) = b.recv();
        assert_eq!(next, numbered(A, B, i as u64), "after {lie:?}");
    }
    let counters = rig.settled()?;
    let drops = counters.ports["a"].from_vm_drops.get("bad_vnet_header");
    assert_eq!(drops, Some(&(lies.len() as u64)), "{counters:#?}");
    Ok(())
}

/// What the sender did not negotiate it may not use.
#[test]
fn offload_not_negotiated() -> Result<()> {
    let rig = Rig::new(PORTS)?;
    let mut a = rig.nic("a", &Config::with(0))?;
    let mut b = rig.nic("b", &Config::with(spec::MRG_RXBUF))?;
    let shape = Shape {
        v6: false,
        udp: false,
        ecn: false,
        offload: Offload::Segment(1000),
        len: 3000,
    };
    let (hdr, frame) = shape.build(A, B, &payload(1, 3000));
    a.send(hdr, &frame);
    a.send_plain(&numbered(A, B, 1));
    assert_eq!(b.recv().1, numbered(A, B, 1));
    let counters = rig.settled()?;
    assert_eq!(
        counters.ports["a"].from_vm_drops.get("bad_vnet_header"),
        Some(&1)
    );
    Ok(())
}
