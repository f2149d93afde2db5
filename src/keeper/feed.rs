//! What clients that are attached to a container see of its output: records on a SOCK_SEQPACKET
//! socket, one for each client, written by the log copier when bytes have left their pipe.
//!
//! ```text
//!  stream u8 (0 stdout, 1 stderr)   missed u64, little-endian   bytes…
//! ```
//!
//! `missed` counts bytes of the stream before these that there was no room for: a client that does
//! not read never holds up the container, its log, or another client. It is told of its last gap as
//! soon as there is room, though the container says nothing more. A record is there whole or not at
//! all, so that a keeper that dies half way breaks nothing.
//!
//! The socket is shut down once the container has ended and all has been told.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown};

use super::note::Stream;
use crate::sys::seqpacket;

pub const HEADER: usize = 9;
/// Bytes of one record.
pub const RECORD: usize = 32 << 10;

/// The copier's end of one client.
pub(super) struct Feed {
    pub key: u64,
    socket: OwnedFd,
    /// Whether it wants stdout, and stderr.
    wants: [bool; 2],
    missed: [u64; 2],
    /// Where room is waited for.
    watch: Option<Arc<OwnedFd>>,
}

/// The client is gone.
pub(super) struct Hungup;

impl Feed {
    pub fn new(key: u64, socket: OwnedFd, wants: [bool; 2]) -> Self {
        Self { key, socket, wants, missed: [0; 2], watch: None }
    }

    /// Never waits.
    pub fn send(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Hungup> {
        if !self.wants[stream as usize] {
            return Ok(());
        }
        for record in bytes.chunks(RECORD) {
            self.record(stream, record)?;
        }
        Ok(())
    }

    /// Tells what was missed, if there is room by now.
    fn settle(&mut self) -> Result<(), Hungup> {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if self.missed[stream as usize] > 0 {
                self.record(stream, &[])?;
            }
        }
        Ok(())
    }

    fn has_gap(&self) -> bool {
        self.missed != [0; 2]
    }

    /// Has `epoll` name `key` when there is room, for as long as there is a gap to tell of.
    fn watch(&mut self, epoll: &Arc<OwnedFd>, key: u64) {
        if !self.has_gap() {
            return self.unwatch();
        }
        if self.watch.is_none() {
            // Edges only: a socket that has room and takes nothing would be named for ever.
            let flags = epoll::EventFlags::OUT | epoll::EventFlags::ET;
            let added = epoll::add(epoll, &self.socket, epoll::EventData::new_u64(key), flags);
            self.watch = added.is_ok().then(|| Arc::clone(epoll));
        }
    }

    /// Explicitly: the daemon holds a duplicate, so that closing it would not end the watch.
    fn unwatch(&mut self) {
        if let Some(epoll) = self.watch.take() {
            let _ = epoll::delete(epoll, &self.socket);
        }
    }

    fn record(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Hungup> {
        let missed = &mut self.missed[stream as usize];
        let mut header = [0; HEADER];
        header[0] = stream as u8;
        header[1..].copy_from_slice(&missed.to_le_bytes());
        let parts = [IoSlice::new(&header), IoSlice::new(bytes)];
        match seqpacket::send(self.socket.as_fd(), &parts, &[], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(()) => *missed = 0,
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(Hungup),
            // No room, or no memory.
            Err(_) => *missed += bytes.len() as u64,
        }
        Ok(())
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.unwatch();
    }
}

/// The clients of one container.
pub(super) struct Feeds {
    list: Vec<Feed>,
    epoll: Arc<OwnedFd>,
    /// What epoll is to name when one of them has room.
    key: u64,
    /// The container has ended.
    ended: bool,
}

impl Feeds {
    pub fn new(list: Vec<Feed>, epoll: &Arc<OwnedFd>, key: u64) -> Self {
        Self { list, epoll: Arc::clone(epoll), key, ended: false }
    }

    pub fn push(&mut self, feed: Feed) {
        self.list.push(feed);
        self.settle();
    }

    pub fn remove(&mut self, key: u64) {
        self.list.retain(|feed| feed.key != key);
    }

    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// Never waits.
    pub fn send(&mut self, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.list.retain_mut(|feed| {
            let sent = feed.send(stream, bytes);
            feed.watch(&self.epoll, self.key);
            sent.is_ok()
        });
    }

    /// Tells who has room of what it missed; who knows all, at the end, is told that nothing more comes.
    pub fn settle(&mut self) {
        self.list.retain_mut(|feed| {
            let settled = feed.settle();
            feed.watch(&self.epoll, self.key);
            let over = self.ended && !feed.has_gap();
            if over {
                let _ = rustix::net::shutdown(&feed.socket, Shutdown::Write);
            }
            settled.is_ok() && !over
        });
    }

    /// The container has ended, and this was the last of its output.
    pub fn end(&mut self) {
        self.ended = true;
        self.settle();
    }
}

/// A record's stream and how many bytes before it were missed. None: it is none.
pub fn header(record: &[u8]) -> Option<(Stream, u64)> {
    let (head, _) = record.split_first_chunk::<HEADER>()?;
    let (stream, missed) = head.split_first()?;
    let stream = match stream {
        0 => Stream::Stdout,
        1 => Stream::Stderr,
        _ => return None,
    };
    Some((stream, u64::from_le_bytes(missed.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_does_not_read_misses_and_is_told() {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let mut feed = Feed::new(1, theirs, [true, false]);
        let block = vec![7; 100_000];
        let mut sent = 0u64;
        while feed.missed[0] == 0 {
            assert!(feed.send(Stream::Stdout, &block).is_ok());
            sent += 100_000;
            assert!(sent < 100_000_000, "there is no bound");
        }
        assert!(feed.send(Stream::Stderr, &block).is_ok());
        let (mut came, mut missed) = (0, 0);
        let mut buffer = vec![0; HEADER + RECORD];
        let mut read = |feed: &mut Feed| {
            while let Ok((length, _)) =
                rustix::net::recv(&ours, &mut buffer, rustix::net::RecvFlags::DONTWAIT)
            {
                let (stream, gap) = header(&buffer[..length]).unwrap();
                assert_eq!(stream, Stream::Stdout);
                came += (length - HEADER) as u64;
                missed += gap;
            }
            assert!(feed.settle().is_ok());
        };
        read(&mut feed);
        read(&mut feed);
        assert_eq!(came + missed, sent);
        assert!(missed > 0);
        drop(ours);
        assert!(feed.send(Stream::Stdout, b"x").is_err());
    }

    /// Bytes that came, bytes that were missed, and whether the end was there.
    fn read_all(socket: &OwnedFd) -> (u64, u64, bool) {
        let (mut came, mut missed) = (0, 0);
        let mut buffer = vec![0; HEADER + RECORD];
        loop {
            match rustix::net::recv(socket, &mut buffer, rustix::net::RecvFlags::DONTWAIT) {
                Ok((0, _)) => return (came, missed, true),
                Ok((length, _)) => {
                    missed += header(&buffer[..length]).unwrap().1;
                    came += (length - HEADER) as u64;
                }
                Err(_) => return (came, missed, false),
            }
        }
    }

    #[test]
    fn room_is_heard_of_once_and_the_end_comes_last() {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let named = || {
            let mut events = [std::mem::MaybeUninit::uninit(); 4];
            let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            let (events, _) = epoll::wait(&epoll, &mut events, Some(&none)).unwrap();
            events.iter().map(|event| event.data.u64()).collect::<Vec<_>>()
        };
        let pairs = [seqpacket::pair().unwrap(), seqpacket::pair().unwrap()];
        let [(slow, one), (quick, two)] = pairs;
        let list = vec![Feed::new(1, one, [true; 2]), Feed::new(2, two, [true; 2])];
        let mut feeds = Feeds::new(list, &epoll, 7);
        let mut sent = 0;
        while !feeds.list[0].has_gap() {
            feeds.send(Stream::Stderr, &[7; 10_000]);
            sent += 10_000;
            assert_eq!(read_all(&quick), (10_000, 0, false));
        }
        assert_eq!(named(), [] as [u64; 0], "there is no room");
        let (came, missed, _) = read_all(&slow);
        assert_eq!((missed, named()), (0, vec![7]));
        feeds.settle();
        assert_eq!(read_all(&slow), (0, sent - came, false));
        assert_eq!(named(), [] as [u64; 0], "there is nothing to tell");
        // At the end who has read all is told so at once, who has not when there is room.
        while !feeds.list[0].has_gap() {
            feeds.send(Stream::Stdout, &[7; 10_000]);
            assert_eq!(read_all(&quick), (10_000, 0, false));
        }
        feeds.end();
        assert_eq!((read_all(&quick), feeds.list.len()), ((0, 0, true), 1));
        assert!(!read_all(&slow).2);
        assert_eq!(named(), [7]);
        feeds.settle();
        assert_eq!(read_all(&slow), (0, 10_000, true));
        // And who comes later at once.
        let (late, theirs) = seqpacket::pair().unwrap();
        feeds.push(Feed::new(3, theirs, [true; 2]));
        assert_eq!((read_all(&late), feeds.list.len()), ((0, 0, true), 0));
    }
}
