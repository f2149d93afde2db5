//! Who could take over a process of ours that has yet to load its filter.
//!
//! Nearly every filter is loaded before its process can be seen (`keeper/filter`). One that forbids
//! clone(2) cannot be: until it is loaded the process has more rights than its program will have,
//! and who has CAP_SYS_PTRACE in its PID namespace can use them.

use crate::container::{Container, Phase};
use crate::node::Node;
use crate::pod::spec::NamespaceMode;
use crate::security::capabilities;
use crate::{Error, Result};

const CAP_SYS_PTRACE: u64 = 1 << 19;

/// FAILED_PRECONDITION if a living container of the pod may trace what joins its PID namespace.
/// Namespaces differ between the containers of a pod, but who of them sees whom is not worth a
/// difference here.
pub fn refuse_if_traced(node: &Node, container: &Container) -> Result<()> {
    let tracer = node.containers.all().into_iter().find(|other| {
        other.record.pod_id == container.record.pod_id
            && matches!(other.phase(), Phase::Running { .. })
            && may_trace(node, other)
    });
    match tracer {
        None => Ok(()),
        Some(tracer) => Err(Error::precondition(format!(
            "the seccomp profile of container {} forbids clone or setsid, so that it can only be loaded in sight \
             of the pod's processes, and container {} has CAP_SYS_PTRACE",
            container.id, tracer.id
        ))),
    }
}

/// Whether the container's first process joins a PID namespace that others live in.
pub fn joins(container: &Container) -> bool {
    let mode = container.record.spec.security.namespaces.pid;
    matches!(mode, NamespaceMode::Pod | NamespaceMode::Target)
}

fn may_trace(node: &Node, container: &Container) -> bool {
    let security = &container.record.spec.security;
    let sets = capabilities::resolve(&security.capabilities, security.privileged, node.capabilities);
    // It was resolved when it was made; if it cannot be any more, nothing is known of it.
    sets.map_or(true, |sets| sets.bounding & CAP_SYS_PTRACE != 0)
}
