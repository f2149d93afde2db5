//! A container's root filesystem: the image's layers under a writable one, as a detached mount.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use crate::container::attached;
use crate::error::Step;
use crate::network::namespace::NSFS_MAGIC;
use crate::sys::mount::{MOUNT_ATTR_RDONLY, MountAttr, set_attributes};
use crate::sys::probe;
use crate::{Error, Result};

/// fsconfig takes strings of up to 255 bytes.
const LONGEST: usize = 255;

/// Makes `upper` and `work` below `directory` and mounts the overlay. `layers`: topmost first.
///
/// The overlay is `volatile`: a container's root never outlives its container, and without it every
/// last unmount would sync the whole file system below, in the dying container's context.
pub fn mount(layers: &[PathBuf], directory: &Path) -> Result<OwnedFd> {
    let (upper, work) = (directory.join("upper"), directory.join("work"));
    for path in [&upper, &work] {
        fs::create_dir_all(path).step(|| format!("making directory {}", path.display()))?;
    }
    if probe::single_layers().is_err() {
        return attached::overlay(layers, Some((&upper, &work)), directory);
    }
    let overlay =
        fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).step(|| "opening the overlay file system")?;
    let mut held = Vec::new();
    let mut option = |key: &str, path: &Path| -> Result<()> {
        let value = short(path, &mut held)?;
        fsconfig_set_string(&overlay, key, &value)
            .step(|| format!("overlay: setting {key} to {}", path.display()))
    };
    for layer in layers {
        option("lowerdir+", layer)?;
    }
    option("upperdir", &upper)?;
    option("workdir", &work)?;
    fsconfig_set_flag(&overlay, "volatile").step(|| "overlay: setting volatile")?;
    fsconfig_create(&overlay)
        .step(|| format!("mounting the overlay of {} layers on {}", layers.len(), upper.display()))?;
    fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .step(|| format!("mounting the overlay on {}", upper.display()))
}

/// The layers alone, the topmost first, at least two.
pub fn read_only(layers: &[PathBuf]) -> Result<OwnedFd> {
    if probe::single_layers().is_err() {
        let topmost = layers.first().ok_or_else(|| Error::internal("an overlay of no layers"))?;
        return attached::overlay(layers, None, topmost);
    }
    let overlay =
        fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).step(|| "opening the overlay file system")?;
    let mut held = Vec::new();
    for layer in layers {
        let value = short(layer, &mut held)?;
        fsconfig_set_string(&overlay, "lowerdir+", &value)
            .step(|| format!("overlay: setting lowerdir+ to {}", layer.display()))?;
    }
    let step = || format!("mounting the overlay of {} layers, read-only", layers.len());
    fsconfig_create(&overlay).step(step)?;
    fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY).step(step)
}

/// The path, or where it is too long for fsconfig, a short name of an fd kept in `held`.
fn short(path: &Path, held: &mut Vec<OwnedFd>) -> Result<PathBuf> {
    if path.as_os_str().len() < LONGEST {
        return Ok(path.into());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).step(|| format!("opening {}", path.display()))?;
    let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
    held.push(fd);
    Ok(name.into())
}

/// A mount that can be cloned from now on: itself, or on older kernels a mount namespace that holds it.
pub fn clonable(mount: OwnedFd) -> Result<OwnedFd> {
    if probe::detached_clones().is_ok() { Ok(mount) } else { attached::keep(mount) }
}

/// A second detached mount of what [`clonable`] returned.
pub fn clone(mount: BorrowedFd<'_>) -> Result<OwnedFd> {
    let step = || "cloning a detached mount";
    if rustix::fs::fstatfs(mount).step(step)?.f_type == NSFS_MAGIC {
        return attached::clone(mount);
    }
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(mount, "", flags).step(step)
}

/// A detached mount of what `find` opens below a detached mount.
pub fn part(whole: OwnedFd, find: impl FnOnce(BorrowedFd<'_>) -> Result<OwnedFd> + Send) -> Result<OwnedFd> {
    let whole = clonable(whole)?;
    if probe::detached_clones().is_ok() {
        clone(find(whole.as_fd())?.as_fd())
    } else {
        attached::clone_part(whole.as_fd(), find)
    }
}

/// A small tmpfs with empty directories to mount on.
pub fn directories<'a>(names: impl Iterator<Item = &'a str>, read_only: bool) -> Result<OwnedFd> {
    let step = || "making a tmpfs";
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).step(step)?;
    fsconfig_set_string(&fs, "mode", "755").step(step)?;
    fsconfig_create(&fs).step(step)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).step(step)?;
    for name in names {
        rustix::fs::mkdirat(&mount, name, Mode::from_raw_mode(0o755))
            .step(|| format!("making directory {name}"))?;
    }
    if read_only {
        let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        set_attributes(mount.as_fd(), false, attr).step(step)?;
    }
    Ok(mount)
}
