//! Port-forward: connections of a client to ports of a pod, each a pair of SPDY streams.
//!
//! ```text
//!  error stream ◀── why it failed     data stream ◀──▶ socket in the pod's network ──▶ 127.0.0.1 or ::1
//! ```
//!
//! The socket is made in the pod's network namespace, on a thread that lives for that alone, and
//! belongs to it wherever it is used from then on: no process enters the pod.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};

use super::chunk::{CONTENT, Chunk};
use super::spdy::header::Headers;
use super::spdy::session::{self, Refusal, Stream};
use super::websocket::tunnel::Source;
use super::wire::Wire;
use crate::error::Step;
use crate::network::namespace;
use crate::node::Node;
use crate::pod::Phase;
use crate::{Error, Result};

pub const PROTOCOL: &str = "portforward.k8s.io";

/// Of one session: two for each connection.
const MAX_STREAMS: usize = 1000;
/// Connections of one session at a time. What the client resets is no stream of the session any
/// more, but is a connection until it is closed.
const MAX_CONNECTIONS: usize = MAX_STREAMS / 2;
/// How long the second stream of a pair may take.
const PAIR_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub struct Ticket {
    pub pod_id: String,
}

/// NOT_FOUND or FAILED_PRECONDITION unless the pod is ready.
pub fn check(node: &Node, id: &str) -> Result<String> {
    let pod = node.pods.find(id)?;
    netns(node, &pod.id)?;
    Ok(pod.id.clone())
}

/// The pod's network namespace; None: the node's.
fn netns(node: &Node, pod_id: &str) -> Result<Option<Arc<OwnedFd>>> {
    match node.pods.find(pod_id)?.phase() {
        Phase::Ready(shared) => Ok(shared.net),
        Phase::NotReady(_) => Err(Error::precondition(format!("pod sandbox {pod_id} is not ready"))),
    }
}

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
            refuse_unpaired(&mut waiting).await;
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
        let (node, pod_id, wire) = (Arc::clone(node), ticket.pod_id.clone(), Arc::clone(wire));
        let permit = Arc::clone(&connections).try_acquire_owned();
        tokio::spawn(async move {
            let Ok(_permit) = permit else { return refuse(&error, "too many connections").await };
            tokio::select! {
                () = forward(&node, &pod_id, &data, &error) => {}
                () = data.reset() => {}
                () = wire.gone() => {}
            }
            drop((data, error));
            // Where a stream was reset by its drop.
            let _ = wire.flush_control().await;
        });
    }
}

fn accept(headers: &Headers, open: usize) -> std::result::Result<(), Refusal> {
    let typed = matches!(headers.get("streamtype"), Some("data" | "error"));
    if !typed || port(headers).is_none() {
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

async fn refuse_unpaired(waiting: &mut HashMap<String, (Stream, Instant)>) {
    let late: Vec<String> = waiting
        .iter()
        .filter(|(_, (_, since))| since.elapsed() >= PAIR_LIMIT)
        .map(|(k, _)| k.clone())
        .collect();
    for (stream, _) in late.iter().filter_map(|key| waiting.remove(key)) {
        if !is_data(&stream.headers) {
            refuse(&stream, "timed out waiting for the data stream").await;
        }
    }
}

async fn refuse(error: &Stream, why: &str) {
    let _ = error.write(Chunk::copied(why.as_bytes())).await;
    let _ = error.finish().await;
}

/// One connection; what goes wrong is told on its error stream and is the end of it alone.
async fn forward(node: &Arc<Node>, pod_id: &str, data: &Stream, error: &Stream) {
    let port = port(&data.headers).unwrap_or_default();
    match connect(node, pod_id, port).await {
        Ok(tcp) => {
            let _ = tcp.set_nodelay(true);
            // Clients wait for the error stream's end before they close their half.
            let back = async {
                to_client(&tcp, data).await;
                let _ = error.finish().await;
            };
            tokio::join!(to_pod(data, &tcp), back);
        }
        Err(e) => {
            let _ = data.finish().await;
            refuse(error, &format!("error forwarding port {port} to pod {pod_id}: {e}")).await;
        }
    }
}

async fn connect(node: &Arc<Node>, pod_id: &str, port: u16) -> Result<TcpStream> {
    let netns = netns(node, pod_id)?;
    let sockets = tokio::task::spawn_blocking(move || sockets(netns)).await;
    let (v4, v6) = sockets.map_err(|e| Error::internal(format!("making a socket in the pod: {e}")))??;
    let first = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let refused = match connected(v4, first).await {
        Ok(tcp) => return Ok(tcp),
        Err(e) => Error::io(format!("connecting to {first} in the pod"), e),
    };
    // A kernel without IPv6 has the first answer only.
    let Some(v6) = v6 else { return Err(refused) };
    let second = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let message = |e| format!("{}; {}", refused.message, Error::io(format!("to {second}"), e).message);
    connected(v6, second).await.map_err(|e| Error::unavailable(message(e)))
}

async fn connected(socket: OwnedFd, address: SocketAddr) -> io::Result<TcpStream> {
    TcpSocket::from_std_stream(socket.into()).connect(address).await
}

/// One for each family, both in the namespace.
fn sockets(netns: Option<Arc<OwnedFd>>) -> Result<(OwnedFd, Option<OwnedFd>)> {
    let make = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = |family| socket_with(family, SocketType::STREAM, flags, None);
        let v4 = socket(AddressFamily::INET).step(|| "making a socket in the pod")?;
        Ok((v4, socket(AddressFamily::INET6).ok()))
    };
    match netns {
        Some(netns) => namespace::run(netns, make),
        None => make(),
    }
}

async fn to_pod(data: &Stream, tcp: &TcpStream) {
    while let Some(chunk) = data.read().await {
        if write_all(tcp, &chunk).await.is_err() {
            return data.stop_reading();
        }
    }
    // The client's half is closed; the pod's goes on. What was reset is over in both directions.
    let how = if data.is_reset() { rustix::net::Shutdown::Both } else { rustix::net::Shutdown::Write };
    let _ = rustix::net::shutdown(tcp, how);
}

async fn write_all(tcp: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        tcp.writable().await?;
        match tcp.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

async fn to_client(tcp: &TcpStream, data: &Stream) {
    loop {
        if tcp.readable().await.is_err() {
            break;
        }
        match tcp.try_io(Interest::READABLE, || Ok(Chunk::read(tcp, CONTENT)?)) {
            Ok(chunk) if chunk.is_empty() => break,
            Ok(chunk) => {
                if data.write(chunk).await.is_err() {
                    let _ = rustix::net::shutdown(tcp, rustix::net::Shutdown::Both);
                    return;
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
    }
    let _ = data.finish().await;
}
