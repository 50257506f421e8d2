use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tandem_virtio_net::offload;

use super::*;
use crate::nic::links::Links;
use crate::nic::sys::{PacketSocket, wait_readable};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Two devices with a wire between them: ours, and one at which a packet socket stands for the
/// world. They end with this.
struct Wire {
    near: String,
    nic: AfPacket,
    far: PacketSocket,
}

fn ip(words: &str) -> bool {
    let done = Command::new("ip").args(words.split(' ')).output();
    done.is_ok_and(|done| done.status.success())
}

/// Waits until the kernel has seen that a wire is plugged in: until then it drops what is sent.
fn wait_carrier(links: &mut Links, ends: [&String; 2]) {
    loop {
        while links.next_event().expect("events").is_some() {}
        let all = links.all().expect("the links");
        let plugged = all
            .iter()
            .filter(|link| link.carrier)
            .map(|link| &link.name);
        if plugged.filter(|name| ends.contains(name)).count() == 2 {
            return;
        }
        wait_readable(links.as_fd());
    }
}

/// A wire; none, and a line that says so, without the privilege.
fn wire(test: &str) -> Option<Wire> {
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut links = Links::open().expect("a netlink socket");
    let [near, far] = ["a", "b"].map(|end| format!("tdw{n}{end}{}", std::process::id()));
    if !ip(&format!("link add {near} type veth peer name {far}")) {
        println!("skipped {test}: no veth devices can be made (root, and iproute2)");
        return None;
    }
    for device in [&near, &far] {
        // Nothing but what the tests send.
        let quiet = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
        let _ = std::fs::write(quiet, "1");
        assert!(ip(&format!("link set {device} mtu 9000 up")));
    }
    wait_carrier(&mut links, [&near, &far]);
    let nic = AfPacket::open(&near).expect("a packet socket");
    let far = PacketSocket::bind(&far).expect("a packet socket");
    Some(Wire { near, nic, far })
}

impl Drop for Wire {
    fn drop(&mut self) {
        ip(&format!("link del {}", self.near));
    }
}

const FAR: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NEAR: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A frame of an EtherType for experiments, which nobody answers.
fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut bytes = [&FAR[..], &NEAR, &[0x88, 0xb5]].concat();
    bytes.extend((0..len - 14).map(|i| (i as u8).wrapping_mul(7).wrapping_add(seed)));
    bytes
}

fn deliver(nic: &AfPacket, frames: &[(NetHdr, Vec<u8>)]) {
    let mut batch = Batch::with_own_bytes(1 << 20);
    for (hdr, frame) in frames {
        batch.push_frame(*hdr, frame).unwrap();
    }
    let list: Vec<u8> = (0..frames.len() as u8).collect();
    nic.send(&mut batch, &list, &mut Scratch::default());
    for (i, (hdr, _)) in frames.iter().enumerate() {
        assert_eq!(batch.hdr(i), *hdr, "the next receiver gets another header");
    }
}

/// Reads until there are `n` frames.
fn read(nic: &AfPacket, n: usize) -> Vec<(NetHdr, Vec<u8>)> {
    let mut batch = Batch::with_own_bytes(AfPacket::BATCH_BYTES);
    let mut all = Vec::new();
    while all.len() < n {
        wait_readable(nic.as_fd());
        batch.clear();
        nic.read(&mut batch).unwrap();
        let mut bytes = vec![0; MAX_DELIVERED];
        for i in 0..batch.len() {
            let len = batch.linearize(i, &mut bytes);
            all.push((batch.hdr(i), bytes[..len].to_vec()));
        }
    }
    all
}

#[test]
fn bursts_cross_both_ways_in_order() {
    let Some(Wire { nic, far, .. }) = &wire("bursts_cross_both_ways_in_order") else {
        return;
    };
    let sizes = [60, 61, 1514, 200, 9014, 128, 129, 256, 257];
    let sent: Vec<Vec<u8>> = (0..BURST)
        .map(|i| frame(sizes[i % sizes.len()], i as u8))
        .collect();
    let plain = |frames: &[Vec<u8>]| -> Vec<(NetHdr, Vec<u8>)> {
        frames
            .iter()
            .map(|f| (NetHdr::default(), f.clone()))
            .collect()
    };
    deliver(nic, &plain(&sent));
    for frame in &sent {
        assert_eq!(far.receive(), *frame);
    }
    let bytes: usize = sent.iter().map(Vec::len).sum();
    assert_eq!(nic.sent().frames(), BURST as u64);
    assert_eq!(nic.sent().bytes(), bytes as u64);
    sent.iter().for_each(|frame| far.send(frame));
    let got: Vec<Vec<u8>> = read(nic, BURST).into_iter().map(|(_, f)| f).collect();
    assert_eq!(got, sent);
    assert_eq!(nic.received().frames(), BURST as u64);
    assert_eq!(nic.received().bytes(), bytes as u64);
    // And nothing of our own comes back.
    let mut batch = Batch::with_own_bytes(AfPacket::BATCH_BYTES);
    assert_eq!(nic.read(&mut batch).unwrap(), 0);
}

/// What finds no place is lost, and what comes afterwards is not; frames that are too long for the
/// ring keep their place among the others.
#[test]
fn a_ring_that_was_full_goes_on() {
    let Some(Wire { nic, far, .. }) = &wire("a_ring_that_was_full_goes_on") else {
        return;
    };
    let (short, long) = (frame(60, 1), frame(9000, 2));
    for i in 0..3000 {
        far.send(if i % 100 == 7 { &long } else { &short });
    }
    let mut all = read(nic, 2048);
    for (i, (_, got)) in all.drain(..).enumerate() {
        let is_long = i % 100 == 7;
        assert!(
            got == if is_long { &long[..] } else { &short[..] },
            "frame {i}"
        );
    }
    far.send(&frame(61, 3));
    far.send(&long);
    let after: Vec<_> = read(nic, 2).into_iter().map(|(_, f)| f).collect();
    assert_eq!(after, [frame(61, 3), long]);
    assert_eq!(nic.received().frames(), 2050);
}

#[test]
fn tags_stay_with_their_frames() {
    let Some(Wire { nic, far, .. }) = &wire("tags_stay_with_their_frames") else {
        return;
    };
    let tagged = |tci: u16| {
        let plain = frame(100, 3);
        let tag = [0x81, 0, (tci >> 8) as u8, tci as u8];
        [&plain[..12], &tag, &plain[12..]].concat()
    };
    for tci in [5, 0x2064] {
        far.send(&tagged(tci));
        let got = read(nic, 1).remove(0).1;
        assert_eq!(got, tagged(tci));
        let mut batch = Batch::with_own_bytes(1 << 18);
        batch.push_frame(NetHdr::default(), &frame(100, 3)).unwrap();
        batch.set_tag(0, Some(tci));
        nic.send(&mut batch, &[0], &mut Scratch::default());
    }
    // A second tag has no place, and the next frame comes all the same.
    let twice = [&tagged(5)[..12], &[0x81, 0, 0, 7], &tagged(5)[12..]].concat();
    far.send(&twice);
    far.send(&frame(60, 4));
    assert_eq!(read(nic, 1).remove(0).1, frame(60, 4));
    let drops: Vec<_> = nic.received().drops().collect();
    assert_eq!(drops, [(DropReason::TooLong, 1)]);
}

/// A TCP segment with `payload` bytes and a partial checksum, to be cut if `gso_size` is not zero.
fn tcp(payload: usize, gso_size: u16) -> (NetHdr, Vec<u8>) {
    let mut ip = vec![
        0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    let length = (20 + payload) as u16;
    ip[2..4].copy_from_slice(&(20 + length).to_be_bytes());
    let sum = offload::checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend([0, 6]);
    pseudo.extend(length.to_be_bytes());
    let partial = !offload::checksum(&pseudo);
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

#[test]
fn segments_and_checksums_cross_whole() {
    let Some(Wire { nic, near, .. }) = &wire("segments_and_checksums_cross_whole") else {
        return;
    };
    // A second of ours at the other end: it gets what the kernel made of it.
    let far = near.replacen('a', "b", 1);
    let far = AfPacket::open(&far).unwrap();
    let (plain, segment, summed) = (frame(60, 1), tcp(60_000, 1448), tcp(100, 0));
    let all = [
        (NetHdr::default(), plain.clone()),
        segment.clone(),
        summed.clone(),
        (NetHdr::default(), frame(60, 2)),
    ];
    deliver(nic, &all);
    let got = read(&far, 4);
    assert_eq!(got[0].1, plain);
    assert_eq!(got[1].1.len(), segment.1.len(), "cut up on the way");
    assert_eq!(got[1].0.gso_type, NET_HDR_GSO_TCPV4);
    assert_eq!(got[1].0.gso_size, 1448);
    assert_eq!(got[1].1[54..], segment.1[54..]);
    assert_eq!(got[2].1[54..], summed.1[54..]);
    assert_eq!(got[3].1, frame(60, 2));
    assert_eq!(nic.segmented(), (0, 0));
}

#[test]
fn what_the_kernel_does_not_take_is_done_in_its_place_in_the_order() {
    let Some(mut wire) = wire("what_the_kernel_does_not_take") else {
        return;
    };
    wire.nic.offloads.takes = 0;
    let Wire { nic, far, .. } = &wire;
    let mut udp = tcp(3_000, 1448);
    udp.0.gso_size = 1448;
    let all = [
        (NetHdr::default(), frame(60, 1)),
        udp.clone(),
        (NetHdr::default(), frame(60, 2)),
    ];
    deliver(nic, &all);
    assert_eq!(far.receive(), frame(60, 1));
    let lengths = [far.receive(), far.receive(), far.receive()].map(|f| f.len() - 54);
    assert_eq!(lengths, [1448, 1448, 104]);
    assert_eq!(far.receive(), frame(60, 2));
    assert_eq!(nic.segmented(), (1, 3));
}

#[test]
fn a_link_that_is_down_costs_frames_and_says_so() {
    let Some(wire) = wire("a_link_that_is_down_costs_frames_and_says_so") else {
        return;
    };
    let nic = &wire.nic;
    assert!(nic.link_is_up());
    assert!(ip(&format!("link set {} down", wire.near)));
    assert!(!nic.link_is_up());
    deliver(nic, &[(NetHdr::default(), frame(60, 1))]);
    let drops: Vec<_> = nic.sent().drops().collect();
    assert_eq!(
        (nic.sent().frames(), drops),
        (0, vec![(DropReason::HostRefused, 1)])
    );
    let mut batch = Batch::with_own_bytes(AfPacket::BATCH_BYTES);
    let down = nic.read(&mut batch).unwrap_err();
    assert_eq!(down.raw_os_error(), Some(libc::ENETDOWN));
    assert!(ip(&format!("link set {} up", wire.near)));
    deliver(nic, &[(NetHdr::default(), frame(60, 2))]);
    assert_eq!(wire.far.receive(), frame(60, 2));
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let error = AfPacket::open("no-such-dev").err().unwrap();
    let words = error.to_string();
    assert!(
        words.contains("no-such-dev") && words.contains("ip link"),
        "{words}"
    );
}
