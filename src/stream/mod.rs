//! The streaming server: what `kubectl exec`, `attach`, `port-forward` and `cp` end at.
//!
//! ```text
//!  Exec, Attach, PortForward ──▶ a ticket, and a URL with a token for it
//!  GET or POST of the URL    ──▶ upgrade: SPDY/3.1, or WebSocket ──▶ session: exec, attach, port_forward
//! ```
//!
//! kubelet (or crictl) connects; its streams end at a process's pipes or terminal, at the copier of
//! a container's output, or at sockets in a pod's network.

mod attach;
mod chunk;
mod exec;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod port_forward;
mod queue;
mod remote_command;
mod server;
mod spdy;
mod tls;
mod token;
mod upgrade;
mod websocket;
mod wire;

pub use attach::{Ticket as Attach, check as check_attach};
pub use exec::Ticket as Exec;
pub use port_forward::{Ticket as PortForward, check as check_pod};
pub use remote_command::Wanted;
pub use server::Server;

/// What a token stands for.
#[derive(Debug, Clone)]
pub enum Ticket {
    Exec(Exec),
    Attach(Attach),
    PortForward(PortForward),
}

impl Ticket {
    /// The first part of the URL's path.
    fn path(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }
}
