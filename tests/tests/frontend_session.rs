//! Sessions: resets, stops and starts, back-ends that go away and come back.

use std::time::Instant;

use anyhow::Result;
use tandem_tests::frontend::driver::{Config, Nic};
use tandem_tests::frontend::frames::{mac, number_of, numbered};
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::session::Order;
use tandem_tests::frontend::spec::{self, NetHdr};
use tandem_tests::frontend::wire::{PATIENCE, request};
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;

const A: [u8; 6] = mac(1);
const B: [u8; 6] = mac(2);

/// A frame each way, told from all others by `number`.
fn ping(a: &mut Nic, b: &mut Nic, number: u64) {
    a.send_plain(&numbered(A, B, number));
    assert_eq!(number_of(&b.recv().1), number, "to b");
    b.send_plain(&numbered(B, A, number));
    assert_eq!(number_of(&a.recv().1), number, "to a");
}

/// A guest resets its device and negotiates anew, as firmware, boot loader and kernel do.
#[test]
fn features_change_at_reset() -> Result<()> {
    for order in Order::ALL {
        let rig = Rig::new(&["a", "b"])?;
        let config = Config {
            order,
            ..Config::default()
        };
        let mut a = rig.nic("a", &config)?;
        let mut b = rig.nic("b", &config)?;
        let stages = [
            spec::VERSION_1 | spec::MRG_RXBUF | spec::EVENT_IDX | spec::INDIRECT,
            spec::VERSION_1,
            spec::VERSION_1 | spec::RING_PACKED,
            spec::VERSION_1 | spec::RING_PACKED | spec::MRG_RXBUF | spec::EVENT_IDX,
            spec::VERSION_1 | spec::GUEST_CSUM | spec::GUEST_TSO4,
            spec::VERSION_1 | spec::IN_ORDER,
        ];
        for (i, features) in stages.into_iter().enumerate() {
            ping(&mut a, &mut b, i as u64);
            a.reset(features)?;
            ping(&mut a, &mut b, 100 + i as u64);
            b.reset(features)?;
        }
        ping(&mut a, &mut b, 999);
        rig.settled()?;
    }
    Ok(())
}

/// The features a port shows are those of the last reset.
#[test]
fn port_shows_features() -> Result<()> {
    let rig = Rig::new(&["a"])?;
    let mut a = rig.nic("a", &Config::with(spec::MRG_RXBUF | spec::EVENT_IDX))?;
    let shown = rig.port("a")?;
    let features: Vec<_> = shown["session"]["features"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    assert!(features.iter().any(|f| *f == "MRG_RXBUF"), "{shown:#}");
    assert_eq!(shown["session"]["ring"], "split");
    assert_eq!(shown["state"], "up", "{shown:#}");
    assert_eq!(shown["queues"][0]["size"], 256);
    a.reset(spec::VERSION_1 | spec::RING_PACKED)?;
    let shown = rig.port("a")?;
    let features: Vec<_> = shown["session"]["features"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    assert!(!features.iter().any(|f| *f == "MRG_RXBUF"), "{shown:#}");
    assert_eq!(shown["session"]["ring"], "packed");
    Ok(())
}

/// Stopped and started again on the same connection: nothing is lost that was not sent yet.
#[test]
fn stop_and_resume() -> Result<()> {
    for order in Order::ALL {
        for ring in [0, spec::RING_PACKED] {
            let rig = Rig::new(&["a", "b"])?;
            let config = Config {
                order,
                ..Config::with(ring)
            };
            let mut a = rig.nic("a", &config)?;
            let mut b = rig.nic("b", &config)?;
            for round in 0..10 {
                ping(&mut a, &mut b, 10 * round);
                a.flush();
                let bases = a.stop()?;
                // What the guest sends meanwhile waits in the ring.
                a.send_plain(&numbered(A, B, 10 * round + 1));
                a.resume(&bases)?;
                a.pairs[0].tx.kick.write(1)?;
                assert_eq!(number_of(&b.recv().1), 10 * round + 1);
            }
            rig.settled()?;
        }
    }
    Ok(())
}

/// The back-end must go on at `used->idx` whatever base it is told: the VMM's, zero, the available
/// index with receive buffers posted and frames waiting.
#[test]
fn reconnect_with_stale_base() -> Result<()> {
    for order in Order::ALL {
        let rig = Rig::new(&["a", "b"])?;
        let config = Config {
            order,
            ..Config::with(spec::EVENT_IDX)
        };
        let mut a = rig.nic("a", &config)?;
        let mut b = rig.nic("b", &config)?;
        for i in 0..300 {
            ping(&mut a, &mut b, i);
        }
        for kind in 0..3u64 {
            a.flush();
            b.flush();
            for nic in [&mut a, &mut b] {
                nic.kill();
            }
            rig.wait_disconnected("a")?;
            rig.wait_disconnected("b")?;
            // The guest goes on sending into the ring; nobody looks at it.
            for i in 0..5 {
                a.send_plain(&numbered(A, B, 1000 * (kind + 1) + i));
            }
            let bases = |nic: &Nic| match kind {
                0 => nic.bases_after_loss(),
                1 => vec![0, 0],
                _ => [&nic.pairs[0].rx, &nic.pairs[0].tx]
                    .map(|q| q.ring.avail_base())
                    .to_vec(),
            };
            let (for_a, for_b) = (bases(&a), bases(&b));
            b.reconnect(&for_b)?;
            a.reconnect(&for_a)?;
            for i in 0..5 {
                assert_eq!(
                    number_of(&b.recv().1),
                    1000 * (kind + 1) + i,
                    "{order:?}, base {kind}"
                );
            }
            ping(&mut a, &mut b, 9);
        }
        rig.settled()?;
    }
    Ok(())
}

/// The daemon is killed and started again: guests go on, split rings and packed, although the VMM
/// of a packed ring knows no better base than the first one.
fn daemon_crash(features: u64) -> Result<()> {
    let mut rig = Rig::new(&["a", "b"])?;
    let config = Config::with(features);
    let mut a = rig.nic("a", &config)?;
    let mut b = rig.nic("b", &config)?;
    for round in 0..3 {
        for i in 0..333 {
            ping(&mut a, &mut b, i);
        }
        // A frame delivered and not yet completed would be sent twice.
        a.flush();
        b.flush();
        rig.daemon.restart_after_crash()?;
        let bases = [a.bases_after_loss(), b.bases_after_loss()];
        a.reconnect(&bases[0])?;
        b.reconnect(&bases[1])?;
        ping(&mut a, &mut b, 5000 + round);
    }
    rig.settled()?;
    Ok(())
}

#[test]
fn daemon_crash_split() -> Result<()> {
    daemon_crash(spec::EVENT_IDX | spec::MRG_RXBUF)
}

#[test]
fn daemon_crash_packed() -> Result<()> {
    daemon_crash(spec::RING_PACKED | spec::EVENT_IDX | spec::MRG_RXBUF)
}

/// Stopping a VM's rings under full traffic holds nothing back: what was not used is not touched.
#[test]
fn stop_under_traffic() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    for ring in [0, spec::RING_PACKED] {
        let mut a = rig.nic("a", &Config::with(ring))?;
        let mut b = rig.nic("b", &Config::with(ring))?;
        ping(&mut a, &mut b, 0);
        let mut next = 1;
        for _ in 0..50 {
            let burst: Vec<_> = (next..next + 40)
                .map(|i| (NetHdr::default(), numbered(A, B, i)))
                .collect();
            next += 40;
            a.send_burst(&burst);
            // Somewhere in the middle.
            let bases = a.stop()?;
            let left = a.pairs[0].tx.ring.held();
            a.pairs[0].tx.reclaim();
            let used = a.pairs[0].tx.ring.used_base();
            assert_eq!(
                bases[1] as u16, used,
                "the base is where the used buffers end; {left}"
            );
            a.resume(&bases)?;
            a.pairs[0].tx.kick.write(1)?;
            for i in next - 40..next {
                assert_eq!(number_of(&b.recv().1), i, "each once and in order");
            }
        }
        a.flush();
        drop((a, b));
        rig.wait_disconnected("a")?;
        rig.wait_disconnected("b")?;
    }
    rig.settled()?;
    Ok(())
}

/// QEMU exchanges the call descriptor of a running ring whenever the guest masks or unmasks its
/// interrupt, and takes it away when the guest has none.
#[test]
fn call_is_exchanged_on_a_running_ring() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let mut a = rig.nic("a", &Config::default())?;
    let mut b = rig.nic("b", &Config::default())?;
    ping(&mut a, &mut b, 0);
    let usual = b.pairs[0].rx.call.clone();
    for i in 1..50 {
        // Masked: calls go elsewhere, and none is lost.
        let masked = EventFd::new(libc::EFD_NONBLOCK)?;
        b.session()?.frontend().set_vring_call(0, &masked)?;
        b.session()?.sync()?;
        assert!(!b.pairs[0].rx.ring.arm());
        a.send_plain(&numbered(A, B, i));
        a.flush();
        let deadline = Instant::now() + PATIENCE;
        while masked.read().is_err() {
            assert!(Instant::now() < deadline, "no call on the new descriptor");
        }
        b.session()?.frontend().set_vring_call(0, &usual)?;
        b.session()?.sync()?;
        assert_eq!(number_of(&b.recv().1), i);
        ping(&mut a, &mut b, 1000 + i);
    }
    // No descriptor: the guest polls.
    let none = 1u64 << 8;
    b.session()?
        .wire()
        .send_number(request::SET_VRING_CALL, 0, none)?;
    b.session()?.sync()?;
    a.send_plain(&numbered(A, B, 9));
    let deadline = Instant::now() + PATIENCE;
    let frame = loop {
        assert!(
            Instant::now() < deadline,
            "nothing came to a guest that polls"
        );
        if let Some((_, frame)) = b.try_recv(0) {
            break frame;
        }
    };
    assert_eq!(number_of(&frame), 9);
    Ok(())
}

/// A ring that is disabled keeps what the guest sends until it is enabled again, and takes nothing
/// for the guest meanwhile.
#[test]
fn disabled_rings() -> Result<()> {
    for order in Order::ALL {
        let rig = Rig::new(&["a", "b"])?;
        let config = Config {
            order,
            ..Config::default()
        };
        let mut a = rig.nic("a", &config)?;
        let mut b = rig.nic("b", &config)?;
        for round in 0..10 {
            ping(&mut a, &mut b, 10 * round);
            a.flush();
            a.session()?.enable(0, false)?;
            a.session()?.enable(1, false)?;
            a.session()?.sync()?;
            a.send_plain(&numbered(A, B, 10 * round + 1));
            b.send_plain(&numbered(B, A, 10 * round + 2));
            b.flush();
            rig.settled()?;
            assert!(b.try_recv(0).is_none(), "sent by a disabled ring");
            assert!(a.try_recv(0).is_none(), "delivered to a disabled ring");
            a.session()?.enable(0, true)?;
            a.session()?.enable(1, true)?;
            assert_eq!(number_of(&b.recv().1), 10 * round + 1);
        }
        rig.settled()?;
    }
    Ok(())
}
