//! SPDY/3.1, as far as Kubernetes' clients use it: they open streams, we answer.
//!
//! Absent: streams of ours, priorities, credentials, server push.

mod dictionary;
pub mod frame;
pub mod header;
pub mod session;
#[cfg(test)]
mod tests;
mod window;
