//! CreateContainer.

use std::sync::Arc;

use crate::Result;
use crate::container::spec::ContainerSpec;
use crate::node::Node;

/// Returns the container's ID. A second call for the same name in the pod joins the first.
pub async fn create(_node: &Arc<Node>, _pod_id: &str, _spec: ContainerSpec) -> Result<String> {
    todo!()
}
