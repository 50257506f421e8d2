//! VMMs that come, die, come back, and come twice.

use std::os::fd::AsFd;

use anyhow::Result;
use tandem_tests::frontend::driver::{Config, Nic};
use tandem_tests::frontend::frames::{mac, number_of, numbered};
use tandem_tests::frontend::memory::new_memfd;
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::session::{Order, Session};
use tandem_tests::frontend::spec;
use tandem_tests::frontend::wire::{Wire, header, request};

const A: [u8; 6] = mac(1);
const B: [u8; 6] = mac(2);

/// A frame each way, told from all others by `number`.
fn ping(a: &mut Nic, b: &mut Nic, number: u64) {
    a.send_plain(&numbered(A, B, number));
    assert_eq!(number_of(&b.recv().1), number, "to b");
    b.send_plain(&numbered(B, A, number));
    assert_eq!(number_of(&a.recv().1), number, "to a");
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

/// A VMM that connects in the moment its predecessor dies is not taken for a second one.
#[test]
fn successor_at_once() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let mut b = rig.nic("b", &Config::default())?;
    for i in 0..100 {
        let mut a = rig.nic("a", &Config::default())?;
        ping(&mut a, &mut b, i);
    }
    let shown = rig.port("a")?;
    assert_eq!(shown["session"]["connects"], 100);
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
    let after = rig.back_to(&before)?;
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
    rig.back_to(&before)?;
    let mut a = rig.nic("a", &Config::default())?;
    let mut b = rig.nic("b", &Config::default())?;
    ping(&mut a, &mut b, 1);
    Ok(())
}
