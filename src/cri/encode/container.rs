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
        image: Some(image(&spec.image)),
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
        image: Some(image(&spec.image)),
        image_ref: status.image_ref,
        image_id: status.image_id,
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
        mounts: mounts(&spec.mounts, &status.volume_images),
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
fn image(image: &spec::ImageSpec) -> wire::ImageSpec {
    let name = [&image.user_specified_image, &image.image].into_iter().find(|name| !name.is_empty());
    wire::ImageSpec {
        image: name.cloned().unwrap_or_default(),
        user_specified_image: image.user_specified_image.clone(),
        annotations: image.annotations.clone(),
        runtime_handler: image.runtime_handler.clone(),
        image_ref: String::new(),
    }
}

/// `images`: what the image volumes among them were resolved to, in order.
fn mounts(mounts: &[spec::Mount], images: &[String]) -> Vec<wire::Mount> {
    let mut images = images.iter();
    let encode = |mount: &spec::Mount| {
        let mut wire = self::mount(mount);
        if let Some(image) = &mut wire.image {
            image.image_ref = images.next().cloned().unwrap_or_default();
        }
        wire
    };
    mounts.iter().map(encode).collect()
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
        image: mount.image.as_ref().map(|volume| image(&volume.image)),
        image_sub_path: mount.image.as_ref().map(|volume| volume.sub_path.clone()).unwrap_or_default(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::encode::fixtures;

    #[test]
    fn behaviour_4_what_kubelet_needs_is_there_in_every_state() {
        for state in [State::Created, State::Running, State::Exited, State::Unknown] {
            let status = status(ContainerStatus { state, ..fixtures::container() });
            assert_eq!(status.id, "c1");
            assert_eq!(status.metadata.unwrap(), wire::ContainerMetadata { name: "c".into(), attempt: 2 });
            assert_eq!(status.created_at, 12);
            assert!(!status.image.unwrap().image.is_empty() && !status.image_ref.is_empty());
        }
    }

    #[test]
    fn behaviour_5_the_image_is_what_the_user_wrote() {
        let status = status(fixtures::container());
        assert_eq!(status.image.unwrap().image, "busybox:1.36");
        assert_eq!(status.image_id, "sha256:1f");
        assert_eq!(status.image_ref, "docker.io/library/busybox@sha256:2e");
        let item = item(fixtures::container());
        assert_eq!((item.image_id, item.pod_sandbox_id), ("sha256:1f".into(), "p1".into()));
    }

    #[test]
    fn behaviour_9_a_created_container_has_no_other_times() {
        let status = status(fixtures::container());
        assert_eq!((status.started_at, status.finished_at), (0, 0));
        assert_eq!(status.state(), wire::ContainerState::ContainerCreated);
    }

    #[test]
    fn behaviour_10_the_reason_is_literal() {
        let killed = ContainerStatus {
            state: State::Exited,
            exit_code: 137,
            reason: "OOMKilled".into(),
            ..fixtures::container()
        };
        let status = status(killed);
        assert_eq!((status.reason.as_str(), status.exit_code), ("OOMKilled", 137));
    }

    #[test]
    fn what_is_in_force_is_shown() {
        let status = status(fixtures::container());
        assert_eq!(status.resources.as_ref().unwrap().linux.as_ref().unwrap().memory_limit_in_bytes, 5 << 20);
        let user = status.user.as_ref().unwrap().linux.as_ref().unwrap();
        assert_eq!((user.uid, user.gid, user.supplemental_groups.as_slice()), (7, 8, &[8, 9][..]));
        assert_eq!(status.stop_signal(), wire::Signal::Sigusr1);
        let mount = &status.mounts[0];
        assert!(mount.readonly && mount.recursive_read_only);
        assert_eq!(mount.propagation(), wire::MountPropagation::PropagationPrivate);
    }

    #[test]
    fn verbose_information_is_json() {
        let info = serde_json::json!({ "pid": 5 });
        let answer = status_response(fixtures::container(), Some(info)).unwrap();
        assert_eq!(answer.info["info"], "{\"pid\":5}");
        assert!(status_response(fixtures::container(), None).unwrap().info.is_empty());
    }
}
