//! ReopenContainerLog.

use std::sync::Arc;

use crate::container::{Phase, stdio};
use crate::node::Node;
use crate::{Error, Result};

/// FAILED_PRECONDITION for a container that does not run; no file is made then (BEHAVIOUR 17).
pub async fn reopen_log(node: &Arc<Node>, id: &str) -> Result<()> {
    let container = node.containers.find(id)?;
    if !matches!(container.phase(), Phase::Running { .. }) {
        return Err(Error::precondition(format!("container {} is not running", container.id)));
    }
    let path = container.record.log_path.clone();
    if path.as_os_str().is_empty() {
        return Err(Error::precondition(format!("container {} has no log", container.id)));
    }
    let log = tokio::task::spawn_blocking(move || stdio::open_log(&path))
        .await
        .map_err(|e| Error::internal(format!("opening the log: {e}")))??;
    node.keeper.reopen_log(&container.id, log).await
}
