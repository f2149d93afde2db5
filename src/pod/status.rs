//! A pod as it is, for PodSandboxStatus.

use std::net::IpAddr;
use std::sync::Arc;

use crate::Result;
use crate::container::status::ContainerStatus;
use crate::node::Node;
use crate::pod::spec::PodSpec;

#[derive(Debug, Clone, PartialEq)]
pub struct PodStatus {
    pub id: String,
    pub spec: Arc<PodSpec>,
    pub ready: bool,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Empty for a host-network pod (BEHAVIOUR 33).
    pub ips: Vec<IpAddr>,
    /// Why the pod is not ready, or what is wrong with it; empty if nothing is.
    pub message: String,
}

/// NOT_FOUND if there is none. `id` may be a unique prefix.
pub fn status(_node: &Node, _id: &str) -> Result<PodStatus> {
    todo!()
}

/// The containers of a pod, for `containers_statuses`.
pub fn containers(_node: &Node, _id: &str) -> Result<Vec<ContainerStatus>> {
    todo!()
}

/// For `crictl inspectp`: a JSON object (pid, cgroup, namespaces, network).
pub fn info(_node: &Node, _id: &str) -> Result<serde_json::Value> {
    todo!()
}
