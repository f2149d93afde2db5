//! How containers and pods end, and what is told of it.

use std::time::Duration;

use podwright::cri::wire as cri;
use tonic::Code;

use crate::harness::{Daemon, kill, mount, nsenter, pod, pod_status, read_log, script, text};

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_10_reasons() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("ten")).await;
    let limited = |mut config: cri::ContainerConfig| {
        config.linux.as_mut().unwrap().resources =
            Some(cri::LinuxContainerResources { memory_limit_in_bytes: 24 << 20, ..Default::default() });
        config
    };
    let eat = "exec tail /dev/zero";
    for (config, code, reason) in [
        (script("completed", "exit 0"), 0, "Completed"),
        (script("error", "exit 42"), 42, "Error"),
        // PID 1 is not killed by its own signals.
        (script("own", "kill -9 1; kill -TERM 1; exit 0"), 0, "Completed"),
        (limited(script("oom", eat)), 137, "OOMKilled"),
        (limited(script("fine", "exit 3")), 3, "Error"),
    ] {
        let name = config.metadata.as_ref().unwrap().name.clone();
        let (status, _) = daemon.outcome(&pod, config).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{name}: {status:?}");
        assert!(
            status.created_at <= status.started_at && status.started_at <= status.finished_at,
            "{status:?}"
        );
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_11_stopping() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("eleven")).await;
    let traps = "for s in HUP INT TERM USR1 QUIT; do trap \"echo got $s; n=\\$((n+1))\" $s; done; echo ready; \
                 while :; do sleep 0.05; test \"$1\" = stay || test -z \"$n\" || exit 9; done";
    // The CRI's number of a signal is not Linux's.
    for (name, signal, expected) in [
        ("default", cri::Signal::RuntimeDefault, "got TERM"),
        ("usr1", cri::Signal::Sigusr1, "got USR1"),
        ("hup", cri::Signal::Sighup, "got HUP"),
    ] {
        let mut config = script(name, traps);
        config.stop_signal = signal as i32;
        let id = daemon.run(&pod, config).await;
        daemon.lines_of(&id, 1).await;
        daemon.stop(&id, 20).await.unwrap();
        let status = daemon.status(&id).await;
        assert_eq!(
            (status.state, status.exit_code),
            (cri::ContainerState::ContainerExited as i32, 9),
            "{name}"
        );
        assert_eq!(text(&read_log(std::path::Path::new(&status.log_path))), format!("ready\n{expected}"));
        daemon.stop(&id, 20).await.expect("an ended container is stopped");
    }
    // A second, shorter stop shortens the first; the signal is sent once; SIGKILL ends all.
    let mut config = script("stubborn", traps);
    config.command.extend(["sh".into(), "stay".into()]);
    let id = daemon.run(&pod, config).await;
    daemon.lines_of(&id, 1).await;
    let first = daemon.stop(&id, 1000);
    let second = async {
        daemon.lines_of(&id, 2).await;
        daemon.stop(&id, 1).await
    };
    let (first, second) =
        tokio::time::timeout(Duration::from_secs(300), async { tokio::join!(first, second) }).await.unwrap();
    first.unwrap();
    second.unwrap();
    let status = daemon.status(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    assert_eq!(text(&read_log(std::path::Path::new(&status.log_path))), "ready\ngot TERM");
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_12_stopping_and_removing_pods() {
    let daemon = Daemon::start().await;
    let one = daemon.run_pod(pod("twelve")).await;
    let running = daemon.run(&one, script("running", "trap '' TERM; sleep 1000")).await;
    let created = daemon.create(&one, script("created", "true")).await.unwrap();
    let stop = || cri::StopPodSandboxRequest { pod_sandbox_id: one.0.clone() };
    assert!(!pod_status(&daemon, &one.0).await.status.unwrap().network.unwrap().ip.is_empty());
    for _ in 0..2 {
        daemon.runtime().stop_pod_sandbox(stop()).await.unwrap();
        let response = pod_status(&daemon, &one.0).await;
        assert_eq!(response.status.unwrap().state, cri::PodSandboxState::SandboxNotready as i32);
        for id in [&running, &created] {
            assert_eq!(daemon.status(id).await.state, cri::ContainerState::ContainerExited as i32);
        }
    }
    let error = daemon.create(&one, script("late", "true")).await.unwrap_err();
    assert!(matches!(error.code(), Code::FailedPrecondition), "{error}");
    let error = daemon.start_container(&created).await.unwrap_err();
    assert!(error.message().contains(&created), "{error}");
    // A running pod is removed by force.
    let two = daemon.run_pod(pod("force")).await;
    let id = daemon.run(&two, script("main", "sleep 1000")).await;
    daemon
        .runtime()
        .remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: two.0.clone() })
        .await
        .unwrap();
    let request = cri::ContainerStatusRequest { container_id: id, verbose: false };
    assert_eq!(daemon.runtime().container_status(request).await.unwrap_err().code(), Code::NotFound);
    // So is a running container.
    let three = daemon.run_pod(pod("container")).await;
    let id = daemon.run(&three, script("main", "sleep 1000")).await;
    daemon.remove(&id).await.unwrap();
    daemon.remove(&id).await.unwrap();
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_14_events() {
    let daemon = Daemon::start().await;
    let mut events =
        daemon.runtime().get_container_events(cri::GetEventsRequest {}).await.unwrap().into_inner();
    let one = daemon.run_pod(pod("fourteen")).await;
    let id = daemon.run(&one, script("main", "exit 4")).await;
    daemon.wait(&id).await;
    daemon.remove(&id).await.unwrap();
    daemon
        .runtime()
        .stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: one.0.clone() })
        .await
        .unwrap();
    daemon
        .runtime()
        .remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: one.0.clone() })
        .await
        .unwrap();
    use cri::ContainerEventType::{
        ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
    };
    let expected = [
        (&one.0, ContainerCreatedEvent),
        (&one.0, ContainerStartedEvent),
        (&id, ContainerCreatedEvent),
        (&id, ContainerStartedEvent),
        (&id, ContainerStoppedEvent),
        (&id, ContainerDeletedEvent),
        (&one.0, ContainerStoppedEvent),
        (&one.0, ContainerDeletedEvent),
    ];
    for (id, kind) in expected {
        let event = tokio::time::timeout(Duration::from_secs(200), events.message())
            .await
            .expect("an event")
            .unwrap()
            .unwrap();
        assert_eq!((&event.container_id, event.container_event_type), (id, kind as i32), "{event:?}");
        assert!(event.created_at > 0);
        let deleted = kind == ContainerDeletedEvent && *id == one.0;
        assert!(deleted || event.pod_sandbox_status.as_ref().is_some_and(|s| s.id == one.0), "{event:?}");
        if kind == ContainerStoppedEvent && *id != one.0 {
            assert_eq!(event.containers_statuses[0].exit_code, 4);
        }
    }
    let two = daemon.run_pod(pod("status")).await;
    let id = daemon.run(&two, script("main", "sleep 1000")).await;
    let status = pod_status(&daemon, &two.0).await;
    assert_eq!(status.timestamp != 0, !status.containers_statuses.is_empty(), "both or neither");
    if let Some(container) = status.containers_statuses.first() {
        assert_eq!(container.id, id);
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_11_a_longer_stop_does_not_lengthen_the_first() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("longer")).await;
    let id = daemon
        .run(&pod, script("main", "trap 'echo got TERM' TERM; echo ready; while :; do sleep 0.05; done"))
        .await;
    daemon.lines_of(&id, 1).await;
    let second = async {
        daemon.lines_of(&id, 2).await;
        daemon.stop(&id, 1000).await
    };
    let both = async { tokio::join!(daemon.stop(&id, 2), second) };
    let (first, second) =
        tokio::time::timeout(Duration::from_secs(300), both).await.expect("the first limit holds");
    first.unwrap();
    second.unwrap();
    let status = daemon.status(&id).await;
    assert_eq!(status.exit_code, 137);
    assert_eq!(text(&read_log(std::path::Path::new(&status.log_path))), "ready\ngot TERM");
    daemon.finish().await;
}

/// A file system in the daemon's mount namespace that leaves its readers in uninterruptible sleep.
/// They wake when this goes.
struct StuckFs(std::process::Child);

impl StuckFs {
    fn mount(daemon: &Daemon, at: &std::path::Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let mut command = std::process::Command::new("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", daemon.pid()))
            .arg(crate::programs::build("stuckfs"))
            .arg(at);
        let log = std::fs::File::create(at.with_extension("log")).unwrap();
        Self(command.stdout(log).spawn().unwrap())
    }

    async fn has_said(at: &std::path::Path, word: &str) {
        for _ in 0..20_000 {
            if std::fs::read_to_string(at.with_extension("log")).unwrap().lines().any(|line| line == word) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the file system does not say {word:?}");
    }
}

impl Drop for StuckFs {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_11_a_task_that_cannot_be_killed_is_named() {
    let daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("stuck")).await;
    let at = daemon.dir.path().join("stuck");
    let stuck = StuckFs::mount(&daemon, &at);
    StuckFs::has_said(&at, "ready").await;
    let mut config = script("main", "cat /stuck/file & echo $!; wait");
    config.mounts = vec![mount("/stuck", &at)];
    let id = daemon.run(&made, config).await;
    StuckFs::has_said(&at, "stuck").await;
    let error = daemon.stop(&id, 0).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(error.message().contains("cat") && error.message().contains(&id), "{error}");
    // Neither this pod's status nor another pod waits for it.
    assert_eq!(daemon.status(&id).await.state, cri::ContainerState::ContainerRunning as i32);
    let other = daemon.run_pod(pod("other")).await;
    assert_eq!(daemon.outcome(&other, script("main", "exit 4")).await.0.exit_code, 4);
    drop(stuck);
    daemon.stop(&id, 0).await.unwrap();
    assert_eq!(daemon.status(&id).await.exit_code, 137);
    nsenter(&daemon, &["umount", "-l", at.to_str().unwrap()]);
    daemon.finish().await;
}

fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// Whose end the keeper did not live to see.
#[tokio::test(flavor = "multi_thread")]
async fn behaviour_41_the_exit_code_survives_the_keeper() {
    let daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("forty-one")).await;
    for (name, code) in [("code", 37), ("zero", 0)] {
        let text = format!(
            "echo before; while ! test -e /shared/{name}; do sleep 0.02; done; echo after; exit {code}"
        );
        let mut config = script(name, &text);
        config.mounts = vec![mount("/shared", &daemon.dir.path().join("shared"))];
        let id = daemon.run(&made, config).await;
        daemon.lines_of(&id, 1).await;
        let pid = daemon.pid_of(&id).await as i32;
        // It reaps nothing while it is stopped.
        let keeper = daemon.keeper_pid();
        kill(keeper, 19);
        std::fs::write(daemon.dir.path().join("shared").join(name), "").unwrap();
        for _ in 0..20_000 {
            if is_zombie(pid) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(is_zombie(pid));
        kill(keeper, 9);
        let status = daemon.wait(&id).await;
        let reason = if code == 0 { "Completed" } else { "Error" };
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{status:?}");
        assert_eq!(text_of(&status), "before\nafter", "{name}");
    }
    // The daemon, the parent of orphans meanwhile, has not taken the exits of its own commands for
    // theirs: mounts, plugins and execs go on working.
    let id = daemon.run(&made, script("after", "sleep 1000")).await;
    assert_eq!(daemon.exec(&id, &["sh", "-c", "exit 9"]).await.unwrap().exit_code, 9);
    daemon.finish().await;
}

fn text_of(status: &cri::ContainerStatus) -> String {
    text(&read_log(std::path::Path::new(&status.log_path)))
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_41_an_exit_that_nobody_saw_is_no_success() {
    let mut daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("unseen")).await;
    let id = daemon.run(&made, script("main", "echo ran; sleep 1000")).await;
    daemon.lines_of(&id, 1).await;
    let (pid, keeper) = (daemon.pid_of(&id).await as i32, daemon.keeper_pid());
    daemon.kill();
    kill(keeper, 9);
    kill(pid, 9);
    for _ in 0..20_000 {
        if !std::path::Path::new(&format!("/proc/{pid}")).exists() || is_zombie(pid) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    daemon.start_again().await;
    let status = daemon.wait(&id).await;
    // Where its parent has not reaped it yet, and the kernel tells: known after all.
    let known = status.exit_code == 137 && status.reason == "Error";
    let unknown = status.exit_code != 0 && status.reason == "ContainerStatusUnknown";
    assert!((known || unknown) && !status.message.is_empty(), "{status:?}");
    assert!(status.started_at > 0 && status.finished_at >= status.started_at, "{status:?}");
    daemon.finish().await;
}
