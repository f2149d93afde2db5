//! Pods (pod sandboxes): shared namespaces, a cgroup, a network, and the containers in them.

pub mod events;
pub mod list;
pub mod remove;
pub mod run;
pub mod spec;
pub mod stats;
pub mod status;
pub mod stop;
