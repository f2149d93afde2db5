//! What is asked of the keeper.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::process::{Attached, Output, Process, Source, Waiter, Waiters};
use super::upgrade::Upgrade;
use super::{Control, Hold};
use crate::keeper::child;
use crate::keeper::note::NotePage;
use crate::keeper::plan::{Failure, Stage};
use crate::keeper::prepare::{Surroundings, prepare};
use crate::keeper::protocol::{
    Exit, OutputFds, Phase, Refusal, Reply, Request, SourceFds, SpawnRequest, VERSION,
};
use crate::keeper::report::Report;
use crate::keeper::wire::Incoming;
use crate::sys::clone::clone_child;

/// Why a request is not carried out.
pub type Refused = (Refusal, String);

/// The descriptors of a message, by their places.
pub struct Fds(pub Vec<Arc<OwnedFd>>);

impl Fds {
    pub fn get(&self, place: u16) -> Result<Arc<OwnedFd>, Refused> {
        let fd = self.0.get(usize::from(place)).cloned();
        fd.ok_or_else(|| (Refusal::Invalid, "a descriptor is missing from the message".to_owned()))
    }

    fn only(&self) -> Result<Arc<OwnedFd>, Refused> {
        self.get(0)
    }

    pub fn output(&self, output: &OutputFds) -> Result<Output, Refused> {
        let note_fd = self.get(output.note)?;
        let note = NotePage::map(note_fd.as_fd()).map_err(internal("mapping the container's note"))?;
        let source = match &output.source {
            SourceFds::Pipes { stdout, stderr } => {
                Source::Pipes { stdout: self.get(*stdout)?, stderr: self.get(*stderr)? }
            }
            SourceFds::Terminal { master, pipe_read, pipe_write } => Source::Terminal {
                master: self.get(*master)?,
                pipe_read: self.get(*pipe_read)?,
                pipe_write: self.get(*pipe_write)?,
            },
        };
        Ok(Output {
            note_fd,
            note: Arc::new(note),
            source,
            log: output.log.map(|fd| self.get(fd)).transpose()?,
            new_log: None,
            stdin: output.stdin.map(|fd| self.get(fd)).transpose()?,
            attached: Vec::new(),
            stalled: None,
        })
    }
}

pub fn internal<E: Into<std::io::Error>>(step: &'static str) -> impl Fn(E) -> Refused {
    move |e| (Refusal::Internal, crate::Error::io(step, e).message)
}

impl Control {
    pub(super) fn request(&mut self, from: u64, incoming: Incoming) {
        let message = incoming.number;
        let request: Request = match incoming.decode_whole() {
            Ok(request) => request,
            Err(_) => {
                let text = format!(
                    "this keeper ({}, protocol {VERSION}) does not know such a request",
                    env!("CARGO_PKG_VERSION")
                );
                return self.refuse(from, message, Refusal::Unknown, text);
            }
        };
        let fds = Fds(incoming.fds.into_iter().map(Arc::new).collect());
        let waiter = Waiter { connection: from, message };
        match self.carry_out(request, fds, waiter) {
            Ok(Some(reply)) => self.reply(from, message, &reply, Vec::new()),
            Ok(None) => {}
            Err((reason, text)) => self.refuse(from, message, reason, text),
        }
    }

    /// None: the answer was given, or comes later.
    fn carry_out(&mut self, request: Request, fds: Fds, waiter: Waiter) -> Result<Option<Reply>, Refused> {
        let looks_only = matches!(request, Request::Hello { .. } | Request::Status | Request::Upgrade);
        if !looks_only && self.daemon != Some(waiter.connection) {
            return Err((Refusal::Invalid, "only the daemon may ask for this".to_owned()));
        }
        match request {
            Request::Hello { version, observer } => return Ok(Some(self.hello(version, observer, waiter))),
            Request::Snapshot => self.snapshot(waiter),
            Request::Restore(record) => self.restore(record, &fds)?,
            Request::Spawn(spawn) => {
                self.spawn(*spawn, fds, waiter)?;
                return Ok(None);
            }
            Request::Start { id } => {
                self.start(&id, waiter)?;
                return Ok(None);
            }
            Request::Hold { key, about } => {
                self.holds.insert(key, Hold { about, fds: fds.0 });
            }
            Request::Release { key } => {
                self.holds.remove(&key);
            }
            Request::Reopen { id } => {
                self.reopen(&id, fds.only()?, waiter)?;
                return Ok(None);
            }
            Request::Forget { id } => return self.forget_by_id(&id, waiter),
            Request::Reaped { id, exit } => self.reaped(&id, exit),
            Request::Status => return Ok(Some(Reply::Status(self.status()))),
            Request::Attach { id, key, stdout, stderr } => {
                self.attach_by_id(id, Attached { key, wants: [stdout, stderr], socket: fds.only()? })?;
            }
            Request::Detach { id, key } => {
                self.early.retain(|(_, attached)| attached.key != key);
                if let Some(number) = self.find(&id) {
                    self.detach(number, key);
                }
            }
            Request::CloseStdin { id } => {
                let number = self.known(&id)?;
                if let Some(output) = self.processes.get_mut(&number).and_then(|p| p.output.as_mut()) {
                    output.stdin = None;
                }
            }
            Request::Upgrade if self.upgrade.is_some() => {
                return Err((Refusal::State, "another upgrade is under way".to_owned()));
            }
            Request::Upgrade => {
                self.upgrade = Some(Upgrade { executable: fds.only()?, waiter });
                return Ok(None);
            }
        }
        Ok(Some(Reply::Done))
    }

    fn reaped(&mut self, id: &str, exit: Exit) {
        if let Some(number) = self.find(id) {
            // Whether it ran its program comes first.
            self.channel_ready(number);
            self.exited(number, exit);
        }
    }

    fn attach_by_id(&mut self, id: String, attached: Attached) -> Result<(), Refused> {
        let Some(number) = self.find(&id) else {
            // Its process follows, or a Detach.
            self.early.push((id, attached));
            return Ok(());
        };
        match self.attach(number, attached).map_err(internal("duplicating a client's socket"))? {
            true => Ok(()),
            false => Err((Refusal::State, format!("process {id} has no output to attach to"))),
        }
    }

    fn hello(&mut self, version: u32, observer: bool, waiter: Waiter) -> Reply {
        if !observer {
            // A second daemon means that the first is gone, whether we have seen that or not.
            if let Some(former) = self.daemon.take().filter(|former| *former != waiter.connection) {
                self.drop_connection(former);
            }
            self.daemon = Some(waiter.connection);
            self.detach_all();
            if let Some(connection) = self.connections.get_mut(&waiter.connection) {
                connection.daemon = true;
            }
        }
        Reply::Welcome {
            version: version.min(VERSION),
            keeper: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id() as i32,
        }
    }

    fn known(&self, id: &str) -> Result<u64, Refused> {
        self.find(id).ok_or_else(|| (Refusal::NotFound, format!("the keeper holds no process {id}")))
    }

    fn spawn(&mut self, spawn: SpawnRequest, fds: Fds, waiter: Waiter) -> Result<(), Refused> {
        if spawn.id.is_empty() || self.find(&spawn.id).is_some() {
            return Err((Refusal::Exists, format!("the keeper holds a process {:?} already", spawn.id)));
        }
        let report_fd = fds.get(spawn.report)?;
        let report = Report::map(report_fd.as_fd()).map_err(internal("mapping the child's report"))?;
        let output = spawn.output.map(|output| fds.output(&output)).transpose()?;
        let (channel, child_end) = (fds.get(spawn.channel.0)?, fds.get(spawn.channel.1)?);
        let name = spawn.plan.exec.argv.first().cloned().unwrap_or_default();
        let parks = spawn.plan.park;
        let around = Surroundings {
            fds: &fds.0,
            channel: child_end.as_fd(),
            report: &report,
            proc: self.base.proc.as_fd(),
            executable: self.base.executable.as_fd(),
        };
        let prepared = prepare(spawn.plan, &around).map_err(|e| (Refusal::Invalid, e.0))?;
        let joins = prepared.enter.is_some();
        let cloned = clone_child(prepared.clone_flags, prepared.cgroup, || child::run(&prepared));
        drop(prepared);
        let (pid, pidfd) = match cloned {
            Ok(cloned) => cloned,
            Err(e) => {
                let failure = Failure { stage: Stage::Clone, errno: e.raw_os_error() };
                self.reply(waiter.connection, waiter.message, &Reply::Failed(failure), Vec::new());
                return Ok(());
            }
        };
        report.hide_from_children().map_err(internal("hiding the child's report"))?;
        let process = Process {
            joins,
            channel: Some(channel),
            report: Some((report_fd, report)),
            output,
            waiters: Waiters { run: Some(waiter), ..Waiters::default() },
            ..Process::cloned(spawn.id, spawn.role, name, Phase::Preparing { parks }, (pid, pidfd))
        };
        let number = self.add_process(process).map_err(internal("watching the process"))?;
        self.add_log(number).map_err(internal("duplicating the container's pipes"))
    }

    /// Repeating it is fine: a daemon whose keeper died on the way does not know what came of it.
    pub(super) fn start(&mut self, id: &str, waiter: Waiter) -> Result<(), Refused> {
        let number = self.known(id)?;
        let process = &self.processes[&number];
        let reply = match process.phase {
            // One that is not parked yet, which a daemon was handed, reads the word when it is.
            Phase::Preparing { parks: true } | Phase::Parked | Phase::Released if process.exit.is_none() => {
                self.release(number, waiter);
                return Ok(());
            }
            Phase::Running { started_at } | Phase::Exited { started_at, .. } if started_at > 0 => {
                Reply::Started { pid: process.pid, started_at }
            }
            Phase::Preparing { .. } => {
                return Err((Refusal::State, format!("process {id} is not ready")));
            }
            _ => match (process.output.as_ref().and_then(|output| output.note.failure()), process.exit) {
                (Some(failure), _) => Reply::Failed(failure),
                (None, Some(exit)) => Reply::Died(exit),
                (None, None) => return Err((Refusal::State, format!("process {id} was never started"))),
            },
        };
        let pidfd = Arc::clone(&process.pidfd);
        self.reply(waiter.connection, waiter.message, &reply, vec![pidfd]);
        Ok(())
    }

    fn reopen(&mut self, id: &str, log: Arc<OwnedFd>, waiter: Waiter) -> Result<(), Refused> {
        let number = self.known(id)?;
        let duplicate = log.as_ref().try_clone().map_err(internal("duplicating the log file"))?;
        let process = self.processes.get_mut(&number);
        let Some((process, logs)) = process.zip(self.logs.as_ref()) else {
            return Err((Refusal::NotFound, format!("process {id} has no log")));
        };
        let Some(output) = &mut process.output else {
            return Err((Refusal::State, format!("process {id} has no log")));
        };
        output.new_log = Some(log);
        process.waiters.reopen.push(waiter);
        logs.reopen(number, duplicate);
        Ok(())
    }

    fn forget_by_id(&mut self, id: &str, waiter: Waiter) -> Result<Option<Reply>, Refused> {
        // Twice is fine.
        let Some(number) = self.find(id) else { return Ok(Some(Reply::Done)) };
        let Some(process) = self.processes.get_mut(&number) else { return Ok(Some(Reply::Done)) };
        let runs = matches!(process.phase, Phase::Running { .. });
        if runs && process.exit.is_none() && crate::sys::pidfd::is_alive(process.pidfd.as_fd()) {
            return Err((Refusal::State, format!("process {id} still runs")));
        }
        process.waiters.forget = Some(waiter);
        self.forget(number);
        Ok(None)
    }
}
