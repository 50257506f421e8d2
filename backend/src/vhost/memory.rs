//! What of a VMM's shared memory is accepted, judged before anything of it is mapped.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use rustix::fs::{OFlags, SealFlags, fcntl_add_seals, fcntl_getfl, fstat, fstatfs};
use thiserror::Error;

use super::wire::u64_at;
use crate::broker::Broker;

/// File systems whose pages cannot stall us on a disk or a network (statfs(2)).
const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Regions a table can have: what the crate tells the VMM (GET_MAX_MEM_SLOTS).
const MAX_REGIONS: usize = 509;

/// What a VMM has to be told so that its memory can be shared.
pub(super) const REMEDY: &str = "give the VM shared memory: QEMU \
    -object memory-backend-memfd,id=mem,size=…,share=on -numa node,memdev=mem; \
    cloud-hypervisor --memory size=…,shared=on; libvirt <source type='memfd'/><access mode='shared'/>";

/// Why memory or a log is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum MemoryRefused {
    #[error("the VMM sent {fds} file descriptors for {regions} memory regions: {REMEDY}")]
    Descriptors { regions: usize, fds: usize },
    #[error("the VMM's memory region at {0:#x} is empty or wraps around")]
    Wraps(u64),
    #[error("the VMM's memory regions at {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
    #[error("the VMM sent more than {MAX_REGIONS} memory regions")]
    TooMany,
    #[error("the VMM removes a memory region at {0:#x} that it has not added")]
    Unknown(u64),
    #[error("the VMM's memory region at {0:#x} is a file that cannot be examined")]
    File(u64),
    #[error("the VMM's memory region at {0:#x} is not a memfd, tmpfs or hugetlbfs file: {REMEDY}")]
    FileSystem(u64),
    #[error("the VMM's memory region at {0:#x} was not shared for reading and writing: {REMEDY}")]
    ReadOnly(u64),
    #[error("the VMM has mapped its memory region at {0:#x} for itself alone: {REMEDY}")]
    Private(u64),
    #[error(
        "the VMM's memory region at {0:#x} is longer than its file: use a memory size that the \
         file (or the huge pages reserved) can hold"
    )]
    Short(u64),
    #[error("the VMM's memory region at {0:#x} does not start and end at pages of its file")]
    Alignment(u64),
}

/// One region of guest memory as a VMM describes it (vhost-user, "Memory region description").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RegionInfo {
    /// Guest-physical address.
    pub(super) guest: u64,
    /// Bytes.
    pub(super) size: u64,
    /// Address in the VMM, in which ring addresses are given.
    pub(super) user: u64,
    /// Where in the file it starts.
    pub(super) offset: u64,
}

/// Bytes of a region's description.
pub(super) const REGION_LEN: usize = 32;

impl RegionInfo {
    /// # Panics
    /// If there are less than [`REGION_LEN`] bytes.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        Self {
            guest: u64_at(bytes, 0),
            size: u64_at(bytes, 8),
            user: u64_at(bytes, 16),
            offset: u64_at(bytes, 24),
        }
    }

    pub(super) fn encode(&self) -> [u8; REGION_LEN] {
        let mut bytes = [0; REGION_LEN];
        let fields = [self.guest, self.size, self.user, self.offset];
        for (chunk, field) in bytes.chunks_exact_mut(8).zip(fields) {
            chunk.copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }

    /// Is this address of the VMM in the region?
    pub(super) fn has_user(&self, user: u64) -> bool {
        user.wrapping_sub(self.user) < self.size
    }

    /// The guest address after the last one.
    pub(super) fn end(&self) -> u64 {
        self.guest.saturating_add(self.size)
    }

    fn check_numbers(&self) -> Result<(), MemoryRefused> {
        let fits = |start: u64| {
            start
                .checked_add(self.size)
                .is_some_and(|e| e <= i64::MAX as u64)
        };
        if self.size == 0 || !fits(self.guest) || !fits(self.user) || !fits(self.offset) {
            return Err(MemoryRefused::Wraps(self.guest));
        }
        Ok(())
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.guest < other.end() && other.guest < self.end()
    }
}

/// Who is at the other end of a session.
pub(super) struct Vmm {
    /// Its process; 0 if it cannot be told.
    pub(super) process: u32,
    /// Who may look at it.
    pub(super) broker: Arc<Broker>,
}

impl Vmm {
    /// Has the VMM mapped this file for itself alone? Then the file stays empty, whatever the guest
    /// writes, and nothing else would tell: QEMU sends it all the same with share=off.
    fn keeps_to_itself(&self, file: impl AsFd) -> bool {
        fstat(file).is_ok_and(|stat| {
            self.broker
                .is_private(self.process, stat.st_dev, stat.st_ino)
        })
    }
}

/// Judges a region that `vmm` wants to add to `table`.
pub(super) fn check_region(
    table: &[RegionInfo],
    region: &RegionInfo,
    file: impl AsFd,
    vmm: &Vmm,
) -> Result<(), MemoryRefused> {
    region.check_numbers()?;
    if table.len() >= MAX_REGIONS {
        return Err(MemoryRefused::TooMany);
    }
    if let Some(other) = table.iter().find(|other| region.overlaps(other)) {
        return Err(MemoryRefused::Overlap(other.guest, region.guest));
    }
    check_file(region, &file)?;
    if vmm.keeps_to_itself(&file) {
        return Err(MemoryRefused::Private(region.guest));
    }
    Ok(())
}

/// Judges a dirty log as memory that starts at 0.
pub(super) fn check_log(size: u64, offset: u64, file: impl AsFd) -> Result<(), MemoryRefused> {
    let log = RegionInfo {
        guest: 0,
        size,
        user: 0,
        offset,
    };
    log.check_numbers()?;
    check_file(&log, file)
}

fn check_file(region: &RegionInfo, file: impl AsFd) -> Result<(), MemoryRefused> {
    let at = region.guest;
    let unreadable = |_| MemoryRefused::File(at);
    let system = fstatfs(&file).map_err(unreadable)?;
    let page = match system.f_type as u64 & 0xffff_ffff {
        TMPFS_MAGIC => 4096,
        HUGETLBFS_MAGIC => system.f_bsize as u64,
        _ => return Err(MemoryRefused::FileSystem(at)),
    };
    if fcntl_getfl(&file).map_err(unreadable)? & OFlags::RWMODE != OFlags::RDWR {
        return Err(MemoryRefused::ReadOnly(at));
    }
    // The end of an ordinary file may lie within a page; huge pages are mapped whole or not at all.
    let whole = page == 4096 || region.size.is_multiple_of(page);
    if !region.offset.is_multiple_of(page) || !whole {
        return Err(MemoryRefused::Alignment(at));
    }
    // Best effort: where the VMM has not ruled out seals, its file cannot shrink any more. Where
    // it has, `sys` recovers when it does.
    let _ = fcntl_add_seals(&file, SealFlags::SHRINK);
    let len = fstat(&file).map_err(unreadable)?.st_size as u64;
    if region.offset + region.size > len {
        return Err(MemoryRefused::Short(at));
    }
    Ok(())
}

/// Is this an eventfd? Anything else could block whoever writes to it.
pub(super) fn is_eventfd(fd: impl AsFd) -> bool {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    fs::read_link(path).is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use vm_memory::{FileOffset, MmapRegion};

    use super::*;

    fn memfd(len: u64) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = memfd_create("test", flags).unwrap();
        ftruncate(&fd, len).unwrap();
        fd
    }

    fn region(guest: u64, size: u64, offset: u64) -> RegionInfo {
        RegionInfo {
            guest,
            size,
            user: guest.wrapping_add(0x7000_0000),
            offset,
        }
    }

    fn check(
        table: &[RegionInfo],
        region: RegionInfo,
        file: impl AsFd,
    ) -> Result<(), MemoryRefused> {
        let vmm = Vmm {
            process: std::process::id(),
            broker: Broker::in_process(),
        };
        check_region(table, &region, file, &vmm)
    }

    #[test]
    fn a_region_survives_encoding() {
        let r = region(0x1000, 0x2000, 0x3000);
        assert_eq!(RegionInfo::parse(&r.encode()), r);
        assert!(r.has_user(0x7000_1000) && r.has_user(0x7000_2fff));
        assert!(!r.has_user(0x7000_0fff) && !r.has_user(0x7000_3000));
    }

    #[test]
    fn only_shared_memory_of_the_right_size_is_accepted() {
        use MemoryRefused::{Alignment, FileSystem, Overlap, ReadOnly, Short, Wraps};
        let fd = memfd(0x4000);
        assert_eq!(check(&[], region(0, 0x4000, 0), &fd), Ok(()));
        assert_eq!(check(&[], region(0, 0x4000, 0x1000), &fd), Err(Short(0)));
        assert_eq!(check(&[], region(0, 0x4001, 0), &fd), Err(Short(0)));
        assert_eq!(check(&[], region(0, 0x1000, 0x10), &fd), Err(Alignment(0)));
        assert_eq!(check(&[], region(0, 0, 0), &fd), Err(Wraps(0)));
        assert_eq!(
            check(&[], region(u64::MAX - 5, 10, 0), &fd),
            Err(Wraps(u64::MAX - 5))
        );
        let table = [region(0x1000, 0x1000, 0)];
        assert_eq!(check(&table, region(0x2000, 0x1000, 0), &fd), Ok(()));
        assert_eq!(
            check(&table, region(0x1fff, 0x1000, 0), &fd),
            Err(Overlap(0x1000, 0x1fff))
        );
        let disk = File::open("/proc/self/exe").unwrap();
        assert_eq!(check(&[], region(0, 0x1000, 0), &disk), Err(FileSystem(0)));
        let read_only = File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        assert_eq!(
            check(&[], region(0, 0x1000, 0), &read_only),
            Err(ReadOnly(0))
        );
    }

    #[test]
    fn memory_the_vmm_has_mapped_for_itself_is_told() {
        let map = |fd: &OwnedFd, flags| {
            let file = FileOffset::new(fd.try_clone().unwrap().into(), 0);
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            MmapRegion::<()>::build(Some(file), 0x4000, prot, flags).unwrap()
        };
        let (fd, other) = (memfd(0x4000), memfd(0x4000));
        let _other = map(&other, libc::MAP_PRIVATE);
        assert_eq!(
            check(&[], region(0, 0x4000, 0), &fd),
            Ok(()),
            "not mapped: who knows"
        );
        let _private = map(&fd, libc::MAP_PRIVATE);
        assert_eq!(
            check(&[], region(0, 0x4000, 0), &fd),
            Err(MemoryRefused::Private(0))
        );
        let _shared = map(&fd, libc::MAP_SHARED);
        assert_eq!(check(&[], region(0, 0x4000, 0), &fd), Ok(()));
    }

    #[test]
    fn an_accepted_file_cannot_shrink() {
        let fd = memfd(0x4000);
        check(&[], region(0, 0x4000, 0), &fd).unwrap();
        assert!(ftruncate(&fd, 0x1000).is_err());
    }

    #[test]
    fn eventfds_are_told_from_other_files() {
        assert!(is_eventfd(eventfd(0, EventfdFlags::CLOEXEC).unwrap()));
        assert!(!is_eventfd(memfd(1)));
        assert!(!is_eventfd(File::open("/dev/null").unwrap()));
    }
}
