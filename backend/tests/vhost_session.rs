//! What VMMs say in good order, and what becomes of the device.

mod vhost_support;

use std::io::{Read, Write, pipe};
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::ftruncate;
use rustix::io::pread;
use vhost::vhost_user::message::{
    VhostTransferStateDirection as TransferDirection, VhostTransferStatePhase as TransferPhase,
    VhostUserConfigFlags, VhostUserHeaderFlag,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_support::*;
use vmm_sys_util::eventfd::EventFd;

/// Connects and starts rings 0 and 1 as QEMU does.
fn qemu(rig: &Rig, guest: &Guest, features: u64) -> Vmm {
    let vmm = rig.connect();
    vmm.hello();
    vmm.start(guest, features);
    vmm.start_ring(0, guest);
    vmm.start_ring(1, guest);
    vmm
}

#[test]
fn qemu_enables_rings_before_it_sets_features() {
    let (rig, guest) = (Rig::new(2), Guest::new());
    let vmm = rig.connect();
    vmm.hello();
    assert_eq!(vmm.ask(Request::GET_QUEUE_NUM, &[]), u64_body(4));
    vmm.send(Request::SET_VRING_CALL, &u64_body(0), &[event().as_fd()]);
    vmm.send(Request::SET_VRING_ERR, &u64_body(0), &[event().as_fd()]);
    for ring in 0..4 {
        vmm.send(
            Request::SET_VRING_ENABLE,
            &pair_body(ring, u32::from(ring < 2)),
            &[],
        );
    }
    vmm.sync();
    let status = rig.endpoint.status();
    assert!(status.connected && status.reason.unwrap().contains("has not started the NIC"));
    vmm.start(&guest, VERSION_1);
    vmm.start_ring(0, &guest);
    let expected = [
        Event::Connected,
        Event::Call(0, true),
        Event::Enable(0, true),
        Event::Enable(1, true),
        Event::Enable(2, false),
        Event::Enable(3, false),
        Event::Features(VERSION_1),
        Event::Log(false),
        Event::Memory(1),
        Event::Kick(0, true),
        Event::Start(0, config(0, VERSION_1), 0),
        Event::Call(0, true),
    ];
    assert_eq!(rig.device.events(), expected);
    let status = rig.endpoint.status();
    assert_eq!(status.reason, None, "the port is up");
    assert_eq!((status.acked_features, status.packed), (VERSION_1, false));
    assert_eq!((status.memory_regions, status.connects), (1, 1));
    drop(vmm);
    rig.device.wait(&Event::Disconnected, 1);
    let status = rig.until("down", |s| !s.connected);
    assert!(
        status.reason.unwrap().contains("p.sock"),
        "the reason names the socket"
    );
    assert_eq!(status.last_error, None);
}

#[test]
fn cloud_hypervisor_connects() {
    let (rig, guest) = (Rig::new(2), Guest::new());
    let mut f = Frontend::connect(&rig.path, 4).unwrap();
    f.set_owner().unwrap();
    let offered = f.get_features().unwrap();
    assert_eq!(offered, rig.device.features | PROTOCOL_FEATURES | LOG_ALL);
    let protocol = f.get_protocol_features().unwrap();
    assert_eq!(protocol.bits(), PROTOCOL);
    f.set_protocol_features(protocol).unwrap();
    f.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(f.get_queue_num().unwrap(), 4);
    let (_, space) = f
        .get_config(0, 20, VhostUserConfigFlags::WRITABLE, &[0; 20])
        .unwrap();
    assert_eq!(
        space,
        [
            1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0, 0, 0, 0, 0
        ]
    );
    let features = VERSION_1 | PROTOCOL_FEATURES;
    f.set_features(features).unwrap();
    f.set_mem_table(&[VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: GUEST,
        userspace_addr: USER,
        mmap_offset: 0,
        mmap_handle: guest.file.as_raw_fd(),
    }])
    .unwrap();
    (0..4).for_each(|i| f.set_vring_num(i, 256).unwrap());
    for ring in 0..4u8 {
        let [desc, driver, device] = places(ring).map(|a| USER + a);
        let data = VringConfigData {
            queue_max_size: 256,
            queue_size: 256,
            flags: 0,
            desc_table_addr: desc,
            used_ring_addr: device,
            avail_ring_addr: driver,
            log_addr: None,
        };
        f.set_vring_addr(usize::from(ring), &data).unwrap();
        f.set_vring_base(usize::from(ring), 0).unwrap();
        f.set_vring_call(usize::from(ring), &EventFd::new(0).unwrap())
            .unwrap();
        f.set_vring_kick(usize::from(ring), &EventFd::new(0).unwrap())
            .unwrap();
    }
    (0..4).for_each(|i| f.set_vring_enable(i, true).unwrap());
    assert_eq!(rig.endpoint.status().reason, None);
    for ring in 0..4 {
        assert_eq!(
            rig.device
                .count(|e| *e == Event::Start(ring, config(ring as u8, VERSION_1), 0)),
            1
        );
    }
    // Migration: rings off, a log, its flag, positions.
    (0..4).for_each(|i| f.set_vring_enable(i, false).unwrap());
    assert!(
        rig.endpoint
            .status()
            .reason
            .unwrap()
            .contains("enabled none")
    );
    let log = memfd(4096);
    let region = VhostUserDirtyLogRegion {
        mmap_size: 4096,
        mmap_offset: 0,
        mmap_handle: log.as_raw_fd(),
    };
    f.set_log_base(0, Some(region)).unwrap();
    f.set_features(features | LOG_ALL).unwrap();
    assert_eq!(rig.device.events().last(), Some(&Event::Log(true)));
    (0..4).for_each(|i| assert_eq!(f.get_vring_base(i).unwrap(), 0));
    assert_eq!(rig.device.count(|e| matches!(e, Event::Stop(..))), 4);
}

#[test]
fn the_state_is_saved_and_loaded() {
    let rig = Rig::new(1);
    let mut f = Frontend::connect(&rig.path, 2).unwrap();
    f.set_owner().unwrap();
    f.get_features().unwrap();
    let protocol = f.get_protocol_features().unwrap();
    f.set_protocol_features(protocol).unwrap();
    rig.device.forget();
    let (mut reads, writes) = pipe().unwrap();
    let start = |direction, fd| {
        let channel = f.set_device_state_fd(direction, TransferPhase::STOPPED, fd);
        assert!(channel.unwrap().is_none(), "the VMM's pipe is used");
    };
    start(TransferDirection::SAVE, writes.into());
    let mut saved = Vec::new();
    reads.read_to_end(&mut saved).unwrap();
    f.check_device_state().unwrap();
    let load = |state: &[u8]| {
        let (reads, mut writes) = pipe().unwrap();
        start(TransferDirection::LOAD, reads.into());
        writes.write_all(state).unwrap();
        drop(writes);
        f.check_device_state()
    };
    load(&saved).unwrap();
    assert_eq!(rig.endpoint.status().last_error, None);
    assert!(load(b"as it was").is_err());
    let status = rig.endpoint.status();
    assert!(
        status
            .last_error
            .unwrap()
            .ends_with("it is another device's")
    );
    assert!(
        status.reason.unwrap().contains("not started the NIC"),
        "that is why it is down"
    );
    let expected = [
        Event::Save,
        Event::Load(saved.clone()),
        Event::Load(b"as it was".to_vec()),
    ];
    assert_eq!(rig.device.events(), expected);
    // It is put right.
    load(&saved).unwrap();
    assert_eq!(rig.endpoint.status().last_error, None);
}

#[test]
fn protocol_features_need_not_be_asked_for() {
    let rig = Rig::new(1);
    let vmm = rig.connect();
    vmm.send(Request::SET_PROTOCOL_FEATURES, &u64_body(PROTOCOL), &[]);
    vmm.must(Request::SET_OWNER, &[], &[]);
    vmm.must(Request::SET_OWNER, &[], &[]);
    vmm.must(Request::RESET_OWNER, &[], &[]);
    assert_eq!(vmm.ask(Request::GET_MAX_MEM_SLOTS, &[]), u64_body(509));
}

#[test]
fn answers_are_given_only_where_they_were_agreed_on() {
    let rig = Rig::new(1);
    let mut vmm = rig.connect();
    vmm.flags = NEED_REPLY;
    vmm.send(Request::SET_OWNER, &[], &[]);
    vmm.send(Request::SET_VRING_NUM, &pair_body(0, 256), &[]);
    // The next answer is that of this, so the others had none.
    assert_eq!(
        vmm.ask(Request::GET_PROTOCOL_FEATURES, &[]),
        u64_body(PROTOCOL)
    );
}

#[test]
fn the_same_addresses_again_change_nothing() {
    let (rig, guest) = (Rig::new(1), Guest::new());
    let vmm = qemu(&rig, &guest, VERSION_1);
    rig.device.forget();
    vmm.must(Request::SET_VRING_ADDR, &guest.addresses(0, 1), &[]);
    vmm.must(Request::SET_VRING_NUM, &pair_body(0, 128), &[]);
    assert_eq!(rig.device.events(), []);
    // Others move it, to where it was.
    let mut moved = guest.addresses(0, 0);
    moved[8..16].copy_from_slice(&(USER + 0x40000).to_ne_bytes());
    vmm.must(Request::SET_VRING_ADDR, &moved, &[]);
    let desc = 0x40000;
    let config = tandem_virtio_net::ring::RingConfig {
        size: 128,
        desc,
        ..config(0, VERSION_1)
    };
    assert_eq!(
        rig.device.events(),
        [Event::Stop(0, Some(0)), Event::Start(0, config, 0)]
    );
}

#[test]
fn a_ring_stops_once_and_goes_on_where_it_was_told_to() {
    let (rig, guest) = (Rig::new(1), Guest::new());
    // The guest's used index is where a split ring goes on.
    rustix::io::pwrite(&guest.file, &[0, 0, 9, 0], places(1)[2]).unwrap();
    let vmm = qemu(&rig, &guest, VERSION_1);
    for (ring, base) in [(0, 0), (1, 9)] {
        let at = rig.device.events().len();
        assert_eq!(
            vmm.ask(Request::GET_VRING_BASE, &pair_body(ring, 0)),
            pair_body(ring, base)
        );
        let ring = ring as u16;
        let expected = [
            Event::Stop(ring, Some(base as u16)),
            Event::Kick(ring, false),
            Event::Call(ring, false),
        ];
        assert_eq!(rig.device.events()[at..], expected);
    }
    assert!(
        rig.endpoint
            .status()
            .reason
            .unwrap()
            .contains("not started its queues")
    );
    // Asked again, it says the same.
    assert_eq!(
        vmm.ask(Request::GET_VRING_BASE, &pair_body(1, 0)),
        pair_body(1, 9)
    );
    vmm.must(Request::SET_VRING_BASE, &pair_body(1, 5), &[]);
    vmm.must(Request::SET_VRING_KICK, &u64_body(1), &[event().as_fd()]);
    assert_eq!(
        rig.device.events().last(),
        Some(&Event::Start(1, config(1, VERSION_1), 5))
    );
}

#[test]
fn a_packed_ring_tells_both_its_positions() {
    let (rig, guest) = (Rig::new(1), Guest::new());
    let vmm = rig.connect();
    vmm.hello();
    vmm.start(&guest, VERSION_1 | RING_PACKED);
    vmm.must(Request::SET_VRING_NUM, &pair_body(0, 256), &[]);
    // Next is entry 3 of the first round, for both sides.
    vmm.must(Request::SET_VRING_BASE, &pair_body(0, 0x8003_8003), &[]);
    vmm.must(Request::SET_VRING_ADDR, &guest.addresses(0, 0), &[]);
    vmm.must(Request::SET_VRING_KICK, &u64_body(0), &[event().as_fd()]);
    let config = config(0, VERSION_1 | RING_PACKED);
    assert_eq!(
        rig.device.events().last(),
        Some(&Event::Start(0, config, 0x8003))
    );
    assert!(rig.endpoint.status().packed);
    assert_eq!(
        vmm.ask(Request::GET_VRING_BASE, &pair_body(0, 0)),
        pair_body(0, 0x8003_8003)
    );
}

#[test]
fn descriptors_reach_the_device_and_do_not_block() {
    let (rig, guest) = (Rig::new(1), Guest::new());
    let vmm = qemu(&rig, &guest, VERSION_1);
    let (kick, call) = (event(), event());
    vmm.must(Request::SET_VRING_KICK, &u64_body(1), &[kick.as_fd()]);
    vmm.must(Request::SET_VRING_CALL, &u64_body(1), &[call.as_fd()]);
    assert_eq!(
        rig.device.kicks(1),
        None,
        "a blocking descriptor would wait here"
    );
    rustix::io::write(&kick, &3u64.to_ne_bytes()).unwrap();
    assert_eq!(rig.device.kicks(1), Some(3));
    rig.device.signal(1);
    let mut count = [0; 8];
    rustix::io::read(&call, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
    // A running ring is not disturbed by a new kick, and none at all is fine for calls.
    assert_eq!(rig.device.count(|e| matches!(e, Event::Start(1, ..))), 1);
    vmm.must(Request::SET_VRING_CALL, &u64_body(1 | 1 << 8), &[]);
    assert_eq!(rig.device.events().last(), Some(&Event::Call(1, false)));
}

#[test]
fn memory_changes_under_running_rings() {
    let (rig, guest) = (Rig::new(1), Guest::new());
    let vmm = qemu(&rig, &guest, VERSION_1);
    rig.device.forget();
    let more = memfd(0x10000);
    let high = region(1 << 32, 0x10000, USER + (1 << 32), 0);
    vmm.must(Request::ADD_MEM_REG, &high, &[more.as_fd()]);
    rig.device.touch((1 << 32) + 0xffff);
    assert_eq!(rig.endpoint.status().memory_regions, 2);
    vmm.must(Request::REM_MEM_REG, &high, &[more.as_fd()]);
    // QEMU before 8.0 says so once for each queue pair.
    vmm.must(Request::REM_MEM_REG, &high, &[]);
    assert_eq!(
        rig.device.events(),
        [Event::Memory(2), Event::Memory(1)],
        "rings stay"
    );
    let mut byte = [0];
    pread(&more, &mut byte, 0xffff).unwrap();
    assert_eq!(byte, [7]);
    // The rings' own region goes and comes back.
    rig.device.forget();
    let low = region(0, GUEST, USER, 0);
    vmm.must(Request::REM_MEM_REG, &low, &[]);
    let stopped = [
        Event::Stop(0, Some(0)),
        Event::Stop(1, Some(0)),
        Event::Memory(0),
    ];
    assert_eq!(rig.device.events()[..3], stopped);
    vmm.must(Request::ADD_MEM_REG, &low, &[guest.file.as_fd()]);
    let last = rig.device.events().split_off(rig.device.events().len() - 3);
    let again = [
        Event::Memory(1),
        Event::Start(0, config(0, VERSION_1), 0),
        Event::Start(1, config(1, VERSION_1), 0),
    ];
    assert_eq!(last, again);
    vmm.must(Request::SET_VRING_ENABLE, &pair_body(0, 1), &[]);
    assert_eq!(
        rig.endpoint.status().reason,
        None,
        "nothing is left to complain of"
    );
}

#[test]
fn a_table_may_come_in_any_order() {
    let rig = Rig::new(1);
    let (low, high) = (memfd(0x2000), memfd(0x1000));
    let vmm = rig.connect();
    vmm.hello();
    let body = table(&[
        (0x8000, 0x1000, USER + 0x8000, 0),
        (0, 0x1000, USER, 0x1000),
    ]);
    vmm.must(Request::SET_MEM_TABLE, &body, &[high.as_fd(), low.as_fd()]);
    rig.device.touch(0x10);
    rig.device.touch(0x8020);
    let mut byte = [0];
    pread(&low, &mut byte, 0x1010).unwrap();
    assert_eq!(byte, [7], "each region got its own file");
    pread(&high, &mut byte, 0x20).unwrap();
    assert_eq!(byte, [7]);
}

/// Which of the first eight pages are marked.
fn dirty(log: impl AsFd) -> u8 {
    let mut byte = [0];
    pread(log, &mut byte, 0).unwrap();
    byte[0]
}

fn set_log(vmm: &Vmm, log: impl AsFd, size: u64) {
    let body = [u64_body(size), u64_body(0)].concat();
    vmm.send(Request::SET_LOG_BASE, &body, &[log.as_fd()]);
    assert_eq!(vmm.answer(), (u32::from(Request::SET_LOG_BASE), body));
}

#[test]
fn writes_are_logged_while_they_are_to_be() {
    let (rig, guest) = (Rig::new(1), Guest::new());
    let vmm = qemu(&rig, &guest, VERSION_1);
    let features = |f: u64| {
        vmm.must(
            Request::SET_FEATURES,
            &u64_body(f | VERSION_1 | PROTOCOL_FEATURES),
            &[],
        )
    };
    let (first, second) = (memfd(4096), memfd(4096));
    set_log(&vmm, &first, 4096);
    rig.device.touch(0);
    assert_eq!(dirty(&first), 0, "not asked for yet");
    features(LOG_ALL);
    rig.device.touch(0x1000);
    assert_eq!(dirty(&first), 0b10);
    set_log(&vmm, &second, 4096);
    rig.device.touch(0x2000);
    assert_eq!((dirty(&first), dirty(&second)), (0b10, 0b100));
    // New memory is logged from its first write on.
    vmm.must(
        Request::SET_MEM_TABLE,
        &guest.table(),
        &[guest.file.as_fd()],
    );
    rig.device.touch(0x3000);
    assert_eq!(dirty(&second), 0b1100);
    features(0);
    rig.device.touch(0x4000);
    assert_eq!(dirty(&second), 0b1100);
    assert_eq!(rig.device.count(|e| matches!(e, Event::Stop(..))), 0);
}

#[test]
fn truncated_memory_and_a_truncated_log_cost_one_session() {
    let (rig, guest, other) = (Rig::new(1), Guest::new(), Rig::new(1));
    let (vmm, _other_vmm) = (
        qemu(&rig, &guest, VERSION_1 | LOG_ALL),
        qemu(&other, &Guest::new(), VERSION_1),
    );
    let log = memfd(4096);
    set_log(&vmm, &log, 4096);
    ftruncate(&log, 0).unwrap();
    rig.device.touch(0x1000);
    assert!(rig.device.has_faulted() && !other.device.has_faulted());
    rig.device
        .set_broken(Some("the guest's memory was taken away"));
    assert_eq!(
        rig.endpoint.status().reason.as_deref(),
        Some("the guest's memory was taken away")
    );
    rig.endpoint.disconnect("its memory was taken away".into());
    vmm.closed();
    rig.device.set_broken(None);
    let status = rig.until("down", |s| !s.connected);
    assert_eq!(
        status.last_error.as_deref(),
        Some("its memory was taken away")
    );

    // The next session is whole again, until its memory goes.
    let guest = Guest::new();
    let _vmm = qemu(&rig, &guest, VERSION_1);
    rig.device.touch(0x80000);
    assert!(!rig.device.has_faulted());
    ftruncate(&guest.file, 0).unwrap();
    rig.device.touch(0x80000);
    assert!(rig.device.has_faulted() && !other.device.has_faulted());
    assert!(other.endpoint.status().connected);
}
