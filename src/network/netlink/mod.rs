//! Netlink, synchronously: a batch of requests goes out in one send, the answers are matched by
//! sequence number, and a refusal names the step that was refused.
//!
//! The encoding is our own ([`message`]), since nftables needs one anyway, and since a parser that
//! insists on knowing every attribute of a link fails on the kernel that adds one.

pub mod link;
pub mod message;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_sys::{Socket as RawSocket, SocketAddr};

use crate::error::{Result, Step};
use crate::{Error, error};

use message::{Batch, Message};

/// rtnetlink(7)
pub const ROUTE: isize = 0;
/// The subsystem of nftables.
pub const NETFILTER: isize = 12;

/// How long the kernel may take to answer. It answers while it handles the request, so this only
/// turns a lost answer (a full receive buffer) into an error.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
/// The kernel's dump messages are at most this long (NLMSG_GOODSIZE grows to 32 KiB).
const RECEIVE: usize = 64 << 10;

/// Why one request was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub step: String,
    pub errno: i32,
    /// The kernel's own words, where it has some (NLMSGERR_ATTR_MSG).
    pub hint: Option<String>,
}

impl From<Refusal> for Error {
    fn from(r: Refusal) -> Self {
        let cause = error::errno_text(r.errno);
        match r.hint {
            Some(hint) => Error::internal(format!("{}: {cause} ({hint})", r.step)),
            None => Error::internal(format!("{}: {cause}", r.step)),
        }
    }
}

/// A netlink socket in the network namespace of the thread that opened it, whichever thread uses
/// it afterwards (socket(2) binds to the namespace for life).
pub struct Socket {
    raw: RawSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub fn open(protocol: isize) -> Result<Self> {
        let opening = || "opening a netlink socket";
        let mut raw = RawSocket::new(protocol).step(opening)?;
        raw.bind_auto().step(opening)?;
        // Without these the answers are longer and mute; nothing else depends on them.
        let _ = raw.set_ext_ack(true);
        let _ = raw.set_cap_ack(true);
        rustix::net::sockopt::set_socket_timeout(&raw, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))
            .step(opening)?;
        Ok(Self { raw, sequence: 0, buffer: Vec::with_capacity(RECEIVE) })
    }

    /// The index of the link called `name` in the socket's namespace. Does not wait for the
    /// kernel's RTNL lock, which the teardown of other namespaces can hold for milliseconds.
    pub fn link_index(&self, name: &str) -> Option<u32> {
        rustix::net::netdevice::name_to_index(self.raw.as_fd(), name).ok()
    }

    /// Sends all requests at once and waits for all answers. `Err(Ok(refusal))` is the first one
    /// that was refused; on rtnetlink the others were carried out all the same.
    pub fn send(&mut self, batch: Batch) -> Result<(), Result<Refusal>> {
        let last = self.sequence.wrapping_add(u32::try_from(batch.count()).unwrap_or(u32::MAX));
        let first = self.sequence.wrapping_add(1);
        self.sequence = last;
        let (bytes, steps) = batch.finish(first);
        let mut waiting = steps.iter().filter(|s| s.acknowledged).count();
        self.transmit(&bytes).map_err(Err)?;
        let mut refused: Option<(usize, Refusal)> = None;
        while waiting > 0 {
            self.receive().map_err(Err)?;
            for message in message::messages(&self.buffer) {
                let at = message.sequence.wrapping_sub(first) as usize;
                let Some((answer, step)) = message.error().zip(steps.get(at)) else { continue };
                waiting -= usize::from(step.acknowledged && waiting > 0);
                if answer.errno != 0 && refused.as_ref().is_none_or(|(i, _)| at < *i) {
                    let refusal = Refusal { step: step.text.clone(), errno: answer.errno, hint: answer.hint };
                    refused = Some((at, refusal));
                }
                // An unacknowledged request only answers to say that the whole batch is void.
                if answer.errno != 0 && !step.acknowledged {
                    waiting = 0;
                }
            }
        }
        refused.map_or(Ok(()), |(_, refusal)| Err(Ok(refusal)))
    }

    /// [`send`](Self::send) where no refusal is expected.
    pub fn call(&mut self, batch: Batch) -> Result<()> {
        self.send(batch).map_err(|e| e.map_or_else(|e| e, Error::from))
    }

    /// Sends one request without an acknowledgement and hands every message of the answer to
    /// `each`: one for a get, many and a final "done" for a dump.
    pub fn query(&mut self, batch: Batch, dump: bool, mut each: impl FnMut(&Message)) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let (bytes, steps) = batch.finish(sequence);
        self.transmit(&bytes)?;
        loop {
            self.receive()?;
            for message in message::messages(&self.buffer) {
                if message.sequence != sequence {
                    continue;
                }
                if message.is_done() {
                    return Ok(());
                }
                if let Some(answer) = message.error() {
                    let step = steps.first().map(|s| s.text.clone()).unwrap_or_default();
                    return Err(Refusal { step, errno: answer.errno, hint: answer.hint }.into());
                }
                each(&message);
                if !dump {
                    return Ok(());
                }
            }
        }
    }

    fn transmit(&self, bytes: &[u8]) -> Result<()> {
        let kernel = SocketAddr::new(0, 0);
        self.raw.send_to(bytes, &kernel, 0).step(|| "sending a netlink request")?;
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        self.buffer.clear();
        loop {
            match self.raw.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("waiting for a netlink answer", e)),
            }
        }
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Socket({})", self.raw.as_raw_fd())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.raw.as_fd()
    }
}
