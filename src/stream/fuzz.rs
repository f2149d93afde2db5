//! Fuzz targets of both protocols: their parsers, and whole sessions with a client that says anything.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::chunk::Chunk;
use super::remote_command::resize::Sizes;
use super::spdy::frame::{self, Broken, Frame, Parser, Reset, client};
use super::spdy::header::{self, Headers};
use super::spdy::session::{self, Refusal};
use super::websocket::channel::{self, Incoming};
use super::websocket::session::Inbound;
use super::websocket::tunnel::{Messages, Source};
use super::wire::{Intake, Wire};

/// A session that has not ended by then hangs.
const LIMIT: Duration = Duration::from_secs(20);

/// Takes a number of bytes off the front; fewer where there are no more.
fn take<'a>(data: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = data.split_at(length.min(data.len()));
    *data = rest;
    taken
}

fn byte(data: &mut &[u8]) -> u8 {
    take(data, 1).first().copied().unwrap_or_default()
}

fn word(data: &mut &[u8]) -> u32 {
    take(data, 4).iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

/// The same frames in whatever parts the bytes come, and no more bytes in them than came.
pub fn spdy_frames(data: &[u8]) {
    let parse = |size: usize| {
        let (frames, broken) = parse(data, &[size]);
        (joined(frames), broken)
    };
    let whole = parse(data.len());
    let size: usize =
        whole.0.iter().map(|frame| if let Frame::Data { part, .. } = frame { part.len() } else { 0 }).sum();
    assert!(size <= data.len());
    for size in [1, 7] {
        assert_eq!(whole, parse(size));
    }
}

/// Everything that is found when the bytes come in parts of these sizes.
pub fn parse(bytes: &[u8], sizes: &[usize]) -> (Vec<Frame>, Option<Broken>) {
    let (mut parser, mut buffer, mut frames) = (Parser::default(), BytesMut::new(), Vec::new());
    let mut rest = bytes;
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let size = sizes.next().map_or(rest.len(), |size| (*size).clamp(1, rest.len()));
        buffer.extend_from_slice(&rest[..size]);
        rest = &rest[size..];
        loop {
            match parser.next(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(broken) => return (frames, Some(broken)),
            }
        }
        assert!(buffer.len() < frame::HEADER + frame::MAX_CONTROL, "what is held is bounded");
    }
    (frames, None)
}

/// With the parts of a data frame put together.
pub fn joined(frames: Vec<Frame>) -> Vec<Frame> {
    let mut all: Vec<Frame> = Vec::new();
    for frame in frames {
        if let (Frame::Data { stream, fin, part }, Some(Frame::Data { stream: s, fin: f, part: p })) =
            (&frame, all.last_mut())
            && s == stream
            && !*f
        {
            *p = [&p[..], part].concat().into();
            *f = *fin;
        } else {
            all.push(frame);
        }
    }
    all
}

/// A length from here on is that of a block, less this, that is not compressed.
const PLAIN: usize = 1 << 16;

/// Blocks of one session, behind a beginning that is as it should be or is not.
pub fn spdy_headers(mut data: &[u8]) {
    let mut reader = header::Reader::new();
    if byte(&mut data).is_multiple_of(2) {
        assert!(reader.read(&header::empty_block(true)).is_ok());
    }
    while !data.is_empty() {
        let length = word(&mut data) as usize;
        let block = take(&mut data, length % 512);
        // Not compressed: for what is behind the inflater.
        let plain = length >= PLAIN;
        let read = if plain { header::parse(block) } else { reader.read(block) };
        match read {
            Ok(headers) => {
                let _ = (headers.get("streamtype"), headers.get(""));
            }
            Err(_) if plain => {}
            Err(_) => return,
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

fn wire(tunnel: bool) -> (DuplexStream, tokio::io::ReadHalf<DuplexStream>, Arc<Wire>) {
    let (client, served) = tokio::io::duplex(1 << 20);
    let (reader, writer) = tokio::io::split(served);
    (client, reader, Wire::new(Box::new(writer), None, tunnel))
}

/// Serves a session whose client says `said` and leaves; its streams are read and written to.
async fn serve_spdy(wire: Arc<Wire>, source: Source, mut client: DuplexStream, said: Vec<u8>) {
    let accept = Box::new(|headers: &Headers, open: usize| match headers.get("streamtype") {
        _ if open >= 5 => Err(Refusal::TooMany),
        Some("data") => Ok(()),
        _ => Err(Refusal::Invalid),
    });
    let (sender, mut streams) = mpsc::channel(2);
    let served = tokio::spawn(session::serve(wire, source, accept, sender));
    let used = tokio::spawn(async move {
        let mut readers = Vec::new();
        while let Some(stream) = streams.recv().await {
            readers.push(tokio::spawn(async move {
                while let Some(chunk) = stream.read().await {
                    if stream.write(Chunk::copied(&chunk)).await.is_err() {
                        return;
                    }
                }
                let _ = stream.finish().await;
            }));
        }
        for reader in readers {
            reader.await.expect("a stream's reader");
        }
    });
    let _ = client.write_all(&said).await;
    drop(client);
    let ended = async {
        served.await.expect("a session");
        used.await.expect("its streams");
    };
    tokio::time::timeout(LIMIT, ended).await.expect("the session ends");
}

/// Frames by the book, by a client whose numbers are any, among bytes that are none.
fn spdy_speech(mut data: &[u8]) -> Vec<u8> {
    let mut headers = header::client::Writer::new();
    let mut said = Vec::new();
    while !data.is_empty() {
        let (op, id) = (byte(&mut data), u32::from(byte(&mut data)) % 12);
        let fin = op & 0x80 != 0;
        match op % 8 {
            0 => said.extend_from_slice(take(&mut data, id as usize)),
            1 | 2 => {
                let kind = if op & 0x40 == 0 { "data" } else { "error" };
                let block = headers.write(&[("streamtype", kind), ("port", "80")]);
                said.extend(client::syn_stream(id, fin, &block));
            }
            3 => {
                let length = usize::from(byte(&mut data));
                said.extend(client::data(id, fin, take(&mut data, length)));
            }
            4 => said.extend(frame::rst_stream(id, Reset::Cancel)),
            5 => said.extend(frame::window_update(id, word(&mut data))),
            6 => said.extend(client::settings(id, word(&mut data))),
            _ => {
                let length = usize::from(byte(&mut data));
                said.extend(client::syn_stream(id, fin, take(&mut data, length)));
            }
        }
    }
    said
}

/// Whatever a client says, its session ends when it leaves.
pub fn spdy_session(data: &[u8]) {
    let said = spdy_speech(data);
    runtime().block_on(async {
        let (client, reader, wire) = wire(false);
        let source = Source::Direct(Intake::new(Box::new(reader), Bytes::new()));
        serve_spdy(wire, source, client, said).await;
    });
}

/// A message belongs to a channel that there is, or to none; what we encode we can read.
pub fn websocket_channels(data: &[u8]) {
    let mut sizes = Sizes::default();
    for (number, protocol) in channel::PROTOCOLS.into_iter().enumerate() {
        for count in [0, channel::COUNT, 78] {
            match channel::read(protocol, count, Bytes::copy_from_slice(data)) {
                Ok(Incoming::Data { channel, content }) => {
                    assert!(usize::from(channel) < count && content.len() < data.len());
                    let _ = sizes.read(&content);
                    if protocol.base64 {
                        let again = channel::encode(channel, &content);
                        let read = channel::read(protocol, count, again.into());
                        let nothing = content.is_empty() && read == Ok(Incoming::Nothing);
                        assert!(nothing || read == Ok(Incoming::Data { channel, content }), "{number}");
                    }
                }
                Ok(Incoming::Closed { channel }) => assert!(usize::from(channel) < count && protocol.closes),
                Ok(Incoming::Nothing) | Err(_) => {}
            }
        }
    }
}

/// Messages of a client (RFC 6455, section 5.2), masked with zeros, among bytes that are none.
fn websocket_speech(mut data: &[u8], content: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut said = Vec::new();
    while !data.is_empty() {
        let (op, length) = (byte(&mut data), usize::from(byte(&mut data)));
        let part = take(&mut data, length);
        let (opcode, part) = match op % 8 {
            0 => {
                said.extend_from_slice(part);
                continue;
            }
            1..=4 => (0x82, content(part)),
            5 => (0x81, part.to_vec()),
            // Parts of messages, pings, a close, and what does not exist.
            6 => (op >> 3 & 0x0f, part.to_vec()),
            _ => (0x80 | op >> 3 & 0x0f, part.to_vec()),
        };
        let (mut head, used) = super::websocket::frame::header(0, part.len());
        (head[0], head[1]) = (opcode, head[1] | 0x80);
        said.extend_from_slice(&head[..used]);
        said.extend_from_slice(&[0; 4]);
        said.extend(part);
    }
    said
}

pub fn websocket_session(mut data: &[u8]) {
    let protocol = channel::PROTOCOLS[usize::from(byte(&mut data)) % channel::PROTOCOLS.len()];
    let said = websocket_speech(data, <[u8]>::to_vec);
    runtime().block_on(async {
        let (mut client, reader, wire) = wire(false);
        let mut inbound = Inbound::of(channel::COUNT);
        let readers = [channel::STDIN, channel::RESIZE].map(|channel| {
            let queue = inbound.open(channel);
            tokio::spawn(async move { while queue.pop().await.is_some() {} })
        });
        let messages = Messages::new(Box::new(reader), Bytes::new(), Arc::clone(&wire)).await;
        let served = tokio::spawn(super::websocket::session::serve(wire, messages, protocol, inbound));
        let _ = client.write_all(&said).await;
        drop(client);
        let ended = async {
            served.await.expect("a session");
            for reader in readers {
                reader.await.expect("a channel's reader");
            }
        };
        tokio::time::timeout(LIMIT, ended).await.expect("the session ends");
    });
}

pub fn websocket_tunnel(data: &[u8]) {
    let said = websocket_speech(data, spdy_speech);
    runtime().block_on(async {
        let (client, reader, wire) = wire(true);
        let messages = Messages::new(Box::new(reader), Bytes::new(), Arc::clone(&wire)).await;
        serve_spdy(wire, Source::tunnel(messages), client, said).await;
    });
}

pub fn frame_seeds() -> Vec<Vec<u8>> {
    let all = [
        client::syn_stream(1, false, &header::empty_block(true)),
        client::data(1, false, b"content"),
        frame::window_update(1, 100),
        client::settings(7, 1 << 20),
        frame::ping(1),
        frame::syn_reply(2, b""),
        frame::rst_stream(1, Reset::Cancel),
        client::data(1, true, b""),
        frame::go_away(1),
    ];
    vec![all.concat(), all[0].clone(), client::data(3, true, &[7; 300])]
}

pub fn header_seeds() -> Vec<Vec<u8>> {
    let mut writer = header::client::Writer::new();
    let mut compressed = vec![1];
    let mut plain = vec![0];
    for port in ["80", "443"] {
        let block = writer.write(&[("streamtype", "data"), ("port", port), ("requestid", "0")]);
        compressed.extend((block.len() as u32).to_be_bytes());
        compressed.extend(block);
        let block = [&[0, 0, 0, 1, 0, 0, 0, 4][..], b"port", &[0, 0, 0, 1], &port.as_bytes()[..1]].concat();
        plain.extend((PLAIN as u32 + block.len() as u32).to_be_bytes());
        plain.extend(block);
    }
    vec![compressed, plain]
}

pub fn session_seeds() -> Vec<Vec<u8>> {
    let stream = [1, 1, 3, 1, 5, b'h', b'e', b'l', b'l', b'o', 5, 1, 0, 0, 0, 9, 0x83, 1, 1, b'!'];
    let windows = [6, 7, 0, 0, 0, 2, 1, 1, 3, 1, 4, 1, 2, 3, 4, 5, 0, 0x7f, 0xff, 0xff, 0xff, 4, 1];
    let odd = [1, 3, 1, 1, 0x41, 5, 1, 4, 7, 9, 3, 1, 2, 3, 0, 4, 0x80, 3, 0, 6];
    vec![stream.to_vec(), windows.to_vec(), odd.to_vec()]
}

pub fn channel_seeds() -> Vec<Vec<u8>> {
    let texts: [&[u8]; 5] =
        [b"\0bytes", b"0aGVsbG8=", b"\xff\0", b"\x04{\"Width\":80,\"Height\":24}\n", b"4e30="];
    texts.map(<[u8]>::to_vec).to_vec()
}

pub fn message_seeds() -> Vec<Vec<u8>> {
    let channels = [0, 1, 6, 0, b'h', b'e', b'l', b'l', b'o', 1, 2, 255, 0, 7 | 9 << 3, 2, b'h', b'i'];
    let texts = [2, 5, 5, b'0', b'a', b'G', b'k', b'=', 6 | 1 << 3, 2, b'4', b'e', 7, 2, b'3', b'0'];
    let streams =
        [1, 10, 1, 1, 3, 1, 5, b'h', b'e', b'l', b'l', b'o', 1, 3, 0x83, 1, 0, 7 | 8 << 3, 2, 3, 232];
    vec![channels.to_vec(), texts.to_vec(), streams.to_vec()]
}
