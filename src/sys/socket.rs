//! What the kernel knows of a TCP connection.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Result;

use super::raw::check;

/// Bytes that were written to the socket and that the peer has not acknowledged yet: SIOCOUTQ, tcp(7).
pub fn unsent(socket: BorrowedFd<'_>) -> Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int, to where there is one. (SIOCOUTQ is TIOCOUTQ.)
    check(unsafe { libc::syscall(libc::SYS_ioctl, socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or_default())
}
