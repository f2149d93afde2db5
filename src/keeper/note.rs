//! The note of a container: one page in a file of the state directory, mapped by whoever keeps it.
//!
//! It outlives keeper and daemon together, and says what would be lost with them: when the
//! container started, how it ended, and how far its log was copied.
//!
//! ```text
//!    0  magic u32, version u32
//!    8  failure: set u32, stage u32, step u32, errno i32
//!   24  started_at u64 (ns since the epoch; 0: not started)
//!   32  exit: set u32, kind u32, value u32, log is whole u32, finished_at u64
//!   64  the errno that keeps the log from being written, u32 (0: nothing does)
//! 1024  the log copier's area for stdout (512 bytes; laid out by log_note.rs)
//! 1536  its area for stderr
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::plan::{Failure, Stage};
use super::protocol::{Exit, Status};
use crate::sys::shared_page::SharedPages;

const MAGIC: u32 = u32::from_le_bytes(*b"pwno");
const VERSION: u32 = 1;

const FAILURE: usize = 8;
const STARTED_AT: usize = 24;
const EXIT: usize = 32;
const STALLED: usize = 64;

/// Where the log copier's areas are, by [`Stream`].
pub const STREAM_AREA: [usize; 2] = [1024, 1536];
pub const STREAM_AREA_LENGTH: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    Stdout = 0,
    Stderr = 1,
}

/// The errno that keeps a container's log from being written, by its note's path and without mapping
/// it. A few microseconds; None also where there is no note.
pub fn stalled_in(path: &Path) -> Option<i32> {
    let mut errno = [0; 4];
    std::fs::File::open(path).ok()?.read_exact_at(&mut errno, STALLED as u64).ok()?;
    Some(i32::from_ne_bytes(errno)).filter(|errno| *errno != 0)
}

/// Whether all that a process had written when it ended is in its log, by its note's path and without
/// mapping it. None where there is no note.
pub fn is_whole_in(path: &Path) -> Option<bool> {
    let mut whole = [0; 4];
    std::fs::File::open(path).ok()?.read_exact_at(&mut whole, (EXIT + 12) as u64).ok()?;
    Some(u32::from_ne_bytes(whole) == 1)
}

/// A container's note, mapped.
#[derive(Debug)]
pub struct NotePage {
    pages: SharedPages,
    file: OwnedFd,
}

impl NotePage {
    /// Maps the note in `file`; an empty file becomes an empty note. InvalidData: it is none of ours.
    pub fn map(file: BorrowedFd<'_>) -> io::Result<Self> {
        let pages = SharedPages::map(file, 1)?;
        // In sight of another container a child could be made to write there.
        pages.dont_fork(0)?;
        match (pages.u32(0).load(Acquire), pages.u32(4).load(Relaxed)) {
            (0, _) => {
                pages.u32(4).store(VERSION, Relaxed);
                pages.u32(0).store(MAGIC, Release);
            }
            (MAGIC, VERSION) => {}
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "not a container's note")),
        }
        Ok(Self { pages, file: file.try_clone_to_owned()? })
    }

    /// The note's file; behind the page it has what does not fit into it (`log_note`).
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub fn failure(&self) -> Option<Failure> {
        read_failure(&self.pages, FAILURE)
    }

    pub fn set_failure(&self, failure: Failure) {
        write_failure(&self.pages, FAILURE, failure);
    }

    /// Nanoseconds since the epoch; None: not started.
    pub fn started_at(&self) -> Option<i64> {
        match self.pages.u64(STARTED_AT).load(Acquire) {
            0 => None,
            at => Some(at as i64),
        }
    }

    pub fn set_started_at(&self, at: i64) {
        self.pages.u64(STARTED_AT).store(at as u64, Release);
    }

    pub fn exit(&self) -> Option<Exit> {
        if self.pages.u32(EXIT).load(Acquire) == 0 {
            return None;
        }
        let value = self.pages.u32(EXIT + 8).load(Relaxed) as u8;
        let status = match self.pages.u32(EXIT + 4).load(Relaxed) {
            1 => Status::Code(value),
            2 => Status::Signal(value),
            _ => Status::Unknown,
        };
        Some(Exit { status, finished_at: self.pages.u64(EXIT + 16).load(Relaxed) as i64 })
    }

    pub fn set_exit(&self, exit: Exit) {
        let (kind, value) = match exit.status {
            Status::Code(code) => (1, code),
            Status::Signal(signal) => (2, signal),
            Status::Unknown => (3, 0),
        };
        self.pages.u32(EXIT + 4).store(kind, Relaxed);
        self.pages.u32(EXIT + 8).store(u32::from(value), Relaxed);
        self.pages.u64(EXIT + 16).store(exit.finished_at as u64, Relaxed);
        self.pages.u32(EXIT).store(1, Release);
    }

    /// Whether all that the process had written when it ended is in its log.
    pub fn log_is_whole(&self) -> bool {
        self.pages.u32(EXIT + 12).load(Acquire) == 1
    }

    pub fn set_log_whole(&self) {
        self.pages.u32(EXIT + 12).store(1, Release);
    }

    /// The errno with which the log cannot be written, as its copier has it: [`stalled_in`] tells.
    pub fn set_stalled(&self, errno: Option<i32>) {
        self.pages.u32(STALLED).store(errno.unwrap_or_default() as u32, Relaxed);
    }

    /// A word of a stream's area; `offset` counts from the area's start.
    pub fn stream_u32(&self, stream: Stream, offset: usize) -> &AtomicU32 {
        assert!(offset + 4 <= STREAM_AREA_LENGTH);
        self.pages.u32(STREAM_AREA[stream as usize] + offset)
    }

    /// As [`Self::stream_u32`].
    pub fn stream_u64(&self, stream: Stream, offset: usize) -> &AtomicU64 {
        assert!(offset + 8 <= STREAM_AREA_LENGTH);
        self.pages.u64(STREAM_AREA[stream as usize] + offset)
    }

    /// The whole page, for the log copier's own accessors.
    pub fn pages(&self) -> &SharedPages {
        &self.pages
    }
}

/// A failure as {set, stage, step, errno}; also the layout of a spawn's report page.
pub(super) fn read_failure(pages: &SharedPages, at: usize) -> Option<Failure> {
    if pages.u32(at).load(Acquire) == 0 {
        return None;
    }
    let step = pages.u32(at + 8).load(Relaxed);
    let stage = match pages.u32(at + 4).load(Relaxed) {
        1 => Stage::Clone,
        2 => Stage::CloseFds,
        3 => Stage::Cgroup,
        4 => Stage::Join,
        5 => Stage::Stdio,
        6 => Stage::Step(step),
        7 => Stage::Enter,
        8 => Stage::Seccomp,
        _ => Stage::Exec,
    };
    Some(Failure { stage, errno: pages.u32(at + 12).load(Relaxed) as i32 })
}

/// Stores only: what the child does after a failed execve needs no system call.
pub(super) fn write_failure(pages: &SharedPages, at: usize, failure: Failure) {
    let (stage, step) = match failure.stage {
        Stage::Clone => (1, 0),
        Stage::CloseFds => (2, 0),
        Stage::Cgroup => (3, 0),
        Stage::Join => (4, 0),
        Stage::Stdio => (5, 0),
        Stage::Step(i) => (6, i),
        Stage::Enter => (7, 0),
        Stage::Seccomp => (8, 0),
        Stage::Exec => (9, 0),
    };
    pages.u32(at + 4).store(stage, Relaxed);
    pages.u32(at + 8).store(step, Relaxed);
    pages.u32(at + 12).store(failure.errno as u32, Relaxed);
    pages.u32(at).store(1, Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_outlives_its_mapping() {
        let file = tempfile::tempfile().unwrap();
        let failure = Failure { stage: Stage::Step(7), errno: 19 };
        let exit = Exit { status: Status::Signal(9), finished_at: 1_234_567_890_123 };
        {
            let note = NotePage::map(file.as_fd()).unwrap();
            assert_eq!((note.failure(), note.started_at(), note.exit()), (None, None, None));
            assert!(!note.log_is_whole());
            note.set_failure(failure);
            note.set_started_at(5);
            note.set_exit(exit);
            note.set_log_whole();
        }
        let note = NotePage::map(file.as_fd()).unwrap();
        assert_eq!((note.failure(), note.started_at(), note.exit()), (Some(failure), Some(5), Some(exit)));
        assert!(note.log_is_whole());
    }

    #[test]
    fn what_is_no_note_is_refused() {
        let file = tempfile::tempfile().unwrap();
        rustix::io::write(&file, b"something else").unwrap();
        assert_eq!(NotePage::map(file.as_fd()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
