//! Nothing of a session is left when it ends. In a process of its own: it counts what that has.

mod vhost_support;

use std::fs;
use std::os::fd::AsFd;
use std::time::Instant;

use vhost_support::*;

/// Descriptors, threads and shared mappings of this process.
fn held() -> (usize, usize, usize) {
    let count = |dir: &str| fs::read_dir(dir).unwrap().count();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let shared = maps.lines().filter(|l| l.contains("memfd:")).count();
    (count("/proc/self/fd"), count("/proc/self/task"), shared)
}

/// One session with memory, a log and rings, ended without a word; `during` is called within it,
/// when all of the one before is gone.
fn session<T>(rig: &Rig, guest: &Guest, during: impl FnOnce() -> T) -> T {
    let vmm = rig.connect();
    vmm.hello();
    vmm.start(guest, VERSION_1 | LOG_ALL);
    vmm.start_ring(0, guest);
    vmm.start_ring(1, guest);
    let log = memfd(4096);
    let body = [u64_body(4096), u64_body(0)].concat();
    vmm.send(Request::SET_LOG_BASE, &body, &[log.as_fd()]);
    vmm.answer();
    rig.device.touch(0);
    during()
}

#[test]
fn a_thousand_sessions_leave_nothing_behind() {
    let (rig, guest) = (Rig::new(2), Guest::new());
    let before = session(&rig, &guest, held);
    for _ in 0..1000 {
        session(&rig, &guest, || ());
        rig.device.wait(&Event::Disconnected, 1);
        rig.device.forget();
    }
    // The kernel may still list a thread that has been joined: look until it does not.
    session(&rig, &guest, || {
        let start = Instant::now();
        while held() != before {
            assert!(
                start.elapsed() < PATIENCE,
                "{:?}, and {before:?} before",
                held()
            );
            std::thread::yield_now();
        }
    });
    assert_eq!(rig.endpoint.status().connects, 1002);
}
