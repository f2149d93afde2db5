//! Descriptors that tokio waits on.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers `fd` with the runtime that the caller runs in. An error if it cannot be polled.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: AsyncFd demands that the number stays the same open description until it is dropped;
    // it owns the OwnedFd, which never changes its number and closes it only after that.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
