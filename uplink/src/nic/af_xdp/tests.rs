use std::collections::HashMap;
use std::process::Command;
use std::thread;

use tandem_virtio_net::offload;
use tandem_virtio_net::spec::*;
use tandem_virtio_net::{BURST, DropReason};

use super::*;
use crate::Mac;
use crate::nic::af_packet::AfPacket;
use crate::nic::links::Links;
use crate::nic::sys::{PacketSocket, is_readable, wait_readable};
use crate::nic::wire::{ip, wait_carrier, wire};

const FAR: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NEAR: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A frame of an EtherType for experiments, which nobody answers.
pub(super) fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut bytes = [&FAR[..], &NEAR, &[0x88, 0xb5]].concat();
    bytes.extend((0..len - 14).map(|i| (i as u8).wrapping_mul(7).wrapping_add(seed)));
    bytes
}

/// How many there was room for.
fn send(nic: &AfXdp, frames: &[(NetHdr, Vec<u8>)]) -> usize {
    let mut batch = Batch::with_own_bytes(BURST << 16);
    for (hdr, frame) in frames {
        batch.push_frame(*hdr, frame).unwrap();
    }
    let list: Vec<u8> = (0..frames.len() as u8).collect();
    let done = nic.send(&mut batch, &list, &mut Scratch::default());
    for (i, (hdr, _)) in frames.iter().enumerate() {
        assert_eq!(batch.hdr(i), *hdr, "the next receiver gets another header");
    }
    done
}

/// For frames that there is room for.
fn send_all(nic: &AfXdp, frames: &[(NetHdr, Vec<u8>)]) {
    assert_eq!(send(nic, frames), frames.len());
}

fn plain(frames: &[Vec<u8>]) -> Vec<(NetHdr, Vec<u8>)> {
    frames
        .iter()
        .map(|f| (NetHdr::default(), f.clone()))
        .collect()
}

/// Reads until there are `n` frames.
fn read(nic: &AfXdp, n: usize) -> Vec<Vec<u8>> {
    let mut batch = Batch::new();
    let mut all = Vec::new();
    while all.len() < n {
        assert!(is_readable(&[nic.as_fd()], 30_000), "frames come");
        all.extend(read_now(nic, &mut batch));
    }
    all
}

/// What there is now.
fn read_now(nic: &AfXdp, batch: &mut Batch) -> Vec<Vec<u8>> {
    batch.clear();
    nic.read(batch).unwrap();
    let mut bytes = vec![0; MAX_DELIVERED];
    let mut all = Vec::new();
    for i in 0..batch.len() {
        assert_eq!(batch.hdr(i), NetHdr::default());
        let len = batch.linearize(i, &mut bytes);
        all.push(bytes[..len].to_vec());
    }
    all
}

#[test]
fn bursts_cross_both_ways_in_order() {
    for (mtu, sizes) in [
        (1500, [60, 61, 1514, 200, 1000, 128, 129, 256, 257]),
        (3000, [60, 61, 3014, 200, 2048, 128, 129, 256, 257]),
    ] {
        let Some(wire) = wire("bursts_cross_both_ways_in_order", mtu, 1) else {
            return;
        };
        let nic = AfXdp::open(&wire.near).unwrap();
        let far = PacketSocket::bind(&wire.far).unwrap();
        assert_eq!((nic.mode(), nic.queues()), (Mode::Copy, 1));
        // So many that all chunks have been used, and the rings' places too.
        for round in 0..2 * RING as usize / BURST + 1 {
            let burst = 0..BURST;
            let sent = burst.map(|i| frame(sizes[(i + round) % sizes.len()], (i + round) as u8));
            let sent: Vec<_> = sent.collect();
            send_all(&nic, &plain(&sent));
            for frame in &sent {
                assert!(far.receive() == *frame);
            }
            sent.iter().for_each(|frame| far.send(frame));
            assert!(read(&nic, BURST) == sent);
        }
        let frames = (2 * RING as usize + BURST) as u64;
        for counters in [nic.sent(), nic.received()] {
            assert_eq!((counters.frames(), counters.drops().next()), (frames, None));
        }
        assert_eq!(nic.sent().bytes(), nic.received().bytes());
        // And nothing of our own comes back.
        assert!(!is_readable(&[nic.as_fd()], 0));
        assert_eq!(nic.missed(), 0);
    }
}

#[test]
fn a_driver_that_cannot_is_helped_by_the_kernel() {
    // The driver of veth takes a program only where frames fit a page with its own additions.
    let Some(wire) = wire("a_driver_that_cannot_is_helped_by_the_kernel", 3_700, 1) else {
        return;
    };
    let nic = AfXdp::open(&wire.near).unwrap();
    let far = PacketSocket::bind(&wire.far).unwrap();
    assert_eq!(nic.mode(), Mode::Generic);
    let sent = [frame(60, 1), frame(3_714, 2)];
    send_all(&nic, &plain(&sent));
    assert_eq!([far.receive(), far.receive()], sent);
    sent.iter().for_each(|frame| far.send(frame));
    assert_eq!(read(&nic, 2), sent);
}

#[test]
fn tags_stay_in_their_frames() {
    let Some(wire) = wire("tags_stay_in_their_frames", 1500, 1) else {
        return;
    };
    let nic = AfXdp::open(&wire.near).unwrap();
    let far = AfPacket::open(&wire.far).unwrap();
    let sender = PacketSocket::bind(&wire.far).unwrap();
    for tci in [5u16, 0x2064] {
        let untagged = frame(1514, 3);
        let tag = [0x81, 0, (tci >> 8) as u8, tci as u8];
        let tagged = [&untagged[..12], &tag, &untagged[12..]].concat();
        sender.send(&tagged);
        assert_eq!(read(&nic, 1).remove(0), tagged);
        let mut batch = Batch::with_own_bytes(1 << 18);
        batch.push_frame(NetHdr::default(), &untagged).unwrap();
        batch.set_tag(0, Some(tci));
        assert_eq!(nic.send(&mut batch, &[0], &mut Scratch::default()), 1);
        let mut batch = Batch::with_own_bytes(AfPacket::BATCH_BYTES);
        wait_readable(far.as_fd());
        assert_eq!(far.read(&mut batch).unwrap(), 1);
        let mut bytes = vec![0; MAX_DELIVERED];
        let len = batch.linearize(0, &mut bytes);
        assert_eq!((batch.tag(0), &bytes[..len]), (Some(tci), &tagged[..]));
    }
}

/// A TCP segment with `payload` bytes and a partial checksum, to be cut if `gso_size` is not zero.
pub(super) fn tcp(payload: usize, gso_size: u16) -> (NetHdr, Vec<u8>) {
    let mut ip = vec![
        0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    let length = (20 + payload) as u16;
    ip[2..4].copy_from_slice(&(20 + length).to_be_bytes());
    let sum = offload::checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let partial = !offload::checksum(&pseudo(&ip, length));
    let mut bytes = [&FAR[..], &NEAR, &[8, 0], &ip].concat();
    bytes.extend([0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0]);
    bytes.extend(partial.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend((0..payload).map(|i| (i * 3) as u8));
    let hdr = NetHdr {
        flags: NET_HDR_F_NEEDS_CSUM,
        gso_type: if gso_size == 0 {
            NET_HDR_GSO_NONE
        } else {
            NET_HDR_GSO_TCPV4
        },
        hdr_len: 54,
        gso_size,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    (hdr, bytes)
}

fn pseudo(ip: &[u8], length: u16) -> Vec<u8> {
    [&ip[12..20], &[0, 6], &length.to_be_bytes()].concat()
}

/// Are the checksums of a TCP segment in an Ethernet frame right?
fn summed(frame: &[u8]) -> bool {
    let (ip, segment) = frame[14..].split_at(20);
    let covered = [&pseudo(ip, segment.len() as u16), segment].concat();
    offload::checksum(ip) == 0 && offload::checksum(&covered) == 0
}

#[test]
fn segments_are_cut_and_checksums_completed_in_their_place_in_the_order() {
    let Some(wire) = wire("segments_are_cut", 1500, 1) else {
        return;
    };
    let nic = AfXdp::open(&wire.near).unwrap();
    let far = PacketSocket::bind(&wire.far).unwrap();
    let (segment, partial) = (tcp(MAX_FRAME - 54 - 14, 1448), tcp(100, 0));
    let all = [
        (NetHdr::default(), frame(60, 1)),
        segment.clone(),
        partial.clone(),
        (NetHdr::default(), frame(60, 2)),
    ];
    for round in 1..=60 {
        send_all(&nic, &all);
        assert_eq!(far.receive(), frame(60, 1));
        let (mut payload, mut segments) = (Vec::new(), 0);
        while payload.len() < segment.1.len() - 54 {
            let got = far.receive();
            let seq = u32::from_be_bytes(got[38..42].try_into().unwrap());
            assert_eq!(seq as usize, 1 + payload.len());
            assert!(got.len() <= 1502 && summed(&got));
            payload.extend_from_slice(&got[54..]);
            segments += 1;
        }
        assert!(payload == segment.1[54..]);
        let got = far.receive();
        assert!(got[54..] == partial.1[54..] && summed(&got));
        assert_eq!(far.receive(), frame(60, 2));
        assert_eq!(nic.segmented(), (round, round * segments));
        assert_eq!(nic.sent().frames(), round * (segments + 3));
    }
    assert_eq!(nic.sent().drops().next(), None);
}

#[test]
fn what_is_longer_than_a_chunk_is_dropped() {
    let Some(wire) = wire("what_is_longer_than_a_chunk_is_dropped", 1500, 1) else {
        return;
    };
    let nic = AfXdp::open(&wire.near).unwrap();
    let far = PacketSocket::bind(&wire.far).unwrap();
    let all = [
        (NetHdr::default(), frame(2049, 1)),
        tcp(30_000, 4_000),
        (NetHdr::default(), frame(60, 2)),
    ];
    send_all(&nic, &all);
    assert_eq!(far.receive(), frame(60, 2));
    let drops: Vec<_> = nic.sent().drops().collect();
    assert_eq!(drops, [(DropReason::MtuExceeded, 2)]);
}

/// A numbered frame of a numbered sender.
fn numbered(sender: u32, n: u32) -> Vec<u8> {
    let mut bytes = frame(64, 0);
    bytes[14..18].copy_from_slice(&sender.to_be_bytes());
    bytes[18..22].copy_from_slice(&n.to_be_bytes());
    bytes
}

#[test]
fn many_threads_send_at_once_and_every_frame_ends_once() {
    const SENDERS: u32 = 4;
    const BURSTS: u32 = 100;
    for queues in [1, 2] {
        let Some(wire) = wire("many_threads_send_at_once", 1500, queues) else {
            return;
        };
        let nic = AfXdp::open(&wire.near).unwrap();
        let far = AfXdp::open(&wire.far).unwrap();
        assert_eq!(
            (nic.queues(), far.queues()),
            (queues as usize, queues as usize)
        );
        let mut batch = Batch::new();
        let mut next: HashMap<u32, u32> = HashMap::new();
        let mut got = 0;
        thread::scope(|scope| {
            let senders = (0..SENDERS).map(|sender| {
                let nic = &nic;
                scope.spawn(move || {
                    for burst in 0..BURSTS {
                        let first = burst * BURST as u32;
                        let frames = first..first + BURST as u32;
                        let frames: Vec<_> = frames.map(|n| numbered(sender, n)).collect();
                        let mut left = &plain(&frames)[..];
                        while !left.is_empty() {
                            left = &left[send(nic, left)..];
                        }
                    }
                })
            });
            let senders: Vec<_> = senders.collect();
            let mut last = false;
            loop {
                let frames = read_now(&far, &mut batch);
                if last && frames.is_empty() {
                    break;
                }
                got += frames.len() as u64;
                for frame in frames {
                    let word =
                        |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
                    // In order, and none twice.
                    let next = next.entry(word(14)).or_default();
                    assert!(word(18) >= *next);
                    *next = word(18) + 1;
                }
                last = senders.iter().all(|s| s.is_finished()) && !is_readable(&[far.as_fd()], 200);
            }
        });
        let all = u64::from(SENDERS * BURSTS) * BURST as u64;
        let refused = nic.sent().dropped(DropReason::HostRefused);
        assert_eq!(nic.sent().frames() + refused, all);
        assert_eq!(got + far.missed(), nic.sent().frames());
        assert!(got > 0 && far.received().frames() == got);
    }
}

#[test]
fn nothing_is_lost_uncounted_when_nobody_reads() {
    let Some(wire) = wire("nothing_is_lost_uncounted_when_nobody_reads", 1500, 1) else {
        return;
    };
    let nic = AfXdp::open(&wire.near).unwrap();
    let far = AfXdp::open(&wire.far).unwrap();
    let burst: Vec<_> = (0..BURST).map(|i| tcp(40_000, 1_000 + i as u16)).collect();
    let mut done = 0;
    // The second time there is not room for all before the other end has been emptied.
    for _ in 0..2 {
        done += send(&nic, &burst) as u64;
    }
    let (frames, segments) = nic.segmented();
    assert_eq!(frames, done);
    let mut batch = Batch::new();
    let mut got = 0;
    while is_readable(&[far.as_fd()], 200) {
        got += read_now(&far, &mut batch).len() as u64;
    }
    let refused = nic.sent().dropped(DropReason::HostRefused);
    let sent = nic.sent().frames();
    assert_eq!(sent + refused, segments);
    assert_eq!(got + far.missed(), sent);
    // And it goes on.
    send_all(&nic, &plain(&[frame(60, 9)]));
    assert_eq!(read(&far, 1), [frame(60, 9)]);
}

#[test]
fn a_link_that_is_down_costs_frames_and_says_so() {
    let Some(wire) = wire("a_link_that_is_down_costs_frames_and_says_so", 1500, 1) else {
        return;
    };
    let mut links = Links::open().unwrap();
    let nic = AfXdp::open(&wire.near).unwrap();
    let far = PacketSocket::bind(&wire.far).unwrap();
    let mut batch = Batch::new();
    assert!(nic.link_is_up());
    assert!(ip(&format!("link set {} down", wire.near)));
    assert!(!nic.link_is_up());
    assert!(is_readable(&[nic.as_fd()], 30_000));
    let down = nic.read(&mut batch).unwrap_err();
    assert_eq!(down.raw_os_error(), Some(libc::ENETDOWN));
    assert_eq!(nic.read(&mut batch).unwrap(), 0);
    assert!(!is_readable(&[nic.as_fd()], 0), "told once");
    for _ in 0..3 {
        send_all(&nic, &plain(&[frame(60, 1)]));
    }
    let drops: Vec<_> = nic.sent().drops().collect();
    assert_eq!(nic.sent().frames(), 0);
    assert_eq!(drops, [(DropReason::HostRefused, 3)]);
    assert!(ip(&format!("link set {} up", wire.near)));
    wait_carrier(&mut links, [&wire.near, &wire.far]);
    send_all(&nic, &plain(&[frame(60, 2)]));
    // The first of those that were refused may come late.
    while far.receive() != frame(60, 2) {}
    far.send(&frame(60, 3));
    assert_eq!(read(&nic, 1), [frame(60, 3)]);
}

#[test]
fn a_device_that_goes_is_told_once() {
    let Some(wire) = wire("a_device_that_goes_is_told_once", 1500, 1) else {
        return;
    };
    let nic = AfXdp::open(&wire.near).unwrap();
    drop(wire);
    assert!(is_readable(&[nic.as_fd()], 30_000));
    let mut batch = Batch::new();
    let gone = nic.read(&mut batch).unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(libc::ENETDOWN));
    assert_eq!(nic.read(&mut batch).unwrap(), 0);
    assert!(!is_readable(&[nic.as_fd()], 0), "told once");
    assert!(!nic.link_is_up());
    for _ in 0..3 {
        send_all(&nic, &plain(&[frame(60, 1)]));
    }
    assert_eq!(nic.sent().dropped(DropReason::HostRefused), 3);
}

#[test]
fn the_host_keeps_what_is_for_it() {
    let Some(wire) = wire("the_host_keeps_what_is_for_it", 1500, 1) else {
        return;
    };
    let host = [Mac([6, 6, 6, 6, 6, 6]), Mac(FAR)];
    let device = AfXdpDevice::open(&wire.near, &host).unwrap();
    let nic = AfXdp::new(&wire.near, device).unwrap();
    let far = PacketSocket::bind(&wire.far).unwrap();
    let host = PacketSocket::bind(&wire.near).unwrap();
    let to = |mac: [u8; 6], seed| [&mac[..], &frame(60, seed)[6..]].concat();
    let others = [
        to([0xff; 6], 1),
        to([2, 0, 0, 0, 0, 3], 2),
        to([6, 6, 6, 6, 6, 7], 3),
    ];
    let hosts = [to([6; 6], 4), to(FAR, 5)];
    for frame in others.iter().chain(&hosts) {
        far.send(frame);
    }
    assert_eq!(read(&nic, 3), others);
    assert_eq!([host.receive(), host.receive()], hosts);
    assert!(!is_readable(&[nic.as_fd()], 0));
}

#[test]
fn devices_that_cannot_be_had_are_named_with_the_way_out() {
    let Some(wire) = wire("devices_that_cannot_be_had", 1500, 1) else {
        return;
    };
    let near = &wire.near;
    let says = |name: &str, what: &str| {
        let words = AfXdp::open(name).err().unwrap().to_string();
        assert!(words.contains(name) && words.contains(what), "{words}");
    };
    says("no-such-dev", "ip link");
    let nic = AfXdp::open(near).unwrap();
    says(near, "already");
    drop(nic);
    assert!(ip(&format!("link set {near} mtu 9000")));
    says(near, "af_packet");
    assert!(ip(&format!("link set {near} mtu 1500 down")));
    let mut device = AfXdpDevice::open(near, &[]).unwrap();
    device.chunk = 4096;
    assert!(matches!(
        AfXdp::new(near, device),
        Err(AfXdpError::NotADevice(_))
    ));
    // All of it was given back, and the link is set up.
    let nic = AfXdp::open(near).unwrap();
    assert!(nic.link_is_up());
}

/// Where the other process finds the descriptors of the first.
const DESCRIPTORS: &str = "TANDEM_TEST_AF_XDP";

#[test]
fn descriptors_are_enough_for_another_process() {
    use std::os::fd::AsRawFd;
    let Some(wire) = wire("descriptors_are_enough_for_another_process", 1500, 1) else {
        return;
    };
    let device = AfXdpDevice::open(&wire.near, &[]).unwrap();
    let far = PacketSocket::bind(&wire.far).unwrap();
    let all = [
        &device.link,
        &device.watch,
        &device.memory,
        &device.sockets[0],
        &device.senders[0],
    ];
    let all: Vec<_> = all.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nic::af_xdp::tests::the_other_process"])
        .env(
            DESCRIPTORS,
            format!("{} {}", std::process::id(), all.join(" ")),
        )
        .spawn()
        .unwrap();
    // Until it has rings, frames have nowhere to go.
    let sent = frame(1514, 7);
    let echo = thread::scope(|scope| {
        let echo = scope.spawn(|| far.receive());
        while !echo.is_finished() && other.try_wait().unwrap().is_none() {
            far.send(&sent);
            thread::sleep(std::time::Duration::from_millis(10));
        }
        echo.join().unwrap()
    });
    assert_eq!(echo, sent);
    assert!(other.wait().unwrap().success());
}

/// Echoes a frame; does nothing unless told where the descriptors are.
#[test]
fn the_other_process() {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let Ok(told) = std::env::var(DESCRIPTORS) else {
        return;
    };
    let numbers: Vec<i32> = told.split(' ').map(|n| n.parse().unwrap()).collect();
    let pid = Pid::from_raw(numbers[0]).unwrap();
    let first = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let get = |at: usize| pidfd_getfd(&first, numbers[at], PidfdGetfdFlags::empty()).unwrap();
    let device = AfXdpDevice {
        link: get(1),
        watch: get(2),
        memory: get(3),
        sockets: vec![get(4)],
        senders: vec![get(5)],
        chunk: 2048,
        mode: Mode::Copy,
    };
    let nic = AfXdp::new("near", device).unwrap();
    let got = read(&nic, 1);
    send_all(&nic, &plain(&got[..1]));
}

#[test]
fn errors_cross_to_another_process_as_numbers() {
    let all = [
        AfXdpError::NoDevice("x".into()),
        AfXdpError::NotPermitted("x".into()),
        AfXdpError::Busy("x".into()),
        AfXdpError::MtuTooLarge("x".into()),
        AfXdpError::StripsTags("x".into()),
        AfXdpError::NotSupported("x".into()),
    ];
    for error in all {
        let again = AfXdpError::of("x", io::Error::from_raw_os_error(error.errno()));
        assert_eq!(again.to_string(), error.to_string());
    }
}
