//! Messages as packets of a SOCK_SEQPACKET socket.
//!
//! ```text
//!  0  kind u8   Inline: the body follows; Memfd: it is in the packet's first descriptor;
//!               MoreFds: no body, descriptors that go before those of the next packet
//!  1  reserved u8
//!  2  fds u16   descriptors of this packet
//!  4  number u32  of the message; answers repeat it
//!  8  length u32  of the body
//! 12  the body (postcard)
//! ```
//!
//! The kernel bounds a packet by the send buffer and to 253 descriptors: large bodies travel in a
//! sealed memfd, many descriptors in parts.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sys::seqpacket;

const HEADER: usize = 12;
/// Bodies up to here travel in the packet.
const INLINE: usize = 32 << 10;
/// What a receive buffer must hold.
const PACKET: usize = HEADER + INLINE;
const FDS_PER_PACKET: usize = 200;
/// A plan with the longest argument and environment that execve takes stays well below.
const MAX_BODY: usize = 64 << 20;
const MAX_FDS: usize = 16 << 10;

const KIND_INLINE: u8 = 0;
const KIND_MEMFD: u8 = 1;
const KIND_MORE_FDS: u8 = 2;

/// One packet, ready to be sent.
pub struct Packet {
    header: [u8; HEADER],
    body: Vec<u8>,
    fds: Vec<Arc<OwnedFd>>,
}

/// A message that arrived.
pub struct Incoming {
    pub number: u32,
    body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Incoming {
    /// What a newer peer has appended is ignored: for answers, which only tell.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, postcard::Error> {
        postcard::from_bytes(&self.body)
    }

    /// As [`Self::decode`], of nothing but what we know: for what is to be done.
    pub fn decode_whole<T: DeserializeOwned>(&self) -> Result<T, postcard::Error> {
        match postcard::take_from_bytes(&self.body)? {
            (message, []) => Ok(message),
            _ => Err(postcard::Error::DeserializeBadEncoding),
        }
    }
}

fn header(kind: u8, fds: usize, number: u32, length: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = kind;
    header[2..4].copy_from_slice(&(fds as u16).to_le_bytes());
    header[4..8].copy_from_slice(&number.to_le_bytes());
    header[8..].copy_from_slice(&(length as u32).to_le_bytes());
    header
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// A memfd with `content` that nobody can change any more.
pub fn sealed(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut written = 0;
    while written < content.len() {
        written += rustix::io::retry_on_intr(|| rustix::io::write(&fd, &content[written..]))?;
    }
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&fd, seals)?;
    Ok(fd)
}

/// Reads a whole file from its start, wherever its offset is.
pub fn read_all(fd: BorrowedFd<'_>, length: usize) -> io::Result<Vec<u8>> {
    let mut content = vec![0; length];
    let mut done = 0;
    while done < length {
        match rustix::io::retry_on_intr(|| rustix::io::pread(fd, &mut content[done..], done as u64))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => done += n,
        }
    }
    Ok(content)
}

/// Encodes a message with its descriptors.
pub fn encode<T: Serialize>(number: u32, message: &T, mut fds: Vec<Arc<OwnedFd>>) -> io::Result<Vec<Packet>> {
    let mut body = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let length = body.len();
    if length > MAX_BODY || fds.len() > MAX_FDS {
        return Err(invalid("a message to or from the keeper is too large"));
    }
    let mut packets = Vec::new();
    while fds.len() >= FDS_PER_PACKET {
        let rest = fds.split_off(FDS_PER_PACKET);
        let part = std::mem::replace(&mut fds, rest);
        let header = header(KIND_MORE_FDS, part.len(), number, 0);
        packets.push(Packet { header, body: Vec::new(), fds: part });
    }
    let mut kind = KIND_INLINE;
    if length > INLINE {
        kind = KIND_MEMFD;
        fds.insert(0, Arc::new(sealed("podwright-message", &body)?));
        body = Vec::new();
    }
    packets.push(Packet { header: header(kind, fds.len(), number, length), body, fds });
    Ok(packets)
}

/// Packets on their way out of a socket that may be full.
#[derive(Default)]
pub struct Outbox {
    packets: VecDeque<Packet>,
}

impl Outbox {
    pub fn push(&mut self, packets: Vec<Packet>) {
        self.packets.extend(packets);
    }

    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// What waits: header and body as one, and the descriptors.
    pub fn unsent(&self) -> impl Iterator<Item = (Vec<u8>, &[Arc<OwnedFd>])> {
        self.packets.iter().map(|packet| ([&packet.header[..], &packet.body].concat(), &packet.fds[..]))
    }

    /// Goes on with what [`Self::unsent`] of a predecessor had told. None: that is no packet.
    pub fn push_unsent(&mut self, bytes: &[u8], fds: Vec<Arc<OwnedFd>>) -> Option<()> {
        let (header, body) = bytes.split_first_chunk::<HEADER>()?;
        self.packets.push_back(Packet { header: *header, body: body.to_vec(), fds });
        Some(())
    }

    /// Sends what the socket takes now. WouldBlock is no error: [`Self::is_empty`] tells.
    pub fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while let Some(packet) = self.packets.front() {
            match send(socket, packet, SendFlags::DONTWAIT) {
                Ok(()) => drop(self.packets.pop_front()),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

fn send(socket: BorrowedFd<'_>, packet: &Packet, flags: SendFlags) -> rustix::io::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = packet.fds.iter().map(|fd| fd.as_fd()).collect();
    seqpacket::send(socket, &[IoSlice::new(&packet.header), IoSlice::new(&packet.body)], &fds, flags)
}

/// Sends a whole message on a blocking socket.
pub fn send_all<T: Serialize>(
    socket: BorrowedFd<'_>,
    number: u32,
    message: &T,
    fds: Vec<Arc<OwnedFd>>,
) -> io::Result<()> {
    for packet in encode(number, message, fds)? {
        rustix::io::retry_on_intr(|| send(socket, &packet, SendFlags::empty()))?;
    }
    Ok(())
}

/// Puts messages together from packets.
pub struct Inbox {
    /// Descriptors of a message whose last packet has not come.
    pending: Vec<OwnedFd>,
    buffer: Vec<u8>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self::with_pending(Vec::new())
    }
}

impl Inbox {
    /// The inbox of a connection that a predecessor had begun to read.
    pub fn with_pending(pending: Vec<OwnedFd>) -> Self {
        Self { pending, buffer: Vec::new() }
    }

    pub fn pending(&self) -> &[OwnedFd] {
        &self.pending
    }

    /// The next whole message; WouldBlock: none is there; UnexpectedEof: the peer is gone; InvalidData:
    /// it does not speak our language.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<Incoming> {
        self.buffer.resize(PACKET, 0);
        loop {
            let mut fds = Vec::new();
            let length = match seqpacket::receive(socket, &mut self.buffer, &mut fds) {
                Ok(Some(length)) => length,
                Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(Errno::INTR) => continue,
                Err(Errno::MSGSIZE) => {
                    return Err(invalid(
                        "a packet that is too long, or more descriptors than there is room for",
                    ));
                }
                Err(e) => return Err(e.into()),
            };
            if let Some(incoming) = self.packet(length, fds)? {
                return Ok(incoming);
            }
        }
    }

    /// Gives the buffer's memory back, since most connections are silent most of the time.
    pub fn idle(&mut self) {
        self.buffer = Vec::new();
    }

    fn packet(&mut self, length: usize, mut fds: Vec<OwnedFd>) -> io::Result<Option<Incoming>> {
        let bytes = &self.buffer[..length];
        let (Some(header), true) = (bytes.first_chunk::<HEADER>(), length >= HEADER) else {
            return Err(invalid("a packet without a header"));
        };
        let announced = u16::from_le_bytes([header[2], header[3]]);
        let number = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let body_length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        if usize::from(announced) != fds.len() || self.pending.len() + fds.len() > MAX_FDS {
            return Err(invalid("a packet whose descriptors are not those it announces"));
        }
        let body = match header[0] {
            KIND_MORE_FDS => {
                self.pending.append(&mut fds);
                return Ok(None);
            }
            KIND_INLINE if bytes.len() == HEADER + body_length => bytes[HEADER..].to_vec(),
            KIND_MEMFD if body_length <= MAX_BODY && !fds.is_empty() => {
                read_all(fds.remove(0).as_fd(), body_length)
                    .map_err(|_| invalid("a packet whose body is not in its descriptor"))?
            }
            _ => return Err(invalid("a packet of unknown kind or wrong length")),
        };
        let mut all = std::mem::take(&mut self.pending);
        all.append(&mut fds);
        Ok(Some(Incoming { number, body, fds: all }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::seqpacket;

    fn round_trip(body: &[u8], fds: usize) -> Incoming {
        let (a, b) = seqpacket::pair().unwrap();
        let null = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        let sent = body.to_vec();
        let sender = std::thread::spawn(move || {
            send_all(a.as_fd(), 77, &sent, vec![null; fds]).unwrap();
            a
        });
        let mut inbox = Inbox::default();
        loop {
            match inbox.receive(b.as_fd()) {
                Ok(incoming) => {
                    drop(sender.join().unwrap());
                    assert_eq!(end(&mut inbox, b.as_fd()), io::ErrorKind::UnexpectedEof);
                    return incoming;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// What comes when the peer has closed its end, of which a child that another test forks has a
    /// duplicate until it executes.
    fn end(inbox: &mut Inbox, socket: BorrowedFd<'_>) -> io::ErrorKind {
        loop {
            match inbox.receive(socket).map(|_| ()).unwrap_err().kind() {
                io::ErrorKind::WouldBlock => std::thread::yield_now(),
                other => return other,
            }
        }
    }

    #[test]
    fn large_bodies_and_many_descriptors_arrive_whole() {
        for (length, fds) in [(0, 0), (5, 1), (INLINE - 8, 199), (INLINE + 1, 200), (3 << 20, 401)] {
            let body: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let incoming = round_trip(&body, fds);
            assert_eq!(incoming.number, 77);
            assert_eq!(incoming.fds.len(), fds);
            assert_eq!(incoming.decode::<Vec<u8>>().unwrap(), body);
        }
    }

    #[test]
    fn what_was_not_sent_goes_out_by_a_successor() {
        let (a, b) = seqpacket::pair().unwrap();
        let null = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        let mut first = Outbox::default();
        for (number, length) in [(1, 5), (2, INLINE + 1)] {
            first.push(encode(number, &vec![7u8; length], vec![Arc::clone(&null); 201]).unwrap());
        }
        let mut second = Outbox::default();
        for (bytes, fds) in first.unsent() {
            second.push_unsent(&bytes, fds.to_vec()).unwrap();
        }
        second.flush(a.as_fd()).unwrap();
        assert!(second.is_empty());
        let mut inbox = Inbox::default();
        for (number, length) in [(1, 5), (2, INLINE + 1)] {
            let incoming = inbox.receive(b.as_fd()).unwrap();
            assert_eq!((incoming.number, incoming.fds.len()), (number, 201));
            assert_eq!(incoming.decode::<Vec<u8>>().unwrap(), vec![7; length]);
        }
    }

    #[test]
    fn what_is_no_packet_of_ours_is_refused() {
        for bytes in [
            &b"x"[..],
            &[9; 12],
            &[0, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 1],
            &[0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            let (a, b) = seqpacket::pair().unwrap();
            seqpacket::send(a.as_fd(), &[IoSlice::new(bytes)], &[], SendFlags::empty()).unwrap();
            let error = Inbox::default().receive(b.as_fd()).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }
}
