//! What this kernel can do, found out once and by trying: distributions carry features back, so that
//! its version says little. What stands in where it cannot is `container::attached`.

use std::os::fd::AsFd;
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

/// The answer of a probe. Err: what the kernel said.
type Answer = std::result::Result<(), Errno>;

/// An overlay takes its layers one by one, by `lowerdir+` (Linux 6.8).
pub fn single_layers() -> Answer {
    static ANSWER: OnceLock<Answer> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "lowerdir+", "/")?;
        // Before overlay had a parser of its own any key was taken, and refused at the very end.
        match fsconfig_set_string(context.as_fd(), "podwright", "/") {
            Ok(()) => Err(Errno::INVAL),
            Err(_) => Ok(()),
        }
    })
}

/// open_tree clones a mount that is attached nowhere (Linux 6.15).
pub fn detached_clones() -> Answer {
    static ANSWER: OnceLock<Answer> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(context.as_fd())?;
        let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        open_tree(mount.as_fd(), "", flags).map(drop)
    })
}

/// A procfs can be made that shows a PID namespace other than its maker's, by `pidns` (Linux 6.17).
pub fn procfs_of_others() -> Answer {
    static ANSWER: OnceLock<Answer> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let own = rustix::fs::openat(CWD, "/proc/self/ns/pid", flags, Mode::empty())?;
        fsconfig_set_fd(context.as_fd(), "pidns", own.as_fd())
    })
}
