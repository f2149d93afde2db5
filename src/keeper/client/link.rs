//! A connection to a keeper: requests out, answers to whoever waits, events to the table.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::keeper::protocol::{Refusal, Reply, Request};
use crate::keeper::wire::{self, Inbox, Outbox};
use crate::sys::async_fd;
use crate::{Error, Result};

pub type Answer = (Reply, Vec<OwnedFd>);

pub struct Link {
    socket: AsyncFd<OwnedFd>,
    outbox: Mutex<Outbox>,
    /// Who waits for the answers to a message. None: the connection has ended.
    waiting: Mutex<Option<HashMap<u32, UnboundedSender<Answer>>>>,
    next: AtomicU32,
    has_output: tokio::sync::Notify,
    /// Why it has ended, where one of the two did not understand the other.
    fault: OnceLock<String>,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who waits for an answer must not wait for ever for one that is of another version.
fn not_understood(error: &impl std::fmt::Display) -> Reply {
    let text = format!("the keeper's answer is not understood, it may be of another version: {error}");
    Reply::Refused { reason: Refusal::Unknown, text }
}

impl Link {
    pub fn new(socket: OwnedFd) -> io::Result<Arc<Self>> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Arc::new(Self {
            socket: async_fd::watch(socket, Interest::READABLE | Interest::WRITABLE)?,
            outbox: Mutex::default(),
            waiting: Mutex::new(Some(HashMap::new())),
            // 0 is for events.
            next: AtomicU32::new(1),
            has_output: tokio::sync::Notify::new(),
            fault: OnceLock::new(),
        }))
    }

    fn lost(&self) -> Error {
        let lost = "the connection to the keeper was lost";
        match self.fault.get() {
            Some(fault) => Error::unavailable(format!("{lost}: {fault}")),
            None => Error::unavailable(lost),
        }
    }

    /// Sends a request. Its answers come through what is returned, which ends with the connection.
    pub fn send(self: &Arc<Self>, request: &Request, fds: Vec<Arc<OwnedFd>>) -> Result<Answers> {
        let number = self.next.fetch_add(1, Ordering::Relaxed).max(1);
        let packets = wire::encode(number, request, fds).map_err(|e| Error::io("asking the keeper", e))?;
        let (sender, answers) = unbounded_channel();
        lock(&self.waiting).as_mut().ok_or_else(|| self.lost())?.insert(number, sender);
        let answers = Answers { link: Arc::clone(self), number, answers };
        let mut outbox = lock(&self.outbox);
        outbox.push(packets);
        // At once where there is room, which is nearly always.
        outbox.flush(self.socket.get_ref().as_fd()).map_err(|_| self.lost())?;
        if !outbox.is_empty() {
            self.has_output.notify_one();
        }
        Ok(answers)
    }

    pub fn has_ended(&self) -> bool {
        lock(&self.waiting).is_none()
    }

    /// Moves messages until the connection ends.
    pub async fn run(&self, event: impl Fn(Reply)) {
        tokio::select! {
            () = self.read(event) => {}
            () = self.write() => {}
        }
        *lock(&self.waiting) = None;
    }

    async fn read(&self, event: impl Fn(Reply)) {
        let mut inbox = Inbox::default();
        loop {
            let Ok(mut ready) = self.socket.readable().await else { return };
            loop {
                match ready.try_io(|socket| inbox.receive(socket.as_fd())) {
                    Ok(Ok(incoming)) => {
                        let reply = match incoming.decode() {
                            Ok(reply) => reply,
                            // What we do not understand, a newer keeper says to nobody in particular.
                            Err(_) if incoming.number == 0 => continue,
                            Err(error) => not_understood(&error),
                        };
                        if let (0, Reply::Refused { text, .. }) = (incoming.number, &reply) {
                            // Of a packet, not of a request.
                            let _ = self.fault.set(text.clone());
                        } else if incoming.number == 0 {
                            event(reply);
                        } else if let Some(waiting) = lock(&self.waiting).as_ref()
                            && let Some(sender) = waiting.get(&incoming.number)
                        {
                            let _ = sender.send((reply, incoming.fds));
                        }
                    }
                    Ok(Err(error)) => {
                        if error.kind() == io::ErrorKind::InvalidData {
                            let _ = self.fault.set(format!("the keeper sent {error}"));
                        }
                        return;
                    }
                    Err(_would_block) => break,
                }
            }
            inbox.idle();
        }
    }

    async fn write(&self) {
        loop {
            self.has_output.notified().await;
            loop {
                let Ok(mut ready) = self.socket.writable().await else { return };
                let mut outbox = lock(&self.outbox);
                if outbox.flush(self.socket.get_ref().as_fd()).is_err() {
                    return;
                }
                if outbox.is_empty() {
                    break;
                }
                ready.clear_ready();
            }
        }
    }
}

/// The answers to one message.
pub struct Answers {
    link: Arc<Link>,
    number: u32,
    answers: UnboundedReceiver<Answer>,
}

impl Answers {
    /// UNAVAILABLE: the connection ended first.
    pub async fn next(&mut self) -> Result<Answer> {
        self.answers.recv().await.ok_or_else(|| self.link.lost())
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if let Some(waiting) = lock(&self.link.waiting).as_mut() {
            waiting.remove(&self.number);
        }
    }
}
