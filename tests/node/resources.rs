//! Limits, and what is used of them.

use std::time::Duration;

use podwright::cri::wire as cri;

use crate::harness::{Daemon, pod, script};

type Limits = cri::LinuxContainerResources;

async fn update(daemon: &Daemon, id: &str, linux: Limits) -> Result<(), tonic::Status> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.into(),
        linux: Some(linux),
        ..Default::default()
    };
    daemon.runtime().update_container_resources(request).await.map(drop)
}

async fn limits(daemon: &Daemon, id: &str) -> Limits {
    daemon.status(id).await.resources.unwrap().linux.unwrap()
}

/// The first of these files that the container's own view of its cgroup has.
async fn cgroup_file(daemon: &Daemon, id: &str, names: &[&str]) -> Option<String> {
    for name in names {
        let output = daemon.exec(id, &["cat", &format!("/sys/fs/cgroup/{name}")]).await.unwrap();
        if output.exit_code == 0 {
            return Some(String::from_utf8(output.stdout).unwrap().trim().to_owned());
        }
    }
    None
}

fn limited(name: &str, resources: Limits) -> cri::ContainerConfig {
    let mut config = script(name, "sleep 1000");
    config.linux.as_mut().unwrap().resources = Some(resources);
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_29_updates_before_and_after_the_start() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("update")).await;
    let first = Limits {
        memory_limit_in_bytes: 64 << 20,
        cpu_shares: 512,
        cpu_quota: 20000,
        cpu_period: 100_000,
        hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
        ..Default::default()
    };
    let id = daemon.create(&pod, limited("main", first)).await.unwrap();
    update(&daemon, &id, Limits { memory_limit_in_bytes: 80 << 20, ..Default::default() }).await.unwrap();
    daemon.start_container(&id).await.unwrap();
    let now = limits(&daemon, &id).await;
    assert_eq!((now.memory_limit_in_bytes, now.cpu_shares, now.cpu_quota), (80 << 20, 512, 20000));
    update(&daemon, &id, Limits { cpu_shares: 1024, cpu_quota: 30000, ..Default::default() }).await.unwrap();
    let now = limits(&daemon, &id).await;
    assert_eq!((now.memory_limit_in_bytes, now.cpu_shares, now.cpu_quota), (80 << 20, 1024, 30000));
    // In the kernel, in whichever hierarchy has the controller.
    let memory = cgroup_file(&daemon, &id, &["memory/memory.limit_in_bytes", "memory.max"]).await.unwrap();
    assert_eq!(memory, (80u64 << 20).to_string());
    let quota =
        cgroup_file(&daemon, &id, &["cpu/cpu.cfs_quota_us", "cpu,cpuacct/cpu.cfs_quota_us", "cpu.max"]).await;
    assert!(quota.as_ref().unwrap().starts_with("30000"), "{quota:?}");
    // Unspecified swap is as much as memory: none beside it. On v2 the file has the difference.
    let swap = cgroup_file(&daemon, &id, &["memory/memory.memsw.limit_in_bytes", "memory.swap.max"]).await;
    assert!(swap.is_none_or(|swap| swap == (80u64 << 20).to_string() || swap == "0"));
    daemon.exec(&id, &["kill", "1"]).await.unwrap();
    daemon.stop(&id, 0).await.unwrap();
    update(&daemon, &id, Limits { cpu_shares: 2, ..Default::default() }).await.unwrap_err();
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_29_an_oom_score_reaches_the_processes() {
    let mut daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("score")).await;
    let mut config = limited("main", Limits { oom_score_adj: 100, ..Default::default() });
    // One child has the container's score, the other chose its own.
    config.command[2] = "sleep 1001 & echo 777 > /proc/self/oom_score_adj; sleep 1002 & \
                         echo 100 > /proc/self/oom_score_adj 2>/dev/null; echo ready; wait"
        .into();
    let id = daemon.run(&pod, config).await;
    daemon.lines_of(&id, 1).await;
    let scores = async |daemon: &Daemon| {
        let look = "for p in /proc/[0-9]*; do case \"$(tr '\\0' ' ' < $p/cmdline)\" in \
                    'sleep 1001 ') a=$(cat $p/oom_score_adj);; 'sleep 1002 ') b=$(cat $p/oom_score_adj);; esac; done; \
                    echo $a $b $(cat /proc/self/oom_score_adj)";
        String::from_utf8(daemon.exec(&id, &["sh", "-c", look]).await.unwrap().stdout).unwrap()
    };
    assert_eq!(scores(&daemon).await, "100 777 100\n");
    update(&daemon, &id, Limits { oom_score_adj: 500, ..Default::default() }).await.unwrap();
    assert_eq!(scores(&daemon).await, "500 777 500\n", "the container's, and an exec's after it");
    // Zero means unchanged.
    update(&daemon, &id, Limits { cpu_shares: 700, ..Default::default() }).await.unwrap();
    daemon.kill();
    daemon.start_again().await;
    assert_eq!(scores(&daemon).await, "500 777 500\n");
    assert_eq!(limits(&daemon, &id).await.oom_score_adj, 500);
    // Where the score may not be lowered the update works all the same.
    update(&daemon, &id, Limits { oom_score_adj: -900, ..Default::default() }).await.unwrap();
    let now = scores(&daemon).await;
    assert!(
        ["-900 777 -900\n", "500 777 500\n"].contains(&now.as_str()) || now.starts_with("500 777 "),
        "{now}"
    );
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_30_limits_are_in_the_kernel_and_in_the_status() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("thirty")).await;
    let given = Limits {
        cpuset_cpus: "0".into(),
        cpuset_mems: "0".into(),
        unified: [("pids.max".to_owned(), "33".to_owned())].into(),
        hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
        ..Default::default()
    };
    let id = daemon.run(&pod, limited("main", given.clone())).await;
    let now = limits(&daemon, &id).await;
    assert_eq!((now.cpuset_cpus.as_str(), now.cpuset_mems.as_str()), ("0", "0"));
    assert_eq!((&now.unified, &now.hugepage_limits), (&given.unified, &given.hugepage_limits));
    assert_eq!(cgroup_file(&daemon, &id, &["cpuset/cpuset.cpus", "cpuset.cpus"]).await.unwrap(), "0");
    assert_eq!(cgroup_file(&daemon, &id, &["pids/pids.max", "pids.max"]).await.unwrap(), "33");
    let pages = ["hugetlb/hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max", "unified/hugetlb.2MB.max"];
    match cgroup_file(&daemon, &id, &pages).await {
        Some(limit) => assert_eq!(limit, (4 << 20).to_string()),
        // 38: without the controller the limit degrades, and the status says so.
        None => {
            let message = daemon.status(&id).await.message;
            assert!(message.contains("2MB") || message.contains("hugetlb"), "{message:?}");
        }
    }
    // And that they limit.
    let out =
        daemon.exec(&id, &["sh", "-c", "grep ^Cpus_allowed_list /proc/self/status; nproc"]).await.unwrap();
    assert_eq!(String::from_utf8(out.stdout).unwrap(), "Cpus_allowed_list:\t0\n1\n");
    let fork =
        "i=0; while test $i -lt 60; do i=$((i+1)); sleep 5 & done 2>/dev/null; ps | grep -c 'sleep 5$'";
    let out = daemon.exec(&id, &["sh", "-c", fork]).await.unwrap();
    let made = String::from_utf8(out.stdout).unwrap();
    assert!(out.exit_code != 0 || made.trim().parse::<u32>().unwrap() < 34, "{made}");
    // In place.
    let change = Limits {
        unified: [("pids.max".to_owned(), "44".to_owned())].into(),
        cpuset_cpus: "0-1".into(),
        ..Default::default()
    };
    update(&daemon, &id, change).await.unwrap();
    let now = limits(&daemon, &id).await;
    assert_eq!((now.cpuset_cpus.as_str(), now.unified["pids.max"].as_str()), ("0-1", "44"));
    let kernel = cgroup_file(&daemon, &id, &["cpuset/cpuset.cpus", "cpuset.cpus"]).await.unwrap();
    assert!(["0-1", "0"].contains(&kernel.as_str()), "{kernel}");
    assert_eq!(cgroup_file(&daemon, &id, &["pids/pids.max", "pids.max"]).await.unwrap(), "44");
    for bad in [("cgroup.procs", "1"), ("../memory.max", "1"), ("pids", "1")] {
        let unified = [(bad.0.to_owned(), bad.1.to_owned())].into();
        let error = update(&daemon, &id, Limits { unified, ..Default::default() }).await.unwrap_err();
        assert!(error.code() == tonic::Code::InvalidArgument && error.message().contains(bad.0), "{error}");
    }
    daemon.finish().await;
}

async fn container_stats(daemon: &Daemon, id: &str) -> cri::ContainerStats {
    let request = cri::ContainerStatsRequest { container_id: id.into() };
    daemon.runtime().container_stats(request).await.unwrap().into_inner().stats.unwrap()
}

async fn pod_stats(daemon: &Daemon, id: &str) -> cri::LinuxPodSandboxStats {
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: id.into() };
    daemon.runtime().pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap().linux.unwrap()
}

fn value(value: Option<cri::UInt64Value>) -> u64 {
    value.expect("a value").value
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_36_processor_time_and_its_rate() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("cpu")).await;
    let quota = Limits { cpu_quota: 20_000, cpu_period: 100_000, ..Default::default() };
    let mut busy = limited("busy", quota);
    busy.command[2] = "while :; do :; done".into();
    let busy = daemon.run(&pod, busy).await;
    let idle = daemon.run(&pod, script("idle", "sleep 1000")).await;
    let (first, mut last) = (container_stats(&daemon, &busy).await, container_stats(&daemon, &busy).await);
    container_stats(&daemon, &idle).await;
    for _ in 0..1000 {
        if last.cpu.as_ref().unwrap().usage_nano_cores.is_some_and(|rate| rate.value > 0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        last = container_stats(&daemon, &busy).await;
    }
    let (before, after) = (first.cpu.unwrap(), last.cpu.unwrap());
    let used = value(after.usage_core_nano_seconds) - value(before.usage_core_nano_seconds);
    let took = (after.timestamp - before.timestamp) as u64;
    let rate = value(after.usage_nano_cores);
    // The rate is over a part of that time, so that the two bound each other.
    assert!(
        u128::from(rate) * u128::from(took) <= u128::from(used) * 1_000_000_000 * 2,
        "{rate} {used} {took}"
    );
    // A fifth of a processor is all it may have, and more than one that sleeps has.
    assert!(rate > 0 && rate < 500_000_000, "{rate}");
    let idle = container_stats(&daemon, &idle).await.cpu.unwrap();
    assert!(idle.usage_nano_cores.is_none_or(|idle| idle.value < rate), "{idle:?} {rate}");
    let whole = pod_stats(&daemon, &pod.0).await.cpu.unwrap();
    assert!(value(whole.usage_core_nano_seconds) >= value(after.usage_core_nano_seconds));
    // PSI where the kernel has it: who is held back by a quota waits.
    let has_psi = std::path::Path::new(&crate::harness::unified()).join("cpu.pressure").exists();
    assert_eq!(after.psi.is_some(), has_psi);
    if let Some(psi) = after.psi {
        assert!(psi.some.unwrap().total > 0);
        assert!(whole.psi.unwrap().some.unwrap().total > 0);
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_36_memory_and_the_writable_layer() {
    const FILE: u64 = 24 << 20;
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("memory")).await;
    let text = format!(
        "mkdir /many; for n in 1 2 3 4 5 6 7 8 9; do echo > /many/$n; done; \
                        head -c {FILE} /dev/zero > /file; sync; cat /file > /dev/null; echo ready; sleep 1000"
    );
    let id = daemon.run(&pod, script("main", &text)).await;
    daemon.lines_of(&id, 1).await;
    let stats = container_stats(&daemon, &id).await;
    let memory = stats.memory.unwrap();
    let (usage, working_set) = (value(memory.usage_bytes), value(memory.working_set_bytes));
    // What was read once is in the inactive list, and no part of the working set.
    let stat = cgroup_file(&daemon, &id, &["memory/memory.stat", "memory.stat"]).await.unwrap();
    let field = |name: &str| {
        let found = stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        found.unwrap_or_else(|| panic!("{name} in {stat}"))
    };
    let inactive =
        field(if stat.contains("total_inactive_file ") { "total_inactive_file " } else { "inactive_file " });
    assert!(inactive > FILE / 2, "the test's file is in the cache: {inactive}");
    assert!((usage - working_set).abs_diff(inactive) < 2 << 20, "{usage} - {working_set}, {inactive}");
    let layer = stats.writable_layer.unwrap();
    let (bytes, inodes) = (value(layer.used_bytes), value(layer.inodes_used));
    assert!((FILE..FILE + (1 << 20)).contains(&bytes), "{bytes}");
    // The root of the layer, /many and nine in it, /file, and mount targets.
    assert!((12..60).contains(&inodes), "{inodes}");
    assert!(std::path::Path::new(&layer.fs_id.unwrap().mountpoint).is_dir());
    let attributes = stats.attributes.unwrap();
    assert_eq!((attributes.id, attributes.metadata.unwrap().name), (id.clone(), "main".into()));
    let whole = pod_stats(&daemon, &pod.0).await;
    assert!(value(whole.memory.unwrap().usage_bytes) >= usage - (2 << 20));
    assert!(value(whole.process.unwrap().process_count) >= 1);
    assert_eq!(whole.containers.len(), 1);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_36_the_network_by_interface() {
    let daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("network")).await;
    let id = daemon.run(&made, script("main", "sleep 1000")).await;
    let gateway = "ip route | awk '/^default/ {print $3}'";
    let send = format!("ping -c 3 -i 0.1 -s 1000 $({gateway}) > /dev/null");
    assert_eq!(daemon.exec(&id, &["sh", "-c", &send]).await.unwrap().exit_code, 0);
    let counted = async || {
        let out =
            daemon.exec(&id, &["awk", "$1 == \"eth0:\" {print $2, $4, $10, $12}", "/proc/net/dev"]).await;
        let out = String::from_utf8(out.unwrap().stdout).unwrap();
        out.split_whitespace().map(|n| n.parse::<u64>().unwrap()).collect::<Vec<_>>()
    };
    // Nothing else is sent but what the kernel says of itself now and then.
    let mut equal = false;
    for _ in 0..100 {
        let before = counted().await;
        let network = pod_stats(&daemon, &made.0).await.network.unwrap();
        let eth0 = network.default_interface.unwrap();
        assert_eq!(eth0.name, "eth0");
        let told = [eth0.rx_bytes, eth0.rx_errors, eth0.tx_bytes, eth0.tx_errors].map(value);
        assert!(told[0] > 3000 && told[2] > 3000, "{told:?}");
        equal = counted().await == told && before == told;
        if equal {
            break;
        }
    }
    assert!(equal, "what the pod's own /proc/net/dev says");
    let mut config = pod("host");
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().network = cri::NamespaceMode::Node as i32;
    let host = daemon.run_pod(config).await;
    assert!(pod_stats(&daemon, &host.0).await.network.is_none(), "the node's traffic is not the pod's");
    daemon.finish().await;
}

/// Every metric that is told is described, with as many labels.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_as_they_are_described() {
    let daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("metrics")).await;
    let id = daemon.run(&made, script("main", "sleep 1000")).await;
    let mut runtime = daemon.runtime();
    let described =
        runtime.list_metric_descriptors(cri::ListMetricDescriptorsRequest {}).await.unwrap().into_inner();
    let described: std::collections::BTreeMap<_, _> =
        described.descriptors.into_iter().map(|d| (d.name, d.label_keys.len())).collect();
    let request = cri::ListPodSandboxMetricsRequest {};
    let told = runtime.list_pod_sandbox_metrics(request).await.unwrap().into_inner().pod_metrics;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].pod_sandbox_id, made.0);
    let container = &told[0].container_metrics[0];
    assert_eq!(container.container_id, id);
    let mut names = std::collections::BTreeSet::new();
    for metric in told[0].metrics.iter().chain(&container.metrics) {
        let labels =
            described.get(&metric.name).unwrap_or_else(|| panic!("{} is not described", metric.name));
        assert_eq!(metric.label_values.len(), *labels, "{}", metric.name);
        names.insert(metric.name.as_str());
    }
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_network_receive_bytes_total",
        "container_start_time_seconds",
    ] {
        assert!(names.contains(name), "{name}: {names:?}");
    }
    daemon.finish().await;
}
