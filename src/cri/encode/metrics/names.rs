//! Every metric there is, by the name that cadvisor gave it.

use super::wire;

/// kubelet adds no labels, so the pod and the container are named here.
pub(super) const LABELS: &[&str] = &["pod", "namespace", "container", "id", "image"];

pub(super) struct Metric {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: wire::MetricType,
    /// Labels beside [`LABELS`].
    pub labels: &'static [&'static str],
}

/// `CONSTANT: Kind "name" [own labels] "help";` for each; `ALL` is the list of them.
macro_rules! metrics {
    ($($constant:ident: $kind:ident $name:literal $labels:tt $help:literal;)*) => {
        $(pub(super) const $constant: Metric =
            Metric { name: $name, help: $help, kind: wire::MetricType::$kind, labels: &$labels };)*
        pub(super) const ALL: &[&Metric] = &[$(&$constant),*];
    };
}

metrics! {
    // CPU
    CPU: Counter "container_cpu_usage_seconds_total" [] "CPU time used, in seconds.";
    CPU_USER: Counter "container_cpu_user_seconds_total" [] "CPU time used outside the kernel, in seconds.";
    CPU_SYSTEM: Counter "container_cpu_system_seconds_total" [] "CPU time used by the kernel, in seconds.";
    CPU_PERIODS: Counter "container_cpu_cfs_periods_total" [] "Periods of the CPU limit that have passed.";
    CPU_THROTTLED_PERIODS: Counter "container_cpu_cfs_throttled_periods_total" []
        "Periods in which the CPU limit was reached.";
    CPU_THROTTLED: Counter "container_cpu_cfs_throttled_seconds_total" []
        "Time for which the CPU limit held tasks back, in seconds.";
    CPU_WAITING: Counter "container_pressure_cpu_waiting_seconds_total" []
        "Time in which some task waited for a CPU, in seconds.";
    CPU_STALLED: Counter "container_pressure_cpu_stalled_seconds_total" []
        "Time in which all tasks waited for a CPU, in seconds.";
    CPU_PERIOD: Gauge "container_spec_cpu_period" [] "Period of the CPU limit, in microseconds.";
    CPU_QUOTA: Gauge "container_spec_cpu_quota" [] "CPU time allowed per period, in microseconds; 0 for no limit.";
    CPU_SHARES: Gauge "container_spec_cpu_shares" [] "Weight among the pod's peers.";

    // Memory
    MEMORY: Gauge "container_memory_usage_bytes" [] "Memory used, page cache included.";
    WORKING_SET: Gauge "container_memory_working_set_bytes" [] "Memory used, without the inactive page cache.";
    RSS: Gauge "container_memory_rss" [] "Anonymous memory, in bytes.";
    CACHE: Gauge "container_memory_cache" [] "Page cache, in bytes.";
    MAPPED_FILE: Gauge "container_memory_mapped_file" [] "Files mapped into memory, in bytes.";
    KERNEL_MEMORY: Gauge "container_memory_kernel_usage" [] "Memory that the kernel uses on behalf of it, in bytes.";
    MEMORY_PEAK: Gauge "container_memory_max_usage_bytes" [] "The most memory ever used.";
    SWAP: Gauge "container_memory_swap" [] "Swap used, in bytes.";
    LIMIT_HITS: Counter "container_memory_failcnt" [] "How often the memory used ran into its limit.";
    FAULTS: Counter "container_memory_failures_total" ["failure_type", "scope"]
        "Page faults, and those among them that had to read from a disk.";
    OOM_KILLS: Counter "container_oom_events_total" [] "Processes killed for want of memory.";
    MEMORY_WAITING: Counter "container_pressure_memory_waiting_seconds_total" []
        "Time in which some task waited for memory, in seconds.";
    MEMORY_STALLED: Counter "container_pressure_memory_stalled_seconds_total" []
        "Time in which all tasks waited for memory, in seconds.";
    MEMORY_LIMIT: Gauge "container_spec_memory_limit_bytes" [] "Memory limit; 0 for none.";
    MEMORY_RESERVATION: Gauge "container_spec_memory_reservation_limit_bytes" []
        "Memory that reclaim leaves to it as long as it can; 0 for none.";
    SWAP_LIMIT: Gauge "container_spec_memory_swap_limit_bytes" [] "Limit of memory and swap together; 0 for none.";
    HUGE_PAGES: Gauge "container_hugetlb_usage_bytes" ["pagesize"] "Huge pages used, in bytes.";
    HUGE_PAGES_PEAK: Gauge "container_hugetlb_max_usage_bytes" ["pagesize"] "The most huge pages ever used, in bytes.";

    // Disks
    IO_WAITING: Counter "container_pressure_io_waiting_seconds_total" []
        "Time in which some task waited for I/O, in seconds.";
    IO_STALLED: Counter "container_pressure_io_stalled_seconds_total" []
        "Time in which all tasks waited for I/O, in seconds.";
    BLKIO: Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"]
        "Bytes read from a block device and written to it.";
    READ_BYTES: Counter "container_fs_reads_bytes_total" ["device"] "Bytes read from a block device.";
    READS: Counter "container_fs_reads_total" ["device"] "Reads from a block device.";
    WRITTEN_BYTES: Counter "container_fs_writes_bytes_total" ["device"] "Bytes written to a block device.";
    WRITES: Counter "container_fs_writes_total" ["device"] "Writes to a block device.";
    FS_USAGE: Gauge "container_fs_usage_bytes" ["device"] "Bytes used by the writable layer.";
    FS_LIMIT: Gauge "container_fs_limit_bytes" ["device"] "Size of the file system that the writable layer is on.";
    FS_INODES: Gauge "container_fs_inodes_total" ["device"] "Inodes of the file system that the writable layer is on.";
    FS_INODES_FREE: Gauge "container_fs_inodes_free" ["device"] "Those among them that are free.";

    // Processes
    PROCESSES: Gauge "container_processes" [] "Processes, those of execs included.";
    TASKS: Gauge "container_threads" [] "Tasks in the cgroup.";
    TASKS_LIMIT: Gauge "container_threads_max" [] "Limit of tasks; 0 for none.";
    FILES: Gauge "container_file_descriptors" [] "Files that the processes have open.";
    SOCKETS: Gauge "container_sockets" [] "Sockets among them.";
    ULIMITS: Gauge "container_ulimits_soft" ["ulimit"] "Soft resource limits of the first process.";
    STARTED: Gauge "container_start_time_seconds" [] "When it was started, in seconds since the epoch.";
    SEEN: Gauge "container_last_seen" [] "When it was last looked at, in seconds since the epoch.";

    // Network
    RECEIVED: Counter "container_network_receive_bytes_total" ["interface"] "Bytes received.";
    RECEIVED_PACKETS: Counter "container_network_receive_packets_total" ["interface"] "Packets received.";
    RECEIVE_ERRORS: Counter "container_network_receive_errors_total" ["interface"]
        "Errors while packets were received.";
    RECEIVE_DROPS: Counter "container_network_receive_packets_dropped_total" ["interface"]
        "Packets dropped when they were received.";
    SENT: Counter "container_network_transmit_bytes_total" ["interface"] "Bytes sent.";
    SENT_PACKETS: Counter "container_network_transmit_packets_total" ["interface"] "Packets sent.";
    SEND_ERRORS: Counter "container_network_transmit_errors_total" ["interface"] "Errors while packets were sent.";
    SEND_DROPS: Counter "container_network_transmit_packets_dropped_total" ["interface"]
        "Packets dropped when they were to be sent.";
}
