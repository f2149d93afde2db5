//! What a container's metrics tell beside its stats.

use std::fs;
use std::path::Path;

use crate::cgroup::Details;
use crate::container::stats::ContainerStats;
use crate::node::Node;

#[derive(Debug, Clone)]
pub struct ContainerMetrics {
    pub stats: ContainerStats,
    pub details: Details,
    /// None where it ended meanwhile.
    pub processes: Option<Processes>,
    /// That its writable layer is on.
    pub filesystem: Option<Filesystem>,
}

/// Those of the container and of its execs, together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Processes {
    pub count: u64,
    /// Open files; those among them that are sockets.
    pub files: u64,
    pub sockets: u64,
    /// The soft limit of open files of the container's first process. None: it has none.
    pub files_limit: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filesystem {
    pub bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

pub fn read(node: &Node, stats: ContainerStats, filesystem: Option<Filesystem>) -> ContainerMetrics {
    let container = node.containers.find(&stats.container.id).ok();
    let cgroup = container.as_ref().and_then(|c| c.record.cgroup.as_ref());
    let first = container.as_ref().and_then(|c| c.process());
    let processes = cgroup.zip(first).and_then(|(cgroup, first)| {
        let pids = node.cgroups.processes(cgroup).ok()?;
        Some(Processes::of(&pids, first.pid))
    });
    let details = cgroup.map(|cgroup| node.cgroups.details(cgroup)).unwrap_or_default();
    ContainerMetrics { stats, details, processes, filesystem }
}

impl Processes {
    /// What ends while it is looked at counts as it was seen until then.
    fn of(pids: &[i32], first: i32) -> Self {
        let limits = fs::read_to_string(format!("/proc/{first}/limits")).unwrap_or_default();
        let mut found = Self { files_limit: soft_files_limit(&limits), ..Self::default() };
        for pid in pids {
            let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
            found.count += 1;
            for file in files.flatten() {
                found.files += 1;
                let target = fs::read_link(file.path()).unwrap_or_default();
                found.sockets += u64::from(target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
            }
        }
        found
    }
}

/// Out of proc_pid_limits(5).
fn soft_files_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

impl Filesystem {
    pub fn of(path: &Path) -> Option<Self> {
        let found = rustix::fs::statvfs(path).ok()?;
        Some(Self {
            bytes: found.f_blocks * found.f_frsize,
            inodes: found.f_files,
            inodes_free: found.f_ffree,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_told_from_other_files() {
        let me = std::process::id() as i32;
        let before = Processes::of(&[me], me);
        let sockets: Vec<_> = (0..40).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let with = Processes::of(&[me], me);
        assert_eq!(with.count, 1);
        // Other tests open and close files meanwhile.
        assert!(with.sockets >= 40 && with.files > with.sockets, "{before:?} {with:?}");
        drop(sockets);
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        assert_eq!(with.files_limit, limit);
        assert_eq!(Processes::of(&[i32::MAX], i32::MAX), Processes::default());
    }

    #[test]
    fn a_limit_may_be_missing() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max open files            1024                 1048576              files     \n";
        assert_eq!(soft_files_limit(text), Some(1024));
        assert_eq!(soft_files_limit("Max open files            unlimited            unlimited  files"), None);
    }

    #[test]
    fn a_file_system_has_a_size() {
        let found = Filesystem::of(Path::new("/")).unwrap();
        assert!(found.bytes > 0 && found.inodes_free <= found.inodes, "{found:?}");
        assert_eq!(Filesystem::of(Path::new("/no/such")), None);
    }
}
