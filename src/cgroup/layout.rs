//! Which cgroup hierarchies this host has mounted, and which controller lives in which.
//!
//! ```text
//! unified   /sys/fs/cgroup                     cgroup2, every controller
//! hybrid    /sys/fs/cgroup/{cpu,memory,…}      cgroup (v1), the controllers
//!           /sys/fs/cgroup/unified             cgroup2, for what needs no controller
//! v1        /sys/fs/cgroup/{cpu,memory,…}      cgroup (v1) alone
//! ```
//!
//! A controller is looked up by name, so that any mixture works.

use crate::error::Error;
use crate::{Result, cgroup::file};

/// A mounted cgroup2 file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unified {
    pub mount: String,
    /// `cgroup.controllers` of its root: empty on most hybrid hosts.
    pub controllers: Vec<String>,
}

/// A mounted v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub mount: String,
    /// As in `cpu` and `cpuacct`; or `name=systemd`, which controls nothing.
    pub controllers: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub unified: Option<Unified>,
    pub v1: Vec<Hierarchy>,
}

/// Where a file of a controller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// An index into `Layout::v1`.
    V1(usize),
    V2,
}

const V1_CONTROLLERS: &[&str] = &[
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

impl Layout {
    pub fn detect() -> Result<Self> {
        let mut layout = Self::parse(&file::read_all("/proc/self/mountinfo")?);
        if let Some(unified) = &mut layout.unified {
            let controllers = file::read_all(&format!("{}/cgroup.controllers", unified.mount))?;
            unified.controllers = controllers.split_whitespace().map(str::to_owned).collect();
        }
        if layout.unified.is_none() && layout.v1.is_empty() {
            return Err(Error::precondition("no cgroup file system is mounted on this host"));
        }
        Ok(layout)
    }

    /// From the text of proc_pid_mountinfo(5). The first mount of a hierarchy counts.
    fn parse(mountinfo: &str) -> Self {
        let mut layout = Self { unified: None, v1: Vec::new() };
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut right = right.split(' ');
            let (Some(kind), Some(_), Some(options)) = (right.next(), right.next(), right.next()) else {
                continue;
            };
            let Some(mount) = left.split(' ').nth(4).map(unescape) else { continue };
            match kind {
                "cgroup2" if layout.unified.is_none() => {
                    layout.unified = Some(Unified { mount, controllers: Vec::new() });
                }
                "cgroup" => {
                    let controllers: Vec<String> = options
                        .split(',')
                        .filter(|o| V1_CONTROLLERS.contains(o) || o.starts_with("name="))
                        .map(str::to_owned)
                        .collect();
                    if !controllers.is_empty() && layout.v1.iter().all(|h| h.controllers != controllers) {
                        layout.v1.push(Hierarchy { mount, controllers });
                    }
                }
                _ => {}
            }
        }
        layout
    }

    /// The hierarchy that holds `controller`, under v1's or v2's name for it.
    pub fn place(&self, controller: &str) -> Option<Place> {
        if self.v2(controller).is_some() { Some(Place::V2) } else { self.v1_index(controller).map(Place::V1) }
    }

    pub fn v1_index(&self, controller: &str) -> Option<usize> {
        self.v1.iter().position(|h| h.controllers.iter().any(|c| c == controller))
    }

    pub fn v1(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1_index(controller).map(|i| &self.v1[i])
    }

    pub fn v2(&self, controller: &str) -> Option<&Unified> {
        self.unified.as_ref().filter(|u| u.controllers.iter().any(|c| c == controller))
    }

    pub fn mount(&self, place: Place) -> &str {
        match place {
            Place::V1(index) => &self.v1[index].mount,
            Place::V2 => self.unified.as_ref().map_or("", |u| &u.mount),
        }
    }

    /// Every mount point, the unified one first: what exists there is what `kill` reaches.
    pub fn mounts(&self) -> impl Iterator<Item = &str> {
        let unified = self.unified.iter().map(|u| u.mount.as_str());
        unified.chain(self.v1.iter().map(|h| h.mount.as_str()))
    }

    /// The mount by which processes are killed and counted: unified, else v1's freezer.
    pub fn killer(&self) -> Option<&str> {
        match &self.unified {
            Some(unified) => Some(&unified.mount),
            None => self.v1("freezer").map(|h| h.mount.as_str()),
        }
    }

    /// "unified", "hybrid" or "v1", for humans.
    pub fn name(&self) -> &'static str {
        match (&self.unified, self.v1.is_empty()) {
            (Some(_), true) => "unified",
            (Some(_), false) => "hybrid",
            (None, _) => "v1",
        }
    }
}

/// Undoes the octal escapes of /proc's mount tables (`\040` is a space).
fn unescape(field: &str) -> String {
    let mut out = Vec::with_capacity(field.len());
    let bytes = field.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let code = field.get(i + 1..i + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (bytes[i], code) {
            (b'\\', Some(code)) => {
                out.push(code);
                i += 4;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn unified() -> Layout {
        let controllers = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"].map(str::to_owned).to_vec();
        Layout { unified: Some(Unified { mount: "/cg".into(), controllers }), v1: vec![] }
    }

    pub fn hybrid() -> Layout {
        Layout::parse(
            "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
             32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
             34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
             35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
             40 31 0:37 / /sys/fs/cgroup/a\\040b rw - cgroup cgroup rw,xattr,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
             42 31 0:32 / /elsewhere/memory rw - cgroup cgroup rw,memory\n",
        )
    }

    #[test]
    fn hybrid_mounts_are_read() {
        let layout = hybrid();
        assert_eq!(layout.name(), "hybrid");
        assert_eq!(layout.v1("cpuacct").unwrap().mount, "/sys/fs/cgroup/cpu,cpuacct");
        assert_eq!(layout.v1("memory").unwrap().mount, "/sys/fs/cgroup/memory");
        assert_eq!(layout.v1("name=systemd").unwrap().mount, "/sys/fs/cgroup/a b");
        assert_eq!(layout.killer(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(layout.place("hugetlb"), None);
        assert_eq!(layout.v1.len(), 5);
    }

    #[test]
    fn unified_mounts_are_read() {
        let layout = Layout::parse("24 1 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n");
        assert_eq!(layout.name(), "unified");
        assert_eq!(layout.mounts().collect::<Vec<_>>(), ["/sys/fs/cgroup"]);
        assert_eq!(unified().place("memory"), Some(Place::V2));
        assert_eq!(unified().place("freezer"), None);
    }
}
