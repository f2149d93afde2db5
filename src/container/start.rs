//! StartContainer.

use std::sync::Arc;

use crate::Result;
use crate::node::Node;

pub async fn start(_node: &Arc<Node>, _id: &str) -> Result<()> {
    todo!()
}
