//! Taking bytes out of a pipe so that a successor can see whether they left.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::shared_page::SharedPages;

/// Reads once: the first byte to `offset` of the shared page, the others to `rest`. The kernel
/// holds the pipe's lock over the whole read, so that a killed process has read all or nothing.
pub fn read_noted(
    pipe: BorrowedFd<'_>,
    page: &SharedPages,
    offset: usize,
    rest: &mut [u8],
) -> rustix::io::Result<usize> {
    let parts = [
        libc::iovec { iov_base: page.address(offset).cast(), iov_len: 1 },
        libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() },
    ];
    // SAFETY: the first part is a byte of the mapping, which `page` keeps and which is never accessed
    // as plain memory; the second is `rest`, borrowed for this call.
    let n = unsafe { libc::readv(pipe.as_raw_fd(), parts.as_ptr(), parts.len() as i32) };
    if n < 0 {
        let error = std::io::Error::last_os_error();
        return Err(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO));
    }
    Ok(n as usize)
}
