//! The HTTP server before the upgrade: where it listens, what it puts up with, and the URLs.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::Ticket;
use super::tls::Tls;
use super::token::{self, Tokens};
use super::upgrade;
use super::wire::Io;
use crate::Result;
use crate::config::advertise::{bracketed, host_and_port};
use crate::error::Step;
use crate::node::Node;

/// Sessions at once.
const MAX_SESSIONS: usize = 500;
/// Connections that have not been upgraded: beyond, the oldest goes. Each has a buffer of some KiB.
const MAX_WAITING: usize = 1000;
/// Of a request's line and headers: what the API server's proxy sends is far below.
const MAX_HEAD: usize = 32 << 10;
/// For the TLS handshake, and for the headers.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// For a connection to come to its upgrade.
const UPGRADE_LIMIT: Duration = Duration::from_secs(30);
/// Connections that the kernel keeps for us.
const BACKLOG: u32 = 1024;
/// Of silence before a client is asked whether it is still there, and between two questions.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub struct Server {
    pub(super) node: Arc<Node>,
    pub(super) tokens: Tokens<Ticket>,
    pub(super) sessions: Arc<Semaphore>,
    pub(super) idle_limit: Duration,
    base: String,
    tls: Option<Tls>,
}

impl Server {
    /// Listens as the configuration says, and serves for as long as the runtime does.
    ///
    /// # Errors
    /// Names the address that cannot be listened on, or the certificate that cannot be used.
    pub async fn open(node: Arc<Node>) -> Result<Arc<Self>> {
        let config = &node.config.streaming;
        let address = &config.address;
        let listener = listen(address).step(|| format!("listening for streams on {address}"))?;
        let local = listener.local_addr().step(|| "asking for the streaming server's address")?;
        let tls = Tls::open(config, local)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let base = format!("{scheme}://{}", advertised(&config.advertise, local));
        if tls.is_none() && !local.ip().is_loopback() {
            tracing::warn!(%local, "exec and attach are served to other hosts without TLS: see streaming.tls");
        }
        tracing::info!(url = base, "serving exec, attach and port-forward");
        let server = Arc::new(Self {
            tokens: Tokens::default(),
            sessions: Arc::new(Semaphore::new(MAX_SESSIONS)),
            idle_limit: Duration::from_secs(config.idle_timeout),
            base,
            tls,
            node,
        });
        tokio::spawn(accept(Arc::clone(&server), listener));
        Ok(server)
    }

    /// A URL for one use within a minute (BEHAVIOUR 18).
    pub fn url(&self, ticket: Ticket) -> Result<String> {
        let path = ticket.path();
        Ok(format!("{}/{path}/{}", self.base, self.tokens.issue(ticket)?))
    }
}

/// Also on an address that is not there yet: a node whose network comes up late has its pods all the
/// same.
fn listen(address: &str) -> std::io::Result<TcpListener> {
    let address: SocketAddr = address.parse().map_err(std::io::Error::other)?;
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    match address {
        SocketAddr::V4(_) => rustix::net::sockopt::set_ip_freebind(&socket, true)?,
        SocketAddr::V6(_) => rustix::net::sockopt::set_ipv6_freebind(&socket, true)?,
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// host:port as clients are told it: what is configured, else where we listen, or the loopback of an
/// address that means all.
fn advertised(configured: &str, local: SocketAddr) -> String {
    if let Some((host, port)) = host_and_port(configured) {
        return format!("{}:{}", bracketed(host), port.unwrap_or(local.port()));
    }
    let mut shown = local;
    if local.ip().is_unspecified() {
        shown.set_ip(match local {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    shown.to_string()
}

async fn accept(server: Arc<Server>, listener: TcpListener) {
    let mut waiting: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(%error, "accepting a streaming connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // What has ended holds memory as long as somebody could abort it.
        while waiting.front().is_some_and(AbortHandle::is_finished) {
            waiting.pop_front();
        }
        if waiting.len() >= MAX_WAITING {
            waiting.retain(|connection| !connection.is_finished());
        }
        if waiting.len() >= MAX_WAITING
            && let Some(oldest) = waiting.pop_front()
        {
            // Who is slow keeps nobody out.
            oldest.abort();
        }
        let server = Arc::clone(&server);
        let connection = tokio::spawn(async move {
            let served = tokio::time::timeout(UPGRADE_LIMIT, serve(server, tcp)).await;
            if let Ok(Err(error)) = served {
                tracing::debug!(error, "a streaming connection ends");
            }
        });
        waiting.push_back(connection.abort_handle());
    }
}

/// A client that lost its power says nothing: it is asked, as by Go's servers. Whoever cannot be
/// asked is let go when the session is idle for too long.
fn keep_alive(tcp: &TcpStream) {
    use rustix::net::sockopt;
    let _ = sockopt::set_socket_keepalive(tcp, true);
    let _ = sockopt::set_tcp_keepidle(tcp, KEEP_ALIVE);
    let _ = sockopt::set_tcp_keepintvl(tcp, KEEP_ALIVE);
}

/// Up to the upgrade, or the refusal.
async fn serve(server: Arc<Server>, tcp: TcpStream) -> Result<(), String> {
    let _ = tcp.set_nodelay(true);
    keep_alive(&tcp);
    let io = match &server.tls {
        None => Io::Plain(tcp),
        Some(tls) => {
            let accepted = tokio::time::timeout(HEAD_LIMIT, tls.accept(tcp)).await;
            let tls = accepted.map_err(|_| "a TLS handshake that takes too long".to_owned())?;
            Io::Tls(Box::new(tls.map_err(|e| e.to_string())?))
        }
    };
    let answer = service_fn(move |request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(respond(&server, request)) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(io), answer)
        .with_upgrades()
        .await
        .map_err(|e| e.to_string())
}

pub(super) type Answer = Response<Full<Bytes>>;

/// `text` is what a client shows.
pub(super) fn refusal(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    if status != StatusCode::SWITCHING_PROTOCOLS {
        // Every URL is for one request.
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

fn respond(server: &Arc<Server>, request: Request<Incoming>) -> Answer {
    if !matches!(request.method().as_str(), "GET" | "POST") {
        return refusal(StatusCode::METHOD_NOT_ALLOWED, "GET or POST\n");
    }
    let unknown = || refusal(StatusCode::NOT_FOUND, "404 page not found\n");
    let path = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/'));
    let Some((kind, token)) = path.filter(|(_, token)| token.len() <= token::TEXT) else {
        return unknown();
    };
    match server.tokens.redeem(token) {
        Some(ticket) if ticket.path() == kind => upgrade::upgrade(server, ticket, request),
        _ => unknown(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_where_they_can_connect() {
        let told = |configured: &str, local: &str| advertised(configured, local.parse().unwrap());
        assert_eq!(told("", "127.0.0.1:40"), "127.0.0.1:40");
        assert_eq!(told("", "0.0.0.0:40"), "127.0.0.1:40");
        assert_eq!(told("", "[::]:40"), "[::1]:40");
        assert_eq!(told("node.lan", "0.0.0.0:40"), "node.lan:40");
        assert_eq!(told("node.lan:7", "0.0.0.0:40"), "node.lan:7");
        assert_eq!(told("[fd00::1]", "[::]:40"), "[fd00::1]:40");
        assert_eq!(told("fd00::1", "[::]:40"), "[fd00::1]:40");
        assert_eq!(told("[fd00::1]:7", "0.0.0.0:40"), "[fd00::1]:7");
    }
}
