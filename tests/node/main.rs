//! The whole daemon through real gRPC on a temporary socket, as root, against the real kernel.

// Each module of tests uses its part of the harness.
#[allow(dead_code)]
mod harness;
mod layout;
mod lifecycle;
mod older_client;
mod seed;
