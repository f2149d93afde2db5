//! The Container Runtime Interface: the door through which kubelet and crictl come in.
//!
//! Every call has the same way: `decode` makes a plain spec of the wire's message or refuses it by
//! field, one verb of `pod`, `container` or `image` does the work, `encode` puts its answer on the
//! wire. Nothing below this folder knows protobuf, and nothing in it knows the kernel.

mod call_log;
mod deadline;
mod decode;
mod encode;
mod error;
mod image_service;
mod listener;
mod runtime_service;
pub mod server;
mod store_service;
pub mod wire;
