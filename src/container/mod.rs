//! Containers: from a request to a parked child, its start, its end.
//!
//! ```text
//!  create          start                    exit, or stop
//!  ──────▶ Created ─────▶ Running ─────────────────────▶ Exited ─remove─▶ (nothing)
//!             │      start failed (StartError), pod stopped ▲
//!             └─────────────────────────────────────────────┘
//!  Unknown: a record that cannot be read or a process that cannot be found; removable.
//! ```

pub mod attached;
pub mod compile;
pub mod create;
pub mod devices;
pub mod end;
pub mod exec;
pub mod exec_session;
pub mod exposure;
mod ground;
pub mod image_volume;
mod inside;
pub mod list;
pub mod metrics;
pub mod mounts;
pub mod null;
pub mod oci;
pub mod phase;
pub mod process_env;
pub mod recover;
pub mod remove;
pub mod reopen_log;
pub mod rlimits;
pub mod rootfs;
pub mod signal;
pub mod spec;
pub mod start;
pub mod stats;
pub mod status;
pub mod stdio;
pub mod stop;
pub mod update;
pub mod user;
pub mod volumes;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

pub use self::phase::Phase;
use crate::cgroup::Cgroup;
use crate::container::spec::{ContainerSpec, Resources};
use crate::container::status::User;
use crate::keeper::client::Process;

/// container.json: what a container is, fixed at its creation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub pod_id: String,
    pub spec: Arc<ContainerSpec>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// The config digest.
    pub image_id: String,
    /// A repo digest, or the ID of an image without one.
    pub image_ref: String,
    pub user: User,
    /// The name of the signal that stops it, resolved at creation (BEHAVIOUR 11).
    pub stop_signal: String,
    pub cgroup: Option<Cgroup>,
    /// Absolute, or empty.
    pub log_path: PathBuf,
    /// OOM kills that its cgroup had before it ran: not its own (BEHAVIOUR 10).
    pub oom_baseline: u64,
    pub warnings: Vec<String>,
    /// The IDs of the images that are its volumes, in the order of the spec's mounts.
    #[serde(default)]
    pub volume_images: Vec<String>,
}

/// exit.json: how a container ended. Times in nanoseconds since the epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
}

pub struct Container {
    pub id: String,
    pub record: Record,
    phase: watch::Sender<Phase>,
    resources: RwLock<Resources>,
    /// Held by start, update and remove.
    pub gate: tokio::sync::Mutex<()>,
    /// When a stop under way turns to SIGKILL; None: no stop is under way.
    stopping: Mutex<Option<watch::Sender<Instant>>>,
    /// What its execs are made of; filled when first needed.
    exec: OnceLock<Arc<exec::Template>>,
    readings: Mutex<stats::Readings>,
    /// Held while somebody looks at what it has mounted.
    inside: inside::Inside,
}

impl Container {
    pub fn new(record: Record, phase: Phase) -> Self {
        Self {
            id: record.id.clone(),
            resources: RwLock::new(record.spec.resources.clone()),
            record,
            phase: watch::Sender::new(phase),
            gate: tokio::sync::Mutex::default(),
            stopping: Mutex::default(),
            exec: OnceLock::new(),
            readings: Mutex::default(),
            inside: inside::Inside::default(),
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Goes on to a phase. False: it does not lead there, and stays as it is.
    pub fn set_phase(&self, next: Phase) -> bool {
        self.phase.send_if_modified(|phase| {
            let leads = phase.stage().leads_to(next.stage());
            if leads {
                *phase = next;
            }
            leads
        })
    }

    /// Waits until it is neither created nor running.
    pub async fn ended(&self) {
        let mut phases = self.phase.subscribe();
        let over = |phase: &Phase| phase.stage().is_over();
        // The sender lives as long as `self`.
        let _ = phases.wait_for(over).await;
    }

    fn readings(&self) -> MutexGuard<'_, stats::Readings> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The limits in force.
    pub fn resources(&self) -> Resources {
        self.resources.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_resources(&self, resources: Resources) {
        *self.resources.write().unwrap_or_else(PoisonError::into_inner) = resources;
    }

    /// The process, while there is one.
    pub fn process(&self) -> Option<Process> {
        match &*self.phase.borrow() {
            Phase::Created(process) | Phase::Running { process, .. } => Some(process.clone()),
            Phase::Exited(_) | Phase::Unknown(_) => None,
        }
    }
}
