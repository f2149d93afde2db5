//! Use of resources by pods and containers. What the host cannot tell stays unset.

use crate::cgroup::{MemoryStats, Psi, PsiLine, Stats};
use crate::container::stats::ContainerStats;
use crate::cri::encode::image::filesystem;
use crate::cri::encode::{container, pod};
use crate::cri::wire;
use crate::network::InterfaceStats;
use crate::pod::stats::PodStats;

pub(in crate::cri) fn container(of: ContainerStats) -> wire::ContainerStats {
    let spec = &of.container.spec;
    let stats = &of.stats;
    wire::ContainerStats {
        attributes: Some(wire::ContainerAttributes {
            id: of.container.id,
            metadata: Some(container::metadata(spec)),
            labels: spec.labels.clone(),
            annotations: spec.annotations.clone(),
        }),
        cpu: cpu(stats, of.usage_nano_cores),
        memory: memory(stats),
        swap: swap(stats),
        io: io(stats),
        writable_layer: Some(filesystem(of.writable_layer, &of.mountpoint, stats.timestamp)),
    }
}

pub(in crate::cri) fn pod(of: PodStats) -> wire::PodSandboxStats {
    let spec = &of.pod.spec;
    let stats = &of.stats;
    wire::PodSandboxStats {
        attributes: Some(wire::PodSandboxAttributes {
            id: of.pod.id,
            metadata: Some(pod::metadata(spec)),
            labels: spec.labels.clone(),
            annotations: spec.annotations.clone(),
        }),
        linux: Some(wire::LinuxPodSandboxStats {
            cpu: cpu(stats, of.usage_nano_cores),
            memory: memory(stats),
            network: network(&of.interfaces, stats.timestamp),
            process: stats
                .pids
                .map(|pids| wire::ProcessUsage { timestamp: stats.timestamp, process_count: value(pids) }),
            io: io(stats),
            containers: of.containers.into_iter().map(container).collect(),
        }),
        windows: None,
    }
}

fn value(value: u64) -> Option<wire::UInt64Value> {
    Some(wire::UInt64Value { value })
}

fn cpu(stats: &Stats, rate: Option<u64>) -> Option<wire::CpuUsage> {
    stats.cpu_usage.map(|total| wire::CpuUsage {
        timestamp: stats.timestamp,
        usage_core_nano_seconds: value(total),
        usage_nano_cores: rate.and_then(value),
        psi: stats.cpu_psi.map(psi),
    })
}

fn memory(stats: &Stats) -> Option<wire::MemoryUsage> {
    stats.memory.map(|memory: MemoryStats| wire::MemoryUsage {
        timestamp: stats.timestamp,
        usage_bytes: value(memory.usage),
        working_set_bytes: value(memory.working_set),
        available_bytes: memory.available.and_then(value),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: stats.memory_psi.map(psi),
    })
}

fn swap(stats: &Stats) -> Option<wire::SwapUsage> {
    stats.swap_usage.map(|usage| wire::SwapUsage {
        timestamp: stats.timestamp,
        swap_available_bytes: stats.swap_available.and_then(value),
        swap_usage_bytes: value(usage),
    })
}

fn io(stats: &Stats) -> Option<wire::IoUsage> {
    stats.io_psi.map(|pressure| wire::IoUsage { timestamp: stats.timestamp, psi: Some(psi(pressure)) })
}

fn psi(pressure: Psi) -> wire::PsiStats {
    let line =
        |l: PsiLine| wire::PsiData { total: l.total, avg10: l.avg10, avg60: l.avg60, avg300: l.avg300 };
    wire::PsiStats { some: Some(line(pressure.some)), full: Some(line(pressure.full)) }
}

/// None for a pod on the node's network.
fn network(interfaces: &[InterfaceStats], timestamp: i64) -> Option<wire::NetworkUsage> {
    let interface = |of: &InterfaceStats| wire::NetworkInterfaceUsage {
        name: of.name.clone(),
        rx_bytes: value(of.rx_bytes),
        rx_errors: value(of.rx_errors),
        tx_bytes: value(of.tx_bytes),
        tx_errors: value(of.tx_errors),
    };
    let (default, others) = interfaces.split_first()?;
    Some(wire::NetworkUsage {
        timestamp,
        default_interface: Some(interface(default)),
        interfaces: others.iter().map(interface).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats() -> Stats {
        Stats {
            timestamp: 5,
            cpu_usage: Some(1_000),
            memory: Some(MemoryStats { usage: 9, working_set: 4, ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn behaviour_36_what_the_host_cannot_tell_is_unset_and_not_zero() {
        let nothing = Stats { timestamp: 5, ..Default::default() };
        assert_eq!((cpu(&nothing, None), memory(&nothing), swap(&nothing)), (None, None, None));
        assert_eq!(io(&nothing), None);
        let memory = memory(&stats()).unwrap();
        assert_eq!(memory.available_bytes, None);
        assert_eq!(memory.working_set_bytes, value(4));
        let cpu = cpu(&stats(), None).unwrap();
        assert_eq!((cpu.usage_nano_cores, cpu.psi), (None, None));
    }

    #[test]
    fn the_first_interface_is_the_default_one() {
        let named = |name: &str| InterfaceStats { name: name.into(), rx_bytes: 3, ..Default::default() };
        let usage = network(&[named("eth0"), named("net1")], 5).unwrap();
        assert_eq!(usage.default_interface.unwrap().name, "eth0");
        assert_eq!(usage.interfaces.len(), 1);
        assert_eq!(network(&[], 5), None);
    }
}
