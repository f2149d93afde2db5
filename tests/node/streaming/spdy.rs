//! A client of SPDY that does what it is told, be it right or wrong; its headers are compressed
//! without the dictionary, which a server has to put up with.

use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::connect;
use crate::harness::Daemon;

/// More than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

pub const REFUSED_STREAM: u32 = 3;

#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    Data { stream: u32, fin: bool, content: Vec<u8> },
    Reply { stream: u32 },
    Reset { stream: u32, reason: u32 },
    Other,
}

pub struct Client {
    tcp: TcpStream,
    zlib: Compress,
    next: u32,
}

impl Client {
    pub async fn open(daemon: &Daemon, url: &str, protocol: &str) -> Self {
        let mut tcp = connect(daemon, url).await;
        let path = url.splitn(4, '/').nth(3).unwrap();
        let protocol = match protocol {
            "" => String::new(),
            protocol => format!("X-Stream-Protocol-Version: {protocol}\r\n"),
        };
        let request = format!(
            "POST /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             {protocol}Content-Length: 0\r\n\r\n"
        );
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        Self { tcp, zlib: Compress::new(Compression::fast(), true), next: 1 }
    }

    async fn send(&mut self, bytes: &[u8]) {
        tokio::time::timeout(LIMIT, self.tcp.write_all(bytes)).await.unwrap().unwrap();
    }

    async fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        let head = [&0x8003u16.to_be_bytes()[..], &kind.to_be_bytes(), &[flags], &length[1..]].concat();
        self.send(&[&head, payload].concat()).await;
    }

    /// Asks for a stream; its ID.
    pub async fn syn(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        let mut pairs = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            pairs.extend((text.len() as u32).to_be_bytes());
            pairs.extend(text.as_bytes());
        }
        let mut block = Vec::with_capacity(pairs.len() + 100);
        self.zlib.compress_vec(&pairs, &mut block, FlushCompress::Sync).unwrap();
        let payload = [&stream.to_be_bytes()[..], &[0; 6], &block].concat();
        self.control(1, 0, &payload).await;
        stream
    }

    /// The error and the data stream of a connection to a port.
    pub async fn pair(&mut self, port: u16, request: usize) -> (u32, u32) {
        let (port, request) = (port.to_string(), request.to_string());
        let mut ids = [0; 2];
        for (id, kind) in ids.iter_mut().zip(["error", "data"]) {
            *id = self.syn(&[("streamtype", kind), ("port", &port), ("requestid", &request)]).await;
        }
        (ids[0], ids[1])
    }

    pub async fn data(&mut self, stream: u32, fin: bool, content: &[u8]) {
        let length = (content.len() as u32).to_be_bytes();
        let head = [&stream.to_be_bytes()[..], &[u8::from(fin)], &length[1..]].concat();
        self.send(&[&head, content].concat()).await;
    }

    pub async fn reset(&mut self, stream: u32) {
        self.control(3, 0, &[stream.to_be_bytes(), 5u32.to_be_bytes()].concat()).await;
    }

    pub async fn ping(&mut self, id: u32) {
        self.control(6, 0, &id.to_be_bytes()).await;
    }

    /// The next frame. None: the end.
    pub async fn frame(&mut self) -> Option<Frame> {
        let read = async {
            let mut head = [0; 8];
            self.tcp.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
            let mut content = vec![0; length];
            self.tcp.read_exact(&mut content).await.ok()?;
            Some((head, content))
        };
        let (head, content) = tokio::time::timeout(LIMIT, read).await.expect("a frame in time")?;
        let word = |at: usize| u32::from_be_bytes(content[at..at + 4].try_into().unwrap());
        if head[0] & 0x80 == 0 {
            let stream = u32::from_be_bytes(head[..4].try_into().unwrap());
            return Some(Frame::Data { stream, fin: head[4] & 1 == 1, content });
        }
        Some(match head[3] {
            2 => Frame::Reply { stream: word(0) },
            3 => Frame::Reset { stream: word(0), reason: word(4) },
            _ => Frame::Other,
        })
    }

    /// What streams say up to their ends, in whatever order.
    pub async fn read_each<const N: usize>(&mut self, streams: [u32; N]) -> [Vec<u8>; N] {
        let mut said = [const { Vec::new() }; N];
        let mut left = N;
        while left > 0 {
            match self.frame().await.expect("the session goes on") {
                Frame::Data { stream, fin, content } => {
                    let place = streams.iter().position(|other| *other == stream).expect("one of them");
                    said[place].extend(content);
                    left -= usize::from(fin);
                }
                Frame::Reset { stream, .. } => panic!("stream {stream} is reset"),
                _ => {}
            }
        }
        said
    }

    /// What a stream says up to its end. None: it was reset.
    pub async fn read(&mut self, stream: u32) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            match self.frame().await.expect("the session goes on") {
                Frame::Data { stream: of, fin, content } if of == stream => {
                    all.extend(content);
                    if fin {
                        return Some(all);
                    }
                }
                Frame::Reset { stream: of, .. } if of == stream => return None,
                _ => {}
            }
        }
    }
}
