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
