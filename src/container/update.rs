//! UpdateContainerResources.

use std::sync::Arc;

use crate::Result;
use crate::container::spec::Resources;
use crate::node::Node;

/// Zero means unchanged; a CREATED container gets the limits at once as well (BEHAVIOUR 29).
pub async fn update(_node: &Arc<Node>, _id: &str, _resources: Resources) -> Result<()> {
    todo!()
}
