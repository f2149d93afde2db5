//! StopPodSandbox, and the teardown that it shares with failed runs and removal.

use std::sync::Arc;

use futures_util::future::join_all;

use crate::container::{Container, remove as container_remove, stop as container_stop};
use crate::error::Kind;
use crate::network::namespace;
use crate::node::Node;
use crate::pod::events::EventKind;
use crate::pod::run::save;
use crate::pod::{Phase, Pod, Record, init, namespaces};
use crate::{Error, Result};

/// Kills what is left and gives the network back; the pod stays inspectable. Unknown is fine.
pub async fn stop(node: &Arc<Node>, id: &str) -> Result<()> {
    let pod = match node.pods.find(id) {
        Err(error) if error.kind == Kind::NotFound => return Ok(()),
        found => found?,
    };
    let task = Arc::clone(node);
    let key = format!("stop pod {}", pod.id);
    node.changing.join(key, move || async move { stop_found(&task, &pod).await }).await
}

async fn stop_found(node: &Arc<Node>, pod: &Arc<Pod>) -> Result<()> {
    if !matches!(pod.phase(), Phase::Ready(_)) && pod.record().stopped {
        return Ok(());
    }
    // An earlier try may have failed half way.
    let first = !pod.record().stopped;
    pod.close();
    tear_down(node, pod).await?;
    let stopped = Record { stopped: true, ..Record::clone(&pod.record()) };
    save(node, &stopped)?;
    pod.set_record(stopped);
    if first {
        node.announce_pod(pod, EventKind::Stopped);
    }
    Ok(())
}

/// The containers of a pod.
pub fn containers(node: &Node, pod: &Pod) -> Vec<Arc<Container>> {
    node.containers.all().into_iter().filter(|c| c.record.pod_id == pod.id).collect()
}

/// Ends all that lives in the pod and frees what the pod holds but its records, carrying on past
/// errors. Repeating it is fine.
pub async fn tear_down(node: &Arc<Node>, pod: &Arc<Pod>) -> Result<()> {
    let _gate = pod.gate.write().await;
    let record = pod.record();
    let mut errors: Vec<String> = Vec::new();
    let containers = containers(node, pod);
    let kills = join_all(containers.iter().map(|c| container_stop::kill(node, c))).await;
    errors.extend(kills.into_iter().filter_map(Result::err).map(|e| e.message));
    if let Phase::Ready(shared) = pod.phase() {
        if let Some(init) = shared.init {
            errors.extend(end_init(node, pod, &init).await.err().map(|e| e.message));
        }
        // The last reference to the namespaces goes here; the kernel takes them down by itself.
        pod.set_phase(Phase::NotReady(String::new()));
    }
    // None waits for another: the namespaces go with their last holder, whoever that is.
    let key = namespaces::hold_key(&pod.id);
    let (released, detached, removed) =
        tokio::join!(node.keeper.release(&key), detach(node, &record), remove_cgroup(node, &record));
    errors.extend([released, detached, removed].into_iter().filter_map(Result::err).map(|e| e.message));
    if errors.is_empty() {
        return Ok(());
    }
    Err(Error::internal(format!("stopping pod {}: {}", pod.id, errors.join("; "))))
}

/// Both the network and the pin, whatever becomes of the first.
async fn detach(node: &Node, record: &Record) -> Result<()> {
    if record.host_network() {
        return Ok(());
    }
    let detached = node.network.detach(&record.network()).await;
    let netns = record.netns.clone();
    let unpinned = tokio::task::spawn_blocking(move || namespace::unpin(&netns)).await;
    let unpinned = unpinned.unwrap_or_else(|e| Err(Error::internal(format!("unpinning: {e}"))));
    match (detached, unpinned) {
        (Err(one), Err(two)) => Err(Error { message: format!("{one}; {two}"), ..one }),
        (one, two) => one.and(two),
    }
}

async fn remove_cgroup(node: &Node, record: &Record) -> Result<()> {
    match &record.cgroup {
        Some(cgroup) => node.cgroups.remove(cgroup).await,
        None => Ok(()),
    }
}

async fn end_init(node: &Arc<Node>, pod: &Pod, init: &crate::keeper::client::Process) -> Result<()> {
    init.signal(libc::SIGKILL)?;
    let limit = std::time::Duration::from_secs(10);
    tokio::time::timeout(limit, init.exited())
        .await
        .map_err(|_| Error::internal("the pod's init does not end"))?;
    node.keeper.forget(&init::id(&pod.id)).await
}

/// Removes the pod's records and files.
pub async fn discard(node: &Arc<Node>, pod: &Pod) -> Result<()> {
    let (layout, id) = (node.layout.clone(), pod.id.clone());
    let work = move || {
        container_remove::remove_tree(&layout.pod_state(&id))?;
        container_remove::remove_tree(&layout.pod(&id))
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal(format!("removing the pod's files: {e}")))?
}
