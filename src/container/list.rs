//! ListContainers.

use std::collections::BTreeMap;

use crate::container::status::{ContainerStatus, State};
use crate::node::Node;

/// All that are given must hold. IDs may be prefixes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub id: String,
    pub pod_id: String,
    pub state: Option<State>,
    pub labels: BTreeMap<String, String>,
}

pub fn list(_node: &Node, _filter: &Filter) -> Vec<ContainerStatus> {
    todo!()
}
