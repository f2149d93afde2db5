//! Pods and containers from their making to their removal.

use podwright::cri::wire as cri;

use crate::harness::{Daemon, pod, script};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_a_container_and_leaves_nothing() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("one")).await;
    let (status, lines) = daemon.outcome(&pod, script("hello", "echo out; echo err >&2; exit 3")).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    assert!(lines.contains(&("stdout".into(), "out".into())), "{lines:?}");
    assert!(lines.contains(&("stderr".into(), "err".into())), "{lines:?}");
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_9_created_reports_zero_times_and_a_failed_start_exits_128() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("nine")).await;
    let mut config = script("broken", "");
    config.command = vec!["/no/such/program".into()];
    let id = daemon.create(&pod, config).await.unwrap();
    let status = daemon.status(&id).await;
    assert_eq!(status.state, cri::ContainerState::ContainerCreated as i32);
    assert_eq!((status.started_at, status.finished_at), (0, 0));
    let error = daemon.start_container(&id).await.unwrap_err();
    assert!(error.message().contains("/no/such/program"), "{error}");
    let status = daemon.status(&id).await;
    assert_eq!(status.state, cri::ContainerState::ContainerExited as i32);
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_15_exec_gives_output_and_exit_code() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("exec")).await;
    let id = daemon.run(&pod, script("main", "sleep 1000")).await;
    let output = daemon.exec(&id, &["sh", "-c", "echo a; echo b >&2; exit 7"]).await.unwrap();
    assert_eq!(output.exit_code, 7);
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"a\n"[..], &b"b\n"[..]));
    let error = daemon.exec(&id, &["/no/such"]).await.unwrap_err();
    assert!(error.message().contains("/no/such"), "{error}");
    daemon.finish().await;
}
