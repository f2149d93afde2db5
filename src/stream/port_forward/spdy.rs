//! Pairs of SPDY streams: the client opens two for each connection, in either order.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};

use super::Ticket;
use super::connection::{forward, refuse};
use crate::node::Node;
use crate::stream::remote_command::{LAST_INPUT, Outlet};
use crate::stream::spdy::header::Headers;
use crate::stream::spdy::session::{self, Refusal, Stream};
use crate::stream::websocket::tunnel::Source;
use crate::stream::wire::Wire;

/// Of one session: two for each connection.
const MAX_STREAMS: usize = 1000;
/// Connections of one session at a time. What the client resets is no stream of the session any
/// more, but is a connection until it is closed.
const MAX_CONNECTIONS: usize = MAX_STREAMS / 2;
/// Clients count their requests.
const MAX_REQUEST_ID: usize = 64;
/// How long the second stream of a pair may take.
const PAIR_LIMIT: Duration = Duration::from_secs(30);

/// Serves one session until the client leaves.
pub async fn serve(node: &Arc<Node>, ticket: Ticket, wire: &Arc<Wire>, source: Source) {
    let (sender, mut streams) = mpsc::channel(16);
    tokio::spawn(session::serve(Arc::clone(wire), source, Box::new(accept), sender));
    let mut waiting: HashMap<String, (Stream, Instant)> = HashMap::new();
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = match waiting.values().map(|(_, since)| *since + PAIR_LIMIT).min() {
            None => Ok(streams.recv().await),
            Some(until) => tokio::time::timeout_at(until.into(), streams.recv()).await,
        };
        let Ok(next) = next else {
            refuse_unpaired(&mut waiting);
            continue;
        };
        let Some(stream) = next else { return };
        let key = pair_key(&stream);
        let Some((other, _)) = waiting.remove(&key) else {
            if waiting.len() >= MAX_CONNECTIONS {
                waiting.retain(|_, (stream, _)| !stream.is_reset());
            }
            // One too many is dropped, and so reset.
            if waiting.len() < MAX_STREAMS {
                waiting.insert(key, (stream, Instant::now()));
            }
            continue;
        };
        let (data, error) = if is_data(&other.headers) { (other, stream) } else { (stream, other) };
        if is_data(&data.headers) == is_data(&error.headers) {
            // Twice the same: both are dropped, and so reset.
            continue;
        }
        let error = Outlet::Spdy(error);
        let (node, pod_id, wire) = (Arc::clone(node), ticket.pod_id.clone(), Arc::clone(wire));
        let permit = Arc::clone(&connections).try_acquire_owned();
        tokio::spawn(async move {
            let Ok(_permit) = permit else { return refuse(&error, "too many connections").await };
            tokio::select! {
                () = forward(&node, &pod_id, port(&data.headers).unwrap_or_default(), &data, &error) => {}
                () = over(&data, &wire) => {}
            }
            drop((data, error));
            // Where a stream was reset by its drop.
            let _ = wire.flush_control().await;
        });
    }
}

/// The client has reset its data; or it is gone, and what it sent before had its time to reach the pod.
async fn over(data: &Stream, wire: &Wire) {
    data.reset().await;
    if wire.is_gone() {
        wire.gone_for(LAST_INPUT).await;
    }
}

fn accept(headers: &Headers, open: usize) -> std::result::Result<(), Refusal> {
    let typed = matches!(headers.get("streamtype"), Some("data" | "error"));
    let long = headers.get("requestid").is_some_and(|id| id.len() > MAX_REQUEST_ID);
    if !typed || long || port(headers).is_none() {
        return Err(Refusal::Invalid);
    }
    if open >= MAX_STREAMS { Err(Refusal::TooMany) } else { Ok(()) }
}

fn is_data(headers: &Headers) -> bool {
    headers.get("streamtype") == Some("data")
}

fn port(headers: &Headers) -> Option<u16> {
    headers.get("port")?.parse().ok().filter(|port| *port > 0)
}

/// What the two streams of a connection have in common. Old clients name no request: their error
/// stream comes first, and the data stream next.
fn pair_key(stream: &Stream) -> String {
    match stream.headers.get("requestid") {
        Some(id) => id.to_owned(),
        None if is_data(&stream.headers) => format!("#{}", stream.id.wrapping_sub(2)),
        None => format!("#{}", stream.id),
    }
}

/// Not waited for: a client that does not read must not keep its next streams from being taken, nor its
/// end from being seen.
fn refuse_unpaired(waiting: &mut HashMap<String, (Stream, Instant)>) {
    let late: Vec<String> = waiting
        .iter()
        .filter(|(_, (_, since))| since.elapsed() >= PAIR_LIMIT)
        .map(|(k, _)| k.clone())
        .collect();
    for (stream, _) in late.iter().filter_map(|key| waiting.remove(key)) {
        if !is_data(&stream.headers) {
            tokio::spawn(async move {
                refuse(&Outlet::Spdy(stream), "timed out waiting for the data stream").await;
            });
        }
    }
}
