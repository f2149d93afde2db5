//! A cgroup for each pod, one below it for each container, one below that for each exec.
//!
//! [`Cgroups`] knows the host's layout (unified, hybrid, v1) and the driver (cgroupfs, systemd);
//! a [`Cgroup`] is one node of the hierarchy, in every mounted hierarchy at once.

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::container::spec::Resources;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    #[default]
    Cgroupfs,
    Systemd,
}

/// The host's cgroup layout and our way of using it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cgroups {}

/// One cgroup, by its path below the root of each hierarchy, e.g. `/kubepods/pod1/podwright-abc`.
/// Serialisable, so that it can be recorded and found again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    pub path: String,
}

/// The fds through which a child enters: see `keeper::plan::CgroupEntry`.
#[derive(Debug, Default)]
pub struct Entry {
    pub unified: Option<OwnedFd>,
    pub tasks: Vec<OwnedFd>,
}

/// Use and pressure at one moment; None where the host lacks the controller.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Nanoseconds since the epoch.
    pub timestamp: i64,
    /// Cumulative nanoseconds.
    pub cpu_usage: Option<u64>,
    pub memory: Option<MemoryStats>,
    pub swap_usage: Option<u64>,
    pub swap_available: Option<u64>,
    pub pids: Option<u64>,
    pub cpu_psi: Option<Psi>,
    pub memory_psi: Option<Psi>,
    pub io_psi: Option<Psi>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MemoryStats {
    pub usage: u64,
    /// usage − inactive_file (BEHAVIOUR 36).
    pub working_set: u64,
    /// limit − working set; None without a limit.
    pub available: Option<u64>,
    pub rss: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Psi {
    pub some: PsiLine,
    pub full: PsiLine,
}

/// avg*: per cent; total: microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PsiLine {
    pub total: u64,
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
}

/// What a limit could not do here (BEHAVIOUR 38), as a sentence for the container's status.
pub type Warning = String;

impl Cgroups {
    /// Reads the host's mounts. `root` is the parent of all cgroups that requests give no parent.
    pub fn detect(_driver: Driver, _root: &str) -> Result<Self> {
        todo!()
    }

    pub fn driver(&self) -> Driver {
        todo!()
    }

    /// Makes the pod's cgroup under `parent` (kubelet's cgroup_parent, or empty for our root), with
    /// the controllers enabled for its children. Repeating it is fine.
    pub async fn create_pod(&self, _parent: &str, _pod_id: &str) -> Result<Cgroup> {
        todo!()
    }

    /// Makes a container's cgroup with its limits. With the systemd driver the directory is made
    /// later by systemd, around the parked child.
    pub async fn create_container(
        &self,
        _pod: &Cgroup,
        _id: &str,
        _resources: &Resources,
    ) -> Result<(Cgroup, Vec<Warning>)> {
        todo!()
    }

    /// A cgroup for one exec, below the container's.
    pub fn create_exec(&self, _container: &Cgroup, _exec_id: &str) -> Result<Cgroup> {
        todo!()
    }

    pub fn entry(&self, _cgroup: &Cgroup) -> Result<Entry> {
        todo!()
    }

    /// Writes the limits that are given (zero: unchanged), or none of them.
    pub fn update(&self, _cgroup: &Cgroup, _resources: &Resources) -> Result<Vec<Warning>> {
        todo!()
    }

    /// SIGKILL to everything in it and below: cgroup.kill, or freeze and kill. Missing is fine.
    pub fn kill(&self, _cgroup: &Cgroup) -> Result<()> {
        todo!()
    }

    /// Waits until nothing lives in it, or names what still does (pid, comm, state).
    pub async fn wait_empty(&self, _cgroup: &Cgroup, _limit: Duration) -> Result<()> {
        todo!()
    }

    /// OOM kills so far (BEHAVIOUR 10). None where it cannot be told.
    pub fn oom_kills(&self, _cgroup: &Cgroup) -> Option<u64> {
        todo!()
    }

    pub fn stats(&self, _cgroup: &Cgroup) -> Result<Stats> {
        todo!()
    }

    /// Removes it and everything below from every hierarchy; missing is fine, all errors told.
    pub async fn remove(&self, _cgroup: &Cgroup) -> Result<()> {
        todo!()
    }

    /// Device access (v1: devices controller; v2: an eBPF program): the default set plus `rules`,
    /// or everything for a privileged container.
    pub fn allow_devices(&self, _cgroup: &Cgroup, _rules: &DeviceRules) -> Result<()> {
        todo!()
    }

    /// The cgroup that the keeper runs in, made if missing: files to write a pid to.
    pub fn keeper_procs(&self) -> Result<Vec<std::path::PathBuf>> {
        todo!()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceRules {
    All,
    /// The runtime's default set and these.
    Listed(Vec<DeviceRule>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRule {
    pub block: bool,
    pub major: u32,
    pub minor: u32,
    /// Of "rwm".
    pub access: String,
}
