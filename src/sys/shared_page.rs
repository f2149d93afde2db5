//! Memory shared through a file: pages that outlive the process that writes them.
//!
//! Both holders of a container and its child before execve see the same bytes at the same time, so
//! a page is only ever touched through atomics and volatile copies, never through a reference to
//! plain memory.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::mm::{Advice, MapFlags, ProtFlags};

pub const PAGE: usize = 4096;

/// A shared, writable mapping of a file's first pages.
#[derive(Debug)]
pub struct SharedPages {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is plain memory that belongs to the process, not to a thread, and is accessed
// through atomics and volatile copies only.
unsafe impl Send for SharedPages {}
// SAFETY: as above; no method hands out a reference to non-atomic memory.
unsafe impl Sync for SharedPages {}

impl SharedPages {
    /// Maps `pages` pages from the start of `file`, which is extended to them where it is shorter.
    pub fn map(file: BorrowedFd<'_>, pages: usize) -> io::Result<Self> {
        let length = pages * PAGE;
        if (rustix::fs::fstat(file)?.st_size as u64) < length as u64 {
            rustix::fs::ftruncate(file, length as u64)?;
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel picks the address, so that nothing mapped is replaced.
        let address =
            unsafe { rustix::mm::mmap(ptr::null_mut(), length, protection, MapFlags::SHARED, file, 0)? };
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { address, length })
    }

    /// The word at `offset`, which must be a multiple of 4 inside the mapping.
    pub fn u32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.length);
        // SAFETY: aligned and inside the mapping, which lives as long as `self`; all access to it is
        // atomic or volatile.
        unsafe { AtomicU32::from_ptr(self.address.as_ptr().add(offset).cast()) }
    }

    /// The word at `offset`, which must be a multiple of 8 inside the mapping.
    pub fn u64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.length);
        // SAFETY: as for u32.
        unsafe { AtomicU64::from_ptr(self.address.as_ptr().add(offset).cast()) }
    }

    /// Copies out from `offset`.
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        assert!(offset <= self.length && to.len() <= self.length - offset);
        for (i, byte) in to.iter_mut().enumerate() {
            // SAFETY: inside the mapping by the assertion; volatile, since another process may write.
            *byte = unsafe { self.address.as_ptr().add(offset + i).read_volatile() };
        }
    }

    /// Copies in at `offset`.
    pub fn write(&self, offset: usize, from: &[u8]) {
        assert!(offset <= self.length && from.len() <= self.length - offset);
        for (i, byte) in from.iter().enumerate() {
            // SAFETY: inside the mapping by the assertion; volatile, since another process may read.
            unsafe { self.address.as_ptr().add(offset + i).write_volatile(*byte) };
        }
    }

    /// Where `offset` lies, for a system call that reads or writes there.
    pub fn address(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.length);
        // SAFETY: inside the mapping by the assertion.
        unsafe { self.address.as_ptr().add(offset) }
    }

    /// Keeps the pages from `page` on out of children that are cloned from now on.
    pub fn dont_fork(&self, page: usize) -> rustix::io::Result<()> {
        let length = self.length - page * PAGE;
        // SAFETY: the range is ours; the advice changes nothing in this process.
        unsafe { rustix::mm::madvise(self.address(page * PAGE).cast(), length, Advice::LinuxDontFork) }
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and no reference outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.length) };
    }
}
