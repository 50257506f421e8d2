//! The port's state travels with its VM to another daemon, through the VMM (DEVICE_STATE), or is
//! refused with a reason and leaves everything as it was.

use std::io::{PipeReader, PipeWriter, Write, pipe};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tandem_tests::frontend::driver::{Config, Nic};
use tandem_tests::frontend::frames::{BROADCAST, mac, number_of, numbered};
use tandem_tests::frontend::memory::new_memfd;
use tandem_tests::frontend::rig::Rig;
use tandem_tests::frontend::session::state::{LOAD, SAVE, STARTED, STOPPED};
use tandem_tests::frontend::session::{Order, Session};
use tandem_tests::frontend::spec;
use tandem_tests::frontend::wire::{PATIENCE, request};

const VM: [u8; 6] = mac(1);
const NEIGHBOUR: [u8; 6] = mac(2);
/// SET_DEVICE_STATE_FD's answer: it failed, and no descriptor comes with it.
const FAILED: u64 = 0x101;

/// An ARP request of the station `10.0.0.1` at [`VM`], for 10.0.0.99.
fn arp_request() -> Vec<u8> {
    let mut bytes = [BROADCAST, VM].concat();
    bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend(VM);
    bytes.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 99]);
    bytes
}

/// Waits for what tells all where the VM is now.
fn hear_the_vm(neighbour: &mut Nic) {
    let announced = |frame: &[u8]| {
        let arp = frame[12..14] == [8, 6] && frame[28..32] == frame[38..42];
        arp && frame[22..32] == [&VM[..], &[10, 0, 0, 1]].concat()[..]
    };
    while !announced(&neighbour.recv().1) {}
}

fn config(order: Order, features: u64) -> Config {
    Config {
        order,
        pairs: 2,
        ..Config::with(features | spec::MQ)
    }
}

fn daemon() -> Result<Rig> {
    Rig::new(&["web,queue_pairs=2", "n"])
}

/// What the port has counted and heard, but for notifications, which starting a ring makes.
fn known(rig: &Rig) -> Result<Value> {
    let port = rig.port("web")?;
    let queues = port["queues"].as_array().cloned().unwrap_or_default();
    let queues: Vec<_> = (queues.iter())
        .map(|q| json!([q["from_vm"], q["to_vm"]]))
        .collect();
    Ok(json!({
        "counters": port["counters"],
        "queues": queues,
        "macs": port["learned_macs"],
        "addresses": port["addresses"],
    }))
}

/// A daemon on which a VM at `web` has done all that a state has something of.
fn busy(order: Order, features: u64) -> Result<(Rig, Nic, Nic)> {
    let rig = daemon()?;
    let mut n = rig.nic("n", &Config::default())?;
    let mut vm = rig.nic("web", &config(order, features))?;
    vm.send_plain(&arp_request());
    n.recv();
    for number in 0..40 {
        vm.send_on(1, Default::default(), &numbered(VM, NEIGHBOUR, number));
        ensure!(number_of(&n.recv().1) == number);
    }
    n.send_plain(&numbered(NEIGHBOUR, VM, 7));
    while vm.try_recv(0).or_else(|| vm.try_recv(1)).is_none() {}
    // One that the switch drops, and one that is no frame.
    vm.send_plain(&numbered(BROADCAST, NEIGHBOUR, 8));
    vm.send_plain(&[0; 8]);
    vm.flush();
    rig.wait_port("web", "should know its VM", |port| {
        let drops = port["counters"]["from_vm"]["drops"].as_object();
        port["addresses"] == json!(["10.0.0.1"]) && drops.is_some_and(|d| d.len() == 2)
    })?;
    Ok((rig, n, vm))
}

fn round_trip(order: Order, features: u64) -> Result<()> {
    let (a, _n, mut vm) = busy(order, features)?;
    let before = known(&a)?;
    let b = daemon()?;
    let mut there = b.nic("n", &Config::default())?;
    vm.move_to(&b.socket("web"))?;
    ensure!(known(&b)? == before, "{:#}\n{before:#}", known(&b)?);
    // The switch there tells who has come, and the VM is served.
    hear_the_vm(&mut there);
    for number in 100..110 {
        vm.send_plain(&numbered(VM, NEIGHBOUR, number));
        while number_of(&there.recv().1) != number {}
    }
    let on_b = known(&b)?;
    ensure!(on_b != before);
    // And back: what was counted on A before is not counted twice.
    a.wait_disconnected("web")?;
    vm.move_to(&a.socket("web"))?;
    ensure!(known(&a)? == on_b, "{:#}\n{on_b:#}", known(&a)?);
    let shown = a.port("web")?;
    ensure!(
        shown["state"] == "up" && shown["session"]["last_error"].is_null(),
        "{shown:#}"
    );
    Ok(())
}

#[test]
fn state_goes_and_comes_back_split() -> Result<()> {
    round_trip(Order::Qemu10, 0)?;
    round_trip(Order::CloudHypervisor, spec::IN_ORDER)
}

#[test]
fn state_goes_and_comes_back_packed() -> Result<()> {
    round_trip(Order::Qemu10, spec::RING_PACKED)
}

/// CRC-32 of IEEE 802.3, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    !bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// A state changed by somebody who gets its checksum right.
fn forged(state: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = state[..state.len() - 4].to_vec();
    change(&mut bytes);
    bytes.extend(crc32(&bytes).to_le_bytes());
    bytes
}

/// What may arrive in place of `state`, and what is said of it.
fn hostile(state: &[u8]) -> Vec<(Vec<u8>, &'static str)> {
    let mut flipped = state.to_vec();
    flipped[state.len() / 2] ^= 4;
    vec![
        (Vec::new(), "0 have arrived"),
        (state[..state.len() - 1].to_vec(), "have arrived"),
        (state[..20].to_vec(), "have arrived"),
        ([state, &[0]].concat(), "have arrived"),
        (flipped, "checksum"),
        (b"not the state of a port at all".to_vec(), "not the state"),
        (vec![0xff; 2 << 20], "more than 1048576 bytes"),
        (forged(state, |b| b[8] = 2), "format 2"),
        (forged(state, |b| b[18] = 9), "identity in version 9"),
        (forged(state, |b| b[16] = 99), "section 99"),
        (forged(state, |b| b[22..26].fill(0xff)), "make no sense"),
        (forged(state, |b| b[10..12].fill(0xff)), "make no sense"),
        (forged(state, |b| b[27] = b'W'), "name = Web"),
    ]
}

#[test]
fn refused_states_change_nothing() -> Result<()> {
    let (a, _n, mut vm) = busy(Order::Qemu10, 0)?;
    let bases = vm.stop()?;
    let state = vm.session()?.save_state()?;
    ensure!(
        state == forged(&state, |_| ()),
        "the checksum is another one"
    );
    vm.kill();
    a.wait_disconnected("web")?;
    let b = daemon()?;
    let fresh = known(&b)?;
    for (bytes, words) in hostile(&state) {
        let mut session = Session::connect(&b.socket("web"), Order::Qemu10, 2)?;
        session.send_state(&bytes)?;
        ensure!(session.check_state()? != 0, "accepted: {words}");
        let shown = b.port("web")?;
        let said = shown["session"]["last_error"].as_str().unwrap_or_default();
        ensure!(said.contains(words), "{words}: {shown:#}");
        // It is told once.
        ensure!(session.check_state()? != 0);
        ensure!(known(&b)? == fresh, "{words}");
        drop(session);
        b.wait_disconnected("web")?;
    }
    // On a port that is another one.
    for (ports, words) in [
        ("web", "queue_pairs = 2, and here it is 1"),
        (
            "web,queue_pairs=2,mtu=9000",
            "mtu = 1500, and here it is 9000",
        ),
        ("web,queue_pairs=2,mac=52:54:00:00:00:01", "mac = none"),
    ] {
        let other = Rig::new(&[ports])?;
        let mut session = Session::connect(&other.socket("web"), Order::Qemu10, 1)?;
        session.send_state(&state)?;
        ensure!(session.check_state()? != 0, "accepted: {words}");
        let shown = other.port("web")?;
        ensure!(
            shown["session"]["last_error"]
                .as_str()
                .is_some_and(|e| e.contains(words)),
            "{shown:#}"
        );
    }
    // A VM whose state was refused, and whose VMM lets it run all the same, has its network.
    let mut there = b.nic("n", &Config::default())?;
    vm.set_socket(&b.socket("web"));
    vm.arrive(&bases, |session| {
        session.send_state(&state[1..])?;
        ensure!(session.check_state()? != 0);
        Ok(())
    })?;
    vm.send_plain(&numbered(VM, NEIGHBOUR, 5));
    ensure!(number_of(&there.recv().1) == 5);
    let shown = b.port("web")?;
    ensure!(shown["state"] == "up", "{shown:#}");
    ensure!(
        shown["session"]["last_error"]
            .as_str()
            .is_some_and(|e| e.contains("not loaded"))
    );
    ensure!(shown["counters"]["from_vm"]["frames"] == 1, "{shown:#}");
    Ok(())
}

/// A state that has arrived counts when the VM runs, and not before: it may still run on elsewhere.
#[test]
fn a_vm_that_never_starts_leaves_nothing() -> Result<()> {
    let (a, _n, mut vm) = busy(Order::Qemu10, 0)?;
    let before = known(&a)?;
    let bases = vm.stop()?;
    let state = vm.session()?.save_state()?;
    let b = daemon()?;
    let fresh = known(&b)?;
    let mut session = Session::connect(&b.socket("web"), Order::Qemu10, 2)?;
    session.load_state(&state)?;
    ensure!(known(&b)? == fresh);
    // It goes on from there with what it has brought.
    ensure!(session.save_state()? == state);
    drop(session);
    b.wait_disconnected("web")?;
    let _other = b.nic("web", &config(Order::Qemu10, 0))?;
    ensure!(known(&b)? == fresh);
    // The migration has failed, and the VM runs on where it was.
    vm.resume(&bases)?;
    ensure!(known(&a)? == before);
    vm.send_plain(&numbered(VM, NEIGHBOUR, 5));
    vm.flush();
    // Nor may it be loaded under a VM that runs.
    let (reads, _writes) = pipe()?;
    let answer = vm
        .session()?
        .set_state_fd(LOAD, STOPPED, &[reads.as_fd()])?;
    ensure!(answer == FAILED, "{answer:#x}");
    Ok(())
}

#[test]
fn what_makes_no_sense_is_answered() -> Result<()> {
    let mut rig = daemon()?;
    let before = held(&mut rig)?;
    let mut session = Session::connect(&rig.socket("web"), Order::Qemu10, 2)?;
    ensure!(session.check_state()? != 0, "nothing was transferred");
    let (reads, writes) = pipe()?;
    let memfd = new_memfd("x")?;
    for (direction, phase, fds) in [
        (SAVE, STOPPED, &[][..]),
        (SAVE, 1, &[writes.as_fd()]),
        (2, STOPPED, &[writes.as_fd()]),
        (u32::MAX, u32::MAX, &[writes.as_fd()]),
        (SAVE, STOPPED, &[memfd.as_fd()]),
        (LOAD, STOPPED, &[memfd.as_fd()]),
        (SAVE, STOPPED, &[reads.as_fd()]),
        (LOAD, STOPPED, &[writes.as_fd()]),
    ] {
        let answer = session.set_state_fd(direction, phase, fds)?;
        ensure!(answer == FAILED, "{direction} {phase}: {answer:#x}");
    }
    ensure!(!session.save_state()?.is_empty(), "all is as it was");
    drop(session);
    rig.wait_disconnected("web")?;
    wait_held(&mut rig, before)?;
    Ok(())
}

/// QEMU before 10.0 does not know of it.
#[test]
fn not_agreed_on_it_is_not_supported() -> Result<()> {
    let rig = daemon()?;
    let mut session = Session::connect(&rig.socket("web"), Order::Qemu72, 2)?;
    let agreed = session.protocol.bits() & !(1 << 19);
    ensure!(agreed != session.protocol.bits(), "it is offered");
    let wire = session.wire();
    wire.send_number(request::SET_PROTOCOL_FEATURES, 0, agreed)?;
    let (_reads, writes) = pipe()?;
    let answer = session.set_state_fd(SAVE, STOPPED, &[writes.as_fd()])?;
    ensure!(answer == FAILED, "{answer:#x}");
    ensure!(session.check_state()? != 0);
    ensure!(rig.port("web")?["session"]["last_error"].is_null());
    Ok(())
}

/// A pipe that takes nothing any more.
fn full_pipe() -> Result<(PipeReader, PipeWriter)> {
    let (reads, mut writes) = pipe()?;
    rustix::io::ioctl_fionbio(&writes, true)?;
    while writes.write(&[0; 4096]).is_ok() {}
    Ok((reads, writes))
}

/// Threads of the daemon that carry a state, and pipes it has, from proc(5).
fn held(rig: &mut Rig) -> Result<(usize, usize)> {
    let proc = PathBuf::from(format!("/proc/{}", rig.daemon.process().pid()));
    let (mut threads, mut pipes) = (0, 0);
    // What ends while we look is not counted.
    for task in std::fs::read_dir(proc.join("task"))? {
        let name = std::fs::read_to_string(task?.path().join("comm"));
        threads += usize::from(name.is_ok_and(|name| name.trim_end() == "web state"));
    }
    for fd in std::fs::read_dir(proc.join("fd"))? {
        let target = std::fs::read_link(fd?.path());
        pipes += usize::from(target.is_ok_and(|to| to.to_string_lossy().starts_with("pipe:")));
    }
    Ok((threads, pipes))
}

/// Waits until it has so many: a thread gets its name and lets go of its pipe in its own time.
fn wait_held(rig: &mut Rig, expected: (usize, usize)) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let now = held(rig)?;
        if now == expected {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{now:?} and not {expected:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A VMM that neither reads nor writes its pipe waits for itself: not the neighbours, nor those who
/// remove its port, nor the VMM that comes after it.
#[test]
fn a_vmm_that_does_nothing_holds_up_nobody() -> Result<()> {
    let mut rig = Rig::new(&["web", "n", "m"])?;
    let mut n = rig.nic("n", &Config::default())?;
    let mut m = rig.nic("m", &Config::default())?;
    let before = held(&mut rig)?;
    for direction in [LOAD, SAVE] {
        for removed in [false, true] {
            let (reads, writes) = full_pipe()?;
            let empty = pipe()?;
            let fd = match direction {
                SAVE => writes.as_fd(),
                _ => empty.0.as_fd(),
            };
            let mut session = Session::connect(&rig.socket("web"), Order::Qemu10, 1)?;
            // Of many that it begins one is left.
            for _ in 0..20 {
                ensure!(session.set_state_fd(direction, STOPPED, &[fd])? == STARTED);
            }
            wait_held(&mut rig, (1, before.1 + 1))?;
            if removed {
                let wire = session.wire();
                wire.send(request::CHECK_DEVICE_STATE, 0, &[], &[])?;
            }
            n.send_plain(&numbered(mac(2), BROADCAST, 3));
            ensure!(number_of(&m.recv().1) == 3);
            go(&mut rig, session, removed)?;
            wait_held(&mut rig, before)?;
            drop((reads, writes, empty));
        }
    }
    rig.nic("web", &Config::default())?;
    Ok(())
}

/// The VMM goes, or its port does, while the other end of its pipe stays open.
fn go(rig: &mut Rig, session: Session, removed: bool) -> Result<()> {
    let start = Instant::now();
    if removed {
        rig.daemon.cli(&["port", "remove", "web"])?;
        rig.daemon.cli(&["port", "add", "web"])?;
    }
    drop(session);
    rig.wait_disconnected("web")?;
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(4), "{took:?}: it was waited for");
    Ok(())
}
