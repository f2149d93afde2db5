//! RunPodSandbox.

use std::sync::Arc;

use crate::Result;
use crate::node::Node;
use crate::pod::spec::PodSpec;

/// Returns the pod's ID. A second call for the same name joins the first (BEHAVIOUR 3).
pub async fn run(_node: &Arc<Node>, _spec: PodSpec) -> Result<String> {
    todo!()
}
