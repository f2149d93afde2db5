//! Connections: the daemon's, and those of whoever only looks.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, EventFlags};

use super::{Control, Token};
use crate::keeper::protocol::{Refusal, Reply};
use crate::keeper::wire::{self, Inbox, Outbox};

/// Messages of one connection that are handled before the others have their turn.
const TURN: usize = 32;

pub struct Connection {
    pub socket: OwnedFd,
    pub inbox: Inbox,
    pub outbox: Outbox,
    /// Said Hello, and is no observer.
    pub daemon: bool,
    pub waits_for_room: bool,
}

impl Control {
    pub(super) fn add_connection(&mut self, socket: OwnedFd, inbox: Inbox) -> io::Result<u64> {
        let number = self.number();
        self.watch(socket.as_fd(), Token::Connection(number))?;
        let connection =
            Connection { socket, inbox, outbox: Outbox::default(), daemon: false, waits_for_room: false };
        self.connections.insert(number, connection);
        Ok(number)
    }

    pub(super) fn drop_connection(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number) {
            self.unwatch(&connection.socket);
        }
        if self.daemon == Some(number) {
            self.daemon = None;
        }
    }

    pub(super) fn connection_ready(&mut self, number: u64, flags: EventFlags) {
        if flags.contains(EventFlags::OUT) {
            self.flush(number);
        }
        for _ in 0..TURN {
            let Some(connection) = self.connections.get_mut(&number) else { return };
            match connection.inbox.receive(connection.socket.as_fd()) {
                Ok(incoming) => self.request(number, incoming),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    connection.inbox.idle();
                    return;
                }
                Err(e) => {
                    if e.kind() == io::ErrorKind::InvalidData {
                        // What the packets behind it belong to nobody can tell.
                        let text = format!("the keeper was sent {e}, and ends the connection");
                        self.refuse(number, 0, Refusal::Invalid, text);
                    }
                    return self.drop_connection(number);
                }
            }
        }
    }

    /// Answers message `message_number` of a connection, which may be gone by now.
    pub(super) fn reply(&mut self, to: u64, message_number: u32, reply: &Reply, fds: Vec<Arc<OwnedFd>>) {
        let Some(connection) = self.connections.get_mut(&to) else { return };
        match wire::encode(message_number, reply, fds) {
            Ok(packets) => {
                connection.outbox.push(packets);
                self.flush(to);
            }
            Err(_) => self.drop_connection(to),
        }
    }

    pub(super) fn refuse(&mut self, to: u64, message_number: u32, reason: Refusal, text: impl Into<String>) {
        self.reply(to, message_number, &Reply::Refused { reason, text: text.into() }, Vec::new());
    }

    pub(super) fn flush(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if connection.outbox.flush(connection.socket.as_fd()).is_err() {
            return self.drop_connection(number);
        }
        let waits = !connection.outbox.is_empty();
        if waits != connection.waits_for_room {
            connection.waits_for_room = waits;
            let flags = if waits { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            let data = Token::Connection(number).data();
            let _ = epoll::modify(&self.epoll, &connection.socket, data, flags);
        }
    }
}
