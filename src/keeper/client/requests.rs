//! What the rest of the daemon asks for.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::link::{Answers, lock};
use super::recover::Shared;
use super::table::{Attachment, Entry, Table, output_fds, place};
use super::{Adopt, Exit, Hold, KeeperStatus, Output, Process, Role, RoleKind, Spawn, Status, launch};
use crate::error::{Kind, Step};
use crate::keeper::note::NotePage;
use crate::keeper::plan::{Failure, Stage};
use crate::keeper::protocol::{Phase, Refusal, Reply, Request, SpawnRequest};
use crate::keeper::report::Report;
use crate::sys::seqpacket;
use crate::{Error, Result};

/// An answer that does not go with the question: a refusal, or a keeper of another kind.
pub fn unexpected(reply: Reply) -> Error {
    match reply {
        Reply::Refused { reason, text } => {
            let kind = match reason {
                Refusal::NotFound => Kind::NotFound,
                Refusal::State => Kind::FailedPrecondition,
                Refusal::Unknown => Kind::Unimplemented,
                Refusal::Exists | Refusal::Invalid | Refusal::Internal => Kind::Internal,
            };
            Error::new(kind, text)
        }
        other => Error::internal(format!("the keeper answered with {other:?}")),
    }
}

/// Why a process did not come to run its program.
fn died(exit: Exit) -> Error {
    let how = match exit.status {
        Status::Code(code) => format!("with code {code}"),
        Status::Signal(signal) => format!("by signal {signal}"),
        Status::Unknown => "for an unknown reason".to_owned(),
    };
    Error::internal(format!("the process ended {how} before it could execute its program"))
}

/// Why a released child did not come to run its program, `name`.
pub fn exec_failed(name: &[u8], failure: Failure) -> Error {
    let cause = crate::error::errno_text(failure.errno);
    Error::internal(match failure.stage {
        Stage::Enter => format!("entering the PID namespace: {cause}"),
        Stage::Seccomp => format!("loading the seccomp filter: {cause}"),
        _ => format!("exec {:?}: {cause}", String::from_utf8_lossy(name)),
    })
}

/// A spawn on its way to the keeper. One whose caller gives up before the answer (an exec's deadline)
/// leaves nothing: what comes of it is ended.
struct Spawning<'a> {
    shared: &'a Arc<Shared>,
    id: &'a str,
    answers: Option<Answers>,
    is_over: bool,
}

impl<'a> Spawning<'a> {
    fn new(shared: &'a Arc<Shared>, id: &'a str) -> Self {
        lock(&shared.table).spawning.insert(id.to_owned(), None);
        Self { shared, id, answers: None, is_over: false }
    }

    /// It is answered, or never will be. Its exit, if that was told first.
    fn over(&mut self, table: &mut Table) -> Option<Exit> {
        self.is_over = true;
        table.spawning.remove(self.id).flatten()
    }
}

impl Drop for Spawning<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        lock(&self.shared.table).spawning.remove(self.id);
        if let Some(mut answers) = self.answers.take() {
            let (shared, id) = (Arc::clone(self.shared), self.id.to_owned());
            tokio::spawn(async move {
                if let Ok((Reply::Spawned { .. } | Reply::Started { .. }, mut fds)) = answers.next().await
                    && let Some(pidfd) = fds.pop()
                {
                    shared.disown(id, Arc::new(pidfd)).await;
                }
            });
        }
    }
}

impl Shared {
    pub async fn spawn(self: &Arc<Self>, spawn: Spawn) -> Result<Process> {
        let Spawn { id, plan, mut fds, role } = spawn;
        let (kind, output) = match role {
            Role::Container(output) => (RoleKind::Container, Some(output)),
            Role::PodInit => (RoleKind::PodInit, None),
            Role::Exec => (RoleKind::Exec, None),
        };
        let (ours, theirs) = seqpacket::pair().step(|| "making the channel to the process")?;
        let (ours, theirs) = (Arc::new(ours), Arc::new(theirs));
        let report = Arc::new(Report::create().step(|| "making the process's report")?);
        let mut entry = Entry {
            role: kind,
            name: plan.exec.argv.first().cloned().unwrap_or_default(),
            pid: 0,
            joins: matches!(plan.pid, crate::keeper::plan::PidNamespace::Join(_)),
            phase: Phase::Preparing { parks: plan.park },
            pidfd: Arc::clone(&ours),
            channel: Some(Arc::clone(&ours)),
            report: Some(Arc::clone(&report)),
            output,
            attached: Vec::new(),
            reaped: None,
            exit: watch::Sender::new(None),
            forgotten: false,
        };
        let request = SpawnRequest {
            id: id.clone(),
            role: kind,
            output: entry.output.as_ref().map(|output| output_fds(output, &mut fds)),
            channel: (place(&mut fds, &ours), place(&mut fds, &theirs)),
            report: place(&mut fds, &report),
            plan,
        };
        drop(theirs);
        // The sentence about a failure needs the plan, which the request has.
        let request = Request::Spawn(Box::new(request));
        let mut spawning = Spawning::new(self, &id);
        let link = self.current().await;
        let answer = match &link {
            Ok(link) => match link.send(&request, fds) {
                Ok(answers) => spawning.answers.insert(answers).next().await,
                Err(e) => Err(e),
            },
            Err(e) => Err(e.clone()),
        };
        let mut table = lock(&self.table);
        let early = spawning.over(&mut table);
        let (reply, mut answer_fds) = answer?;
        (entry.pid, entry.phase) = match reply {
            Reply::Spawned { pid } => (pid, Phase::Parked),
            Reply::Started { pid, started_at } => (pid, Phase::Running { started_at }),
            Reply::Failed(failure) => {
                let Request::Spawn(request) = &request else { return Err(died_unknown()) };
                return Err(Error::internal(request.plan.describe(failure)));
            }
            Reply::Died(exit) => return Err(died(exit)),
            other => return Err(unexpected(other)),
        };
        entry.pidfd = Arc::new(answer_fds.pop().ok_or_else(died_unknown)?);
        if matches!(entry.phase, Phase::Running { .. }) {
            entry.joins = false;
            (entry.channel, entry.report) = (None, None);
        }
        let process = entry.process(&id);
        table.entries.insert(id.clone(), entry);
        if let Some(exit) = early {
            table.exited(&id, exit);
        }
        drop(table);
        if let Ok(link) = link {
            self.catch_up(&link, &id);
        }
        Ok(process)
    }

    pub async fn start(self: &Arc<Self>, id: &str) -> Result<(Process, i64)> {
        let name = {
            let mut table = lock(&self.table);
            let entry = table.entries.get_mut(id).ok_or_else(|| unknown(id))?;
            // A start that nobody heard of, since the daemon that asked for it died.
            if let Phase::Running { started_at } | Phase::Exited { started_at, .. } = entry.phase
                && started_at > 0
            {
                return Ok((entry.process(id), started_at));
            }
            // Should the keeper die now, nobody knows whether the child was released: the next one
            // looks, or tells the child again. One that ended has a note, which tells the keeper
            // whether it ran.
            if !matches!(entry.phase, Phase::Exited { .. }) {
                entry.phase = Phase::Released;
            }
            entry.name.clone()
        };
        let link = self.current().await?;
        let (reply, mut fds) = self.ask_again(&Request::Start { id: id.to_owned() }, &[]).await?;
        let (pid, started_at) = match reply {
            Reply::Started { pid, started_at } => (pid, started_at),
            Reply::Failed(failure) => return Err(exec_failed(&name, failure)),
            Reply::Died(exit) => return Err(died(exit)),
            other => return Err(unexpected(other)),
        };
        let mut table = lock(&self.table);
        let entry = table.entries.get_mut(id).ok_or_else(|| unknown(id))?;
        entry.pid = pid;
        if let Some(pidfd) = fds.pop() {
            entry.pidfd = Arc::new(pidfd);
        }
        entry.joins = false;
        (entry.channel, entry.report) = (None, None);
        match &mut entry.phase {
            Phase::Exited { started_at: at, .. } => *at = started_at,
            phase => *phase = Phase::Running { started_at },
        }
        let process = entry.process(id);
        drop(table);
        self.catch_up(&link, id);
        Ok((process, started_at))
    }

    pub async fn hold(&self, hold: Hold) -> Result<()> {
        let request = Request::Hold { key: hold.key.clone(), about: hold.about.clone() };
        let fds = hold.fds.clone();
        self.config.fd_store.put(&hold);
        lock(&self.table).holds.insert(hold.key.clone(), hold);
        self.tell(&request, fds).await
    }

    pub async fn release(&self, key: &str) -> Result<()> {
        self.config.fd_store.remove(key);
        lock(&self.table).holds.remove(key);
        self.tell(&Request::Release { key: key.to_owned() }, Vec::new()).await
    }

    /// For what may be said twice and is answered with Done.
    async fn tell(&self, request: &Request, fds: Vec<Arc<OwnedFd>>) -> Result<()> {
        match self.ask_again(request, &fds).await? {
            (Reply::Done, _) => Ok(()),
            (other, _) => Err(unexpected(other)),
        }
    }

    pub async fn adopt(&self, adopt: Adopt) -> Result<Process> {
        let Adopt { id, pid, pidfd, output } = adopt;
        let note = match &output {
            Some(output) => {
                let note = NotePage::map(std::os::fd::AsFd::as_fd(&output.note));
                Some(note.step(|| format!("reading the note of container {id}"))?)
            }
            None => None,
        };
        let started_at = note.as_ref().and_then(|note| note.started_at()).unwrap_or_default();
        let known = note.as_ref().and_then(|note| note.exit());
        let phase = match known {
            Some(exit) => Phase::Exited { started_at, exit },
            None => Phase::Running { started_at },
        };
        let entry = Entry {
            role: if output.is_some() { RoleKind::Container } else { RoleKind::PodInit },
            name: Vec::new(),
            pid,
            joins: false,
            phase,
            pidfd,
            channel: None,
            report: None,
            output,
            attached: Vec::new(),
            reaped: known,
            exit: watch::Sender::new(None),
            forgotten: false,
        };
        let mut fds = Vec::new();
        let record = entry.record(&id, &mut fds);
        let process = entry.process(&id);
        lock(&self.table).entries.insert(id.clone(), entry);
        // Not twice: should the keeper die meanwhile, the next is given it with the rest.
        let told = match self.ask(&Request::Restore(record), fds).await {
            Ok((Reply::Done, _)) => Ok(()),
            Ok((other, _)) => Err(unexpected(other)),
            Err(e) if e.kind == Kind::Unavailable => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(e) = told {
            lock(&self.table).entries.remove(&id);
            return Err(e);
        }
        Ok(process)
    }

    pub async fn reopen_log(&self, id: &str, log: Arc<OwnedFd>) -> Result<()> {
        // The next keeper is given the old file.
        self.tell(&Request::Reopen { id: id.to_owned() }, vec![Arc::clone(&log)]).await?;
        if let Some(entry) = lock(&self.table).entries.get_mut(id)
            && let Some(output) = &mut entry.output
        {
            output.log = Some(log);
        }
        Ok(())
    }

    /// The client's end of the socket, and the key to detach it by.
    pub async fn attach(&self, id: &str, stdout: bool, stderr: bool) -> Result<(OwnedFd, u64)> {
        let (ours, theirs) = seqpacket::pair().step(|| "making the socket of an attached client")?;
        rustix::io::ioctl_fionbio(&ours, true).step(|| "making the socket of an attached client")?;
        let key = self.next_key.fetch_add(1, Ordering::Relaxed);
        let socket = Arc::new(theirs);
        let request = Request::Attach { id: id.to_owned(), key, stdout, stderr };
        {
            let mut table = lock(&self.table);
            let entry = table.entries.get_mut(id).ok_or_else(|| unknown(id))?;
            entry.attached.push(Attachment { key, stdout, stderr, socket: Arc::clone(&socket) });
        }
        // Once: should the keeper die now, the next is given it with the rest.
        match self.ask(&request, vec![socket]).await {
            Ok((Reply::Done, _)) => Ok((ours, key)),
            Err(e) if e.kind == Kind::Unavailable => Ok((ours, key)),
            other => {
                self.forget_attachment(id, key);
                Err(other.map_or_else(|e| e, |(reply, _)| unexpected(reply)))
            }
        }
    }

    fn forget_attachment(&self, id: &str, key: u64) {
        if let Some(entry) = lock(&self.table).entries.get_mut(id) {
            entry.attached.retain(|attachment| attachment.key != key);
        }
    }

    pub async fn detach(&self, id: &str, key: u64) -> Result<()> {
        self.forget_attachment(id, key);
        self.tell(&Request::Detach { id: id.to_owned(), key }, Vec::new()).await
    }

    pub fn output(&self, id: &str) -> Option<Output> {
        lock(&self.table).entries.get(id)?.output.clone()
    }

    pub async fn close_stdin(&self, id: &str) -> Result<()> {
        if let Some(output) = lock(&self.table).entries.get_mut(id).and_then(|entry| entry.output.as_mut()) {
            output.stdin = None;
        }
        self.tell(&Request::CloseStdin { id: id.to_owned() }, Vec::new()).await
    }

    pub async fn forget(&self, id: &str) -> Result<()> {
        if let Some(entry) = lock(&self.table).entries.get_mut(id) {
            entry.forgotten = true;
            // A parked child goes when both holders have closed its channel.
            if !matches!(entry.phase, Phase::Running { .. }) {
                entry.channel = None;
            }
        }
        let told = self.tell(&Request::Forget { id: id.to_owned() }, Vec::new()).await;
        let mut table = lock(&self.table);
        match told {
            Ok(()) => drop(table.entries.remove(id)),
            Err(_) => {
                if let Some(entry) = table.entries.get_mut(id) {
                    entry.forgotten = false;
                }
            }
        }
        told
    }

    pub async fn status(&self) -> Result<KeeperStatus> {
        match self.ask(&Request::Status, Vec::new()).await? {
            (Reply::Status(status), _) => Ok(status),
            (other, _) => Err(unexpected(other)),
        }
    }

    pub async fn upgrade(&self, executable: &Path) -> Result<()> {
        let path = executable.to_owned();
        let executable = tokio::task::spawn_blocking(move || launch::sealed_executable(&path))
            .await
            .map_err(|e| Error::internal(e.to_string()))??;
        match self.ask(&Request::Upgrade, vec![executable]).await? {
            (Reply::Done, _) => Ok(()),
            (other, _) => Err(unexpected(other)),
        }
    }
}

fn died_unknown() -> Error {
    Error::internal("the keeper answered without a descriptor of the process")
}

fn unknown(id: &str) -> Error {
    Error::not_found(format!("the keeper holds no container {id}"))
}
