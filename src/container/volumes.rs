//! Volumes: host paths as detached mounts (BEHAVIOUR 27).
//!
//! Touching a host path can hang for ever on a dead network mount, and a thread that hangs cannot be
//! ended (PEERS 2). So a path is first looked up in what the kernel has in memory, which never waits;
//! what is not there, or is missing, is opened by a process that can be killed: see `opener`.

mod opener;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

pub use self::opener::serve;
use crate::container::spec::{Mount, Propagation};
use crate::error::Step;
use crate::sys::mount::{MOUNT_ATTR_RDONLY, MountAttr, set_attributes};
use crate::{Error, Result};

#[derive(Debug)]
pub struct Volume {
    pub mount: OwnedFd,
    pub directory: bool,
    /// For messages: `volume /data (hostPath /srv/x)`.
    pub label: String,
}

pub fn label(mount: &Mount) -> String {
    format!("volume {} (hostPath {})", mount.container_path, mount.host_path)
}

/// Opens each mount; the result has their order. DEADLINE_EXCEEDED names the one that did not answer.
pub async fn open_all(mounts: Vec<Mount>, limit: Duration) -> Result<Vec<Volume>> {
    let mut volumes: Vec<Option<Volume>> = Vec::with_capacity(mounts.len());
    let mut slow = Vec::new();
    for mount in mounts {
        let found = open_cached(&mount)?;
        if found.is_none() {
            slow.push(mount);
        }
        volumes.push(found);
    }
    let mut slow = if slow.is_empty() { Vec::new() } else { opener::open(slow, limit).await? }.into_iter();
    let volumes = volumes.into_iter().map(|volume| volume.or_else(|| slow.next()));
    volumes.collect::<Option<_>>().ok_or_else(|| Error::internal("a volume was not opened"))
}

/// Without waiting for any file system. None: it is not known whether that would do.
fn open_cached(mount: &Mount) -> Result<Option<Volume>> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match openat2(CWD, &mount.host_path, flags, Mode::empty(), ResolveFlags::CACHED) {
        Ok(path) => clone(mount, &path).map(Some),
        // Whatever it is, who waits learns it.
        Err(_) => Ok(None),
    }
}

/// As long as it takes. A missing source is made, as a directory.
pub fn open(mount: &Mount) -> Result<Volume> {
    let step = || format!("mounting {}", label(mount));
    let look = || {
        // Unlike open(2) with O_PATH this has an automount at the path mount what belongs there.
        let path = open_tree(CWD, &mount.host_path, OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        // Where a dead server is, here is where it shows.
        statx(&path, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
        Ok(path)
    };
    let path = match look() {
        Err(Errno::NOENT) => {
            fs::create_dir_all(&mount.host_path).step(|| format!("{}: making the missing source", step()))?;
            look()
        }
        other => other,
    }
    .step(step)?;
    clone(mount, &path)
}

/// Clones the tree at `path` and sets its flags and propagation. Touches mounts only, no file system.
fn clone(mount: &Mount, path: &OwnedFd) -> Result<Volume> {
    let label = label(mount);
    let step = || format!("mounting {label}");
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(path, "", flags).step(step)?;
    let in_memory = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(path, "", in_memory, StatxFlags::TYPE | StatxFlags::MNT_ID).step(step)?;
    let directory = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory;
    if mount.propagation == Propagation::Bidirectional && !is_shared(stat.stx_mnt_id).step(step)? {
        return Err(Error::invalid(format!(
            "{}: bidirectional propagation needs a source that is on a shared mount",
            step()
        )));
    }
    let propagation = match mount.propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::HostToContainer => libc::MS_SLAVE,
        Propagation::Bidirectional => libc::MS_SHARED,
    };
    set_attributes(tree.as_fd(), true, MountAttr { propagation, ..MountAttr::default() }).step(step)?;
    if mount.readonly {
        let read_only = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        set_attributes(tree.as_fd(), mount.recursive_read_only, read_only).step(step)?;
    }
    Ok(Volume { mount: tree, directory, label })
}

/// Whether a mount is shared: "shared:N" among the optional fields of its line in mountinfo
/// (proc_pid_mountinfo(5)).
fn is_shared(mount_id: u64) -> std::io::Result<bool> {
    let table = fs::read_to_string(Path::new("/proc/self/mountinfo"))?;
    let id = mount_id.to_string();
    Ok(table.lines().any(|line| {
        let mut fields = line.split(' ');
        fields.next() == Some(&id)
            && fields.skip(5).take_while(|f| *f != "-").any(|f| f.starts_with("shared:"))
    }))
}
