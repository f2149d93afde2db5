//! A container as it is, for ContainerStatus.

use std::sync::Arc;

use crate::Result;
use crate::container::spec::{ContainerSpec, Resources};
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
}

/// The user actually set (BEHAVIOUR 20).
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// NOT_FOUND if there is none. `id` may be a unique prefix.
pub fn status(_node: &Node, _id: &str) -> Result<ContainerStatus> {
    todo!()
}

/// For `crictl inspect`: a JSON object (sandboxID, pid, runtimeSpec, warnings, …).
pub fn info(_node: &Node, _id: &str) -> Result<serde_json::Value> {
    todo!()
}
