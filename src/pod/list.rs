//! ListPodSandbox.

use std::collections::BTreeMap;

use crate::node::Node;
use crate::pod::status::PodStatus;

/// All that are given must hold. `id` may be a prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub id: String,
    pub ready: Option<bool>,
    pub labels: BTreeMap<String, String>,
}

pub fn list(_node: &Node, _filter: &Filter) -> Vec<PodStatus> {
    todo!()
}
