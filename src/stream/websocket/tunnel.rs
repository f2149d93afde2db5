//! The client's frames, read by the library; and its messages as a stream of bytes, for SPDY.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as Failure, Message};

use super::{MAX_MESSAGE, PROTOCOL_ERROR, TOO_BIG, frame};
use crate::stream::wire::{Intake, ReadHalf, Wire};

/// Of one read. Larger messages get the room that they announce.
const READ: usize = 16 << 10;

/// Of a message, on its way to SPDY's streams.
const PIECE: usize = 128 << 10;

/// The client's bytes; what the library answers by itself goes between the frames of others.
pub struct Duplex {
    reader: ReadHalf,
    wire: Arc<Wire>,
}

impl AsyncRead for Duplex {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let put = self.wire.put_raw(buf);
        Poll::Ready(put.map(|()| buf.len()).map_err(|_| io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The client's messages.
pub struct Messages(WebSocketStream<Duplex>);

impl Messages {
    /// `begun`: what came behind the request.
    pub async fn new(reader: ReadHalf, begun: Bytes, wire: Arc<Wire>) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ)
            .write_buffer_size(0)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let duplex = Duplex { reader, wire };
        Self(WebSocketStream::from_partially_read(duplex, begun.into(), Role::Server, Some(config)).await)
    }

    /// The next message with content. None: the end, or a client that breaks the protocol.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            let message = self.0.next().await;
            let wire = Arc::clone(&self.0.get_ref().wire);
            wire.touch();
            match message? {
                Ok(Message::Binary(content)) => return Some(content),
                Ok(Message::Text(text)) => return Some(text.into()),
                Ok(Message::Ping(_)) => self.answer(&wire).await,
                Ok(Message::Close(_)) => {
                    self.answer(&wire).await;
                    return None;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "a WebSocket session ends");
                    let code = if matches!(error, Failure::Capacity(_)) { TOO_BIG } else { PROTOCOL_ERROR };
                    let _ = wire.put_raw(&frame::close(code));
                    let _ = wire.flush_control().await;
                    return None;
                }
            }
        }
    }
}

impl Messages {
    /// Sends what the library answers by itself: it does with its next read, which may take for ever.
    async fn answer(&mut self, wire: &Wire) {
        let _ = self.0.flush().await;
        let _ = wire.flush_control().await;
    }
}

/// Where a SPDY session's bytes come from.
pub enum Source {
    Direct(Intake),
    Tunnel(Box<Tunnel>),
}

impl Source {
    pub fn tunnel(messages: Messages) -> Self {
        Self::Tunnel(Box::new(Tunnel { messages, rest: Bytes::new() }))
    }

    /// Appends what comes. Zero: the end.
    pub async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Direct(intake) => intake.read(buffer).await,
            Self::Tunnel(tunnel) => Ok(tunnel.read(buffer).await),
        }
    }
}

pub struct Tunnel {
    messages: Messages,
    /// Of a long message.
    rest: Bytes,
}

impl Tunnel {
    async fn read(&mut self, buffer: &mut BytesMut) -> usize {
        while self.rest.is_empty() {
            match self.messages.next().await {
                None => return 0,
                Some(content) if buffer.is_empty() && (1..=PIECE).contains(&content.len()) => {
                    let length = content.len();
                    // Its memory is ours alone, mostly: no copy.
                    *buffer = content.into();
                    return length;
                }
                Some(content) => self.rest = content,
            }
        }
        // A few bytes that wait to be read must not hold the memory of a whole message.
        let piece = self.rest.split_to(PIECE.min(self.rest.len()));
        buffer.extend_from_slice(&piece);
        piece.len()
    }
}
