//! A client's connection below its protocol: bytes out, one write at a time; bytes in, with a buffer
//! that is as large as what comes; and when both were last used.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::server::TlsStream;

use super::chunk::Part;
use super::websocket::frame;
use crate::sys::socket;

/// Control frames that wait for a client that does not read.
const MAX_CONTROL: usize = 64 << 10;
/// What a silent connection reads into, and a busy one.
const READ_FIRST: usize = 4 << 10;
const READ_LAST: usize = 128 << 10;
/// How long a busy one's buffer is kept when it falls silent.
const KEEP_BUFFER: Duration = Duration::from_secs(1);
/// How often a client whose bytes nobody takes is asked whether it is still there.
const HANG_UP_INTERVAL: Duration = Duration::from_secs(1);

pub type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;
pub type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;

/// What hyper serves requests on, and gives back.
pub enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Io {
    pub fn socket(&self) -> io::Result<OwnedFd> {
        let tcp = match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        };
        tcp.as_fd().try_clone_to_owned()
    }

    pub fn split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Self::Plain(tcp) => {
                let (read, write) = tcp.into_split();
                (Box::new(read), Box::new(write))
            }
            Self::Tls(tls) => {
                let (read, write) = tokio::io::split(tls);
                (Box::new(read), Box::new(write))
            }
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// The client is gone, or its connection is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// The writer, and what a write that was dropped half way has left to be written before all else: a
/// stream that ends must not tear the frame of another.
struct Outward {
    writer: WriteHalf,
    rest: Vec<u8>,
    /// Something of what was written may be in the writer yet: TLS has a buffer.
    held: bool,
}

/// A write under way.
struct Writing<'a, 'b> {
    out: &'a mut Outward,
    left: &'b [u8],
    begun: bool,
}

impl Drop for Writing<'_, '_> {
    fn drop(&mut self) {
        if self.begun {
            self.out.rest.extend_from_slice(self.left);
        }
    }
}

impl Outward {
    fn has_rest(&self) -> bool {
        self.held || !self.rest.is_empty()
    }

    async fn write_rest(&mut self) -> io::Result<()> {
        self.held |= !self.rest.is_empty();
        while !self.rest.is_empty() {
            match self.writer.write(&self.rest).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => drop(self.rest.drain(..written)),
            }
        }
        Ok(())
    }

    /// Writes all of it, or where it is dropped before it has `begun`, nothing.
    async fn write(&mut self, bytes: &[u8], begun: impl FnOnce()) -> io::Result<()> {
        self.write_rest().await?;
        let mut begun = Some(begun);
        let mut writing = Writing { out: self, left: bytes, begun: false };
        while !writing.left.is_empty() {
            match writing.out.writer.write(writing.left).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => writing.left = &writing.left[written..],
            }
            (writing.begun, writing.out.held) = (true, true);
            if let Some(begun) = begun.take() {
                begun();
            }
        }
        Ok(())
    }

    /// Writes what `take` gives, even if this is dropped: by who writes next.
    async fn write_taken(&mut self, take: impl FnOnce() -> Vec<u8>) -> io::Result<()> {
        self.write_rest().await?;
        self.rest = take();
        self.write_rest().await?;
        self.writer.flush().await?;
        self.held = false;
        Ok(())
    }
}

/// The way out of a connection, shared by all its streams.
pub struct Wire {
    out: tokio::sync::Mutex<Outward>,
    /// Whole frames that go between two writes.
    control: Mutex<Vec<u8>>,
    /// Every write is a WebSocket message: the connection is a tunnel.
    tunnel: bool,
    /// A duplicate of the connection's socket, to be asked whether the client hung up.
    socket: Option<OwnedFd>,
    gone: AtomicBool,
    went: Notify,
    /// All is written.
    shut: AtomicBool,
    since: Instant,
    /// Milliseconds after `since` at which something last moved.
    used: AtomicU64,
}

impl Wire {
    pub fn new(writer: WriteHalf, socket: Option<OwnedFd>, tunnel: bool) -> Arc<Self> {
        Arc::new(Self {
            out: tokio::sync::Mutex::new(Outward { writer, rest: Vec::new(), held: false }),
            control: Mutex::default(),
            tunnel,
            socket,
            gone: AtomicBool::new(false),
            went: Notify::new(),
            shut: AtomicBool::new(false),
            since: Instant::now(),
            used: AtomicU64::new(0),
        })
    }

    /// Writes a frame whole. Dropped before it has `begun`, nothing of it is written; after, whoever
    /// writes next ends it.
    pub async fn send(&self, mut frame: Part<'_>, begun: impl FnOnce()) -> Result<(), Gone> {
        if self.tunnel {
            let (header, length) = frame::header(frame::BINARY, frame.as_slice().len());
            // There is room: Chunk sees to it.
            if !frame.prepend(&header[..length]) {
                return self.fail();
            }
        }
        self.write(frame.as_slice(), begun).await
    }

    async fn write(&self, bytes: &[u8], begun: impl FnOnce()) -> Result<(), Gone> {
        {
            let mut out = self.out.lock().await;
            if self.is_gone() {
                return Err(Gone);
            }
            // Clients drop what comes on a stream before the answer to its opening.
            let control = self.take_control();
            out.rest.extend_from_slice(&control);
            let written = async {
                out.write(bytes, begun).await?;
                out.write_taken(|| self.take_control()).await
            };
            self.unless_gone(written).await?;
            self.touch();
        }
        // What was put there while nobody could get hold of the writer.
        self.flush_control().await
    }

    /// Has a short frame written soon, whoever writes at the time. Never waits: an answer to a frame
    /// must not keep the next one from being read. After [`Self::shut_down`] there is no answer.
    pub fn put_control(&self, frame: &[u8]) -> Result<(), Gone> {
        if self.is_shut() {
            return Ok(());
        }
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        if control.len() + frame.len() > MAX_CONTROL {
            drop(control);
            return self.fail();
        }
        if self.tunnel {
            let (header, length) = frame::header(frame::BINARY, frame.len());
            control.extend_from_slice(&header[..length]);
        }
        control.extend_from_slice(frame);
        Ok(())
    }

    /// A frame of the WebSocket itself, which is never inside the tunnel.
    pub fn put_raw(&self, bytes: &[u8]) -> Result<(), Gone> {
        if self.is_shut() {
            return Ok(());
        }
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        if control.len() + bytes.len() > MAX_CONTROL {
            drop(control);
            return self.fail();
        }
        control.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes what [`Self::put_control`] and writes that were dropped have left, unless somebody is
    /// writing, who will.
    pub async fn flush_control(&self) -> Result<(), Gone> {
        while !self.is_shut() {
            {
                let Ok(mut out) = self.out.try_lock() else { return Ok(()) };
                if out.has_rest() || self.has_control() {
                    if self.is_gone() {
                        return Err(Gone);
                    }
                    self.unless_gone(out.write_taken(|| self.take_control())).await?;
                }
            }
            // What was put there while nobody else could get hold of the writer.
            if !self.has_control() {
                break;
            }
        }
        Ok(())
    }

    pub fn has_control(&self) -> bool {
        !self.control.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// A client that does not read holds a write for ever: [`Self::go`] ends it.
    async fn unless_gone(&self, write: impl Future<Output = io::Result<()>>) -> Result<(), Gone> {
        tokio::select! {
            biased;
            written = write => written.or_else(|_| self.fail()),
            () = self.gone() => Err(Gone),
        }
    }

    /// Whether there is room for frames that can as well be put later.
    pub fn is_behind(&self) -> bool {
        self.control.lock().unwrap_or_else(PoisonError::into_inner).len() > MAX_CONTROL / 4
    }

    fn take_control(&self) -> Vec<u8> {
        std::mem::take(&mut *self.control.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says to the client that nothing more comes. It may go on to ping while it has not read all.
    pub async fn shut_down(&self) {
        let _ = self.flush_control().await;
        let mut out = self.out.lock().await;
        self.shut.store(true, Ordering::Release);
        let shut = async {
            // What was put while another wrote, who now finds nothing to do.
            out.write_taken(|| self.take_control()).await?;
            out.writer.shutdown().await
        };
        let _ = self.unless_gone(shut).await;
    }

    fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    /// Bytes on their way to the client. Zero where that is not known.
    pub fn unsent(&self) -> usize {
        self.socket.as_ref().and_then(|socket| socket::unsent(socket.as_fd()).ok()).unwrap_or_default()
    }

    /// Something came.
    pub fn touch(&self) {
        self.used.store(self.since.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Waits until nothing has moved for so long.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let used = Duration::from_millis(self.used.load(Ordering::Relaxed));
            let quiet = self.since.elapsed().saturating_sub(used);
            if quiet >= limit {
                return;
            }
            tokio::time::sleep(limit - quiet).await;
        }
    }

    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// From now on everything fails.
    pub fn go(&self) {
        self.gone.store(true, Ordering::Release);
        self.went.notify_waiters();
    }

    fn fail<T>(&self) -> Result<T, Gone> {
        self.go();
        Err(Gone)
    }

    /// Waits until the client is gone.
    pub async fn gone(&self) {
        loop {
            let went = self.went.notified();
            if self.is_gone() {
                return;
            }
            went.await;
        }
    }
}

impl Wire {
    /// Waits until the client has been gone for so long.
    pub async fn gone_for(&self, time: Duration) {
        self.gone().await;
        tokio::time::sleep(time).await;
    }

    /// Waits until the client has closed its end, whatever of its bytes is still unread: for who does
    /// not read at the moment.
    pub async fn hung_up(&self) {
        loop {
            tokio::time::sleep(HANG_UP_INTERVAL).await;
            let Some(socket) = &self.socket else { continue };
            let mut poll = [PollFd::new(socket, PollFlags::RDHUP)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            if matches!(rustix::event::poll(&mut poll, Some(&now)), Ok(1..)) {
                return;
            }
        }
    }
}

/// The way in: reads as much at once as came the last time.
pub struct Intake {
    reader: ReadHalf,
    /// What came behind the request.
    begun: Bytes,
    size: usize,
}

impl Intake {
    pub fn new(reader: ReadHalf, begun: Bytes) -> Self {
        Self { reader, begun, size: READ_FIRST }
    }

    /// Appends what comes. Zero: the end.
    pub async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        if !self.begun.is_empty() {
            buffer.extend_from_slice(&self.begun);
            return Ok(std::mem::take(&mut self.begun).len());
        }
        if buffer.is_empty() && buffer.capacity() < self.size {
            // The old memory goes, if it is not in use, and no byte of it is copied.
            *buffer = BytesMut::with_capacity(self.size);
        } else {
            buffer.reserve(self.size);
        }
        let room = buffer.capacity() - buffer.len();
        if buffer.is_empty() && self.size > READ_FIRST {
            match tokio::time::timeout(KEEP_BUFFER, self.reader.read_buf(buffer)).await {
                Ok(read) => return read.inspect(|read| self.fit(*read, room)),
                // Many silent clients must not hold what they once needed.
                Err(_) => {
                    self.size = READ_FIRST;
                    *buffer = BytesMut::with_capacity(self.size);
                }
            }
        }
        let room = buffer.capacity() - buffer.len();
        let read = self.reader.read_buf(buffer).await?;
        self.fit(read, room);
        Ok(read)
    }

    /// For the next read: of what size this one was.
    fn fit(&mut self, read: usize, room: usize) {
        if read == room {
            self.size = (self.size * 4).min(READ_LAST);
        } else if read < self.size / 8 {
            self.size = (self.size / 2).max(READ_FIRST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection whose client reads nothing, and which is full after a few bytes.
    fn unread() -> (Arc<Wire>, tokio::io::DuplexStream) {
        let (ours, client) = tokio::io::duplex(16);
        (Wire::new(Box::new(ours), None, false), client)
    }

    #[tokio::test]
    async fn a_write_that_nobody_reads_ends_with_the_connection() {
        let (wire, _client) = unread();
        let write = tokio::spawn({
            let wire = Arc::clone(&wire);
            async move { wire.write(&[0; 1000], || {}).await }
        });
        tokio::task::yield_now().await;
        assert!(!write.is_finished());
        wire.go();
        assert_eq!(write.await.unwrap(), Err(Gone));
    }

    #[tokio::test]
    async fn so_does_one_of_control_frames() {
        let (wire, _client) = unread();
        wire.put_control(&[0; 1000]).unwrap();
        let flush = tokio::spawn({
            let wire = Arc::clone(&wire);
            async move { wire.flush_control().await }
        });
        tokio::task::yield_now().await;
        assert!(!flush.is_finished());
        wire.go();
        assert_eq!(flush.await.unwrap(), Err(Gone));
    }

    /// Many silent sessions must not hold what they once needed.
    #[tokio::test]
    async fn a_connection_that_falls_silent_gives_its_buffer_back() {
        let (ours, mut client) = tokio::io::duplex(1 << 20);
        let mut intake = Intake::new(Box::new(ours), Bytes::new());
        let mut buffer = BytesMut::new();
        for _ in 0..4 {
            client.write_all(&[0; 300 << 10]).await.unwrap();
            let mut came = 0;
            while came < 300 << 10 {
                came += intake.read(&mut buffer).await.unwrap();
                buffer.clear();
            }
        }
        assert_eq!(intake.size, READ_LAST);
        let last = async {
            tokio::time::sleep(2 * KEEP_BUFFER).await;
            client.write_all(&[0]).await.unwrap();
        };
        let (read, ()) = tokio::join!(intake.read(&mut buffer), last);
        assert_eq!(read.unwrap(), 1);
        assert!(buffer.capacity() <= READ_FIRST && intake.size <= READ_FIRST, "{}", buffer.capacity());
    }

    /// A connection that is reset while the client does not read must not tear the frames of another.
    #[tokio::test]
    async fn a_write_that_is_dropped_half_way_is_finished_by_the_next() {
        let (wire, mut client) = unread();
        tokio::select! {
            biased;
            _ = wire.write(&[1; 100], || {}) => panic!("there is no room for it"),
            () = tokio::task::yield_now() => {}
        }
        wire.put_control(&[2; 50]).unwrap();
        tokio::select! {
            biased;
            _ = wire.flush_control() => panic!("there is no room for it"),
            () = tokio::task::yield_now() => {}
        }
        // Not begun: nothing of it is written.
        tokio::select! {
            biased;
            _ = wire.write(&[3; 10], || {}) => panic!("there is no room for it"),
            () = tokio::task::yield_now() => {}
        }
        let mut all = vec![0; 160];
        let (written, read) = tokio::join!(wire.write(&[4; 10], || {}), client.read_exact(&mut all));
        assert!(written.is_ok() && read.is_ok());
        assert!(all == [vec![1; 100], vec![2; 50], vec![4; 10]].concat(), "{all:?}");

        wire.put_control(&[5; 50]).unwrap();
        tokio::select! {
            biased;
            _ = wire.flush_control() => panic!("there is no room for it"),
            () = tokio::task::yield_now() => {}
        }
        let mut all = vec![0; 60];
        let (written, read) = tokio::join!(wire.write(&[6; 10], || {}), client.read_exact(&mut all));
        assert!(written.is_ok() && read.is_ok());
        assert!(all == [vec![5; 50], vec![6; 10]].concat(), "{all:?}");

        // And where nobody has anything to write, by who asks.
        tokio::select! {
            biased;
            _ = wire.write(&[7; 50], || {}) => panic!("there is no room for it"),
            () = tokio::task::yield_now() => {}
        }
        let mut all = vec![0; 50];
        let (written, read) = tokio::join!(wire.flush_control(), client.read_exact(&mut all));
        assert!(written.is_ok() && read.is_ok());
        assert!(all == [7; 50], "{all:?}");
    }
}
