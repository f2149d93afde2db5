//! ListPodSandbox.

use std::collections::BTreeMap;

use crate::node::Node;
use crate::pod::status::{self, PodStatus};

/// All that are given must hold. `id` may be a prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub id: String,
    pub ready: Option<bool>,
    pub labels: BTreeMap<String, String>,
}

/// Oldest first.
pub fn list(node: &Node, filter: &Filter) -> Vec<PodStatus> {
    let mut list: Vec<_> =
        node.pods.all().iter().map(|p| status::of(p)).filter(|p| matches(filter, p)).collect();
    list.sort_by_key(|p| p.created_at);
    list
}

fn matches(filter: &Filter, pod: &PodStatus) -> bool {
    pod.id.starts_with(&filter.id)
        && filter.ready.is_none_or(|ready| ready == pod.ready)
        && filter.labels.iter().all(|(k, v)| pod.spec.labels.get(k) == Some(v))
}
