//! What a container may do: capabilities and the seccomp filter. Pure policy; `keeper` applies it.

pub mod apparmor;
pub mod capabilities;
pub mod seccomp;
