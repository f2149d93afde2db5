//! A SPDY session, served: a task that reads its frames, and streams that others read and write.
//!
//! ```text
//!            SYN_STREAM, accepted        FIN                     FIN of ours
//!  (nothing) ───────────────────▶ Open ───────▶ half closed ───────────────────▶ (nothing)
//!                 │ refused         └── RST_STREAM, either way ──────────────────▶
//!                 ▼ RST_STREAM
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, mpsc};

use super::frame::{self, Broken, Frame, Parser, Reset};
use super::header::{self, Headers};
use super::window::{self, Receive};
use crate::stream::chunk::Chunk;
use crate::stream::queue::Queue;
use crate::stream::websocket::tunnel::Source;
use crate::stream::wire::{Gone, Wire};

/// Of one data frame that we send: its length has 24 bits.
const MAX_DATA: usize = (1 << 24) - 1;

/// Bytes of a session that wait to be read, in all its streams. Beyond, the client waits, as it does
/// where those of one stream are not read.
const MAX_HELD: i64 = 8 << 20;

/// What Kubernetes' streams say of themselves, in whatever else their headers have.
const USED_HEADERS: &[&str] = &["streamtype", "port", "requestid"];

/// What a session's owner says to a stream that the client wants, beside so many that are open.
pub type Accept = Box<dyn FnMut(&Headers, usize) -> Result<(), Refusal> + Send>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It makes no sense.
    Invalid,
    /// There are enough.
    TooMany,
}

struct Shared {
    wire: Arc<Wire>,
    state: Mutex<State>,
    /// A window grew.
    granted: Notify,
    /// Bytes were taken that the reader may wait for.
    taken: Notify,
}

struct State {
    streams: HashMap<u32, Arc<Open>>,
    /// The highest ID that the client has used.
    last: u32,
    replied: bool,
    initial_window: Option<u32>,
    window: window::Send,
    receive: Receive,
}

struct Open {
    inbound: Queue,
    state: Mutex<OpenState>,
}

struct OpenState {
    window: window::Send,
    receive: Receive,
    /// The client has sent its FIN.
    ended: bool,
    /// We have sent ours.
    finished: bool,
    /// By either side: it takes nothing more.
    reset: bool,
}

/// A stream of the client's, and its end here. Dropped, it is reset unless both sides have finished.
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    open: Arc<Open>,
    shared: Arc<Shared>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads frames until the session ends, by either side. New streams go to `streams`.
pub async fn serve(wire: Arc<Wire>, mut source: Source, mut accept: Accept, streams: mpsc::Sender<Stream>) {
    let state = State {
        streams: HashMap::new(),
        last: 0,
        replied: false,
        initial_window: None,
        window: window::Send::new(None),
        receive: Receive::new(),
    };
    let (granted, taken) = (Notify::new(), Notify::new());
    let shared = Arc::new(Shared { wire, state: Mutex::new(state), granted, taken });
    let mut reader = Reader { shared: Arc::clone(&shared), headers: header::Reader::new(), streams };
    let broken = reader.run(&mut source, &mut accept).await;
    if let Err(Broken(reason)) = broken {
        tracing::debug!(reason, "a SPDY session ends");
        let last = lock(&shared.state).last;
        let _ = shared.wire.put_control(&frame::go_away(last));
        let _ = shared.wire.flush_control().await;
    }
    shared.end();
}

struct Reader {
    shared: Arc<Shared>,
    headers: header::Reader,
    streams: mpsc::Sender<Stream>,
}

impl Reader {
    async fn run(&mut self, source: &mut Source, accept: &mut Accept) -> Result<(), Broken> {
        let mut parser = Parser::default();
        let mut buffer = BytesMut::new();
        loop {
            let wire = Arc::clone(&self.shared.wire);
            let read = tokio::select! {
                biased;
                read = source.read(&mut buffer) => read,
                () = wire.gone() => return Ok(()),
            };
            if !matches!(read, Ok(1..)) {
                return Ok(());
            }
            self.shared.wire.touch();
            while let Some(frame) = parser.next(&mut buffer)? {
                self.frame(frame, accept).await?;
            }
            if self.shared.wire.flush_control().await.is_err() {
                return Ok(());
            }
        }
    }

    async fn frame(&mut self, frame: Frame, accept: &mut Accept) -> Result<(), Broken> {
        match frame {
            Frame::Data { stream, fin, part } => self.data(stream, fin, part).await,
            Frame::SynStream { stream, fin, block } => self.syn_stream(stream, fin, &block, accept).await?,
            Frame::Headers { stream, fin, block } => {
                self.headers.read(&block)?;
                if fin && let Some(open) = self.shared.find(stream) {
                    open.end();
                }
            }
            // We open none.
            Frame::SynReply { stream, .. } => self.shared.reset(stream, Reset::InvalidStream),
            Frame::RstStream { stream } => {
                if let Some(open) = lock(&self.shared.state).streams.remove(&stream) {
                    open.abort();
                    self.shared.granted.notify_waiters();
                }
            }
            Frame::Settings { initial_window: Some(window) } => self.shared.set_initial_window(window)?,
            // One of ours comes back; clients have odd ones.
            Frame::Ping { id } if id % 2 == 1 => self.shared.put(&frame::ping(id)),
            Frame::WindowUpdate { stream, delta } => self.shared.grant(stream, delta)?,
            Frame::GoAway | Frame::Ping { .. } | Frame::Settings { .. } => {}
        }
        Ok(())
    }

    async fn syn_stream(
        &mut self,
        id: u32,
        fin: bool,
        block: &[u8],
        accept: &mut Accept,
    ) -> Result<(), Broken> {
        // Whatever becomes of the stream: the next block builds on this one.
        let headers = self.headers.read(block)?;
        let open = {
            let mut state = lock(&self.shared.state);
            if id.is_multiple_of(2) {
                return Err(Broken("a stream whose ID is not a client's"));
            }
            if state.streams.contains_key(&id) {
                drop(state);
                self.shared.reset(id, Reset::ProtocolError);
                return Ok(());
            }
            if id <= state.last {
                return Err(Broken("a stream whose ID is not above the last one's"));
            }
            state.last = id;
            let refusal = match accept(&headers, state.streams.len()) {
                Ok(()) => None,
                Err(Refusal::Invalid) => Some(Reset::ProtocolError),
                Err(Refusal::TooMany) => Some(Reset::RefusedStream),
            };
            if let Some(reason) = refusal {
                drop(state);
                self.shared.reset(id, reason);
                return Ok(());
            }
            let open = Arc::new(Open {
                inbound: Queue::default(),
                state: Mutex::new(OpenState {
                    window: window::Send::new(state.initial_window),
                    receive: Receive::new(),
                    ended: false,
                    finished: false,
                    reset: false,
                }),
            });
            state.streams.insert(id, Arc::clone(&open));
            let first = !std::mem::replace(&mut state.replied, true);
            self.shared.put(&frame::syn_reply(id, &header::empty_block(first)));
            open
        };
        if fin {
            open.end();
        }
        let headers = headers.only(USED_HEADERS);
        let stream = Stream { id, headers, open, shared: Arc::clone(&self.shared) };
        // Nobody takes it: dropped, it is reset.
        let _ = self.streams.send(stream).await;
        Ok(())
    }

    async fn data(&mut self, id: u32, fin: bool, part: Bytes) {
        let Some(open) = self.shared.find(id) else {
            // Of a stream that has ended it may have been on its way.
            if id > lock(&self.shared.state).last || id.is_multiple_of(2) {
                self.shared.reset(id, Reset::InvalidStream);
            }
            return self.shared.drop_bytes(part.len());
        };
        {
            let mut state = lock(&open.state);
            if state.ended {
                drop(state);
                lock(&self.shared.state).streams.remove(&id);
                self.shared.reset(id, Reset::StreamAlreadyClosed);
                open.abort();
                self.shared.granted.notify_waiters();
                return self.shared.drop_bytes(part.len());
            }
            state.receive.received(part.len());
            lock(&self.shared.state).receive.received(part.len());
        }
        let wire = Arc::clone(&self.shared.wire);
        let push = async {
            self.shared.room_to_hold().await;
            open.inbound.push(part).await
        };
        tokio::pin!(push);
        if let Poll::Ready(dropped) = futures_util::poll!(push.as_mut()) {
            return self.taken(id, fin, &open, dropped);
        }
        // What is answered to the frames before must not wait for who does not read its stream.
        if wire.has_control() {
            self.shared.flush_soon();
        }
        let dropped = tokio::select! {
            biased;
            dropped = &mut push => dropped,
            () = wire.gone() => return,
            () = wire.hung_up() => return wire.go(),
        };
        self.taken(id, fin, &open, dropped);
    }

    /// The bytes of a frame are where their stream is read from; so many of them were dropped.
    fn taken(&self, id: u32, fin: bool, open: &Open, dropped: usize) {
        self.shared.give_back(id, open, dropped);
        if fin {
            open.end();
            self.shared.forget_if_over(id, open);
        }
    }
}

impl Open {
    fn end(&self) {
        lock(&self.state).ended = true;
        self.inbound.end();
    }

    fn abort(&self) {
        {
            let mut state = lock(&self.state);
            (state.reset, state.ended) = (true, true);
        }
        self.inbound.end();
    }
}

impl Shared {
    fn find(&self, id: u32) -> Option<Arc<Open>> {
        lock(&self.state).streams.get(&id).cloned()
    }

    fn put(&self, frame: &[u8]) {
        // Where it fails the reader sees that the client is gone.
        let _ = self.wire.put_control(frame);
    }

    fn reset(&self, id: u32, reason: Reset) {
        self.put(&frame::rst_stream(id, reason));
    }

    /// Has what was put sent, for who cannot wait for it.
    fn flush_soon(&self) {
        let wire = Arc::clone(&self.wire);
        tokio::spawn(async move {
            let _ = wire.flush_control().await;
        });
    }

    /// Bytes that came for no stream count in the session's window all the same.
    fn drop_bytes(&self, bytes: usize) {
        let later = self.wire.is_behind();
        let delta = {
            let mut state = lock(&self.state);
            state.receive.received(bytes);
            state.receive.consumed(bytes, later)
        };
        if let Some(delta) = delta {
            self.put(&frame::window_update(0, delta));
        }
    }

    async fn room_to_hold(&self) {
        loop {
            let taken = self.taken.notified();
            if lock(&self.state).receive.held() <= MAX_HELD {
                return;
            }
            taken.await;
        }
    }

    /// Bytes of a stream that were read, or dropped: there is room for others. Whether the client is
    /// to be told so.
    fn give_back(&self, id: u32, open: &Open, bytes: usize) -> bool {
        if bytes == 0 {
            return false;
        }
        // A client that does not read what other streams send it gets its updates in one, later.
        let later = self.wire.is_behind();
        let of_stream = {
            let mut state = lock(&open.state);
            let delta = state.receive.consumed(bytes, later);
            // Of no use to one that is over.
            delta.filter(|_| !state.ended && !state.reset)
        };
        let of_session = lock(&self.state).receive.consumed(bytes, later);
        self.taken.notify_one();
        for (id, delta) in [(id, of_stream), (0, of_session)] {
            if let Some(delta) = delta {
                self.put(&frame::window_update(id, delta));
            }
        }
        of_stream.or(of_session).is_some()
    }

    fn forget_if_over(&self, id: u32, open: &Open) {
        let over = {
            let state = lock(&open.state);
            state.ended && state.finished
        };
        if over {
            lock(&self.state).streams.remove(&id);
        }
    }

    fn set_initial_window(&self, window: u32) -> Result<(), Broken> {
        // A stream's lock is taken before the session's, nowhere the other way.
        let (former, streams): (_, Vec<_>) = {
            let mut state = lock(&self.state);
            let former = state.initial_window.replace(window).map_or(window::INITIAL, i64::from);
            (former, state.streams.values().cloned().collect())
        };
        for open in streams {
            let shifted = lock(&open.state).window.shift(i64::from(window) - former);
            shifted.map_err(|_| Broken("a window that overflows"))?;
        }
        self.granted.notify_waiters();
        Ok(())
    }

    fn grant(&self, id: u32, delta: u32) -> Result<(), Broken> {
        if id == 0 {
            lock(&self.state).window.grant(delta).map_err(|_| Broken("a window that overflows"))?;
        } else if let Some(open) = self.find(id) {
            let granted = lock(&open.state).window.grant(delta);
            if granted.is_err() {
                lock(&self.state).streams.remove(&id);
                self.reset(id, Reset::FlowControlError);
                open.abort();
            }
        }
        self.granted.notify_waiters();
        Ok(())
    }

    /// Ends what is still open.
    fn end(&self) {
        self.wire.go();
        let streams = std::mem::take(&mut lock(&self.state).streams);
        streams.values().for_each(|open| open.abort());
        self.granted.notify_waiters();
    }

    /// Takes room for up to `wanted` bytes from both windows.
    async fn room<'a>(&'a self, open: &'a Open, wanted: usize) -> Result<Room<'a>, Gone> {
        loop {
            let granted = self.granted.notified();
            {
                let mut stream = lock(&open.state);
                if stream.reset || self.wire.is_gone() {
                    return Err(Gone);
                }
                let of_stream = stream.window.take(wanted.min(MAX_DATA));
                let of_session = lock(&self.state).window.take(of_stream);
                stream.window.untake(of_stream - of_session);
                if of_session > 0 {
                    return Ok(Room { shared: self, open, bytes: of_session });
                }
            }
            granted.await;
        }
    }
}

/// Room that was taken for bytes that are not sent: dropped, it is there for others.
struct Room<'a> {
    shared: &'a Shared,
    open: &'a Open,
    bytes: usize,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            lock(&self.open.state).window.untake(self.bytes);
            lock(&self.shared.state).window.untake(self.bytes);
            self.shared.granted.notify_waiters();
        }
    }
}

impl Stream {
    /// What the client sends. None: it has finished, or the stream is over.
    pub async fn read(&self) -> Option<Bytes> {
        let chunk = self.open.inbound.pop().await?;
        if self.shared.give_back(self.id, &self.open, chunk.len()) {
            let _ = self.shared.wire.flush_control().await;
        }
        Some(chunk)
    }

    /// Nothing more of the client's is wanted; it is dropped as it comes.
    pub fn stop_reading(&self) {
        let dropped = self.open.inbound.close();
        if self.shared.give_back(self.id, &self.open, dropped) {
            self.shared.flush_soon();
        }
    }

    /// Not to be dropped half way, unless the session ends.
    pub async fn write(&self, mut chunk: Chunk) -> Result<(), Gone> {
        while !chunk.is_empty() {
            let mut room = self.shared.room(&self.open, chunk.len()).await?;
            let header = frame::data_header(self.id, false, room.bytes);
            let part = chunk.part(&header, room.bytes);
            self.shared.wire.send(part, || room.bytes = 0).await?;
        }
        Ok(())
    }

    /// The last of what we send. Dropped while it waits, it is sent all the same: by who writes next.
    pub async fn finish(&self) -> Result<(), Gone> {
        {
            let mut state = lock(&self.open.state);
            if state.reset || std::mem::replace(&mut state.finished, true) {
                return Ok(());
            }
        }
        self.shared.forget_if_over(self.id, &self.open);
        // All that came before it is written, or begun.
        self.shared.wire.put_control(&frame::data_header(self.id, true, 0))?;
        self.shared.wire.flush_control().await
    }

    /// Whether the client has reset it, or left.
    pub fn is_reset(&self) -> bool {
        lock(&self.open.state).reset
    }

    /// Waits until the client resets it, or leaves.
    pub async fn reset(&self) {
        loop {
            let changed = self.shared.granted.notified();
            if self.is_reset() || self.shared.wire.is_gone() {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let over = {
            let mut state = lock(&self.open.state);
            let over = state.reset || (state.ended && state.finished);
            state.reset = true;
            over
        };
        let dropped = self.open.inbound.close();
        let told = self.shared.give_back(self.id, &self.open, dropped);
        let known = lock(&self.shared.state).streams.remove(&self.id).is_some();
        if known && !over {
            self.shared.reset(self.id, Reset::Cancel);
        }
        if told || (known && !over) {
            self.shared.flush_soon();
        }
    }
}
