//! What it costs.

use std::collections::BTreeMap;

use super::*;

/// `cargo test --lib cgroup::tests::figures -- --ignored --nocapture`
#[tokio::test]
#[ignore = "measures, asserts nothing"]
async fn figures() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut note = |what, since: Instant| times.entry(what).or_default().push(since.elapsed());
    let resources = Resources {
        cpu_shares: 512,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        memory_limit: 64 << 20,
        ..Default::default()
    };
    for turn in 0..200 {
        let start = Instant::now();
        let pod = scratch.pod(&format!("p{turn}")).await;
        note("1 create pod", start);
        let start = Instant::now();
        let container = scratch.container(&pod, "c", &resources);
        note("2 create container with 5 limits", start);
        let start = Instant::now();
        c.allow_devices(&container, &DeviceRules::Listed(vec![])).unwrap();
        note("3 confine devices", start);
        let start = Instant::now();
        let entry = c.entry(&container).unwrap();
        note("4 open entry", start);
        drop(entry);
        let start = Instant::now();
        c.stats(&container).unwrap();
        note("5 stats, first", start);
        let start = Instant::now();
        c.stats(&container).unwrap();
        note("5 stats, again", start);
        let start = Instant::now();
        let exec = c.create_exec(&container, "e").unwrap();
        note("6 create exec", start);
        let start = Instant::now();
        c.remove(&exec).await.unwrap();
        note("7 remove exec", start);
        let start = Instant::now();
        c.kill(&container).unwrap();
        note("8 kill, empty", start);
        let start = Instant::now();
        c.wait_empty(&container, SECONDS).await.unwrap();
        note("9 wait, empty", start);
        let start = Instant::now();
        c.remove(&container).await.unwrap();
        note("a remove container", start);
        let start = Instant::now();
        c.remove(&pod).await.unwrap();
        note("b remove pod", start);
    }
    for (what, mut list) in times {
        list.sort();
        eprintln!("{what}: p50 {:?} p99 {:?}", list[list.len() / 2], list[list.len() * 99 / 100]);
    }
    scratch.finish().await;
}
