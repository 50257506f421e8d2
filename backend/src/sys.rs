//! What needs `unsafe`: mapping what a VMM shares, and surviving when it takes it back.
//!
//! A VMM can truncate its memory file while we have it mapped, or have too few huge pages for it;
//! to touch such a page raises SIGBUS. [`on_sigbus`] then looks the address up in a table of what
//! is mapped from VMMs, puts anonymous memory over that whole mapping, and sets the [`Fault`] of
//! the session it belongs to. The access that faulted goes on, harmlessly; the session's queues
//! see the flag after their burst and stop. Any other address goes to whoever handled SIGBUS
//! before.
#![allow(unsafe_code)]

use std::any::Any;
use std::ffi::{CString, c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use seccompiler::sock_filter;
use tandem_virtio_net::memory::{DirtyLog, Fault, Memory, MemoryError, Region};
use tandem_virtio_net::ring::{JOURNAL_BYTES, Journal};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Mappings that can be watched at once: a VM has a few, or up to 509 if its memory is hot-plugged.
const SLOTS: usize = 4096;

/// A watched mapping. `sequence` is odd while the other fields change, so that a signal handler on
/// another thread can tell that what it read belongs together.
struct Slot {
    sequence: AtomicU32,
    start: AtomicUsize,
    len: AtomicUsize,
    fault: AtomicPtr<Fault>,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        sequence: AtomicU32::new(0),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        fault: AtomicPtr::new(ptr::null_mut()),
    }
}; SLOTS];

/// Which slots are taken; the handler never looks at it.
static TAKEN: Mutex<[bool; SLOTS]> = Mutex::new([false; SLOTS]);

/// Slots from here on were never used.
static HIGH_WATER: AtomicUsize = AtomicUsize::new(0);

/// The handler of SIGBUS there was before ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Keeps a mapping in the table. Drop it before the mapping is unmapped.
struct Watch {
    slot: usize,
    fault: Arc<Fault>,
}

impl Watch {
    /// Watches `len` bytes, whole pages of the mapping's kind, at `start`.
    fn new(start: usize, len: usize, fault: &Arc<Fault>) -> io::Result<Self> {
        install()?;
        let slot = {
            let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = taken.iter().position(|t| !t).ok_or_else(|| {
                io::Error::other(format!(
                    "more than {SLOTS} regions of guest memory are mapped"
                ))
            })?;
            taken[slot] = true;
            slot
        };
        HIGH_WATER.fetch_max(slot + 1, SeqCst);
        let watch = Self {
            slot,
            fault: Arc::clone(fault),
        };
        watch.set(start, len, Arc::as_ptr(&watch.fault).cast_mut());
        Ok(watch)
    }

    fn set(&self, start: usize, len: usize, fault: *mut Fault) {
        let slot = &TABLE[self.slot];
        slot.sequence.fetch_add(1, SeqCst);
        slot.start.store(start, SeqCst);
        slot.len.store(len, SeqCst);
        slot.fault.store(fault, SeqCst);
        slot.sequence.fetch_add(1, SeqCst);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.set(0, 0, ptr::null_mut());
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner)[self.slot] = false;
    }
}

/// Installs the handler, once in a process.
fn install() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks only; `previous` is valid for a write of a sigaction.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), previous.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sigaction has filled it in; all zeroes is a valid one too.
    let _ = PREVIOUS.set(unsafe { previous.assume_init() });

    // SAFETY: all zeroes is a valid sigaction.
    let mut ours: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
    ours.sa_sigaction = handler as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature SA_SIGINFO asks for, and makes only calls that are
    // safe in a signal handler.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    *installed = true;
    Ok(())
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo_t. A positive code says that the kernel raised the
    // signal for a memory access, and only then is there an address.
    let address = unsafe { ((*info).si_code > 0).then(|| (*info).si_addr() as usize) };
    if !address.is_some_and(recover) {
        chain(signal, info, context);
    }
}

/// Puts memory where there is none any more; false if the address is not watched.
fn recover(address: usize) -> bool {
    let mut mapped = false;
    for slot in &TABLE[..HIGH_WATER.load(SeqCst)] {
        let sequence = slot.sequence.load(SeqCst);
        let (start, len) = (slot.start.load(SeqCst), slot.len.load(SeqCst));
        let fault = slot.fault.load(SeqCst);
        // A slot that changes is not that of the address: who accesses a mapping keeps it.
        if sequence % 2 == 1 || slot.sequence.load(SeqCst) != sequence {
            continue;
        }
        if address.wrapping_sub(start) >= len || fault.is_null() {
            continue;
        }
        if !mapped && !map_anonymous(start, len) {
            return false;
        }
        mapped = true;
        // SAFETY: the slot holds the address that this thread is accessing, so this thread keeps
        // the mapping, the mapping's `Watch`, and with it the `Arc` of the flag.
        unsafe { (*fault).set() };
    }
    mapped
}

/// Puts zeroed private memory over a mapping; the errno of the thread is kept.
fn map_anonymous(start: usize, len: usize) -> bool {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_FIXED | libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    // SAFETY: the range is exactly one mapping of ours of which no reference exists (guest memory
    // and logs are accessed by raw copies and atomics through pointers only), and it stays mapped.
    unsafe {
        let errno = *libc::__errno_location();
        let at = libc::syscall(libc::SYS_mmap, start, len, prot, flags, -1, 0usize);
        *libc::__errno_location() = errno;
        at as usize == start
    }
}

/// Does what would have been done without us.
fn chain(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let (handler, flags) = PREVIOUS
        .get()
        .map_or((libc::SIG_DFL, 0), |p| (p.sa_sigaction, p.sa_flags));
    match handler {
        // SAFETY: resetting a signal to its default and raising it are safe in a handler. The
        // signal is blocked now and kills the process as soon as the handler returns.
        libc::SIG_DFL | libc::SIG_IGN => unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        },
        // SAFETY: whoever installed this handler with SA_SIGINFO gave it this signature.
        f if flags & libc::SA_SIGINFO != 0 => unsafe {
            let f: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = std::mem::transmute(f);
            f(signal, info, context);
        },
        // SAFETY: without SA_SIGINFO it has this one.
        f => unsafe {
            let f: extern "C" fn(c_int) = std::mem::transmute(f);
            f(signal);
        },
    }
}

/// A session's mapped memory. The watches end before the mappings do: fields drop in order.
struct Mapped {
    _watches: Vec<Watch>,
    _memory: Arc<GuestMemoryMmap>,
}

/// Makes guest memory that is mapped available to the data path, and watches it.
///
/// # Errors
/// Too much is watched already, or the regions make no sense.
pub(crate) fn guest_memory(memory: Arc<GuestMemoryMmap>, fault: &Arc<Fault>) -> io::Result<Memory> {
    let mut regions = Vec::new();
    let mut watches = Vec::new();
    for region in memory.iter() {
        let (host, len) = (region.as_ptr(), region.len());
        watches.push(Watch::new(host.addr(), page_round(len as usize), fault)?);
        // SAFETY: the crate has mapped `len` bytes readable and writable at `host`, and `keep`
        // below holds that mapping.
        let region_here = unsafe { Region::new(region.start_addr().raw_value(), len, host) };
        regions.push(region_here.backed_by(backing(region.file_offset())));
    }
    let keep: Arc<dyn Any + Send + Sync> = Arc::new(Mapped {
        _watches: watches,
        _memory: memory,
    });
    Memory::new(regions, Arc::clone(fault), keep)
        .map_err(|e: MemoryError| io::Error::new(io::ErrorKind::InvalidInput, e))
}

/// A number for the first byte of a region: the file, which no other has while it exists, and the
/// place in it. It is the same for whoever maps the same memory. 0: not known.
fn backing(file: Option<&vm_memory::FileOffset>) -> u64 {
    let Some(file) = file else { return 0 };
    let Ok(stat) = rustix::fs::fstat(file.file()) else {
        return 0;
    };
    let name = stat.st_ino.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stat.st_dev.rotate_left(32);
    name.wrapping_add(file.start()) | 1 << 63
}

/// The journals of a port's rings, in a file that outlives the process.
pub(crate) struct JournalFile {
    map: Arc<Unmap>,
    rings: usize,
}

impl JournalFile {
    /// Opens the file at `path`, or makes it, with a record for each of `rings` rings.
    ///
    /// # Errors
    /// Those of opening, sizing and mapping a file.
    pub(crate) fn open(path: &Path, rings: usize) -> io::Result<Self> {
        let mut options = std::fs::OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = std::os::unix::fs::OpenOptionsExt::mode(options, 0o600).open(path)?;
        let len = rings * JOURNAL_BYTES;
        if file.metadata()?.len() != len as u64 {
            // Made for another number of rings: what it says is of no use.
            file.set_len(0)?;
            file.set_len(len as u64)?;
        }
        // A full file system must say so here, not by a signal at the first write.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len as u64)?;
        let map = Arc::new(map_shared(&file, 0, len)?);
        Ok(Self { map, rings })
    }

    /// The record of a ring. It must not be in use: the ring that had it is gone.
    pub(crate) fn record(&self, ring: u16) -> Option<Journal> {
        let at = usize::from(ring);
        (at < self.rings).then(|| {
            let words = ptr::with_exposed_provenance_mut(self.map.start + at * JOURNAL_BYTES);
            // SAFETY: the record is inside the mapping, which `keep` keeps; the caller says that
            // no other ring uses it. The file is ours alone: nobody truncates it.
            unsafe { Journal::new(words, Arc::clone(&self.map) as Arc<_>) }
        })
    }
}

/// Maps `len` bytes of a file, readable, writable and shared.
fn map_shared(file: impl AsFd, offset: u64, len: usize) -> io::Result<Unmap> {
    let file = file.as_fd().as_raw_fd();
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let map = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, file, offset) };
    if map == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(Unmap {
        start: map.expose_provenance(),
        len,
    })
}

/// The signal that interrupts a system call and does nothing else.
fn interrupt_signal() -> c_int {
    libc::SIGRTMIN()
}

/// Makes [`interrupt`] harmless: without a handler its signal would end the process.
///
/// # Errors
/// sigaction's.
pub(crate) fn install_interrupt() -> io::Result<()> {
    extern "C" fn nothing(_: c_int) {}
    // SAFETY: all zeroes is a valid sigaction. Without SA_RESTART a system call ends with EINTR.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(c_int) = nothing;
    action.sa_sigaction = handler as usize;
    // SAFETY: the handler has the signature that flags without SA_SIGINFO ask for.
    match unsafe { libc::sigaction(interrupt_signal(), &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Interrupts the system call that a thread of ours is in, if it is in one.
pub(crate) fn interrupt(thread: rustix::thread::Pid) {
    let (process, thread) = (std::process::id(), thread.as_raw_nonzero().get());
    // SAFETY: sends a signal that is handled, see `install_interrupt`; a thread that has ended
    // meanwhile is an error without effect.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, interrupt_signal()) };
}

/// Asks the kernel to let the calling thread have the CPU for no longer than `slice` while others
/// of its kind wait. Its share of the CPU stays the same. Kernels before 6.12 pass over this, and
/// those before 6.6 need no such word.
///
/// # Errors
/// Those of sched_getattr and sched_setattr.
pub(crate) fn set_slice(slice: Duration) -> io::Result<()> {
    // SAFETY: all zeroes is a valid sched_attr.
    let mut attr: libc::sched_attr = unsafe { MaybeUninit::zeroed().assume_init() };
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: writes to `attr`, up to `size` bytes.
    if unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if attr.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(()); // somebody knows better
    }
    attr.sched_runtime = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: reads `attr`, whose size is in it.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the kernel add up the time that the calling thread has had the CPU for: see
/// [`set_slice`].
pub(crate) fn add_up_time() {
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
}

/// The CPU time that a thread of this process has had (proc_pid_schedstat(5)); none if it has ended.
pub(crate) fn cpu_time(thread: i32) -> Duration {
    schedstat(thread, 0)
}

/// How long the calling thread has been ready to run and waited for a CPU.
pub(crate) fn starved() -> Duration {
    schedstat(rustix::thread::gettid().as_raw_nonzero().get(), 1)
}

fn schedstat(thread: i32, column: usize) -> Duration {
    let path = format!("/proc/self/task/{thread}/schedstat");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let nanos = text
        .split(' ')
        .nth(column)
        .and_then(|word| word.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// A mapped dirty log.
struct LogMap {
    /// Ends before the mapping does: fields drop in order.
    _watch: Watch,
    unmap: Unmap,
}

/// Unmaps when dropped.
struct Unmap {
    start: usize,
    len: usize,
}

impl Drop for Unmap {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map_shared`, and whoever uses it holds this.
        unsafe { libc::munmap(ptr::without_provenance_mut(self.start), self.len) };
    }
}

/// Maps a dirty log: `len` bytes of `file` at `offset`. The file must have them.
///
/// # Errors
/// mmap's, and too much is watched already.
pub(crate) fn map_log(
    file: impl AsFd,
    offset: u64,
    len: u64,
    fault: &Arc<Fault>,
) -> io::Result<DirtyLog> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let unmap = map_shared(file, offset, len)?;
    let start = unmap.start;
    let keep = Arc::new(LogMap {
        _watch: Watch::new(start, page_round(len), fault)?,
        unmap,
    });
    debug_assert_eq!(keep.unmap.len, len);
    let map = ptr::with_exposed_provenance_mut(start);
    // SAFETY: `len` bytes are mapped writable at `map` while `keep` lives.
    Ok(unsafe { DirtyLog::new(map, len, keep) })
}

/// Rounds up to whole pages. Huge pages are whole already: other sizes of them are not accepted.
fn page_round(len: usize) -> usize {
    len.next_multiple_of(4096)
}

/// The process at the other end of a unix socket; 0 if that is in a process namespace we do not see.
///
/// # Errors
/// The socket has no other end.
pub(crate) fn peer(socket: impl AsFd) -> io::Result<u32> {
    let mut cred = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    let at = (&raw mut cred).cast();
    // SAFETY: `cred` is valid for a write of `len` bytes, and any bytes make a ucred.
    if unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, at, &raw mut len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cred.pid as u32)
}

/// Whether the kernel's log names the calls that a filter refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Log {
    Refusals,
    Nothing,
}

/// Restricts the system calls of the calling thread and of those it starts (seccomp(2)). It must
/// have given up new privileges.
///
/// # Errors
/// EINVAL or ENOSYS if the kernel cannot.
pub(crate) fn install_filter(program: &[sock_filter], log: Log) -> io::Result<()> {
    // There is no foreign code in this process from which a side channel would have to be kept, and
    // kernels before 5.16 slow down a thread with a filter, unless told that.
    let mut flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    if log == Log::Refusals {
        flags |= libc::SECCOMP_FILTER_FLAG_LOG;
    }
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    const { assert!(size_of::<sock_filter>() == size_of::<libc::sock_filter>()) }
    // SAFETY: the kernel copies `len` instructions from `filter`, which both crates define as
    // `struct sock_filter` of linux/filter.h, and changes nothing.
    let installed = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match installed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes all descriptors but the standard ones.
///
/// # Errors
/// Those of close_range(2).
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: called first thing in a process, when nothing in it has opened a descriptor that
    // could be taken from under it.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ignores the signals that ask a process to end or to read its file again.
///
/// # Errors
/// Those of signal(2).
pub(crate) fn ignore_signals() -> io::Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: no handler is installed.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The number of a group given by name or number.
pub(crate) fn group_id(name: &str) -> Option<u32> {
    if let Ok(id) = name.parse() {
        return Some(id);
    }
    let name = CString::new(name).ok()?;
    let mut text = vec![0; 64 << 10];
    let mut entry = MaybeUninit::<libc::group>::zeroed();
    let mut found = ptr::null_mut();
    // SAFETY: `name` ends in NUL; `entry`, `text` and `found` are valid for writes of their size,
    // and the entry's pointers into `text` are not used.
    let error = unsafe {
        libc::getgrnam_r(
            name.as_ptr(),
            entry.as_mut_ptr(),
            text.as_mut_ptr(),
            text.len(),
            &raw mut found,
        )
    };
    // SAFETY: when it says that it found one, it has filled `entry` in.
    (error == 0 && !found.is_null()).then(|| unsafe { entry.assume_init_ref() }.gr_gid)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use vm_memory::{FileOffset, GuestAddress};

    use super::*;

    fn memfd(len: u64) -> std::fs::File {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, len).unwrap();
        file.into()
    }

    fn shared(file: &std::fs::File, len: usize) -> Arc<GuestMemoryMmap> {
        let at = FileOffset::new(file.try_clone().unwrap(), 0);
        Arc::new(
            GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), len, Some(at))]).unwrap(),
        )
    }

    #[test]
    fn a_truncated_file_costs_its_session_only() {
        let (file, other) = (memfd(0x4000), memfd(0x4000));
        let (fault, other_fault) = (Arc::<Fault>::default(), Arc::<Fault>::default());
        let memory = guest_memory(shared(&file, 0x4000), &fault).unwrap();
        let other = guest_memory(shared(&other, 0x4000), &other_fault).unwrap();
        ftruncate(&file, 0).unwrap();
        let dst = memory.host(0x2000, 4).unwrap();
        // SAFETY: `dst` is four bytes of this memory, which stays mapped whatever the file does.
        unsafe { memory.write(0x2000, dst, b"boom".as_ptr(), 4) };
        assert!(fault.is_set() && !other_fault.is_set());
        // Another page of the region is memory now as well.
        // SAFETY: as above; the read is of one mapped byte.
        assert_eq!(unsafe { memory.host(0, 1).unwrap().read_volatile() }, 0);
        let dst = other.host(0, 4).unwrap();
        // SAFETY: as above.
        unsafe { other.write(0, dst, b"fine".as_ptr(), 4) };
        assert!(!other_fault.is_set());
    }

    #[test]
    fn a_truncated_log_costs_its_session_only() {
        let file = memfd(0x2000);
        let fault = Arc::<Fault>::default();
        let log = map_log(&file, 0, 0x2000, &fault).unwrap();
        log.mark(0, 1);
        assert!(!fault.is_set());
        ftruncate(&file, 0).unwrap();
        log.mark(0x1800 * 8 * 4096, 1);
        assert!(fault.is_set());
    }

    /// In a process of its own, because it dies.
    #[test]
    fn a_fault_that_is_not_ours_kills_as_ever() {
        use std::os::unix::process::ExitStatusExt;
        const CHILD: &str = "TANDEM_TEST_FAULT";
        if std::env::var_os(CHILD).is_some() {
            let watched = memfd(0x1000);
            let _watched = guest_memory(shared(&watched, 0x1000), &Arc::default()).unwrap();
            let unwatched = shared(&memfd(0), 0x1000);
            let at = unwatched.iter().next().unwrap().as_ptr();
            // SAFETY: one byte of a mapping, whose file has none: it faults.
            unsafe { at.write_volatile(1) };
            return;
        }
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "sys::tests::a_fault_that_is_not_ours_kills_as_ever",
            ])
            .env(CHILD, "1")
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(libc::SIGBUS));
    }

    #[test]
    fn slots_are_given_back() {
        let file = memfd(0x1000);
        let fault = Arc::<Fault>::default();
        for _ in 0..2 * SLOTS {
            drop(guest_memory(shared(&file, 0x1000), &fault).unwrap());
        }
        assert_eq!(Arc::strong_count(&fault), 1);
    }

    #[test]
    fn the_peer_of_a_socket_is_known() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(peer(&a).unwrap(), std::process::id());
        assert!(peer(memfd(0)).is_err());
    }

    #[test]
    fn groups_by_name_and_number() {
        assert_eq!(group_id("root"), Some(0));
        assert_eq!(group_id("42"), Some(42));
        assert_eq!(group_id("no such group"), None);
    }
}
