//! What a frame costs from one guest's ring to another's, without a daemon: drain, fill and
//! complete between two queues in this process.
//!
//!     cargo run --release -p tandem-virtio-net --example rings
//!
//! This is the cost of the device's side alone: the drivers' time is not counted. They recycle
//! their buffers in place, as poll mode drivers do, and write the start of each frame. They run
//! on the same thread between the bursts, so that all memory is in the cache, or on another one.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use tandem_virtio_net::memory::{Memory, Region};
use tandem_virtio_net::ring::RingConfig;
use tandem_virtio_net::spec::*;
use tandem_virtio_net::{BURST, Batch, Counters, RxQueue, Scratch, TxQueue};

const SIZE: u16 = 256;
const BUFFER: u64 = 2048;
const DESC: u64 = 0;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
const BUFFERS: u64 = 0x10000;
const BURSTS: usize = 30_000;

/// A guest with one ring, each of whose descriptors has a buffer for good.
struct Guest {
    bytes: Arc<Vec<u128>>,
    packed: bool,
    /// Descriptors made available, since the start.
    next: u64,
    flags: u16,
}

impl Guest {
    fn new(packed: bool, len: u32, flags: u16) -> Self {
        let bytes = vec![0; (BUFFERS + u64::from(SIZE) * BUFFER) as usize / 16];
        let guest = Self {
            bytes: Arc::new(bytes),
            packed,
            next: 0,
            flags,
        };
        for i in 0..u64::from(SIZE) {
            guest.write(DESC + 16 * i, &(BUFFERS + BUFFER * i).to_le_bytes());
            guest.write(DESC + 16 * i + 8, &len.to_le_bytes());
            if packed {
                guest.write(DESC + 16 * i + 12, &(i as u16).to_le_bytes());
            } else {
                guest.write(DESC + 16 * i + 12, &flags.to_le_bytes());
                guest.write(DRIVER + 4 + 2 * i, &(i as u16).to_le_bytes());
                // Never call.
                guest.write(DRIVER, &AVAIL_F_NO_INTERRUPT.to_le_bytes());
            }
        }
        if packed {
            guest.write(DRIVER + 2, &EVENT_FLAGS_DISABLE.to_le_bytes());
        }
        guest
    }

    fn at(&self, addr: u64) -> *mut u8 {
        assert!(addr < 16 * self.bytes.len() as u64);
        // SAFETY: inside the vector.
        unsafe {
            self.bytes
                .as_ptr()
                .cast_mut()
                .cast::<u8>()
                .add(addr as usize)
        }
    }

    fn write(&self, addr: u64, bytes: &[u8]) {
        // SAFETY: `at` has checked the start, and nothing here is written at the very end.
        unsafe { self.at(addr).copy_from(bytes.as_ptr(), bytes.len()) };
    }

    fn store(&self, addr: u64, value: u16) {
        // SAFETY: as above; all addresses used are even.
        unsafe { AtomicU16::from_ptr(self.at(addr).cast()) }.store(value, Ordering::Release);
    }

    fn memory(&self) -> Memory {
        let len = 16 * self.bytes.len() as u64;
        // SAFETY: the vector lives as long as the memory's `keep`.
        let region = unsafe { Region::new(0, len, self.at(0)) };
        let keep: Arc<Vec<u128>> = Arc::clone(&self.bytes);
        Memory::new(vec![region], Arc::default(), keep).expect("one region")
    }

    fn config(&self) -> RingConfig {
        RingConfig {
            size: SIZE,
            desc: DESC,
            driver: DRIVER,
            device: DEVICE,
            features: 1 << VIRTIO_F_VERSION_1
                | 1 << VIRTIO_NET_F_MRG_RXBUF
                | u64::from(self.packed) << VIRTIO_F_RING_PACKED,
        }
    }

    /// Makes the next `n` descriptors available again.
    fn offer(&mut self, n: usize, len: u32) {
        for _ in 0..n {
            let at = BUFFERS + BUFFER * (self.next % u64::from(SIZE));
            self.write(at, &[0; NET_HDR_LEN]);
            self.write(at + NET_HDR_LEN as u64, &[2; 60]);
            let (index, lap) = (self.next % u64::from(SIZE), self.next / u64::from(SIZE));
            if self.packed {
                let avail = if lap % 2 == 0 {
                    PACKED_F_AVAIL
                } else {
                    PACKED_F_USED
                };
                self.write(DESC + 16 * index + 8, &len.to_le_bytes());
                self.store(DESC + 16 * index + 14, self.flags | avail);
            }
            self.next += 1;
        }
        if !self.packed {
            self.store(DRIVER + 2, self.next as u16);
        }
        fence(Ordering::SeqCst);
    }
}

/// Offers all bursts, as many ahead of what is used as the rings are long.
fn drive(mut a: Guest, mut b: Guest, sent: u32, used: &AtomicUsize, offered: &AtomicUsize) {
    let ahead = usize::from(SIZE) / BURST;
    for n in 0..BURSTS {
        while n >= used.load(Ordering::Acquire) + ahead {
            std::hint::spin_loop();
        }
        a.offer(BURST, sent);
        b.offer(BURST, BUFFER as u32);
        offered.store(n + 1, Ordering::Release);
    }
}

/// Nanoseconds a frame: drain, fill, complete.
fn measure(packed: bool, len: usize, other_thread: bool) -> [f64; 3] {
    let sent = (NET_HDR_LEN + len) as u32;
    let mut a = Guest::new(packed, sent, 0);
    let mut b = Guest::new(packed, BUFFER as u32, DESC_F_WRITE);
    let (mut tx, mut rx) = (TxQueue::default(), RxQueue::default());
    let good = "a good configuration";
    tx.set_memory(a.memory()).expect(good);
    rx.set_memory(b.memory()).expect(good);
    tx.start(&a.config(), 0x8000, None).expect(good);
    rx.start(&b.config(), 0x8000).expect(good);
    tx.set_enabled(true);
    rx.set_enabled(true);
    let (mut batch, mut scratch) = (Batch::new(), Scratch::default());
    let (from_vm, to_vm) = (Counters::default(), Counters::default());
    let frames: [u8; BURST] = std::array::from_fn(|i| i as u8);
    let mut spent = [Duration::ZERO; 3];
    let (used, offered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut burst = || {
        let start = Instant::now();
        let taken = tx.drain(&mut batch, &from_vm);
        let drained = Instant::now();
        assert_eq!(taken, BURST);
        let mut done = 0;
        while done < BURST {
            done += rx
                .fill(&mut batch, &frames[done..], &mut scratch, &to_vm)
                .done;
        }
        let filled = Instant::now();
        batch.clear();
        tx.complete();
        // This driver takes every burst for used as soon as it is counted.
        assert!(tx.give_back().is_none());
        spent[0] += drained - start;
        spent[1] += filled - drained;
        spent[2] += filled.elapsed();
    };
    if other_thread {
        std::thread::scope(|s| {
            s.spawn(|| drive(a, b, sent, &used, &offered));
            for n in 0..BURSTS {
                while offered.load(Ordering::Acquire) <= n {
                    std::hint::spin_loop();
                }
                burst();
                used.store(n + 1, Ordering::Release);
            }
        });
    } else {
        for _ in 0..BURSTS {
            a.offer(BURST, sent);
            b.offer(BURST, BUFFER as u32);
            burst();
        }
    }
    assert_eq!(to_vm.frames(), from_vm.frames());
    spent.map(|d| d.as_nanos() as f64 / to_vm.frames() as f64)
}

fn main() {
    println!("ns per frame, drivers     drain    fill  complete   total");
    for (other_thread, drivers) in [(false, "same thread"), (true, "other thread")] {
        for (packed, layout) in [(false, "split"), (true, "packed")] {
            for len in [64, 256, 1500] {
                let [drain, fill, complete] = measure(packed, len, other_thread);
                let total = drain + fill + complete;
                println!(
                    "{layout:6}{len:5} B {drivers:12}{drain:7.1}{fill:8.1}{complete:10.1}{total:8.1}"
                );
            }
        }
    }
}
