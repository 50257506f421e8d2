//! What no device of a test does: the kernel's sides of the rings are the test's, and say what they
//! like.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use tandem_virtio_net::spec::NetHdr;
use tandem_virtio_net::{BURST, Batch, DropReason, Scratch};

use super::device::{RING, make_memory, queue_bytes};
use super::receive::Receiver;
use super::tests::{frame, tcp};
use super::transmit::Transmitter;
use crate::nic::kernel::Offloads;
use crate::nic::sys_xdp::TxMemory;
use crate::nic::sys_xdp::testing::{FLAGS, Kernel, RING_BYTES, rings_in};

const CHUNK: u32 = 2048;
const HALF: u64 = RING as u64 * CHUNK as u64;
const CHUNKS: usize = RING as usize;

/// A queue in copy mode, whose other end takes every call and does nothing by itself.
struct Rig {
    transmitter: Transmitter,
    receiver: Receiver,
    kernel: Kernel,
    batch: Batch,
    scratch: Scratch,
    offloads: Offloads,
    _called: UnixDatagram,
}

fn rig() -> Rig {
    let rings = File::from(make_memory(4 * RING_BYTES).unwrap());
    // Of the TX ring: calls are wanted.
    rings
        .write_at(&1u32.to_ne_bytes(), 2 * RING_BYTES + FLAGS)
        .unwrap();
    let memory = make_memory(queue_bytes(CHUNK)).unwrap();
    let (ours, kernel) = rings_in(rings.as_fd(), RING);
    let (socket, called) = UnixDatagram::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    let sender = socket.try_clone().unwrap().into();
    let socket = Arc::new(socket.into());
    let tx = TxMemory::map(memory.as_fd(), HALF, HALF as usize).unwrap();
    let incoming = vec![(socket, ours.fill, ours.rx)];
    Rig {
        transmitter: Transmitter::new(
            sender,
            (ours.tx, ours.completion),
            (tx, HALF),
            CHUNK as usize,
            true,
        ),
        receiver: Receiver::new(memory.as_fd(), CHUNK, incoming).unwrap(),
        kernel,
        batch: Batch::with_own_bytes(1 << 20),
        scratch: Scratch::default(),
        offloads: Offloads::none(),
        _called: called,
    }
}

impl Rig {
    /// Sends a frame, unless there is no room.
    fn send(&mut self, (hdr, frame): &(NetHdr, Vec<u8>)) -> Option<Result<(), DropReason>> {
        self.batch.clear();
        self.batch.push_frame(*hdr, frame).unwrap();
        self.transmitter.start();
        let Self {
            transmitter,
            batch,
            scratch,
            offloads,
            ..
        } = self;
        let sent = transmitter.send(batch, 0, scratch, offloads);
        transmitter.flush();
        sent
    }

    /// The addresses of what the kernel is to send.
    fn take_all(&mut self) -> Vec<u64> {
        let all = std::iter::from_fn(|| self.kernel.tx.pop());
        let all = all.map(|descriptor| descriptor.addr).collect();
        self.kernel.tx.release();
        all
    }
}

#[test]
fn without_room_a_frame_is_left_whole_until_there_is() {
    let mut rig = rig();
    let plain = (NetHdr::default(), frame(60, 1));
    // A segment offload that needs four chunks, when three are free.
    let segments = tcp(4_000, 1_000);
    for _ in 0..CHUNKS - 3 {
        assert_eq!(rig.send(&plain), Some(Ok(())));
    }
    assert_eq!(rig.send(&segments), None);
    assert_eq!(rig.transmitter.take_sent().frames, RING as u64 - 3);
    for _ in 0..3 {
        assert_eq!(rig.send(&plain), Some(Ok(())));
    }
    assert_eq!(rig.send(&plain), None);
    assert!(rig.transmitter.flush(), "somebody has to ask again");
    let addresses = rig.take_all();
    let distinct: HashSet<u64> = addresses.iter().copied().collect();
    assert_eq!((addresses.len(), distinct.len()), (CHUNKS, CHUNKS));
    assert!(!rig.transmitter.flush());
    assert_eq!(rig.send(&plain), None, "taken is not yet sent");
    for address in &addresses[..4] {
        assert!(rig.kernel.completion.push(*address));
    }
    rig.kernel.completion.publish();
    assert_eq!(rig.send(&segments), Some(Ok(())));
    let again: HashSet<u64> = rig.take_all().into_iter().collect();
    assert_eq!(again, addresses[..4].iter().copied().collect());
    assert_eq!(rig.offloads.segmented(), (1, 4));
}

#[test]
fn completions_that_cannot_be_lead_nowhere() {
    let mut rig = rig();
    let plain = (NetHdr::default(), frame(2_048, 1));
    let bad = [0, HALF - 1, 2 * HALF, u64::MAX, HALF + 5, HALF + 5, HALF];
    for address in bad.into_iter().cycle().take(CHUNKS) {
        assert!(rig.kernel.completion.push(address));
    }
    rig.kernel.completion.publish();
    // All chunks were free already.
    for _ in 0..CHUNKS {
        assert_eq!(rig.send(&plain), Some(Ok(())));
    }
    assert_eq!(rig.send(&plain), None);
    let addresses = rig.take_all();
    let within = |a: &u64| (HALF..2 * HALF).contains(a) && a.is_multiple_of(CHUNK.into());
    assert!(addresses.len() == CHUNKS && addresses.iter().all(within));
    for address in bad.into_iter().cycle().take(CHUNKS) {
        assert!(rig.kernel.completion.push(address));
    }
    rig.kernel.completion.publish();
    while rig.send(&plain).is_some() {}
    assert!(rig.take_all().iter().all(within));
}

#[test]
fn received_frames_that_cannot_be_are_dropped_and_the_others_taken() {
    let mut rig = rig();
    let Rig {
        receiver, kernel, ..
    } = &mut rig;
    let chunks: Vec<u64> = std::iter::from_fn(|| kernel.fill.pop()).collect();
    kernel.fill.release();
    let expected: Vec<u64> = (0..HALF).step_by(CHUNK as usize).collect();
    assert_eq!(chunks, expected);
    let all = [
        (256, 60),
        (HALF, 60),
        (u64::MAX, 60),
        (u64::MAX - 59, 60),
        (2_048 + 256, 1_793),
        (2 * 2_048 + 256, u32::MAX),
        (3 * 2_048 + 256, 5),
        (4 * 2_048 + 2_000, 48),
        (HALF - 60, 61),
        (HALF - 2_048 + 256, 1_792),
    ];
    for (addr, len) in all {
        let options = 0;
        assert!(kernel.rx.push(libc::xdp_desc { addr, len, options }));
    }
    kernel.rx.publish();
    let mut batch = Batch::new();
    let mut reasons = Vec::new();
    let (frames, _) = receiver.take(&mut batch, |reason| reasons.push(reason));
    assert_eq!((frames, reasons.len()), (10, 7));
    let lengths: Vec<_> = (0..batch.len()).map(|i| batch.frame_len(i)).collect();
    assert_eq!(lengths, [60, 48, 1_792]);
    // Lent until the next time; what is no chunk is not given to the kernel.
    assert_eq!(kernel.fill.pop(), None);
    receiver.give_back();
    let back: Vec<u64> = std::iter::from_fn(|| kernel.fill.pop()).collect();
    let indices = back.iter().map(|a| a / u64::from(CHUNK));
    assert!(back.iter().all(|a| a.is_multiple_of(CHUNK.into())));
    assert_eq!(
        indices.collect::<Vec<_>>(),
        [0, 1, 2, 3, 4, RING as u64 - 1, RING as u64 - 1]
    );
}

#[test]
fn a_burst_is_no_longer_than_a_batch_and_the_rest_comes_next() {
    let mut rig = rig();
    let Rig {
        receiver, kernel, ..
    } = &mut rig;
    for i in 0..BURST as u64 + 6 {
        let descriptor = libc::xdp_desc {
            addr: i * 2_048 + 256,
            len: 60 + i as u32,
            options: 0,
        };
        assert!(kernel.rx.push(descriptor));
    }
    kernel.rx.publish();
    let mut batch = Batch::new();
    for expected in [BURST, 6, 0] {
        batch.clear();
        receiver.give_back();
        receiver.take(&mut batch, |_| {});
        assert_eq!(batch.len(), expected);
    }
}
