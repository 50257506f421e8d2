//! A driver's queues of frames, and a switch of one wire between two of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tandem_virtio_net::spec::*;
use tandem_virtio_net::{Batch, Call, Counters, RxQueue, Scratch, TxQueue};

use super::{Buf, Heap, Indirect, Ram, Ring, Rng};

/// Fills buffers before they are posted: what the device must leave alone stays so.
const UNTOUCHED: u8 = 0xee;

/// How a frame is laid out in a chain.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Bytes of the buffers, again from the start when there are more; the last one is as long
    /// as needed.
    pub(crate) cuts: Vec<usize>,
    /// Buffers at most.
    pub(crate) most: usize,
    /// The chain is in a table, but for this many buffers.
    pub(crate) indirect: Option<usize>,
}

impl Shape {
    pub(crate) fn plain() -> Self {
        Self {
            cuts: vec![usize::MAX],
            most: 1,
            indirect: None,
        }
    }

    /// Lengths of the buffers for `n` bytes.
    fn pieces(&self, n: usize) -> Vec<usize> {
        let mut left = n;
        let mut out = Vec::new();
        for cut in self.cuts.iter().cycle() {
            let last = out.len() + 1 >= self.most || out.len() > 600;
            let n = if last { left } else { left.min(*cut) };
            out.push(n);
            left -= n;
            if left == 0 {
                break;
            }
        }
        out
    }
}

/// What belongs to an offered chain.
struct Chain {
    token: u64,
    bufs: Vec<Buf>,
    table: Option<u64>,
}

impl Chain {
    fn free(&self, heap: &mut Heap) {
        for b in &self.bufs {
            heap.give(b.addr, b.len.into());
        }
        if let Some(table) = self.table {
            heap.give(table, 16 * self.bufs.len() as u64);
        }
    }
}

/// A queue of a driver: TX or RX.
pub(crate) struct Nic {
    pub(crate) ram: Ram,
    pub(crate) heap: Heap,
    pub(crate) ring: Ring,
    pub(crate) hdr_len: usize,
    mergeable: bool,
    chains: VecDeque<Chain>,
    next: u64,
    rng: Rng,
}

/// A received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Got {
    pub(crate) hdr: NetHdr,
    pub(crate) frame: Vec<u8>,
    pub(crate) buffers: usize,
}

impl Nic {
    pub(crate) fn new(ram: &Ram, size: u16, features: u64, base: u16, seed: u64) -> Self {
        let mut rng = Rng(seed);
        let mut heap = ram.heap();
        let ring = Ring::new(ram, &mut heap, size, features, base, &mut rng);
        Self {
            ram: ram.clone(),
            heap,
            ring,
            hdr_len: NetHdr::len_for(features),
            mergeable: has(features, VIRTIO_NET_F_MRG_RXBUF),
            chains: VecDeque::new(),
            next: 0,
            rng,
        }
    }

    /// Chains that are with the device.
    pub(crate) fn offered(&self) -> usize {
        self.chains.len()
    }

    /// Moves to other memory with the same content.
    pub(crate) fn set_ram(&mut self, ram: &Ram) {
        self.ram = ram.clone();
        self.ring.set_ram(ram);
    }

    fn offer(&mut self, bufs: Vec<Buf>, direct: Option<usize>) -> bool {
        let token = self.next;
        let direct = direct.map(|d| d.min(bufs.len() - 1));
        let table = direct.map(|_| {
            let len = 16 * bufs.len() as u64;
            // Two bytes of alignment, though drivers align to more.
            self.heap.take(len, 2, &mut self.rng).expect("memory")
        });
        let indirect = table
            .zip(direct)
            .map(|(table, direct)| Indirect { table, direct });
        let chain = Chain { token, bufs, table };
        if !self.ring.offer(&chain.bufs, indirect, token) {
            chain.free(&mut self.heap);
            return false;
        }
        self.next += 1;
        self.chains.push_back(chain);
        true
    }

    fn take(&mut self, len: usize) -> u64 {
        self.heap
            .take(len as u64, 1, &mut self.rng)
            .expect("memory")
    }

    /// Sends a frame; false: the ring is full.
    pub(crate) fn send(&mut self, hdr: NetHdr, frame: &[u8], shape: &Shape) -> bool {
        let mut bytes = hdr.to_bytes()[..self.hdr_len].to_vec();
        bytes.extend_from_slice(frame);
        let mut at = 0;
        let mut bufs = Vec::new();
        for n in shape.pieces(bytes.len()) {
            let addr = self.take(n);
            self.ram.write(addr, &bytes[at..at + n]);
            at += n;
            bufs.push(Buf {
                addr,
                len: n as u32,
                writable: false,
            });
        }
        self.offer(bufs, shape.indirect)
    }

    /// Takes sent chains back, and checks that they come in order. Their number.
    pub(crate) fn reap(&mut self) -> usize {
        let mut n = 0;
        while let Some(used) = self.ring.used() {
            let chain = self.chains.pop_front().expect("a chain was offered");
            assert_eq!(used.token, chain.token, "used in the order of offering");
            assert!(matches!(used.written, None | Some(0)));
            chain.free(&mut self.heap);
            n += 1;
        }
        n
    }

    /// Posts a chain of receive buffers; false: the ring is full.
    pub(crate) fn post(&mut self, lens: &[usize], indirect: Option<usize>) -> bool {
        let bufs = lens
            .iter()
            .map(|n| {
                let addr = self.take(*n);
                self.ram.write(addr, &vec![UNTOUCHED; *n]);
                Buf {
                    addr,
                    len: *n as u32,
                    writable: true,
                }
            })
            .collect();
        self.offer(bufs, indirect)
    }

    /// The bytes the device wrote to the next used chain, and whether it is full.
    fn next_written(&mut self) -> Option<(Vec<u8>, bool)> {
        let used = self.ring.used()?;
        let chain = self.chains.pop_front().expect("a chain was offered");
        assert_eq!(used.token, chain.token, "used in the order of offering");
        let all: Vec<u8> = chain
            .bufs
            .iter()
            .flat_map(|b| self.ram.read(b.addr, b.len as usize))
            .collect();
        let n = used.written.expect("its own used entry") as usize;
        assert!(
            all[n..].iter().all(|b| *b == UNTOUCHED),
            "bytes behind the used length were written"
        );
        chain.free(&mut self.heap);
        Some((all[..n].to_vec(), n == all.len()))
    }

    /// Takes received frames.
    pub(crate) fn recv(&mut self) -> Vec<Got> {
        let mut out = Vec::new();
        while let Some((mut bytes, mut full)) = self.next_written() {
            assert!(bytes.len() >= self.hdr_len);
            let mut raw = [0; NET_HDR_LEN];
            raw[..self.hdr_len].copy_from_slice(&bytes[..self.hdr_len]);
            let hdr = NetHdr::from_bytes(&raw);
            let buffers = usize::from(hdr.num_buffers);
            if self.hdr_len == NET_HDR_LEN && !self.mergeable {
                assert_eq!(buffers, 1, "5.1.6.4.1");
            }
            for _ in 1..buffers {
                assert!(full, "only the last of merged buffers may have room left");
                let (more, f) = self.next_written().expect("published together");
                bytes.extend(more);
                full = f;
            }
            let frame = bytes.split_off(self.hdr_len);
            out.push(Got {
                hdr: NetHdr {
                    num_buffers: 0,
                    ..hdr
                },
                frame,
                buffers: buffers.max(1),
            });
        }
        out
    }
}

/// Counts the notifications.
#[derive(Default)]
pub(crate) struct Calls(AtomicU64);

impl Call for Calls {
    fn call(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Calls {
    /// The number since last asked.
    pub(crate) fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

/// One wire: what comes out of the one queue goes into the other.
pub(crate) struct Wire {
    pub(crate) tx: TxQueue,
    pub(crate) rx: RxQueue,
    pub(crate) batch: Batch,
    pub(crate) scratch: Scratch,
    pub(crate) from_vm: Counters,
    pub(crate) to_vm: Counters,
    pub(crate) tx_calls: Arc<Calls>,
    pub(crate) rx_calls: Arc<Calls>,
}

impl Wire {
    /// Starts both queues at the given positions.
    pub(crate) fn new(from: (&Nic, u16), to: (&Nic, u16)) -> Self {
        let mut w = Self {
            tx: TxQueue::default(),
            rx: RxQueue::default(),
            batch: Batch::new(),
            scratch: Scratch::default(),
            from_vm: Counters::default(),
            to_vm: Counters::default(),
            tx_calls: Arc::default(),
            rx_calls: Arc::default(),
        };
        w.tx.set_memory(from.0.ram.memory()).unwrap();
        w.rx.set_memory(to.0.ram.memory()).unwrap();
        w.tx.start(&from.0.ring.config(), from.1, None).unwrap();
        w.rx.start(&to.0.ring.config(), to.1).unwrap();
        let call: Arc<dyn Call> = w.tx_calls.clone();
        w.tx.set_call(Some(call));
        let call: Arc<dyn Call> = w.rx_calls.clone();
        w.rx.set_call(Some(call));
        w.tx.set_enabled(true);
        w.rx.set_enabled(true);
        w
    }

    /// Fills the receiver with the whole batch.
    pub(crate) fn fill(&mut self) {
        let frames: Vec<u8> = (0..self.batch.len() as u8).collect();
        let mut left = &frames[..];
        while !left.is_empty() {
            let filled = self
                .rx
                .fill(&mut self.batch, left, &mut self.scratch, &self.to_vm);
            assert!(filled.done > 0, "each call gets on");
            if let Some(call) = filled.call {
                call.call();
            }
            left = &left[filled.done..];
        }
    }

    /// Carries one burst. The chains taken.
    pub(crate) fn pump(&mut self) -> usize {
        let taken = self.tx.drain(&mut self.batch, &self.from_vm);
        if taken != 0 {
            self.fill();
            self.batch.clear();
            if let Some(call) = self.tx.complete() {
                call.call();
            }
        }
        taken
    }

    /// Carries all there is.
    pub(crate) fn pump_all(&mut self) {
        while self.pump() != 0 {}
    }
}
