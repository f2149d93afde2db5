//! The whole daemon through real gRPC on a temporary socket, as root, against the real kernel.

mod harness;
mod layout;
mod lifecycle;
mod seed;
