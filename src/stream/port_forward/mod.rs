//! Port-forward: connections of a client to ports of a pod.
//!
//! ```text
//!  error ◀── why it failed     data ◀──▶ socket in the pod's network ──▶ 127.0.0.1 or ::1
//! ```
//!
//! Over SPDY each connection is a pair of streams that the client opens when it needs one (`spdy`);
//! over the older WebSocket protocol there is one pair of channels for each port that the request
//! names (`channels`). What is between the pair and the pod is the same (`connection`).

mod channels;
mod connection;
mod spdy;

use std::os::fd::OwnedFd;
use std::sync::Arc;

pub use channels::{MAX_PORTS, choose, serve as serve_channels};
pub use spdy::serve;

use crate::node::Node;
use crate::pod::Phase;
use crate::{Error, Result};

/// Over SPDY.
pub const PROTOCOL: &str = "portforward.k8s.io";

#[derive(Debug, Clone)]
pub struct Ticket {
    pub pod_id: String,
    /// For the channels of a WebSocket; SPDY's streams name their ports themselves.
    pub ports: Vec<u16>,
}

/// NOT_FOUND or FAILED_PRECONDITION unless the pod is ready.
pub fn check(node: &Node, id: &str) -> Result<String> {
    let pod = node.pods.find(id)?;
    netns(node, &pod.id)?;
    Ok(pod.id.clone())
}

/// The pod's network namespace; None: the node's.
fn netns(node: &Node, pod_id: &str) -> Result<Option<Arc<OwnedFd>>> {
    match node.pods.find(pod_id)?.phase() {
        Phase::Ready(shared) => Ok(shared.net),
        Phase::NotReady(_) => Err(Error::precondition(format!("pod sandbox {pod_id} is not ready"))),
    }
}
