//! PodSandboxStats.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};

use crate::cgroup::Stats;
use crate::container::Container;
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
    let none = || Err(Error::internal("reading the stats: nothing was read"));
    tokio::task::spawn_blocking(move || read(&node, &[pod]).pop().unwrap_or_else(none))
        .await
        .map_err(|e| Error::internal(format!("reading the stats: {e}")))?
}

/// Ready pods only. One that cannot be read is left out.
pub async fn list(node: &Arc<Node>, filter: &Filter) -> Vec<PodStats> {
    let wanted: Vec<_> = node.pods.all().into_iter().filter(|p| matches(filter, p)).collect();
    let node = Arc::clone(node);
    let work = move || read(&node, &wanted).into_iter().flatten().collect();
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

fn matches(filter: &Filter, pod: &Pod) -> bool {
    is_ready(pod)
        && pod.id.starts_with(&filter.id)
        && filter.labels.iter().all(|(k, v)| pod.record().spec.labels.get(k) == Some(v))
}

pub fn is_ready(pod: &Pod) -> bool {
    matches!(pod.phase(), Phase::Ready(_))
}

/// The stats of each, in order. Blocks: some hundred microseconds a pod.
pub fn read(node: &Node, pods: &[Arc<Pod>]) -> Vec<Result<PodStats>> {
    let mut containers: HashMap<String, Vec<Arc<Container>>> = HashMap::new();
    for container in node.containers.all().into_iter().filter(|c| c.process().is_some()) {
        containers.entry(container.record.pod_id.clone()).or_default().push(container);
    }
    let one = |(pod, interfaces): (&Arc<Pod>, Result<Vec<InterfaceStats>>)| {
        let containers = containers.get(&pod.id).map(Vec::as_slice).unwrap_or_default();
        read_one(node, pod, interfaces?, containers)
    };
    pods.iter().zip(interfaces(pods)).map(one).collect()
}

/// None of a pod that has no network of its own. All are visited in one go: each go is a thread.
fn interfaces(pods: &[Arc<Pod>]) -> Vec<Result<Vec<InterfaceStats>>> {
    let pins: Vec<_> = pods.iter().map(|pod| pod.record().netns.clone()).collect();
    let own = |index: &usize| !pins[*index].as_os_str().is_empty() && is_ready(&pods[*index]);
    let owners: Vec<_> = (0..pods.len()).filter(own).collect();
    let visited = Network::stats_of(&owners.iter().map(|index| &pins[*index]).collect::<Vec<_>>());
    let mut all: Vec<_> = pods.iter().map(|_| Ok(Vec::new())).collect();
    for (index, stats) in owners.into_iter().zip(visited) {
        all[index] = stats;
    }
    all
}

fn read_one(
    node: &Node,
    pod: &Pod,
    interfaces: Vec<InterfaceStats>,
    containers: &[Arc<Container>],
) -> Result<PodStats> {
    let stats = match &pod.record().cgroup {
        Some(cgroup) if is_ready(pod) => node.cgroups.stats(cgroup)?,
        _ => Stats { timestamp: table::now(), ..Stats::default() },
    };
    let mut rate = pod.cpu.lock().unwrap_or_else(PoisonError::into_inner);
    let usage_nano_cores = stats.cpu_usage.and_then(|usage| rate.update(stats.timestamp, usage));
    drop(rate);
    let containers = containers.iter().filter_map(|c| container_stats::read(node, c).ok()).collect();
    Ok(PodStats { pod: status::of(pod), stats, usage_nano_cores, interfaces, containers })
}
