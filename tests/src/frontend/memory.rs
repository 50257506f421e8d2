//! Guest memory: one memfd per region, mapped here as a VMM maps it.
//!
//! Everything in it is named by guest physical address (GPA). The address a
//! back-end is told for SET_VRING_ADDR is the VMM's own (the "user address");
//! ours is the GPA plus [`USER_OFFSET`], so that mixing the two up is noticed.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// Distance between a guest physical address and the VMM's address of the same byte.
pub const USER_OFFSET: u64 = 0x7f12_0000_0000;

/// Pages of the dirty log (vhost-user specification, "Migration").
pub const LOG_PAGE: u64 = 4096;

/// One contiguous piece of guest memory, as wanted.
#[derive(Debug, Clone, Copy)]
pub struct RegionSpec {
    /// First guest physical address.
    pub gpa: u64,
    /// Length in bytes, a multiple of the page size.
    pub size: u64,
    /// Where the region starts in its file: VMMs put several regions in one file.
    pub file_offset: u64,
}

impl RegionSpec {
    /// A region at `gpa` of `size` bytes at the start of its file.
    pub fn new(gpa: u64, size: u64) -> Self {
        RegionSpec {
            gpa,
            size,
            file_offset: 0,
        }
    }
}

struct Region {
    spec: RegionSpec,
    file: File,
    map: MmapRegion<()>,
    next_free: AtomicU64,
}

/// The memory of one guest.
pub struct GuestRam {
    regions: Vec<Region>,
}

impl GuestRam {
    /// Memory in memfds, as VMMs with `share=on` have it.
    pub fn new(specs: &[RegionSpec]) -> Result<Self> {
        Self::with_files(specs, |spec| {
            let file = File::from(new_memfd("guest")?);
            file.set_len(spec.file_offset + spec.size)?;
            Ok(file)
        })
    }

    /// Memory that can be cut short while a back-end has it.
    pub fn unsealable(specs: &[RegionSpec]) -> Result<Self> {
        Self::with_files(specs, |spec| {
            let file = File::from(new_unsealable_memfd("guest")?);
            file.set_len(spec.file_offset + spec.size)?;
            Ok(file)
        })
    }

    /// Memory in files of the caller's choice; `open` gives a file long enough for the region.
    pub fn with_files(
        specs: &[RegionSpec],
        open: impl Fn(&RegionSpec) -> Result<File>,
    ) -> Result<Self> {
        let regions = specs
            .iter()
            .map(|spec| {
                let file = open(spec)?;
                let at = FileOffset::new(file.try_clone()?, spec.file_offset);
                let map = MmapRegion::from_file(at, spec.size as usize).context("mapping")?;
                Ok(Region {
                    spec: *spec,
                    file,
                    map,
                    next_free: AtomicU64::new(spec.gpa),
                })
            })
            .collect::<Result<_>>()?;
        Ok(GuestRam { regions })
    }

    /// The number of regions.
    pub fn regions(&self) -> usize {
        self.regions.len()
    }

    /// What SET_MEM_TABLE or ADD_MEM_REG say of region `index`.
    pub fn region_info(&self, index: usize) -> VhostUserMemoryRegionInfo {
        let region = &self.regions[index];
        VhostUserMemoryRegionInfo {
            guest_phys_addr: region.spec.gpa,
            memory_size: region.spec.size,
            userspace_addr: region.spec.gpa + USER_OFFSET,
            mmap_offset: region.spec.file_offset,
            mmap_handle: region.file.as_raw_fd(),
        }
    }

    /// One past the last guest physical address.
    pub fn end(&self) -> u64 {
        let ends = self.regions.iter().map(|r| r.spec.gpa + r.spec.size);
        ends.max().unwrap_or(0)
    }

    /// Takes `size` bytes aligned to `align` in `region`, zero at first; nothing is ever given back.
    pub fn alloc(&self, region: usize, size: u64, align: u64) -> u64 {
        let region = &self.regions[region];
        let mut taken = 0;
        region
            .next_free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                taken = next.next_multiple_of(align);
                Some(taken + size)
            })
            .expect("the closure always gives a value");
        let end = region.spec.gpa + region.spec.size;
        assert!(taken + size <= end, "the test's guest memory is full");
        taken
    }

    /// Cuts the file of `region` to `len` bytes. What lies beyond must not be touched afterwards,
    /// here or in the back-end.
    pub fn truncate(&self, region: usize, len: u64) -> Result<()> {
        Ok(self.regions[region].file.set_len(len)?)
    }

    /// Every byte of a region as it is now: to compare before and after.
    pub fn snapshot(&self, region: usize) -> Vec<u8> {
        let region = &self.regions[region];
        let mut bytes = vec![0; region.spec.size as usize];
        self.read(region.spec.gpa, &mut bytes);
        bytes
    }

    /// Copies from guest memory.
    pub fn read(&self, gpa: u64, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            let slice = self.slice(gpa + done as u64, into.len() - done);
            let len = slice.len();
            slice
                .read_slice(&mut into[done..done + len], 0)
                .expect("inside the region");
            done += len;
        }
    }

    /// Copies into guest memory.
    pub fn write(&self, gpa: u64, from: &[u8]) {
        let mut done = 0;
        while done < from.len() {
            let slice = self.slice(gpa + done as u64, from.len() - done);
            let len = slice.len();
            slice
                .write_slice(&from[done..done + len], 0)
                .expect("inside the region");
            done += len;
        }
    }

    /// Reads 16 bits, atomic, acquire.
    pub fn load16(&self, gpa: u64) -> u16 {
        self.slice(gpa, 2)
            .load(0, Ordering::Acquire)
            .expect("aligned and inside")
    }

    /// Writes 16 bits, atomic, release.
    pub fn store16(&self, gpa: u64, value: u16) {
        self.slice(gpa, 2)
            .store(value, 0, Ordering::Release)
            .expect("aligned and inside");
    }

    /// Reads 32 bits, atomic, acquire.
    pub fn load32(&self, gpa: u64) -> u32 {
        self.slice(gpa, 4)
            .load(0, Ordering::Acquire)
            .expect("aligned and inside")
    }

    /// Writes 32 bits, atomic, release.
    pub fn store32(&self, gpa: u64, value: u32) {
        self.slice(gpa, 4)
            .store(value, 0, Ordering::Release)
            .expect("aligned and inside");
    }

    /// Writes 64 bits, atomic, release.
    pub fn store64(&self, gpa: u64, value: u64) {
        self.slice(gpa, 8)
            .store(value, 0, Ordering::Release)
            .expect("aligned and inside");
    }

    /// As much of `len` bytes at `gpa` as lies in one region.
    fn slice(&self, gpa: u64, len: usize) -> VolatileSlice<'_> {
        let region = self
            .regions
            .iter()
            .find(|r| gpa >= r.spec.gpa && gpa < r.spec.gpa + r.spec.size)
            .unwrap_or_else(|| panic!("the test touches {gpa:#x}, which is not guest memory"));
        let offset = (gpa - region.spec.gpa) as usize;
        let len = len.min(region.spec.size as usize - offset);
        region.map.get_slice(offset, len).expect("inside the map")
    }
}

/// A new, empty memfd that cannot be sealed, so that nothing keeps its owner from cutting it short.
pub fn new_unsealable_memfd(name: &str) -> Result<OwnedFd> {
    memfd_create(name, MemfdFlags::CLOEXEC).context("memfd_create")
}

/// A new, empty memfd.
pub fn new_memfd(name: &str) -> Result<OwnedFd> {
    memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).context("memfd_create")
}

/// A dirty log as VMMs share it: one bit per page, set by the back-end.
pub struct DirtyLog {
    file: File,
    map: MmapRegion<()>,
}

impl DirtyLog {
    /// A clear log for guest memory that ends at `end`.
    pub fn new(end: u64) -> Result<Self> {
        Self::on(new_memfd("log")?, end)
    }

    /// The same on a memfd that can be cut short.
    pub fn unsealable(end: u64) -> Result<Self> {
        Self::on(new_unsealable_memfd("log")?, end)
    }

    fn on(memfd: OwnedFd, end: u64) -> Result<Self> {
        let size = end.div_ceil(LOG_PAGE * 8).next_multiple_of(LOG_PAGE);
        let file = File::from(memfd);
        file.set_len(size)?;
        let map = MmapRegion::from_file(FileOffset::new(file.try_clone()?, 0), size as usize)?;
        Ok(DirtyLog { file, map })
    }

    /// The log's file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The log's length in bytes.
    pub fn size(&self) -> u64 {
        self.map.size() as u64
    }

    /// Whether the page of `gpa` is marked.
    pub fn is_dirty(&self, gpa: u64) -> bool {
        let page = gpa / LOG_PAGE;
        let byte: u8 = self
            .map
            .as_volatile_slice()
            .load((page / 8) as usize, Ordering::Acquire)
            .expect("the log covers all memory");
        byte >> (page % 8) & 1 == 1
    }

    /// Clears it, as a VMM does when it has seen which pages it has to send again.
    pub fn clear(&self) {
        let words = self.map.as_volatile_slice();
        for at in (0..self.map.size()).step_by(8) {
            // Most are clear: to look costs less than to write.
            if words.load::<u64>(at, Ordering::Relaxed).unwrap_or_default() != 0 {
                words
                    .store(0u64, at, Ordering::SeqCst)
                    .expect("the log is whole words");
            }
        }
    }

    /// The number of marked pages.
    pub fn dirty_pages(&self) -> u64 {
        let mut bytes = vec![0u8; self.map.size()];
        self.map
            .as_volatile_slice()
            .read_slice(&mut bytes, 0)
            .expect("whole log");
        bytes.iter().map(|b| u64::from(b.count_ones())).sum()
    }
}
