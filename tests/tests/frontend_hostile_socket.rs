//! A VMM that misbehaves on its socket: stalls, does not listen, comes and goes, sends descriptors
//! nobody asked for. The VMs next door lose nothing, nothing piles up, and the next VMM is welcome.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, ensure};
use tandem_tests::frontend::driver::Config;
use tandem_tests::frontend::frames::{number_of, numbered};
use tandem_tests::frontend::memory::new_memfd;
use tandem_tests::frontend::spec::NetHdr;
use tandem_tests::frontend::street::{A, C, D, Street};
use tandem_tests::frontend::wire::{NEED_REPLY, VERSION, Wire, header, request};
use tandem_tests::lab::{long, say};

/// Half a message, and then silence: with half a header, a header alone, a part of what it
/// announces, and a descriptor with it.
#[test]
fn half_a_message() -> Result<()> {
    let mut street = Street::new()?;
    street.next_tenant()?;
    street.rig.wait_disconnected("a")?;
    let before = street.rig.holdings()?;
    let memfd = new_memfd("x")?;
    let message = [&header(request::SET_MEM_TABLE, VERSION, 40)[..], &[0; 40]].concat();
    for cut in [1, 6, 11, 12, 20, 51] {
        for fds in [&[][..], &[memfd.as_fd()][..]] {
            let mut vmm = Wire::connect(&street.rig.socket("a"))?;
            vmm.send_bytes(&message[..cut], fds)?;
            street.rig.wait_port("a", "has a VMM", |port| {
                port["session"]["connected"] == true
            })?;
            street.still_quiet();
            street.knock();
            drop(vmm);
            street.next_tenant()?;
            street.still_quiet();
        }
    }
    street.rig.wait_disconnected("a")?;
    street.rig.back_to(&before)?;
    street.rig.settled()?;
    Ok(())
}

/// A VMM whose guest runs asks for more answers than fit in the socket, and reads none: its session
/// waits for it, its guest's frames do not, and nobody else does.
#[test]
fn answers_are_not_read() -> Result<()> {
    let mut street = Street::new()?;
    let mut a = street.rig.nic("a", &Config::default())?;
    a.send_plain(&numbered(A, C, u64::MAX));
    assert_eq!(number_of(&street.c.recv().1), u64::MAX);
    let stream = a.session()?.wire().stream().try_clone()?;
    stream.set_nonblocking(true)?;
    let question = header(request::GET_FEATURES, VERSION, 0);
    let mut asked = 0;
    while (&stream)
        .write(&question)
        .is_ok_and(|n| n == question.len())
    {
        asked += 1;
        ensure!(asked < 1_000_000, "questions pile up somewhere");
        if asked % 64 == 0 {
            std::thread::yield_now();
        }
    }
    for i in 0..100 {
        street.c.send_plain(&numbered(C, A, i));
        assert_eq!(number_of(&a.recv().1), i);
        a.send_plain(&numbered(A, C, i));
        assert_eq!(number_of(&street.c.recv().1), i);
    }
    street.still_quiet();
    ensure!(street.rig.port("a")?["state"] == "up");
    drop((a, stream));
    street.next_tenant()?;
    street.still_quiet();
    street.rig.settled()?;
    Ok(())
}

/// Thousands of VMMs, one after another, that say nothing or a little, while two VMs talk.
#[test]
fn thousands_of_connections() -> Result<()> {
    let count = if long() { 10_000 } else { 2000 };
    let mut street = Street::new()?;
    let path = street.rig.socket("a");
    let question = header(request::GET_FEATURES, VERSION, 0);
    let knock = |count: usize| -> Result<()> {
        for i in 0..count {
            let mut stream = UnixStream::connect(&path)?;
            // It may have been refused already: the one before is still being shown out.
            let _ = stream.write_all(&question[..i % 13]);
        }
        Ok(())
    };
    knock(500)?;
    street.rig.wait_disconnected("a")?;
    let before = street.rig.holdings()?;
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let (c, d) = (&mut street.c, &mut street.d);
    let talked = std::thread::scope(|scope| -> Result<u64> {
        let talk = scope.spawn(|| {
            let mut next = 0;
            while !stop.load(Ordering::Relaxed) {
                let burst = |src, dst| -> Vec<_> {
                    let frames = next..next + 16;
                    frames
                        .map(|i| (NetHdr::default(), numbered(src, dst, i)))
                        .collect()
                };
                c.send_burst(&burst(C, D));
                d.send_burst(&burst(D, C));
                for i in next..next + 16 {
                    assert_eq!(number_of(&d.recv().1), i);
                    assert_eq!(number_of(&c.recv().1), i);
                }
                next += 16;
            }
            next
        });
        let knocked = knock(count);
        stop.store(true, Ordering::Relaxed);
        let talked = talk.join().expect("the neighbours");
        knocked.map(|()| talked)
    })?;
    say(&format!(
        "      {count} connections in {:.2?}, {talked} frames each way",
        start.elapsed()
    ));
    street.rig.wait_disconnected("a")?;
    let after = street.rig.back_to(&before)?;
    ensure!(
        after.resident_kib < before.resident_kib + 4096,
        "memory grows: {before:?}, {after:?}"
    );
    street.c.flush();
    street.d.flush();
    let counters = street.rig.settled()?;
    for port in ["c", "d"] {
        assert_eq!(
            (counters.ports[port].from_vm, counters.ports[port].drops()),
            (talked, 0)
        );
    }
    street.next_tenant()
}

/// Descriptors with messages that have none, or more of them than asked for: the session goes on or
/// ends, and no descriptor stays.
#[test]
fn surplus_descriptors() -> Result<()> {
    let mut street = Street::new()?;
    let memfd = new_memfd("x")?;
    let cases: [(u32, usize); 8] = [
        (request::GET_FEATURES, 0),
        (request::SET_FEATURES, 8),
        (request::SET_VRING_NUM, 8),
        (request::SET_VRING_ENABLE, 8),
        (request::SET_VRING_KICK, 8),
        (request::SET_VRING_CALL, 8),
        (request::REM_MEM_REG, 40),
        (99, 8),
    ];
    let mut before = None;
    for round in 0..3 {
        for (code, size) in cases {
            for count in [1, 2, 8, 9, 33, 64] {
                let mut a = street.rig.nic("a", &Config::default())?;
                let fds: Vec<BorrowedFd<'_>> = vec![memfd.as_fd(); count];
                let wire = a.session()?.wire();
                // It may hang up half way through.
                for _ in 0..3 {
                    let _ = wire.send(code, NEED_REPLY, &vec![0; size], &fds);
                }
                street.still_quiet();
                drop(a);
                street.rig.wait_disconnected("a")?;
            }
        }
        if round == 0 {
            before = Some(street.rig.holdings()?);
        }
    }
    if let Some(before) = before {
        street.rig.back_to(&before)?;
    }
    street.next_tenant()?;
    street.rig.settled()?;
    Ok(())
}
