//! ListContainers.

use std::collections::BTreeMap;

use crate::container::status::{self, ContainerStatus, State};
use crate::node::Node;

/// All that are given must hold. IDs may be prefixes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub id: String,
    pub pod_id: String,
    pub state: Option<State>,
    pub labels: BTreeMap<String, String>,
}

/// Oldest first.
pub fn list(node: &Node, filter: &Filter) -> Vec<ContainerStatus> {
    let mut list: Vec<_> =
        node.containers.all().iter().map(|c| status::of(c)).filter(|c| matches(filter, c)).collect();
    list.sort_by_key(|c| c.created_at);
    list
}

fn matches(filter: &Filter, container: &ContainerStatus) -> bool {
    container.id.starts_with(&filter.id)
        && container.pod_id.starts_with(&filter.pod_id)
        && filter.state.is_none_or(|state| state == container.state)
        && filter.labels.iter().all(|(k, v)| container.spec.labels.get(k) == Some(v))
}
