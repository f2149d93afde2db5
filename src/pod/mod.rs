//! Pods (pod sandboxes): shared namespaces, a cgroup, a network, and the containers in them.
//!
//! ```text
//!            run                     stop                      remove
//!  (nothing) ───▶ Ready ───────────────────▶ NotReady ──────────────────▶ (nothing)
//!                   │  reboot, lost namespaces   ▲            remove also stops first
//!                   └────────────────────────────┘
//! ```

pub mod events;
pub mod files;
pub mod init;
pub mod list;
pub mod metrics;
pub mod namespaces;
pub mod recover;
pub mod remove;
pub mod run;
pub mod spec;
pub mod stats;
pub mod status;
pub mod stop;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::cgroup::Cgroup;
use crate::container::stats::Rate;
use crate::keeper::client::Process;
use crate::network::PodNetwork;
use crate::pod::spec::{NamespaceMode, PodSpec};

/// pod.json: what outlives a boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub spec: Arc<PodSpec>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Pinned here; empty for a host-network pod.
    pub netns: PathBuf,
    /// None in a record that was written before there was one, or that is damaged.
    pub cgroup: Option<Cgroup>,
    pub ips: Vec<IpAddr>,
    /// Set once every step of its making was done: one that was cut off is never ready.
    pub complete: bool,
    /// Set once it was stopped, so that it never comes back as ready.
    pub stopped: bool,
    /// The boot that its namespaces belong to.
    pub boot_id: String,
}

impl Record {
    pub fn host_network(&self) -> bool {
        self.spec.security.namespaces.network == NamespaceMode::Node
    }

    pub fn network(&self) -> PodNetwork {
        PodNetwork {
            pod_id: self.id.clone(),
            name: self.spec.name.clone(),
            netns: self.netns.clone(),
            port_mappings: self.spec.port_mappings.clone(),
            annotations: self.spec.annotations.clone(),
        }
    }
}

/// What containers of a ready pod share, by fd. None: the node's.
#[derive(Debug, Clone, Default)]
pub struct Shared {
    pub net: Option<Arc<OwnedFd>>,
    pub ipc: Option<Arc<OwnedFd>>,
    pub uts: Option<Arc<OwnedFd>>,
    /// A detached tmpfs for /dev/shm.
    pub shm: Option<Arc<OwnedFd>>,
    /// PID 1 of the pod, where its PID mode is POD.
    pub init: Option<Process>,
}

impl Shared {
    /// What a process of the pod joins: (namespace, CLONE_NEW* flag).
    pub fn joins(&self) -> Vec<(Arc<OwnedFd>, u64)> {
        [(&self.net, libc::CLONE_NEWNET), (&self.ipc, libc::CLONE_NEWIPC), (&self.uts, libc::CLONE_NEWUTS)]
            .into_iter()
            .filter_map(|(fd, flag)| Some((Arc::clone(fd.as_ref()?), flag as u64)))
            .collect()
    }
}

#[derive(Debug, Clone)]
pub enum Phase {
    Ready(Shared),
    /// Why, if it was not simply stopped.
    NotReady(String),
}

pub struct Pod {
    pub id: String,
    record: RwLock<Arc<Record>>,
    phase: RwLock<Phase>,
    /// Held by whoever changes the pod: run, stop, remove, and the creation of a container.
    pub gate: tokio::sync::RwLock<()>,
    /// It is being stopped: whoever makes something in it gives up.
    closed: watch::Sender<bool>,
    /// For the CPU rate.
    cpu: Mutex<Rate>,
}

impl Pod {
    pub fn new(record: Record, phase: Phase) -> Self {
        Self {
            id: record.id.clone(),
            record: RwLock::new(Arc::new(record)),
            phase: RwLock::new(phase),
            gate: tokio::sync::RwLock::default(),
            closed: watch::Sender::new(false),
            cpu: Mutex::default(),
        }
    }

    /// For good: a stop that fails is tried again.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Returns once it is being stopped.
    pub async fn closed(&self) {
        // The sender lives as long as `self`.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    pub fn record(&self) -> Arc<Record> {
        Arc::clone(&self.record.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set_record(&self, record: Record) {
        *self.record.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(record);
    }

    pub fn phase(&self) -> Phase {
        self.phase.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_phase(&self, phase: Phase) {
        *self.phase.write().unwrap_or_else(PoisonError::into_inner) = phase;
    }
}

/// /proc/sys/kernel/random/boot_id.
pub fn boot_id() -> crate::Result<String> {
    use crate::error::Step;
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(std::fs::read_to_string(path).step(|| format!("reading {path}"))?.trim().to_owned())
}

/// A record as tests need one.
#[cfg(test)]
pub mod fixtures {
    use super::*;

    pub fn record() -> Record {
        Record {
            id: "p".into(),
            spec: Arc::default(),
            created_at: 0,
            netns: "/run/netns/p".into(),
            cgroup: None,
            ips: Vec::new(),
            complete: true,
            stopped: false,
            boot_id: String::new(),
        }
    }
}
