//! For tests: two devices with a wire between them.

use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::links::Links;
use super::sys::wait_readable;

/// Names of the devices, which end with this.
pub(super) struct Wire {
    pub(super) near: String,
    pub(super) far: String,
}

impl Drop for Wire {
    fn drop(&mut self) {
        ip(&format!("link del {}", self.near));
    }
}

/// Runs `ip`; has it done it?
pub(super) fn ip(words: &str) -> bool {
    let done = Command::new("ip").args(words.split(' ')).output();
    done.is_ok_and(|done| done.status.success())
}

/// A wire, with so many queues at each end; none, and a line that says so, without the privilege.
pub(super) fn wire(test: &str, mtu: u32, queues: u32) -> Option<Wire> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut links = Links::open().expect("a netlink socket");
    let [near, far] = ["a", "b"].map(|end| format!("tdx{n}{end}{}", std::process::id()));
    let many = format!("numrxqueues {queues} numtxqueues {queues}");
    if !ip(&format!(
        "link add {near} {many} type veth peer name {far} {many}"
    )) {
        println!("skipped {test}: no veth devices can be made (root, and iproute2)");
        return None;
    }
    for device in [&near, &far] {
        // Nothing but what the tests send.
        let quiet = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
        let _ = std::fs::write(quiet, "1");
        assert!(ip(&format!("link set {device} mtu {mtu} up")));
    }
    wait_carrier(&mut links, [&near, &far]);
    Some(Wire { near, far })
}

/// Waits until the kernel has seen that a wire is plugged in: until then it drops what is sent.
pub(super) fn wait_carrier(links: &mut Links, ends: [&String; 2]) {
    loop {
        while links.next_event().expect("events").is_some() {}
        let all = links.all().expect("the links");
        let plugged = all.iter().filter(|link| link.carrier);
        if plugged.filter(|link| ends.contains(&&link.name)).count() == 2 {
            return;
        }
        wait_readable(links.as_fd());
    }
}
