//! What clients that are attached to a container see of its output: records on a SOCK_SEQPACKET
//! socket, one for each client, written by the log copier when bytes have left their pipe.
//!
//! ```text
//!  stream u8 (0 stdout, 1 stderr)   missed u64, little-endian   bytes…
//! ```
//!
//! `missed` counts bytes of the stream before these that there was no room for: a client that does
//! not read never holds up the container, its log, or another client. A record is there whole or not
//! at all, so that a keeper that dies half way breaks nothing.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::SendFlags;

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
}

/// The client is gone.
pub(super) struct Hungup;

impl Feed {
    pub fn new(key: u64, socket: OwnedFd, wants: [bool; 2]) -> Self {
        Self { key, socket, wants, missed: [0; 2] }
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

    /// Nothing more comes for now: tells what was missed, if there is room by now.
    pub fn settle(&mut self) -> Result<(), Hungup> {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if self.missed[stream as usize] > 0 {
                self.record(stream, &[])?;
            }
        }
        Ok(())
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
}
