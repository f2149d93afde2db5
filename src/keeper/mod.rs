//! The keeper: one process a node, parent of every container.
//!
//! `plan` and `protocol` are shared by both ends; `client` is the daemon's end, everything else
//! runs in the keeper and knows neither tokio nor the rest of the library.

mod child;
pub mod client;
mod control;
pub mod feed;
pub mod filter;
mod init;
pub mod log;
mod log_copy;
mod log_format;
mod log_note;
#[cfg(test)]
mod log_tests;
mod log_thread;
pub mod note;
pub mod plan;
mod prepare;
pub mod protocol;
mod report;
mod setup;
pub mod wire;

pub use control::main;
