//! What each call answers, and the states that it moves pods and containers through.

use std::time::Duration;

use podwright::cri::wire as cri;
use tonic::Code;

use crate::harness::{Daemon, context, namespaces, pod, read_log, script, text};

fn labels(rows: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    rows.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

async fn containers(daemon: &Daemon, filter: cri::ContainerFilter) -> Vec<cri::Container> {
    let request = cri::ListContainersRequest { filter: Some(filter) };
    daemon.runtime().list_containers(request).await.unwrap().into_inner().containers
}

async fn pods(daemon: &Daemon, filter: cri::PodSandboxFilter) -> Vec<cri::PodSandbox> {
    let request = cri::ListPodSandboxRequest { filter: Some(filter) };
    daemon.runtime().list_pod_sandbox(request).await.unwrap().into_inner().items
}

async fn pod_status(daemon: &Daemon, id: &str) -> cri::PodSandboxStatusResponse {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
    daemon.runtime().pod_sandbox_status(request).await.unwrap().into_inner()
}

// ---- 1 to 4, 8: identity ----------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_1_unknown_ids() {
    let daemon = Daemon::start().await;
    let mut runtime = daemon.runtime();
    let id = || "no-such-id".to_owned();
    runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id() }).await.unwrap();
    runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id() }).await.unwrap();
    daemon.stop(&id(), 1).await.unwrap();
    daemon.remove(&id()).await.unwrap();
    let mut codes = Vec::new();
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id(), verbose: false };
    codes.push(runtime.pod_sandbox_status(request).await.unwrap_err());
    let request = cri::ContainerStatusRequest { container_id: id(), verbose: false };
    codes.push(runtime.container_status(request).await.unwrap_err());
    codes.push(daemon.exec(&id(), &["true"]).await.unwrap_err());
    codes.push(daemon.start_container(&id()).await.unwrap_err());
    let request = cri::UpdateContainerResourcesRequest { container_id: id(), ..Default::default() };
    codes.push(runtime.update_container_resources(request).await.unwrap_err());
    let request = cri::ReopenContainerLogRequest { container_id: id() };
    codes.push(runtime.reopen_container_log(request).await.unwrap_err());
    let request = cri::ContainerStatsRequest { container_id: id() };
    codes.push(runtime.container_stats(request).await.unwrap_err());
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: id() };
    codes.push(runtime.pod_sandbox_stats(request).await.unwrap_err());
    codes.push(daemon.create(&(id(), pod("x")), script("x", "true")).await.unwrap_err());
    for error in codes {
        assert!(error.code() == Code::NotFound && error.message().contains("no-such-id"), "{error}");
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_2_a_missing_image_is_no_error() {
    let daemon = Daemon::start().await;
    let image = Some(cri::ImageSpec { image: "registry.invalid/none:1".into(), ..Default::default() });
    let request = cri::ImageStatusRequest { image: image.clone(), verbose: false };
    assert!(daemon.images().image_status(request).await.unwrap().into_inner().image.is_none());
    daemon.images().remove_image(cri::RemoveImageRequest { image: image.clone() }).await.unwrap();
    let pod = daemon.run_pod(pod("two")).await;
    let mut config = script("none", "true");
    config.image = image;
    let error = daemon.create(&pod, config).await.unwrap_err();
    assert!(error.code() == Code::NotFound && error.message().contains("registry.invalid/none:1"), "{error}");
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_3_a_retried_call_joins_the_first() {
    let daemon = Daemon::start().await;
    let request = || {
        let request = cri::RunPodSandboxRequest { config: Some(pod("three")), ..Default::default() };
        let mut runtime = daemon.runtime();
        async move { runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id }
    };
    let (a, b, c) = tokio::join!(request(), request(), request());
    assert_eq!((&a, &a), (&b, &c));
    assert_eq!(request().await, a, "also after the first has answered");
    let pod = (a.clone(), pod("three"));
    let (a, b) =
        tokio::join!(daemon.create(&pod, script("c", "true")), daemon.create(&pod, script("c", "true")));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a, b);
    assert_eq!(daemon.create(&pod, script("c", "true")).await.unwrap(), a);
    assert_eq!(containers(&daemon, Default::default()).await.len(), 1);
    // Another container under the name of one that is there is an error that names it.
    let error = daemon.create(&pod, script("c", "echo different")).await.unwrap_err();
    assert!(error.code() == Code::AlreadyExists && error.message().contains(&a), "{error}");
    // A name is free again once its owner is removed.
    daemon.remove(&a).await.unwrap();
    assert_ne!(daemon.create(&pod, script("c", "echo different")).await.unwrap(), a);
    // A call that its client gave up runs on, and the next one gets its result.
    let mut runtime = daemon.runtime();
    let config = super::harness::pod("given-up");
    let run = || cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let _ = tokio::time::timeout(Duration::from_micros(300), runtime.run_pod_sandbox(run())).await;
    runtime.run_pod_sandbox(run()).await.unwrap();
    assert_eq!(pods(&daemon, Default::default()).await.len(), 2);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_4_and_8_status_and_lists() {
    let daemon = Daemon::start().await;
    let mut config = pod("eight");
    config.labels = labels(&[("app", "a"), ("tier", "x")]);
    config.annotations = labels(&[("note", "with\nlines = and \u{fc}")]);
    let one = daemon.run_pod(config.clone()).await;
    let two = daemon.run_pod(pod("other")).await;
    let mut container = script("main", "exit 0");
    container.labels = labels(&[("app", "c")]);
    container.annotations = labels(&[("a/b", "")]);
    let exited = daemon.run(&one, container.clone()).await;
    daemon.wait(&exited).await;
    let running = daemon.run(&two, script("main", "sleep 1000")).await;
    let created = daemon.create(&two, script("created", "true")).await.unwrap();

    for id in [&exited, &running, &created] {
        let status = daemon.status(id).await;
        assert_eq!(&status.id, id);
        assert!(status.created_at > 0 && !status.metadata.unwrap().name.is_empty());
        assert!(
            !status.image.unwrap().image.is_empty()
                && !status.image_ref.is_empty()
                && !status.image_id.is_empty()
        );
    }
    let status = daemon.status(&exited).await;
    assert_eq!((&status.labels, &status.annotations), (&container.labels, &container.annotations));
    let status = pod_status(&daemon, &one.0).await.status.unwrap();
    assert_eq!((&status.labels, &status.annotations), (&config.labels, &config.annotations));
    assert_eq!(status.metadata, config.metadata);

    let find = async |filter| {
        let mut ids: Vec<_> = containers(&daemon, filter).await.into_iter().map(|c| c.id).collect();
        ids.sort();
        ids
    };
    let sorted = |ids: &[&String]| {
        let mut ids: Vec<_> = ids.iter().map(|id| (*id).clone()).collect();
        ids.sort();
        ids
    };
    let state = |s: cri::ContainerState| Some(cri::ContainerStateValue { state: s as i32 });
    assert_eq!(find(Default::default()).await, sorted(&[&exited, &running, &created]));
    let filter = |f: &dyn Fn(&mut cri::ContainerFilter)| {
        let mut filter = cri::ContainerFilter::default();
        f(&mut filter);
        filter
    };
    assert_eq!(find(filter(&|f| f.id = exited[..12].into())).await, sorted(&[&exited]));
    assert_eq!(find(filter(&|f| f.pod_sandbox_id = two.0[..12].into())).await, sorted(&[&running, &created]));
    assert_eq!(
        find(filter(&|f| f.state = state(cri::ContainerState::ContainerExited))).await,
        sorted(&[&exited])
    );
    assert_eq!(
        find(filter(&|f| f.state = state(cri::ContainerState::ContainerCreated))).await,
        sorted(&[&created])
    );
    assert_eq!(find(filter(&|f| f.label_selector = labels(&[("app", "c")]))).await, sorted(&[&exited]));
    assert_eq!(find(filter(&|f| f.label_selector = labels(&[("app", "x")]))).await, sorted(&[]));
    assert_eq!(
        find(filter(&|f| {
            f.id = exited.clone();
            f.state = state(cri::ContainerState::ContainerRunning);
        }))
        .await,
        sorted(&[])
    );
    assert_eq!(find(filter(&|f| f.id = "nothing".into())).await, sorted(&[]));

    let with = |id: &str, rows: &[(&str, &str)]| cri::PodSandboxFilter {
        id: id.into(),
        label_selector: labels(rows),
        ..Default::default()
    };
    assert_eq!(pods(&daemon, with(&one.0[..12], &[])).await.len(), 1);
    assert_eq!(pods(&daemon, with("", &[("app", "a"), ("tier", "x")])).await[0].id, one.0);
    assert!(pods(&daemon, with("", &[("app", "a"), ("tier", "y")])).await.is_empty());
    assert!(pods(&daemon, with(&two.0, &[("app", "a")])).await.is_empty());
    daemon
        .runtime()
        .stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: one.0.clone() })
        .await
        .unwrap();
    let ready = Some(cri::PodSandboxStateValue { state: cri::PodSandboxState::SandboxReady as i32 });
    let found = pods(&daemon, cri::PodSandboxFilter { state: ready, ..Default::default() }).await;
    assert_eq!(found.iter().map(|p| &p.id).collect::<Vec<_>>(), [&two.0]);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_37_every_list_is_a_stream_too() {
    use tokio_stream::StreamExt as _;
    let daemon = Daemon::start().await;
    let one = daemon.run_pod(pod("stream")).await;
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(daemon.run(&one, script(&format!("c{n}"), "sleep 1000")).await);
    }
    ids.sort();
    let mut runtime = daemon.runtime();
    let mut seen = Vec::new();
    let mut stream =
        runtime.stream_containers(cri::StreamContainersRequest { filter: None }).await.unwrap().into_inner();
    while let Some(piece) = stream.next().await {
        seen.extend(piece.unwrap().containers.into_iter().map(|c| c.id));
    }
    seen.sort();
    assert_eq!(seen, ids);
    let mut seen = Vec::new();
    let mut stream = runtime
        .stream_container_stats(cri::StreamContainerStatsRequest { filter: None })
        .await
        .unwrap()
        .into_inner();
    while let Some(piece) = stream.next().await {
        seen.extend(piece.unwrap().container_stats.into_iter().map(|s| s.attributes.unwrap().id));
    }
    seen.sort();
    assert_eq!(seen, ids);
    let mut stream = runtime
        .stream_pod_sandboxes(cri::StreamPodSandboxesRequest { filter: None })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(stream.next().await.unwrap().unwrap().pod_sandboxes[0].id, one.0);
    let mut stream = runtime
        .stream_pod_sandbox_stats(cri::StreamPodSandboxStatsRequest { filter: None })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(stream.next().await.unwrap().unwrap().pod_sandbox_stats.len(), 1);
    let mut stream = runtime
        .stream_pod_sandbox_metrics(cri::StreamPodSandboxMetricsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(stream.next().await.unwrap().unwrap().pod_sandbox_metrics.len(), 1);
    let mut stream =
        daemon.images().stream_images(cri::StreamImagesRequest::default()).await.unwrap().into_inner();
    assert_eq!(stream.next().await.unwrap().unwrap().images.len(), 1);
    daemon.finish().await;
}

// ---- 10 to 14: the end ------------------------------------------------------------------------

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
        tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(first, second) }).await.unwrap();
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
        let event = tokio::time::timeout(Duration::from_secs(20), events.message())
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

// ---- 29 to 36 ---------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_29_and_30_updated_resources() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("update")).await;
    let mut config = script("main", "sleep 1000");
    let first = cri::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_shares: 512,
        cpu_quota: 20000,
        cpu_period: 100_000,
        hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
        ..Default::default()
    };
    config.linux.as_mut().unwrap().resources = Some(first);
    let id = daemon.create(&pod, config).await.unwrap();
    let update = async |linux| {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        daemon.runtime().update_container_resources(request).await
    };
    let seen = async || daemon.status(&id).await.resources.unwrap().linux.unwrap();
    update(cri::LinuxContainerResources { memory_limit_in_bytes: 80 << 20, ..Default::default() })
        .await
        .unwrap();
    daemon.start_container(&id).await.unwrap();
    let now = seen().await;
    assert_eq!((now.memory_limit_in_bytes, now.cpu_shares, now.cpu_quota), (80 << 20, 512, 20000));
    update(cri::LinuxContainerResources { cpu_shares: 1024, cpu_quota: 30000, ..Default::default() })
        .await
        .unwrap();
    let now = seen().await;
    assert_eq!((now.memory_limit_in_bytes, now.cpu_shares, now.cpu_quota), (80 << 20, 1024, 30000));
    // In the kernel, in whichever hierarchy has the controller.
    let probe = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; \
                 cat /sys/fs/cgroup/cpu*/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null | head -1";
    let out = daemon.exec(&id, &["sh", "-c", probe]).await.unwrap();
    let out = String::from_utf8(out.stdout).unwrap();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], (80u64 << 20).to_string(), "{out}");
    assert!(lines[1].starts_with("30000"), "{out}");
    daemon.exec(&id, &["kill", "1"]).await.unwrap();
    daemon.stop(&id, 0).await.unwrap();
    update(cri::LinuxContainerResources { cpu_shares: 2, ..Default::default() }).await.unwrap_err();
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pid_namespace_modes() {
    let daemon = Daemon::start().await;
    let with = |pid: cri::NamespaceMode, target: &str| {
        let options = cri::NamespaceOption { target_id: target.into(), ..namespaces(pid) };
        move |mut config: cri::ContainerConfig| {
            context(&mut config).namespace_options = Some(options.clone());
            config
        }
    };
    let pod_with = |name: &str, pid: cri::NamespaceMode| {
        let mut config = pod(name);
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.namespace_options = Some(namespaces(pid));
        config
    };
    // CONTAINER: alone.
    let own = daemon.run_pod(pod("own")).await;
    let (_, lines) = daemon.outcome(&own, script("own", "echo $$; ls -d /proc/[0-9]* | wc -l")).await;
    assert_eq!(lines[0].1, "1");
    // POD: an init of ours, and everybody sees everybody.
    let shared = daemon.run_pod(pod_with("shared", cri::NamespaceMode::Pod)).await;
    let in_pod = with(cri::NamespaceMode::Pod, "");
    let other = daemon.run(&shared, in_pod(script("other", "sleep 4321"))).await;
    let (_, lines) = daemon
        .outcome(
            &shared,
            in_pod(script("look", "ps -o pid,user,args; (sleep 0.1 &); grep ^Cap /proc/1/status")),
        )
        .await;
    let seen = text(&lines);
    assert!(seen.contains("sleep 4321") && seen.contains("podwright-init"), "{seen}");
    assert!(seen.contains("CapPrm:\t0000000000000000"), "{seen}");
    let host = std::fs::read_to_string("/proc/1/comm").unwrap();
    assert!(!seen.contains("kthreadd") && !seen.contains(host.trim()), "the node's processes are seen");
    daemon.stop(&other, 0).await.unwrap();
    // TARGET: the other's.
    let target = daemon.run(&own, script("target", "sleep 8765")).await;
    let into = with(cri::NamespaceMode::Target, &target);
    let (_, lines) = daemon
        .outcome(
            &own,
            into(script("debug", "ps -o args; readlink /proc/self/ns/pid /proc/1/ns/pid | uniq | wc -l")),
        )
        .await;
    assert!(text(&lines).contains("sleep 8765"), "{lines:?}");
    let error = daemon
        .create(&own, with(cri::NamespaceMode::Target, "no-such")(script("bad", "true")))
        .await
        .unwrap_err();
    assert!(error.message().contains("no-such"), "{error}");
    // NODE: the host's.
    let node = daemon.run_pod(pod_with("node", cri::NamespaceMode::Node)).await;
    let (_, lines) = daemon
        .outcome(&node, with(cri::NamespaceMode::Node, "")(script("node", "readlink /proc/self/ns/pid")))
        .await;
    assert_eq!(text(&lines), std::fs::read_link("/proc/self/ns/pid").unwrap().to_str().unwrap());
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_33_host_network() {
    let daemon = Daemon::start().await;
    let mut config = pod("host");
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().network = cri::NamespaceMode::Node as i32;
    config.hostname = String::new();
    let pod = daemon.run_pod(config).await;
    let network = pod_status(&daemon, &pod.0).await.status.unwrap().network.unwrap_or_default();
    assert_eq!((network.ip.as_str(), network.additional_ips.len()), ("", 0));
    let mut container = script("main", "readlink /proc/self/ns/net; hostname");
    context(&mut container).namespace_options.as_mut().unwrap().network = cri::NamespaceMode::Node as i32;
    let (_, lines) = daemon.outcome(&pod, container).await;
    let ours = std::fs::read_link(format!("/proc/{}/ns/net", daemon.pid())).unwrap();
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(text(&lines), format!("{}\n{}", ours.display(), hostname.trim()));
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_36_stats() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("stats")).await;
    let id = daemon
        .run(&pod, script("main", "head -c 3000000 /dev/zero > /file; echo ready; while :; do :; done"))
        .await;
    daemon.lines_of(&id, 1).await;
    let stats = async || {
        let request = cri::ContainerStatsRequest { container_id: id.clone() };
        daemon.runtime().container_stats(request).await.unwrap().into_inner().stats.unwrap()
    };
    let first = stats().await;
    let mut second = stats().await;
    let usage = |s: &cri::ContainerStats| s.cpu.as_ref().unwrap().usage_core_nano_seconds.unwrap().value;
    for _ in 0..500 {
        if usage(&second) > usage(&first) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        second = stats().await;
    }
    assert!(usage(&second) > usage(&first), "{first:?} {second:?}");
    assert!(second.memory.as_ref().unwrap().working_set_bytes.unwrap().value > 0);
    let layer = second.writable_layer.unwrap();
    assert!(
        layer.used_bytes.unwrap().value >= 3_000_000 && layer.inodes_used.unwrap().value >= 1,
        "{:?}",
        layer
    );
    assert_eq!(second.attributes.unwrap().metadata.unwrap().name, "main");
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: pod.0.clone() };
    let stats = daemon.runtime().pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap();
    let linux = stats.linux.unwrap();
    assert_eq!(linux.containers.len(), 1);
    assert_eq!(linux.network.unwrap().default_interface.unwrap().name, "eth0");
    daemon.finish().await;
}
