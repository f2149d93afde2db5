//! The keeper's one control thread: an epoll loop over connections, channels to children, pidfds
//! and what the log thread says. It never waits for anything else.
//!
//! ```text
//!            clone3            "parked"          "go"             end of channel
//!  Spawn ────────────▶ Preparing ─────▶ Parked ────────▶ Released ─────────────▶ Running
//!                          │               │                │                       │ pidfd
//!                          ▼ failed        ▼ released by    ▼ failed                ▼
//!                       (nothing)           nobody        Exited ◀──────────── log drained
//! ```

mod connection;
mod exit;
mod process;
mod reap;
mod request;
mod snapshot;
mod upgrade;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use self::connection::Connection;
use self::process::{Attached, Process};
use self::upgrade::Upgrade;
use super::log::LogHandle;
use super::plan::Bytes;
use super::protocol::{Reply, Setup};
use super::wire::Inbox;
use super::{init, setup};
use crate::sys::{self, prctl, seqpacket};

/// What an event of the epoll is about. The number of a process or connection is never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Listener,
    Log,
    Signals,
    Connection(u64),
    Pidfd(u64),
    Channel(u64),
    /// The pidfd of a helper whose final process has taken its place.
    Helper(u64),
}

impl Token {
    fn data(self) -> EventData {
        let (kind, number) = match self {
            Token::Listener => (0, 0),
            Token::Log => (1, 0),
            Token::Signals => (2, 0),
            Token::Connection(n) => (3, n),
            Token::Pidfd(n) => (4, n),
            Token::Channel(n) => (5, n),
            Token::Helper(n) => (6, n),
        };
        EventData::new_u64((number << 3) | kind)
    }

    fn of(data: u64) -> Option<Self> {
        let number = data >> 3;
        Some(match data & 7 {
            0 => Token::Listener,
            1 => Token::Log,
            2 => Token::Signals,
            3 => Token::Connection(number),
            4 => Token::Pidfd(number),
            5 => Token::Channel(number),
            6 => Token::Helper(number),
            _ => return None,
        })
    }
}

/// The descriptors that make a keeper, whoever started it.
struct Base {
    listener: OwnedFd,
    /// Held, never used: its lock says that a keeper lives.
    lock: OwnedFd,
    executable: OwnedFd,
    proc: OwnedFd,
}

struct Hold {
    about: Bytes,
    fds: Vec<Arc<OwnedFd>>,
}

pub struct Control {
    base: Base,
    epoll: OwnedFd,
    signals: OwnedFd,
    /// None only while an upgrade is tried.
    logs: Option<LogHandle>,
    /// Of processes and connections both.
    next_number: u64,
    processes: BTreeMap<u64, Process>,
    connections: BTreeMap<u64, Connection>,
    /// The connection that gets the events.
    daemon: Option<u64>,
    holds: BTreeMap<String, Hold>,
    /// Clients that were named before their process.
    early: Vec<(String, Attached)>,
    /// When to look at a process again.
    timers: BTreeSet<(Instant, u64)>,
    started_at: i64,
    upgrades: u32,
    upgrade: Option<Upgrade>,
}

/// The keeper's executable. Never returns unless it was started wrongly.
pub fn main() -> ! {
    let args: Vec<_> = std::env::args_os().collect();
    let result = match args.as_slice() {
        [name, ..] if name == init::NAME => init::run(),
        [_] => start(),
        [_, option, state] if option == upgrade::RESUME => upgrade::resume(state),
        _ => Err(io::Error::other("it is started by podwright, never by hand")),
    };
    if let Err(error) = result {
        eprintln!("podwright-keeper: {error}");
    }
    std::process::exit(2)
}

fn start() -> io::Result<()> {
    setup::harden()?;
    let socket = rustix::io::fcntl_dupfd_cloexec(crate::sys::fd::standard(0), 3)?;
    let mut inbox = Inbox::default();
    let incoming = loop {
        let mut poll = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, None))?;
        match inbox.receive(socket.as_fd()) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            other => break other?,
        }
    };
    let message: Setup = incoming.decode().map_err(io::Error::other)?;
    let mut fds = incoming.fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| io::Error::other("a descriptor is missing from the set-up"));
    let (listener, lock, executable) = (next()?, next()?, next()?);
    let cgroup_procs: Vec<_> = fds.take(usize::from(message.cgroup_procs)).collect();
    setup::isolate(&cgroup_procs)?;
    setup::forget_standard_input()?;
    drop(cgroup_procs);
    let base = Base { listener, lock, executable, proc: setup::private_proc()? };
    let mut control = Control::new(base, now(), 0)?;
    control.add_connection(socket, Inbox::default())?;
    control.serve()
}

/// Nanoseconds since the epoch.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64)
}

impl Control {
    fn new(base: Base, started_at: i64, upgrades: u32) -> io::Result<Self> {
        const SIGCHLD: u64 = 1 << (libc::SIGCHLD - 1);
        // Before the log thread starts, so that it inherits the mask.
        prctl::set_signal_mask(SIGCHLD)?;
        let control = Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            signals: prctl::signal_fd(SIGCHLD)?,
            logs: Some(LogHandle::start()?),
            next_number: 1,
            processes: BTreeMap::new(),
            connections: BTreeMap::new(),
            daemon: None,
            holds: BTreeMap::new(),
            early: Vec::new(),
            timers: BTreeSet::new(),
            started_at,
            upgrades,
            upgrade: None,
            base,
        };
        control.watch(control.base.listener.as_fd(), Token::Listener)?;
        control.watch(control.signals.as_fd(), Token::Signals)?;
        control.watch_logs()?;
        Ok(control)
    }

    fn watch(&self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, token.data(), EventFlags::IN)?)
    }

    /// Must precede the closing: an open file that others hold too stays in the epoll otherwise.
    fn unwatch(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    fn watch_logs(&self) -> io::Result<()> {
        match &self.logs {
            Some(logs) => self.watch(logs.event_fd(), Token::Log),
            None => Ok(()),
        }
    }

    fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    fn serve(mut self) -> io::Result<()> {
        // Little of what a start needs is needed again.
        sys::text::unmap();
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            let timeout = self.timeout();
            let room = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, room, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            for event in &events {
                if let Some(token) = Token::of(event.data.u64()) {
                    self.event(token, event.flags);
                }
            }
            self.fire_timers();
            if let Some(upgrade) = self.upgrade.take() {
                self.try_upgrade(upgrade);
            }
        }
    }

    /// Until the next thing to do that epoll does not know of. Never early: it would be looked at over
    /// and over.
    fn timeout(&self) -> Option<Timespec> {
        let (at, _) = self.timers.first()?;
        let left = at.saturating_duration_since(Instant::now());
        Some(Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) })
    }

    fn event(&mut self, token: Token, flags: EventFlags) {
        match token {
            Token::Listener => self.accept(),
            Token::Log => self.log_events(),
            Token::Signals => self.sweep(),
            Token::Connection(number) => self.connection_ready(number, flags),
            Token::Pidfd(number) => self.pidfd_ready(number),
            Token::Channel(number) => self.channel_ready(number),
            Token::Helper(number) => self.helper_ended(number),
        }
    }

    fn accept(&mut self) {
        while let Ok(socket) = seqpacket::accept(self.base.listener.as_fd()) {
            // Out of memory or descriptors: the peer sees its connection end.
            let _ = self.add_connection(socket, Inbox::default());
        }
    }

    fn fire_timers(&mut self) {
        let now = Instant::now();
        while let Some(&(at, number)) = self.timers.first() {
            if at > now {
                return;
            }
            self.timers.pop_first();
            self.timer(number, now);
        }
    }

    /// Tells the daemon, if there is one. False: nobody has heard it.
    fn tell_daemon(&mut self, message: &Reply) -> bool {
        let Some(daemon) = self.daemon else { return false };
        self.reply(daemon, 0, message, Vec::new());
        self.daemon.is_some()
    }
}
