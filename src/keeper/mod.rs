//! The keeper: one process a node, parent of every container.
//!
//! `plan` and `protocol` are shared by both ends; `client` is the daemon's end, everything else
//! runs in the keeper and knows neither tokio nor the rest of the library.

pub mod client;
pub mod note;
pub mod plan;
pub mod protocol;
