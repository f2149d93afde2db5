//! A client of the streaming server: it asks for a URL, connects in the daemon's network, speaks
//! channels.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use podwright::cri::wire as cri;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::harness::Daemon;

/// More than anything here takes.
const LIMIT: Duration = Duration::from_secs(300);

pub const V4: &str = "v4.channel.k8s.io";
pub const V5: &str = "v5.channel.k8s.io";

/// The server listens on loopback, which a new namespace has down.
pub fn raise_loopback(daemon: &Daemon) {
    daemon.in_namespaces("ip", &["link", "set", "lo", "up"]);
}

pub async fn exec_url(daemon: &Daemon, id: &str, argv: &[&str], tty: bool) -> String {
    let request = cri::ExecRequest {
        container_id: id.into(),
        cmd: argv.iter().map(|argument| (*argument).to_owned()).collect(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    daemon.runtime().exec(request).await.unwrap().into_inner().url
}

pub async fn attach_url(daemon: &Daemon, id: &str, stdin: bool, tty: bool) -> String {
    let request = cri::AttachRequest { container_id: id.into(), stdin, tty, stdout: true, stderr: !tty };
    daemon.runtime().attach(request).await.unwrap().into_inner().url
}

/// What a session said up to its end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub error: String,
}

impl Said {
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.error).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// What an attached client was told on stderr that it does not see, in bytes.
    pub fn missed(&self) -> usize {
        let notices = String::from_utf8_lossy(&self.stderr);
        notices.split('[').skip(1).map(|n| n.split(' ').next().unwrap().parse::<usize>().unwrap()).sum()
    }

    /// By the v4 status.
    pub fn exit_code(&self) -> i32 {
        let status = self.status();
        if status["status"] == "Success" {
            return 0;
        }
        assert_eq!(status["reason"], "NonZeroExitCode", "{status}");
        status["details"]["causes"][0]["message"].as_str().unwrap().parse().unwrap()
    }
}

pub struct Session {
    socket: WebSocketStream<TcpStream>,
    base64: bool,
    said: Said,
    ended: bool,
}

impl Session {
    pub async fn open(daemon: &Daemon, url: &str, protocol: &str) -> Self {
        Self::try_open(daemon, url, protocol).await.unwrap_or_else(|e| panic!("{url} over {protocol:?}: {e}"))
    }

    pub async fn try_open(daemon: &Daemon, url: &str, protocol: &str) -> Result<Self, Error> {
        let socket = upgrade(daemon, url, protocol).await?;
        Ok(Self { socket, base64: protocol.contains("base64"), said: Said::default(), ended: false })
    }

    pub async fn send(&mut self, channel: u8, content: &[u8]) {
        let message = encode(self.base64, channel, content);
        tokio::time::timeout(LIMIT, self.socket.send(message)).await.unwrap().unwrap();
    }

    /// The close signal of v5.
    pub async fn close(&mut self, channel: u8) {
        self.socket.send(Message::binary(vec![255, channel])).await.unwrap();
    }

    pub async fn resize(&mut self, width: u16, height: u16) {
        self.send(4, format!("{{\"Width\":{width},\"Height\":{height}}}\n").as_bytes()).await;
    }

    /// Whether a ping is answered, with nothing else on the way.
    pub async fn ping(&mut self) -> bool {
        self.socket.send(Message::Ping("are you there".into())).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(30), self.socket.next()).await;
        matches!(answer, Ok(Some(Ok(Message::Pong(content)))) if content == "are you there")
    }

    /// Says that it leaves; whether the server says so too.
    pub async fn leave(mut self) -> bool {
        self.socket.close(None).await.unwrap();
        while let Ok(Some(Ok(message))) = tokio::time::timeout(LIMIT, self.socket.next()).await {
            if message.is_close() {
                return true;
            }
        }
        false
    }

    /// One more message. False: there is none.
    async fn step(&mut self) -> bool {
        let message = tokio::time::timeout(LIMIT, self.socket.next()).await.expect("the session goes on");
        let Some(Ok(message)) = message else {
            self.ended = true;
            return false;
        };
        let Some(content) = decode(message) else { return true };
        match content[0] {
            1 => self.said.stdout.extend_from_slice(&content[1..]),
            2 => self.said.stderr.extend_from_slice(&content[1..]),
            3 => self.said.error.push_str(std::str::from_utf8(&content[1..]).unwrap()),
            other => panic!("a message on channel {other}"),
        }
        true
    }

    /// Reads until stdout has this text.
    pub async fn until(&mut self, text: &str) {
        while !self.said.out().contains(text) {
            assert!(self.step().await, "the session ends before {text:?}: {:?}", self.said);
        }
    }

    /// Reads until so many bytes of output have come or are known to be missed.
    pub async fn until_all(&mut self, bytes: usize) {
        while self.said.stdout.len() + self.said.missed() < bytes {
            assert!(self.step().await, "the session ends before {bytes} bytes: {:?}", self.said.missed());
        }
        assert_eq!(self.said.stdout.len() + self.said.missed(), bytes);
    }

    pub fn said(&self) -> &Said {
        &self.said
    }

    /// Reads to the end.
    pub async fn end(mut self) -> Said {
        while !self.ended {
            self.step().await;
        }
        self.said
    }
}

/// Channels of the older protocol of port-forward: two for each port.
pub struct PortSession {
    socket: WebSocketStream<TcpStream>,
    base64: bool,
    /// What has come on each channel.
    said: BTreeMap<usize, Vec<u8>>,
}

impl PortSession {
    pub async fn open(daemon: &Daemon, url: &str, protocol: &str) -> Result<Self, Error> {
        let socket = upgrade(daemon, url, protocol).await?;
        Ok(Self { socket, base64: protocol.contains("base64"), said: BTreeMap::new() })
    }

    pub async fn send(&mut self, channel: u8, content: &[u8]) {
        let message = encode(self.base64, channel, content);
        tokio::time::timeout(LIMIT, self.socket.send(message)).await.unwrap().unwrap();
    }

    /// One more message. False: the server has closed; in_order: with a close frame.
    async fn step(&mut self, in_order: &mut bool) -> bool {
        let message = tokio::time::timeout(LIMIT, self.socket.next()).await.expect("the session goes on");
        match message {
            Some(Ok(Message::Close(_))) => *in_order = true,
            Some(Ok(message)) => {
                if let Some(content) = decode(message) {
                    self.said.entry(content[0].into()).or_default().extend_from_slice(&content[1..]);
                }
            }
            Some(Err(_)) | None => return false,
        }
        true
    }

    /// Reads until a channel has said this much, which must be this.
    pub async fn until(&mut self, channel: usize, content: &[u8]) {
        while self.said.get(&channel).is_none_or(|said| said.len() < content.len()) {
            assert!(self.step(&mut false).await, "the session ends: {:?}", self.said);
        }
        assert_eq!(&self.said[&channel][..content.len()], content);
    }

    /// Reads until a channel has said this somewhere; all it has said.
    pub async fn until_text(&mut self, channel: usize, text: &str) -> String {
        loop {
            let said = self.said.get(&channel).map(|said| String::from_utf8_lossy(said).into_owned());
            if let Some(said) = said.filter(|said| said.contains(text)) {
                return said;
            }
            assert!(self.step(&mut false).await, "the session ends: {:?}", self.said);
        }
    }

    /// Reads to the end. Whether it came with a close frame.
    pub async fn ends_in_order(mut self) -> bool {
        let mut in_order = false;
        while self.step(&mut in_order).await {}
        in_order
    }
}

fn encode(base64: bool, channel: u8, content: &[u8]) -> Message {
    use base64::Engine as _;
    match base64 {
        true => {
            let text = base64::prelude::BASE64_STANDARD.encode(content);
            Message::text(format!("{}{text}", char::from(b'0' + channel)))
        }
        false => Message::binary([&[channel], content].concat()),
    }
}

/// The channel and its bytes. None: it is no message.
fn decode(message: Message) -> Option<Vec<u8>> {
    use base64::Engine as _;
    match message {
        Message::Binary(content) => Some(content.to_vec()),
        Message::Text(text) => {
            let (channel, rest) = text.as_bytes().split_at(1);
            let content = base64::prelude::BASE64_STANDARD.decode(rest).unwrap();
            Some([&[channel[0] - b'0'], &content[..]].concat())
        }
        _ => None,
    }
}

async fn upgrade(daemon: &Daemon, url: &str, protocol: &str) -> Result<WebSocketStream<TcpStream>, Error> {
    let mut request = url.replace("http://", "ws://").into_client_request()?;
    if !protocol.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    }
    let tcp = connect(daemon, url).await;
    let (socket, answer) = tokio_tungstenite::client_async(request, tcp).await?;
    let chosen = answer.headers().get("sec-websocket-protocol").map_or("", |name| name.to_str().unwrap());
    assert_eq!(chosen, protocol);
    Ok(socket)
}

/// A connection made in the daemon's network namespace.
pub async fn connect(daemon: &Daemon, url: &str) -> TcpStream {
    let address = url.split('/').nth(2).unwrap().to_owned();
    let netns = std::fs::File::open(format!("/proc/{}/ns/net", daemon.pid())).unwrap();
    let stream = podwright::network::namespace::run(netns, || {
        std::net::TcpStream::connect(&address).map_err(|e| podwright::Error::io("connecting", e))
    });
    let stream = stream.unwrap();
    stream.set_nonblocking(true).unwrap();
    TcpStream::from_std(stream).unwrap()
}
