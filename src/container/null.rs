//! The null device that processes get where nothing is connected.
//!
//! One of our own, through a read-only mount: by its descriptor the container's root could change the
//! mode and the owner of the node's /dev/null for everybody.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{FileType, Mode, OFlags, makedev, mkdirat, mknodat, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::Result;
use crate::error::Step;
use crate::sys::mount::{MOUNT_ATTR_RDONLY, MountAttr, set_attributes};

const MODE: Mode = Mode::from_raw_mode(0o666);

/// For reading and writing, not shared with anybody.
pub fn open() -> Result<OwnedFd> {
    static ROOT: OnceLock<OwnedFd> = OnceLock::new();
    let root = match ROOT.get() {
        Some(root) => root,
        None => {
            let made = make().step(|| "making a null device")?;
            ROOT.get_or_init(|| made)
        }
    };
    openat(root, "dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step(|| "opening the null device")
}

/// A detached file system with /dev/null, as programs that ask for the name of their input expect it.
fn make() -> rustix::io::Result<OwnedFd> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    mkdirat(&root, "dev", Mode::from_raw_mode(0o755))?;
    mknodat(&root, "dev/null", FileType::CharacterDevice, MODE, makedev(1, 3))?;
    rustix::fs::chmodat(&root, "dev/null", MODE, rustix::fs::AtFlags::empty())?;
    set_attributes(root.as_fd(), false, MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() })?;
    Ok(root)
}
