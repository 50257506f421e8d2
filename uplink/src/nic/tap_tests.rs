use tandem_virtio_net::offload;

use super::*;
use crate::nic::sys::PacketSocket;

/// A TAP of this process and its far side: a packet socket sees what the host sees.
struct Lab {
    tap: Tap,
    host: PacketSocket,
}

/// A lab with an own device; none, and a line that says so, without the privilege.
fn lab(test: &str, number: usize) -> Option<Lab> {
    let name = format!("tdm{number}-{}", std::process::id());
    match Tap::open(&name, 1500) {
        Ok(tap) => Some(Lab {
            host: PacketSocket::bind(&name).expect("a packet socket"),
            tap,
        }),
        Err(e @ (TapError::NotPermitted(_) | TapError::NoTun)) => {
            println!("skipped {test}: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

const HOST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A frame of an EtherType for experiments, which nobody answers.
fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut bytes = [&HOST[..], &GUEST, &[0x88, 0xb5]].concat();
    bytes.extend((0..len - 14).map(|i| (i as u8).wrapping_mul(7).wrapping_add(seed)));
    bytes
}

/// A UDP packet with `payload` bytes, and the header that asks for the checksum, and for
/// segments when `gso_size` is not zero.
fn udp(payload: usize, gso_size: u16) -> (NetHdr, Vec<u8>) {
    let mut ip = vec![
        0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    let length = (8 + payload) as u16;
    ip[2..4].copy_from_slice(&(20 + length).to_be_bytes());
    let sum = offload::checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend([0, 17]);
    pseudo.extend(length.to_be_bytes());
    let partial = !offload::checksum(&pseudo);
    let mut bytes = [&HOST[..], &GUEST, &[8, 0], &ip, &[0x10, 0, 0x20, 0]].concat();
    bytes.extend(length.to_be_bytes());
    bytes.extend(partial.to_be_bytes());
    bytes.extend((0..payload).map(|i| (i * 3) as u8));
    let hdr = NetHdr {
        flags: NET_HDR_F_NEEDS_CSUM,
        gso_type: if gso_size == 0 {
            NET_HDR_GSO_NONE
        } else {
            NET_HDR_GSO_UDP_L4
        },
        hdr_len: 42,
        gso_size,
        csum_start: 34,
        csum_offset: 6,
        num_buffers: 0,
    };
    (hdr, bytes)
}

/// Is the checksum of a UDP packet in an Ethernet frame right?
fn summed(frame: &[u8]) -> bool {
    let mut covered = frame[26..34].to_vec();
    covered.extend([0, 17]);
    covered.extend(&frame[38..40]);
    covered.extend(&frame[34..]);
    offload::checksum(&covered) == 0
}

fn deliver(tap: &Tap, frames: &[(NetHdr, Vec<u8>)]) {
    let mut batch = Batch::with_own_bytes(Tap::BATCH_BYTES);
    for (hdr, frame) in frames {
        batch.push_frame(*hdr, frame).unwrap();
    }
    let list: Vec<u8> = (0..frames.len() as u8).collect();
    tap.deliver(&mut batch, &list, &mut Scratch::default());
}

/// Reads from the device until there is a frame of the EtherType for experiments.
fn read_ours(tap: &Tap, batch: &mut Batch) -> Vec<Vec<u8>> {
    loop {
        sys::wait_readable(tap.as_fd());
        batch.clear();
        tap.read(batch).unwrap();
        let mut bytes = vec![0; MAX_DELIVERED];
        let all = (0..batch.len()).map(|i| {
            let n = batch.linearize(i, &mut bytes);
            bytes[..n].to_vec()
        });
        let ours: Vec<_> = all.filter(|f| f[12..14] == [0x88, 0xb5]).collect();
        if !ours.is_empty() {
            return ours;
        }
    }
}

#[test]
fn frames_cross_both_ways() {
    let Some(Lab { tap, host }) = lab("frames_cross_both_ways", 1) else {
        return;
    };
    let sent = [frame(60, 1), frame(1514, 2)];
    deliver(&tap, &sent.clone().map(|f| (NetHdr::default(), f)));
    assert_eq!([host.receive(), host.receive()], sent);
    assert_eq!((tap.to_vm().frames(), tap.to_vm().bytes()), (2, 60 + 1514));
    host.send(&sent[1]);
    let mut batch = Batch::with_own_bytes(Tap::BATCH_BYTES);
    assert_eq!(read_ours(&tap, &mut batch), sent[1..]);
    assert!(tap.from_vm().frames() >= 1 && tap.from_vm().bytes() >= 1514);
    assert!(tap.ready());
}

#[test]
fn a_burst_ends_when_the_batch_is_full() {
    let Some(Lab { tap, host }) = lab("a_burst_ends_when_the_batch_is_full", 2) else {
        return;
    };
    (0..100).for_each(|n| host.send(&frame(60, n)));
    let mut batch = Batch::with_own_bytes(Tap::BATCH_BYTES);
    let mut got = Vec::new();
    while got.len() < 100 {
        got.extend(read_ours(&tap, &mut batch));
        assert!(batch.len() <= BURST);
    }
    assert_eq!(got, (0..100).map(|n| frame(60, n)).collect::<Vec<_>>());
    batch.clear();
    assert_eq!(
        tap.read(&mut batch).unwrap(),
        batch.len(),
        "no frames is no error"
    );
}

#[test]
fn offloads_the_kernel_takes_are_left_to_it() {
    let Some(Lab { tap, host }) = lab("offloads_the_kernel_takes", 3) else {
        return;
    };
    deliver(&tap, &[udp(1000, 0)]);
    assert_eq!(host.receive(), udp(1000, 0).1, "with its partial checksum");
    let mut broken = udp(100, 0);
    broken.0.csum_start = 5000;
    deliver(&tap, &[broken]);
    assert_eq!(tap.to_vm().dropped(DropReason::HostRefused), 1);
    assert_eq!(tap.segmented(), (0, 0));
}

#[test]
fn offloads_the_kernel_lacks_are_done_before() {
    let Some(Lab { mut tap, host }) = lab("offloads_the_kernel_lacks", 4) else {
        return;
    };
    tap.offloads.takes = 0;
    deliver(
        &tap,
        &[
            udp(1000, 0),
            udp(2500, 1000),
            (NetHdr::default(), frame(60, 1)),
        ],
    );
    let got: [Vec<u8>; 5] = std::array::from_fn(|_| host.receive());
    assert!(got[..4].iter().all(|frame| summed(frame)));
    assert_eq!(got[0][42..], udp(1000, 0).1[42..]);
    assert_eq!(
        got[1..4].iter().map(|f| f.len() - 42).collect::<Vec<_>>(),
        [1000, 1000, 500]
    );
    assert_eq!(
        got[1..4]
            .iter()
            .flat_map(|f| &f[42..])
            .copied()
            .collect::<Vec<_>>(),
        udp(2500, 0).1[42..]
    );
    assert_eq!(got[4], frame(60, 1));
    assert_eq!(tap.segmented(), (1, 3));
    assert_eq!(tap.to_vm().frames(), 5);
    let mut outside = udp(100, 0);
    outside.0.csum_start = 5000;
    deliver(&tap, &[outside]);
    assert_eq!(tap.to_vm().dropped(DropReason::OffloadFailed), 1);
}

#[test]
fn the_device_is_up_while_it_is_held_and_goes_with_it() {
    let Some(Lab { tap, host }) = lab("the_device_goes_with_it", 5) else {
        return;
    };
    let at = format!("/sys/class/net/{}", tap.name());
    let read = |file: &str| std::fs::read_to_string(format!("{at}/{file}")).unwrap();
    assert_eq!(read("mtu").trim(), "1500");
    let flags = u32::from_str_radix(read("flags").trim().trim_start_matches("0x"), 16).unwrap();
    assert_eq!(flags & libc::IFF_UP as u32, libc::IFF_UP as u32);
    assert!(matches!(
        Tap::open(tap.name(), 1500),
        Err(TapError::Busy(_))
    ));
    drop((tap, host));
    assert!(!std::path::Path::new(&at).exists());
}

#[test]
fn the_device_has_the_address_it_was_given() {
    let Some(Lab { tap, .. }) = lab("the_device_has_the_address", 8) else {
        return;
    };
    drop(tap);
    let name = format!("tdm9-{}", std::process::id());
    let device = TapDevice::open(&name, 1500, Some(Mac(GUEST))).unwrap();
    let address = std::fs::read_to_string(format!("/sys/class/net/{name}/address")).unwrap();
    assert_eq!(address.trim(), Mac(GUEST).to_string());
    drop(device);
    let error = TapDevice::open(&name, 1500, Some(Mac::BROADCAST)).unwrap_err();
    assert!(error.is_about_mac(), "{error}");
}

#[test]
fn what_cannot_be_had_is_said_in_words() {
    for name in ["", "0123456789abcdef", "a b", "a/b", "tap%d", ".", "eth0:1"] {
        assert!(
            matches!(Tap::open(name, 1500), Err(TapError::BadName(_))),
            "{name:?}"
        );
    }
    let error = |code| attach_error("t", io::Error::from_raw_os_error(code)).to_string();
    assert!(error(libc::EPERM).contains("CAP_NET_ADMIN"));
    assert!(error(libc::EBUSY).contains("in use"));
    assert!(error(libc::EINVAL).contains("not a TAP"));
    let Some(Lab { tap, .. }) = lab("what_cannot_be_had (with a device)", 6) else {
        return;
    };
    drop(tap);
    let name = format!("tdm7-{}", std::process::id());
    assert!(matches!(
        Tap::open(&name, 20),
        Err(TapError::BadMtu { mtu: 20, .. })
    ));
    assert!(matches!(Tap::open("lo", 1500), Err(TapError::NotATap(_))));
}

/// Notes what it is shown: the frame, and why it was dropped.
#[derive(Default, Clone)]
struct Notes(Arc<std::sync::Mutex<Vec<Note>>>);

type Note = (Vec<u8>, Option<DropReason>);

impl tandem_virtio_net::Probe for Notes {
    fn see(&self, _: std::time::SystemTime, way: Direction, batch: &Batch, frames: &[u8]) {
        assert_eq!(way, Direction::ToVm);
        for i in frames.iter().map(|i| usize::from(*i)) {
            let mut bytes = vec![0; batch.frame_len(i)];
            batch.linearize(i, &mut bytes);
            self.0.lock().unwrap().push((bytes, batch.end(i)));
        }
    }
}

#[test]
fn who_watches_sees_what_the_host_took_and_what_not() {
    let Some(Lab { tap, host: _host }) = lab("who_watches", 8) else {
        return;
    };
    let notes = Notes::default();
    let tracepoint = Arc::new(Tracepoint::new(notes.clone()));
    let tap = tap.watched(Arc::clone(&tracepoint));
    let plain = NetHdr::default();
    deliver(&tap, &[(plain, frame(60, 1))]);
    tracepoint.turn(true);
    // A checksum that goes where there is no frame is refused by the kernel.
    let nowhere = NetHdr {
        flags: NET_HDR_F_NEEDS_CSUM,
        csum_start: 60_000,
        ..plain
    };
    deliver(
        &tap,
        &[
            (plain, frame(60, 2)),
            (nowhere, frame(60, 3)),
            (plain, frame(60, 4)),
        ],
    );
    tracepoint.turn(false);
    deliver(&tap, &[(plain, frame(60, 5))]);
    let seen = notes.0.lock().unwrap().clone();
    let refused = Some(DropReason::HostRefused);
    assert_eq!(
        seen,
        [
            (frame(60, 2), None),
            (frame(60, 3), refused),
            (frame(60, 4), None)
        ]
    );
    assert_eq!(tap.to_vm().dropped(DropReason::HostRefused), 1);
}
