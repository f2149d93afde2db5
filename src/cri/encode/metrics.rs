//! Metrics in Prometheus' terms, under the names that cadvisor uses, so that dashboards and alerts
//! written for it go on working. What this host does not tell is left out.
//!
//! The wire has whole numbers only: what the name says is in seconds is in whole seconds.

mod names;

use crate::cgroup::{Details, DeviceIo, MemoryDetails, Stats};
use crate::container::metrics::ContainerMetrics;
use crate::cri::encode::now;
use crate::cri::wire;
use crate::network::InterfaceStats;
use crate::pod::metrics::PodMetrics;
use crate::pod::spec::PodSpec;
use names::*;

pub(in crate::cri) fn descriptors() -> Vec<wire::MetricDescriptor> {
    let describe = |metric: &&Metric| wire::MetricDescriptor {
        name: metric.name.to_owned(),
        help: metric.help.to_owned(),
        label_keys: LABELS.iter().chain(metric.labels).map(|&label| label.to_owned()).collect(),
    };
    ALL.iter().map(describe).collect()
}

pub(in crate::cri) fn pod(of: &PodMetrics) -> wire::PodSandboxMetrics {
    let PodMetrics { stats, details, containers } = of;
    let spec = &stats.pod.spec;
    let mut pod = Set::new(spec, "", &stats.pod.id, "");
    pod.cgroup(&stats.stats);
    pod.details(details);
    stats.interfaces.iter().for_each(|interface| pod.interface(interface));
    pod.add(&SEEN, seconds(now()));
    wire::PodSandboxMetrics {
        container_metrics: containers.iter().map(|of| container(spec, of)).collect(),
        metrics: pod.metrics,
        pod_sandbox_id: stats.pod.id.clone(),
    }
}

fn container(pod: &PodSpec, of: &ContainerMetrics) -> wire::ContainerMetrics {
    let status = &of.stats.container;
    let image = &status.spec.image;
    let image =
        if image.user_specified_image.is_empty() { &image.image } else { &image.user_specified_image };
    let mut set = Set::new(pod, &status.spec.name.name, &status.id, image);
    set.cgroup(&of.stats.stats);
    set.details(&of.details);
    let limits = &status.resources;
    set.add(&CPU_PERIOD, positive(limits.cpu_period));
    set.add(&CPU_QUOTA, positive(limits.cpu_quota));
    set.add(&CPU_SHARES, positive(limits.cpu_shares));
    set.add(&MEMORY_LIMIT, positive(limits.memory_limit));
    set.add(&SWAP_LIMIT, positive(limits.memory_swap_limit));
    set.files(of);
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
    fn add_with(&mut self, metric: &Metric, value: u64, labels: &[&str]) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let own = labels.iter().map(|&label| label.to_owned());
        self.metrics.push(wire::Metric {
            name: metric.name.to_owned(),
            // Zero means now.
            timestamp: 0,
            metric_type: metric.kind.into(),
            label_values: self.labels.iter().cloned().chain(own).collect(),
            value: Some(wire::UInt64Value { value }),
        });
    }

    fn add_known(&mut self, metric: &Metric, value: Option<u64>) {
        if let Some(value) = value {
            self.add(metric, value);
        }
    }

    fn cgroup(&mut self, stats: &Stats) {
        self.add_known(&CPU, stats.cpu_usage.map(|nanos| nanos / SECOND));
        if let Some(memory) = stats.memory {
            self.add(&MEMORY, memory.usage);
            self.add(&WORKING_SET, memory.working_set);
            self.add(&RSS, memory.rss);
            self.add_with(&FAULTS, memory.page_faults, &["pgfault", "container"]);
            self.add_with(&FAULTS, memory.major_page_faults, &["pgmajfault", "container"]);
        }
        self.add_known(&SWAP, stats.swap_usage);
        self.add_known(&TASKS, stats.pids);
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

    fn details(&mut self, details: &Details) {
        if let Some(time) = details.cpu_time {
            self.add(&CPU_USER, time.user / SECOND);
            self.add(&CPU_SYSTEM, time.system / SECOND);
        }
        if let Some(of) = details.throttling {
            self.add(&CPU_PERIODS, of.periods);
            self.add(&CPU_THROTTLED_PERIODS, of.throttled_periods);
            self.add(&CPU_THROTTLED, of.throttled / SECOND);
        }
        if let Some(memory) = &details.memory {
            self.memory(memory);
        }
        self.add_known(&OOM_KILLS, details.oom_kills);
        self.add_known(&TASKS_LIMIT, details.pids_limit);
        for pages in &details.huge_pages {
            self.add_with(&HUGE_PAGES, pages.usage, &[&pages.size]);
            if let Some(peak) = pages.peak {
                self.add_with(&HUGE_PAGES_PEAK, peak, &[&pages.size]);
            }
        }
        details.io.iter().for_each(|io| self.device(io));
    }

    fn memory(&mut self, memory: &MemoryDetails) {
        self.add(&CACHE, memory.cache);
        self.add(&MAPPED_FILE, memory.mapped_file);
        self.add_known(&KERNEL_MEMORY, memory.kernel);
        self.add_known(&MEMORY_PEAK, memory.peak);
        self.add_known(&LIMIT_HITS, memory.limit_hits);
        self.add_known(&MEMORY_RESERVATION, memory.reservation);
    }

    fn device(&mut self, io: &DeviceIo) {
        let (major, minor) = (io.major.to_string(), io.minor.to_string());
        let device = device_name(io.major, io.minor);
        self.add_with(&BLKIO, io.read_bytes, &[&device, &major, &minor, "Read"]);
        self.add_with(&BLKIO, io.written_bytes, &[&device, &major, &minor, "Write"]);
        self.add_with(&READ_BYTES, io.read_bytes, &[&device]);
        self.add_with(&READS, io.reads, &[&device]);
        self.add_with(&WRITTEN_BYTES, io.written_bytes, &[&device]);
        self.add_with(&WRITES, io.writes, &[&device]);
    }

    fn files(&mut self, of: &ContainerMetrics) {
        let device: &[&str] = &[&of.stats.mountpoint];
        self.add_with(&FS_USAGE, of.stats.writable_layer.bytes, device);
        if let Some(of) = of.filesystem {
            self.add_with(&FS_LIMIT, of.bytes, device);
            self.add_with(&FS_INODES, of.inodes, device);
            self.add_with(&FS_INODES_FREE, of.inodes_free, device);
        }
        if let Some(of) = of.processes {
            self.add(&PROCESSES, of.count);
            self.add(&FILES, of.files);
            self.add(&SOCKETS, of.sockets);
            if let Some(limit) = of.files_limit {
                self.add_with(&ULIMITS, limit, &["max_open_files"]);
            }
        }
    }

    fn interface(&mut self, of: &InterfaceStats) {
        let counters = [
            (&RECEIVED, of.rx_bytes),
            (&RECEIVED_PACKETS, of.rx_packets),
            (&RECEIVE_ERRORS, of.rx_errors),
            (&RECEIVE_DROPS, of.rx_dropped),
            (&SENT, of.tx_bytes),
            (&SENT_PACKETS, of.tx_packets),
            (&SEND_ERRORS, of.tx_errors),
            (&SEND_DROPS, of.tx_dropped),
        ];
        counters.into_iter().for_each(|(metric, value)| self.add_with(metric, value, &[&of.name]));
    }
}

/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// `/dev/vda`; the number of a device that is gone.
fn device_name(major: u32, minor: u32) -> String {
    let number = format!("{major}:{minor}");
    let target = std::fs::read_link(format!("/sys/dev/block/{number}")).ok();
    let name = target.as_ref().and_then(|target| target.file_name()?.to_str());
    // The kernel writes a slash in a device's name as an exclamation mark.
    name.map_or(number, |name| format!("/dev/{}", name.replace('!', "/")))
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
    use crate::cgroup::{CpuTime, HugePages, MemoryStats, Psi, Throttling};
    use crate::container::metrics::{Filesystem, Processes};
    use crate::container::stats::ContainerStats;
    use crate::cri::encode::fixtures;
    use crate::image::Usage;
    use crate::pod::stats::PodStats;

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

    fn details() -> Details {
        let memory = MemoryDetails {
            kernel: Some(1),
            peak: Some(2),
            limit_hits: Some(3),
            reservation: Some(0),
            ..Default::default()
        };
        Details {
            cpu_time: Some(CpuTime { user: 1_999_999_999, system: 5 }),
            throttling: Some(Throttling { periods: 9, throttled_periods: 4, throttled: 3_100_000_000 }),
            memory: Some(memory),
            pids_limit: Some(0),
            oom_kills: Some(1),
            huge_pages: vec![HugePages { size: "2MB".into(), usage: 0, peak: Some(2 << 20) }],
            io: vec![DeviceIo { major: 99_999, minor: 1, read_bytes: 6, reads: 1, ..Default::default() }],
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
        let container = ContainerMetrics {
            stats: container,
            details: details(),
            processes: Some(Processes { count: 2, files: 8, sockets: 3, files_limit: Some(1024) }),
            filesystem: Some(Filesystem { bytes: 100, inodes: 10, inodes_free: 4 }),
        };
        let stats = PodStats {
            pod: fixtures::pod(),
            stats: stats(),
            usage_nano_cores: None,
            interfaces: vec![InterfaceStats { name: "eth0".into(), rx_bytes: 5, ..Default::default() }],
            containers: vec![],
        };
        pod(&PodMetrics { stats, details: details(), containers: vec![container] })
    }

    /// The values of one of the container's metrics, each with its last label.
    fn values<'a>(of: &'a wire::PodSandboxMetrics, metric: &Metric) -> Vec<(&'a str, u64)> {
        let found = of.container_metrics[0].metrics.iter().filter(|m| m.name == metric.name);
        found.map(|m| (m.label_values.last().unwrap().as_str(), m.value.unwrap().value)).collect()
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
        let cpu = pod.container_metrics[0].metrics.iter().find(|m| m.name == CPU.name).unwrap();
        assert_eq!(cpu.label_values, ["web", "default", "c", "c1", "busybox:1.36"]);
        assert_eq!(cpu.value.unwrap().value, 2);
    }

    #[test]
    fn details_keep_their_meaning() {
        let pod = full();
        assert_eq!(values(&pod, &CPU_USER), [("busybox:1.36", 1)]);
        assert_eq!(values(&pod, &CPU_THROTTLED), [("busybox:1.36", 3)]);
        assert_eq!(values(&pod, &CPU_THROTTLED_PERIODS), [("busybox:1.36", 4)]);
        assert_eq!(values(&pod, &BLKIO), [("Read", 6), ("Write", 0)]);
        assert_eq!(values(&pod, &READS), [("99999:1", 1)]);
        assert_eq!(values(&pod, &HUGE_PAGES_PEAK), [("2MB", 2 << 20)]);
        assert_eq!(values(&pod, &FS_INODES_FREE), [("/var/lib/podwright", 4)]);
        assert_eq!(values(&pod, &ULIMITS), [("max_open_files", 1024)]);
        assert_eq!(values(&pod, &SOCKETS), [("busybox:1.36", 3)]);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let mut set = Set::new(&PodSpec::default(), "", "p", "");
        set.details(&Details::default());
        set.cgroup(&Stats::default());
        assert!(set.metrics.is_empty(), "{:?}", set.metrics);
    }
}
