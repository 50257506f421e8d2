//! A VMM that gives what it should not: memory, doorbells, addresses. Its own
//! session ends or its port says why it is down; the VMs next door lose nothing.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use tandem_tests::frontend::driver::{Config, Nic, Queue};
use tandem_tests::frontend::frames::{number_of, numbered};
use tandem_tests::frontend::memory::{DirtyLog, GuestRam, RegionSpec};
use tandem_tests::frontend::session::{Order, Session};
use tandem_tests::frontend::spec::{self, NetHdr};
use tandem_tests::frontend::street::{A, C, Street};

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
        let ram = GuestRam::unsealable(&config.regions)?;
        let session = Session::connect(&street.rig.socket("a"), config.order, 1)?;
        let mut a = Nic::run(Path::new(""), &config, Arc::new(ram), session)?;
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

/// Memory that can be sealed is: its VMM can no longer cut it short at all.
#[test]
fn memory_is_sealed() -> Result<()> {
    let mut street = Street::new()?;
    let mut a = street.rig.nic("a", &Config::default())?;
    assert!(a.ram.truncate(0, 0).is_err(), "cut short while in use");
    a.send_plain(&numbered(A, C, 1));
    assert_eq!(number_of(&street.c.recv().1), 1);
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
            let queue = Queue::new(&ram, 0, 256, features, false)?;
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

fn is_on_disk(dir: &Path) -> Result<bool> {
    // TMPFS_MAGIC and RAMFS_MAGIC (statfs(2)).
    let kind = rustix::fs::statfs(dir)?.f_type;
    Ok(kind != 0x0102_1994 && kind != 0x8584_58f6)
}

/// A doorbell that is full and made to block again: who rings it must not wait there.
#[test]
fn doorbell_that_blocks() -> Result<()> {
    use rustix::fs::{OFlags, fcntl_setfl};
    use tandem_tests::frontend::wire::request;
    let mut street = Street::new()?;
    let mut a = street.rig.nic("a", &Config::default())?;
    let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
    let wire = a.session()?.wire();
    wire.send(request::SET_VRING_CALL, 0, &[0; 8], &[bell.as_fd()])?;
    a.session()?.sync()?;
    // Full: with what may have been rung meanwhile taken out first. Nothing there is as good.
    let _ = rustix::io::read(&bell, &mut [0; 8]);
    rustix::io::write(&bell, &(u64::MAX - 1).to_ne_bytes())?;
    fcntl_setfl(&bell, OFlags::empty())?;
    for _ in 0..5 {
        street.knock();
    }
    street.still_quiet();
    Ok(())
}

/// The dirty log is cut short under traffic: that session ends, no other.
#[test]
fn log_cut_short() -> Result<()> {
    let mut street = Street::new()?;
    let mut a = street.rig.nic("a", &Config::default())?;
    let log = DirtyLog::unsealable(a.ram.end())?;
    a.session()?.set_log(&log)?;
    let (setups, features) = (a.setups(&[0, 0]), a.features);
    a.session()?.start_logging(features, &setups)?;
    a.session()?.sync()?;
    a.send_plain(&numbered(A, C, 1));
    assert_eq!(number_of(&street.c.recv().1), 1);
    street.c.send_plain(&numbered(C, A, 1));
    a.recv();
    log.file().set_len(0)?;
    for i in 0..20 {
        street.c.send_plain(&numbered(C, A, i));
    }
    street.c.flush();
    street.rig.wait_disconnected("a")?;
    street.still_quiet();
    drop(a);
    street.next_tenant()
}
