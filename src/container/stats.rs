//! ContainerStats.

use std::collections::BTreeMap;
use std::fs::{DirEntry, ReadDir};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    cpu: Rate,
    layer: Layer,
}

/// The size of a writable layer, which only a walk through all of it tells.
#[derive(Debug, Default)]
struct Layer {
    usage: Usage,
    /// Nanoseconds since the epoch; zero: never.
    measured_at: i64,
    /// Somebody walks now.
    walking: bool,
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
/// A layer of more entries is walked by a thread that no call waits for; meanwhile the size is the
/// last one known. About 2 ms.
const WALK_LIMIT: usize = 2_000;

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
pub fn read(node: &Node, container: &Arc<Container>) -> Result<ContainerStats> {
    let stats = match &container.record.cgroup {
        Some(cgroup) if container.process().is_some() => node.cgroups.stats(cgroup)?,
        _ => Stats { timestamp: table::now(), ..Stats::default() },
    };
    let usage_nano_cores =
        stats.cpu_usage.and_then(|usage| container.readings().cpu.update(stats.timestamp, usage));
    let upper = node.layout.container(&container.id).join("upper");
    Ok(ContainerStats {
        container: status::of(container),
        writable_layer: layer_usage(container, upper, stats.timestamp),
        stats,
        usage_nano_cores,
        mountpoint: node.layout.containers().to_string_lossy().into_owned(),
    })
}

/// The size of the writable layer at `upper`, as old as [`LAYER_INTERVAL`] or the walk through it.
fn layer_usage(container: &Arc<Container>, upper: PathBuf, now: i64) -> Usage {
    let mut readings = container.readings();
    let layer = &mut readings.layer;
    if layer.walking || (layer.measured_at > 0 && now - layer.measured_at < LAYER_INTERVAL) {
        return layer.usage;
    }
    layer.walking = true;
    drop(readings);
    let mut walk = Walk::new(upper);
    if walk.go_on(WALK_LIMIT) {
        return container.readings().layer.measured(walk.usage);
    }
    // At least so much, until the first walk is over.
    let so_far = walk.usage;
    let walking = !WALKER.swap(true, Ordering::AcqRel) && walk_on(container, walk);
    let mut readings = container.readings();
    let layer = &mut readings.layer;
    // Where another layer is walked the next call tries again.
    layer.walking &= walking;
    if layer.measured_at == 0 { so_far } else { layer.usage }
}

/// One layer at a time: a node has one disk, and others to serve.
static WALKER: AtomicBool = AtomicBool::new(false);

fn walk_on(container: &Arc<Container>, mut walk: Walk) -> bool {
    let container = Arc::clone(container);
    let rest = move || {
        walk.go_on(usize::MAX);
        WALKER.store(false, Ordering::Release);
        container.readings().layer.measured(walk.usage);
    };
    let spawned = std::thread::Builder::new().name("layer-size".into()).spawn(rest);
    if spawned.is_err() {
        WALKER.store(false, Ordering::Release);
    }
    spawned.is_ok()
}

impl Layer {
    fn measured(&mut self, usage: Usage) -> Usage {
        *self = Self { usage, measured_at: table::now(), walking: false };
        usage
    }
}

/// Counts bytes and inodes below a directory. What goes away while it is read counts as gone.
#[derive(Debug)]
struct Walk {
    usage: Usage,
    left: Vec<PathBuf>,
    /// The directory that is half read.
    reading: Option<ReadDir>,
}

impl Walk {
    fn new(directory: PathBuf) -> Self {
        Self { usage: Usage::default(), left: vec![directory], reading: None }
    }

    /// Counts `limit` entries. True: that was all.
    fn go_on(&mut self, limit: usize) -> bool {
        for _ in 0..limit {
            let Some(entry) = self.next() else { return true };
            let Ok(meta) = entry.metadata() else { continue };
            self.usage.bytes += meta.blocks() * 512;
            if meta.is_dir() {
                self.left.push(entry.path());
            } else {
                self.usage.inodes += 1;
            }
        }
        false
    }

    fn next(&mut self) -> Option<DirEntry> {
        loop {
            if let Some(entry) = self.reading.as_mut().and_then(|reading| reading.flatten().next()) {
                return Some(entry);
            }
            self.reading = std::fs::read_dir(self.left.pop()?).ok();
            self.usage.inodes += u64::from(self.reading.is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaviour_36_a_layer_is_counted_whole_in_however_many_goes() {
        let upper = tempfile::tempdir().unwrap();
        for directory in ["a", "a/b", "c"] {
            std::fs::create_dir(upper.path().join(directory)).unwrap();
            std::fs::write(upper.path().join(directory).join("file"), vec![1; 10_000]).unwrap();
        }
        let mut whole = Walk::new(upper.path().to_owned());
        assert!(whole.go_on(usize::MAX));
        assert_eq!(whole.usage.inodes, 7);
        assert!(whole.usage.bytes >= 30_000);
        let mut parts = Walk::new(upper.path().to_owned());
        assert!(!parts.go_on(1));
        while !parts.go_on(1) {}
        assert_eq!(parts.usage, whole.usage);
    }

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
