//! What files look like besides their content: owner, mode, times, extended attributes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::archive::Entry;
use super::record::Meta;
use super::tree::{self, DIRECTORY};

pub fn of(entry: &Entry, kind: FileType) -> Meta {
    Meta { mode: kind.as_raw_mode() | entry.mode, uid: entry.uid, gid: entry.gid }
}

/// In this order: chown drops set-id bits and capabilities, chmod restores the bits, and the
/// attributes come last.
pub fn set(fd: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode))?;
    for (name, value) in kept_xattrs(entry) {
        tolerate(name, rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()))?;
    }
    Ok(())
}

/// Of what cannot be opened. Nobody else changes the tree, so that the name still means the same.
pub fn set_at(parent: BorrowedFd<'_>, name: &[u8], entry: &Entry, has_mode: bool) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if has_mode {
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
    }
    for (attribute, value) in kept_xattrs(entry) {
        // There is no lsetxattr relative to an fd before Linux 6.13.
        let path = [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name].concat();
        tolerate(attribute, rustix::fs::lsetxattr(path.as_slice(), attribute, value, XattrFlags::empty()))?;
    }
    let times = timestamps(entry.mtime);
    Ok(rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// What an image may set. `trusted.overlay.*` would tell overlay things that are ours to say
/// (redirects, metadata-only copies); SELinux labels are the node's policy.
pub fn kept_xattrs(entry: &Entry) -> impl Iterator<Item = (&[u8], &[u8])> {
    entry
        .xattrs
        .iter()
        .map(|(name, value)| (name.as_slice(), value.as_slice()))
        .filter(|(name, _)| !name.starts_with(b"trusted.overlay.") && *name != b"security.selinux")
}

/// A filesystem without user attributes, or a kind of file that cannot have them, loses those as
/// with every other unpacker; file capabilities are never lost silently.
fn tolerate(name: &[u8], result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Err(Errno::OPNOTSUPP | Errno::PERM) if name.starts_with(b"user.") || name.starts_with(b"system.") => {
            Ok(())
        }
        other => Ok(other?),
    }
}

pub fn timestamps((tv_sec, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Gives the directory `path` of the layer `upper` the metadata that it has in the first of
/// `lowers` which has it: overlay shows the upper one's, and the archive said nothing about it.
pub fn inherit(upper: &Path, path: &[u8], lowers: &[PathBuf]) -> io::Result<()> {
    let open = |layer: &Path| -> io::Result<OwnedFd> {
        let root = tree::open_root(layer)?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(rustix::fs::openat2(&root, path, DIRECTORY, Mode::empty(), resolve)?)
    };
    for lower in lowers {
        let below = match open(lower) {
            Ok(below) => below,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {
                continue;
            }
            Err(e) => return Err(e),
        };
        let stat = rustix::fs::fstat(&below)?;
        let own = open(upper)?;
        rustix::fs::fchown(&own, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
        rustix::fs::fchmod(&own, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
        return Ok(rustix::fs::futimens(&own, &Timestamps { last_access: time, last_modification: time })?);
    }
    Ok(())
}
