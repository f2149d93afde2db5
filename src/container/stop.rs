//! StopContainer.

use std::sync::Arc;
use std::time::Duration;

use crate::Result;
use crate::node::Node;

/// Signals, waits, kills (BEHAVIOUR 11). Unknown and ended containers are fine.
pub async fn stop(_node: &Arc<Node>, _id: &str, _timeout: Duration) -> Result<()> {
    todo!()
}
