//! ContainerStats.

use std::collections::BTreeMap;

use crate::Result;
use crate::cgroup::Stats;
use crate::container::status::ContainerStatus;
use crate::image::Usage;
use crate::node::Node;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub id: String,
    pub pod_id: String,
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
pub struct ContainerStats {
    pub container: ContainerStatus,
    pub stats: Stats,
    /// A rate over the last two readings; None before there were two.
    pub usage_nano_cores: Option<u64>,
    pub writable_layer: Usage,
    /// Where the writable layers are: `FilesystemIdentifier.mountpoint`.
    pub mountpoint: String,
}

pub async fn stats(_node: &Node, _id: &str) -> Result<ContainerStats> {
    todo!()
}

/// Running containers only, as kubelet expects.
pub async fn list(_node: &Node, _filter: &Filter) -> Vec<ContainerStats> {
    todo!()
}
