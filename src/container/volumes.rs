//! Volumes: host paths as detached mounts (BEHAVIOUR 27).
//!
//! Touching a host path can hang for ever on a dead network mount, so it is done on a thread that
//! the call does not wait for longer than the configured limit (PEERS 2).

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, FileType, fstat};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::container::spec::{Mount, Propagation};
use crate::error::{Kind, Step};
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

/// Opens each mount, in order.
pub async fn open_all(mounts: Vec<Mount>, limit: Duration) -> Result<Vec<Volume>> {
    if mounts.is_empty() {
        return Ok(Vec::new());
    }
    let names = mounts.iter().map(|m| m.host_path.as_str()).collect::<Vec<_>>().join(", ");
    let work = tokio::task::spawn_blocking(move || mounts.iter().map(open).collect::<Result<Vec<_>>>());
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(volumes)) => volumes,
        Ok(Err(e)) => Err(Error::internal(format!("opening the volumes: {e}"))),
        Err(_) => Err(Error::new(
            Kind::DeadlineExceeded,
            format!("opening the volumes: one of {names} did not answer within {} s", limit.as_secs()),
        )),
    }
}

/// Clones the tree at the host path and sets its flags and propagation. A missing source is made,
/// as a directory.
pub fn open(mount: &Mount) -> Result<Volume> {
    let label = label(mount);
    let step = || format!("mounting {label}");
    let path = Path::new(&mount.host_path);
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = match open_tree(CWD, path, flags) {
        Err(rustix::io::Errno::NOENT) => {
            fs::create_dir_all(path).step(|| format!("{}: making the missing source", step()))?;
            open_tree(CWD, path, flags)
        }
        other => other,
    }
    .step(step)?;
    let stat = fstat(&tree).step(step)?;
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if mount.propagation == Propagation::Bidirectional && !is_shared(&tree, path)? {
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

/// Whether the mount that holds `path` is shared: "shared:N" among the optional fields of its
/// line in mountinfo (proc_pid_mountinfo(5)), found by the mount's ID.
fn is_shared(tree: &OwnedFd, path: &Path) -> Result<bool> {
    // The clone has an ID of its own; the source's is asked by path.
    let _ = tree;
    let flags = rustix::fs::AtFlags::empty();
    let step = || format!("reading the mount of {}", path.display());
    let statx = rustix::fs::statx(CWD, path, flags, rustix::fs::StatxFlags::MNT_ID).step(step)?;
    let table = fs::read_to_string("/proc/self/mountinfo").step(step)?;
    let id = statx.stx_mnt_id.to_string();
    Ok(table.lines().any(|line| {
        let mut fields = line.split(' ');
        fields.next() == Some(&id)
            && fields.skip(5).take_while(|f| *f != "-").any(|f| f.starts_with("shared:"))
    }))
}
