//! mount_setattr(2).

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Result;

use super::raw::check;

pub const MOUNT_ATTR_RDONLY: u64 = 0x1;
pub const MOUNT_ATTR_NOSUID: u64 = 0x2;
pub const MOUNT_ATTR_NODEV: u64 = 0x4;
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;
pub const MOUNT_ATTR_STRICTATIME: u64 = 0x20;

/// struct mount_attr.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct MountAttr {
    pub set: u64,
    pub clear: u64,
    /// MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE, or 0 for no change.
    pub propagation: u64,
    /// A user namespace's fd for an idmapped mount, with MOUNT_ATTR_IDMAP in `set`.
    pub userns_fd: u64,
}

/// Changes the mount that `fd` is in (or, with `recursive`, all below it too).
pub fn set_attributes(fd: BorrowedFd<'_>, recursive: bool, attr: MountAttr) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the structure is the kernel's and is read only; its size goes with it.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}
