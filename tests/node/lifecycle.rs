//! Pods and containers from their making to their removal.

use podwright::cri::wire as cri;

use crate::harness::{Daemon, mount, pod, script};

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

/// `echo >/dev/stderr` in a probe opens the pipe anew.
#[tokio::test(flavor = "multi_thread")]
async fn behaviour_15_exec_can_open_its_output_as_any_user() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("exec-user")).await;
    let mut config = script("main", "sleep 1000");
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().run_as_user = Some(cri::Int64Value { value: 1000 });
    let id = daemon.run(&pod, config).await;
    let output = daemon.exec(&id, &["sh", "-c", "echo a >/dev/stdout; echo b >/dev/stderr"]).await.unwrap();
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"a\n"[..], &b"b\n"[..]));
    daemon.finish().await;
}

/// Whichever comes first: once the pod's stop has answered nothing of it runs.
#[tokio::test(flavor = "multi_thread")]
async fn behaviour_11_a_stop_beside_a_start_leaves_nothing_running() {
    let daemon = Daemon::start().await;
    for round in 0..40 {
        let pod = daemon.run_pod(pod(&format!("race-{round}"))).await;
        let id = daemon.create(&pod, script("main", "sleep 1000")).await.unwrap();
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: pod.0.clone() };
        let mut runtime = daemon.runtime();
        let stop = async {
            tokio::time::sleep(std::time::Duration::from_micros(100 * round)).await;
            runtime.stop_pod_sandbox(request).await
        };
        let (_, stopped) = tokio::join!(daemon.start_container(&id), stop);
        stopped.unwrap();
        let status = daemon.status(&id).await;
        assert_eq!(status.state, cri::ContainerState::ContainerExited as i32, "round {round}");
    }
    daemon.finish().await;
}

/// The lines of a process's mount table, without the number of the mount and its parent's.
fn mounts(pid: u32) -> Vec<String> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    table.lines().map(|line| line.splitn(3, ' ').nth(2).unwrap().to_owned()).collect()
}

/// Root filesystems, volumes, /dev/shm and what they are made of are nowhere but in the containers.
#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_mount_table_grows_by_the_pinned_network_namespaces_alone() {
    const PODS: usize = 20;
    let daemon = Daemon::start().await;
    let volume = daemon.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let (here, before) = (mounts(std::process::id()), mounts(daemon.pid()));
    for number in 0..PODS {
        let made = daemon.run_pod(pod(&format!("mounts-{number}"))).await;
        let mut config = script("main", "exec sleep 1000");
        config.mounts.push(mount("/data", &volume));
        let id = daemon.run(&made, config).await;
        daemon.exec(&id, &["touch", "/data/file", "/dev/shm/file"]).await.unwrap();
    }
    let after = mounts(daemon.pid());
    let grown: Vec<&String> = after.iter().filter(|line| !before.contains(line)).collect();
    let netns = daemon.dir.path().join("netns");
    let is_pin = |line: &&&String| line.contains(" - nsfs ") && line.contains(netns.to_str().unwrap());
    assert_eq!(grown.iter().filter(is_pin).count(), PODS, "{grown:#?}");
    assert_eq!((grown.len(), after.len()), (PODS, before.len() + PODS), "{grown:#?}");
    assert_eq!(mounts(std::process::id()), here);
    daemon.finish().await;
}
