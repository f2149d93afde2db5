//! Exec, attach and port-forward: over WebSocket, SPDY and bare HTTP by clients of the tests' own, by
//! curl and crictl where they are, and by Kubernetes' library (`tests/stream-client`) where Go is.

mod attach;
mod client;
mod crictl;
mod exec;
mod go_client;
mod port_forward;
mod refusal;
mod spdy;
mod transport;

use std::time::Duration;

/// Waits for something that the kernel does in its own time (up to 200 s).
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..4000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not come to this: {what}");
}
