//! A guest or a VMM that breaks the rules: its own port stops or drops, is
//! counted and says why; the VMs next door lose nothing.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use serde_json::Value;
use tandem_tests::frontend::driver::{Config, Nic, Parts, write_descriptor};
use tandem_tests::frontend::frames::{BROADCAST, mac, number_of, numbered};
use tandem_tests::frontend::memory::{GuestRam, RegionSpec};
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::session::{Order, Session};
use tandem_tests::frontend::spec::{self, NetHdr};

const A: [u8; 6] = mac(1);
const C: [u8; 6] = mac(3);
const D: [u8; 6] = mac(4);

/// Two good neighbours on the same switch as the hostile port `a`.
struct Street {
    rig: Rig,
    c: Nic,
    d: Nic,
    sent: u64,
}

impl Street {
    fn new() -> Result<Self> {
        // Addresses known from the start, so that nothing between them is flooded.
        let rig = Rig::new(&["a", "c,mac=52:54:00:00:00:03", "d,mac=52:54:00:00:00:04"])?;
        let config = Config::with(spec::MRG_RXBUF | spec::EVENT_IDX);
        let c = rig.nic("c", &config)?;
        let d = rig.nic("d", &config)?;
        Ok(Street { rig, c, d, sent: 0 })
    }

    /// The neighbours talk, and hear only each other.
    fn still_quiet(&mut self) {
        for _ in 0..20 {
            self.sent += 1;
            self.c.send_plain(&numbered(C, D, self.sent));
            assert_eq!(self.d.recv().1, numbered(C, D, self.sent));
            self.d.send_plain(&numbered(D, C, self.sent));
            assert_eq!(self.c.recv().1, numbered(D, C, self.sent));
        }
    }

    /// A broadcast that the port under attack is meant to receive too.
    fn knock(&mut self) {
        self.sent += 1;
        self.c.send_plain(&numbered(C, BROADCAST, self.sent));
        assert_eq!(number_of(&self.d.recv().1), self.sent);
    }

    /// Waits until port `a` no longer carries frames, with a reason that has `word` in it.
    fn wait_down(&self, word: &str) -> Result<Value> {
        self.rig
            .wait_port("a", &format!("should be down: {word}"), |port| {
                let reason = port["reason"].as_str().unwrap_or_default().to_lowercase();
                port["state"] == "down" && reason.contains(word)
            })
    }

    /// A fresh VM on the port works: nothing of the attack stays.
    fn next_tenant(&mut self) -> Result<()> {
        self.rig.wait_disconnected("a")?;
        let mut a = self.rig.nic("a", &Config::default())?;
        // The neighbours' broadcasts may have been kept from nobody: ask for an answer.
        a.send_plain(&numbered(A, C, u64::MAX));
        while number_of(&self.c.recv().1) != u64::MAX {}
        self.c.send_plain(&numbered(C, A, 1));
        while number_of(&a.recv().1) != 1 {}
        Ok(())
    }
}

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
    buffer_for_the_device_to_write: 0, |nic, ring| {
        write_descriptor(&nic.ram, ring.desc, 0x1000, 100, spec::DESC_WRITE, 0);
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
        receive: Some(tandem_tests::frontend::driver::Receive::each(0, 1600)),
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

/// Memory in a plain file on a disk can stall whoever touches it: refused, and the port says so.
#[test]
fn memory_on_a_disk() -> Result<()> {
    let mut street = Street::new()?;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    if !is_on_disk(dir.path())? {
        eprintln!("part skipped: the build directory is not on a disk");
        return Ok(());
    }
    let ram_on_disk = || {
        GuestRam::with_files(&[RegionSpec::new(0, 64 << 20)], |spec| {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(true);
            let file = options.open(dir.path().join("ram"))?;
            file.set_len(spec.size)?;
            Ok(file)
        })
    };
    for order in Order::ALL {
        let config = Config {
            order,
            ..Config::default()
        };
        let session = Session::connect(&street.rig.socket("a"), order, 1)?;
        // The VMM is told, or its session ends; either way no guest runs on it.
        let outcome = Nic::run(Path::new(""), &config, Arc::new(ram_on_disk()?), session);
        if let Ok(mut nic) = outcome {
            nic.send_plain(&numbered(A, C, 1));
            let shown = street.wait_down("memory")?;
            assert!(
                shown["reason"]
                    .as_str()
                    .is_some_and(|r| r.contains("share")),
                "{shown:#}"
            );
        } else {
            let shown = street.rig.port("a")?;
            let words = format!("{} {}", shown["reason"], shown["session"]["last_error"]);
            assert!(
                words.contains("share") || words.contains("memfd"),
                "{shown:#}"
            );
        }
        street.still_quiet();
        street.rig.wait_disconnected("a")?;
    }
    Ok(())
}

/// The VMM has no shared memory to give, so gives none: QEMU without `share=on`.
#[test]
fn no_shared_memory() -> Result<()> {
    let street = Street::new()?;
    let mut session = Session::connect(&street.rig.socket("a"), Order::Qemu72, 1)?;
    session.set_features(spec::VERSION_1)?;
    session.sync()?;
    let shown = street.wait_down("share")?;
    assert_eq!(shown["session"]["connected"], true);
    Ok(())
}

/// A VMM with more queues than the port has: the port says so in words.
#[test]
fn too_many_queues() -> Result<()> {
    let mut street = Street::new()?;
    let config = Config {
        pairs: 2,
        ..Config::with(spec::MRG_RXBUF)
    };
    // QEMU takes two rings for two pairs, and goes on.
    let nic = street.rig.nic("a", &config);
    let shown = street.rig.wait_port("a", "names queue_pairs", |port| {
        let words = format!("{} {}", port["reason"], port["session"]["last_error"]);
        words.contains("queue")
    })?;
    assert_eq!(shown["queue_pairs"], 1);
    drop(nic);
    street.still_quiet();
    street.next_tenant()
}

/// The memory file is cut short under traffic in both directions: that session ends, no other.
#[test]
fn memory_cut_short() -> Result<()> {
    for features in [0, spec::RING_PACKED, spec::MRG_RXBUF | spec::EVENT_IDX] {
        let mut street = Street::new()?;
        let config = Config {
            regions: vec![
                RegionSpec::new(0, 16 << 20),
                RegionSpec::new(1 << 32, 64 << 20),
            ],
            ..Config::with(features)
        };
        let mut a = street.rig.nic("a", &config)?;
        a.send_plain(&numbered(A, C, 0));
        assert_eq!(number_of(&street.c.recv().1), 0);
        street.c.send_plain(&numbered(C, A, 0));
        a.recv();
        // Buffers first: a's own thread reads them, the neighbour's thread writes them.
        let burst: Vec<_> = (0..50)
            .map(|i| (NetHdr::default(), numbered(A, C, i)))
            .collect();
        a.send_burst(&burst);
        a.ram.truncate(1, 0)?;
        a.pairs[0].tx.kick.write(1)?;
        for i in 0..20 {
            street.c.send_plain(&numbered(C, A, i));
        }
        street.c.flush();
        // The rings, too.
        a.ram.truncate(0, 0)?;
        a.pairs[0].tx.kick.write(1)?;
        for i in 0..20 {
            street.c.send_plain(&numbered(C, A, i));
        }
        street.c.flush();
        street.rig.wait_disconnected("a")?;
        while street.c.try_recv(0).is_some() {}
        street.still_quiet();
        let shown = street.rig.port("a")?;
        assert!(shown["session"]["last_error"].is_string(), "{shown:#}");
        drop(a);
        street.next_tenant()?;
        street.still_quiet();
        street.rig.settled()?;
    }
    Ok(())
}

/// Ring addresses that are not in memory, or not where such a thing can lie.
#[test]
fn rings_outside_memory() -> Result<()> {
    let mut street = Street::new()?;
    for field in 0..3 {
        for offset in [u64::MAX / 2, 256 << 20, (256 << 20) - 8, 1] {
            let ram = Arc::new(GuestRam::new(&[RegionSpec::new(0, 256 << 20)])?);
            let mut session = Session::connect(&street.rig.socket("a"), Order::Qemu72, 1)?;
            let features = spec::VERSION_1;
            session.set_features(features)?;
            session.give_memory(&ram)?;
            let queue = tandem_tests::frontend::driver::Queue::new(&ram, 0, 256, features, false)?;
            let mut setup = queue.setup(0);
            match field {
                0 => setup.desc = offset,
                1 => setup.avail = offset,
                _ => setup.used = offset,
            }
            // Refused with an end, or accepted and never served.
            let _ = session.start(features, &ram, &[setup], 1);
            queue.kick.write(1)?;
            street.still_quiet();
            drop(session);
            street.rig.wait_disconnected("a")?;
        }
    }
    street.next_tenant()
}

/// Doorbells that are not eventfds: a socket, a file, a pipe that fills up and stalls.
#[test]
fn doorbells_that_are_none() -> Result<()> {
    use std::os::fd::AsFd;
    use tandem_tests::frontend::wire::request;
    let mut street = Street::new()?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let file = File::open("/dev/null")?;
    let (reader, writer) = std::io::pipe()?;
    for fd in [theirs.as_fd(), file.as_fd(), reader.as_fd(), writer.as_fd()] {
        for code in [request::SET_VRING_CALL, request::SET_VRING_KICK] {
            let mut a = street.rig.nic("a", &Config::default())?;
            let wire = a.session()?.wire();
            let _ = wire.send(code, 0, &[0; 8], &[fd]);
            for _ in 0..3 {
                street.knock();
            }
            street.still_quiet();
            drop(a);
            street.rig.wait_disconnected("a")?;
        }
    }
    drop((ours, theirs));
    street.next_tenant()
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

fn is_on_disk(dir: &Path) -> Result<bool> {
    // TMPFS_MAGIC and RAMFS_MAGIC (statfs(2)).
    let kind = rustix::fs::statfs(dir)?.f_type;
    Ok(kind != 0x0102_1994 && kind != 0x8584_58f6)
}
