//! RemovePodSandbox.

use std::sync::Arc;

use futures_util::future::join_all;

use crate::container::remove as container_remove;
use crate::error::Kind;
use crate::node::Node;
use crate::pod::events::EventKind;
use crate::pod::{Pod, stop};
use crate::{Error, Result};

/// Stops it if need be, and removes it with its containers. Unknown is fine.
pub async fn remove(node: &Arc<Node>, id: &str) -> Result<()> {
    let pod = match node.pods.find(id) {
        Err(error) if error.kind == Kind::NotFound => return Ok(()),
        found => found?,
    };
    let task = Arc::clone(node);
    let key = format!("remove pod {}", pod.id);
    node.changing.join(key, move || async move { take_apart(&task, &pod).await }).await
}

async fn take_apart(node: &Arc<Node>, pod: &Arc<Pod>) -> Result<()> {
    stop::stop(node, &pod.id).await?;
    let containers = stop::containers(node, pod);
    let removals = join_all(containers.iter().map(|c| container_remove::remove(node, &c.id))).await;
    let errors: Vec<_> = removals.into_iter().filter_map(Result::err).map(|e| e.message).collect();
    if !errors.is_empty() {
        return Err(Error::internal(format!("removing pod {}: {}", pod.id, errors.join("; "))));
    }
    stop::discard(node, pod).await?;
    if node.pods.remove(&pod.id).is_some() {
        node.announce_pod(pod, EventKind::Deleted);
    }
    Ok(())
}
