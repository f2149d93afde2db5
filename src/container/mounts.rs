//! Which mounts a container gets, and in which order. Pure.
//!
//! The runtime's own come first; one that the request mounts itself is left to the request
//! (BEHAVIOUR 26). All are sorted by depth, so that none hides one mounted before it (BEHAVIOUR 27).

use std::path::{Path, PathBuf};

use oci_spec::runtime as oci;

use crate::container::spec::{Mount, Propagation};
use crate::container::stdio::DEVPTS_OPTIONS;
use crate::error::Step;
use crate::{Error, Result};

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Made in the child, in its namespaces.
    FileSystem,
    /// A tree of the host, wherever it comes from: to look at it can take for ever.
    Host(Mount),
    /// A file or directory that we know to be the node's own.
    Ours(Mount),
    /// An image; the number counts the request's image volumes.
    Image(usize, Mount),
    /// The pod's /dev/shm.
    PodShm,
    /// The container's devpts: made in the child, or before it where there is a terminal.
    Devpts,
    /// The container's cgroup, in as many file systems as the host's layout has.
    Cgroup,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    pub destination: PathBuf,
    pub source: Source,
    pub oci: oci::Mount,
}

/// What the list depends on besides the request's own mounts.
pub struct Wish<'a> {
    pub mounts: &'a [Mount],
    pub privileged: bool,
    /// IPC mode NODE: the host's /dev/shm.
    pub host_ipc: bool,
    /// IPC mode CONTAINER: a /dev/shm of its own.
    pub own_ipc: bool,
    /// Directory with the pod's `hosts`, `hostname` and `resolv.conf`.
    pub pod_files: &'a Path,
    pub readonly_rootfs: bool,
}

pub fn plan(wish: &Wish<'_>) -> Result<Vec<Planned>> {
    let mut planned = Vec::with_capacity(wish.mounts.len() + 12);
    let mut images = 0;
    for mount in wish.mounts {
        let destination = clean(&mount.container_path)?;
        let mut one = host(destination, mount.clone());
        if let Some(volume) = &mount.image {
            one.oci.set_source(Some(PathBuf::from(&volume.image.image)));
            one.source = Source::Image(images, mount.clone());
            images += 1;
        }
        planned.push(one);
    }
    let mut own = file_systems(wish)?;
    own.extend(pod_files(wish));
    own.retain(|mount| !planned.iter().any(|other| other.destination == mount.destination));
    own.append(&mut planned);
    // A stable sort: of two at the same place the later one stays on top.
    own.sort_by_key(|mount| mount.destination.components().count());
    Ok(own)
}

/// An absolute path without `.`, `..` and doubled slashes. `..` is refused rather than resolved.
fn clean(path: &str) -> Result<PathBuf> {
    let given = Path::new(path);
    let mut out = PathBuf::from("/");
    for part in given.components() {
        match part {
            std::path::Component::Normal(name) => out.push(name),
            std::path::Component::ParentDir => {
                return Err(Error::invalid(format!("mount container_path {path:?} has a `..`")));
            }
            _ => {}
        }
    }
    if path.is_empty() || out == Path::new("/") {
        return Err(Error::invalid(format!("mount container_path {path:?} is not a path below the root")));
    }
    Ok(out)
}

fn host(destination: PathBuf, mount: Mount) -> Planned {
    let mut options = vec!["rbind".to_owned()];
    options.push(
        match mount.propagation {
            Propagation::Private => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        }
        .to_owned(),
    );
    options.push(
        match (mount.readonly, mount.recursive_read_only) {
            (true, true) => "rro",
            (true, false) => "ro",
            (false, _) => "rw",
        }
        .to_owned(),
    );
    let mut oci = oci::Mount::default();
    oci.set_destination(destination.clone())
        .set_typ(Some("bind".into()))
        .set_source(Some(PathBuf::from(&mount.host_path)))
        .set_options(Some(options));
    Planned { destination, source: Source::Host(mount), oci }
}

fn ours(destination: PathBuf, mount: Mount) -> Planned {
    let source = Source::Ours(mount.clone());
    Planned { source, ..host(destination, mount) }
}

fn file_systems(wish: &Wish<'_>) -> Result<Vec<Planned>> {
    let read = if wish.privileged { "rw" } else { "ro" };
    let devpts: Vec<String> = DEVPTS_OPTIONS.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let mut devpts_options = vec!["nosuid", "noexec", "newinstance"];
    devpts_options.extend(devpts.iter().map(String::as_str));
    let rows: [(&str, &str, Source, &[&str]); 7] = [
        ("/proc", "proc", Source::FileSystem, &["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", Source::FileSystem, &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", Source::Devpts, &devpts_options),
        ("/dev/mqueue", "mqueue", Source::FileSystem, &["nosuid", "noexec", "nodev"]),
        ("/dev/shm", "tmpfs", shm(wish), &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        ("/sys", "sysfs", Source::FileSystem, &["nosuid", "noexec", "nodev", read]),
        ("/sys/fs/cgroup", "cgroup", Source::Cgroup, &["nosuid", "noexec", "nodev", "relatime", read]),
    ];
    rows.into_iter()
        .map(|(destination, typ, source, options)| {
            if let Source::Ours(mount) = source {
                return Ok(ours(destination.into(), mount));
            }
            let oci = oci::MountBuilder::default()
                .destination(destination)
                .typ(typ)
                .source(typ)
                .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
                .build()
                .map_err(|e| Error::internal(e.to_string()))
                .step(|| format!("describing the mount of {destination}"))?;
            Ok(Planned { destination: destination.into(), source, oci })
        })
        .collect()
}

fn shm(wish: &Wish<'_>) -> Source {
    if wish.host_ipc {
        let path = "/dev/shm".to_owned();
        return Source::Ours(Mount { container_path: path.clone(), host_path: path, ..Mount::default() });
    }
    if wish.own_ipc { Source::FileSystem } else { Source::PodShm }
}

fn pod_files(wish: &Wish<'_>) -> Vec<Planned> {
    ["hosts", "hostname", "resolv.conf"]
        .into_iter()
        .map(|name| {
            let destination = Path::new("/etc").join(name);
            let mount = Mount {
                container_path: destination.to_string_lossy().into_owned(),
                host_path: wish.pod_files.join(name).to_string_lossy().into_owned(),
                readonly: wish.readonly_rootfs,
                ..Mount::default()
            };
            ours(destination, mount)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(container_path: &str) -> Mount {
        Mount { container_path: container_path.into(), host_path: "/srv".into(), ..Mount::default() }
    }

    fn wish(mounts: &[Mount]) -> Wish<'_> {
        Wish {
            mounts,
            privileged: false,
            host_ipc: false,
            own_ipc: false,
            pod_files: Path::new("/run/pod"),
            readonly_rootfs: false,
        }
    }

    #[test]
    fn behaviour_27_mounts_are_sorted_by_depth() {
        let mounts = [mount("/a/b/c"), mount("/a"), mount("/a/b/")];
        let planned = plan(&wish(&mounts)).unwrap();
        let at = |p: &str| planned.iter().position(|m| m.destination == Path::new(p)).unwrap();
        assert!(at("/a") < at("/a/b") && at("/a/b") < at("/a/b/c"));
        assert!(at("/dev") < at("/dev/shm") && at("/sys") < at("/sys/fs/cgroup"));
    }

    #[test]
    fn behaviour_26_the_requests_own_mount_replaces_ours() {
        let mounts = [mount("/etc/hosts"), mount("/dev/shm")];
        let planned = plan(&wish(&mounts)).unwrap();
        for place in ["/etc/hosts", "/dev/shm"] {
            let there: Vec<_> = planned.iter().filter(|m| m.destination == Path::new(place)).collect();
            assert_eq!(there.len(), 1, "{place}");
            assert!(matches!(&there[0].source, Source::Host(m) if m.host_path == "/srv"));
        }
    }

    #[test]
    fn a_destination_must_be_a_path_below_the_root() {
        for bad in ["", "/", "/a/../b", "//"] {
            assert!(plan(&wish(&[mount(bad)])).is_err(), "{bad:?}");
        }
        assert!(
            plan(&wish(&[mount("a/b")])).is_ok(),
            "relative means relative to the root, as peers have it"
        );
    }

    #[test]
    fn host_ipc_takes_the_hosts_shm_and_privileged_a_writable_sys() {
        let planned = plan(&Wish { host_ipc: true, privileged: true, ..wish(&[]) }).unwrap();
        let find = |p: &str| planned.iter().find(|m| m.destination == Path::new(p)).unwrap();
        assert!(matches!(&find("/dev/shm").source, Source::Ours(m) if m.host_path == "/dev/shm"));
        assert!(find("/sys").oci.options().as_ref().unwrap().contains(&"rw".to_owned()));
    }
}
