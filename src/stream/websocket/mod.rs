//! WebSocket: the channels of Kubernetes' remote command protocols, and SPDY in a tunnel.
//!
//! A library reads and checks the client's frames; ours, which are not masked, need a header only,
//! and are written with the bytes of a process in one go.

pub mod channel;
pub mod frame;
pub mod session;
pub mod tunnel;

/// Of one message of a client. Ours send some ten KiB; one that pastes a file may send it whole.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Codes of a close frame (RFC 6455, section 7.4.1).
pub const NORMAL: u16 = 1000;
pub const PROTOCOL_ERROR: u16 = 1002;
pub const TOO_BIG: u16 = 1009;
