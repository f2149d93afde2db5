//! Mounts that an older kernel can make or clone only where they are attached: made in a mount
//! namespace of their own, and taken out of it detached. Which ways are needed `sys::probe` tells.
//!
//! ```text
//! before 6.8    overlay: layers by mount(2), named by fd numbers relative to /proc/thread-self/fd
//! before 6.15   /dev/shm: in a mount namespace of the pod, which holds nothing else
//!               a part of an image as a volume: taken out of the whole in such a namespace
//! before 6.17   procfs of a joined PID namespace: a clone of one that was mounted inside it
//! ```
//!
//! All of it happens on threads that end afterwards; the host's mount table never changes.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change,
    move_mount, open_tree,
};

use crate::error::Step;
use crate::network::namespace::on_a_thread;
use crate::sys::mount::{
    MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MountAttr, set_attributes,
};
use crate::sys::namespace::{enter_mounts, unshare_mounts};
use crate::{Error, Result};

/// Where [`keep`] attaches what it is given.
const KEPT: &str = "/kept";
/// Where a pod's init has its procfs, in the keeper's small root.
pub const INIT_PROC: &str = "/root";

const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// An overlay of `layers` (topmost first), attached at `at` in a namespace that ends at once: volatile
/// with `upper` (the upper and the work directory), without it the layers alone, at least two.
///
/// mount(2) takes one page of options, which paths of many layers exceed, and fsconfig 255 bytes: so
/// each is named by the number of a descriptor, and any path will do.
pub fn overlay(
    layers: &[impl AsRef<Path> + Sync],
    upper: Option<(&Path, &Path)>,
    at: &Path,
) -> Result<OwnedFd> {
    let step = || format!("mounting the overlay of {} layers on {}", layers.len(), at.display());
    on_a_thread(|| {
        unshare_mounts().step(step)?;
        // What the host unmounts goes here as well; what is mounted here stays here.
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).step(step)?;
        // Overlay wants its layers on mounts of the namespace that it is made in: opened here.
        let open = |path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).step(|| format!("opening {}", path.display()))
        };
        let lower = layers.iter().map(|layer| open(layer.as_ref())).collect::<Result<Vec<_>>>()?;
        let upper = match upper {
            Some((upper, work)) => Some((open(upper)?, open(work)?)),
            None => None,
        };
        let names: Vec<String> = lower.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
        let mut options = format!("lowerdir={}", names.join(":"));
        if let Some((upper, work)) = &upper {
            let (upper, work) = (upper.as_raw_fd(), work.as_raw_fd());
            options += &format!(",upperdir={upper},workdir={work},volatile");
        }
        rustix::process::chdir("/proc/thread-self/fd").step(step)?;
        let options = std::ffi::CString::new(options).map_err(|e| Error::internal(e.to_string()))?;
        rustix::mount::mount("overlay", at, "overlay", MountFlags::empty(), &*options).step(step)?;
        open_tree(CWD, at, CLONE).step(step)
    })
}

/// Puts a detached mount into a mount namespace that holds nothing else, and returns that: an fd to
/// [`clone`] from.
pub fn keep(mount: OwnedFd) -> Result<OwnedFd> {
    let step = || "making a mount namespace that holds one mount";
    on_a_thread(|| {
        unshare_mounts().step(step)?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).step(step)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = rustix::fs::open("/proc/thread-self/ns/mnt", flags, Mode::empty()).step(step)?;
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).step(step)?;
        fsconfig_set_string(&context, "mode", "0700").step(step)?;
        fsconfig_create(&context).step(step)?;
        let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).step(step)?;
        rustix::fs::mkdirat(&root, KEPT.trim_start_matches('/'), Mode::RWXU).step(step)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&root, "", CWD, "/", flags).step(step)?;
        rustix::process::fchdir(&root).step(step)?;
        // With the old root go the copies of all that the host has mounted: nothing may be pinned.
        rustix::process::pivot_root(".", ".").step(step)?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).step(step)?;
        rustix::process::chdir("/").step(step)?;
        move_mount(&mount, "", CWD, KEPT, flags).step(step)?;
        Ok(namespace)
    })
}

/// A detached mount of what [`keep`] put into `namespace`.
pub fn clone(namespace: BorrowedFd<'_>) -> Result<OwnedFd> {
    let step = || "cloning the mount of a mount namespace";
    on_a_thread(|| {
        enter_mounts(namespace).step(step)?;
        open_tree(CWD, KEPT, CLONE).step(step)
    })
}

/// The same of what `find` opens below it.
pub fn clone_part(
    namespace: BorrowedFd<'_>,
    find: impl FnOnce(BorrowedFd<'_>) -> Result<OwnedFd> + Send,
) -> Result<OwnedFd> {
    let step = || "cloning a part of the mount of a mount namespace";
    on_a_thread(|| {
        enter_mounts(namespace).step(step)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let whole = rustix::fs::open(KEPT, flags, Mode::empty()).step(step)?;
        let part = find(whole.as_fd())?;
        open_tree(&part, "", CLONE | OpenTreeFlags::AT_EMPTY_PATH).step(step)
    })
}

/// A detached procfs that shows the PID namespace of process `pid`: a clone of the one that it has
/// mounted at `path`, without what is mounted on that. The process may be hostile: what it offers is
/// taken only if it is a procfs of its own namespace.
pub fn procfs(pid: i32, path: &str) -> Result<OwnedFd> {
    let step = || format!("taking the procfs at {path} of process {pid}, whose PID namespace is joined");
    let mounts = crate::network::namespace::open(Path::new(&format!("/proc/{pid}/ns/mnt")))?;
    let mount = on_a_thread(|| {
        enter_mounts(mounts.as_fd()).step(step)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let there = rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve).step(step)?;
        open_tree(&there, "", CLONE | OpenTreeFlags::AT_EMPTY_PATH).step(step)
    })?;
    if rustix::fs::fstatfs(&mount).step(step)?.f_type != rustix::fs::PROC_SUPER_MAGIC {
        return Err(Error::precondition(format!("{}: it is no procfs", step())));
    }
    let shown = rustix::fs::readlinkat(&mount, "1/ns/pid", Vec::new()).step(step)?;
    let own = rustix::fs::readlinkat(CWD, format!("/proc/{pid}/ns/pid"), Vec::new()).step(step)?;
    if shown != own {
        return Err(Error::precondition(format!("{}: it shows another namespace", step())));
    }
    let attributes = MountAttr {
        set: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
        clear: MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    };
    set_attributes(mount.as_fd(), false, attributes).step(step)?;
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn b43_an_overlay_of_many_layers_with_long_names_needs_no_new_kernel() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut layers = Vec::new();
        for number in 0..100 {
            let layer = dir.path().join(format!("{number},with:a\\colon{}", "x".repeat(200)));
            std::fs::create_dir(&layer).unwrap();
            std::fs::write(layer.join(number.to_string()), "").unwrap();
            std::fs::write(layer.join("topmost"), number.to_string()).unwrap();
            layers.push(layer);
        }
        for name in ["upper", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
        let mount = overlay(&layers, Some((&dir.path().join("upper"), &dir.path().join("work"))), dir.path())
            .unwrap();
        let there = std::fs::read_dir(format!("/proc/self/fd/{}", mount.as_raw_fd())).unwrap().count();
        assert_eq!(there, 101);
        let topmost = std::fs::read(format!("/proc/self/fd/{}/topmost", mount.as_raw_fd())).unwrap();
        assert_eq!(topmost, b"0");
        let read_only = overlay(&layers, None, &layers[0]).unwrap();
        let there = std::fs::read_dir(format!("/proc/self/fd/{}", read_only.as_raw_fd())).unwrap().count();
        assert_eq!(there, 101);
        assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count(), before);
    }

    #[test]
    fn b43_a_kept_mount_is_one_file_system_for_all_its_clones() {
        if !is_root() {
            return;
        }
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_create(&context).unwrap();
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
        let namespace = keep(mount).unwrap();
        let (one, two) = (clone(namespace.as_fd()).unwrap(), clone(namespace.as_fd()).unwrap());
        drop(namespace);
        rustix::fs::mkdirat(&one, "made", Mode::RWXU).unwrap();
        assert!(rustix::fs::statat(&two, "made", rustix::fs::AtFlags::empty()).is_ok());
    }

    #[test]
    fn b43_a_part_of_a_kept_mount_is_cloned_without_the_rest() {
        if !is_root() {
            return;
        }
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_create(&context).unwrap();
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
        rustix::fs::mkdirat(&mount, "part", Mode::RWXU).unwrap();
        rustix::fs::mkdirat(&mount, "part/inside", Mode::RWXU).unwrap();
        let namespace = keep(mount).unwrap();
        let find = |whole: BorrowedFd<'_>| {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            rustix::fs::openat(whole, "part", flags, Mode::empty()).step(|| "looking for the part")
        };
        let part = clone_part(namespace.as_fd(), find).unwrap();
        let is_there = |path: &str| rustix::fs::statat(&part, path, rustix::fs::AtFlags::empty()).is_ok();
        assert!(is_there("inside") && !is_there("part"));
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let above = rustix::fs::openat(&part, "..", flags, Mode::empty()).unwrap();
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(inode(&above), inode(&part), "nothing is above it");
    }

    #[test]
    fn b43_a_procfs_is_taken_only_if_it_is_one_of_the_same_namespace() {
        if !is_root() {
            return;
        }
        // Of a namespace whose PID 1 has no more rights than we: the host's may have.
        let mut child = std::process::Command::new("unshare")
            .args(["--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", "echo; exec sleep 1000"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let first: i32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
        let mount = procfs(first, "/proc");
        let error = procfs(first, "/tmp");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(rustix::fs::statat(mount.unwrap(), "1", rustix::fs::AtFlags::empty()).is_ok());
        let error = error.unwrap_err();
        assert!(error.message.contains("no procfs"), "{error}");
    }
}
