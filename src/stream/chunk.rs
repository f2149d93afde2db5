//! Output on its way from a process or a socket to a client: bytes behind room for the headers that
//! are put before them, so that a read's bytes leave in one write, without a copy.

use std::os::fd::AsFd;

/// Room for a SPDY header and that of the WebSocket message around it, or for a channel and the
/// header of its message.
const ROOM: usize = 24;

/// Of one read: what a pipe holds.
pub const CONTENT: usize = 64 << 10;

pub struct Chunk {
    bytes: Vec<u8>,
    start: usize,
}

impl Chunk {
    /// With what is read now, at most `limit` bytes. EOF is an empty chunk; EAGAIN, EIO and others
    /// are the caller's.
    pub fn read(fd: impl AsFd, limit: usize) -> rustix::io::Result<Self> {
        let mut bytes = Vec::with_capacity(ROOM + limit.min(CONTENT));
        bytes.resize(ROOM, 0);
        rustix::io::read(fd, rustix::buffer::spare_capacity(&mut bytes))?;
        Ok(Self { bytes, start: ROOM })
    }

    pub fn copied(content: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(ROOM + content.len());
        bytes.resize(ROOM, 0);
        bytes.extend_from_slice(content);
        Self { bytes, start: ROOM }
    }

    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Without its first bytes.
    pub fn skip(&mut self, count: usize) {
        self.start += count.min(self.len());
    }

    /// Puts a header before the content; what is there was sent before.
    fn prepend(&mut self, header: &[u8]) {
        if header.len() > self.start {
            // Never with the headers that there are; correct all the same.
            self.bytes.splice(0..self.start, std::iter::repeat_n(0, header.len()));
            self.start = header.len();
        }
        self.start -= header.len();
        self.bytes[self.start..self.start + header.len()].copy_from_slice(header);
    }

    /// A part of the content behind a header of its own, written over what was sent before it.
    pub fn part(&mut self, header: &[u8], length: usize) -> Part<'_> {
        let end = self.start + length.min(self.len());
        self.prepend(header);
        let sent = self.start;
        self.start = end;
        Part { bytes: &mut self.bytes[..end], start: sent }
    }
}

/// What is written at once: it can have one more header put before it.
pub struct Part<'a> {
    bytes: &'a mut [u8],
    start: usize,
}

impl Part<'_> {
    /// False: there is no room.
    pub fn prepend(&mut self, header: &[u8]) -> bool {
        let Some(start) = self.start.checked_sub(header.len()) else { return false };
        self.bytes[start..self.start].copy_from_slice(header);
        self.start = start;
        true
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_carry_their_headers() {
        let mut chunk = Chunk::copied(b"abcdef");
        let mut part = chunk.part(b"<4>", 4);
        assert!(part.prepend(b"ws"));
        assert_eq!(part.as_slice(), b"ws<4>abcd");
        assert!(!part.prepend(&[0; ROOM]));
        assert_eq!(chunk.as_slice(), b"ef");
        assert_eq!(chunk.part(b"<2>", 9).as_slice(), b"<2>ef");
        assert!(chunk.is_empty());
        assert_eq!(chunk.part(b"<fin>", 0).as_slice(), b"<fin>");
    }

    #[test]
    fn a_read_takes_what_is_there() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&write, b"hello").unwrap();
        assert_eq!(Chunk::read(&read, 3).unwrap().as_slice(), b"hel");
        assert_eq!(Chunk::read(&read, 300).unwrap().as_slice(), b"lo");
        drop(write);
        assert!(Chunk::read(&read, 300).unwrap().is_empty());
    }
}
