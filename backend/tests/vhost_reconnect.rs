//! Nothing of a session is left when it ends. In a process of its own: it counts what that has.

mod vhost_support;

use std::fs;

use vhost_support::*;

/// Descriptors, threads and shared mappings of this process.
fn held() -> (usize, usize, usize) {
    let count = |dir: &str| fs::read_dir(dir).unwrap().count();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let shared = maps.lines().filter(|l| l.contains("memfd:")).count();
    (count("/proc/self/fd"), count("/proc/self/task"), shared)
}

/// One session with memory, a log and rings, ended without a word.
fn session(rig: &Rig, guest: &Guest) {
    let vmm = rig.connect();
    vmm.hello();
    vmm.start(guest, VERSION_1 | LOG_ALL);
    vmm.start_ring(0, guest);
    vmm.start_ring(1, guest);
    let log = memfd(4096);
    let body = [u64_body(4096), u64_body(0)].concat();
    vmm.send(
        Request::SET_LOG_BASE,
        &body,
        &[std::os::fd::AsFd::as_fd(&log)],
    );
    vmm.answer();
    rig.device.touch(0);
}

#[test]
fn a_thousand_sessions_leave_nothing_behind() {
    let (rig, guest) = (Rig::new(2), Guest::new());
    let mut before = None;
    for n in 1..=1000 {
        session(&rig, &guest);
        rig.device.wait(&Event::Disconnected, 1);
        rig.device.forget();
        if n == 10 {
            before = Some(held());
        }
    }
    assert_eq!(Some(held()), before);
    assert_eq!(rig.endpoint.status().connects, 1000);
}
