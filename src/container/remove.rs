//! RemoveContainer.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::cgroup::Cgroup;
use crate::container::{Container, stop};
use crate::error::{Kind, Step};
use crate::node::Node;
use crate::pod::events::EventKind;
use crate::{Error, Result};

/// Kills it if need be. Unknown is fine.
pub async fn remove(node: &Arc<Node>, id: &str) -> Result<()> {
    let container = match node.containers.find(id) {
        Err(error) if error.kind == Kind::NotFound => return Ok(()),
        found => found?,
    };
    let task = Arc::clone(node);
    let key = format!("remove {}", container.id);
    node.changing.join(key, move || async move { take_apart(&task, &container).await }).await
}

async fn take_apart(node: &Arc<Node>, container: &Arc<Container>) -> Result<()> {
    stop::kill(node, container).await?;
    let _gate = container.gate.lock().await;
    if node.containers.find(&container.id).is_err() {
        return Ok(());
    }
    if !container.phase().stage().is_over() {
        return Err(Error::precondition(format!("container {} has not ended", container.id)));
    }
    discard(node, &container.id, container.record.cgroup.as_ref()).await?;
    node.containers.remove(&container.id);
    node.announce(container, EventKind::Deleted);
    Ok(())
}

/// Frees all that a container holds, carrying on past errors; repeating it is fine. Also the way
/// back of a creation that failed.
pub async fn discard(node: &Arc<Node>, id: &str, cgroup: Option<&Cgroup>) -> Result<()> {
    let mut errors = Vec::new();
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            errors.push(error.message);
        }
    };
    note(node.keeper.forget(id).await);
    if let Some(cgroup) = cgroup {
        note(node.cgroups.kill(cgroup));
        note(node.cgroups.remove(cgroup).await);
    }
    let (layout, id) = (node.layout.clone(), id.to_owned());
    let holder = id.clone();
    let files = tokio::task::spawn_blocking(move || {
        remove_tree(&layout.container_state(&id))?;
        bury(&layout.container(&id), &layout.trash())
    });
    note(files.await.unwrap_or_else(|e| Err(Error::internal(e.to_string()))));
    node.images.release(&holder);
    if errors.is_empty() {
        return Ok(());
    }
    Err(Error::internal(format!("removing container {holder}: {}", errors.join("; "))))
}

/// Removes a directory; a missing one is fine.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.step(|| format!("removing {}", path.display())),
    }
}

/// Moves a directory that may be large out of the way, and frees it on a thread of its own.
pub fn bury(path: &Path, trash: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default();
    let grave = trash.join(name);
    match fs::rename(path, &grave) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.step(|| format!("moving {} to {}", path.display(), grave.display()))?,
    }
    tokio::task::spawn_blocking(move || {
        if let Err(error) = remove_tree(&grave) {
            tracing::warn!(%error, "the trash is not freed; the next start tries again");
        }
    });
    Ok(())
}
