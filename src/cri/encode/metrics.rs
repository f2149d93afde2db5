//! Metrics in Prometheus' terms, under the names that cadvisor uses, so that dashboards and alerts
//! written for it go on working.
//!
//! The wire has whole numbers only: what the name says is in seconds is in whole seconds.

use crate::cgroup::Stats;
use crate::container::stats::ContainerStats;
use crate::cri::encode::now;
use crate::cri::wire::{self, MetricType::*};
use crate::network::InterfaceStats;
use crate::pod::spec::PodSpec;
use crate::pod::stats::PodStats;

/// kubelet adds no labels, so the pod and the container are named here.
const LABELS: &[&str] = &["pod", "namespace", "container", "id", "image"];

/// A metric's name, its help, what it counts, and labels beside [`LABELS`].
struct Metric(&'static str, &'static str, wire::MetricType, &'static [&'static str]);

const CPU: Metric = Metric("container_cpu_usage_seconds_total", "CPU time used, in seconds.", Counter, &[]);
const CPU_WAITING: Metric = Metric(
    "container_pressure_cpu_waiting_seconds_total",
    "Time in which some task waited for a CPU, in seconds.",
    Counter,
    &[],
);
const CPU_STALLED: Metric = Metric(
    "container_pressure_cpu_stalled_seconds_total",
    "Time in which all tasks waited for a CPU, in seconds.",
    Counter,
    &[],
);
const CPU_PERIOD: Metric =
    Metric("container_spec_cpu_period", "Period of the CPU limit, in microseconds.", Gauge, &[]);
const CPU_QUOTA: Metric =
    Metric("container_spec_cpu_quota", "CPU time allowed per period, in microseconds.", Gauge, &[]);
const CPU_SHARES: Metric = Metric("container_spec_cpu_shares", "Weight among the pod's peers.", Gauge, &[]);

const MEMORY: Metric =
    Metric("container_memory_usage_bytes", "Memory used, page cache included.", Gauge, &[]);
const WORKING_SET: Metric =
    Metric("container_memory_working_set_bytes", "Memory used, without the inactive page cache.", Gauge, &[]);
const RSS: Metric = Metric("container_memory_rss", "Anonymous memory, in bytes.", Gauge, &[]);
const SWAP: Metric = Metric("container_memory_swap", "Swap used, in bytes.", Gauge, &[]);
const FAULTS: Metric = Metric(
    "container_memory_failures_total",
    "Page faults, and those among them that had to read from a disk.",
    Counter,
    &["failure_type", "scope"],
);
const MEMORY_WAITING: Metric = Metric(
    "container_pressure_memory_waiting_seconds_total",
    "Time in which some task waited for memory, in seconds.",
    Counter,
    &[],
);
const MEMORY_STALLED: Metric = Metric(
    "container_pressure_memory_stalled_seconds_total",
    "Time in which all tasks waited for memory, in seconds.",
    Counter,
    &[],
);
const MEMORY_LIMIT: Metric =
    Metric("container_spec_memory_limit_bytes", "Memory limit; 0 for none.", Gauge, &[]);
const SWAP_LIMIT: Metric = Metric(
    "container_spec_memory_swap_limit_bytes",
    "Limit of memory and swap together; 0 for none.",
    Gauge,
    &[],
);

const IO_WAITING: Metric = Metric(
    "container_pressure_io_waiting_seconds_total",
    "Time in which some task waited for I/O, in seconds.",
    Counter,
    &[],
);
const IO_STALLED: Metric = Metric(
    "container_pressure_io_stalled_seconds_total",
    "Time in which all tasks waited for I/O, in seconds.",
    Counter,
    &[],
);
const FS_USAGE: Metric =
    Metric("container_fs_usage_bytes", "Bytes used by the writable layer.", Gauge, &["device"]);

const TASKS: Metric = Metric("container_threads", "Tasks in the cgroup.", Gauge, &[]);
const STARTED: Metric =
    Metric("container_start_time_seconds", "When it was started, in seconds since the epoch.", Gauge, &[]);
const SEEN: Metric =
    Metric("container_last_seen", "When it was last looked at, in seconds since the epoch.", Gauge, &[]);

const RECEIVED: Metric =
    Metric("container_network_receive_bytes_total", "Bytes received.", Counter, &["interface"]);
const RECEIVE_ERRORS: Metric = Metric(
    "container_network_receive_errors_total",
    "Errors while packets were received.",
    Counter,
    &["interface"],
);
const SENT: Metric = Metric("container_network_transmit_bytes_total", "Bytes sent.", Counter, &["interface"]);
const SEND_ERRORS: Metric = Metric(
    "container_network_transmit_errors_total",
    "Errors while packets were sent.",
    Counter,
    &["interface"],
);

const ALL: &[&Metric] = &[
    &CPU,
    &CPU_WAITING,
    &CPU_STALLED,
    &CPU_PERIOD,
    &CPU_QUOTA,
    &CPU_SHARES, // CPU
    &MEMORY,
    &WORKING_SET,
    &RSS,
    &SWAP,
    &FAULTS,
    &MEMORY_WAITING,
    &MEMORY_STALLED, // memory
    &MEMORY_LIMIT,
    &SWAP_LIMIT, // limits
    &IO_WAITING,
    &IO_STALLED,
    &FS_USAGE,
    // disk
    &TASKS,
    &STARTED,
    &SEEN, // processes
    &RECEIVED,
    &RECEIVE_ERRORS,
    &SENT,
    &SEND_ERRORS, // network
];

pub(in crate::cri) fn descriptors() -> Vec<wire::MetricDescriptor> {
    let describe = |&&Metric(name, help, _, labels): &&Metric| wire::MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys: LABELS.iter().chain(labels).map(|&label| label.to_owned()).collect(),
    };
    ALL.iter().map(describe).collect()
}

pub(in crate::cri) fn pod(of: PodStats) -> wire::PodSandboxMetrics {
    let spec = &of.pod.spec;
    let mut pod = Set::new(spec, "", &of.pod.id, "");
    pod.cgroup(&of.stats);
    of.interfaces.iter().for_each(|interface| pod.interface(interface));
    pod.add(&SEEN, seconds(now()));
    wire::PodSandboxMetrics {
        container_metrics: of.containers.iter().map(|of| container(spec, of)).collect(),
        metrics: pod.metrics,
        pod_sandbox_id: of.pod.id,
    }
}

fn container(pod: &PodSpec, of: &ContainerStats) -> wire::ContainerMetrics {
    let status = &of.container;
    let image = &status.spec.image;
    let image =
        if image.user_specified_image.is_empty() { &image.image } else { &image.user_specified_image };
    let mut set = Set::new(pod, &status.spec.name.name, &status.id, image);
    set.cgroup(&of.stats);
    set.add_with(&FS_USAGE, of.writable_layer.bytes, &[&of.mountpoint]);
    let limits = &status.resources;
    set.add(&CPU_PERIOD, positive(limits.cpu_period));
    set.add(&CPU_QUOTA, positive(limits.cpu_quota));
    set.add(&CPU_SHARES, positive(limits.cpu_shares));
    set.add(&MEMORY_LIMIT, positive(limits.memory_limit));
    set.add(&SWAP_LIMIT, positive(limits.memory_swap_limit));
    set.add(&STARTED, seconds(status.started_at));
    set.add(&SEEN, seconds(now()));
    wire::ContainerMetrics { container_id: status.id.clone(), metrics: set.metrics }
}

/// The metrics of one pod or container, all with its labels.
struct Set {
    labels: Vec<String>,
    metrics: Vec<wire::Metric>,
}

impl Set {
    fn new(pod: &PodSpec, container: &str, id: &str, image: &str) -> Self {
        let labels = [&pod.name.name, &pod.name.namespace, container, id, image];
        Self { labels: labels.map(str::to_owned).to_vec(), metrics: Vec::new() }
    }

    fn add(&mut self, metric: &Metric, value: u64) {
        self.add_with(metric, value, &[]);
    }

    /// `labels`: the values of the metric's own, in its order.
    fn add_with(&mut self, &Metric(name, _, kind, own): &Metric, value: u64, labels: &[&str]) {
        debug_assert_eq!(own.len(), labels.len(), "{name}");
        let own = labels.iter().map(|&label| label.to_owned());
        self.metrics.push(wire::Metric {
            name: name.to_owned(),
            // Zero means now.
            timestamp: 0,
            metric_type: kind.into(),
            label_values: self.labels.iter().cloned().chain(own).collect(),
            value: Some(wire::UInt64Value { value }),
        });
    }

    fn cgroup(&mut self, stats: &Stats) {
        if let Some(nanos) = stats.cpu_usage {
            self.add(&CPU, nanos / 1_000_000_000);
        }
        if let Some(memory) = stats.memory {
            self.add(&MEMORY, memory.usage);
            self.add(&WORKING_SET, memory.working_set);
            self.add(&RSS, memory.rss);
            self.add_with(&FAULTS, memory.page_faults, &["pgfault", "container"]);
            self.add_with(&FAULTS, memory.major_page_faults, &["pgmajfault", "container"]);
        }
        if let Some(swap) = stats.swap_usage {
            self.add(&SWAP, swap);
        }
        if let Some(tasks) = stats.pids {
            self.add(&TASKS, tasks);
        }
        let pressures = [
            (stats.cpu_psi, &CPU_WAITING, &CPU_STALLED),
            (stats.memory_psi, &MEMORY_WAITING, &MEMORY_STALLED),
            (stats.io_psi, &IO_WAITING, &IO_STALLED),
        ];
        for (pressure, waiting, stalled) in pressures {
            if let Some(pressure) = pressure {
                self.add(waiting, pressure.some.total / 1_000_000);
                self.add(stalled, pressure.full.total / 1_000_000);
            }
        }
    }

    fn interface(&mut self, of: &InterfaceStats) {
        self.add_with(&RECEIVED, of.rx_bytes, &[&of.name]);
        self.add_with(&RECEIVE_ERRORS, of.rx_errors, &[&of.name]);
        self.add_with(&SENT, of.tx_bytes, &[&of.name]);
        self.add_with(&SEND_ERRORS, of.tx_errors, &[&of.name]);
    }
}

/// Of nanoseconds since the epoch.
fn seconds(nanos: i64) -> u64 {
    positive(nanos / 1_000_000_000)
}

/// A limit as a metric has it: none at all is 0.
fn positive(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cgroup::{MemoryStats, Psi};
    use crate::cri::encode::fixtures;
    use crate::image::Usage;

    fn stats() -> Stats {
        Stats {
            cpu_usage: Some(2_900_000_000),
            memory: Some(MemoryStats { usage: 9, ..Default::default() }),
            swap_usage: Some(1),
            pids: Some(3),
            cpu_psi: Some(Psi::default()),
            memory_psi: Some(Psi::default()),
            io_psi: Some(Psi::default()),
            ..Default::default()
        }
    }

    fn full() -> wire::PodSandboxMetrics {
        let container = ContainerStats {
            container: fixtures::container(),
            stats: stats(),
            usage_nano_cores: None,
            writable_layer: Usage { bytes: 7, inodes: 1 },
            mountpoint: "/var/lib/podwright".into(),
        };
        pod(PodStats {
            pod: fixtures::pod(),
            stats: stats(),
            usage_nano_cores: None,
            interfaces: vec![InterfaceStats { name: "eth0".into(), rx_bytes: 5, ..Default::default() }],
            containers: vec![container],
        })
    }

    #[test]
    fn every_metric_is_described_and_every_description_is_used() {
        let described: BTreeMap<_, _> =
            descriptors().into_iter().map(|d| (d.name, d.label_keys.len())).collect();
        let pod = full();
        let metrics = pod.metrics.iter().chain(&pod.container_metrics[0].metrics);
        let used: BTreeMap<_, _> = metrics.map(|m| (m.name.clone(), m.label_values.len())).collect();
        assert_eq!(used, described);
        assert_eq!(described.len(), ALL.len(), "a name occurs twice");
    }

    #[test]
    fn labels_name_the_pod_and_the_container() {
        let pod = full();
        let received = pod.metrics.iter().find(|m| m.name == "container_network_receive_bytes_total");
        assert_eq!(received.unwrap().label_values, ["web", "default", "", "p1", "", "eth0"]);
        let cpu = pod.container_metrics[0].metrics.iter().find(|m| m.name == CPU.0).unwrap();
        assert_eq!(cpu.label_values, ["web", "default", "c", "c1", "busybox:1.36"]);
        assert_eq!(cpu.value.unwrap().value, 2);
    }
}
