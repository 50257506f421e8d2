//! Guest memory that changes under a running device.

use std::os::fd::AsFd;

use anyhow::{Result, ensure};
use tandem_tests::frontend::driver::{Config, Nic};
use tandem_tests::frontend::frames::{mac, number_of, numbered};
use tandem_tests::frontend::memory::{RegionSpec, new_memfd};
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::session::{Order, Session};
use tandem_tests::frontend::spec;
use tandem_tests::frontend::wire::{NEED_REPLY, request};

const A: [u8; 6] = mac(1);
const B: [u8; 6] = mac(2);

/// A frame each way, told from all others by `number`.
fn ping(a: &mut Nic, b: &mut Nic, number: u64) {
    a.send_plain(&numbered(A, B, number));
    assert_eq!(number_of(&b.recv().1), number, "to b");
    b.send_plain(&numbered(B, A, number));
    assert_eq!(number_of(&a.recv().1), number, "to a");
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

/// As many regions as a VMM can give: 32 in a table, hundreds one by one.
#[test]
fn many_regions() -> Result<()> {
    let rig = Rig::new(&["a", "b"])?;
    let mut b = rig.nic("b", &Config::default())?;
    for (order, count) in [(Order::CloudHypervisor, 32), (Order::Qemu10, 300)] {
        // The first has all that the driver needs; the rest lie apart, of a page each.
        let mut regions = vec![RegionSpec::new(0, 64 << 20)];
        regions.extend((1..count).map(|i| RegionSpec::new((1 << 32) + i * 0x4000, 0x1000)));
        let config = Config {
            order,
            regions,
            buffer_region: Some(0),
            ..Config::default()
        };
        let mut a = rig.nic("a", &config)?;
        ping(&mut a, &mut b, count);
        let last = (1 << 32) + (count - 1) * 0x4000;
        a.send_across(last, &numbered(A, B, 7));
        assert_eq!(number_of(&b.recv().1), 7, "from the last region");
        let shown = rig.port("a")?["session"]["memory_regions"].clone();
        assert_eq!(shown, count);
        drop(a);
        rig.wait_disconnected("a")?;
    }
    Ok(())
}

/// The region the rings lie in goes and comes back: the device stands still meanwhile and goes on
/// where it was.
#[test]
fn rings_without_memory() -> Result<()> {
    for features in [spec::MRG_RXBUF, spec::RING_PACKED] {
        let rig = Rig::new(&["a", "b"])?;
        let config = Config {
            regions: vec![
                RegionSpec::new(0, 1 << 20),
                RegionSpec::new(1 << 32, 64 << 20),
            ],
            ..Config::with(features)
        };
        let mut a = rig.nic("a", &config)?;
        let mut b = rig.nic("b", &Config::default())?;
        let ram = a.ram.clone();
        for round in 0..10 {
            ping(&mut a, &mut b, 10 * round);
            a.flush();
            a.session()?.remove_region(&ram, 0)?;
            a.session()?.sync()?;
            a.send_plain(&numbered(A, B, 10 * round + 1));
            b.send_plain(&numbered(B, A, 10 * round + 2));
            b.flush();
            rig.settled()?;
            assert!(b.try_recv(0).is_none() && a.try_recv(0).is_none());
            a.session()?.add_region(&ram, 0)?;
            a.session()?.sync()?;
            assert_eq!(number_of(&b.recv().1), 10 * round + 1);
            ping(&mut a, &mut b, 10 * round + 3);
        }
        rig.settled()?;
    }
    Ok(())
}
