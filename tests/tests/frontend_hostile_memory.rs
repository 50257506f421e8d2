//! A VMM that takes memory and rings away while others send to its guest: exactly the frames for
//! that guest are dropped, and the VM works again when it, or the next one, behaves.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use tandem_tests::frontend::driver::{Config, Nic};
use tandem_tests::frontend::frames::{number_of, numbered};
use tandem_tests::frontend::memory::{GuestRam, RegionSpec};
use tandem_tests::frontend::rig::Counters;
use tandem_tests::frontend::session::{Order, RingSetup, Session};
use tandem_tests::frontend::spec::{self, NetHdr};
use tandem_tests::frontend::street::{A, C, D, Street};
use vhost::VhostBackend;

/// Kinds of rings that the hostile guest has.
const KINDS: [u64; 3] = [0, spec::RING_PACKED, spec::MRG_RXBUF | spec::EVENT_IDX];

/// Rings in the first region, buffers in the second.
fn two_regions(features: u64) -> Config {
    Config {
        regions: vec![
            RegionSpec::new(0, 16 << 20),
            RegionSpec::new(1 << 32, 64 << 20),
        ],
        ..Config::with(features)
    }
}

/// Bursts from c, every other frame for a and for d; `d` must get all of its own.
struct Mixed {
    next: u64,
}

impl Mixed {
    fn send(&mut self, c: &mut Nic, d: &mut Nic) {
        let burst: Vec<_> = (self.next..self.next + 32)
            .map(|i| {
                let to = if i % 2 == 0 { A } else { D };
                (NetHdr::default(), numbered(C, to, i))
            })
            .collect();
        c.send_burst(&burst);
        for i in (self.next..self.next + 32).skip(1).step_by(2) {
            assert_eq!(number_of(&d.recv().1), i);
        }
        self.next += 32;
    }

    /// Everything sent is accounted for: half to d, and half to a or dropped there.
    fn check(&self, counters: &Counters, before: &Counters) {
        let count = |of: fn(&Counters) -> u64| of(counters) - of(before);
        assert_eq!(count(|n| n.ports["c"].from_vm), self.next, "{counters:#?}");
        assert_eq!(count(|n| n.ports["c"].from_vm_drops.values().sum()), 0);
        assert_eq!(count(|n| n.ports["d"].to_vm), self.next / 2);
        assert_eq!(count(|n| n.ports["d"].drops()), 0);
        let for_a = |n: &Counters| {
            let a = &n.ports["a"];
            a.to_vm + a.to_vm_drops.values().sum::<u64>()
        };
        assert_eq!(count(for_a), self.next / 2, "{counters:#?}");
    }
}

/// The address of the VM on port a is known to be there, so that nothing is flooded.
fn introduce(a: &mut Nic, street: &mut Street) -> Result<Counters> {
    a.send_plain(&numbered(A, C, 0));
    assert_eq!(number_of(&street.c.recv().1), 0);
    a.flush();
    street.c.flush();
    street.rig.settled()
}

/// The file of one region is cut short under the feet of a foreign sender.
fn memory_cut_short(region: usize) -> Result<()> {
    for features in KINDS {
        let mut street = Street::new()?;
        let config = two_regions(features);
        let ram = GuestRam::unsealable(&config.regions)?;
        let session = Session::connect(&street.rig.socket("a"), config.order, 1)?;
        let mut a = Nic::run(Path::new(""), &config, Arc::new(ram), session)?;
        let before = introduce(&mut a, &mut street)?;
        let mut mixed = Mixed { next: 0 };
        for burst in 0..40 {
            if burst == 7 {
                a.ram.truncate(region, 0)?;
            }
            mixed.send(&mut street.c, &mut street.d);
        }
        street.c.flush();
        let counters = street.rig.settled()?;
        mixed.check(&counters, &before);
        street.rig.wait_disconnected("a")?;
        drop(a);
        street.next_tenant()?;
        street.still_quiet();
        street.rig.settled()?;
    }
    Ok(())
}

#[test]
fn buffers_cut_short_are_accounted_for() -> Result<()> {
    memory_cut_short(1)
}

#[test]
fn rings_cut_short_are_accounted_for() -> Result<()> {
    memory_cut_short(0)
}

/// Memory with the buffers is unplugged under traffic, and plugged in again; then that with the
/// rings, which ends the session at most.
#[test]
fn memory_unplugged_under_traffic() -> Result<()> {
    for features in KINDS {
        let mut street = Street::new()?;
        let mut a = street.rig.nic("a", &two_regions(features))?;
        let before = introduce(&mut a, &mut street)?;
        let mut mixed = Mixed { next: 0 };
        let ram = a.ram.clone();
        for region in [1, 1, 0] {
            for _ in 0..5 {
                mixed.send(&mut street.c, &mut street.d);
            }
            let removed = a.session()?.remove_region(&ram, region);
            for _ in 0..5 {
                mixed.send(&mut street.c, &mut street.d);
            }
            if removed.is_ok() {
                let _ = a.session()?.add_region(&ram, region);
            }
        }
        street.c.flush();
        let counters = street.rig.settled()?;
        mixed.check(&counters, &before);
        drop(a);
        street.next_tenant()?;
        street.still_quiet();
        street.rig.settled()?;
    }
    Ok(())
}

/// What a VMM says to start ring `index`.
fn start_ring(session: &mut Session, index: usize, ring: &RingSetup) -> Result<()> {
    session.frontend().set_vring_num(index, ring.size)?;
    session.set_base(index, ring.base)?;
    session.set_addr(index, ring, false)?;
    session.frontend().set_vring_kick(index, &ring.kick)?;
    session.frontend().set_vring_call(index, &ring.call)?;
    Ok(())
}

/// One of the things a VMM may do to a ring, whether or not that makes sense now. `base` is where
/// the ring goes on, once it has been stopped.
fn meddle(nic: &mut Nic, step: usize, bases: &mut [u32; 2], stopped: &mut [bool; 2]) -> Result<()> {
    let ring = step / 3 % 2;
    let setup = nic.setups(bases).remove(ring);
    let session = nic.session()?;
    match step * 7 % 11 {
        0 | 1 => session.enable(ring, false)?,
        2 | 3 => session.enable(ring, true)?,
        4 => {
            session.enable(ring, true)?;
            session.enable(ring, true)?;
        }
        5 | 6 if !stopped[ring] => {
            bases[ring] = session.frontend().get_vring_base(ring)?;
            stopped[ring] = true;
        }
        7 => {
            session.frontend().set_vring_call(ring, &setup.call)?;
            session.frontend().set_vring_kick(ring, &setup.kick)?;
            // A kick descriptor starts a ring that was stopped.
            stopped[ring] = false;
        }
        _ if stopped[ring] => {
            start_ring(session, ring, &setup)?;
            stopped[ring] = false;
        }
        _ => {}
    }
    session.sync()
}

/// Rings disabled, enabled, stopped and started in odd orders under traffic both ways.
#[test]
fn rings_in_odd_orders() -> Result<()> {
    for features in KINDS {
        for order in Order::ALL {
            let mut street = Street::new()?;
            let config = Config {
                order,
                ..Config::with(features)
            };
            let mut a = street.rig.nic("a", &config)?;
            let before = introduce(&mut a, &mut street)?;
            let mut mixed = Mixed { next: 0 };
            let (mut bases, mut stopped) = ([0; 2], [false; 2]);
            let mut last = None;
            for step in 0..120 {
                if step < 60 {
                    a.send_plain(&numbered(A, C, step as u64));
                }
                mixed.send(&mut street.c, &mut street.d);
                meddle(&mut a, step, &mut bases, &mut stopped)?;
                mixed.send(&mut street.c, &mut street.d);
                while let Some((_, frame)) = a.try_recv(0) {
                    ensure!(last < Some(number_of(&frame)), "{order:?}: out of order");
                    last = Some(number_of(&frame));
                }
            }
            let setups = a.setups(&bases);
            for (ring, setup) in setups.iter().enumerate() {
                if stopped[ring] {
                    start_ring(a.session()?, ring, setup)?;
                }
                a.session()?.enable(ring, true)?;
            }
            a.pairs[0].tx.kick.write(1)?;
            // Whatever waited in the ring arrives, once and in order.
            for i in 0..60 {
                assert_eq!(number_of(&street.c.recv().1), i, "{order:?}, {features:#x}");
            }
            street.c.flush();
            a.flush();
            let counters = street.rig.settled()?;
            mixed.check(&counters, &before);
            drop(a);
            street.next_tenant()?;
        }
    }
    Ok(())
}
