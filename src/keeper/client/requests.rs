//! What the rest of the daemon asks for.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use super::link::lock;
use super::recover::Shared;
use super::table::{Entry, output_fds, place};
use super::{Adopt, Exit, Hold, KeeperStatus, Process, Role, RoleKind, Spawn, Status, launch};
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

fn exec_failed(name: &[u8], failure: Failure) -> Error {
    let cause = crate::error::errno_text(failure.errno);
    Error::internal(match failure.stage {
        Stage::Enter => format!("entering the PID namespace: {cause}"),
        Stage::Seccomp => format!("loading the seccomp filter: {cause}"),
        _ => format!("exec {:?}: {cause}", String::from_utf8_lossy(name)),
    })
}

impl Shared {
    pub async fn spawn(&self, spawn: Spawn) -> Result<Process> {
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
            reaped: None,
            exit: watch::Sender::new(None),
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
        lock(&self.table).spawning.insert(id.clone(), None);
        let answer = self.ask(&request, fds).await;
        let mut table = lock(&self.table);
        let early = table.spawning.remove(&id).flatten();
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
            (entry.channel, entry.report) = (None, None);
        }
        let process = entry.process(&id);
        table.entries.insert(id.clone(), entry);
        if let Some(exit) = early {
            table.exited(&id, exit);
        }
        Ok(process)
    }

    pub async fn start(&self, id: &str) -> Result<(Process, i64)> {
        let name = {
            let table = lock(&self.table);
            let entry = table.entries.get(id).ok_or_else(|| unknown(id))?;
            if !matches!(entry.phase, Phase::Parked | Phase::Released | Phase::Preparing { .. }) {
                return Err(Error::precondition(format!("container {id} has been started already")));
            }
            entry.name.clone()
        };
        loop {
            // Should the keeper die now, nobody knows whether the child was released.
            if let Some(entry) = lock(&self.table).entries.get_mut(id)
                && matches!(entry.phase, Phase::Parked | Phase::Preparing { .. })
            {
                entry.phase = Phase::Released;
            }
            let (reply, mut fds) = match self.ask(&Request::Start { id: id.to_owned() }, Vec::new()).await {
                Ok(answer) => answer,
                // The next keeper knows, or asks the child again.
                Err(e) if e.kind == Kind::Unavailable && self.recovers() => continue,
                Err(e) => return Err(e),
            };
            let mut table = lock(&self.table);
            let entry = table.entries.get_mut(id).ok_or_else(|| unknown(id))?;
            return match reply {
                Reply::Started { pid, started_at } => {
                    entry.pid = pid;
                    if let Some(pidfd) = fds.pop() {
                        entry.pidfd = Arc::new(pidfd);
                    }
                    entry.joins = false;
                    (entry.channel, entry.report) = (None, None);
                    if let Phase::Exited { started_at: at, .. } = &mut entry.phase {
                        *at = started_at;
                    } else {
                        entry.phase = Phase::Running { started_at };
                    }
                    Ok((entry.process(id), started_at))
                }
                Reply::Failed(failure) => Err(exec_failed(&name, failure)),
                Reply::Died(exit) => Err(died(exit)),
                other => Err(unexpected(other)),
            };
        }
    }

    pub async fn hold(&self, hold: Hold) -> Result<()> {
        let request = Request::Hold { key: hold.key.clone(), about: hold.about.clone() };
        let fds = hold.fds.clone();
        lock(&self.table).holds.insert(hold.key.clone(), hold);
        self.tell(&request, fds).await
    }

    pub async fn release(&self, key: &str) -> Result<()> {
        lock(&self.table).holds.remove(key);
        self.tell(&Request::Release { key: key.to_owned() }, Vec::new()).await
    }

    /// For what the next keeper is told anyhow, should this one die.
    async fn tell(&self, request: &Request, fds: Vec<Arc<OwnedFd>>) -> Result<()> {
        match self.ask(request, fds).await {
            Ok((Reply::Done, _)) => Ok(()),
            Ok((other, _)) => Err(unexpected(other)),
            Err(e) if e.kind == Kind::Unavailable && self.recovers() => Ok(()),
            Err(e) => Err(e),
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
            reaped: known,
            exit: watch::Sender::new(None),
        };
        let mut fds = Vec::new();
        let record = entry.record(&id, &mut fds);
        let process = entry.process(&id);
        lock(&self.table).entries.insert(id.clone(), entry);
        if let Err(e) = self.tell(&Request::Restore(record), fds).await {
            lock(&self.table).entries.remove(&id);
            return Err(e);
        }
        Ok(process)
    }

    pub async fn reopen_log(&self, id: &str, log: Arc<OwnedFd>) -> Result<()> {
        loop {
            let request = Request::Reopen { id: id.to_owned() };
            match self.ask(&request, vec![Arc::clone(&log)]).await {
                Ok((Reply::Done, _)) => break,
                Ok((other, _)) => return Err(unexpected(other)),
                // The next keeper was given the old file.
                Err(e) if e.kind == Kind::Unavailable && self.recovers() => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(entry) = lock(&self.table).entries.get_mut(id)
            && let Some(output) = &mut entry.output
        {
            output.log = Some(log);
        }
        Ok(())
    }

    pub async fn forget(&self, id: &str) -> Result<()> {
        // A parked child goes when both holders have closed its channel.
        if let Some(entry) = lock(&self.table).entries.get_mut(id)
            && !matches!(entry.phase, Phase::Running { .. })
        {
            entry.channel = None;
        }
        self.tell(&Request::Forget { id: id.to_owned() }, Vec::new()).await?;
        lock(&self.table).entries.remove(id);
        Ok(())
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
