//! PodSandboxStats.

use std::collections::BTreeMap;

use crate::Result;
use crate::cgroup::Stats;
use crate::container::stats::ContainerStats;
use crate::network::InterfaceStats;
use crate::node::Node;
use crate::pod::status::PodStatus;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub id: String,
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
pub struct PodStats {
    pub pod: PodStatus,
    /// Of the pod's cgroup as a whole.
    pub stats: Stats,
    /// See `ContainerStats::usage_nano_cores`.
    pub usage_nano_cores: Option<u64>,
    pub interfaces: Vec<InterfaceStats>,
    pub containers: Vec<ContainerStats>,
}

pub async fn stats(_node: &Node, _id: &str) -> Result<PodStats> {
    todo!()
}

pub async fn list(_node: &Node, _filter: &Filter) -> Vec<PodStats> {
    todo!()
}
