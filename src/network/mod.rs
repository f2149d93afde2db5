//! Addresses for pods: the embedded bridge network, or CNI plugins.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::pod::spec::{PodName, PortMapping};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Builtin,
    Cni,
}

#[derive(Debug, Clone)]
pub struct Config {
    /// None: builtin where there is no CNI configuration.
    pub mode: Option<Mode>,
    pub cni_conf_dir: PathBuf,
    pub cni_bin_dirs: Vec<PathBuf>,
    /// The builtin bridge's name (at most 15 bytes) and IPv4 subnet in CIDR form.
    pub bridge: String,
    pub subnet: String,
    pub mtu: Option<u32>,
    /// What outlives a reboot: addresses, cached CNI results.
    pub root: PathBuf,
}

/// A pod, as far as its network is concerned. Serialisable: intent is journalled before ADD.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodNetwork {
    pub pod_id: String,
    pub name: PodName,
    /// The pinned namespace; empty after a reboot (DEL runs all the same; BEHAVIOUR 13).
    pub netns: PathBuf,
    pub port_mappings: Vec<PortMapping>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The first is the primary one.
    pub ips: Vec<IpAddr>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceStats {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_errors: u64,
    pub tx_bytes: u64,
    pub tx_errors: u64,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Network {}

impl Network {
    pub fn open(_config: Config) -> Result<Self> {
        todo!()
    }

    /// Err: the reason why no pod can get an address now (Status: NetworkReady).
    pub fn ready(&self) -> Result<(), String> {
        todo!()
    }

    /// Journals, then gives the pod its interfaces. On failure everything is undone before it
    /// returns. Safe to cancel: what was begun is finished or undone by `detach`.
    pub async fn attach(&self, _pod: &PodNetwork) -> Result<Attachment> {
        todo!()
    }

    /// Takes everything back; repeating it is fine, and so is a namespace that is gone.
    pub async fn detach(&self, _pod: &PodNetwork) -> Result<()> {
        todo!()
    }

    /// Releases what pods hold that are not among `live` (IDs), e.g. after a reboot.
    pub async fn reconcile(&self, _live: &[String]) -> Result<()> {
        todo!()
    }

    /// UpdateRuntimeConfig's pod CIDR, empty meaning none.
    pub fn set_pod_cidr(&self, _cidr: &str) -> Result<()> {
        todo!()
    }

    /// Counters of every interface in a network namespace, the pod's default one first.
    pub fn stats(_netns: &std::path::Path) -> Result<Vec<InterfaceStats>> {
        todo!()
    }
}

/// Makes namespaces for a pod in a thread of its own; the network one is pinned at `pin`.
pub struct NewNamespaces {
    pub net: Option<std::os::fd::OwnedFd>,
    pub ipc: Option<std::os::fd::OwnedFd>,
    pub uts: Option<std::os::fd::OwnedFd>,
}
