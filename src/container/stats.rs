//! ContainerStats.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use crate::cgroup::Stats;
use crate::container::status::{self, ContainerStatus};
use crate::container::{Container, Phase};
use crate::image::Usage;
use crate::node::{Node, table};
use crate::{Error, Result};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub id: String,
    pub pod_id: String,
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
pub struct ContainerStats {
    pub container: ContainerStatus,
    pub stats: Stats,
    /// A rate over the last two readings; None before there were two.
    pub usage_nano_cores: Option<u64>,
    pub writable_layer: Usage,
    /// Where the writable layers are: `FilesystemIdentifier.mountpoint`.
    pub mountpoint: String,
}

/// What was read last, for rates and for what is dear to read.
#[derive(Debug, Default)]
pub struct Readings {
    pub cpu: Rate,
    layer: Option<(i64, Usage)>,
}

/// A cumulative counter's rate over readings at least a second apart.
#[derive(Debug, Default)]
pub struct Rate {
    base: Option<(i64, u64)>,
    value: Option<u64>,
}

/// Readings closer than this would give noise instead of a rate. Nanoseconds.
const RATE_INTERVAL: i64 = 1_000_000_000;
/// How long the size of a writable layer is believed. Nanoseconds.
const LAYER_INTERVAL: i64 = 10_000_000_000;

impl Rate {
    /// Per second, of `usage` at `timestamp` (ns).
    pub fn update(&mut self, timestamp: i64, usage: u64) -> Option<u64> {
        match self.base {
            Some((then, before)) if timestamp - then >= RATE_INTERVAL && usage >= before => {
                let nanos = u128::from((timestamp - then).unsigned_abs());
                let rate = u128::from(usage - before) * 1_000_000_000 / nanos;
                self.value = Some(u64::try_from(rate).unwrap_or(u64::MAX));
                self.base = Some((timestamp, usage));
            }
            Some((_, before)) if usage >= before => {}
            _ => self.base = Some((timestamp, usage)),
        }
        self.value
    }
}

pub async fn stats(node: &Arc<Node>, id: &str) -> Result<ContainerStats> {
    let container = node.containers.find(id)?;
    let node = Arc::clone(node);
    tokio::task::spawn_blocking(move || read(&node, &container))
        .await
        .map_err(|e| Error::internal(format!("reading the stats: {e}")))?
}

/// Running containers only, as kubelet expects. One that cannot be read is left out.
pub async fn list(node: &Arc<Node>, filter: &Filter) -> Vec<ContainerStats> {
    let wanted: Vec<_> = node.containers.all().into_iter().filter(|c| matches(filter, c)).collect();
    let node = Arc::clone(node);
    let work = move || wanted.iter().filter_map(|c| read(&node, c).ok()).collect();
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

fn matches(filter: &Filter, container: &Container) -> bool {
    let record = &container.record;
    matches!(container.phase(), Phase::Running { .. })
        && record.id.starts_with(&filter.id)
        && record.pod_id.starts_with(&filter.pod_id)
        && filter.labels.iter().all(|(k, v)| record.spec.labels.get(k) == Some(v))
}

/// Reads a container's cgroup and its writable layer.
pub fn read(node: &Node, container: &Container) -> Result<ContainerStats> {
    let stats = match &container.record.cgroup {
        Some(cgroup) if container.process().is_some() => node.cgroups.stats(cgroup)?,
        _ => Stats { timestamp: table::now(), ..Stats::default() },
    };
    let directory = node.layout.container(&container.id).join("upper");
    let mut readings = container.reading.lock().unwrap_or_else(PoisonError::into_inner);
    let usage_nano_cores = stats.cpu_usage.and_then(|usage| readings.cpu.update(stats.timestamp, usage));
    let writable_layer = match readings.layer {
        Some((then, usage)) if stats.timestamp - then < LAYER_INTERVAL => usage,
        _ => {
            let usage = usage_of(&directory);
            readings.layer = Some((stats.timestamp, usage));
            usage
        }
    };
    Ok(ContainerStats {
        container: status::of(container),
        stats,
        usage_nano_cores,
        writable_layer,
        mountpoint: node.layout.containers().to_string_lossy().into_owned(),
    })
}

/// Bytes and inodes below a directory. What goes away while it is read counts as gone.
fn usage_of(directory: &Path) -> Usage {
    let mut usage = Usage::default();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        usage.inodes += 1;
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            usage.bytes += meta.blocks() * 512;
            if meta.is_dir() {
                left.push(entry.path());
            } else {
                usage.inodes += 1;
            }
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaviour_36_the_cpu_rate_needs_two_readings_a_second_apart() {
        let mut rate = Rate::default();
        let second = 1_000_000_000;
        assert_eq!(rate.update(second, 100), None);
        assert_eq!(rate.update(second + 10, 200), None, "too close");
        assert_eq!(rate.update(3 * second, 2_000_000_100), Some(1_000_000_000));
        assert_eq!(rate.update(3 * second + 10, 2_000_000_200), Some(1_000_000_000), "the last rate stays");
        assert_eq!(rate.update(5 * second, 5), Some(1_000_000_000), "a counter that fell starts anew");
    }
}
