//! PodSandboxStats.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use crate::cgroup::Stats;
use crate::container::stats::{self as container_stats, ContainerStats};
use crate::network::{InterfaceStats, Network};
use crate::node::{Node, table};
use crate::pod::status::{self, PodStatus};
use crate::pod::{Phase, Pod};
use crate::{Error, Result};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub id: String,
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
pub struct PodStats {
    pub pod: PodStatus,
    /// Of the pod's cgroup as a whole.
    pub stats: Stats,
    /// See `ContainerStats::usage_nano_cores`.
    pub usage_nano_cores: Option<u64>,
    pub interfaces: Vec<InterfaceStats>,
    pub containers: Vec<ContainerStats>,
}

pub async fn stats(node: &Arc<Node>, id: &str) -> Result<PodStats> {
    let pod = node.pods.find(id)?;
    let node = Arc::clone(node);
    tokio::task::spawn_blocking(move || read(&node, &pod))
        .await
        .map_err(|e| Error::internal(format!("reading the stats: {e}")))?
}

/// Ready pods only. One that cannot be read is left out.
pub async fn list(node: &Arc<Node>, filter: &Filter) -> Vec<PodStats> {
    let wanted: Vec<_> = node.pods.all().into_iter().filter(|p| matches(filter, p)).collect();
    let node = Arc::clone(node);
    let work = move || wanted.iter().filter_map(|p| read(&node, p).ok()).collect();
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

fn matches(filter: &Filter, pod: &Pod) -> bool {
    matches!(pod.phase(), Phase::Ready(_))
        && pod.id.starts_with(&filter.id)
        && filter.labels.iter().all(|(k, v)| pod.record().spec.labels.get(k) == Some(v))
}

pub fn read(node: &Node, pod: &Pod) -> Result<PodStats> {
    let record = pod.record();
    let ready = matches!(pod.phase(), Phase::Ready(_));
    let stats = match &record.cgroup {
        Some(cgroup) if ready => node.cgroups.stats(cgroup)?,
        _ => Stats { timestamp: table::now(), ..Stats::default() },
    };
    let mut rate = pod.cpu.lock().unwrap_or_else(PoisonError::into_inner);
    let usage_nano_cores = stats.cpu_usage.and_then(|usage| rate.update(stats.timestamp, usage));
    drop(rate);
    let interfaces = match record.netns.as_os_str().is_empty() || !ready {
        true => Vec::new(),
        false => Network::stats(&record.netns)?,
    };
    let containers = node.containers.all();
    let containers = containers.iter().filter(|c| c.record.pod_id == pod.id && c.process().is_some());
    let containers = containers.filter_map(|c| container_stats::read(node, c).ok()).collect();
    Ok(PodStats { pod: status::of(pod), stats, usage_nano_cores, interfaces, containers })
}
