//! What a child tells its holders without a system call: a filter cannot forbid a store.
//!
//! Two pages that client, keeper and child share from the clone to the execve, in a memfd of the
//! client's, so that they outlive the keeper.
//!
//! ```text
//!    0  failure: set u32, stage u32, step u32, errno i32
//! 4096  the final process's ID on the host, stored by the kernel before that process runs
//! ```
//!
//! The second page is kept out of that final process, which is the only one that others in its PID
//! namespace can see: they can make it lie about its failure, but not about its ID.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::MemfdFlags;

use super::note::{read_failure, write_failure};
use super::plan::Failure;
use crate::sys::shared_page::{PAGE, SharedPages};

const PAGES: usize = 2;

#[derive(Debug)]
pub struct Report(SharedPages);

impl Report {
    /// A fresh one's memory.
    pub fn create() -> io::Result<OwnedFd> {
        let fd = rustix::fs::memfd_create("podwright-report", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(fd.as_fd(), (PAGES * PAGE) as u64)?;
        Ok(fd)
    }

    pub fn map(fd: BorrowedFd<'_>) -> io::Result<Self> {
        SharedPages::map(fd, PAGES).map(Self)
    }

    pub fn failure(&self) -> Option<Failure> {
        read_failure(&self.0, 0)
    }

    pub fn set_failure(&self, failure: Failure) {
        write_failure(&self.0, 0, failure);
    }

    /// The process that a helper made in the PID namespace, if it has.
    pub fn final_pid(&self) -> Option<i32> {
        Some(self.pid_word().load(Ordering::Acquire) as i32).filter(|pid| *pid > 0)
    }

    pub fn pid_word(&self) -> &AtomicU32 {
        self.0.u32(PAGE)
    }

    /// For the keeper, once the child whose report it is has been cloned: others have no business in
    /// there.
    pub fn hide_from_children(&self) -> rustix::io::Result<()> {
        self.0.dont_fork(0)
    }

    pub fn hide_pid_from_children(&self) -> rustix::io::Result<()> {
        self.0.dont_fork(1)
    }
}
