//! A guest that breaks the rules of its rings: its own port stops or drops, is
//! counted and says why; the VMs next door lose nothing.

use std::sync::Arc;

use anyhow::Result;
use tandem_tests::frontend::driver::{Config, Nic, Parts, Receive, write_descriptor};
use tandem_tests::frontend::frames::{number_of, numbered, payload};
use tandem_tests::frontend::memory::RegionSpec;
use tandem_tests::frontend::spec;
use tandem_tests::frontend::street::{A, C, Street};

/// What a hostile guest does to its transmit ring.
type Attack = fn(&Nic, Parts);

/// Runs `attack` on the transmit ring of a VM with `features` and kicks; the port must end up down
/// with a word about its ring, or have dropped the frame with a reason.
fn transmit_attack(features: u64, attack: Attack) -> Result<()> {
    let mut street = Street::new()?;
    let mut a = street.rig.nic("a", &Config::with(features))?;
    a.send_plain(&numbered(A, C, 0));
    assert_eq!(number_of(&street.c.recv().1), 0);
    a.flush();
    attack(&a, a.pairs[0].tx.ring.parts());
    a.pairs[0].tx.kick.write(1)?;
    street
        .rig
        .wait_port("a", "should be down or have dropped", |port| {
            let drops = port["counters"]["from_vm"]["drops"].as_object();
            port["state"] == "down" || drops.is_some_and(|drops| !drops.is_empty())
        })?;
    street.still_quiet();
    street.knock();
    street.rig.settled()?;
    drop(a);
    street.next_tenant()?;
    street.still_quiet();
    street.rig.settled()?;
    Ok(())
}

/// Makes `head` available at the next place of a split ring.
fn offer(nic: &Nic, ring: Parts, head: u16) {
    let idx = nic.ram.load16(ring.avail + 2);
    let entry = ring.avail + 4 + 2 * u64::from(idx % ring.size);
    nic.ram.store16(entry, head);
    nic.ram.store16(ring.avail + 2, idx.wrapping_add(1));
}

/// Writes a packed descriptor at `place` after the first and makes it available.
fn offer_packed(nic: &Nic, ring: Parts, place: u64, gpa: u64, len: u32, id: u16, flags: u16) {
    let at = ring.desc + 16 * place;
    nic.ram.store64(at, gpa);
    nic.ram.store32(at + 8, len);
    nic.ram.store16(at + 12, id);
    nic.ram.store16(at + 14, flags | spec::DESC_AVAIL);
}

macro_rules! transmit_attacks {
    ($($name:ident: $features:expr, $attack:expr;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            transmit_attack($features, $attack)
        }
    )*};
}

transmit_attacks! {
    avail_index_too_far: 0, |nic, ring| {
        let idx = nic.ram.load16(ring.avail + 2);
        nic.ram.store16(ring.avail + 2, idx.wrapping_add(ring.size + 1));
    };
    avail_index_backwards: 0, |nic, ring| {
        let idx = nic.ram.load16(ring.avail + 2);
        nic.ram.store16(ring.avail + 2, idx.wrapping_sub(1));
    };
    head_outside_the_table: 0, |nic, ring| offer(nic, ring, ring.size);
    head_far_outside: 0, |nic, ring| offer(nic, ring, 0xffff);
    chain_to_itself: 0, |nic, ring| {
        write_descriptor(&nic.ram, ring.desc, 0x1000, 100, spec::DESC_NEXT, 0);
        offer(nic, ring, 0);
    };
    chain_in_a_circle: 0, |nic, ring| {
        for i in 0..4u16 {
            let at = ring.desc + 16 * u64::from(i);
            write_descriptor(&nic.ram, at, 0x1000, 20, spec::DESC_NEXT, (i + 1) % 4);
        }
        offer(nic, ring, 2);
    };
    chain_out_of_the_table: 0, |nic, ring| {
        write_descriptor(&nic.ram, ring.desc, 0x1000, 100, spec::DESC_NEXT, ring.size);
        offer(nic, ring, 0);
    };
    buffer_outside_memory: 0, |nic, ring| {
        write_descriptor(&nic.ram, ring.desc, nic.ram.end(), 100, 0, 0);
        offer(nic, ring, 0);
    };
    buffer_wraps_around: 0, |nic, ring| {
        write_descriptor(&nic.ram, ring.desc, u64::MAX - 50, 100, 0, 0);
        offer(nic, ring, 0);
    };
    buffer_too_long: 0, |nic, ring| {
        write_descriptor(&nic.ram, ring.desc, 0x1000, u32::MAX, 0, 0);
        offer(nic, ring, 0);
    };
    buffer_ends_outside: 0, |nic, ring| {
        write_descriptor(&nic.ram, ring.desc, nic.ram.end() - 50, 100, 0, 0);
        offer(nic, ring, 0);
    };
    buffer_of_nothing: 0, |nic, ring| {
        write_descriptor(&nic.ram, ring.desc, 0x1000, 0, 0, 0);
        offer(nic, ring, 0);
    };
    lengths_that_overflow: 0, |nic, ring| {
        for i in 0..200u16 {
            let at = ring.desc + 16 * u64::from(i);
            write_descriptor(&nic.ram, at, 0, 128 << 20, spec::DESC_NEXT, i + 1);
        }
        write_descriptor(&nic.ram, ring.desc + 16 * 200, 0, 100, 0, 0);
        offer(nic, ring, 0);
    };
    indirect_not_negotiated: 0, |nic, ring| {
        write_descriptor(&nic.ram, ring.desc, 0x1000, 16, spec::DESC_INDIRECT, 0);
        offer(nic, ring, 0);
    };
    indirect_table_outside_memory: spec::INDIRECT, |nic, ring| {
        write_descriptor(&nic.ram, ring.desc, nic.ram.end() - 16, 32, spec::DESC_INDIRECT, 0);
        offer(nic, ring, 0);
    };
    indirect_table_of_odd_length: spec::INDIRECT, |nic, ring| {
        write_descriptor(&nic.ram, ring.desc, 0x1000, 17, spec::DESC_INDIRECT, 0);
        offer(nic, ring, 0);
    };
    indirect_table_of_nothing: spec::INDIRECT, |nic, ring| {
        write_descriptor(&nic.ram, ring.desc, 0x1000, 0, spec::DESC_INDIRECT, 0);
        offer(nic, ring, 0);
    };
    indirect_table_too_long: spec::INDIRECT, |nic, ring| {
        write_descriptor(&nic.ram, ring.desc, 0, 0xffff_fff0, spec::DESC_INDIRECT, 0);
        offer(nic, ring, 0);
    };
    indirect_in_indirect: spec::INDIRECT, |nic, ring| {
        let table = nic.ram.alloc(0, 32, 16);
        write_descriptor(&nic.ram, table, table, 16, spec::DESC_INDIRECT, 0);
        write_descriptor(&nic.ram, ring.desc, table, 16, spec::DESC_INDIRECT, 0);
        offer(nic, ring, 0);
    };
    indirect_in_a_circle: spec::INDIRECT, |nic, ring| {
        let table = nic.ram.alloc(0, 32, 16);
        write_descriptor(&nic.ram, table, 0x1000, 10, spec::DESC_NEXT, 1);
        write_descriptor(&nic.ram, table + 16, 0x1000, 10, spec::DESC_NEXT, 0);
        write_descriptor(&nic.ram, ring.desc, table, 32, spec::DESC_INDIRECT, 0);
        offer(nic, ring, 0);
    };
    indirect_out_of_its_table: spec::INDIRECT, |nic, ring| {
        let table = nic.ram.alloc(0, 32, 16);
        write_descriptor(&nic.ram, table, 0x1000, 10, spec::DESC_NEXT, 9);
        write_descriptor(&nic.ram, ring.desc, table, 32, spec::DESC_INDIRECT, 0);
        offer(nic, ring, 0);
    };
    packed_buffer_outside_memory: spec::RING_PACKED, |nic, ring| {
        offer_packed(nic, ring, 1, nic.ram.end(), 100, 0, 0);
    };
    packed_buffer_too_long: spec::RING_PACKED, |nic, ring| {
        offer_packed(nic, ring, 1, 0, u32::MAX, 0, 0);
    };
    packed_chain_without_end: spec::RING_PACKED, |nic, ring| {
        for place in 1..u64::from(ring.size) {
            offer_packed(nic, ring, place, 0x1000, 10, 0, spec::DESC_NEXT);
        }
        // The first was used before: it goes on in the next round of the ring.
        nic.ram.store16(ring.desc + 14, spec::DESC_NEXT | spec::DESC_USED);
    };
    packed_indirect_outside_memory: spec::RING_PACKED | spec::INDIRECT, |nic, ring| {
        offer_packed(nic, ring, 1, nic.ram.end() - 16, 32, 0, spec::DESC_INDIRECT);
    };
    packed_indirect_of_odd_length: spec::RING_PACKED | spec::INDIRECT, |nic, ring| {
        offer_packed(nic, ring, 1, 0x1000, 17, 0, spec::DESC_INDIRECT);
    };
}

/// What a hostile guest does to its receive ring before frames for it arrive.
fn receive_attack(features: u64, attack: Attack) -> Result<()> {
    let mut street = Street::new()?;
    let config = Config {
        receive: Some(Receive::each(0, 1600)),
        ..Config::with(features)
    };
    let a = street.rig.nic("a", &config)?;
    attack(&a, a.pairs[0].rx.ring.parts());
    a.pairs[0].rx.kick.write(1)?;
    for _ in 0..5 {
        street.knock();
    }
    street.still_quiet();
    let counters = street.rig.settled()?;
    let port = &counters.ports["a"];
    assert_eq!(
        port.to_vm, 0,
        "nothing arrives in a buffer that is none: {port:?}"
    );
    assert_eq!(
        port.to_vm_drops.values().sum::<u64>(),
        5,
        "each is counted: {port:?}"
    );
    drop(a);
    street.next_tenant()?;
    street.still_quiet();
    Ok(())
}

macro_rules! receive_attacks {
    ($($name:ident: $features:expr, $attack:expr;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            receive_attack($features, $attack)
        }
    )*};
}

receive_attacks! {
    receive_index_too_far: 0, |nic, ring| {
        nic.ram.store16(ring.avail + 2, ring.size + 1);
    };
    receive_head_outside: 0, |nic, ring| offer(nic, ring, ring.size);
    receive_into_nowhere: 0, |nic, ring| {
        write_descriptor(&nic.ram, ring.desc, nic.ram.end(), 2000, spec::DESC_WRITE, 0);
        offer(nic, ring, 0);
    };
    receive_into_what_is_to_be_read: 0, |nic, ring| {
        write_descriptor(&nic.ram, ring.desc, 0x1000, 2000, 0, 0);
        offer(nic, ring, 0);
    };
    receive_chain_to_itself: 0, |nic, ring| {
        let flags = spec::DESC_WRITE | spec::DESC_NEXT;
        write_descriptor(&nic.ram, ring.desc, 0x1000, 1, flags, 0);
        offer(nic, ring, 0);
    };
    receive_mergeable_too_small: spec::MRG_RXBUF, |nic, ring| {
        write_descriptor(&nic.ram, ring.desc, 0x1000, 11, spec::DESC_WRITE, 0);
        offer(nic, ring, 0);
    };
    receive_packed_into_nowhere: spec::RING_PACKED, |nic, ring| {
        offer_packed(nic, ring, 0, nic.ram.end(), 2000, 0, spec::DESC_WRITE);
    };
    receive_packed_mergeable_into_nowhere: spec::RING_PACKED | spec::MRG_RXBUF, |nic, ring| {
        offer_packed(nic, ring, 0, nic.ram.end(), 2000, 0, spec::DESC_WRITE);
    };
}

/// A flood of kicks without work, and of work without pause, leaves the neighbours their share.
#[test]
fn kicks_without_work() -> Result<()> {
    let mut street = Street::new()?;
    let a = street.rig.nic("a", &Config::default())?;
    let kick = a.pairs[0].tx.kick.clone();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let kicker = std::thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let _ = kick.write(1);
        }
    });
    for _ in 0..20 {
        street.still_quiet();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    kicker.join().expect("the kicker");
    street.rig.settled()?;
    Ok(())
}

/// Rings filled with noise, again and again, at the bottom of which anything may lie: nobody else
/// notices, and the daemon does not fall.
#[test]
fn random_rings() -> Result<()> {
    let mut street = Street::new()?;
    street.noisy = true;
    let kinds = [
        0,
        spec::INDIRECT | spec::MRG_RXBUF,
        spec::RING_PACKED,
        spec::RING_PACKED | spec::INDIRECT | spec::EVENT_IDX,
    ];
    for round in 0..60u32 {
        let config = Config {
            queue_size: 16,
            transmit: (4, 2048),
            regions: vec![RegionSpec::new(0, 4 << 20)],
            ..Config::with(kinds[round as usize % kinds.len()])
        };
        let a = street.rig.nic("a", &config)?;
        for step in 0..20 {
            let noise = payload(1000 * round + step, 64);
            for queue in [&a.pairs[0].rx, &a.pairs[0].tx] {
                spoil(&a, queue.ring.parts(), &noise);
                queue.kick.write(1)?;
            }
            street.knock();
        }
        street.still_quiet();
        drop(a);
        street.rig.wait_disconnected("a")?;
        // What it managed to send to the neighbours is theirs to ignore.
        street.rig.settled()?;
        while street.c.try_recv(0).is_some() {}
        while street.d.try_recv(0).is_some() {}
    }
    street.next_tenant()
}

/// Writes descriptors that are nearly right, and an index a little ahead.
fn spoil(nic: &Nic, ring: Parts, noise: &[u8]) {
    let ends = [0, 0x1000, nic.ram.end() - 64, nic.ram.end(), u64::MAX - 64];
    for (i, bytes) in noise.chunks(4).enumerate() {
        let slot = u64::from(bytes[0]) % u64::from(ring.size);
        let gpa = ends[usize::from(bytes[1]) % ends.len()];
        let len = [0, 1, 12, 60, 1500, u32::MAX][usize::from(bytes[2]) % 6];
        let at = ring.desc + 16 * slot;
        if nic.features & spec::RING_PACKED != 0 {
            nic.ram.store64(at, gpa);
            nic.ram.store32(at + 8, len);
            let wrap = u16::from(bytes[3] & 8) << 4 | u16::from(bytes[3] & 16) << 11;
            nic.ram.store16(at + 14, u16::from(bytes[3] & 7) | wrap);
        } else {
            let next = u16::from(bytes[0] ^ bytes[2]) % (ring.size + 1);
            write_descriptor(&nic.ram, at, gpa, len, u16::from(bytes[3] & 7), next);
            let entry = ring.avail + 4 + 2 * (i as u64 % u64::from(ring.size));
            nic.ram
                .store16(entry, u16::from(bytes[1]) % (ring.size + 1));
        }
    }
    if nic.features & spec::RING_PACKED == 0 {
        let ahead = u16::from(noise[0]) % (ring.size + 2);
        let used = nic.ram.load16(ring.used + 2);
        nic.ram.store16(ring.avail + 2, used.wrapping_add(ahead));
    }
}
