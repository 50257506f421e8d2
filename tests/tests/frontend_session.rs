//! Sessions: resets, reconnects, memory that changes, VMMs that die.

use std::os::fd::AsFd;

use anyhow::{Result, ensure};
use tandem_tests::frontend::driver::{Config, Nic};
use tandem_tests::frontend::frames::{mac, number_of, numbered};
use tandem_tests::frontend::memory::{RegionSpec, new_memfd};
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::session::{Order, Session};
use tandem_tests::frontend::spec::{self, NetHdr};
use tandem_tests::frontend::wire::{NEED_REPLY, Wire, header, request};

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

/// Memory for the tests below: all that is used lies in the first region, the second comes and goes.
fn hot_plug_config(order: Order) -> Config {
    Config {
        order,
        regions: vec![
            RegionSpec::new(0, 64 << 20),
            RegionSpec::new(1 << 32, 1 << 20),
        ],
        buffer_region: Some(0),
        ..Config::with(spec::MRG_RXBUF)
    }
}

/// SET_MEM_TABLE on a running device, with and without the second region, under traffic.
#[test]
fn memory_table_on_a_live_device() -> Result<()> {
    for order in Order::ALL {
        let rig = Rig::new(&["a", "b"])?;
        let mut a = rig.nic("a", &hot_plug_config(order))?;
        let mut b = rig.nic("b", &hot_plug_config(order))?;
        let ram = a.ram.clone();
        for round in 0..20 {
            a.session()?
                .set_mem_table(&ram, 0..1 + (round as usize + 1) % 2)?;
            a.session()?.sync()?;
            ping(&mut a, &mut b, round);
            let regions = rig.port("a")?["session"]["memory_regions"].clone();
            assert_eq!(regions, 1 + (round + 1) % 2);
        }
        rig.settled()?;
    }
    Ok(())
}

/// A region added is used, a region removed is not: a frame there is dropped with a reason.
#[test]
fn memory_hot_plug() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let mut a = rig.nic("a", &hot_plug_config(Order::Qemu10))?;
    let mut b = rig.nic("b", &Config::default())?;
    let ram = a.ram.clone();
    for round in 0..10 {
        a.send_across(1 << 32, &numbered(A, B, round));
        assert_eq!(number_of(&b.recv().1), round, "from the second region");
        a.flush();
        a.session()?.remove_region(&ram, 1)?;
        a.session()?.sync()?;
        ping(&mut a, &mut b, 100 + round);
        a.session()?.add_region(&ram, 1)?;
        a.session()?.sync()?;
    }
    a.session()?.remove_region(&ram, 1)?;
    a.session()?.sync()?;
    a.send_across(1 << 32, &numbered(A, B, 77));
    a.flush();
    ping(&mut a, &mut b, 1000);
    let counters = rig.settled()?;
    assert_eq!(
        counters.ports["a"].from_vm_drops.get("bad_buffer"),
        Some(&1)
    );
    Ok(())
}

/// Regions that make no sense are refused, and the session that offered them ends or goes on
/// without; the neighbour does not notice.
#[test]
fn bad_regions() -> Result<()> {
    let rig = Rig::new(&["a", "b", "c"])?;
    let mut b = rig.nic("b", &Config::default())?;
    let mut c = rig.nic("c", &Config::default())?;
    let file = new_memfd("short")?;
    let region = |gpa: u64, size: u64, user: u64, offset: u64| {
        [0, gpa, size, user, offset].map(u64::to_le_bytes).concat()
    };
    let bad = [
        region(0, 0, 0, 0),
        region(0, 1 << 30, 1 << 40, 0),
        region(u64::MAX - 4095, 8192, 1 << 40, 0),
        region(0, 8192, u64::MAX - 4095, 0),
        region(0, u64::MAX, 0, 0),
        region(0, 8192, 1 << 40, u64::MAX - 4095),
        region(0, 8192, 1 << 40, 123),
    ];
    for (i, body) in bad.iter().enumerate() {
        let mut session = Session::connect(&rig.socket("a"), Order::Qemu10, 1)?;
        session.set_features(spec::VERSION_1)?;
        let wire = session.wire();
        wire.send(request::ADD_MEM_REG, NEED_REPLY, body, &[file.as_fd()])?;
        if let Ok(reply) = wire.recv() {
            ensure!(reply.number()? != 0, "region {i} was accepted");
        }
        drop(session);
        rig.wait_disconnected("a")?;
        ping(&mut b, &mut c, i as u64);
    }
    Ok(())
}

/// A second connection to a port in use is closed and counted; the first goes on.
#[test]
fn second_connection() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let mut a = rig.nic("a", &Config::default())?;
    let mut b = rig.nic("b", &Config::default())?;
    for i in 1..=5 {
        Wire::connect(&rig.socket("a"))?.wait_closed()?;
        assert!(Session::connect(&rig.socket("a"), Order::Qemu72, 1).is_err());
        ping(&mut a, &mut b, i);
        let shown = rig.wait_port("a", "counts both", |p| {
            p["session"]["refused_connections"] == 2 * i
        })?;
        assert_eq!(shown["session"]["connects"], 1);
        assert_eq!(shown["session"]["connected"], true);
    }
    Ok(())
}

/// A VMM is killed and there again with a fresh guest, ten times, without waiting.
#[test]
fn vmm_killed_ten_times() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let mut b = rig.nic("b", &Config::with(spec::MRG_RXBUF))?;
    for round in 0..10u64 {
        let config = Config {
            order: Order::ALL[round as usize % 3],
            ..Config::with([0, spec::RING_PACKED][round as usize % 2])
        };
        let mut a = rig.nic("a", &config)?;
        ping(&mut a, &mut b, round);
        // Killed with frames on the way in both directions.
        for i in 0..20 {
            a.send_plain(&numbered(A, B, 100 + i));
            b.send_plain(&numbered(B, A, 100 + i));
        }
        drop(a);
        b.flush();
        while b.try_recv(0).is_some() {}
        rig.settled()?;
        while b.try_recv(0).is_some() {}
    }
    let shown = rig.port("a")?;
    assert_eq!(shown["session"]["connects"], 10, "{shown:#}");
    assert_eq!(shown["session"]["refused_connections"], 0);
    Ok(())
}

/// A thousand VMMs come and go: nothing stays of them.
#[test]
fn thousand_reconnects() -> Result<()> {
    let mut rig = Rig::new(&["a", "b"])?;
    let mut b = rig.nic("b", &Config::with(spec::MRG_RXBUF))?;
    let mut round = |rig: &Rig, i: u64| -> Result<()> {
        let config = Config {
            order: Order::ALL[i as usize % 3],
            queue_size: 64,
            transmit: (4, 2048),
            ..Config::with([0, spec::RING_PACKED][i as usize % 2])
        };
        let mut a = rig.nic("a", &config)?;
        ping(&mut a, &mut b, i);
        drop(a);
        rig.wait_disconnected("a")?;
        Ok(())
    };
    (0..100).try_for_each(|i| round(&rig, i))?;
    let before = rig.holdings()?;
    (0..1000).try_for_each(|i| round(&rig, i))?;
    let after = rig.holdings()?;
    assert_eq!(
        after.descriptors, before.descriptors,
        "{before:?} {after:?}"
    );
    assert_eq!(after.threads, before.threads, "{before:?} {after:?}");
    // The allocator may map an arena more; a leak would be a mapping or more each time.
    assert!(
        after.mappings <= before.mappings + 20,
        "{before:?} {after:?}"
    );
    assert!(
        after.resident_kib <= before.resident_kib + 4096,
        "{before:?} {after:?}"
    );
    let shown = rig.port("a")?;
    assert_eq!(shown["session"]["connects"], 1100);
    rig.settled()?;
    Ok(())
}

/// Connections that say nothing, or half a message, and go.
#[test]
fn half_connections() -> Result<()> {
    let mut rig = Rig::new(&["a", "b"])?;
    let half = header(request::SET_MEM_TABLE, 1, 40);
    let round = |rig: &Rig, i: usize| -> Result<()> {
        let mut wire = Wire::connect(&rig.socket("a"))?;
        let file = new_memfd("x")?;
        wire.send_bytes(&half[..1 + i % 12], &[file.as_fd()])?;
        drop(wire);
        rig.wait_disconnected("a")?;
        Ok(())
    };
    (0..20).try_for_each(|i| round(&rig, i))?;
    let before = rig.holdings()?;
    (0..200).try_for_each(|i| round(&rig, i))?;
    let after = rig.holdings()?;
    assert_eq!(before.descriptors, after.descriptors);
    assert_eq!(before.threads, after.threads);
    let mut a = rig.nic("a", &Config::default())?;
    let mut b = rig.nic("b", &Config::default())?;
    ping(&mut a, &mut b, 1);
    Ok(())
}

/// Requests nobody supports are refused in words of the protocol; the session goes on.
#[test]
fn unsupported_requests_are_answered() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let mut b = rig.nic("b", &Config::default())?;
    for order in [Order::Qemu10, Order::CloudHypervisor] {
        let config = Config {
            order,
            ..Config::default()
        };
        let mut a = rig.nic("a", &config)?;
        for code in [
            request::SEND_RARP,
            request::NET_SET_MTU,
            request::SET_BACKEND_REQ_FD,
            request::IOTLB_MSG,
            request::SET_VRING_ENDIAN,
            request::SET_LOG_FD,
            request::POSTCOPY_ADVISE,
            request::RESET_DEVICE,
            request::VRING_KICK,
            request::SET_STATUS,
            request::GET_SHARED_OBJECT,
            26,
            33,
            99,
        ] {
            let wire = a.session()?.wire();
            let reply = wire.ask(code, NEED_REPLY, &[0; 8])?;
            ensure!(reply.number()? != 0, "request {code} was not refused");
            // And without the wish for an answer: silence.
            wire.send(code, 0, &[0; 8], &[])?;
            a.session()?.sync()?;
            ping(&mut a, &mut b, u64::from(code));
        }
        drop(a);
        rig.wait_disconnected("a")?;
    }
    Ok(())
}

/// Messages that are no messages end their session at most; the neighbour does not notice.
#[test]
fn malformed_messages() -> Result<()> {
    let mut rig = Rig::new(&["a", "b", "c"])?;
    let mut b = rig.nic("b", &Config::default())?;
    let mut c = rig.nic("c", &Config::default())?;
    let file = new_memfd("x")?;
    let state = [&0u32.to_le_bytes()[..], &1u32.to_le_bytes()].concat();
    let message = |code: u32, flags: u32, size: u32, body: &[u8]| {
        [&header(code, flags, size)[..], body].concat()
    };
    let cases: Vec<Vec<u8>> = vec![
        message(request::GET_FEATURES, 0, 0, &[]),
        message(request::GET_FEATURES, 2, 0, &[]),
        message(request::GET_FEATURES, 1 | 4, 0, &[]),
        message(0, 1, 0, &[]),
        message(u32::MAX, 1, 0, &[]),
        message(request::SET_FEATURES, 1, u32::MAX, &[]),
        message(request::SET_FEATURES, 1, 4097, &[0; 4097]),
        message(request::SET_FEATURES, 1, 4, &[0; 4]),
        message(request::SET_FEATURES, 1, 16, &[0; 16]),
        message(request::SET_FEATURES, 1, 8, &[0xff; 8]),
        message(request::SET_MEM_TABLE, 1, 8, &[0xff; 8]),
        message(request::SET_MEM_TABLE, 1, 8, &[0; 8]),
        message(request::SET_MEM_TABLE, 1, 40, &[1; 40]),
        message(request::SET_VRING_NUM, 1, 8, &[0xff; 8]),
        message(request::SET_VRING_NUM, 1, 8, &[0, 0, 0, 0, 3, 0, 0, 0]),
        message(request::SET_VRING_NUM, 1, 8, &[0, 0, 0, 0, 0, 0, 0, 0]),
        message(request::SET_VRING_ADDR, 1, 40, &[0; 40]),
        message(request::SET_VRING_ADDR, 1, 40, &[0xff; 40]),
        message(request::SET_VRING_BASE, 1, 8, &[0xff; 8]),
        message(request::GET_VRING_BASE, 1, 8, &[0xff; 8]),
        message(request::SET_VRING_KICK, 1, 8, &[0; 8]),
        message(request::SET_VRING_CALL, 1, 8, &[0xff; 8]),
        message(request::SET_VRING_ENABLE, 1, 8, &[0xff; 8]),
        message(request::SET_VRING_ENABLE, 1, 8, &state),
        message(request::SET_LOG_BASE, 1, 16, &[0xff; 16]),
        message(request::SET_LOG_BASE, 1, 16, &[0; 16]),
        message(request::GET_CONFIG, 1, 12, &[0xff; 12]),
        message(request::SET_DEVICE_STATE_FD, 1, 8, &[0xff; 8]),
        message(request::REM_MEM_REG, 1, 40, &[0xff; 40]),
    ];
    let mut before = None;
    for round in 0..3 {
        for (i, bytes) in cases.iter().enumerate() {
            for descriptors in [0, 1, 30] {
                let mut session = Session::connect(&rig.socket("a"), Order::Qemu72, 1)?;
                let fds = vec![file.as_fd(); descriptors];
                // The other end may have hung up half way through.
                let _ = session.wire().send_bytes(bytes, &fds);
                let _ = session.wire().stream().shutdown(std::net::Shutdown::Write);
                drop(session);
                rig.wait_disconnected("a")?;
                ping(&mut b, &mut c, (100 * i + descriptors) as u64);
            }
        }
        if round == 0 {
            before = Some(rig.holdings()?);
        }
    }
    let after = rig.holdings()?;
    assert_eq!(before.map(|b| b.descriptors), Some(after.descriptors));
    assert_eq!(before.map(|b| b.threads), Some(after.threads));
    let mut a = rig.nic("a", &Config::default())?;
    ping(&mut a, &mut b, 1);
    rig.settled()?;
    Ok(())
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
