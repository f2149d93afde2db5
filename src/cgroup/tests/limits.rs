//! Limits, and what is read back.

use super::*;

#[tokio::test]
async fn b29_limits_are_written_changed_and_taken_back_whole() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let pod = scratch.pod("p").await;
    let resources = Resources {
        cpu_shares: 512,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        memory_limit: 64 << 20,
        cpuset_cpus: "0".into(),
        hugepage_limits: vec![("2MB".into(), 0)],
        unified: [("pids.max".to_owned(), "77".to_owned())].into(),
        ..Default::default()
    };
    let container = scratch.container(&pod, "c", &resources);
    assert_eq!(
        scratch.file(&container, "cpu", "cpu.shares", "cpu.weight").len(),
        if c.layout() == "unified" { 2 } else { 3 }
    );
    let memory = || scratch.file(&container, "memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(memory(), (64 << 20).to_string());
    assert_eq!(scratch.file(&container, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(scratch.file(&container, "pids", "pids.max", "pids.max"), "77");
    let in_force = c.limits(&container);
    assert_eq!(in_force.cpu_quota, 50_000);
    assert_eq!((in_force.cpu_period, in_force.memory_limit), (100_000, 64 << 20));
    assert_eq!(in_force.memory_swap_limit, 64 << 20);

    // Growing, then shrinking: limit and swap have to be written in opposite orders on v1.
    for mebibytes in [256, 32] {
        let update = Resources { memory_limit: mebibytes << 20, ..Default::default() };
        assert!(c.update(&container, &update).await.unwrap().is_empty());
        assert_eq!(memory(), (mebibytes << 20).to_string());
        assert_eq!(c.limits(&container).memory_swap_limit, mebibytes << 20);
        assert_eq!(c.limits(&container).cpu_quota, 50_000, "zero means unchanged");
    }
    // A shorter period with the old quota, and back.
    for (quota, period) in [(2_000, 2_000), (900_000, 1_000_000)] {
        let update = Resources { cpu_quota: quota, cpu_period: period, ..Default::default() };
        c.update(&container, &update).await.unwrap();
        assert_eq!((c.limits(&container).cpu_quota, c.limits(&container).cpu_period), (quota, period));
    }
    let before = c.limits(&container);
    // A quota below 1 ms is refused by the kernel, after memory and shares went through.
    let bad = Resources { cpu_shares: 99, memory_limit: 128 << 20, cpu_quota: 1, ..Default::default() };
    let error = c.update(&container, &bad).await.unwrap_err();
    assert_eq!(error.kind, Kind::InvalidArgument);
    assert!(error.message.contains("cpu_quota"), "{error}");
    assert_eq!(c.limits(&container), before);

    let lifted = Resources { cpu_quota: -1, memory_limit: -1, ..Default::default() };
    c.update(&container, &lifted).await.unwrap();
    assert_eq!((c.limits(&container).cpu_quota, c.limits(&container).memory_limit), (-1, -1));
    c.remove(&container).await.unwrap();
    assert!(c.update(&container, &resources).await.is_err());

    let refused = Resources { cpu_quota: 1, ..Default::default() };
    let container = c.create_container(&pod, "d").unwrap();
    assert!(c.limit(&container, &refused).is_err());
    c.remove(&container).await.unwrap();
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn b29_a_memory_limit_below_what_is_in_use_is_refused() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let pod = scratch.pod("p").await;
    let limited = Resources { memory_limit: 256 << 20, ..Default::default() };
    let container = scratch.container(&pod, "c", &limited);
    let process =
        scratch.run(&container, "x=$(head -c 60000000 /dev/zero | tr '\\0' x); echo full; sleep 1000");
    let deadline = Instant::now() + SECONDS;
    while c.stats(&container).unwrap().memory.unwrap().rss < 50_000_000 {
        assert!(Instant::now() < deadline, "{:?}", c.stats(&container));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let less = Resources { memory_limit: 16 << 20, ..Default::default() };
    assert_eq!(c.update(&container, &less).await.unwrap_err().kind, Kind::FailedPrecondition);
    assert_eq!(c.limits(&container).memory_limit, 256 << 20);
    assert_eq!(c.oom_kills(&container), Some(0));
    c.kill(&pod).unwrap();
    assert!(process.killed());
    c.wait_empty(&pod, SECONDS).await.unwrap();
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn b10_oom_kills_are_counted() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let pod = scratch.pod("p").await;
    let limited = Resources { memory_limit: 16 << 20, ..Default::default() };
    let container = scratch.container(&pod, "c", &limited);
    assert_eq!(c.oom_kills(&container), Some(0));
    let process = scratch.run(&container, "exec tail /dev/zero");
    assert!(process.killed());
    assert_eq!(c.oom_kills(&container), Some(1));
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn b36_stats_tell_use() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let pod = scratch.pod("p").await;
    let limited = Resources { memory_limit: 128 << 20, ..Default::default() };
    let container = scratch.container(&pod, "c", &limited);
    let process = scratch.run(&container, "x=$(head -c 20000000 /dev/zero | tr '\\0' x); sleep 1000");
    // The kernel folds small changes of memory.stat in late.
    let deadline = Instant::now() + SECONDS;
    let stats = loop {
        let stats = c.stats(&container).unwrap();
        let settled =
            stats.pids == Some(2) && stats.memory.is_some_and(|m| m.rss > 19_000_000 && m.page_faults > 0);
        if settled || Instant::now() > deadline {
            break stats;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(stats.cpu_usage.unwrap() > 1_000_000, "{stats:?}");
    assert!(stats.timestamp > 1_600_000_000_000_000_000);
    let memory = stats.memory.unwrap();
    assert!(
        memory.rss > 19_000_000 && memory.working_set <= memory.usage && memory.page_faults > 0,
        "{memory:?}"
    );
    assert_eq!(memory.available, Some((128 << 20) - memory.working_set));
    assert_eq!(stats.pids, Some(2));
    assert_eq!(stats.swap_available, Some(0));
    let psi = Path::new("/proc/pressure/cpu").exists() && scratch.layout().unified.is_some();
    assert_eq!(stats.cpu_psi.is_some(), psi);
    let details = c.details(&container);
    let peak = details.memory.unwrap().peak.unwrap();
    assert!(peak > 19_000_000 && peak <= 128 << 20, "{details:?}");
    assert!(details.cpu_time.is_some() && details.throttling.is_some(), "{details:?}");
    assert_eq!((details.oom_kills, details.pids_limit), (Some(0), Some(0)));
    // The shell may still be between two commands.
    while c.processes(&container).unwrap().len() != 2 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let processes = c.processes(&container).unwrap();
    assert_eq!(processes.len(), 2, "{processes:?}");
    assert!(processes.contains(&(process.pid() as i32)));
    let all = c.stats(&pod).unwrap();
    assert!(all.cpu_usage >= stats.cpu_usage && all.memory.unwrap().usage >= memory.usage, "{all:?}");
    c.kill(&pod).unwrap();
    assert!(process.killed());
    c.wait_empty(&pod, SECONDS).await.unwrap();
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}
