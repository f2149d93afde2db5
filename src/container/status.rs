//! A container as it is, for ContainerStatus.

use std::sync::Arc;

use crate::Result;
use crate::container::spec::{ContainerSpec, Resources};
use crate::container::{Container, Phase};
use crate::error::errno_text;
use crate::keeper::note;
use crate::node::Node;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Exited,
    Unknown,
}

/// Times in nanoseconds since the epoch; zero: not yet (BEHAVIOUR 9).
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerStatus {
    pub id: String,
    pub pod_id: String,
    pub spec: Arc<ContainerSpec>,
    pub state: State,
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    /// Completed, Error, OOMKilled, StartError, ContainerStatusUnknown, or empty.
    pub reason: String,
    pub message: String,
    /// The config digest: `sha256:…`.
    pub image_id: String,
    /// A repo digest (BEHAVIOUR 5).
    pub image_ref: String,
    /// Absolute, or empty.
    pub log_path: String,
    /// As they are in force, updates included.
    pub resources: Resources,
    pub user: User,
    /// As the CRI's enum name without SIGNAL_, e.g. "SIGTERM".
    pub stop_signal: String,
    /// The IDs of the images that are its volumes, in the order of the spec's mounts.
    pub volume_images: Vec<String>,
}

/// The user actually set (BEHAVIOUR 20).
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// NOT_FOUND if there is none. `id` may be a unique prefix.
pub fn status(node: &Node, id: &str) -> Result<ContainerStatus> {
    let mut status = of(&*node.containers.find(id)?);
    if matches!(status.state, State::Running | State::Exited)
        && let Some(errno) = note::stalled_in(&node.layout.container_state(&status.id).join("note"))
    {
        // A container that logs waits for its log (BEHAVIOUR 39).
        let stall = format!("its log {} cannot be written: {}", status.log_path, errno_text(errno));
        status.message =
            [status.message, stall].into_iter().filter(|m| !m.is_empty()).collect::<Vec<_>>().join("; ");
    }
    Ok(status)
}

/// The status of a container at hand.
pub fn of(container: &Container) -> ContainerStatus {
    let record = &container.record;
    let mut status = ContainerStatus {
        id: record.id.clone(),
        pod_id: record.pod_id.clone(),
        spec: Arc::clone(&record.spec),
        state: State::Created,
        created_at: record.created_at,
        started_at: 0,
        finished_at: 0,
        exit_code: 0,
        reason: String::new(),
        message: record.warnings.join("; "),
        image_id: record.image_id.clone(),
        image_ref: record.image_ref.clone(),
        log_path: record.log_path.to_string_lossy().into_owned(),
        resources: container.resources(),
        user: record.user.clone(),
        stop_signal: record.stop_signal.clone(),
        volume_images: record.volume_images.clone(),
    };
    match container.phase() {
        Phase::Created(_) => {}
        Phase::Running { started_at, .. } => {
            status.state = State::Running;
            status.started_at = started_at;
        }
        Phase::Exited(ending) => {
            status.state = State::Exited;
            status.started_at = ending.started_at;
            status.finished_at = ending.finished_at;
            status.exit_code = ending.exit_code;
            status.reason = ending.reason;
            // What it ended with, then what it lacked.
            let told = [ending.message, status.message].into_iter().filter(|text| !text.is_empty());
            status.message = told.collect::<Vec<_>>().join("; ");
        }
        Phase::Unknown(what) => {
            status.state = State::Unknown;
            status.reason = "ContainerStatusUnknown".into();
            status.message = what;
        }
    }
    status
}

/// For `crictl inspect`: a JSON object (sandboxID, pid, runtimeSpec, warnings).
pub fn info(node: &Node, id: &str) -> Result<serde_json::Value> {
    let container = node.containers.find(id)?;
    let record = &container.record;
    let spec: Option<serde_json::Value> =
        crate::node::record::read(&node.layout.container(&container.id).join("config.json"))
            .unwrap_or_default();
    Ok(serde_json::json!({
        "sandboxID": record.pod_id,
        "pid": container.process().map_or(0, |p| p.pid),
        "cgroup": record.cgroup.as_ref().map(|c| &c.path),
        "warnings": record.warnings,
        "runtimeSpec": spec,
    }))
}
