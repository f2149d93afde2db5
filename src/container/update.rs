//! UpdateContainerResources.

use std::sync::Arc;

use crate::container::Phase;
use crate::container::spec::Resources;
use crate::node::{Node, record};
use crate::{Error, Result};

/// Zero means unchanged; a CREATED container gets the limits at once as well (BEHAVIOUR 29).
pub async fn update(node: &Arc<Node>, id: &str, change: Resources) -> Result<()> {
    let container = node.containers.find(id)?;
    let _gate = container.gate.lock().await;
    if !matches!(container.phase(), Phase::Created(_) | Phase::Running { .. }) {
        return Err(Error::precondition(format!("container {} has ended", container.id)));
    }
    let cgroup = container
        .record
        .cgroup
        .clone()
        .ok_or_else(|| Error::precondition(format!("container {} has no cgroup", container.id)))?;
    for warning in node.cgroups.update(&cgroup, &change).await? {
        tracing::warn!(container = container.id, warning, "a limit has no effect on this host");
    }
    let merged = merge(container.resources(), change);
    // For status after a restart of the daemon.
    record::write(&node.layout.container(&container.id).join("resources.json"), &merged)?;
    container.set_resources(merged);
    Ok(())
}

fn merge(mut now: Resources, change: Resources) -> Resources {
    let number = |now: &mut i64, new: i64| {
        if new != 0 {
            *now = new;
        }
    };
    let text = |now: &mut String, new: String| {
        if !new.is_empty() {
            *now = new;
        }
    };
    number(&mut now.cpu_period, change.cpu_period);
    number(&mut now.cpu_quota, change.cpu_quota);
    number(&mut now.cpu_shares, change.cpu_shares);
    number(&mut now.memory_limit, change.memory_limit);
    number(&mut now.memory_swap_limit, change.memory_swap_limit);
    number(&mut now.oom_score_adj, change.oom_score_adj);
    text(&mut now.cpuset_cpus, change.cpuset_cpus);
    text(&mut now.cpuset_mems, change.cpuset_mems);
    for (size, limit) in change.hugepage_limits {
        match now.hugepage_limits.iter_mut().find(|(s, _)| *s == size) {
            Some(row) => row.1 = limit,
            None => now.hugepage_limits.push((size, limit)),
        }
    }
    now.unified.extend(change.unified);
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaviour_29_zero_means_unchanged() {
        let now =
            Resources { cpu_shares: 2, memory_limit: 5, cpuset_cpus: "0".into(), ..Resources::default() };
        let change = Resources { memory_limit: 7, ..Resources::default() };
        let merged = merge(now.clone(), change);
        assert_eq!(merged, Resources { memory_limit: 7, ..now });
    }
}
