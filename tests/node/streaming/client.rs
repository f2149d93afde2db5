//! A client of the streaming server: it asks for a URL, connects in the daemon's network, speaks
//! channels.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use podwright::cri::wire as cri;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::harness::Daemon;

/// More than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

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
        let mut request = url.replace("http://", "ws://").into_client_request()?;
        if !protocol.is_empty() {
            request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        let tcp = connect(daemon, url).await;
        let (socket, answer) = tokio_tungstenite::client_async(request, tcp).await?;
        let chosen = answer.headers().get("sec-websocket-protocol").map_or("", |name| name.to_str().unwrap());
        assert_eq!(chosen, protocol);
        Ok(Self { socket, base64: protocol.contains("base64"), said: Said::default(), ended: false })
    }

    pub async fn send(&mut self, channel: u8, content: &[u8]) {
        use base64::Engine as _;
        let message = if self.base64 {
            let text = base64::prelude::BASE64_STANDARD.encode(content);
            Message::text(format!("{channel}{text}"))
        } else {
            Message::binary([&[channel], content].concat())
        };
        tokio::time::timeout(LIMIT, self.socket.send(message)).await.unwrap().unwrap();
    }

    /// The close signal of v5.
    pub async fn close(&mut self, channel: u8) {
        self.socket.send(Message::binary(vec![255, channel])).await.unwrap();
    }

    pub async fn resize(&mut self, width: u16, height: u16) {
        self.send(4, format!("{{\"Width\":{width},\"Height\":{height}}}\n").as_bytes()).await;
    }

    /// One more message. False: there is none.
    async fn step(&mut self) -> bool {
        use base64::Engine as _;
        let message = tokio::time::timeout(LIMIT, self.socket.next()).await.expect("the session goes on");
        let content = match message {
            Some(Ok(Message::Binary(content))) => content.to_vec(),
            Some(Ok(Message::Text(text))) => {
                let (channel, rest) = text.as_bytes().split_at(1);
                let content = base64::prelude::BASE64_STANDARD.decode(rest).unwrap();
                [&[channel[0] - b'0'], &content[..]].concat()
            }
            Some(Ok(_)) => return true,
            Some(Err(_)) | None => {
                self.ended = true;
                return false;
            }
        };
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

    /// Reads to the end.
    pub async fn end(mut self) -> Said {
        while !self.ended {
            self.step().await;
        }
        self.said
    }
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
