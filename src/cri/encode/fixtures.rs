//! A pod and a container for this folder's tests.

use std::sync::Arc;

use crate::container::spec::{ContainerName, ContainerSpec, ImageSpec, Mount, Resources};
use crate::container::status::{ContainerStatus, State, User};
use crate::pod::spec::{PodName, PodSpec};
use crate::pod::status::PodStatus;

pub(in crate::cri) fn pod() -> PodStatus {
    let name = PodName { name: "web".into(), namespace: "default".into(), uid: "u1".into(), attempt: 1 };
    let annotations = [("a/b".to_owned(), "c=d".to_owned())].into();
    PodStatus {
        id: "p1".into(),
        spec: Arc::new(PodSpec { name, annotations, ..Default::default() }),
        ready: true,
        created_at: 11,
        ips: vec!["10.88.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        message: String::new(),
    }
}

/// As it is right after CreateContainer.
pub(in crate::cri) fn container() -> ContainerStatus {
    let mount = Mount {
        container_path: "/data".into(),
        host_path: "/srv/x".into(),
        readonly: true,
        recursive_read_only: true,
        ..Default::default()
    };
    let spec = ContainerSpec {
        name: ContainerName { name: "c".into(), attempt: 2 },
        image: ImageSpec {
            image: "sha256:1f".into(),
            user_specified_image: "busybox:1.36".into(),
            ..Default::default()
        },
        labels: [("app".to_owned(), "web".to_owned())].into(),
        mounts: vec![mount],
        ..Default::default()
    };
    ContainerStatus {
        id: "c1".into(),
        pod_id: "p1".into(),
        spec: Arc::new(spec),
        state: State::Created,
        created_at: 12,
        started_at: 0,
        finished_at: 0,
        exit_code: 0,
        reason: String::new(),
        message: String::new(),
        image_id: "sha256:1f".into(),
        image_ref: "docker.io/library/busybox@sha256:2e".into(),
        log_path: "/var/log/pods/x/c/0.log".into(),
        resources: Resources { memory_limit: 5 << 20, ..Default::default() },
        user: User { uid: 7, gid: 8, groups: vec![8, 9] },
        stop_signal: "SIGUSR1".into(),
        volume_images: Vec::new(),
    }
}
