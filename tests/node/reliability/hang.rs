//! Volumes that do not answer, and clients that do not wait.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use podwright::cri::wire as cri;
use tonic::Code;

use super::extremes::{Plugin, plugin};
use crate::harness::{Daemon, pod, script};

/// A FUSE mount whose server never says a word: whoever looks into it waits.
struct Dead {
    path: String,
    server: Option<OwnedFd>,
}

impl Dead {
    fn mount(daemon: &Daemon, name: &str) -> Option<Self> {
        let flags = rustix::fs::OFlags::RDWR;
        let Ok(server) = rustix::fs::open("/dev/fuse", flags, rustix::fs::Mode::empty()) else {
            println!("skipped: no FUSE");
            return None;
        };
        let path = daemon.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        let path = path.to_string_lossy().into_owned();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        daemon.in_namespaces("mount", &["-i", "-t", "fuse", "-o", &options, "none", &path]);
        Some(Self { path, server: Some(server) })
    }

    /// Ends whoever waits.
    fn end(mut self, daemon: &Daemon) {
        self.server = None;
        daemon.in_namespaces("umount", &["-l", &self.path]);
    }

    /// A container that has a directory in there as a volume.
    fn container(&self, name: &str) -> cri::ContainerConfig {
        let mut config = script(name, "true");
        config.mounts = vec![cri::Mount {
            container_path: "/data".into(),
            host_path: format!("{}/{name}", self.path),
            ..Default::default()
        }];
        config
    }
}

/// Processes that the daemon has as children, the keeper left out.
fn helpers(daemon: &Daemon) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().flatten();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<i32> =
        children.flat_map(|c| c.split(' ').flat_map(str::parse).collect::<Vec<_>>()).collect();
    let keeper = daemon.keeper_pid();
    pids.into_iter().filter(|pid| *pid != keeper).count()
}

fn threads(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_volume_holds_up_neither_a_stop_nor_anybody_else() {
    let daemon = Arc::new(Daemon::start_with("[container]\nvolume_timeout = 600").await);
    let Some(dead) = Dead::mount(&daemon, "dead") else { return };
    let hung_pod = daemon.run_pod(pod("hung")).await;
    let hung: Vec<_> = (0..3)
        .map(|n| {
            let (daemon, pod) = (Arc::clone(&daemon), hung_pod.clone());
            let config = dead.container(&format!("c{n}"));
            tokio::spawn(async move { daemon.create(&pod, config).await })
        })
        .collect();
    super::until("a process at work on a dead volume", || helpers(&daemon) == 3).await;
    let others = async {
        let pod = daemon.run_pod(pod("other")).await;
        let mut config = script("main", "ls /data; exit 3");
        let fine = daemon.dir.path().join("fine/not-there-yet");
        config.mounts = vec![cri::Mount {
            container_path: "/data".into(),
            host_path: fine.to_string_lossy().into_owned(),
            ..Default::default()
        }];
        let (status, _) = daemon.outcome(&pod, config).await;
        assert_eq!(status.exit_code, 3);
        assert!(fine.is_dir(), "BEHAVIOUR 27: a missing source is made");
        daemon.runtime().list_containers(cri::ListContainersRequest::default()).await.unwrap();
        daemon.pod_status(&hung_pod.0).await;
        // Nor does a stop wait for what hangs in the pod.
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: hung_pod.0.clone() };
        daemon.runtime().stop_pod_sandbox(request).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(300), others).await.expect("nobody waits for a dead volume");
    for hung in hung {
        let error = hung.await.unwrap().unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
        assert!(error.message().contains("is being stopped"), "{error:?}");
    }
    super::until("the end of what hung", || helpers(&daemon) == 0).await;
    dead.end(&daemon);
    Arc::into_inner(daemon).unwrap().finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_stays_bounded_however_often_a_dead_volume_is_tried() {
    let daemon = Arc::new(Daemon::start_with("[container]\nvolume_timeout = 2").await);
    let Some(dead) = Dead::mount(&daemon, "dead") else { return };
    let pod_1 = daemon.run_pod(pod("hung")).await;
    let before = threads(&daemon);
    let tries: Vec<_> = (0..50)
        .map(|n| {
            let (daemon, pod) = (Arc::clone(&daemon), pod_1.clone());
            let config = dead.container(&format!("c{n}"));
            tokio::spawn(async move { daemon.create(&pod, config).await.unwrap_err() })
        })
        .collect();
    super::until("processes at work on a dead volume", || helpers(&daemon) > 0).await;
    assert!(helpers(&daemon) <= 32);
    let mut named = 0;
    for (n, tried) in tries.into_iter().enumerate() {
        let error = tried.await.unwrap();
        // One that found no room says that.
        let codes = [Code::DeadlineExceeded, Code::ResourceExhausted];
        assert!(codes.contains(&error.code()), "{error:?}");
        let sentence = format!("mounting volume /data (hostPath {}/c{n}): it did not answer", dead.path);
        named += u32::from(error.message().contains(&sentence));
    }
    assert!(named > 0, "the message names volume and path");
    super::until("the end of what hung", || helpers(&daemon) == 0).await;
    // Threads that prepared the others stay for a few seconds, in case that there is more to do.
    super::until("the end of the threads", || threads(&daemon) <= before + 4).await;
    // The volume works as soon as it does.
    dead.end(&daemon);
    let (status, _) = daemon.outcome(&pod_1, script("later", "exit 4")).await;
    assert_eq!(status.exit_code, 4);
    Arc::into_inner(daemon).unwrap().finish().await;
}

/// BEHAVIOUR 3: a call goes on when its client has gone; the retry gets its result. One that fails
/// after its client has gone is undone as any other.
#[tokio::test(flavor = "multi_thread")]
async fn behaviour_3_a_call_whose_client_has_gone_is_joined_by_the_retry_or_undone() {
    let Plugin { directory, flag, extra } = plugin();
    let daemon = Daemon::start_with(&extra).await;
    let request = |name: &str| cri::RunPodSandboxRequest { config: Some(pod(name)), ..Default::default() };
    let gives_up = |name: &'static str| {
        let mut runtime = daemon.runtime();
        async move {
            let call = runtime.run_pod_sandbox(request(name));
            tokio::time::timeout(Duration::from_millis(700), call).await.expect_err("it hangs");
        }
    };
    let adds = |name: &str| {
        let log = std::fs::read_to_string(directory.path().join("calls")).unwrap_or_default();
        log.lines().filter(|line| *line == format!("ADD {name}")).count()
    };
    gives_up("hung-joined").await;
    gives_up("hung-failed").await;
    gives_up("hung-left").await;
    let joined = tokio::spawn({
        let mut runtime = daemon.runtime();
        let request = request("hung-joined");
        async move { runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    std::fs::remove_file(&flag).unwrap();
    let id = joined.await.unwrap();
    assert!(daemon.pod_ready(&id).await);
    assert_eq!(adds("hung-joined"), 1, "the retry joined the call that was under way");
    // Nobody asks for it again: it is there, can be seen, and removed.
    let find = |name: &'static str| {
        let mut runtime = daemon.runtime();
        async move {
            let pods = runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.unwrap();
            let pods = pods.into_inner().items;
            pods.into_iter().find(|p| p.metadata.as_ref().unwrap().name == name).map(|pod| pod.id)
        }
    };
    let mut left = None;
    for _ in 0..5000 {
        left = find("hung-left").await;
        if left.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let left = left.expect("the call went on");
    let answer = daemon.runtime().run_pod_sandbox(request("hung-left")).await.unwrap().into_inner();
    assert_eq!(answer.pod_sandbox_id, left, "a late retry gets what was made");
    // The one that failed has left nothing, which finish() checks; its name is free.
    assert_eq!(find("hung-failed").await, None);
    super::until("the undoing of the network", || {
        let log = std::fs::read_to_string(directory.path().join("calls")).unwrap_or_default();
        log.contains("DEL hung-failed")
    })
    .await;
    daemon.finish().await;
}

/// The same for CreateContainer: the retry of a call whose client went away gets its container.
#[tokio::test(flavor = "multi_thread")]
async fn behaviour_3_a_creation_whose_client_has_gone_is_joined_by_the_retry() {
    let daemon = Arc::new(Daemon::start().await);
    let pod_1 = daemon.run_pod(pod("cancelled")).await;
    for n in 0..40u64 {
        let config = script(&format!("c{n}"), "true");
        // At some moment of the creation.
        let call = daemon.create(&pod_1, config.clone());
        let _ = tokio::time::timeout(Duration::from_micros(n * 400), call).await;
        let first = daemon.create(&pod_1, config.clone()).await.unwrap();
        assert_eq!(daemon.create(&pod_1, config).await.unwrap(), first);
    }
    let list = daemon.runtime().list_containers(cri::ListContainersRequest::default()).await.unwrap();
    assert_eq!(list.into_inner().containers.len(), 40);
    Arc::into_inner(daemon).unwrap().finish().await;
}
