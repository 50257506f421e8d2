//! What VMMs get wrong, or try: it is answered and named, and ends no more than the session.

mod vhost_support;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost_support::*;

/// A session that said hello, set features and shared memory.
fn started(rig: &Rig, guest: &Guest) -> Vmm {
    let vmm = rig.connect();
    vmm.hello();
    vmm.start(guest, VERSION_1);
    vmm
}

/// Sends what is to be refused, and checks that it was, with words, and that nothing was done.
fn refused(
    rig: &Rig,
    vmm: &Vmm,
    request: Request,
    body: &[u8],
    fds: &[BorrowedFd<'_>],
    words: &str,
) {
    rig.device.forget();
    assert!(
        !vmm.done(request, body, fds),
        "{request:?} for {words:?} was carried out"
    );
    let reason = rig.endpoint.status().reason.unwrap_or_default();
    assert!(
        reason.contains(words),
        "{request:?}: {reason:?} does not say {words:?}"
    );
    assert_eq!(rig.device.events(), [], "{request:?} for {words:?}");
    vmm.sync();
}

#[test]
fn rings_that_do_not_exist_are_named() {
    let (rig, guest) = (Rig::new(4), Guest::new());
    let vmm = started(&rig, &guest);
    let fd = event();
    let words = "queue pair 5 of 4: set queues=4 (QEMU) or num_queues=8";
    refused(
        &rig,
        &vmm,
        Request::SET_VRING_ENABLE,
        &pair_body(8, 1),
        &[],
        words,
    );
    refused(
        &rig,
        &vmm,
        Request::SET_VRING_NUM,
        &pair_body(9, 256),
        &[],
        words,
    );
    refused(
        &rig,
        &vmm,
        Request::SET_VRING_BASE,
        &pair_body(9, 0),
        &[],
        words,
    );
    refused(
        &rig,
        &vmm,
        Request::SET_VRING_ADDR,
        &guest.addresses(9, 0),
        &[],
        words,
    );
    for request in [
        Request::SET_VRING_KICK,
        Request::SET_VRING_CALL,
        Request::SET_VRING_ERR,
    ] {
        refused(&rig, &vmm, request, &u64_body(8), &[fd.as_fd()], words);
    }
    let far = u32::MAX;
    let words = "queue pair 2147483648 of 4";
    refused(
        &rig,
        &vmm,
        Request::SET_VRING_ENABLE,
        &pair_body(far, 1),
        &[],
        words,
    );
    assert_eq!(
        vmm.ask(Request::GET_VRING_BASE, &pair_body(9, 0)),
        pair_body(9, 0)
    );
    // QEMU does not ask for answers to these: it goes on with the pairs there are.
    vmm.send(Request::SET_VRING_ENABLE, &pair_body(9, 1), &[]);
    vmm.start_ring(7, &guest);
    assert_eq!(rig.device.count(|e| matches!(e, Event::Start(7, ..))), 1);
}

#[test]
fn rings_set_up_wrongly_stay_stopped() {
    let (rig, guest) = (Rig::new(1), Guest::new());
    let vmm = rig.connect();
    vmm.hello();
    let words = "queue 0 wrongly: it has shared no memory yet: give the VM shared memory";
    refused(
        &rig,
        &vmm,
        Request::SET_VRING_ADDR,
        &guest.addresses(0, 0),
        &[],
        words,
    );
    vmm.start(&guest, VERSION_1);
    let case = |request, body: &[u8], words: &str| refused(&rig, &vmm, request, body, &[], words);
    case(
        Request::SET_VRING_NUM,
        &pair_body(0, 0),
        "0 is not a queue size",
    );
    case(
        Request::SET_VRING_NUM,
        &pair_body(0, 32769),
        "32769 is not a queue size",
    );
    case(Request::SET_VRING_ENABLE, &pair_body(0, 2), "not by 2");
    case(
        Request::SET_VRING_ADDR,
        &guest.addresses(0, 2),
        "flags 0x2 are unknown",
    );
    for (at, words) in [
        (8, "descriptor ring"),
        (16, "used ring"),
        (24, "available ring"),
    ] {
        let mut body = guest.addresses(0, 0);
        body[at] |= 1;
        case(
            Request::SET_VRING_ADDR,
            &body,
            &format!("its {words} at 0x7f000000"),
        );
        body[at..at + 8].copy_from_slice(&(USER + GUEST).to_ne_bytes());
        let words = format!("its {words} at 0x7f0000100000 is not in shared memory");
        case(Request::SET_VRING_ADDR, &body, &words);
    }
    case(
        Request::SET_VRING_KICK,
        &u64_body(1 << 8),
        "wants it polled",
    );

    // Found only when the ring is to start: the session lives, and the ring starts when it is right.
    vmm.must(Request::SET_VRING_NUM, &pair_body(0, 100), &[]);
    vmm.must(Request::SET_VRING_ADDR, &guest.addresses(0, 0), &[]);
    vmm.must(Request::SET_VRING_KICK, &u64_body(0), &[event().as_fd()]);
    assert_eq!(rig.device.events().last(), Some(&Event::StartFailed(0)));
    let reason = rig.endpoint.status().reason.unwrap();
    assert!(
        reason.contains("queue 0 cannot start: queue size 100 is not allowed"),
        "{reason}"
    );
    vmm.must(Request::SET_VRING_NUM, &pair_body(0, 128), &[]);
    vmm.must(Request::SET_VRING_KICK, &u64_body(0), &[event().as_fd()]);
    vmm.must(Request::SET_VRING_ENABLE, &pair_body(0, 1), &[]);
    assert_eq!(rig.endpoint.status().reason, None);
    // A ring that reaches beyond memory cannot start either.
    let mut body = guest.addresses(1, 0);
    body[8..16].copy_from_slice(&(USER + GUEST - 16).to_ne_bytes());
    vmm.must(Request::SET_VRING_NUM, &pair_body(1, 256), &[]);
    vmm.must(Request::SET_VRING_ADDR, &body, &[]);
    vmm.must(Request::SET_VRING_KICK, &u64_body(1), &[event().as_fd()]);
    assert!(
        rig.endpoint
            .status()
            .reason
            .unwrap()
            .contains("queue 1 cannot start")
    );
}

#[test]
fn descriptors_that_are_not_eventfds_are_refused() {
    let (rig, guest) = (Rig::new(1), Guest::new());
    let vmm = started(&rig, &guest);
    let (null, socket) = (
        File::open("/dev/null").unwrap(),
        UnixStream::pair().unwrap().0,
    );
    for request in [
        Request::SET_VRING_KICK,
        Request::SET_VRING_CALL,
        Request::SET_VRING_ERR,
    ] {
        for fd in [null.as_fd(), socket.as_fd(), guest.file.as_fd()] {
            refused(&rig, &vmm, request, &u64_body(1), &[fd], "not an eventfd");
        }
        refused(&rig, &vmm, request, &u64_body(1), &[], "does not agree");
        let (body, fd) = (u64_body(1 | 1 << 8), event());
        refused(&rig, &vmm, request, &body, &[fd.as_fd()], "does not agree");
    }
}

#[test]
fn memory_that_is_not_shared_memory_is_refused() {
    let (rig, guest) = (Rig::new(1), Guest::new());
    let vmm = started(&rig, &guest);
    let fd = guest.file.as_fd();
    let disk = File::open("/proc/self/exe").unwrap();
    let one = |g, s, u, o| table(&[(g, s, u, o)]);
    let case = |body: &[u8], fds: &[BorrowedFd<'_>], words: &str| {
        refused(&rig, &vmm, Request::SET_MEM_TABLE, body, fds, words);
    };
    case(
        &guest.table(),
        &[disk.as_fd()],
        "not a memfd, tmpfs or hugetlbfs file: give the VM shared",
    );
    case(
        &guest.table(),
        &[],
        "sent 0 file descriptors for 1 memory regions: give the VM shared",
    );
    case(&guest.table(), &[fd, fd], "sent 2 file descriptors for 1");
    case(&table(&[]), &[], "sent 0 file descriptors for 0");
    case(&one(0, GUEST + 1, USER, 0), &[fd], "longer than its file");
    case(&one(0, GUEST, USER, 4096), &[fd], "longer than its file");
    case(
        &one(0, 4096, USER, 7),
        &[fd],
        "does not start and end at pages",
    );
    case(&one(0, 0, USER, 0), &[fd], "is empty or wraps");
    case(
        &one(u64::MAX - 4095, 4096, USER, 0),
        &[fd],
        "is empty or wraps",
    );
    case(&one(0, 4096, u64::MAX - 5, 0), &[fd], "is empty or wraps");
    case(&one(0, 4096, USER, !4095), &[fd], "is empty or wraps");
    let double = table(&[(0, 8192, USER, 0), (4096, 4096, USER + (1 << 30), 0)]);
    case(&double, &[fd, fd], "0x0 and 0x1000 overlap");

    let case = |request, body: &[u8], fds: &[BorrowedFd<'_>], words: &str| {
        refused(&rig, &vmm, request, body, fds, words);
    };
    case(
        Request::ADD_MEM_REG,
        &region(4096, 4096, USER, 0),
        &[fd],
        "0x0 and 0x1000 overlap",
    );
    case(
        Request::ADD_MEM_REG,
        &region(GUEST, 4096, USER, 0),
        &[],
        "0 file descriptors for 1",
    );
    case(
        Request::REM_MEM_REG,
        &region(0, 4096, USER, 0),
        &[],
        "0x0 that it has not added",
    );
    case(
        Request::REM_MEM_REG,
        &region(1 << 40, 4096, USER, 0),
        &[],
        "that it has not added",
    );
    // What was there is still in use, and a good table settles it.
    rig.device.touch(0x1000);
    vmm.must(Request::SET_MEM_TABLE, &guest.table(), &[fd]);
    assert!(!rig.endpoint.status().reason.unwrap().contains("memory"));
}

#[test]
fn more_regions_than_there_are_slots_are_refused() {
    let rig = Rig::new(1);
    let vmm = rig.connect();
    vmm.hello();
    let file = memfd(4096);
    let add = |i: u64| region(i << 12, 4096, USER + (i << 12), 0);
    for i in 0..509 {
        vmm.must(Request::ADD_MEM_REG, &add(i), &[file.as_fd()]);
    }
    refused(
        &rig,
        &vmm,
        Request::ADD_MEM_REG,
        &add(509),
        &[file.as_fd()],
        "more than 509",
    );
    vmm.must(Request::REM_MEM_REG, &add(5), &[]);
    vmm.must(Request::ADD_MEM_REG, &add(509), &[file.as_fd()]);
}

#[test]
fn features_that_are_not_offered_are_refused() {
    let rig = Rig::new(1);
    let vmm = rig.connect();
    vmm.hello();
    let body = u64_body(VERSION_1 | PROTOCOL_FEATURES | 1 << 57);
    let words = "features 0x200000000000000 that this port does not offer";
    refused(&rig, &vmm, Request::SET_FEATURES, &body, &[], words);
    vmm.must(
        Request::SET_FEATURES,
        &u64_body(VERSION_1 | PROTOCOL_FEATURES),
        &[],
    );
    assert_eq!(
        rig.device.events(),
        [Event::Features(VERSION_1), Event::Log(false)]
    );
    // Without the vhost-user bit rings are on from the start and cannot be switched.
    vmm.must(Request::SET_FEATURES, &u64_body(VERSION_1), &[]);
    assert_eq!(rig.device.count(|e| matches!(e, Event::Enable(_, true))), 2);
    let words = "enabled without VHOST_USER_F_PROTOCOL_FEATURES";
    refused(
        &rig,
        &vmm,
        Request::SET_VRING_ENABLE,
        &pair_body(0, 1),
        &[],
        words,
    );
}

#[test]
fn configuration_beyond_what_there_is_is_answered_with_nothing() {
    let rig = Rig::new(1);
    let vmm = rig.connect();
    vmm.hello();
    let ask = |offset: u32, size: u32, flags: u32, room: usize| {
        let mut body = [
            offset.to_ne_bytes(),
            size.to_ne_bytes(),
            flags.to_ne_bytes(),
        ]
        .concat();
        body.resize(12 + room, 0);
        vmm.ask(Request::GET_CONFIG, &body)
    };
    assert_eq!(ask(6, 4, 0, 4)[12..], [7, 8, 9, 10]);
    assert_eq!(ask(200, 2, 0, 2)[12..], [0, 0]);
    for (offset, size, flags, room) in [
        (0, 4, 0, 5),
        (0, 0, 0, 0),
        (u32::MAX, 2, 0, 2),
        (4080, 100, 0, 100),
        (0, 4, 8, 4),
    ] {
        let answer = ask(offset, size, flags, room);
        assert_eq!(
            (answer.len(), &answer[4..8]),
            (12, &[0; 4][..]),
            "{offset} {size}"
        );
    }
}

#[test]
fn unknown_messages_are_answered_and_counted() {
    let rig = Rig::new(1);
    let vmm = rig.connect();
    vmm.hello();
    // Those that have no answer of their own.
    let requests = [
        Request::SEND_RARP,
        Request::NET_SET_MTU,
        Request::SET_BACKEND_REQ_FD,
        Request::IOTLB_MSG,
        Request::SET_VRING_ENDIAN,
        Request::SET_CONFIG,
        Request::CLOSE_CRYPTO_SESSION,
        Request::POSTCOPY_LISTEN,
        Request::POSTCOPY_END,
        Request::SET_INFLIGHT_FD,
        Request::GPU_SET_SOCKET,
        Request::RESET_DEVICE,
        Request::VRING_KICK,
        Request::SET_STATUS,
    ];
    for request in requests {
        assert!(!vmm.done(request, &[0; 24], &[]), "{request:?}");
        vmm.send(request, &[], &[]); // nobody waits for this one
    }
    for number in [0, 45, 1000, u32::MAX] {
        vmm.send_raw(number, VERSION | NEED_REPLY, &[1, 2, 3], &[event().as_fd()]);
        assert_eq!(vmm.answer(), (number, u64_body(1)));
    }
    vmm.must(Request::SET_LOG_FD, &[], &[event().as_fd()]);
    let counted = 2 * requests.len() as u64 + 5;
    assert_eq!(rig.endpoint.status().unsupported_messages, counted);
    // Those that have.
    assert_eq!(vmm.ask(Request::GET_STATUS, &[]), [0; 8]);
    assert_eq!(vmm.ask(Request::GET_INFLIGHT_FD, &[0; 20]), [0; 24]);
    assert!(vmm.ask(Request::POSTCOPY_ADVISE, &[]).is_empty());
    assert!(vmm.ask(Request::GET_SHARED_OBJECT, &[0; 16]).is_empty());
    assert_eq!(vmm.ask(Request::GET_SHMEM_CONFIG, &[])[..4], [0; 4]);
    drop(vmm);
    let status = rig.until("down", |s| !s.connected);
    assert_eq!(status.unsupported_messages, counted + 5);
    assert_eq!(rig.device.events(), [Event::Connected, Event::Disconnected]);
}

/// What cannot be answered ends the session, with words, and the next one is as good as new.
#[test]
fn malformed_messages_end_their_session_only() {
    let rig = Rig::new(1);
    let fd = event();
    let many: Vec<_> = (0..33).map(|_| fd.as_fd()).collect();
    type Case<'a> = (u32, u32, Vec<u8>, Vec<BorrowedFd<'a>>, &'a str);
    let features = u32::from(Request::GET_FEATURES);
    let table = u32::from(Request::SET_MEM_TABLE);
    let cases: [Case<'_>; 12] = [
        (
            features,
            2,
            vec![],
            vec![],
            "flags 0x2, which is not vhost-user version 1",
        ),
        (features, VERSION | 16, vec![], vec![], "flags 0x11"),
        (
            features,
            VERSION | REPLY,
            vec![],
            vec![],
            "the VMM answered message 1",
        ),
        (
            features,
            VERSION,
            vec![0; 8],
            vec![],
            "GET_FEATURES with 8 bytes and 0 file descriptors",
        ),
        (
            features,
            VERSION,
            vec![],
            vec![fd.as_fd()],
            "with 0 bytes and 1 file descriptors",
        ),
        (
            features,
            VERSION,
            vec![0; 5000],
            vec![],
            "5000 bytes long, more than 4096",
        ),
        (2, VERSION, vec![0; 7], vec![], "SET_FEATURES with 7 bytes"),
        (
            table,
            VERSION,
            vec![0; 7],
            vec![],
            "SET_MEM_TABLE with 7 bytes",
        ),
        (
            table,
            VERSION,
            vec![0; 8 + 33 * 32],
            vec![],
            "SET_MEM_TABLE with 1064 bytes",
        ),
        (
            table,
            VERSION,
            vec![0; 8],
            many,
            "more than 32 file descriptors",
        ),
        (
            9,
            VERSION,
            vec![0; 8],
            vec![],
            "SET_VRING_ADDR with 8 bytes",
        ),
        (24, VERSION, vec![0; 11], vec![], "GET_CONFIG with 11 bytes"),
    ];
    for (i, (request, flags, body, fds, words)) in cases.iter().enumerate() {
        let vmm = rig.connect();
        vmm.hello();
        vmm.send_raw(*request, *flags, body, fds);
        vmm.closed();
        rig.device.wait(&Event::Disconnected, i + 1);
        let error = rig.until("down", |s| !s.connected).last_error.unwrap();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    }
    rig.connect().hello();
}

#[test]
fn logs_that_are_of_no_use_end_the_session() {
    let (rig, guest) = (Rig::new(1), Guest::new());
    let big = Guest {
        file: memfd(64 << 20),
    };
    let (log, disk) = (memfd(4096), File::open("/proc/self/exe").unwrap());
    let body = |size: u64, offset: u64| [u64_body(size), u64_body(offset)].concat();
    let cases: [(&Guest, Vec<u8>, Vec<BorrowedFd<'_>>, &str); 7] = [
        (&guest, body(4096, 0), vec![], "came without shared memory"),
        (
            &guest,
            u64_body(0),
            vec![log.as_fd()],
            "came without shared memory",
        ),
        (
            &guest,
            body(8192, 0),
            vec![log.as_fd()],
            "longer than its file",
        ),
        (
            &guest,
            body(4096, 1),
            vec![log.as_fd()],
            "pages of its file",
        ),
        (&guest, body(0, 0), vec![log.as_fd()], "is empty"),
        (&guest, body(4096, 0), vec![disk.as_fd()], "not a memfd"),
        (
            &big,
            body(1024, 0),
            vec![log.as_fd()],
            "1024 bytes do not cover memory up to 0x4000000",
        ),
    ];
    for (guest, body, fds, words) in cases {
        let vmm = rig.connect();
        vmm.hello();
        let size = if std::ptr::eq(guest, &raw const big) {
            64 << 20
        } else {
            GUEST
        };
        let table = table(&[(0, size, USER, 0)]);
        vmm.must(Request::SET_MEM_TABLE, &table, &[guest.file.as_fd()]);
        vmm.send(Request::SET_LOG_BASE, &body, &fds);
        vmm.closed();
        let error = rig.until("down", |s| !s.connected).last_error.unwrap();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
        assert_eq!(rig.device.count(|e| *e == Event::Log(true)), 0);
    }
}

#[test]
fn sealable_memory_is_sealed_against_shrinking() {
    let rig = Rig::new(1);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let guest = Guest {
        file: memfd_create("guest", flags).unwrap(),
    };
    ftruncate(&guest.file, GUEST).unwrap();
    let vmm = started(&rig, &guest);
    assert!(ftruncate(&guest.file, 0).is_err());
    drop(vmm);
}

/// A session's bytes, cut anywhere: nothing is left behind, and the next VMM is welcome.
#[test]
fn a_vmm_may_die_at_any_byte() {
    let rig = Rig::new(1);
    let mut bytes = Vec::new();
    let mut say = |request: Request, flags, body: &[u8]| {
        bytes.extend(message(request.into(), VERSION | flags, body));
    };
    say(Request::GET_FEATURES, 0, &[]);
    say(Request::SET_PROTOCOL_FEATURES, 0, &u64_body(PROTOCOL));
    say(Request::SET_OWNER, NEED_REPLY, &[]);
    say(Request::SET_VRING_ENABLE, 0, &pair_body(0, 1));
    say(Request::SET_FEATURES, NEED_REPLY, &u64_body(VERSION_1));
    say(Request::GET_VRING_BASE, 0, &pair_body(1, 0));
    for cut in 0..=bytes.len() {
        let vmm = rig.connect();
        write(&vmm.stream, &bytes[..cut]);
        drop(vmm);
        rig.device.wait(&Event::Disconnected, cut + 1);
    }
    assert_eq!(
        rig.until("down", |s| !s.connected).connects,
        bytes.len() as u64 + 1
    );
}

/// At each message, with descriptors: the VMM dies right after sending it.
#[test]
fn a_vmm_may_die_after_any_message() {
    let (rig, guest) = (Rig::new(1), Guest::new());
    let fd = event();
    let log = memfd(4096);
    let log_body = [u64_body(4096), u64_body(0)].concat();
    let features = u64_body(VERSION_1 | PROTOCOL_FEATURES | LOG_ALL);
    let said: Vec<(Request, Vec<u8>, Vec<BorrowedFd<'_>>)> = vec![
        (Request::SET_OWNER, vec![], vec![]),
        (Request::SET_FEATURES, features, vec![]),
        (
            Request::SET_MEM_TABLE,
            guest.table(),
            vec![guest.file.as_fd()],
        ),
        (Request::SET_VRING_NUM, pair_body(0, 256), vec![]),
        (Request::SET_VRING_BASE, pair_body(0, 0), vec![]),
        (Request::SET_VRING_ADDR, guest.addresses(0, 0), vec![]),
        (Request::SET_VRING_KICK, u64_body(0), vec![fd.as_fd()]),
        (Request::SET_VRING_CALL, u64_body(0), vec![fd.as_fd()]),
        (Request::SET_LOG_BASE, log_body, vec![log.as_fd()]),
        (Request::GET_VRING_BASE, pair_body(0, 0), vec![]),
    ];
    for last in 0..=said.len() {
        let vmm = rig.connect();
        for (request, body, fds) in &said[..last] {
            vmm.send(*request, body, fds);
        }
        drop(vmm);
        rig.device.wait(&Event::Disconnected, last + 1);
    }
}

#[test]
fn answers_that_are_not_read_hold_up_that_vmm_only() {
    let rig = Rig::new(1);
    let vmm = rig.connect();
    vmm.hello();
    vmm.stream.set_nonblocking(true).unwrap();
    let bytes = message(Request::GET_FEATURES.into(), VERSION, &[]);
    let mut sent = 0;
    // Until neither side takes any more. What is cut short at the end is never finished.
    while std::io::Write::write(&mut &vmm.stream, &bytes).is_ok_and(|n| n == bytes.len()) {
        sent += 1;
        if sent % 64 == 0 {
            std::thread::yield_now();
        }
        assert!(sent < 1_000_000, "requests pile up somewhere");
    }
    // The thread still answers to others: a second VMM is refused, and the session can be ended.
    let second = rig.connect();
    second.closed();
    rig.until("refused", |s| s.refused_connections == 1);
    rig.endpoint.disconnect("enough".into());
    rig.until("down", |s| {
        !s.connected && s.last_error.as_deref() == Some("enough")
    });
}
