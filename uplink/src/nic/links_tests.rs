use std::process::{Command, Stdio};
use std::thread;

use proptest::prelude::*;
use rustix::net::sockopt::{set_socket_recv_buffer_size, socket_recv_buffer_size};

use super::*;
use crate::nic::sys::{leave_network, wait_readable};

fn ip_does(words: &str) -> bool {
    let done = Command::new("ip").args(words.split(' ')).output();
    done.is_ok_and(|done| done.status.success())
}

fn ip(words: &str) {
    assert!(ip_does(words), "ip {words}");
}

/// Many commands at once.
fn ip_batch(lines: &str) {
    use std::io::Write;
    let mut ip = Command::new("ip");
    let mut ip = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = ip.stdin.take().unwrap();
    input.write_all(lines.as_bytes()).unwrap();
    drop(input);
    assert!(ip.wait().unwrap().success());
}

/// Runs `test` in a network of its own, which has a pair of devices `near` and `far` that are up. It ends
/// with the thread.
fn in_network(name: &str, test: fn(&mut Links)) {
    let thread = thread::spawn(move || {
        if leave_network().is_err() || Command::new("ip").arg("-V").output().is_err() {
            return false;
        }
        ip("link add near type veth peer name far");
        ip("link set near up");
        ip("link set far up");
        test(&mut Links::open().unwrap());
        true
    });
    if !thread.join().expect("the test passes") {
        println!("skipped {name}: no network can be made (root, and iproute2)");
    }
}

/// The next event that is `wanted`.
fn wait<T>(links: &mut Links, mut wanted: impl FnMut(LinkEvent) -> Option<T>) -> T {
    loop {
        while let Some(event) = links.next_event().unwrap() {
            if let Some(found) = wanted(event) {
                return found;
            }
        }
        wait_readable(links.as_fd());
    }
}

/// The link of a device once it is as wanted.
fn wait_link(links: &mut Links, name: &str, wanted: fn(&Link) -> bool) -> Link {
    wait(links, |event| match event {
        LinkEvent::Changed(link) if link.name == name && wanted(&link) => Some(link),
        _ => None,
    })
}

fn find(links: &Links, name: &str) -> Option<Link> {
    let all = links.all().unwrap();
    all.into_iter().find(|link| link.name == name)
}

#[test]
fn the_carrier_follows_the_other_end() {
    in_network("the_carrier_follows_the_other_end", |links| {
        ip("link set far down");
        let down = wait_link(links, "near", |link| !link.carrier);
        assert!(down.up, "it is only the other end that is down");
        assert_eq!(find(links, "near"), Some(down.clone()));
        ip("link set far up");
        let up = wait_link(links, "near", |link| link.carrier);
        assert_eq!((up.index, up.mac), (down.index, down.mac));
        ip("link set near down");
        wait_link(links, "near", |link| !link.up && !link.carrier);
    });
}

#[test]
fn what_changes_is_told() {
    in_network("what_changes_is_told", |links| {
        let before = find(links, "near").unwrap();
        assert_eq!(before.mtu, 1500);
        assert_ne!(before.index, 0);
        ip("link set near mtu 9000");
        assert_eq!(
            wait_link(links, "near", |link| link.mtu == 9000).index,
            before.index
        );
        ip("link set near address 02:00:00:00:00:07");
        wait_link(links, "near", |link| link.mac == Mac([2, 0, 0, 0, 0, 7]));
        ip("link set near name other");
        assert_eq!(wait_link(links, "other", |_| true).index, before.index);
        assert_eq!(find(links, "near"), None);
        // It has nothing like a MAC address.
        let lo = find(links, "lo").unwrap();
        assert_eq!((lo.index, lo.mac, lo.up), (1, Mac::default(), false));
    });
}

#[test]
fn a_device_that_comes_back_is_another() {
    in_network("a_device_that_comes_back_is_another", |links| {
        let before = find(links, "near").unwrap();
        ip("link del near");
        let removed = wait(links, |event| match event {
            LinkEvent::Removed { index, name } if name == "near" => Some(index),
            _ => None,
        });
        assert_eq!((removed, find(links, "near")), (before.index, None));
        ip("link add near type veth peer name far");
        assert_ne!(wait_link(links, "near", |_| true).index, before.index);
    });
}

#[test]
fn a_device_that_leaves_a_bridge_is_not_removed() {
    in_network("a_device_that_leaves_a_bridge_is_not_removed", |links| {
        if !ip_does("link add bridge0 type bridge") {
            println!("skipped a_device_that_leaves_a_bridge_is_not_removed: no bridge can be made");
            return;
        }
        ip("link set near master bridge0");
        ip("link set near nomaster");
        ip("link set near mtu 1400");
        wait(links, |event| match event {
            LinkEvent::Changed(link) => (link.name == "near" && link.mtu == 1400).then_some(()),
            event => panic!("{event:?}"),
        });
    });
}

#[test]
fn events_that_are_lost_are_missed() {
    in_network("events_that_are_lost_are_missed", |links| {
        let size = socket_recv_buffer_size(&links.socket).unwrap();
        // The least that the kernel allows.
        set_socket_recv_buffer_size(&links.socket, 1).unwrap();
        let changes = (0..100).map(|i| format!("link set near mtu {}\n", 1000 + i));
        ip_batch(&changes.collect::<String>());
        ip("link del near");
        assert_eq!(links.next_event().unwrap(), Some(LinkEvent::Lost));
        // What is from before is not taken for news.
        assert_eq!(links.next_event().unwrap(), None);
        assert_eq!(find(links, "near"), None);
        set_socket_recv_buffer_size(&links.socket, size).unwrap();
        ip("link add new0 type veth peer name new1");
        assert!(wait_link(links, "new0", |_| true).index > 0);
    });
}

#[test]
fn all_of_many_links_are_listed() {
    in_network("all_of_many_links_are_listed", |links| {
        // More than fit in one datagram.
        let devices = (0..100).map(|i| format!("link add x{i} type veth peer name y{i}\n"));
        ip_batch(&devices.collect::<String>());
        let all = links.all().unwrap();
        assert_eq!(all.len(), 1 + 2 + 200);
        assert!(all.iter().all(|link| link.mtu >= 1500));
    });
}

#[test]
fn a_speed_is_megabits_or_unknown() {
    assert_eq!(parse_speed("10000\n"), Some(10_000_000_000));
    for unknown in ["-1\n", "4294967295\n", "0\n", "", "fast\n"] {
        assert_eq!(parse_speed(unknown), None, "{unknown}");
    }
    for name in ["lo", "no-such-device", "", ".", "..", "../net/lo"] {
        assert_eq!(speed(name), None, "{name}");
    }
}

/// A message as `linux/netlink.h` and `linux/if_link.h` have it.
fn message(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = vec![0, 0, 1, 0];
    body.extend(7u32.to_ne_bytes());
    body.extend(0x1_0001u32.to_ne_bytes());
    body.extend([0; 4]);
    for (kind, value) in attributes {
        body.extend((value.len() as u16 + 4).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut message = (body.len() as u32 + 16).to_ne_bytes().to_vec();
    message.extend(libc::RTM_NEWLINK.to_ne_bytes());
    message.extend([0; 10]);
    [message, body].concat()
}

fn links_in(bytes: &[u8]) -> Vec<Link> {
    Messages(bytes).filter_map(|m| link_of(&m)).collect()
}

#[test]
fn a_message_says_what_the_kernel_wrote() {
    let mtu = 1500u32.to_ne_bytes();
    let attributes: &[(u16, &[u8])] = &[
        (IFLA_IFNAME, b"eth0\0"),
        // Unknown ones between, one of them with a flag.
        (99, b"whatever"),
        (0x8000 | 40, b""),
        (IFLA_MTU, &mtu),
        (IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]),
        (IFLA_OPERSTATE, &[IF_OPER_UP]),
    ];
    let bytes = message(attributes);
    let link = Link {
        index: 7,
        name: "eth0".into(),
        up: true,
        carrier: true,
        mtu: 1500,
        mac: Mac([2, 0, 0, 0, 0, 1]),
    };
    assert_eq!(
        links_in(&[&bytes[..], &bytes].concat()),
        [link.clone(), link.clone()]
    );
    for len in 0..bytes.len() {
        assert_eq!(links_in(&bytes[..len]), [], "{len}");
    }
    for (state, carrier) in [(0, true), (2, false), (3, false), (5, false), (6, true)] {
        let state: &[(u16, &[u8])] = &[(IFLA_IFNAME, b"eth0\0"), (IFLA_OPERSTATE, &[state])];
        assert_eq!(links_in(&message(state))[0].carrier, carrier, "{state:?}");
    }
    assert_eq!(
        links_in(&message(&[(IFLA_MTU, &mtu)])),
        [],
        "without a name"
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200), len in 0u16..200) {
        let mut whole = message(&[(IFLA_IFNAME, &bytes)]);
        links_in(&bytes);
        links_in(&whole);
        whole[32..34].copy_from_slice(&len.to_ne_bytes());
        links_in(&whole);
        whole[..2].copy_from_slice(&len.to_ne_bytes());
        links_in(&whole);
    }
}
