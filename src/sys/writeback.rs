//! Writing to the disk that begins before anybody waits for it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::raw::check;

/// Has the kernel begin to write what the file has in memory only; does not wait, and promises
/// nothing (sync_file_range(2)).
pub fn start(file: impl AsFd) -> io::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: only numbers are handed over, and `file` keeps the descriptor open meanwhile.
    check(unsafe {
        libc::syscall(libc::SYS_sync_file_range, fd, 0_i64, 0_i64, libc::SYNC_FILE_RANGE_WRITE)
    })?;
    Ok(())
}
