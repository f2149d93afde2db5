//! A WebSocket session with channels: a task that reads messages, and the channels' ends.

use std::sync::Arc;

use super::channel::{self, Incoming, Protocol};
use super::tunnel::Messages;
use super::{NORMAL, frame};
use crate::stream::chunk::Chunk;
use crate::stream::queue::Queue;
use crate::stream::wire::{Gone, Wire};

/// What the client sends on the two channels that are its own.
#[derive(Default)]
pub struct Inbound {
    pub stdin: Option<Arc<Queue>>,
    pub resize: Option<Arc<Queue>>,
}

impl Inbound {
    fn of(&self, channel: u8) -> Option<&Arc<Queue>> {
        match channel {
            channel::STDIN => self.stdin.as_ref(),
            channel::RESIZE => self.resize.as_ref(),
            _ => None,
        }
    }
}

/// Reads messages until the session ends, by either side.
pub async fn serve(wire: Arc<Wire>, mut messages: Messages, protocol: Protocol, inbound: Inbound) {
    loop {
        let message = tokio::select! {
            biased;
            message = messages.next() => message,
            () = wire.gone() => None,
        };
        let Some(message) = message else { break };
        match channel::read(protocol, message) {
            Ok(Incoming::Data { channel, content }) => {
                if let Some(queue) = inbound.of(channel) {
                    tokio::select! {
                        biased;
                        () = queue.push(content) => {}
                        () = wire.gone() => break,
                        () = wire.hung_up() => break,
                    }
                }
            }
            Ok(Incoming::Closed { channel }) => {
                if let Some(queue) = inbound.of(channel) {
                    queue.end();
                }
            }
            Ok(Incoming::Nothing) => {}
            Err(channel::Broken(reason)) => {
                tracing::debug!(reason, "a WebSocket session ends");
                break;
            }
        }
    }
    for queue in [&inbound.stdin, &inbound.resize].into_iter().flatten() {
        queue.end();
    }
    wire.go();
}

/// A channel that is ours to write.
pub struct Channel {
    pub wire: Arc<Wire>,
    pub number: u8,
    pub protocol: Protocol,
}

impl Channel {
    /// Not to be dropped half way, unless the session ends.
    pub async fn write(&self, mut chunk: Chunk) -> Result<(), Gone> {
        let length = chunk.len();
        if self.protocol.base64 {
            let mut text = Chunk::copied(&channel::encode(self.number, chunk.as_slice()));
            let length = text.len();
            let (header, used) = frame::header(frame::TEXT, length);
            return self.wire.send(text.part(&header[..used], length)).await;
        }
        let (header, used) = frame::header(frame::BINARY, length + 1);
        let mut with_channel = [0; 11];
        with_channel[..used].copy_from_slice(&header[..used]);
        with_channel[used] = self.number;
        self.wire.send(chunk.part(&with_channel[..=used], length)).await
    }
}

/// Says that all is said.
pub async fn close(wire: &Wire) {
    let _ = wire.put_raw(&frame::close(NORMAL));
    let _ = wire.flush_control().await;
}
