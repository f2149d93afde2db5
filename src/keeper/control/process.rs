//! A process that is looked after, from its clone to its program.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::PidfdFlags;

use super::{Control, Token, now};
use crate::keeper::child;
use crate::keeper::feed::Feed;
use crate::keeper::log::LogSource;
use crate::keeper::note::NotePage;
use crate::keeper::plan::Bytes;
use crate::keeper::protocol::{Exit, Phase, Reply, RoleKind};
use crate::keeper::report::Report;
use crate::sys::pidfd;

/// Whose message is to be answered.
#[derive(Debug, Clone, Copy)]
pub struct Waiter {
    pub connection: u64,
    pub message: u32,
}

pub enum Source {
    Pipes { stdout: Arc<OwnedFd>, stderr: Arc<OwnedFd> },
    Terminal { master: Arc<OwnedFd>, pipe_read: Arc<OwnedFd>, pipe_write: Arc<OwnedFd> },
}

impl Source {
    /// Duplicates for the log thread, which owns what it reads from.
    fn for_log(&self) -> io::Result<LogSource> {
        let dup = |fd: &Arc<OwnedFd>| fd.as_ref().try_clone();
        Ok(match self {
            Source::Pipes { stdout, stderr } => {
                LogSource::Pipes { stdout: dup(stdout)?, stderr: dup(stderr)? }
            }
            Source::Terminal { master, pipe_read, pipe_write } => LogSource::Terminal {
                master: dup(master)?,
                pipe_r: dup(pipe_read)?,
                pipe_w: dup(pipe_write)?,
            },
        })
    }
}

pub struct Output {
    pub note_fd: Arc<OwnedFd>,
    pub note: Arc<NotePage>,
    pub source: Source,
    pub log: Option<Arc<OwnedFd>>,
    /// Becomes `log` when the copier says that it uses it.
    pub new_log: Option<Arc<OwnedFd>>,
    pub stdin: Option<Arc<OwnedFd>>,
    pub attached: Vec<Attached>,
    /// What the copier cannot write, as an errno.
    pub stalled: Option<i32>,
}

/// A client that sees the output: the keeper's end of its socket.
pub struct Attached {
    pub key: u64,
    /// Whether it wants stdout, and stderr.
    pub wants: [bool; 2],
    pub socket: Arc<OwnedFd>,
}

impl Attached {
    /// For the log thread, which owns what it writes to.
    fn for_log(&self) -> io::Result<Feed> {
        Ok(Feed::new(self.key, self.socket.as_ref().try_clone()?, self.wants))
    }
}

/// What a process is asked to have done with it.
#[derive(Default)]
pub struct Waiters {
    /// Spawn, until it is parked or runs; Start.
    pub run: Option<Waiter>,
    pub reopen: Vec<Waiter>,
    pub forget: Option<Waiter>,
}

pub struct Process {
    pub id: String,
    pub role: RoleKind,
    /// argv[0].
    pub name: Bytes,
    pub pid: i32,
    pub pidfd: Arc<OwnedFd>,
    /// Into a PID namespace that exists.
    pub joins: bool,
    /// Ours to reap.
    pub child: bool,
    /// Of a helper that has made its final process and is about to end.
    pub helper: Option<Arc<OwnedFd>>,
    pub phase: Phase,
    pub channel: Option<Arc<OwnedFd>>,
    pub report: Option<(Arc<OwnedFd>, Report)>,
    pub output: Option<Output>,
    pub exit: Option<Exit>,
    /// The log has what there was at the exit, or took too long for it.
    pub drained: bool,
    /// Since when the exit of somebody else's child is awaited.
    pub collecting: Option<std::time::Instant>,
    pub forgotten: bool,
    pub waiters: Waiters,
}

impl Process {
    /// A child of ours that has just been made.
    pub fn cloned(id: String, role: RoleKind, name: Bytes, phase: Phase, child: (i32, OwnedFd)) -> Self {
        let (pid, pidfd) = child;
        Self {
            id,
            role,
            name,
            pid,
            pidfd: Arc::new(pidfd),
            joins: false,
            child: true,
            helper: None,
            phase,
            channel: None,
            report: None,
            output: None,
            exit: None,
            drained: false,
            collecting: None,
            forgotten: false,
            waiters: Waiters::default(),
        }
    }

    /// Nanoseconds since the epoch; zero: it never ran its program.
    pub fn started_at(&self) -> i64 {
        match self.phase {
            Phase::Running { started_at } | Phase::Exited { started_at, .. } => started_at,
            _ => 0,
        }
    }

    /// Whether a helper has made a process that somebody else had reaped before we could watch it.
    pub fn final_is_lost(&self) -> bool {
        let made = self.report.as_ref().is_some_and(|(_, report)| report.final_pid().is_some());
        self.joins && self.helper.is_none() && (made || self.started_at() > 0)
    }
}

impl Control {
    /// Takes a process into the table and watches it.
    pub(super) fn add_process(&mut self, process: Process) -> io::Result<u64> {
        let number = self.number();
        // One that has ended would be readable for ever.
        if process.exit.is_none() {
            self.watch(process.pidfd.as_fd(), Token::Pidfd(number))?;
        }
        if let Some(channel) = &process.channel {
            self.watch(channel.as_fd(), Token::Channel(number))?;
        }
        self.processes.insert(number, process);
        Ok(number)
    }

    pub(super) fn find(&self, id: &str) -> Option<u64> {
        self.processes.iter().find(|(_, p)| p.id == id).map(|(number, _)| *number)
    }

    /// Starts the copying of a container's output.
    pub(super) fn add_log(&mut self, number: u64) -> io::Result<()> {
        let Some(output) = self.processes.get(&number).and_then(|p| p.output.as_ref()) else {
            return Ok(());
        };
        let log = output.log.as_ref().map(|fd| fd.as_ref().try_clone()).transpose()?;
        let source = output.source.for_log()?;
        if let Some(logs) = &self.logs {
            // Before it, so that they miss nothing of what has waited.
            for attached in &output.attached {
                logs.attach(number, attached.for_log()?);
            }
            logs.add(number, Arc::clone(&output.note), source, log);
            if let Some(new) = &output.new_log {
                logs.reopen(number, new.as_ref().try_clone()?);
            }
        }
        Ok(())
    }

    /// Has a container's output shown to a client.
    pub(super) fn attach(&mut self, number: u64, attached: Attached) -> io::Result<bool> {
        let process = self.processes.get_mut(&number).filter(|process| !process.forgotten);
        let Some(output) = process.and_then(|process| process.output.as_mut()) else {
            return Ok(false);
        };
        // A daemon whose keeper died hands it over, and asks again.
        if output.attached.iter().any(|other| other.key == attached.key) {
            return Ok(true);
        }
        let feed = attached.for_log()?;
        output.attached.push(attached);
        if let Some(logs) = &self.logs {
            logs.attach(number, feed);
        }
        Ok(true)
    }

    /// Takes clients that a daemon named before their process, when it hands over what a dead keeper
    /// had held.
    pub(super) fn take_early(&mut self, number: u64) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        let Some(output) = &mut process.output else { return };
        let (ours, rest) = std::mem::take(&mut self.early).into_iter().partition(|(id, _)| *id == process.id);
        self.early = rest;
        output.attached.extend(Vec::into_iter(ours).map(|(_, attached)| attached));
    }

    pub(super) fn detach(&mut self, number: u64, key: u64) {
        if let Some(output) = self.processes.get_mut(&number).and_then(|p| p.output.as_mut()) {
            output.attached.retain(|attached| attached.key != key);
        }
        if let Some(logs) = &self.logs {
            logs.detach(number, key);
        }
    }

    /// Another daemon: the sessions of the one before are gone with it.
    pub(super) fn detach_all(&mut self) {
        self.early.clear();
        self.processes.values_mut().filter_map(|p| p.output.as_mut()).for_each(|o| o.attached.clear());
        if let Some(logs) = &self.logs {
            logs.detach_all();
        }
    }

    pub(super) fn channel_ready(&mut self, number: u64) {
        let mut buffer = [0u8; 16];
        loop {
            let Some(process) = self.processes.get(&number) else { return };
            let Some(channel) = &process.channel else { return };
            match rustix::net::recv(channel.as_fd(), &mut buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return self.channel_ended(number),
                Ok((n, _)) if &buffer[..n] == child::PARKED => self.parked(number),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => return self.channel_ended(number),
            }
        }
    }

    fn parked(&mut self, number: u64) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        if !matches!(process.phase, Phase::Preparing { .. }) {
            return;
        }
        process.phase = Phase::Parked;
        let (pid, pidfd) = (process.pid, Arc::clone(&process.pidfd));
        if let Some(waiter) = process.waiters.run.take() {
            self.reply(waiter.connection, waiter.message, &Reply::Spawned { pid }, vec![pidfd]);
        }
    }

    /// Every copy of the child's end is closed: by execve, or because it has ended.
    fn channel_ended(&mut self, number: u64) {
        self.close_channel(number);
        self.take_final(number);
        let Some(process) = self.processes.get(&number) else { return };
        let failed = process.report.as_ref().is_some_and(|(_, report)| report.failure().is_some());
        let made = !process.joins || process.helper.is_some() || process.final_is_lost();
        let starting = matches!(process.phase, Phase::Released | Phase::Preparing { parks: false });
        let Some(process) = self.processes.get(&number).filter(|_| starting && made && !failed) else {
            // What it was shows when it is reaped.
            return;
        };
        // A signal closes it as well.
        if self.has_executed(process) != Some(false) {
            self.executed(number);
        }
    }

    /// Its program runs, or has run.
    pub(super) fn executed(&mut self, number: u64) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        let started_at = now();
        process.phase = Phase::Running { started_at };
        process.report = None;
        if let Some(output) = &process.output {
            output.note.set_started_at(started_at);
        }
        let (pid, pidfd) = (process.pid, Arc::clone(&process.pidfd));
        if let Some(waiter) = process.waiters.run.take() {
            self.reply(waiter.connection, waiter.message, &Reply::Started { pid, started_at }, vec![pidfd]);
        }
    }

    pub(super) fn close_channel(&mut self, number: u64) {
        let channel = self.processes.get_mut(&number).and_then(|process| process.channel.take());
        if let Some(channel) = channel {
            self.unwatch(channel.as_ref());
        }
    }

    /// Puts the final process in its helper's place, once the helper has made it.
    pub(super) fn take_final(&mut self, number: u64) {
        let Some(process) = self.processes.get(&number) else { return };
        if !process.joins || process.helper.is_some() {
            return;
        }
        let Some(pid) = process.report.as_ref().and_then(|(_, report)| report.final_pid()) else { return };
        // Nobody but us reaps it, so that the number still means the same process. Were it not our
        // child, somebody would have tampered with the report.
        let Some(pidfd) = rustix::process::Pid::from_raw(pid)
            .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok())
            .filter(|fd| !process.child || pidfd::is_child(fd.as_fd()))
        else {
            return;
        };
        let data = Token::Helper(number).data();
        let _ = epoll::modify(&self.epoll, process.pidfd.as_ref(), data, EventFlags::IN);
        let _ = self.watch(pidfd.as_fd(), Token::Pidfd(number));
        let Some(process) = self.processes.get_mut(&number) else { return };
        process.helper = Some(std::mem::replace(&mut process.pidfd, Arc::new(pidfd)));
        process.pid = pid;
    }

    /// Watches a helper that a predecessor had not reaped yet.
    pub(super) fn watch_helper(&self, number: u64) -> io::Result<()> {
        match self.processes.get(&number).and_then(|process| process.helper.as_ref()) {
            Some(helper) => self.watch(helper.as_fd(), Token::Helper(number)),
            None => Ok(()),
        }
    }

    /// The helper of a final process has ended, as it should.
    pub(super) fn helper_ended(&mut self, number: u64) {
        let Some(process) = self.processes.get(&number) else { return };
        if let Some(helper) = &process.helper {
            let _ = pidfd::reap(helper.as_fd());
            self.unwatch(helper.as_ref());
        }
    }

    /// Releases a parked child. One that was released before reads no second word; where its end of the
    /// channel is closed, it runs its program or is about to be reaped, and either answers.
    pub(super) fn release(&mut self, number: u64, waiter: Waiter) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        process.phase = Phase::Released;
        process.waiters.run = Some(waiter);
        if let Some(channel) = &process.channel
            && rustix::net::send(channel, child::GO, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_err()
        {
            self.channel_ready(number);
        }
    }
}
