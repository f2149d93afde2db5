//! The whole daemon through real gRPC on a temporary socket, as root, against the real kernel.

mod apparmor;
mod calls;
mod command_line;
mod confinement;
mod ends;
mod escape;
mod exec_and_log;
mod files;
// Each module of tests uses its part of the harness.
#[allow(dead_code)]
mod harness;
mod image_commands;
mod image_volume;
mod inspect;
mod layout;
mod lifecycle;
mod log_disk;
mod namespaces;
mod node_info;
mod older_client;
mod process;
mod programs;
mod refusals;
mod reliability;
#[allow(dead_code)]
mod requests;
mod resources;
mod seed;
mod shutdown;
mod streaming;
mod streams;
mod tracing;
