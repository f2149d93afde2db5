//! A pod as it is, for PodSandboxStatus.

use std::net::IpAddr;
use std::sync::Arc;

use crate::Result;
use crate::container::{self, status::ContainerStatus};
use crate::node::Node;
use crate::pod::spec::PodSpec;
use crate::pod::{Phase, Pod};

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
pub fn status(node: &Node, id: &str) -> Result<PodStatus> {
    Ok(of(&*node.pods.find(id)?))
}

/// The status of a pod at hand.
pub fn of(pod: &Pod) -> PodStatus {
    let record = pod.record();
    let (ready, message) = match pod.phase() {
        Phase::Ready(_) => (true, String::new()),
        Phase::NotReady(why) => (false, why),
    };
    PodStatus {
        id: record.id.clone(),
        spec: Arc::clone(&record.spec),
        ready,
        created_at: record.created_at,
        ips: record.ips.clone(),
        message,
    }
}

/// The containers of a pod, oldest first.
pub fn containers(node: &Node, id: &str) -> Result<Vec<ContainerStatus>> {
    let pod = node.pods.find(id)?;
    let filter = container::list::Filter { pod_id: pod.id.clone(), ..Default::default() };
    Ok(container::list::list(node, &filter))
}

/// For `crictl inspectp`: a JSON object (pid, cgroup, netns, message).
pub fn info(node: &Node, id: &str) -> Result<serde_json::Value> {
    let pod = node.pods.find(id)?;
    let record = pod.record();
    let (pid, message) = match pod.phase() {
        Phase::Ready(shared) => (shared.init.map_or(0, |init| init.pid), String::new()),
        Phase::NotReady(why) => (0, why),
    };
    Ok(serde_json::json!({
        "pid": pid,
        "cgroup": record.cgroup,
        "netNS": record.netns,
        "ips": record.ips,
        "runtimeHandler": record.spec.runtime_handler,
        "message": message,
    }))
}
