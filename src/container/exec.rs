//! ExecSync, and what streaming exec stands on.

use std::sync::Arc;
use std::time::Duration;

use crate::Result;
use crate::node::Node;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

/// `timeout` zero: none. DEADLINE_EXCEEDED kills the whole tree (BEHAVIOUR 15).
pub async fn exec_sync(
    _node: &Arc<Node>,
    _id: &str,
    _argv: Vec<String>,
    _timeout: Duration,
) -> Result<Output> {
    todo!()
}
