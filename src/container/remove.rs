//! RemoveContainer.

use std::sync::Arc;

use crate::Result;
use crate::node::Node;

/// Kills it if need be. Unknown is fine.
pub async fn remove(_node: &Arc<Node>, _id: &str) -> Result<()> {
    todo!()
}
