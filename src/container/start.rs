//! StartContainer.

use std::sync::Arc;

use crate::container::{Container, Phase, end, exec, exposure};
use crate::node::Node;
use crate::pod::events::EventKind;
use crate::{Error, Result};

/// Releases the parked child. FAILED_PRECONDITION unless the container is CREATED.
pub async fn start(node: &Arc<Node>, id: &str) -> Result<()> {
    let container = node.containers.find(id)?;
    let node = Arc::clone(node);
    let key = format!("start {}", container.id);
    let start = Arc::clone(&node);
    node.changing.join(key, move || async move { release(&start, &container).await }).await
}

async fn release(node: &Arc<Node>, container: &Arc<Container>) -> Result<()> {
    let _gate = container.gate.lock().await;
    let refused = |why| Error::precondition(format!("container {} is {why}", container.id));
    container.phase().stage().start().map_err(refused)?;
    let parked = container.process().map(|process| process.pid);
    if exposure::joins(container)
        && exec::template(node, container)?.loads_in_sight(container.record.spec.tty)
    {
        exposure::refuse_if_traced(node, container)?;
    }
    match node.keeper.start(&container.id).await {
        Ok((process, started_at)) => {
            container.set_phase(Phase::Running { process: process.clone(), started_at });
            if Some(process.pid) != parked {
                // In a PID namespace that existed the helper parked, and another process runs.
                if let Err(error) = super::recover::write_live(node, &container.record, process.pid) {
                    tracing::warn!(container = container.id, %error, "the container could not be found again");
                }
                end::watch(node, container, process);
            }
            node.announce(container, EventKind::Started);
            Ok(())
        }
        Err(error) => {
            // The keeper may have died on the way; then the child is still parked and a retry works.
            if error.kind == crate::error::Kind::Unavailable {
                return Err(error);
            }
            end::conclude(node, container, end::start_error(error.message.clone())).await;
            Err(error.during(format!("starting container {}", container.record.spec.name.name)))
        }
    }
}
