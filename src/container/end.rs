//! The end of a container: its exit is turned into a reason, recorded, and told.

use std::sync::Arc;

use crate::container::phase::Stage;
use crate::container::{Container, Ending, Phase, recover};
use crate::keeper::client::{Exit, Process, Status};
use crate::node::{Node, record, table};
use crate::pod::events::EventKind;
use crate::pod::spec::NamespaceMode;

/// Waits for the process's end in a task of its own.
pub fn watch(node: &Arc<Node>, container: &Arc<Container>, process: Process) {
    let (node, container) = (Arc::clone(node), Arc::clone(container));
    tokio::spawn(async move {
        let exit = process.exited().await;
        let _gate = container.gate.lock().await;
        let started_at = match container.phase() {
            // A helper's exit, after the process that it made took its place.
            Phase::Created(current) | Phase::Running { process: current, .. }
                if current.pid != process.pid =>
            {
                return;
            }
            // Nobody has told us of its start, if a daemon before us had asked for it.
            Phase::Created(_) => {
                recover::note(&node, &container.id).and_then(|note| note.started_at()).unwrap_or_default()
            }
            Phase::Running { started_at, .. } => started_at,
            Phase::Exited(_) | Phase::Unknown(_) => return,
        };
        let failure = (started_at == 0).then(|| recover::failed_start(&node, &container.record)).flatten();
        let ending = match failure {
            Some(message) => start_error(message),
            None => ending(&node, &container, exit, started_at),
        };
        conclude(&node, &container, ending).await;
    });
}

/// Records the end, ends what is left of the container, and tells who waits. An end that was told
/// before stays as it was.
pub async fn conclude(node: &Arc<Node>, container: &Arc<Container>, ending: Ending) {
    if !container.phase().stage().leads_to(Stage::Exited) {
        return;
    }
    let path = node.layout.container(&container.id).join("exit.json");
    if let Err(error) = record::write(&path, &ending) {
        tracing::warn!(container = container.id, %error, "the exit is not recorded");
    }
    if let Some(cgroup) = &container.record.cgroup {
        // Where PID 1 is not the container's own, its children outlive it.
        if container.record.spec.security.namespaces.pid != NamespaceMode::Container
            && let Err(error) = node.cgroups.kill(cgroup)
        {
            tracing::warn!(container = container.id, %error, "what the container left is not killed");
        }
        if let Err(error) = node.cgroups.remove(cgroup).await {
            tracing::debug!(container = container.id, %error, "the cgroup stays until removal");
        }
    }
    if container.set_phase(Phase::Exited(ending)) {
        node.announce(container, EventKind::Stopped);
    }
}

/// BEHAVIOUR 9, 10, 41.
pub fn ending(node: &Node, container: &Container, exit: Exit, started_at: i64) -> Ending {
    let kills = container.record.cgroup.as_ref().and_then(|cgroup| node.cgroups.oom_kills(cgroup));
    let oom = kills.is_some_and(|n| n > container.record.oom_baseline);
    describe(exit, started_at, oom)
}

fn describe(exit: Exit, started_at: i64, oom: bool) -> Ending {
    let (reason, message) = match exit.status {
        _ if started_at == 0 => (
            "ContainerStatusUnknown",
            "the container was created but ended before it was started: podwright and its keeper both ended, \
             or it was killed",
        ),
        Status::Unknown => (
            "ContainerStatusUnknown",
            "the exit code is unknown: the process ended while neither podwright nor its keeper ran",
        ),
        Status::Signal(9) if oom => ("OOMKilled", ""),
        Status::Code(0) => ("Completed", ""),
        _ if oom => ("OOMKilled", ""),
        _ => ("Error", ""),
    };
    Ending {
        started_at,
        finished_at: exit.finished_at,
        // What never ran cannot have succeeded.
        exit_code: if started_at == 0 { Status::Unknown.code() } else { exit.status.code() },
        reason: reason.into(),
        message: message.into(),
    }
}

/// The exit code of a container whose program could not be executed (BEHAVIOUR 9).
const START_ERROR: i32 = 128;

/// Of a container whose start failed.
pub fn start_error(message: String) -> Ending {
    let now = table::now();
    Ending { started_at: now, finished_at: now, exit_code: START_ERROR, reason: "StartError".into(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(status: Status, started_at: i64, oom: bool) -> String {
        describe(Exit { status, finished_at: 2 }, started_at, oom).reason
    }

    #[test]
    fn behaviour_10_reasons_are_literal() {
        assert_eq!(reason(Status::Code(0), 1, false), "Completed");
        assert_eq!(reason(Status::Code(3), 1, false), "Error");
        assert_eq!(reason(Status::Signal(15), 1, false), "Error");
        assert_eq!(reason(Status::Signal(9), 1, true), "OOMKilled");
        assert_eq!(reason(Status::Code(137), 1, true), "OOMKilled");
        assert_eq!(
            reason(Status::Code(0), 1, true),
            "Completed",
            "a child was killed, the container went on"
        );
        assert_eq!(reason(Status::Unknown, 1, false), "ContainerStatusUnknown");
        assert_eq!(reason(Status::Code(0), 0, false), "ContainerStatusUnknown");
    }
}
