//! PodSandboxMetrics: the stats, and what is read for metrics alone.

use std::sync::Arc;

use crate::cgroup::Details;
use crate::container::metrics::{self as container_metrics, ContainerMetrics, Filesystem};
use crate::node::Node;
use crate::pod::Pod;
use crate::pod::stats::{self, PodStats};

#[derive(Debug, Clone)]
pub struct PodMetrics {
    /// Without its containers.
    pub stats: PodStats,
    /// Of the pod's cgroup as a whole.
    pub details: Details,
    pub containers: Vec<ContainerMetrics>,
}

/// Ready pods only. One that cannot be read is left out.
pub async fn list(node: &Arc<Node>) -> Vec<PodMetrics> {
    let node = Arc::clone(node);
    let work = move || {
        let filesystem = Filesystem::of(&node.layout.containers());
        let pods: Vec<_> = node.pods.all().into_iter().filter(|pod| stats::is_ready(pod)).collect();
        let read = pods.iter().zip(stats::read(&node, &pods));
        read.filter_map(|(pod, stats)| Some(of(&node, pod, stats.ok()?, filesystem))).collect()
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

fn of(node: &Node, pod: &Pod, mut stats: PodStats, filesystem: Option<Filesystem>) -> PodMetrics {
    let containers = std::mem::take(&mut stats.containers).into_iter();
    let containers = containers.map(|of| container_metrics::read(node, of, filesystem)).collect();
    let record = pod.record();
    let details = record.cgroup.as_ref().map(|cgroup| node.cgroups.details(cgroup)).unwrap_or_default();
    PodMetrics { stats, details, containers }
}
