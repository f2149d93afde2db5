//! What a pod is asked to be: the plain form of the CRI's PodSandboxConfig.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::container::spec::{Resources, Seccomp, SupplementalGroupsPolicy};

/// What kubelet calls a pod by. `attempt` counts the sandboxes made for one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodName {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub attempt: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodSpec {
    pub name: PodName,
    /// Empty: the pod has none of its own in the request; the node's for a host-network pod.
    pub hostname: String,
    /// Absolute, or empty: containers' `log_path`s are relative to it.
    pub log_directory: String,
    /// None copies the host's resolv.conf; empty but present means an empty one (BEHAVIOUR 26).
    pub dns: Option<Dns>,
    pub port_mappings: Vec<PortMapping>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// A cgroupfs path from kubelet, absolute; a base name in `.slice` is systemd's. Empty: ours.
    pub cgroup_parent: String,
    pub sysctls: BTreeMap<String, String>,
    pub overhead: Option<Resources>,
    pub resources: Option<Resources>,
    pub security: PodSecurity,
    /// Empty for the default.
    pub runtime_handler: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: u16,
    /// 0: no host port was asked for.
    pub host_port: u16,
    pub host_ip: Option<IpAddr>,
}

/// Whose namespace is used. The CRI's NamespaceMode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// One namespace for all containers of the pod.
    #[default]
    Pod,
    /// One for each container.
    Container,
    /// The node's own.
    Node,
    /// That of another container (PID only).
    Target,
}

/// The CRI's NamespaceOption. User namespaces are refused at the door until they are built.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    pub network: NamespaceMode,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    /// A container ID, with `pid` TARGET only.
    pub target: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodSecurity {
    pub namespaces: Namespaces,
    pub privileged: bool,
    pub readonly_rootfs: bool,
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    pub seccomp: Seccomp,
}
