//! Pods: statuses, lists, events.

use crate::container::status::ContainerStatus;
use crate::cri::encode::{container, now};
use crate::cri::wire;
use crate::pod::events::{Event, EventKind};
use crate::pod::spec::{NamespaceMode, Namespaces, PodSpec};
use crate::pod::status::PodStatus;

fn state(ready: bool) -> wire::PodSandboxState {
    match ready {
        true => wire::PodSandboxState::SandboxReady,
        false => wire::PodSandboxState::SandboxNotready,
    }
}

/// An entry of ListPodSandbox.
pub(in crate::cri) fn item(pod: PodStatus) -> wire::PodSandbox {
    let spec = &pod.spec;
    wire::PodSandbox {
        id: pod.id,
        metadata: Some(metadata(spec)),
        state: state(pod.ready).into(),
        created_at: pod.created_at,
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
        runtime_handler: spec.runtime_handler.clone(),
    }
}

pub(in crate::cri) fn status(pod: PodStatus) -> wire::PodSandboxStatus {
    let spec = &pod.spec;
    let mut ips = pod.ips.iter().map(|ip| wire::PodIp { ip: ip.to_string() });
    let network = wire::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default().ip,
        additional_ips: ips.collect(),
    };
    let namespaces = wire::Namespace { options: Some(namespaces(&spec.security.namespaces)) };
    wire::PodSandboxStatus {
        id: pod.id,
        metadata: Some(metadata(spec)),
        state: state(pod.ready).into(),
        created_at: pod.created_at,
        network: Some(network),
        linux: Some(wire::LinuxPodSandboxStatus { namespaces: Some(namespaces) }),
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
        runtime_handler: spec.runtime_handler.clone(),
    }
}

/// PodSandboxStatus' answer. The timestamp says that the containers' statuses are there, also
/// where a pod has none (BEHAVIOUR 14).
pub(in crate::cri) fn status_response(
    pod: PodStatus,
    containers: Vec<ContainerStatus>,
    info: Option<serde_json::Value>,
) -> crate::Result<wire::PodSandboxStatusResponse> {
    Ok(wire::PodSandboxStatusResponse {
        status: Some(status(pod)),
        containers_statuses: containers.into_iter().map(container::status).collect(),
        timestamp: now(),
        info: info.as_ref().map(super::info).transpose()?.unwrap_or_default(),
    })
}

pub(in crate::cri) fn event(event: Event) -> wire::ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => wire::ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => wire::ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => wire::ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => wire::ContainerEventType::ContainerDeletedEvent,
    };
    wire::ContainerEventResponse {
        container_id: event.container_id,
        container_event_type: kind.into(),
        created_at: event.created_at,
        pod_sandbox_status: event.pod.map(status),
        containers_statuses: event.containers.into_iter().map(container::status).collect(),
    }
}

pub(super) fn metadata(spec: &PodSpec) -> wire::PodSandboxMetadata {
    wire::PodSandboxMetadata {
        name: spec.name.name.clone(),
        namespace: spec.name.namespace.clone(),
        uid: spec.name.uid.clone(),
        attempt: spec.name.attempt,
    }
}

fn namespaces(namespaces: &Namespaces) -> wire::NamespaceOption {
    wire::NamespaceOption {
        network: mode(namespaces.network).into(),
        pid: mode(namespaces.pid).into(),
        ipc: mode(namespaces.ipc).into(),
        target_id: namespaces.target.clone(),
        // Users are the node's own, until user namespaces are built.
        userns_options: Some(wire::UserNamespace {
            mode: wire::NamespaceMode::Node.into(),
            ..Default::default()
        }),
    }
}

fn mode(mode: NamespaceMode) -> wire::NamespaceMode {
    match mode {
        NamespaceMode::Pod => wire::NamespaceMode::Pod,
        NamespaceMode::Container => wire::NamespaceMode::Container,
        NamespaceMode::Node => wire::NamespaceMode::Node,
        NamespaceMode::Target => wire::NamespaceMode::Target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::encode::fixtures;

    #[test]
    fn behaviour_14_the_timestamp_and_the_statuses_go_together() {
        let full = status_response(fixtures::pod(), vec![fixtures::container()], None).unwrap();
        assert_eq!(full.containers_statuses[0].id, "c1");
        assert!(full.timestamp > 0);
        assert!(status_response(fixtures::pod(), vec![], None).unwrap().timestamp > 0);
    }

    #[test]
    fn behaviour_14_a_deleted_pods_event_has_its_id_and_no_status() {
        let event = event(Event {
            container_id: "p1".into(),
            kind: EventKind::Deleted,
            created_at: 5,
            pod: None,
            containers: vec![],
        });
        assert_eq!((event.container_id.as_str(), event.created_at), ("p1", 5));
        assert_eq!(event.container_event_type(), wire::ContainerEventType::ContainerDeletedEvent);
        assert_eq!(event.pod_sandbox_status, None);
    }

    #[test]
    fn behaviour_33_the_first_address_is_the_primary_one() {
        let network = status(fixtures::pod()).network.unwrap();
        assert_eq!(network.ip, "10.88.0.2");
        assert_eq!(network.additional_ips, [wire::PodIp { ip: "fd00::2".into() }]);
        let host = status(PodStatus { ips: vec![], ..fixtures::pod() }).network.unwrap();
        assert_eq!(host, wire::PodSandboxNetworkStatus::default());
    }

    #[test]
    fn behaviour_8_names_and_annotations_come_back() {
        let item = item(PodStatus { ready: false, ..fixtures::pod() });
        assert_eq!(item.annotations["a/b"], "c=d");
        assert_eq!(item.state(), wire::PodSandboxState::SandboxNotready);
        let metadata = item.metadata.unwrap();
        assert_eq!((metadata.name.as_str(), metadata.uid.as_str(), metadata.attempt), ("web", "u1", 1));
    }
}
