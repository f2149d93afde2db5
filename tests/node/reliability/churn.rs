//! Many pods one after the other: nothing grows.
//!
//! `CYCLES=2000 cargo test --test node churn -- --nocapture`

use std::sync::Arc;

use super::random::number;
use crate::harness::{Daemon, pod, script};

const PARALLEL: u64 = 4;

/// Of one process.
#[derive(Debug, Clone, Copy)]
struct Size {
    fds: usize,
    rss_kib: u64,
    mounts: usize,
}

fn size(pid: u32) -> Size {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    Size {
        fds: std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        rss_kib: line.trim().trim_end_matches(" kB").parse().unwrap(),
        mounts: std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap().lines().count(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn churn_leaves_both_processes_as_they_were() {
    let cycles = number("CYCLES", 100);
    let daemon = Arc::new(Daemon::start().await);
    // Caches fill and allocators settle in the first part.
    let warm_up = (cycles / 4).max(40);
    cycle(&daemon, "warm", warm_up).await;
    let before = sizes(&daemon).await;
    cycle(&daemon, "churn", cycles).await;
    let after = sizes(&daemon).await;
    println!("{cycles} cycles: (daemon, keeper) {before:?} → {after:?}");
    for (before, after) in [(before.0, after.0), (before.1, after.1)] {
        assert!(after.fds <= before.fds + 2, "fds: {before:?} → {after:?}");
        assert!(after.mounts <= before.mounts, "mounts: {before:?} → {after:?}");
        // 1 KiB for each cycle would be a leak; 3 MiB is what an allocator's arenas may wander.
        assert!(after.rss_kib <= before.rss_kib + 3072 + cycles / 4, "RSS: {before:?} → {after:?}");
    }
    Arc::into_inner(daemon).unwrap().finish().await;
}

async fn cycle(daemon: &Arc<Daemon>, name: &str, cycles: u64) {
    let workers = (0..PARALLEL).map(|worker| {
        let (daemon, name) = (Arc::clone(daemon), name.to_owned());
        tokio::spawn(async move {
            for n in (worker..cycles).step_by(PARALLEL as usize) {
                let pod = daemon.run_pod(pod(&format!("{name}-{n}"))).await;
                let id = daemon.run(&pod, script("main", "echo hello; exec sleep 1000")).await;
                let output = daemon.exec(&id, &["echo", "hello"]).await.unwrap();
                assert_eq!(output.stdout, b"hello\n");
                if n % 2 == 0 {
                    daemon.stop_container(&id).await;
                    daemon.remove_container(&id).await;
                }
                daemon.remove_pod(&pod.0).await.unwrap();
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
}

/// When what runs behind the answers is over.
async fn sizes(daemon: &Daemon) -> (Size, Size) {
    let read = || (size(daemon.pid()), size(daemon.keeper_pid() as u32));
    let mut smallest = read();
    for _ in 0..20 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let now = read();
        if now.0.fds + now.1.fds < smallest.0.fds + smallest.1.fds {
            smallest = now;
        }
    }
    smallest
}
