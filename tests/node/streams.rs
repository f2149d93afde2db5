//! Lists as streams, and the size of messages.

use hyper_util::rt::{TokioExecutor, TokioIo};
use podwright::cri::wire as cri;
use podwright::cri::wire::runtime_service_client::RuntimeServiceClient;
use tokio_stream::StreamExt as _;
use tonic::Code;

use crate::harness::{Daemon, pod, script};

/// Everything that a stream gives: its pieces' items, one after the other.
async fn all<P, I>(stream: tonic::Response<tonic::Streaming<P>>, items: impl Fn(P) -> Vec<I>) -> Vec<I> {
    let mut stream = stream.into_inner();
    let mut found = Vec::new();
    while let Some(piece) = stream.next().await {
        let piece = items(piece.unwrap());
        assert!(!piece.is_empty(), "an empty piece tells nothing");
        found.extend(piece);
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_37_every_list_is_a_stream_too() {
    let daemon = Daemon::start().await;
    let one = daemon.run_pod(pod("stream")).await;
    let two = daemon.run_pod(pod("empty")).await;
    for n in 0..3 {
        daemon.run(&one, script(&format!("c{n}"), "sleep 1000")).await;
    }
    daemon.create(&two, script("created", "true")).await.unwrap();
    let mut runtime = daemon.runtime();
    let list =
        runtime.list_containers(cri::ListContainersRequest { filter: None }).await.unwrap().into_inner();
    let stream = runtime.stream_containers(cri::StreamContainersRequest { filter: None }).await.unwrap();
    let streamed = all(stream, |piece| piece.containers).await;
    assert_eq!((streamed.len(), streamed), (4, list.containers));
    let filter = Some(cri::ContainerFilter { pod_sandbox_id: two.0.clone(), ..Default::default() });
    let stream = runtime.stream_containers(cri::StreamContainersRequest { filter }).await.unwrap();
    let names: Vec<_> =
        all(stream, |p| p.containers).await.into_iter().map(|c| c.metadata.unwrap().name).collect();
    assert_eq!(names, ["created"]);

    let list =
        runtime.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await.unwrap().into_inner();
    let stream = runtime.stream_pod_sandboxes(cri::StreamPodSandboxesRequest { filter: None }).await.unwrap();
    assert_eq!((list.items.len(), all(stream, |piece| piece.pod_sandboxes).await), (2, list.items));

    // What is measured differs from one moment to the next; whom it is about does not.
    let id = |stats: cri::ContainerStats| stats.attributes.unwrap().id;
    let list = runtime
        .list_container_stats(cri::ListContainerStatsRequest { filter: None })
        .await
        .unwrap()
        .into_inner();
    let list: Vec<_> = list.stats.into_iter().map(id).collect();
    let stream =
        runtime.stream_container_stats(cri::StreamContainerStatsRequest { filter: None }).await.unwrap();
    let streamed: Vec<_> = all(stream, |piece| piece.container_stats).await.into_iter().map(id).collect();
    assert_eq!((list.len(), streamed), (3, list), "running ones only");

    let id = |stats: cri::PodSandboxStats| stats.attributes.unwrap().id;
    let list = runtime
        .list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest { filter: None })
        .await
        .unwrap()
        .into_inner();
    let list: Vec<_> = list.stats.into_iter().map(id).collect();
    let stream =
        runtime.stream_pod_sandbox_stats(cri::StreamPodSandboxStatsRequest { filter: None }).await.unwrap();
    let streamed: Vec<_> = all(stream, |piece| piece.pod_sandbox_stats).await.into_iter().map(id).collect();
    assert_eq!((list.len(), streamed), (2, list));

    let list =
        runtime.list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {}).await.unwrap().into_inner();
    let list: Vec<_> = list.pod_metrics.into_iter().map(|m| m.pod_sandbox_id).collect();
    let stream = runtime.stream_pod_sandbox_metrics(cri::StreamPodSandboxMetricsRequest {}).await.unwrap();
    let streamed: Vec<_> =
        all(stream, |piece| piece.pod_sandbox_metrics).await.into_iter().map(|m| m.pod_sandbox_id).collect();
    assert_eq!((list.len(), streamed), (2, list));

    let list = daemon.images().list_images(cri::ListImagesRequest::default()).await.unwrap().into_inner();
    let stream = daemon.images().stream_images(cri::StreamImagesRequest::default()).await.unwrap();
    assert_eq!((list.images.len(), all(stream, |piece| piece.images).await), (1, list.images));
    daemon.finish().await;
}

/// 16 MiB, as the peers and kubelet have it, either way; but for streams, which have no limit.
#[tokio::test(flavor = "multi_thread")]
async fn behaviour_37_the_size_of_messages() {
    let daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("large")).await;
    let large = |name: &str, size: usize| {
        let mut config = script(name, "true");
        config.annotations.insert("large".into(), "x".repeat(size));
        config
    };
    // Refused without having been read.
    let error = daemon.create(&made, large("refused", 17 << 20)).await.unwrap_err();
    assert!(matches!(error.code(), Code::OutOfRange | Code::ResourceExhausted), "{error}");
    for n in 0..3 {
        daemon.create(&made, large(&format!("c{n}"), 6 << 20)).await.unwrap();
    }
    let mut runtime = daemon.runtime();
    let request = cri::ListContainersRequest { filter: None };
    let error = runtime.list_containers(request).await.unwrap_err();
    assert!(matches!(error.code(), Code::OutOfRange | Code::ResourceExhausted), "{error}");
    // A client with the ordinary limit.
    let mut runtime = daemon.runtime().max_decoding_message_size(16 << 20);
    let stream = runtime.stream_containers(cri::StreamContainersRequest { filter: None }).await.unwrap();
    let sizes: Vec<_> =
        all(stream, |p| p.containers).await.iter().map(|c| c.annotations["large"].len()).collect();
    assert_eq!(sizes, [6 << 20; 3]);
    daemon.finish().await;
}

/// Of a call that its client gives no more time: DEADLINE_EXCEEDED, which kubelet tells from
/// CANCELLED.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_of_the_client_is_told_as_one() {
    let daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("deadline")).await;
    let id = daemon.run(&made, script("main", "sleep 1000")).await;
    // Without tonic's channel, whose own timer would hide the answer.
    let stream = tokio::net::UnixStream::connect(daemon.dir.path().join("cri.sock")).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let service = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
        let mut sender = sender.clone();
        async move { sender.send_request(request).await }
    });
    let mut client = RuntimeServiceClient::with_origin(service, "http://localhost".parse().unwrap());
    let mut request = tonic::Request::new(cri::ExecSyncRequest {
        container_id: id.clone(),
        cmd: vec!["sleep".into(), "777".into()],
        timeout: 0,
    });
    request.metadata_mut().insert("grpc-timeout", "300m".parse().unwrap());
    let error = client.exec_sync(request).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    // The exec was given up with its call.
    for _ in 0..500 {
        let left = daemon.exec(&id, &["sh", "-c", "ps | grep -c '[s]leep 777'"]).await.unwrap().stdout;
        if left == b"0\n" {
            return daemon.finish().await;
        }
    }
    panic!("the exec of a call that was given up lives on");
}
