//! Containers: from a request to a parked child, its start, its end.

pub mod create;
pub mod exec;
pub mod list;
pub mod process_env;
pub mod remove;
pub mod reopen_log;
pub mod spec;
pub mod start;
pub mod stats;
pub mod status;
pub mod stop;
pub mod update;
pub mod user;
