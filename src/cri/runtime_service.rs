//! RuntimeService, call by call in the proto's order: decode, one verb, encode.
//!
//! A client that gives up drops the call's future. Verbs that change something are safe to drop,
//! or finish in a task of their own that a repeated call joins (BEHAVIOUR 3).

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::unfold;
use tokio::sync::{broadcast, watch};
use tonic::{Request, Response, Status, async_trait};

use crate::cri::decode::{self, Host};
use crate::cri::encode;
use crate::cri::encode::pieces::{Pieces, pieces};
use crate::cri::wire::runtime_service_server::RuntimeService;
use crate::cri::wire::*;
use crate::error::Error;
use crate::node::Node;
use crate::pod::events::Event;
use crate::{container, pod, stream};

pub(super) struct Runtime {
    node: Arc<Node>,
    host: Host,
    streaming: Arc<stream::Server>,
    /// True once the server stops: event streams end then.
    stopping: watch::Receiver<bool>,
}

impl Runtime {
    pub(super) fn new(
        node: Arc<Node>,
        host: Host,
        streaming: Arc<stream::Server>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self { node, host, streaming, stopping }
    }

    fn pods(&self, filter: Option<PodSandboxFilter>) -> Result<Vec<PodSandbox>, Status> {
        let pods = pod::list::list(&self.node, &decode::filter::pods(filter)?);
        Ok(pods.into_iter().map(encode::pod::item).collect())
    }

    fn containers(&self, filter: Option<ContainerFilter>) -> Result<Vec<Container>, Status> {
        let containers = container::list::list(&self.node, &decode::filter::containers(filter)?);
        Ok(containers.into_iter().map(encode::container::item).collect())
    }

    async fn all_container_stats(&self, filter: Option<ContainerStatsFilter>) -> Vec<ContainerStats> {
        let stats = container::stats::list(&self.node, &decode::filter::container_stats(filter)).await;
        stats.into_iter().map(encode::stats::container).collect()
    }

    async fn all_pod_stats(&self, filter: Option<PodSandboxStatsFilter>) -> Vec<PodSandboxStats> {
        let stats = pod::stats::list(&self.node, &decode::filter::pod_stats(filter)).await;
        stats.into_iter().map(encode::stats::pod).collect()
    }

    async fn all_metrics(&self) -> Vec<PodSandboxMetrics> {
        let metrics = pod::metrics::list(&self.node).await;
        metrics.iter().map(encode::metrics::pod).collect()
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

#[async_trait]
impl RuntimeService for Runtime {
    // --- The node ---

    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        answer(encode::node::version())
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let verbose = request.get_ref().verbose;
        let info =
            if verbose { encode::node::info(&self.node.config, &self.host) } else { Default::default() };
        answer(encode::node::status(self.node.ready(), self.node.network.ready(), info))
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        answer(encode::node::runtime_config(self.node.config.cgroup.driver))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        self.node.network.set_pod_cidr(&decode::node::pod_cidr(request.into_inner())?)?;
        answer(UpdateRuntimeConfigResponse {})
    }

    // --- Pods ---

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let spec = decode::pod::run(request.into_inner(), &self.host)?;
        let pod_sandbox_id = pod::run::run(&self.node, spec).await?;
        answer(RunPodSandboxResponse { pod_sandbox_id })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let id = decode::id("pod_sandbox_id", &request.get_ref().pod_sandbox_id)?;
        pod::stop::stop(&self.node, id).await?;
        answer(StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let id = decode::id("pod_sandbox_id", &request.get_ref().pod_sandbox_id)?;
        pod::remove::remove(&self.node, id).await?;
        answer(RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let request = request.into_inner();
        let id = decode::id("pod_sandbox_id", &request.pod_sandbox_id)?;
        let status = pod::status::status(&self.node, id)?;
        let containers = pod::status::containers(&self.node, &status.id)?;
        let info = request.verbose.then(|| pod::status::info(&self.node, &status.id)).transpose()?;
        answer(encode::pod::status_response(status, containers, info)?)
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        answer(ListPodSandboxResponse { items: self.pods(request.into_inner().filter)? })
    }

    type StreamPodSandboxesStream = Pieces<StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let pods = self.pods(request.into_inner().filter)?;
        answer(pieces(pods, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        _: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        Err(Error::unimplemented("UpdatePodSandboxResources").into())
    }

    // --- Containers ---

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let (pod_id, spec) = decode::container::create(request.into_inner(), &self.host)?;
        let container_id = container::create::create(&self.node, &pod_id, spec).await?;
        answer(CreateContainerResponse { container_id })
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let id = decode::id("container_id", &request.get_ref().container_id)?;
        container::start::start(&self.node, id).await?;
        answer(StartContainerResponse {})
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let request = request.into_inner();
        let id = decode::id("container_id", &request.container_id)?;
        container::stop::stop(&self.node, id, decode::seconds(request.timeout)).await?;
        answer(StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let id = decode::id("container_id", &request.get_ref().container_id)?;
        container::remove::remove(&self.node, id).await?;
        answer(RemoveContainerResponse {})
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let request = request.into_inner();
        let id = decode::id("container_id", &request.container_id)?;
        let status = container::status::status(&self.node, id)?;
        let info = request.verbose.then(|| container::status::info(&self.node, &status.id)).transpose()?;
        answer(encode::container::status_response(status, info)?)
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        answer(ListContainersResponse { containers: self.containers(request.into_inner().filter)? })
    }

    type StreamContainersStream = Pieces<StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let containers = self.containers(request.into_inner().filter)?;
        answer(pieces(containers, |containers| StreamContainersResponse { containers }))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let id = decode::id("container_id", &request.container_id)?;
        let resources = decode::resources::resources("linux", request.linux)?;
        container::update::update(&self.node, id, resources).await?;
        answer(UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        let id = decode::id("container_id", &request.get_ref().container_id)?;
        container::reopen_log::reopen_log(&self.node, id).await?;
        answer(ReopenContainerLogResponse {})
    }

    // --- Events ---

    type GetContainerEventsStream = Pieces<ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        answer(events(self.node.events.subscribe(), self.stopping.clone()))
    }

    // --- Streaming ---

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let request = request.into_inner();
        let id = decode::id("container_id", &request.container_id)?;
        let (argv, timeout) = decode::exec::exec_sync(request.cmd, request.timeout)?;
        let output = container::exec::exec_sync(&self.node, id, argv, timeout).await?;
        answer(encode::exec::response(output))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let mut exec = decode::exec::exec(request.into_inner())?;
        exec.container_id = container::exec_session::check(&self.node, &exec.container_id)?.id.clone();
        answer(ExecResponse { url: self.streaming.url(stream::Ticket::Exec(exec))? })
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let mut attach = decode::exec::attach(request.into_inner())?;
        attach.container_id = stream::check_attach(&self.node, &attach.container_id)?.id.clone();
        answer(AttachResponse { url: self.streaming.url(stream::Ticket::Attach(attach))? })
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        let id = decode::id("pod_sandbox_id", &request.get_ref().pod_sandbox_id)?.to_owned();
        let ports = decode::exec::ports(&request.get_ref().port)?;
        let ticket = stream::PortForward { pod_id: stream::check_pod(&self.node, &id)?, ports };
        answer(PortForwardResponse { url: self.streaming.url(stream::Ticket::PortForward(ticket))? })
    }

    // --- Use of resources ---

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        let id = decode::id("container_id", &request.get_ref().container_id)?;
        let stats = container::stats::stats(&self.node, id).await?;
        answer(ContainerStatsResponse { stats: Some(encode::stats::container(stats)) })
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        answer(ListContainerStatsResponse {
            stats: self.all_container_stats(request.into_inner().filter).await,
        })
    }

    type StreamContainerStatsStream = Pieces<StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let stats = self.all_container_stats(request.into_inner().filter).await;
        answer(pieces(stats, |container_stats| StreamContainerStatsResponse { container_stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        let id = decode::id("pod_sandbox_id", &request.get_ref().pod_sandbox_id)?;
        let stats = pod::stats::stats(&self.node, id).await?;
        answer(PodSandboxStatsResponse { stats: Some(encode::stats::pod(stats)) })
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        answer(ListPodSandboxStatsResponse { stats: self.all_pod_stats(request.into_inner().filter).await })
    }

    type StreamPodSandboxStatsStream = Pieces<StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let stats = self.all_pod_stats(request.into_inner().filter).await;
        answer(pieces(stats, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        answer(ListMetricDescriptorsResponse { descriptors: encode::metrics::descriptors() })
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        answer(ListPodSandboxMetricsResponse { pod_metrics: self.all_metrics().await })
    }

    type StreamPodSandboxMetricsStream = Pieces<StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let metrics = self.all_metrics().await;
        answer(pieces(metrics, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
    }

    // --- Checkpoints ---

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Err(Error::unimplemented("CheckpointContainer").into())
    }

    async fn checkpoint_pod(&self, _: Request<CheckpointPodRequest>) -> Answer<CheckpointPodResponse> {
        Err(Error::unimplemented("CheckpointPod").into())
    }

    async fn restore_pod(&self, _: Request<RestorePodRequest>) -> Answer<RestorePodResponse> {
        Err(Error::unimplemented("RestorePod").into())
    }
}

/// Events until the client goes, the server stops, or the client falls too far behind: then it
/// has missed some and is told so, since kubelet lists everything anew after a broken stream.
fn events(
    receiver: broadcast::Receiver<Event>,
    mut stopping: watch::Receiver<bool>,
) -> Pieces<ContainerEventResponse> {
    let stopped = async move {
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    let events = unfold(Some(receiver), |receiver| async {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Ok(event) => Some((Ok(encode::pod::event(event)), Some(receiver))),
            Err(broadcast::error::RecvError::Closed) => None,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                let message = format!("the client was too slow and has missed {missed} events");
                tracing::warn!(missed, "an event stream's client was too slow");
                Some((Err(Status::resource_exhausted(message)), None))
            }
        }
    });
    Box::pin(events.take_until(Box::pin(stopped)))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::pod::events::{EventKind, Events};

    fn event(id: &str) -> Event {
        let container_id = id.to_owned();
        Event { container_id, kind: EventKind::Started, created_at: 1, pod: None, containers: vec![] }
    }

    #[tokio::test]
    async fn a_client_that_was_too_slow_is_told_so_and_cut_off() {
        let sender = Events::default();
        let (_stop, stopping) = watch::channel(false);
        let mut stream = events(sender.subscribe(), stopping);
        sender.send(|| event("first"));
        assert_eq!(stream.next().await.unwrap().unwrap().container_id, "first");
        (0..1025).for_each(|i| sender.send(|| event(&i.to_string())));
        let status = stream.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("missed 1 event"), "{status}");
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn event_streams_end_when_the_server_stops() {
        let sender = Events::default();
        let (stop, stopping) = watch::channel(false);
        let mut stream = events(sender.subscribe(), stopping);
        stop.send(true).unwrap();
        assert!(stream.next().await.is_none());
    }
}
