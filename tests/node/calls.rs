//! Who is who: identities, names, lists, and what an unknown one is answered.

use std::time::Duration;

use podwright::cri::wire as cri;
use tonic::Code;

use crate::harness::{Daemon, pod, pod_status, script};

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
