//! A whole session against clients that do as they should, and against those that do not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use super::frame::{self, Reset, client};
use super::header;
use super::session::{self, Refusal, Stream};
use crate::stream::chunk::Chunk;
use crate::stream::websocket::tunnel::Source;
use crate::stream::wire::{Intake, Wire};

/// More than any of these takes; a session that hangs fails its test.
const LIMIT: Duration = Duration::from_secs(60);

struct Client {
    io: DuplexStream,
    headers: header::client::Writer,
    streams: mpsc::Receiver<Stream>,
}

fn start(pipe: usize) -> Client {
    start_with(pipe, 3)
}

/// With so many streams at most.
fn start_with(pipe: usize, most: usize) -> Client {
    let (io, served) = tokio::io::duplex(pipe);
    let (reader, writer) = tokio::io::split(served);
    let wire = Wire::new(Box::new(writer), None, false);
    let source = Source::Direct(Intake::new(Box::new(reader), Bytes::new()));
    let accept = Box::new(move |headers: &header::Headers, open: usize| match headers.get("streamtype") {
        _ if open >= most => Err(Refusal::TooMany),
        Some("data") => Ok(()),
        _ => Err(Refusal::Invalid),
    });
    let (sender, streams) = mpsc::channel(8);
    tokio::spawn(session::serve(wire, source, accept, sender));
    Client { io, headers: header::client::Writer::new(), streams }
}

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        tokio::time::timeout(LIMIT, self.io.write_all(bytes)).await.unwrap().unwrap();
    }

    async fn syn(&mut self, id: u32, kind: &str) {
        let block = self.headers.write(&[("streamtype", kind)]);
        self.send(&client::syn_stream(id, false, &block)).await;
    }

    /// Opens a stream and reads the answer.
    async fn open(&mut self, id: u32) -> Stream {
        self.syn(id, "data").await;
        let reply = self.frame().await.unwrap();
        assert_eq!(
            (reply[..4].to_vec(), reply[8..12].to_vec()),
            (vec![0x80, 3, 0, 2], id.to_be_bytes().to_vec())
        );
        tokio::time::timeout(LIMIT, self.streams.recv()).await.unwrap().unwrap()
    }

    /// The next frame as it is. None: the end.
    async fn frame(&mut self) -> Option<Vec<u8>> {
        let read = async {
            let mut frame = vec![0; frame::HEADER];
            self.io.read_exact(&mut frame).await.ok()?;
            let length = u32::from_be_bytes([0, frame[5], frame[6], frame[7]]) as usize;
            frame.resize(frame::HEADER + length, 0);
            self.io.read_exact(&mut frame[frame::HEADER..]).await.ok()?;
            Some(frame)
        };
        tokio::time::timeout(LIMIT, read).await.unwrap()
    }

    async fn expect_reset(&mut self, id: u32, reason: Reset) {
        assert_eq!(self.frame().await, Some(frame::rst_stream(id, reason)));
    }

    async fn expect_go_away(&mut self, last: u32) {
        assert_eq!(self.frame().await, Some(frame::go_away(last)));
        let ended = tokio::time::timeout(LIMIT, self.streams.recv()).await.unwrap();
        assert!(ended.is_none(), "the session goes on");
    }
}

#[tokio::test]
async fn a_stream_goes_both_ways_and_ends() {
    let mut client = start(1 << 20);
    let stream = client.open(1).await;
    client.send(&client::data(1, false, b"to ")).await;
    client.send(&client::data(1, true, b"you")).await;
    assert_eq!(stream.read().await.as_deref(), Some(&b"to "[..]));
    assert_eq!(stream.read().await.as_deref(), Some(&b"you"[..]));
    assert_eq!(stream.read().await, None);
    stream.write(Chunk::copied(b"to me")).await.unwrap();
    stream.finish().await.unwrap();
    assert_eq!(client.frame().await, Some(client::data(1, false, b"to me")));
    assert_eq!(client.frame().await, Some(client::data(1, true, b"")));
    drop(stream);
    // Late bytes for it are nobody's, and no reason to end anything.
    client.send(&client::data(1, false, b"late")).await;
    client.send(&frame::ping(7)).await;
    assert_eq!(client.frame().await, Some(frame::ping(7)));
}

#[tokio::test]
async fn ids_are_odd_and_grow() {
    for ids in [&[2][..], &[0], &[5, 3]] {
        let mut client = start(1 << 20);
        let mut last = 0;
        let mut open = Vec::new();
        for id in &ids[..ids.len() - 1] {
            open.push(client.open(*id).await);
            last = *id;
        }
        client.syn(ids[ids.len() - 1], "data").await;
        client.expect_go_away(last).await;
    }
    let mut client = start(1 << 20);
    let _open = client.open(5).await;
    client.syn(5, "data").await;
    client.expect_reset(5, Reset::ProtocolError).await;
    let _goes_on = client.open(7).await;
}

#[tokio::test]
async fn what_is_refused_leaves_the_session_as_it_was() {
    let mut client = start(1 << 20);
    client.syn(1, "nonsense").await;
    client.expect_reset(1, Reset::ProtocolError).await;
    // The refused block was inflated all the same, since this one builds on it.
    let _three = [client.open(3).await, client.open(5).await, client.open(7).await];
    client.syn(9, "data").await;
    client.expect_reset(9, Reset::RefusedStream).await;
    // A stream of nobody's.
    client.send(&client::data(11, false, b"x")).await;
    client.expect_reset(11, Reset::InvalidStream).await;
    client.send(&frame::syn_reply(2, b"")).await;
    client.expect_reset(2, Reset::InvalidStream).await;
}

#[tokio::test]
async fn nothing_comes_after_the_end_of_a_stream() {
    let mut client = start(1 << 20);
    let stream = client.open(1).await;
    client.send(&client::data(1, true, b"end")).await;
    client.send(&client::data(1, false, b"more")).await;
    client.expect_reset(1, Reset::StreamAlreadyClosed).await;
    assert_eq!(stream.read().await.as_deref(), Some(&b"end"[..]));
    assert_eq!(stream.read().await, None);
    assert!(stream.write(Chunk::copied(b"x")).await.is_err());
}

#[tokio::test]
async fn windows_that_overflow_end_what_they_belong_to() {
    let mut client = start(1 << 20);
    let stream = client.open(1).await;
    client.send(&frame::window_update(1, 0x7fff_ffff)).await;
    client.expect_reset(1, Reset::FlowControlError).await;
    assert!(stream.write(Chunk::copied(b"x")).await.is_err());
    let _other = client.open(3).await;
    client.send(&frame::window_update(0, 0x7fff_ffff)).await;
    client.expect_go_away(3).await;
}

#[tokio::test]
async fn a_window_is_heeded_once_the_client_speaks_of_one() {
    let mut client = start(1 << 20);
    client.send(&client::settings(7, 10)).await;
    let stream = Arc::new(client.open(1).await);
    let writer = tokio::spawn({
        let stream = Arc::clone(&stream);
        async move { stream.write(Chunk::copied(b"0123456789abcdef")).await }
    });
    assert_eq!(client.frame().await, Some(client::data(1, false, b"0123456789")));
    client.send(&frame::window_update(1, 4)).await;
    assert_eq!(client.frame().await, Some(client::data(1, false, b"abcd")));
    client.send(&client::settings(7, 100)).await;
    assert_eq!(client.frame().await, Some(client::data(1, false, b"ef")));
    writer.await.unwrap().unwrap();
}

/// What nobody reads is dropped, and is no reason for a client that heeds its window to wait for ever.
#[tokio::test]
async fn bytes_that_are_dropped_leave_the_sessions_window() {
    const PART: usize = 40_000;
    let mut client = start(1 << 20);
    let content = [7; PART];
    let credit = frame::window_update(0, PART as u32);
    // Behind its end.
    let ended = client.open(1).await;
    client.send(&client::data(1, true, b"")).await;
    client.send(&client::data(1, false, &content)).await;
    client.expect_reset(1, Reset::StreamAlreadyClosed).await;
    assert_eq!(client.frame().await, Some(credit.clone()));
    drop(ended);
    // Of one that was reset, by us and by the client; the first of it had come before.
    let stream = client.open(3).await;
    client.send(&[client::data(3, false, &content), frame::ping(1)].concat()).await;
    assert_eq!(client.frame().await, Some(frame::ping(1)));
    drop(stream);
    assert_eq!(client.frame().await, Some(credit.clone()));
    client.expect_reset(3, Reset::Cancel).await;
    let stream = client.open(5).await;
    client.send(&frame::rst_stream(5, Reset::Cancel)).await;
    for id in [3, 5] {
        client.send(&client::data(id, false, &content)).await;
        assert_eq!(client.frame().await, Some(credit.clone()));
    }
    drop(stream);
    // Of one that is written to only: it goes on.
    let stream = client.open(7).await;
    client.send(&[client::data(7, false, &content), frame::ping(3)].concat()).await;
    assert_eq!(client.frame().await, Some(frame::ping(3)));
    stream.stop_reading();
    let mut rest = [frame::window_update(7, PART as u32), credit.clone()].concat();
    for _ in 0..2 {
        let frame = client.frame().await.unwrap();
        assert_eq!(frame, rest.drain(..frame.len()).collect::<Vec<_>>());
    }
    client.send(&client::data(7, false, &content)).await;
    assert_eq!(client.frame().await, Some(frame::window_update(7, PART as u32)));
    assert_eq!(client.frame().await, Some(credit));
    stream.write(Chunk::copied(b"still here")).await.unwrap();
    assert_eq!(client.frame().await, Some(client::data(7, false, b"still here")));
}

/// A stream that is reset while it waits for its turn to write takes no room along.
#[tokio::test]
async fn a_write_that_is_dropped_gives_its_room_back() {
    let mut client = start(64);
    client.send(&frame::window_update(0, 1)).await;
    let one = client.open(1).await;
    let two = client.open(3).await;
    let three = client.open(5).await;
    let first = tokio::spawn(async move {
        let written = one.write(Chunk::copied(&[1; 30_000])).await;
        (one, written)
    });
    tokio::task::yield_now().await;
    tokio::select! {
        biased;
        _ = two.write(Chunk::copied(&[2; 30_000])) => panic!("the connection is full"),
        () = tokio::task::yield_now() => {}
    }
    let third = tokio::spawn(async move {
        let written = three.write(Chunk::copied(&[3; 30_000])).await;
        (three, written)
    });
    for (id, byte) in [(1, 1), (5, 3)] {
        assert_eq!(client.frame().await, Some(client::data(id, false, &[byte; 30_000])));
    }
    for writer in [first, third] {
        writer.await.unwrap().1.unwrap();
    }
}

/// A client that has reset another stream of the connection may wait for this one's end.
#[tokio::test]
async fn an_end_that_waits_for_another_stream_is_sent_though_nobody_waits_for_it() {
    let mut client = start(64);
    let one = client.open(1).await;
    let two = client.open(3).await;
    client.send(&client::data(3, true, b"")).await;
    assert_eq!(two.read().await, None);
    let first = tokio::spawn(async move {
        let written = one.write(Chunk::copied(&[1; 30_000])).await;
        (one, written)
    });
    tokio::task::yield_now().await;
    tokio::select! {
        biased;
        _ = two.finish() => {}
        () = tokio::task::yield_now() => {}
    }
    drop(two);
    assert_eq!(client.frame().await, Some(client::data(1, false, &[1; 30_000])));
    assert_eq!(client.frame().await, Some(client::data(3, true, b"")));
    first.await.unwrap().1.unwrap();
}

/// A writer that waits for room learns that its stream is over.
#[tokio::test]
async fn a_stream_that_is_over_holds_no_writer() {
    let mut client = start(1 << 20);
    client.send(&client::settings(7, 0)).await;
    let stream = Arc::new(client.open(1).await);
    let writer = tokio::spawn({
        let stream = Arc::clone(&stream);
        async move { stream.write(Chunk::copied(b"no room")).await }
    });
    client.send(&client::data(1, true, b"")).await;
    tokio::task::yield_now().await;
    client.send(&client::data(1, false, b"more")).await;
    client.expect_reset(1, Reset::StreamAlreadyClosed).await;
    assert!(tokio::time::timeout(LIMIT, writer).await.unwrap().unwrap().is_err());
    tokio::time::timeout(LIMIT, stream.reset()).await.unwrap();
}

#[tokio::test]
async fn many_streams_that_are_not_read_hold_little_in_all() {
    const STREAMS: usize = 250;
    let Client { mut io, mut headers, mut streams } = start_with(64 << 10, STREAMS);
    let content = vec![7; 60_000];
    let sender = tokio::spawn(async move {
        for id in (1..).step_by(2).take(STREAMS) {
            let block = headers.write(&[("streamtype", "data")]);
            io.write_all(&client::syn_stream(id, false, &block)).await.unwrap();
            io.write_all(&client::data(id, true, &content)).await.unwrap();
        }
        io
    });
    let mut open = std::collections::VecDeque::new();
    // Until nothing moves any more.
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(500), streams.recv()).await {
        open.push_back(stream.unwrap());
        assert!(open.len() < 170, "nothing bounds what is held");
    }
    for _ in 0..STREAMS {
        while let Ok(stream) = streams.try_recv() {
            open.push_back(stream);
        }
        let stream = match open.pop_front() {
            Some(stream) => stream,
            None => tokio::time::timeout(LIMIT, streams.recv()).await.unwrap().unwrap(),
        };
        let mut read = 0;
        while let Some(chunk) = tokio::time::timeout(LIMIT, stream.read()).await.unwrap() {
            read += chunk.len();
        }
        assert_eq!(read, 60_000);
    }
    sender.await.unwrap();
}

#[tokio::test]
async fn a_bomb_in_the_headers_ends_the_session() {
    let mut client = start(1 << 20);
    let mut pair = 1u32.to_be_bytes().to_vec();
    pair.extend([0, 0, 0, 1, b'x', 0, 0x40, 0, 0]);
    pair.resize(4 << 20, b'y');
    let block = client.headers.deflate(&pair);
    client.send(&client::syn_stream(1, false, &block)).await;
    client.expect_go_away(0).await;
}

#[tokio::test]
async fn a_stream_that_is_not_read_holds_its_client_and_little_else() {
    let mut client = start(4096);
    let stream = client.open(1).await;
    let content = vec![7; 16 << 10];
    let mut sent = 0usize;
    // Until nothing moves any more.
    while tokio::time::timeout(
        Duration::from_millis(500),
        client.io.write_all(&client::data(1, false, &content)),
    )
    .await
    .is_ok()
    {
        sent += content.len();
        assert!(sent < 1 << 20, "nothing bounds what is held");
    }
    // What was on its way is broken off; what came whole is there.
    let mut read = 0;
    while read < sent {
        read += stream.read().await.unwrap().len();
    }
}

/// What came with the bytes that nobody reads is answered all the same.
#[tokio::test]
async fn a_stream_that_is_not_read_holds_up_no_answer() {
    let mut client = start(1 << 20);
    let stream = client.open(1).await;
    // Reads grow with what comes.
    for _ in 0..32 {
        client.send(&client::data(1, false, &[7; 32 << 10])).await;
        let mut read = 0;
        while read < 32 << 10 {
            read += stream.read().await.unwrap().len();
        }
    }
    let frames = [frame::ping(9).to_vec(), client::data(1, false, &[7; 48 << 10])].concat();
    client.send(&frames.repeat(2)).await;
    let mut answers = 0;
    while answers < 2 {
        // Windows are given back meanwhile.
        answers += usize::from(client.frame().await.unwrap() == frame::ping(9));
    }
}

#[tokio::test]
async fn answers_that_nobody_reads_are_bounded() {
    let mut client = start(4096);
    let pings = frame::ping(1).repeat(100);
    let mut sent = 0usize;
    while let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(500), client.io.write_all(&pings)).await
    {
        sent += pings.len();
        assert!(sent < 1 << 20, "nothing bounds the answers");
    }
    drop(client.io);
    assert!(tokio::time::timeout(LIMIT, client.streams.recv()).await.unwrap().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_end_in_a_session_that_ends(
        parts in prop::collection::vec(prop_oneof![
            prop::collection::vec(any::<u8>(), 0..80),
            (0u32..9, any::<bool>()).prop_map(|(id, fin)| client::data(id, fin, b"content")),
            (0u32..9, any::<bool>(), any::<bool>()).prop_map(|(id, fin, good)| {
                let block = header::client::Writer::new().write(&[("streamtype", if good { "data" } else { "?" })]);
                client::syn_stream(id, fin, &block)
            }),
            (0u32..9, any::<u32>()).prop_map(|(id, delta)| frame::window_update(id, delta)),
            (0u32..9).prop_map(|id| frame::rst_stream(id, Reset::Cancel)),
            (any::<u32>(), any::<u32>()).prop_map(|(key, value)| client::settings(key % 9, value)),
        ], 0..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut session = start(1 << 20);
            for part in &parts {
                if session.io.write_all(part).await.is_err() {
                    break;
                }
            }
            let (_, mut streams) = (drop(session.io), session.streams);
            while let Some(stream) = tokio::time::timeout(LIMIT, streams.recv()).await.unwrap() {
                while tokio::time::timeout(LIMIT, stream.read()).await.unwrap().is_some() {}
            }
        });
    }
}
