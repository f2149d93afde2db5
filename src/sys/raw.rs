//! A system call by number, for those that the libraries do not have.
//!
//! libc::syscall takes no lock and touches errno only, so that it may be used after a clone.

use rustix::io::{Errno, Result};

/// The calling thread's errno as an error.
pub(super) fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Turns libc::syscall's result into one of ours.
pub(super) fn check(result: libc::c_long) -> Result<usize> {
    if result == -1 { Err(last_error()) } else { Ok(result as usize) }
}
