//! unshare(2) for threads.

use std::os::fd::BorrowedFd;

use rustix::thread::UnshareFlags;

/// Which namespaces the calling thread gets anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unshare {
    pub net: bool,
    pub ipc: bool,
    pub uts: bool,
}

/// Moves the calling thread into new namespaces; the other threads of the process stay.
///
/// Call it on a thread that ends afterwards, never on a pool's.
pub fn unshare(new: Unshare) -> rustix::io::Result<()> {
    let mut flags = UnshareFlags::empty();
    flags.set(UnshareFlags::NEWNET, new.net);
    flags.set(UnshareFlags::NEWIPC, new.ipc);
    flags.set(UnshareFlags::NEWUTS, new.uts);
    // SAFETY: `flags` can hold the three bits above only, never CLONE_FILES, so every thread goes
    // on sharing one file descriptor table and an OwnedFd stays valid on whichever it is dropped.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Enters the mount namespace that `namespace` is.
///
/// Call it on a thread that ends afterwards: its root and working directory are its own from now on
/// (setns(2) demands it), and those of the namespace.
pub fn enter_mounts(namespace: BorrowedFd<'_>) -> rustix::io::Result<()> {
    // SAFETY: CLONE_FS alone is unshared, so the file descriptor table stays shared by every thread
    // and an OwnedFd stays valid on whichever it is dropped.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    rustix::thread::move_into_link_name_space(namespace, Some(rustix::thread::LinkNameSpaceType::Mount))
}

/// Gives the calling thread a mount namespace of its own, a copy of the one that it is in; its root
/// and working directory become its own too.
///
/// Call it on a thread that ends afterwards: the namespace ends with it, unless an fd holds it.
pub fn unshare_mounts() -> rustix::io::Result<()> {
    // SAFETY: CLONE_NEWNS and CLONE_FS alone are unshared, so the file descriptor table stays shared
    // by every thread and an OwnedFd stays valid on whichever it is dropped.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }
}
