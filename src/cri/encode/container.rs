//! Containers: statuses, lists, events.

use crate::container::spec::{self, ContainerSpec, Propagation, Resources};
use crate::container::status::{ContainerStatus, State, User};
use crate::cri::wire;

pub(in crate::cri) fn state(state: State) -> wire::ContainerState {
    match state {
        State::Created => wire::ContainerState::ContainerCreated,
        State::Running => wire::ContainerState::ContainerRunning,
        State::Exited => wire::ContainerState::ContainerExited,
        State::Unknown => wire::ContainerState::ContainerUnknown,
    }
}

/// An entry of ListContainers.
pub(in crate::cri) fn item(status: ContainerStatus) -> wire::Container {
    let spec = &status.spec;
    wire::Container {
        id: status.id,
        pod_sandbox_id: status.pod_id,
        metadata: Some(metadata(spec)),
        image: Some(image(spec)),
        image_ref: status.image_ref,
        image_id: status.image_id,
        state: state(status.state).into(),
        created_at: status.created_at,
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
    }
}

pub(in crate::cri) fn status(status: ContainerStatus) -> wire::ContainerStatus {
    let spec = &status.spec;
    wire::ContainerStatus {
        id: status.id,
        metadata: Some(metadata(spec)),
        state: state(status.state).into(),
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        reason: status.reason,
        message: status.message,
        image: Some(image(spec)),
        image_ref: status.image_ref,
        image_id: status.image_id,
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
        mounts: spec.mounts.iter().map(mount).collect(),
        log_path: status.log_path,
        resources: Some(wire::ContainerResources {
            linux: Some(resources(&status.resources)),
            windows: None,
        }),
        user: Some(user(&status.user)),
        stop_signal: signal(&status.stop_signal).into(),
    }
}

pub(super) fn metadata(spec: &ContainerSpec) -> wire::ContainerMetadata {
    wire::ContainerMetadata { name: spec.name.name.clone(), attempt: spec.name.attempt }
}

/// What the user wrote, where kubelet passed it on: it resolves the tag to an ID before it
/// creates the container, and shows `image.image` in the pod's status (BEHAVIOUR 5).
fn image(spec: &ContainerSpec) -> wire::ImageSpec {
    let image = &spec.image;
    let name = [&image.user_specified_image, &image.image].into_iter().find(|name| !name.is_empty());
    wire::ImageSpec {
        image: name.cloned().unwrap_or_default(),
        user_specified_image: image.user_specified_image.clone(),
        annotations: image.annotations.clone(),
        runtime_handler: image.runtime_handler.clone(),
        image_ref: String::new(),
    }
}

fn mount(mount: &spec::Mount) -> wire::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => wire::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => wire::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => wire::MountPropagation::PropagationBidirectional,
    };
    wire::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        propagation: propagation.into(),
        selinux_relabel: mount.selinux_relabel,
        ..Default::default()
    }
}

pub(in crate::cri) fn resources(resources: &Resources) -> wire::LinuxContainerResources {
    let hugepage = |(page_size, limit): &(String, u64)| wire::HugepageLimit {
        page_size: page_size.clone(),
        limit: *limit,
    };
    wire::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit,
        memory_swap_limit_in_bytes: resources.memory_swap_limit,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources.hugepage_limits.iter().map(hugepage).collect(),
        unified: resources.unified.clone(),
    }
}

fn user(user: &User) -> wire::ContainerUser {
    wire::ContainerUser {
        linux: Some(wire::LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: user.groups.iter().map(|&group| group.into()).collect(),
        }),
    }
}

/// The wire's value of a signal's name. RUNTIME_DEFAULT for one that it has no value for.
pub(in crate::cri) fn signal(name: &str) -> wire::Signal {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let name = name.replace('+', "PLUS").replace('-', "MINUS");
    wire::Signal::from_str_name(&format!("SIGNAL_SIG{name}")).unwrap_or_default()
}

/// ContainerStatus' answer.
pub(in crate::cri) fn status_response(
    of: ContainerStatus,
    info: Option<serde_json::Value>,
) -> crate::Result<wire::ContainerStatusResponse> {
    Ok(wire::ContainerStatusResponse {
        status: Some(status(of)),
        info: info.as_ref().map(super::info).transpose()?.unwrap_or_default(),
    })
}
