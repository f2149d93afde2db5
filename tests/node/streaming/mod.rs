//! Exec, attach and port-forward over WebSocket and bare HTTP; Kubernetes' own client library, with
//! SPDY, has tests in `tests/stream-client`.

mod attach;
mod client;
mod exec;
mod go_client;
mod refusal;
