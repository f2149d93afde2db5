//! One connection: a socket in the pod's network on one side, a client's data and error on the other.
//!
//! The socket is made in the pod's network namespace, on a thread that lives for that alone, and
//! belongs to it wherever it is used from then on: no process enters the pod.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use super::netns;
use crate::error::Step;
use crate::network::namespace;
use crate::node::Node;
use crate::stream::chunk::{CONTENT, Chunk};
use crate::stream::remote_command::Outlet;
use crate::stream::spdy::session::Stream;
use crate::stream::wire::Gone;
use crate::{Error, Result, threads};

/// Sockets in the making, in all sessions: a thread each. A connection that is reset before its turn
/// has come costs none.
static MAKING: Semaphore = Semaphore::const_new(16);

/// Connections at a time, in all sessions: a descriptor each.
static CONNECTIONS: Semaphore = Semaphore::const_new(4096);

/// The client's data, both ways.
pub trait Data {
    /// None: the client has finished, or is gone.
    async fn read(&self) -> Option<Bytes>;
    /// What still comes is dropped.
    fn stop_reading(&self);
    async fn write(&self, chunk: Chunk) -> std::result::Result<(), Gone>;
    async fn finish(&self);
    /// By the client: it is over in both directions.
    fn is_reset(&self) -> bool;
}

impl Data for Stream {
    async fn read(&self) -> Option<Bytes> {
        Stream::read(self).await
    }

    fn stop_reading(&self) {
        Stream::stop_reading(self);
    }

    async fn write(&self, chunk: Chunk) -> std::result::Result<(), Gone> {
        Stream::write(self, chunk).await
    }

    async fn finish(&self) {
        let _ = Stream::finish(self).await;
    }

    fn is_reset(&self) -> bool {
        Stream::is_reset(self)
    }
}

pub async fn refuse(error: &Outlet, why: &str) {
    let _ = error.write(Chunk::copied(why.as_bytes())).await;
    let _ = error.finish().await;
}

/// One connection; what goes wrong is told on its error stream and is the end of it alone.
pub async fn forward(node: &Arc<Node>, pod_id: &str, port: u16, data: &impl Data, error: &Outlet) {
    let Ok(_one) = CONNECTIONS.try_acquire() else {
        refuse(error, "too many connections in all sessions").await;
        return data.finish().await;
    };
    match connect(node, pod_id, port).await {
        Ok(tcp) => {
            let _ = tcp.set_nodelay(true);
            // In this order: when the data ends clients reset it, and wait for the error stream's end.
            let back = async {
                to_client(&tcp, data).await;
                let _ = error.finish().await;
                data.finish().await;
            };
            tokio::join!(to_pod(data, &tcp), back);
        }
        Err(e) => {
            refuse(error, &format!("error forwarding port {port} to pod {pod_id}: {e}")).await;
            data.finish().await;
        }
    }
}

async fn connect(node: &Arc<Node>, pod_id: &str, port: u16) -> Result<TcpStream> {
    let netns = netns(node, pod_id)?;
    let (v4, v6) = threads::run(&MAKING, move || sockets(netns)).await?;
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

async fn to_pod(data: &impl Data, tcp: &TcpStream) {
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

async fn to_client(tcp: &TcpStream, data: &impl Data) {
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
}
