//! PID 1 of a pod whose containers share a PID namespace.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::Result;
use crate::container::spec::Seccomp;
use crate::container::{attached, null};
use crate::keeper::client::Process;
use crate::keeper::plan::{CgroupEntry, Exec, Identity, PidNamespace, Program, SpawnPlan, Step};
use crate::node::Node;
use crate::pod::events::EventKind;
use crate::pod::{Phase, Pod, PodSpec, Shared};
use crate::security::seccomp;
use crate::sys::mount::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID};
use crate::sys::probe;

/// The keeper's name for a pod's PID 1.
pub fn id(pod_id: &str) -> String {
    format!("init/{pod_id}")
}

/// PID 1 of a shared PID namespace: nobody, without capabilities, that reaps. In the pod's namespaces
/// and behind the pod's filter, at least the default one, since its containers see it.
pub fn plan(
    entry: crate::cgroup::Entry,
    spec: &PodSpec,
    shared: &Shared,
) -> Result<(SpawnPlan, Vec<Arc<OwnedFd>>)> {
    let mut fds = crate::container::compile::FdList::default();
    let null = fds.push(null::open()?);
    let profile = match &spec.security.seccomp {
        localhost @ Seccomp::Localhost(_) => localhost,
        _ => &Seccomp::RuntimeDefault,
    };
    let filter = seccomp::resolve(profile, 0)?.map(|compiled| compiled.filter);
    let nobody = Identity { uid: 65534, gid: 65534, ..Identity::default() };
    let cgroup = CgroupEntry {
        unified: entry.unified.map(|fd| fds.push(fd)),
        tasks: entry.tasks.into_iter().map(|fd| fds.push(fd)).collect(),
    };
    let mut steps = vec![Step::Reset];
    if probe::procfs_of_others().is_err() {
        // For the containers, which are outside of the namespace while they make theirs.
        steps.push(Step::Mount {
            fstype: b"proc".to_vec(),
            target: attached::INIT_PROC.into(),
            options: Vec::new(),
            attributes: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
        });
    }
    steps.extend([Step::NoNewPrivileges, Step::Identity(nobody)]);
    let plan = SpawnPlan {
        pid: PidNamespace::New,
        new_namespaces: libc::CLONE_NEWNS as u64,
        join: shared.joins().into_iter().map(|(fd, flag)| (fds.push(fd), flag)).collect(),
        cgroup,
        stdio: [null; 3],
        terminal: false,
        steps,
        park: false,
        seccomp: filter.as_ref().map(|f| f.program.to_vec()),
        seccomp_flags: filter.as_ref().map_or(0, |f| f.flags),
        exec: Exec { program: Program::PodInit, argv: vec![b"podwright-init".to_vec()], envp: Vec::new() },
    };
    Ok((plan, fds.into_fds()))
}

/// When it dies, so does all in its namespace and no container can be started in the pod: kubelet
/// must be told that it needs another.
pub fn watch(node: &Arc<Node>, pod: &Arc<Pod>, init: Process) {
    let (node, pod) = (Arc::downgrade(node), Arc::downgrade(pod));
    tokio::spawn(async move {
        init.exited().await;
        let (Some(node), Some(pod)) = (node.upgrade(), pod.upgrade()) else { return };
        if matches!(pod.phase(), Phase::Ready(_)) {
            pod.set_phase(Phase::NotReady("PID 1 of the pod's shared PID namespace has ended".into()));
            node.announce_pod(&pod, EventKind::Stopped);
        }
    });
}
