//! RemovePodSandbox.

use std::sync::Arc;

use crate::Result;
use crate::node::Node;

/// Stops it if need be, and removes it with its containers. Unknown is fine.
pub async fn remove(_node: &Arc<Node>, _id: &str) -> Result<()> {
    todo!()
}
