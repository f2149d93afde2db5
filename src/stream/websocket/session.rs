//! A WebSocket session with channels: a task that reads messages, and the channels' ends.

use std::sync::Arc;

use super::channel::{self, Incoming, Protocol};
use super::tunnel::Messages;
use super::{NORMAL, frame};
use crate::stream::chunk::Chunk;
use crate::stream::queue::Queue;
use crate::stream::wire::{Gone, Wire};

/// What the client sends, by its channel; nothing is expected on the others.
pub struct Inbound(Vec<Option<Arc<Queue>>>);

impl Inbound {
    /// A session has so many channels.
    pub fn of(count: usize) -> Self {
        Self(vec![None; count])
    }

    /// Where this channel's bytes come.
    pub fn open(&mut self, channel: u8) -> Arc<Queue> {
        let queue = Arc::<Queue>::default();
        if let Some(place) = self.0.get_mut(usize::from(channel)) {
            *place = Some(Arc::clone(&queue));
        }
        queue
    }

    fn get(&self, channel: u8) -> Option<&Arc<Queue>> {
        self.0.get(usize::from(channel))?.as_ref()
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
        match channel::read(protocol, inbound.0.len(), message) {
            Ok(Incoming::Data { channel, content }) => {
                if let Some(queue) = inbound.get(channel) {
                    tokio::select! {
                        biased;
                        _ = queue.push(content) => {}
                        () = wire.gone() => break,
                        () = wire.hung_up() => break,
                    }
                }
            }
            Ok(Incoming::Closed { channel }) => {
                if let Some(queue) = inbound.get(channel) {
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
    for queue in inbound.0.iter().flatten() {
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
            return self.wire.send(text.part(&header[..used], length), || {}).await;
        }
        let (header, used) = frame::header(frame::BINARY, length + 1);
        let mut with_channel = [0; 11];
        with_channel[..used].copy_from_slice(&header[..used]);
        with_channel[used] = self.number;
        self.wire.send(chunk.part(&with_channel[..=used], length), || {}).await
    }
}

/// Says that all is said.
pub async fn close(wire: &Wire) {
    let _ = wire.put_raw(&frame::close(NORMAL));
    let _ = wire.flush_control().await;
}
