//! Pairs of channels in the messages of a WebSocket, as kubelet had them before there were tunnels: for
//! the nth port of the request, channel 2n has its data and 2n + 1 its error. The first message on
//! each is the port, in two bytes, the lower first. Each port is connected to at once, and once.
//!
//! Nothing says that a channel ends: the session does when all ports have.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;

use super::Ticket;
use super::connection::{Data, forward};
use crate::node::Node;
use crate::stream::chunk::Chunk;
use crate::stream::queue::Queue;
use crate::stream::remote_command::{LAST_INPUT, Outlet};
use crate::stream::websocket::channel::{self, Protocol};
use crate::stream::websocket::session::{self, Channel, Inbound};
use crate::stream::websocket::tunnel::Messages;
use crate::stream::wire::{Gone, Wire};

/// In the base64 variant a channel is a character from '0' to '~'.
pub const MAX_PORTS: usize = 39;

const PROTOCOLS: [&str; 3] = ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];

/// The first of the client's list that is known; nothing is asked for by the empty one.
pub fn choose<'a>(wanted: impl Iterator<Item = &'a str>) -> Option<Protocol> {
    channel::choose_among(&PROTOCOLS, wanted)
}

/// Serves one session until all ports have ended or the client leaves.
pub async fn serve(
    node: &Arc<Node>,
    ticket: Ticket,
    wire: &Arc<Wire>,
    messages: Messages,
    protocol: Protocol,
) {
    let mut inbound = Inbound::of(2 * ticket.ports.len());
    let channel = |number| Channel { wire: Arc::clone(wire), number, protocol };
    let mut ports = Vec::with_capacity(ticket.ports.len());
    for (port, number) in ticket.ports.iter().zip((0u8..).step_by(2)) {
        let data = Pair { inbound: inbound.open(number), outbound: channel(number) };
        ports.push((*port, data, channel(number + 1)));
    }
    tokio::spawn(session::serve(Arc::clone(wire), messages, protocol, inbound));
    for (port, data, error) in &ports {
        for channel in [&data.outbound, error] {
            if channel.write(Chunk::copied(&port.to_le_bytes())).await.is_err() {
                return;
            }
        }
    }
    let pod_id = &ticket.pod_id;
    let all = ports.into_iter().map(async |(port, data, error)| {
        forward(node, pod_id, port, &data, &Outlet::WebSocket(error)).await;
    });
    tokio::select! {
        _ = join_all(all) => {}
        () = wire.gone_for(LAST_INPUT) => {}
    }
}

/// A data channel.
struct Pair {
    inbound: Arc<Queue>,
    outbound: Channel,
}

impl Data for Pair {
    async fn read(&self) -> Option<Bytes> {
        self.inbound.pop().await
    }

    fn stop_reading(&self) {
        self.inbound.close();
    }

    async fn write(&self, chunk: Chunk) -> Result<(), Gone> {
        self.outbound.write(chunk).await
    }

    /// The client cannot end its half by itself: what it still sends is for nobody.
    async fn finish(&self) {
        self.inbound.close();
    }

    fn is_reset(&self) -> bool {
        self.outbound.wire.is_gone()
    }
}
