//! Frames cross the switch whatever the order of messages and the kind of ring.

use std::collections::BTreeSet;

use anyhow::Result;
use tandem_tests::frontend::driver::{Config, Layout, Nic};
use tandem_tests::frontend::frames::{Offload, Shape, mac, number_of, numbered, payload, raw};
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::session::Order;
use tandem_tests::frontend::spec::{self, NetHdr};

const A: [u8; 6] = mac(1);
const B: [u8; 6] = mac(2);

/// Two VMs learn each other and exchange `count` frames each way, small and full.
fn exchange(a: &mut Nic, b: &mut Nic, count: u64) {
    for i in 0..count {
        let frame = numbered(A, B, i);
        a.send_plain(&frame);
        assert_eq!(b.recv().1, frame, "frame {i} from a to b");
        let full = raw(B, A, &payload(i as u32, 1500));
        b.send_plain(&full);
        assert_eq!(a.recv().1, full, "frame {i} from b to a");
    }
}

/// A daemon with two ports, a VM of `config` on each, frames both ways, counters that add up.
fn two_alike(config: &Config, count: u64) -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let mut a = rig.nic("a", config)?;
    let mut b = rig.nic("b", config)?;
    exchange(&mut a, &mut b, count);
    let counters = rig.settled()?;
    for port in ["a", "b"] {
        assert_eq!(counters.ports[port].from_vm, count);
        assert_eq!(counters.ports[port].to_vm, count);
        assert_eq!(counters.ports[port].drops(), 0);
    }
    assert_rings_quiet(&mut a)?;
    assert_rings_quiet(&mut b)
}

/// After a stop the back-end stands exactly where the driver does: nothing is held.
fn assert_rings_quiet(nic: &mut Nic) -> Result<()> {
    nic.flush();
    let bases = nic.stop()?;
    for (i, queue) in nic.pairs.iter().flat_map(|p| [&p.rx, &p.tx]).enumerate() {
        assert_eq!(bases[i] as u16, queue.ring.used_base(), "base of ring {i}");
    }
    Ok(())
}

/// One test for each order of messages and kind of ring.
macro_rules! orders {
    ($($name:ident: $order:ident, $features:expr;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            let config = Config { order: Order::$order, ..Config::with($features) };
            two_alike(&config, 300)
        }
    )*};
}

orders! {
    qemu72_split: Qemu72, spec::MRG_RXBUF | spec::EVENT_IDX | spec::INDIRECT;
    qemu72_packed: Qemu72, spec::MRG_RXBUF | spec::RING_PACKED | spec::EVENT_IDX | spec::INDIRECT;
    qemu10_split: Qemu10, spec::MRG_RXBUF | spec::EVENT_IDX | spec::INDIRECT;
    qemu10_packed: Qemu10, spec::MRG_RXBUF | spec::RING_PACKED | spec::EVENT_IDX | spec::INDIRECT;
    cloud_hypervisor_split: CloudHypervisor, spec::MRG_RXBUF | spec::EVENT_IDX | spec::IN_ORDER;
    cloud_hypervisor_packed: CloudHypervisor, spec::MRG_RXBUF | spec::RING_PACKED;
}

/// Every combination of the ring's features, both kinds of ring.
#[test]
fn ring_features() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let bits = [
        spec::RING_PACKED,
        spec::EVENT_IDX,
        spec::INDIRECT,
        spec::IN_ORDER,
        spec::MRG_RXBUF,
    ];
    for case in 0..1u32 << bits.len() {
        let chosen = bits.iter().enumerate().filter(|(i, _)| case >> i & 1 == 1);
        let features = chosen.fold(0, |all, (_, bit)| all | bit);
        let config = Config {
            queue_size: 64,
            layout: [Layout::Together, Layout::HeaderApart, Layout::Pieces(100)][case as usize % 3],
            ..Config::with(features)
        };
        let mut a = rig.nic("a", &config)?;
        let mut b = rig.nic("b", &config)?;
        exchange(&mut a, &mut b, 100);
        assert_rings_quiet(&mut a)?;
        assert_rings_quiet(&mut b)?;
        drop((a, b));
        rig.wait_disconnected("a")?;
        rig.wait_disconnected("b")?;
    }
    rig.settled()?;
    Ok(())
}

/// A driver of before virtio 1.0: a header of ten bytes, apart from the frame.
#[test]
fn legacy_driver() -> Result<()> {
    for features in [0, spec::EVENT_IDX | spec::INDIRECT, spec::MRG_RXBUF] {
        let config = Config {
            features,
            layout: Layout::HeaderApart,
            ..Config::default()
        };
        two_alike(&config, 50)?;
    }
    Ok(())
}

/// A driver of before virtio 1.0 and one of today.
#[test]
fn legacy_and_modern() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let legacy = Config {
        features: 0,
        layout: Layout::HeaderApart,
        ..Config::default()
    };
    let mut a = rig.nic("a", &legacy)?;
    let mut b = rig.nic("b", &Config::with(spec::MRG_RXBUF | spec::RING_PACKED))?;
    exchange(&mut a, &mut b, 100);
    Ok(())
}

/// Buffers posted only after the back-end was told of the ring.
#[test]
fn post_late() -> Result<()> {
    for order in Order::ALL {
        let config = Config {
            order,
            post_early: false,
            ..Config::with(spec::EVENT_IDX)
        };
        two_alike(&config, 50)?;
    }
    Ok(())
}

/// The VMM waits, Tandem connects; and again after the VMM has gone.
#[test]
fn tandem_connects() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("vmm.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    let port = format!("a,socket={},socket_role=connect", path.display());
    let rig = Rig::new(&[&port, "b"])?;
    let mut b = rig.nic("b", &Config::default())?;
    for order in Order::ALL {
        let config = Config {
            order,
            ..Config::default()
        };
        let mut a = Nic::start_listening(&listener, &config)?;
        exchange(&mut a, &mut b, 20);
    }
    Ok(())
}

/// Four queue pairs: frames sent on each arrive, and each pair of the receiver is used.
#[test]
fn four_queue_pairs() -> Result<()> {
    let rig = Rig::new(&["a,queue_pairs=4", "b,queue_pairs=4"])?;
    for order in Order::ALL {
        let config = Config {
            order,
            pairs: 4,
            queue_size: 128,
            ..Config::with(spec::MQ | spec::MRG_RXBUF)
        };
        let mut a = rig.nic("a", &config)?;
        let mut b = rig.nic("b", &config)?;
        // b makes itself known.
        b.send_plain(&numbered(B, A, 0));
        a.recv_any();
        let mut seen = Vec::new();
        for i in 0..200u64 {
            a.send_on(i as usize % 4, NetHdr::default(), &numbered(A, B, i));
            seen.push(number_of(&b.recv_any().2));
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..200).collect::<Vec<_>>());
        let port = rig.port("a")?;
        for pair in 0..4 {
            assert!(
                port["queues"][pair]["from_vm"]["frames"].as_u64() >= Some(50),
                "pair {pair} of {port:#}"
            );
        }
        drop((a, b));
        rig.wait_disconnected("a")?;
        rig.wait_disconnected("b")?;
    }
    let counters = rig.settled()?;
    assert_eq!(counters.ports["b"].to_vm, 3 * 200);
    assert_eq!(counters.ports["b"].drops(), 0);
    Ok(())
}

/// Sends frames, and takes them and the buffers back without waiting for a call.
fn send_and_poll(a: &mut Nic, b: &mut Nic, frames: u64) {
    for i in 0..frames {
        a.send_plain(&numbered(A, B, i));
    }
    let mut got = 0;
    while got < frames {
        got += u64::from(b.try_recv(0).is_some());
    }
    while a.pairs[0].tx.ring.held() > 0 {
        a.pairs[0].tx.reclaim();
    }
}

/// A device that is told "no interrupts" sends none; one that is asked sends one.
#[test]
fn calls_only_when_asked() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    for features in [
        0,
        spec::EVENT_IDX,
        spec::RING_PACKED,
        spec::RING_PACKED | spec::EVENT_IDX,
    ] {
        let mut a = rig.nic("a", &Config::with(features))?;
        let mut b = rig.nic("b", &Config::with(features))?;
        exchange(&mut a, &mut b, 2);
        a.flush();
        for queue in [&mut b.pairs[0].rx, &mut a.pairs[0].tx] {
            queue.ring.disarm();
        }
        // A burst's calls come after its frames, and before the next burst: when this one is there,
        // those of the frames before have been made.
        send_and_poll(&mut a, &mut b, 1);
        for queue in [&mut b.pairs[0].rx, &mut a.pairs[0].tx] {
            queue.take_call();
        }
        send_and_poll(&mut a, &mut b, 10);
        assert!(
            !b.pairs[0].rx.take_call(),
            "features {features:#x}: a call not asked for"
        );
        assert!(
            !a.pairs[0].tx.take_call(),
            "features {features:#x}: a call not asked for"
        );
        assert!(!b.pairs[0].rx.ring.arm(), "nothing more is there");
        a.send_plain(&numbered(A, B, 99));
        b.recv();
        drop((a, b));
        rig.wait_disconnected("a")?;
        rig.wait_disconnected("b")?;
    }
    Ok(())
}

/// A driver that uses one pair of four gets everything there, whatever the VMM enables.
#[test]
fn one_pair_of_four() -> Result<()> {
    let rig = Rig::new(&["a,queue_pairs=4", "b,queue_pairs=4"])?;
    for order in Order::ALL {
        let config = Config {
            order,
            pairs: 4,
            queue_size: 128,
            ..Config::with(spec::MQ | spec::MRG_RXBUF)
        };
        let mut a = rig.nic("a", &config)?;
        let one = Config {
            pairs_used: Some(1),
            ..config
        };
        let mut b = rig.nic("b", &one)?;
        for i in 0..100u8 {
            // A hundred flows, by their ports and by what sends them.
            let shape = Shape {
                v6: i % 2 == 0,
                udp: i % 3 == 0,
                ecn: false,
                offload: Offload::None,
                len: 100,
            };
            let frame = shape.build(mac(100 + i), B, &payload(u32::from(i), 100)).1;
            a.send_on(usize::from(i) % 4, NetHdr::default(), &frame);
            assert_eq!(b.recv().1, frame, "{order:?}");
        }
        drop((a, b));
        rig.wait_disconnected("a")?;
        rig.wait_disconnected("b")?;
    }
    let counters = rig.settled()?;
    assert_eq!(counters.ports["b"].drops(), 0);
    Ok(())
}

/// Flows of a driver with four pairs are spread, and each flow stays in order.
#[test]
fn flows_are_spread() -> Result<()> {
    let rig = Rig::new(&["a", "b,queue_pairs=4"])?;
    let config = Config {
        pairs: 4,
        ..Config::with(spec::MQ | spec::MRG_RXBUF)
    };
    let mut a = rig.nic("a", &Config::default())?;
    let mut b = rig.nic("b", &config)?;
    let mut pairs = BTreeSet::new();
    for i in 0..100u8 {
        let shape = Shape {
            v6: false,
            udp: true,
            ecn: false,
            offload: Offload::None,
            len: 100,
        };
        let frame = shape.build(mac(100 + i), B, &payload(1, 100)).1;
        let mut of_flow = BTreeSet::new();
        for _ in 0..3 {
            a.send_plain(&frame);
            let (pair, _, got) = b.recv_any();
            assert_eq!(got, frame);
            of_flow.insert(pair);
        }
        assert_eq!(of_flow.len(), 1, "a flow stays on its pair");
        pairs.extend(of_flow);
    }
    assert_eq!(pairs.len(), 4, "a hundred flows use all pairs: {pairs:?}");
    Ok(())
}

/// Waking up: pauses of every length between frames, so that kicks come while the daemon polls,
/// while it falls asleep, and while it sleeps.
#[test]
fn no_kick_is_lost() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    for features in [
        0,
        spec::EVENT_IDX,
        spec::RING_PACKED,
        spec::RING_PACKED | spec::EVENT_IDX,
    ] {
        let mut a = rig.nic("a", &Config::with(features))?;
        let mut b = rig.nic("b", &Config::with(features))?;
        exchange(&mut a, &mut b, 1);
        for i in 0..400u64 {
            let pause = std::time::Duration::from_micros(i * i % 397);
            let until = std::time::Instant::now() + pause;
            while std::time::Instant::now() < until {
                std::hint::spin_loop();
            }
            a.send_plain(&numbered(A, B, i));
            assert_eq!(number_of(&b.recv().1), i);
        }
        drop((a, b));
        rig.wait_disconnected("a")?;
        rig.wait_disconnected("b")?;
    }
    Ok(())
}

/// As many queue pairs as there can be, each used in both directions.
#[test]
fn thirty_two_queue_pairs() -> Result<()> {
    let rig = Rig::new(&["a,queue_pairs=32", "b"])?;
    for order in Order::ALL {
        let config = Config {
            order,
            pairs: 32,
            queue_size: 64,
            transmit: (4, 2048),
            ..Config::with(spec::MQ | spec::MRG_RXBUF)
        };
        let mut a = rig.nic("a", &config)?;
        let mut b = rig.nic("b", &Config::default())?;
        for pair in 0..32 {
            a.send_on(pair, NetHdr::default(), &numbered(A, B, pair as u64));
            assert_eq!(number_of(&b.recv().1), pair as u64);
            b.send_plain(&numbered(B, A, pair as u64));
            assert_eq!(number_of(&a.recv_any().2), pair as u64);
        }
        drop((a, b));
        rig.wait_disconnected("a")?;
        rig.wait_disconnected("b")?;
    }
    rig.settled()?;
    Ok(())
}
