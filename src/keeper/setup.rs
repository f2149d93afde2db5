//! What the keeper makes of itself before it serves: away from whoever started it, into its own
//! nearly empty mount namespace.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};

use crate::sys::clone::{self, CLONE_NEWNS};
use crate::sys::prctl;

/// Where a child attaches its root before it pivots into it.
pub const ATTACH_DIRECTORY: &CStr = c"/root";
/// A null device that no container can have tampered with.
pub const NULL_DEVICE: &CStr = c"/null";

/// Once, at the start: session, subreaper, limits, mount namespace.
pub fn isolate(cgroup_procs: &[OwnedFd]) -> io::Result<()> {
    let _ = rustix::process::setsid();
    for procs in cgroup_procs {
        rustix::io::write(procs, b"0")?;
    }
    prctl::child_subreaper()?;
    raise_open_files();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    enter_own_mounts()
}

/// At the start and after every execve, which resets it.
pub fn harden() -> io::Result<()> {
    prctl::not_dumpable()?;
    stop_ignoring_signals()
}

/// Whoever started us may have had signals ignored, which execve and clone3's CLEAR_SIGHAND leave so.
/// SIGPIPE stays: it is Rust's, and each child resets it.
fn stop_ignoring_signals() -> io::Result<()> {
    for signal in (1..=64).filter(|signal| *signal != libc::SIGPIPE) {
        if prctl::is_ignored(signal) {
            prctl::default_signal(signal)?;
        }
    }
    Ok(())
}

/// A descriptor of a procfs that shows the keeper's PID namespace and is mounted nowhere.
pub fn private_proc() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// A node's containers take some ten descriptors each.
fn raise_open_files() {
    const WANTED: u64 = 1 << 20;
    let Ok((_, hard)) = prctl::limit(libc::RLIMIT_NOFILE) else { return };
    if prctl::set_limit(libc::RLIMIT_NOFILE, WANTED.max(hard), WANTED.max(hard)).is_err() {
        // Without CAP_SYS_RESOURCE the hard limit stays as it is.
        let _ = prctl::set_limit(libc::RLIMIT_NOFILE, hard, hard);
    }
}

/// A namespace with one small tmpfs: CLONE_NEWNS copies all mounts there are.
fn enter_own_mounts() -> io::Result<()> {
    clone::unshare(CLONE_NEWNS)?;
    rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, c"mode", c"0700")?;
    rustix::mount::fsconfig_set_string(&context, c"nr_inodes", c"16")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    rustix::fs::mkdirat(&root, c"root", Mode::from_raw_mode(0o700))?;
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(&root, c"null", FileType::CharacterDevice, Mode::from_raw_mode(0o666), null)?;
    rustix::fs::chmodat(&root, c"null", Mode::from_raw_mode(0o666), rustix::fs::AtFlags::empty())?;
    rustix::mount::move_mount(&root, c"", CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::fchdir(&root)?;
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")?;
    // A container that looks at the null device sees a mount of this root: nobody writes here.
    let attributes =
        crate::sys::mount::MountAttr { set: crate::sys::mount::MOUNT_ATTR_RDONLY, ..Default::default() };
    crate::sys::mount::set_attributes(root.as_fd(), false, attributes)?;
    Ok(())
}

/// Puts the null device of our own root on descriptors that were the starter's.
pub fn forget_standard_input() -> io::Result<()> {
    let null = rustix::fs::open(NULL_DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    clone::dup_to(null.as_fd(), 0)?;
    clone::dup_to(null.as_fd(), 1)?;
    Ok(())
}
