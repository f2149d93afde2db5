//! Descriptors that came by their number through execve.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::FdFlags;

use super::raw::check;

/// Owns an inherited descriptor from now on, and closes it at the next execve.
///
/// For the start of a process only: each number is taken once, from a list that the predecessor
/// made of what it owned.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    set_flags(number, FdFlags::CLOEXEC)?;
    // SAFETY: open, as the call above has shown; owned by nobody else, as the text above says.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// fcntl(F_SETFD); EBADF where there is no such descriptor.
pub fn set_flags(number: RawFd, flags: FdFlags) -> io::Result<()> {
    // SAFETY: changes one flag of a descriptor.
    check(unsafe { libc::syscall(libc::SYS_fcntl, number, libc::F_SETFD, flags.bits()) })?;
    Ok(())
}

/// Standard input, output or error, by its number.
pub fn standard(number: RawFd) -> BorrowedFd<'static> {
    assert!((0..3).contains(&number));
    // SAFETY: the three are never closed, only replaced.
    unsafe { BorrowedFd::borrow_raw(number) }
}
