//! A cgroup as its container sees it below /sys/fs/cgroup.
//!
//! A clone of the directory, rather than a file system mounted in the container's cgroup namespace:
//! the same files, for an eighth of the time (8 µs instead of 65 for each of the ten hierarchies of a
//! hybrid host), since the kernel mounts one under the lock of all cgroups.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::layout::Layout;
use super::{Cgroup, Cgroups};
use crate::Result;
use crate::error::Step;
use crate::sys::mount::{
    MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MountAttr, set_attributes,
};

/// Detached mounts of a cgroup.
#[derive(Debug)]
pub enum View {
    /// For /sys/fs/cgroup itself.
    Unified(OwnedFd),
    /// For directories below it, by their names. A hybrid host's cgroup2 is among them.
    Hierarchies(Vec<(String, OwnedFd)>),
}

impl Cgroups {
    /// Of the host's root rather than of a cgroup with None.
    pub fn show(&self, cgroup: Option<&Cgroup>, read_only: bool) -> Result<View> {
        show(&self.0.layout, cgroup.map_or("", |c| &c.path), read_only)
    }
}

fn show(layout: &Layout, path: &str, read_only: bool) -> Result<View> {
    if let (Some(unified), true) = (&layout.unified, layout.v1.is_empty()) {
        return clone(&format!("{}{path}", unified.mount), read_only).map(View::Unified);
    }
    let views = layout.mounts().map(|mount| {
        let name = mount.rsplit('/').next().unwrap_or_default().to_owned();
        Ok((name, clone(&format!("{mount}{path}"), read_only)?))
    });
    views.collect::<Result<_>>().map(View::Hierarchies)
}

fn clone(directory: &str, read_only: bool) -> Result<OwnedFd> {
    let step = || format!("cloning the mount of {directory}");
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, directory, flags).step(step)?;
    let secure = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    let attr = MountAttr {
        set: secure | if read_only { MOUNT_ATTR_RDONLY } else { 0 },
        // The host may have it read-only.
        clear: if read_only { 0 } else { MOUNT_ATTR_RDONLY },
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    set_attributes(mount.as_fd(), false, attr).step(step)?;
    Ok(mount)
}
