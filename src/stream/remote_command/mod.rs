//! What exec and attach have in common: up to five streams between a client and a process, over
//! either protocol, and the status at the end.
//!
//! ```text
//!  stdin ──▶   resize ──▶   stdout ◀──   stderr ◀──   error ◀── (status, last)
//! ```

pub mod open;
pub mod pump;
pub mod resize;
pub mod status;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::stream::chunk::Chunk;
use crate::stream::queue::Queue;
use crate::stream::spdy;
use crate::stream::websocket::{self, session::Channel};
use crate::stream::wire::{Gone, Wire};

/// How long what a client sent before it left may take to be read by whom it was for.
pub const LAST_INPUT: Duration = Duration::from_secs(1);

/// Which streams a request asked for. The error stream is always there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// How the end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusForm {
    /// v4 and later: always, as JSON.
    Json,
    /// Before: an error as text.
    Text,
}

/// What a client sends on one stream.
pub enum Inlet {
    Spdy(spdy::session::Stream),
    WebSocket(Arc<Queue>),
}

impl Inlet {
    /// None: the client has finished, or is gone.
    pub async fn read(&self) -> Option<Bytes> {
        match self {
            Self::Spdy(stream) => stream.read().await,
            Self::WebSocket(queue) => queue.pop().await,
        }
    }

    /// What still comes is dropped.
    pub fn stop_reading(&self) {
        match self {
            Self::Spdy(stream) => stream.stop_reading(),
            Self::WebSocket(queue) => _ = queue.close(),
        }
    }
}

/// What a client is sent on one stream.
pub enum Outlet {
    Spdy(spdy::session::Stream),
    WebSocket(Channel),
}

impl Outlet {
    /// Not to be dropped half way, unless the session ends.
    pub async fn write(&self, chunk: Chunk) -> Result<(), Gone> {
        match self {
            Self::Spdy(stream) => stream.write(chunk).await,
            Self::WebSocket(channel) => channel.write(chunk).await,
        }
    }

    /// A channel of a WebSocket ends with its connection.
    pub async fn finish(&self) -> Result<(), Gone> {
        match self {
            Self::Spdy(stream) => stream.finish().await,
            Self::WebSocket(_) => Ok(()),
        }
    }
}

pub struct Streams {
    pub stdin: Option<Inlet>,
    pub resize: Option<Inlet>,
    pub stdout: Option<Outlet>,
    pub stderr: Option<Outlet>,
    pub error: Outlet,
    pub form: StatusForm,
    pub wire: Arc<Wire>,
}

impl Streams {
    /// Waits until the client is gone, and what it had sent for standard input has been `taken`, if it is
    /// in time.
    pub async fn left(&self, taken: &Notify) {
        self.wire.gone().await;
        let _ = tokio::time::timeout(LAST_INPUT, taken.notified()).await;
    }

    /// Tells how it ended; the last word.
    pub async fn conclude(&self, status: &status::Status) {
        let told = async {
            if let Some(text) = status.text(self.form) {
                self.error.write(Chunk::copied(text.as_bytes())).await?;
            }
            self.error.finish().await
        };
        let _ = told.await;
        if let Outlet::WebSocket(_) = self.error {
            websocket::session::close(&self.wire).await;
        }
    }
}
