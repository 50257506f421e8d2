//! AF_XDP sockets, their memory and their rings (Linux `Documentation/networking/af_xdp.rst`,
//! `linux/if_xdp.h`), each behind safe functions.
//!
//! ```text
//!             producer: us                      producer: the kernel
//!  fill        chunks to receive into    RX          frames received
//!  TX          frames to send            completion  chunks whose frames have been sent
//! ```
//! A ring is an array of a power of two entries, and two indices that only count up. Whoever
//! produces writes entries and then its index (Release), after it has seen that there is room by
//! the other's (Acquire); whoever consumes the other way round.
#![allow(unsafe_code)] // see `sys.rs`

use std::any::Any;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use libc::{c_void, off_t};
use rustix::net::sockopt;
use rustix::net::xdp::{self, XdpRingOffset, XdpUmemReg, XdpUmemRegFlags};
use tandem_virtio_net::memory::{Memory, MemoryError, Region};

/// Bytes of a file, mapped for as long as this lives.
pub(super) struct Mapping {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and this type gives out nothing but
// what the rules of its users allow.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing is changed through a shared reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes from `offset` on, for reading and writing, shared with whoever else has the file.
    pub(super) fn new(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        let offset = off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        let fd = file.as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice changes no memory in use.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, len })
    }

    /// Its first byte, at the start of a page.
    pub(super) fn start(&self) -> NonNull<c_void> {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped, and nobody has a pointer into it any more.
        unsafe { libc::munmap(self.start.as_ptr(), self.len) };
    }
}

/// Has the kernel make the chunks of a socket's frames, of `chunk` bytes each, of all of `memory`. It
/// may be unmapped afterwards: the kernel holds its pages.
pub(super) fn register(socket: &OwnedFd, memory: &Mapping, chunk: u32) -> io::Result<()> {
    // Safe whatever the addresses: the kernel writes only to what the process could, and only what the
    // rings say.
    let registration = XdpUmemReg {
        addr: memory.start.as_ptr() as u64,
        len: memory.len as u64,
        chunk_size: chunk,
        headroom: 0,
        flags: XdpUmemRegFlags::empty(),
        tx_metadata_len: 0,
    };
    Ok(sockopt::set_xdp_umem_reg(socket, registration)?)
}

/// The four rings of a queue.
pub(super) struct Rings {
    pub(super) fill: Producer<u64>,
    pub(super) rx: Consumer<libc::xdp_desc>,
    pub(super) tx: Producer<libc::xdp_desc>,
    pub(super) completion: Consumer<u64>,
}

impl Rings {
    /// Maps the rings of a queue's two sockets, which were given rings of as many entries, a power of two:
    /// the TX ring is the second one's.
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        sender: BorrowedFd<'_>,
        entries: u32,
    ) -> io::Result<Self> {
        let at = sockopt::xdp_mmap_offsets(socket)?;
        let fill = xdp::XDP_UMEM_PGOFF_FILL_RING;
        let completion = xdp::XDP_UMEM_PGOFF_COMPLETION_RING;
        Ok(Self {
            fill: Producer::new(Ring::map(socket, fill, &at.fr, entries)?),
            rx: Consumer::new(Ring::map(socket, xdp::XDP_PGOFF_RX_RING, &at.rx, entries)?),
            tx: Producer::new(Ring::map(sender, xdp::XDP_PGOFF_TX_RING, &at.tx, entries)?),
            completion: Consumer::new(Ring::map(socket, completion, &at.cr, entries)?),
        })
    }
}

/// What can be an entry.
///
/// # Safety
/// Only of integers and structures of them: whatever the kernel writes is a value.
pub(super) unsafe trait Entry: Copy {}
// SAFETY: an integer.
unsafe impl Entry for u64 {}
// SAFETY: of integers.
unsafe impl Entry for libc::xdp_desc {}

/// A ring in memory shared with the kernel.
///
/// Invariant, checked by [`Ring::map`]: the three words and the array of `mask + 1` entries are
/// within `_map` and aligned.
struct Ring<T> {
    _map: Mapping,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    mask: u32,
    own: PhantomData<T>,
}

// SAFETY: the pointers are into the mapping that is moved with them.
unsafe impl<T: Entry> Send for Ring<T> {}

impl<T: Entry> Ring<T> {
    fn map(
        socket: BorrowedFd<'_>,
        offset: u64,
        at: &XdpRingOffset,
        entries: u32,
    ) -> io::Result<Self> {
        let flags = at.flags.ok_or(io::ErrorKind::Unsupported)?;
        let array = u64::from(entries) * size_of::<T>() as u64;
        let len = at.desc.checked_add(array).map(usize::try_from);
        let Some(Ok(len)) = len.filter(|_| entries.is_power_of_two()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // The kernel refuses to map more than a ring has.
        let map = Mapping::new(socket, offset, len)?;
        Ok(Self {
            producer: place(&map, at.producer, 4)?,
            consumer: place(&map, at.consumer, 4)?,
            flags: place(&map, flags, 4)?,
            entries: place(&map, at.desc, array)?,
            mask: entries - 1,
            _map: map,
            own: PhantomData,
        })
    }

    fn word(&self, at: NonNull<AtomicU32>) -> &AtomicU32 {
        // SAFETY: an aligned word of the mapping, by the invariant, which all sides access by atomics.
        unsafe { at.as_ref() }
    }

    fn read(&self, index: u32) -> T {
        // SAFETY: within the array, by the mask and the invariant. Every value is one of `T`.
        unsafe {
            self.entries
                .add((index & self.mask) as usize)
                .read_volatile()
        }
    }

    fn write(&mut self, index: u32, entry: T) {
        // SAFETY: within the array, by the mask and the invariant.
        unsafe {
            self.entries
                .add((index & self.mask) as usize)
                .write_volatile(entry)
        };
    }
}

/// The address of `len` bytes at `offset` of a mapping, for values of type `P`.
fn place<P>(map: &Mapping, offset: u64, len: u64) -> io::Result<NonNull<P>> {
    let fits = offset
        .checked_add(len)
        .is_some_and(|end| end <= map.len as u64);
    if !fits || !offset.is_multiple_of(align_of::<P>() as u64) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // SAFETY: `offset` is within the mapping; and its start has the alignment of a page.
    Ok(unsafe { map.start.byte_add(offset as usize) }.cast())
}

/// The side of a ring that adds entries.
pub(super) struct Producer<T> {
    ring: Ring<T>,
    /// Where the next entry goes.
    next: u32,
    /// The consumer's index when it was looked at last.
    seen: u32,
}

impl<T: Entry> Producer<T> {
    fn new(ring: Ring<T>) -> Self {
        let next = ring.word(ring.producer).load(Ordering::Relaxed);
        let seen = ring.word(ring.consumer).load(Ordering::Acquire);
        Self { ring, next, seen }
    }

    /// Entries that the kernel has not taken yet, published or not.
    pub(super) fn pending(&mut self) -> u32 {
        self.seen = self.ring.word(self.ring.consumer).load(Ordering::Acquire);
        self.next.wrapping_sub(self.seen)
    }

    /// Adds an entry; false if there is no room.
    pub(super) fn push(&mut self, entry: T) -> bool {
        let entries = self.ring.mask + 1;
        let room = self.next.wrapping_sub(self.seen) < entries || self.pending() < entries;
        if room {
            self.ring.write(self.next, entry);
            self.next = self.next.wrapping_add(1);
        }
        room
    }

    /// Lets the kernel see what was added.
    pub(super) fn publish(&self) {
        self.ring
            .word(self.ring.producer)
            .store(self.next, Ordering::Release);
    }

    /// Does the kernel want a call to see it?
    pub(super) fn needs_kick(&self) -> bool {
        // A driver that asks for calls looks at the ring once more afterwards: one of the two sees
        // what the other wrote.
        fence(Ordering::SeqCst);
        self.ring.word(self.ring.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    /// The entries that the kernel had not taken when [`Producer::pending`] was asked.
    pub(super) fn waiting(&self) -> impl Iterator<Item = T> {
        let n = self.next.wrapping_sub(self.seen).min(self.ring.mask + 1);
        (0..n).map(|i| self.ring.read(self.seen.wrapping_add(i)))
    }

    /// The entry that the kernel had taken last when [`Producer::pending`] was asked.
    pub(super) fn last_taken(&self) -> T {
        self.ring.read(self.seen.wrapping_sub(1))
    }
}

/// The side of a ring that takes entries.
pub(super) struct Consumer<T> {
    ring: Ring<T>,
    /// The next entry to take.
    next: u32,
    /// The producer's index when it was looked at last.
    seen: u32,
}

impl<T: Entry> Consumer<T> {
    fn new(ring: Ring<T>) -> Self {
        let next = ring.word(ring.consumer).load(Ordering::Relaxed);
        Self {
            ring,
            next,
            seen: next,
        }
    }

    /// Takes an entry, if there is one.
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.next == self.seen {
            self.seen = self.ring.word(self.ring.producer).load(Ordering::Acquire);
            if self.next == self.seen {
                return None;
            }
        }
        let entry = self.ring.read(self.next);
        self.next = self.next.wrapping_add(1);
        Some(entry)
    }

    /// Lets the kernel have the places of what was taken.
    pub(super) fn release(&self) {
        self.ring
            .word(self.ring.consumer)
            .store(self.next, Ordering::Release);
    }
}

/// The chunks of one queue that frames are sent from: written by this process alone.
pub(super) struct TxMemory(Mapping);

impl TxMemory {
    /// Maps `len` bytes of a sealed file from `offset` on; nobody else may.
    pub(super) fn map(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        Mapping::new(file, offset, len).map(Self)
    }

    /// All of it.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has `len` bytes, which stay: the file is sealed. What is sent is only
        // read, by the kernel or the device, and nobody else writes to it.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.as_ptr().cast(), self.0.len) }
    }
}

/// Memory of several parts of a sealed file, where the kernel puts what is received:
/// for each the address it is to have, the offset in the file, and bytes.
pub(super) fn rx_memory(
    file: BorrowedFd<'_>,
    parts: impl Iterator<Item = (u64, u64, usize)>,
) -> io::Result<Memory> {
    let mut maps = Vec::new();
    let mut regions = Vec::new();
    for (address, offset, len) in parts {
        let map = Mapping::new(file, offset, len)?;
        // SAFETY: the mapping is readable and writable, and `keep` below has it.
        regions.push(unsafe { Region::new(address, len as u64, map.start.as_ptr().cast()) });
        maps.push(map);
    }
    let keep: Arc<dyn Any + Send + Sync> = Arc::new(maps);
    Memory::new(regions, Arc::default(), keep).map_err(|e: MemoryError| io::Error::other(e))
}

/// For tests: rings in a file, of which a test is the kernel's side.
#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// Bytes of the file for each ring, and where the words and entries are in them.
    pub(in crate::nic) const RING_BYTES: u64 = 64 << 10;
    const AT: XdpRingOffset = XdpRingOffset {
        producer: 0,
        consumer: 64,
        desc: 256,
        flags: Some(FLAGS),
    };
    pub(in crate::nic) const FLAGS: u64 = 128;

    /// The other sides of [`Rings`].
    pub(in crate::nic) struct Kernel {
        pub(in crate::nic) fill: Consumer<u64>,
        pub(in crate::nic) rx: Producer<libc::xdp_desc>,
        pub(in crate::nic) tx: Consumer<libc::xdp_desc>,
        pub(in crate::nic) completion: Producer<u64>,
    }

    pub(in crate::nic) fn rings_in(file: BorrowedFd<'_>, entries: u32) -> (Rings, Kernel) {
        fn map<T: Entry>(file: BorrowedFd<'_>, at: u64, entries: u32) -> Ring<T> {
            Ring::map(file, at * RING_BYTES, &AT, entries).expect("a ring")
        }
        let rings = Rings {
            fill: Producer::new(map(file, 0, entries)),
            rx: Consumer::new(map(file, 1, entries)),
            tx: Producer::new(map(file, 2, entries)),
            completion: Consumer::new(map(file, 3, entries)),
        };
        let kernel = Kernel {
            fill: Consumer::new(map(file, 0, entries)),
            rx: Producer::new(map(file, 1, entries)),
            tx: Consumer::new(map(file, 2, entries)),
            completion: Producer::new(map(file, 3, entries)),
        };
        (rings, kernel)
    }
}
