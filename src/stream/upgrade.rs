//! The upgrade: which protocol and version, as the Go implementations choose; then the session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};
use http::header::{SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedSemaphorePermit;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::remote_command::{Streams, Wanted, open};
use super::server::{Answer, Server, refusal};
use super::websocket::channel::{self, Protocol};
use super::websocket::tunnel::{Messages, Source};
use super::wire::{Gone, Intake, Io, ReadHalf, Wire};
use super::{Ticket, attach, exec, port_forward, websocket};

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY: &str = "SPDY/3.1";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// How long a client may take to close after the last word.
const LINGER: Duration = Duration::from_secs(10);
/// How often it is looked whether it reads.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What was agreed on.
enum Agreed {
    /// The version; empty: none was asked for.
    Spdy(&'static str),
    Channels(Protocol),
    /// Channels for each of the request's ports.
    Ports(Protocol),
    /// SPDY in the messages of a WebSocket.
    Tunnel,
}

/// The answer; a session follows it where it is an upgrade.
pub fn upgrade(server: &Arc<Server>, ticket: Ticket, mut request: Request<Incoming>) -> Answer {
    let negotiated = negotiate(&ticket, &request);
    let (agreed, answer) = match negotiated {
        Ok(negotiated) => negotiated,
        Err(refused) => return *refused,
    };
    let Ok(permit) = Arc::clone(&server.sessions).try_acquire_owned() else {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "too many streaming sessions\n");
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let session = Session { server: Arc::clone(server), ticket, agreed, permit };
    tokio::spawn(async move {
        let parts = match upgraded.await.map(|upgraded| upgraded.downcast::<TokioIo<Io>>()) {
            Ok(Ok(parts)) => parts,
            _ => return tracing::debug!("a client left before its upgrade"),
        };
        session.run(parts.io.into_inner(), parts.read_buf).await;
    });
    answer
}

type Negotiated = Result<(Agreed, Answer), Box<Answer>>;

fn negotiate(ticket: &Ticket, request: &Request<Incoming>) -> Negotiated {
    let headers = request.headers();
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or("");
    if !tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return refuse(StatusCode::BAD_REQUEST, "a request to upgrade is needed\n");
    }
    if upgrade.eq_ignore_ascii_case("websocket") {
        return negotiate_websocket(ticket, request);
    }
    if upgrade.eq_ignore_ascii_case(SPDY) {
        return negotiate_spdy(ticket, headers);
    }
    refuse(StatusCode::BAD_REQUEST, "an upgrade to SPDY/3.1 or to websocket is needed\n")
}

fn refuse<T>(status: StatusCode, text: &'static str) -> Result<T, Box<Answer>> {
    Err(Box::new(refusal(status, text)))
}

/// The entries of a list that may be spread over several headers.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// The first of the client's versions that is ours too. Clients from before there were versions name
/// none.
fn negotiate_spdy(ticket: &Ticket, headers: &HeaderMap) -> Negotiated {
    let ours = ticket.spdy_protocols();
    let mut named = false;
    let mut chosen = None;
    for wanted in tokens(headers, &STREAM_PROTOCOL) {
        named = true;
        chosen = chosen.or(ours.iter().copied().find(|known| *known == wanted));
    }
    let mut answer = switching("SPDY/3.1");
    match (chosen, named) {
        (Some(protocol), _) => {
            answer.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
        }
        (None, false) => {}
        (None, true) => {
            let text = format!("unable to negotiate a protocol: the server accepts {}\n", ours.join(", "));
            let mut refused = refusal(StatusCode::FORBIDDEN, text);
            for protocol in ours {
                refused.headers_mut().append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(protocol));
            }
            return Err(Box::new(refused));
        }
    }
    Ok((Agreed::Spdy(chosen.unwrap_or("")), answer))
}

/// RFC 6455, section 4.2. Any Origin is taken, as the peers do: who has the token needs no cookie,
/// and the API server's proxy passes on whatever its client said.
fn negotiate_websocket(ticket: &Ticket, request: &Request<Incoming>) -> Negotiated {
    let headers = request.headers();
    if request.method() != Method::GET {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "a WebSocket begins with GET\n");
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes() != b"13") {
        let mut refused = refusal(StatusCode::UPGRADE_REQUIRED, "Sec-WebSocket-Version: 13 is needed\n");
        refused.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(Box::new(refused));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    if BASE64_STANDARD.decode(key).ok().is_none_or(|key| key.len() != 16) {
        return refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing or not 16 bytes\n");
    }
    let wanted = || tokens(headers, &SEC_WEBSOCKET_PROTOCOL);
    let agreed = match ticket {
        Ticket::Exec(_) | Ticket::Attach(_) => {
            channel::choose(wanted()).map(|p| (Agreed::Channels(p), p.name))
        }
        Ticket::PortForward(_) if wanted().any(|name| name == TUNNEL) => Some((Agreed::Tunnel, TUNNEL)),
        Ticket::PortForward(ticket) => match port_forward::choose(wanted()) {
            Some(protocol) => {
                check_ports(&ticket.ports)?;
                Some((Agreed::Ports(protocol), protocol.name))
            }
            None => None,
        },
    };
    let Some((agreed, name)) = agreed else {
        return refuse(StatusCode::FORBIDDEN, "none of the requested subprotocols is supported\n");
    };
    let mut answer = switching("websocket");
    let accept = derive_accept_key(key);
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        answer.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if !name.is_empty() {
        answer.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok((agreed, answer))
}

fn switching(to: &'static str) -> Answer {
    let mut answer = refusal(StatusCode::SWITCHING_PROTOCOLS, Bytes::new());
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    answer
}

impl Ticket {
    fn spdy_protocols(&self) -> &'static [&'static str] {
        match self {
            Self::Exec(_) | Self::Attach(_) => &open::SPDY_PROTOCOLS,
            Self::PortForward(_) => &[port_forward::PROTOCOL],
        }
    }
}

/// Channels are for the ports of the CRI request, into which kubelet writes those of its client's
/// query; the runtime's own URL has none, as with the peers.
fn check_ports(ports: &[u16]) -> Result<(), Box<Answer>> {
    match ports.len() {
        0 => refuse(StatusCode::BAD_REQUEST, "the PortForward request names no port\n"),
        1..=port_forward::MAX_PORTS => Ok(()),
        _ => refuse(StatusCode::BAD_REQUEST, "too many ports\n"),
    }
}

/// One client's connection after its upgrade.
struct Session {
    server: Arc<Server>,
    ticket: Ticket,
    agreed: Agreed,
    permit: OwnedSemaphorePermit,
}

impl Session {
    async fn run(self, io: Io, begun: Bytes) {
        let Self { server, ticket, agreed, permit } = self;
        let socket = io.socket().ok();
        let (reader, writer) = io.split();
        let tunnel = matches!(agreed, Agreed::Tunnel);
        let closes = matches!(agreed, Agreed::Tunnel | Agreed::Ports(_));
        let wire = Wire::new(writer, socket, tunnel);
        let served = async {
            match ticket {
                Ticket::Exec(ticket) => {
                    let streams = streams(&wire, reader, begun, ticket.wanted, agreed).await?;
                    exec::serve(&server.node, ticket, streams).await;
                }
                Ticket::Attach(ticket) => {
                    let streams = streams(&wire, reader, begun, ticket.wanted, agreed).await?;
                    attach::serve(&server.node, ticket, streams).await;
                }
                Ticket::PortForward(ticket) => {
                    if let Agreed::Ports(protocol) = agreed {
                        let messages = Messages::new(reader, begun, Arc::clone(&wire)).await;
                        port_forward::serve_channels(&server.node, ticket, &wire, messages, protocol).await;
                        return Ok(());
                    }
                    let source = source(&wire, reader, begun, &agreed).await;
                    port_forward::serve(&server.node, ticket, &wire, source).await;
                }
            }
            Ok::<_, Gone>(())
        };
        tokio::select! {
            _ = served => {}
            () = idle(&wire, server.idle_limit) => {}
        }
        if closes {
            websocket::session::close(&wire).await;
        }
        linger(&wire, server.idle_limit).await;
        drop(permit);
    }
}

/// Ends the session when nothing has moved for too long; what serves it notices.
async fn idle(wire: &Wire, limit: Duration) {
    wire.idle(limit).await;
    tracing::debug!("a streaming session was idle for too long");
    wire.go();
    std::future::pending().await
}

/// The client closes first, once it has read all: a socket that is closed with unread bytes in it
/// takes what the client has not read along. A client that reads slowly has the time of an idle one.
async fn linger(wire: &Wire, idle_limit: Duration) {
    let closed = async {
        wire.shut_down().await;
        wire.gone().await;
    };
    tokio::select! {
        () = closed => {}
        () = nothing_moves(wire, idle_limit) => {}
    }
    wire.go();
}

/// Waits until the client has had everything for a while, or has taken nothing for too long.
async fn nothing_moves(wire: &Wire, idle_limit: Duration) {
    let (mut unsent, mut since) = (wire.unsent(), Instant::now());
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let before = std::mem::replace(&mut unsent, wire.unsent());
        if unsent != before {
            since = Instant::now();
        }
        if since.elapsed() >= if unsent == 0 { LINGER } else { idle_limit } {
            return;
        }
    }
}

async fn source(wire: &Arc<Wire>, reader: ReadHalf, begun: Bytes, agreed: &Agreed) -> Source {
    match agreed {
        Agreed::Tunnel => Source::tunnel(Messages::new(reader, begun, Arc::clone(wire)).await),
        _ => Source::Direct(Intake::new(reader, begun)),
    }
}

async fn streams(
    wire: &Arc<Wire>,
    reader: ReadHalf,
    begun: Bytes,
    wanted: Wanted,
    agreed: Agreed,
) -> Result<Streams, Gone> {
    let wire = Arc::clone(wire);
    match agreed {
        Agreed::Tunnel | Agreed::Ports(_) => Err(Gone),
        Agreed::Spdy(protocol) => {
            let source = Source::Direct(Intake::new(reader, begun));
            open::spdy(wire, source, wanted, protocol).await
        }
        Agreed::Channels(protocol) => {
            let messages = Messages::new(reader, begun, Arc::clone(&wire)).await;
            Ok(open::websocket(wire, messages, wanted, protocol).await)
        }
    }
}
