//! What a container is asked to be: the plain form of the CRI's ContainerConfig.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::pod::spec::Namespaces;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerName {
    pub name: String,
    pub attempt: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub name: ContainerName,
    pub image: ImageSpec,
    /// Empty means the image's Entrypoint (BEHAVIOUR 19).
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: String,
    /// Values are bytes, not text.
    pub envs: Vec<(String, Vec<u8>)>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Relative to the pod's log directory; empty: output is drained and dropped (BEHAVIOUR 39).
    pub log_path: String,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// As the CRI's enum name, e.g. "SIGUSR1" or "SIGRTMIN+1"; the container's own wish.
    pub stop_signal: Option<String>,
    pub resources: Resources,
    pub security: Security,
}

/// The CRI's ImageSpec, as far as a container is concerned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// A reference or an image ID.
    pub image: String,
    pub annotations: BTreeMap<String, String>,
    /// The tag that the user wrote, for status.
    pub user_specified_image: String,
    pub runtime_handler: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    /// rslave
    HostToContainer,
    /// rshared
    Bidirectional,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub container_path: String,
    pub host_path: String,
    pub readonly: bool,
    /// Every mount below it too; demands `readonly` and private propagation (BEHAVIOUR 27).
    pub recursive_read_only: bool,
    pub propagation: Propagation,
    /// Without SELinux on the host this is a no-op, as with the peers.
    pub selinux_relabel: bool,
    /// What is mounted instead of `host_path`; always read-only.
    #[serde(default)]
    pub image: Option<ImageVolume>,
}

/// An image's content as a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolume {
    pub image: ImageSpec,
    /// A path inside the image, relative; empty: all of it.
    pub sub_path: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub container_path: String,
    pub host_path: String,
    /// Of "rwm".
    pub permissions: String,
}

/// Limits. Zero means not given (on update: unchanged; BEHAVIOUR 29).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Microseconds.
    pub cpu_period: i64,
    /// Microseconds per period; negative: no limit.
    pub cpu_quota: i64,
    pub cpu_shares: i64,
    /// Bytes; negative: no limit.
    pub memory_limit: i64,
    /// Bytes of memory and swap together; zero: equal to the memory limit; negative: no limit.
    pub memory_swap_limit: i64,
    pub oom_score_adj: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    /// (page size as in "2MB", bytes)
    pub hugepage_limits: Vec<(String, u64)>,
    /// Files of cgroup v2, verbatim.
    pub unified: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SupplementalGroupsPolicy {
    /// The request's groups and those of /etc/group in the image.
    #[default]
    Merge,
    /// The request's alone.
    Strict,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppArmor {
    /// No change: what the keeper runs with, which is nothing.
    #[default]
    Unconfined,
    RuntimeDefault,
    /// Nothing was asked for: ours, if the node can load it.
    Preferred,
    /// The name of a profile that the node has loaded.
    Localhost(String),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    #[default]
    Unconfined,
    RuntimeDefault,
    /// An absolute path of a profile on the node.
    Localhost(String),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Names with or without CAP_, or ALL.
    pub add: Vec<String>,
    pub drop: Vec<String>,
    pub add_ambient: Vec<String>,
}

/// Who the process runs as, before the image and its passwd are asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunAs {
    /// The image's USER.
    #[default]
    Image,
    Uid(u32),
    Username(String),
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Security {
    pub capabilities: Capabilities,
    pub privileged: bool,
    pub namespaces: Namespaces,
    pub run_as: RunAs,
    pub run_as_group: Option<u32>,
    pub readonly_rootfs: bool,
    pub supplemental_groups: Vec<u32>,
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    pub no_new_privs: bool,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    pub seccomp: Seccomp,
    #[serde(default)]
    pub apparmor: AppArmor,
}
