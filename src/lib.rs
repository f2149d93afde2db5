//! Podwright, a Kubernetes container runtime. `docs/ARCHITECTURE.md` is the map; this is its key.
//!
//! Arrows between the folders run one way:
//! `cri` → `stream` → `pod`, `container`, `image` → `network`, `cgroup`, `security` → `sys`; `keeper` → `sys`.
#![deny(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod cgroup;
pub mod cli;
pub mod config;
pub mod container;
pub mod cri;
pub mod error;
pub mod flight;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod image;
pub mod keeper;
pub mod network;
pub mod node;
pub mod pod;
pub mod security;
pub mod stream;
pub mod sys;
pub mod threads;

pub use error::{Error, Result};
