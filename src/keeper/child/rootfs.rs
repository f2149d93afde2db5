//! The container's file system, put together from detached mounts in a mount namespace of its own.
//!
//! Mounts and what they are attached to are descriptors throughout: between looking at a path and
//! using it nothing can be put in its place.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dev, FileType, Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::path::{self, Kind};
use crate::keeper::plan::DeviceKind;
use crate::keeper::prepare::Device;
use crate::keeper::setup::{ATTACH_DIRECTORY, NULL_DEVICE};
use crate::sys::mount::{self, MountAttr};
use crate::sys::prctl;

const SYSFS_MAGIC: i64 = 0x6265_6572;
const MS_REC: u64 = libc::MS_REC;
const MS_PRIVATE: u64 = libc::MS_PRIVATE;
/// What may be mounted inside procfs: files that programs such as lxcfs stand in for.
const PROC_FILES: [&[u8]; 10] = [
    b"/proc/cpuinfo",
    b"/proc/diskstats",
    b"/proc/loadavg",
    b"/proc/meminfo",
    b"/proc/net/dev",
    b"/proc/slabinfo",
    b"/proc/stat",
    b"/proc/swaps",
    b"/proc/sys/kernel/ns_last_pid",
    b"/proc/uptime",
];

/// Where paths are resolved, and how far its making is.
#[derive(Default)]
pub struct Root<'a> {
    /// The mount that becomes the root. None: the process stays in the root it is in.
    mount: Option<BorrowedFd<'a>>,
    /// The root it is in, once it was needed.
    current: Option<OwnedFd>,
    pivoted: bool,
    /// A tmpfs that is mounted over some directory already, to be cloned for the next.
    empty: Option<OwnedFd>,
    /// The PID namespace that a procfs is to show, where it is not that of this process.
    pub pid_namespace: Option<OwnedFd>,
}

impl<'a> Root<'a> {
    fn fd(&mut self) -> Result<BorrowedFd<'_>> {
        if let Some(mount) = self.mount {
            return Ok(mount);
        }
        if self.current.is_none() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            self.current = Some(rustix::fs::open(c"/", flags, Mode::empty())?);
        }
        self.current.as_ref().map(|fd| fd.as_fd()).ok_or(Errno::BADF)
    }

    pub fn attach_root(&mut self, mount: BorrowedFd<'a>, propagation: u64) -> Result<()> {
        // What the keeper's namespace and ours still share must not see what we mount.
        rustix::mount::mount_change(c"/", propagation_flags(MS_PRIVATE | MS_REC))?;
        let target = rustix::fs::open(ATTACH_DIRECTORY, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        move_to(mount, target.as_fd())?;
        self.mount = Some(mount);
        if propagation == 0 { Ok(()) } else { self.propagate(propagation) }
    }

    pub fn attach(&mut self, mount: BorrowedFd<'_>, target: &CStr, directory: bool) -> Result<()> {
        let kind = if directory { Kind::Directory } else { Kind::File };
        let at = path::make(self.fd()?, target, kind)?;
        check_target(target, &at, is_on(mount, rustix::fs::PROC_SUPER_MAGIC)?)?;
        move_to(mount, at.as_fd())
    }

    pub fn mount(
        &mut self,
        fstype: &CStr,
        target: &CStr,
        options: &[(CString, CString)],
        attributes: u64,
    ) -> Result<()> {
        let context = rustix::mount::fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in options {
            if value.is_empty() {
                rustix::mount::fsconfig_set_flag(&context, key.as_c_str())?;
            } else {
                rustix::mount::fsconfig_set_string(&context, key.as_c_str(), value.as_c_str())?;
            }
        }
        // A helper is outside the namespace, and a procfs shows that of whoever mounts it. Kernels
        // before 6.17 cannot be told another one: EINVAL, rather than the host's processes.
        if let (Some(namespace), true) = (&self.pid_namespace, fstype == c"proc") {
            rustix::mount::fsconfig_set_fd(&context, c"pidns", namespace)?;
        }
        rustix::mount::fsconfig_create(&context)?;
        let attributes = MountAttrFlags::from_bits_retain(attributes as _);
        let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let at = path::make(self.fd()?, target, Kind::Directory)?;
        check_target(target, &at, fstype == c"proc")?;
        move_to(mount.as_fd(), at.as_fd())
    }

    pub fn bind(&mut self, source: &CStr, target: &CStr, recursive: bool) -> Result<()> {
        let root = self.fd()?;
        let source = path::resolve(root, source, OFlags::empty())?;
        let kind = if is_directory(&source)? { Kind::Directory } else { Kind::File };
        let clone = clone_mount(source.as_fd(), recursive)?;
        let at = path::make(root, target, kind)?;
        check_target(target, &at, false)?;
        move_to(clone.as_fd(), at.as_fd())
    }

    pub fn device(&mut self, device: &Device) -> Result<()> {
        let (directory, name) = path::parent(self.fd()?, &device.path)?;
        let kind = match device.kind {
            DeviceKind::Character => FileType::CharacterDevice,
            DeviceKind::Block => FileType::BlockDevice,
            DeviceKind::Fifo => FileType::Fifo,
        };
        let number: Dev = match device.kind {
            DeviceKind::Fifo => 0,
            _ => rustix::fs::makedev(device.major, device.minor),
        };
        let mode = Mode::from_raw_mode(device.mode & 0o7777);
        match with_mask(0, || rustix::fs::mknodat(&directory, name, kind, mode, number)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != number {
                    return Err(Errno::EXIST);
                }
            }
            Err(e) => return Err(e),
        }
        let owner = (rustix::fs::Uid::from_raw(device.uid), rustix::fs::Gid::from_raw(device.gid));
        rustix::fs::chownat(&directory, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)
    }

    pub fn symlink(&mut self, path: &CStr, target: &CStr) -> Result<()> {
        let (directory, name) = path::parent(self.fd()?, path)?;
        match rustix::fs::symlinkat(target, &directory, name) {
            // The image may have one of its own.
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(e),
        }
    }

    pub fn directory(&mut self, path: &CStr, mode: u32) -> Result<()> {
        let root = self.fd()?;
        match path::resolve(root, path, OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {}
            other => return other.map(drop),
        }
        let (parent, name) = path::parent(root, path)?;
        match with_mask(0, || rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(mode & 0o7777))) {
            // A link to a directory that is missing.
            Err(Errno::EXIST) => path::make(root, path, Kind::Directory).map(drop),
            other => other,
        }
    }

    pub fn mask(&mut self, path: &CStr) -> Result<()> {
        let Some(target) = self.existing(path)? else { return Ok(()) };
        if !is_directory(&target)? {
            let null = self.null_device()?;
            return move_to(clone_mount(null.as_fd(), false)?.as_fd(), target.as_fd());
        }
        if let Some(empty) = &self.empty {
            return move_to(clone_mount(empty.as_fd(), false)?.as_fd(), target.as_fd());
        }
        let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&context, c"nr_inodes", c"1")?;
        rustix::mount::fsconfig_set_string(&context, c"mode", c"0755")?;
        rustix::mount::fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let empty = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        move_to(empty.as_fd(), target.as_fd())?;
        self.empty = Some(empty);
        Ok(())
    }

    pub fn read_only(&mut self, path: &CStr) -> Result<()> {
        let Some(target) = self.existing(path)? else { return Ok(()) };
        let clone = clone_mount(target.as_fd(), true)?;
        let attr = MountAttr { set: mount::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        mount::set_attributes(clone.as_fd(), true, attr)?;
        move_to(clone.as_fd(), target.as_fd())
    }

    pub fn pivot(&mut self) -> Result<()> {
        let root = self.mount.ok_or(Errno::BADF)?;
        rustix::process::fchdir(root)?;
        // The old root goes on top of the new one, from where it is taken away: no directory for it
        // is needed in an image that may be read-only.
        rustix::process::pivot_root(c".", c".")?;
        rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
        rustix::process::chdir(c"/")?;
        self.pivoted = true;
        Ok(())
    }

    pub fn make_read_only(&mut self) -> Result<()> {
        let attr = MountAttr { set: mount::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        mount::set_attributes(self.fd()?, false, attr)
    }

    pub fn propagate(&mut self, flags: u64) -> Result<()> {
        let attr = MountAttr { propagation: flags & !MS_REC, ..MountAttr::default() };
        mount::set_attributes(self.fd()?, flags & MS_REC != 0, attr)
    }

    pub fn enter_directory(&mut self, path: &CStr, create: bool) -> Result<()> {
        let root = self.fd()?;
        let directory = if create {
            path::make(root, path, Kind::Directory)?
        } else {
            path::resolve(root, path, OFlags::DIRECTORY)?
        };
        rustix::process::fchdir(&directory)?;
        // A directory outside of the root has no path: CVE-2024-21626.
        let mut buffer = [0u8; libc::PATH_MAX as usize];
        match prctl::current_directory(&mut buffer)?.first() {
            Some(b'/') => Ok(()),
            _ => Err(Errno::NOENT),
        }
    }

    /// What is to be covered. None: there is no such thing. XDEV: below /proc or /sys there is
    /// something else than procfs or sysfs, and covering it would cover the wrong thing.
    fn existing(&mut self, path: &CStr) -> Result<Option<OwnedFd>> {
        let target = match path::resolve(self.fd()?, path, OFlags::empty()) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(e) => return Err(e),
        };
        let magic = match path.to_bytes() {
            p if p.starts_with(b"/proc/") => rustix::fs::PROC_SUPER_MAGIC,
            p if p.starts_with(b"/sys/") => SYSFS_MAGIC,
            _ => return Ok(Some(target)),
        };
        // A path that was masked before (one of its parents was, say) is a tmpfs or a device now.
        if is_on(target.as_fd(), magic)? || self.covers(&target)? {
            return Ok(Some(target));
        }
        Err(Errno::XDEV)
    }

    /// Whether `target` is our own cover of a mask.
    fn covers(&self, target: &OwnedFd) -> Result<bool> {
        let stat = rustix::fs::fstat(target)?;
        let empty = match &self.empty {
            Some(empty) => rustix::fs::fstat(empty)?.st_dev == stat.st_dev,
            None => false,
        };
        Ok(empty || is_null(&stat))
    }

    /// Before the pivot the keeper's own; then the container's, looked at closely: CVE-2025-31133.
    fn null_device(&mut self) -> Result<OwnedFd> {
        let null = if self.mount.is_some() && !self.pivoted {
            rustix::fs::open(NULL_DEVICE, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?
        } else {
            path::resolve(self.fd()?, c"/dev/null", OFlags::NOFOLLOW)?
        };
        if is_null(&rustix::fs::fstat(&null)?) { Ok(null) } else { Err(Errno::NODEV) }
    }
}

fn is_null(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3)
}

fn is_directory(fd: &OwnedFd) -> Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode).is_dir())
}

fn is_on(fd: BorrowedFd<'_>, magic: i64) -> Result<bool> {
    Ok(rustix::fs::fstatfs(fd)?.f_type as i64 == magic)
}

/// Refuses to mount over procfs, however a path got there: CVE-2019-19921. A procfs may go on
/// `/proc` itself.
fn check_target(path: &CStr, target: &OwnedFd, is_proc: bool) -> Result<()> {
    let on_proc = is_on(target.as_fd(), rustix::fs::PROC_SUPER_MAGIC)?;
    let path = path.to_bytes();
    if !on_proc || (is_proc && path == b"/proc") || PROC_FILES.contains(&path) {
        return Ok(());
    }
    Err(Errno::PERM)
}

fn clone_mount(fd: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(fd, c"", flags)
}

fn move_to(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags)
}

fn propagation_flags(bits: u64) -> rustix::mount::MountPropagationFlags {
    rustix::mount::MountPropagationFlags::from_bits_retain(bits as _)
}

/// Runs with another umask: a mode that the kernel takes as it is needs no chmod by path.
fn with_mask<T>(mask: u32, run: impl FnOnce() -> T) -> T {
    let before = rustix::process::umask(Mode::from_raw_mode(mask));
    let result = run();
    rustix::process::umask(before);
    result
}
