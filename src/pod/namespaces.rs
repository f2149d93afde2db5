//! A pod's shared namespaces and its /dev/shm, by fd: made, given into keeping, found again.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

use crate::Result;
use crate::container::rootfs;
use crate::error::Step;
use crate::keeper::client::Hold;
use crate::network::namespace::{self, NewNamespaces};
use crate::pod::spec::{NamespaceMode, PodSpec};
use crate::pod::{Record, Shared};
use crate::sys::probe;

/// Makes what the pod shares and the node does not lend. Blocks for a millisecond.
pub fn make(record: &Record, hostname: &str) -> Result<Shared> {
    let spec = &record.spec;
    let own_ipc = spec.security.namespaces.ipc == NamespaceMode::Pod;
    let made = namespace::create(&NewNamespaces {
        pin: (!record.host_network()).then_some(record.netns.as_path()),
        ipc: own_ipc,
        hostname: (!record.host_network()).then_some(hostname),
        sysctls: Some(&spec.sysctls),
    })?;
    let shm = own_ipc.then(make_shm).transpose()?;
    Ok(Shared {
        net: made.net.map(Arc::new),
        ipc: made.ipc.map(Arc::new),
        uts: made.uts.map(Arc::new),
        shm: shm.map(Arc::new),
        init: None,
    })
}

/// One tmpfs per pod, shared by its containers (BEHAVIOUR 25).
fn make_shm() -> Result<OwnedFd> {
    let step = || "mounting the pod's /dev/shm";
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).step(step)?;
    for (key, value) in [("source", "shm"), ("mode", "1777"), ("size", "65536k")] {
        fsconfig_set_string(&fs, key, value).step(step)?;
    }
    fsconfig_create(&fs).step(step)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rootfs::clonable(fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).step(step)?)
}

/// What the pod is called: as asked, else the node's name, as the peers have it (BEHAVIOUR 26).
pub fn hostname(spec: &PodSpec) -> String {
    let host_network = spec.security.namespaces.network == NamespaceMode::Node;
    if !host_network && !spec.hostname.is_empty() {
        return spec.hostname.clone();
    }
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The key of a pod's fds in the keeper's keeping.
pub fn hold_key(pod_id: &str) -> String {
    format!("pod/{pod_id}")
}

/// For the keeper: the fds, and which is which.
pub fn hold(pod_id: &str, shared: &Shared) -> Hold {
    let all = [("net", &shared.net), ("ipc", &shared.ipc), ("uts", &shared.uts), ("shm", &shared.shm)];
    let held = all.into_iter().filter_map(|(name, fd)| Some((name, Arc::clone(fd.as_ref()?))));
    let (names, fds): (Vec<_>, Vec<_>) = held.unzip();
    Hold { key: hold_key(pod_id), about: names.join(" ").into_bytes(), fds }
}

/// The reverse of [`hold`]: None if something is missing that the pod's spec wants.
pub fn unpack(record: &Record, hold: &Hold) -> Option<Shared> {
    let names = String::from_utf8_lossy(&hold.about).into_owned();
    let mut fds: HashMap<&str, &Arc<OwnedFd>> = names.split(' ').zip(&hold.fds).collect();
    let mut take = |name: &str| fds.remove(name).map(Arc::clone);
    let shared =
        Shared { net: take("net"), ipc: take("ipc"), uts: take("uts"), shm: take("shm"), init: None };
    complete(record, &shared).then_some(shared)
}

/// Whether everything is there that the pod does not take from the node.
pub fn complete(record: &Record, shared: &Shared) -> bool {
    let own_net = !record.host_network();
    let own_ipc = record.spec.security.namespaces.ipc == NamespaceMode::Pod;
    shared.net.is_some() == own_net
        && shared.uts.is_some() == own_net
        && shared.ipc.is_some() == own_ipc
        && shared.shm.is_some() == own_ipc
}

/// Takes the namespaces back from a process of the pod that lives (BEHAVIOUR 42): after both of our
/// processes died. /dev/shm is cloned out of its mount namespace by way of the path `scratch`;
/// without one it is left out.
pub fn take_back(record: &Record, pid: i32, scratch: Option<&Path>) -> Result<Shared> {
    let open = |name: &str| namespace::open(Path::new(&format!("/proc/{pid}/ns/{name}"))).map(Arc::new);
    let own_net = !record.host_network();
    let own_ipc = record.spec.security.namespaces.ipc == NamespaceMode::Pod;
    let scratch = scratch.filter(|_| own_ipc);
    let shm =
        scratch.map(|scratch| bring_home(namespace::clone_mount(pid, "/dev/shm")?, scratch)).transpose()?;
    Ok(Shared {
        net: own_net.then(|| open("net")).transpose()?,
        ipc: own_ipc.then(|| open("ipc")).transpose()?,
        uts: own_net.then(|| open("uts")).transpose()?,
        shm: shm.map(Arc::new),
        init: None,
    })
}

/// A detached mount that this process may clone again. The kernel (6.15) lets a detached mount be
/// cloned only from the mount namespace that it came from, which for `foreign` is a container's: so
/// it is attached to ours for a moment.
fn bring_home(foreign: OwnedFd, scratch: &Path) -> Result<OwnedFd> {
    if probe::detached_clones().is_err() {
        return rootfs::clonable(foreign);
    }
    use rustix::fs::CWD;
    use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
    let step = || format!("taking /dev/shm back by way of {}", scratch.display());
    std::fs::create_dir_all(scratch).step(step)?;
    move_mount(&foreign, "", CWD, scratch, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step(step)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let home = open_tree(CWD, scratch, flags).step(step);
    unmount(scratch, UnmountFlags::DETACH).step(step)?;
    std::fs::remove_dir(scratch).step(step)?;
    home
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fixtures::record;

    #[test]
    fn what_was_held_comes_back_under_its_names() {
        let fd = || Some(Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap())));
        let shared = Shared { net: fd(), ipc: fd(), uts: fd(), shm: fd(), init: None };
        let held = hold("p", &shared);
        let back = unpack(&record(), &held).unwrap();
        assert!(Arc::ptr_eq(&back.shm.unwrap(), &shared.shm.unwrap()));
        let partial = Hold { fds: held.fds[..3].to_vec(), ..held };
        assert!(unpack(&record(), &partial).is_none(), "a pod never runs with a part of its namespaces");
    }
}
