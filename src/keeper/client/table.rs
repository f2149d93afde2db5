//! The daemon's duplicates of all that the keeper holds.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::sync::watch;

use super::{Exit, Hold, Output, Process, RoleKind, Source, State, Status, now};
use crate::keeper::note::NotePage;
use crate::keeper::plan::Bytes;
use crate::keeper::protocol::{OutputFds, Phase, Record, SourceFds};
use crate::keeper::report::Report;
use crate::sys::pidfd;
use crate::{Error, Result};

#[derive(Default)]
pub struct Table {
    pub entries: HashMap<String, Entry>,
    pub holds: HashMap<String, Hold>,
    /// Being spawned, with the exit if it was told before the spawn was.
    pub spawning: HashMap<String, Option<Exit>>,
    /// While a snapshot is being read: exits of those that were not read yet.
    pub early: Option<HashMap<String, Exit>>,
    /// Those whose end is awaited here since their keeper died: ID and pid.
    pub watched: HashSet<(String, i32)>,
}

pub struct Entry {
    pub role: RoleKind,
    /// argv[0].
    pub name: Bytes,
    pub pid: i32,
    pub joins: bool,
    pub phase: Phase,
    pub pidfd: Arc<OwnedFd>,
    pub channel: Option<Arc<OwnedFd>>,
    pub report: Option<Arc<OwnedFd>>,
    pub output: Option<Output>,
    pub attached: Vec<Attachment>,
    /// Reaped by us; told to everybody when its log is whole.
    pub reaped: Option<Exit>,
    pub exit: watch::Sender<Option<Exit>>,
    /// The keeper was asked to drop it.
    pub forgotten: bool,
}

/// A client that sees the output, for the next keeper.
#[derive(Clone)]
pub struct Attachment {
    pub key: u64,
    pub stdout: bool,
    pub stderr: bool,
    pub socket: Arc<OwnedFd>,
}

impl Entry {
    pub fn process(&self, id: &str) -> Process {
        Process {
            id: id.to_owned(),
            role: self.role,
            pid: self.pid,
            pidfd: Arc::clone(&self.pidfd),
            exit: self.exit.subscribe(),
        }
    }

    /// The process that a helper has made in its place, where its keeper may not have told us of it.
    pub fn final_pid(&self) -> Option<i32> {
        let report = self.report.as_ref().filter(|_| self.joins)?;
        Report::map(report.as_fd()).ok()?.final_pid().filter(|made| *made != self.pid)
    }

    /// Puts that process in the helper's place: its ID and pidfd. Only for its parent, who alone can be
    /// sure that the number still means the same process.
    pub fn take_final(&mut self) -> Option<(i32, Arc<OwnedFd>)> {
        let made = self.final_pid()?;
        let pid = rustix::process::Pid::from_raw(made)?;
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
        let pidfd = Arc::new(Some(pidfd).filter(|fd| pidfd::is_child(fd.as_fd()))?);
        (self.pid, self.pidfd, self.joins) = (made, Arc::clone(&pidfd), false);
        Some((made, pidfd))
    }

    pub fn state(&self) -> State {
        match self.phase {
            Phase::Preparing { parks: true } | Phase::Parked => State::Parked,
            Phase::Released => State::Released,
            Phase::Preparing { parks: false } => State::Running { started_at: 0 },
            Phase::Running { started_at } => State::Running { started_at },
            Phase::Exited { started_at, exit } => State::Exited { started_at, exit },
        }
    }

    /// For the next keeper, which is told of `reaped` after it; descriptors are appended to `fds`.
    pub fn record(&self, id: &str, fds: &mut Vec<Arc<OwnedFd>>) -> Record {
        Record {
            id: id.to_owned(),
            role: self.role,
            name: self.name.clone(),
            pid: self.pid,
            joins: self.joins,
            phase: self.phase,
            pidfd: place(fds, &self.pidfd),
            channel: self.channel.as_ref().map(|fd| place(fds, fd)),
            report: self.report.as_ref().map(|fd| place(fds, fd)),
            output: self.output.as_ref().map(|output| output_fds(output, fds)),
        }
    }

    /// What a keeper had held for a daemon before us.
    pub fn from_record(record: Record, fds: Vec<OwnedFd>) -> Result<(String, Self)> {
        let fds: Vec<Arc<OwnedFd>> = fds.into_iter().map(Arc::new).collect();
        let get = |place: u16| {
            fds.get(usize::from(place))
                .cloned()
                .ok_or_else(|| Error::internal("the keeper's snapshot lacks a descriptor"))
        };
        let output = |output: OutputFds| {
            Ok::<_, Error>(Output {
                note: get(output.note)?,
                source: match output.source {
                    SourceFds::Pipes { stdout, stderr } => {
                        Source::Pipes { stdout: get(stdout)?, stderr: get(stderr)? }
                    }
                    SourceFds::Terminal { master, pipe_read, pipe_write } => {
                        Source::Terminal { master: get(master)?, pipe: (get(pipe_read)?, get(pipe_write)?) }
                    }
                },
                log: output.log.map(get).transpose()?,
                stdin: output.stdin.map(get).transpose()?,
            })
        };
        let exit = match record.phase {
            Phase::Exited { exit, .. } => Some(exit),
            _ => None,
        };
        let entry = Entry {
            role: record.role,
            name: record.name,
            pid: record.pid,
            joins: record.joins,
            phase: record.phase,
            pidfd: get(record.pidfd)?,
            channel: record.channel.map(get).transpose()?,
            report: record.report.map(get).transpose()?,
            output: record.output.map(output).transpose()?,
            attached: Vec::new(),
            reaped: None,
            exit: watch::Sender::new(exit),
            forgotten: false,
        };
        Ok((record.id, entry))
    }
}

pub fn place(fds: &mut Vec<Arc<OwnedFd>>, fd: &Arc<OwnedFd>) -> u16 {
    fds.push(Arc::clone(fd));
    (fds.len() - 1) as u16
}

pub fn output_fds(output: &Output, fds: &mut Vec<Arc<OwnedFd>>) -> OutputFds {
    OutputFds {
        note: place(fds, &output.note),
        source: match &output.source {
            Source::Pipes { stdout, stderr } => {
                SourceFds::Pipes { stdout: place(fds, stdout), stderr: place(fds, stderr) }
            }
            Source::Terminal { master, pipe: (read, write) } => SourceFds::Terminal {
                master: place(fds, master),
                pipe_read: place(fds, read),
                pipe_write: place(fds, write),
            },
        },
        log: output.log.as_ref().map(|fd| place(fds, fd)),
        stdin: output.stdin.as_ref().map(|fd| place(fds, fd)),
    }
}

/// What a process was whose end was awaited here.
pub enum Reaped {
    /// To be told to the keeper.
    Exit(Exit),
    /// A helper; the process that it made is our child as well. Its ID and pidfd.
    Helper(i32, Arc<OwnedFd>),
    /// Another's child, or one that nobody waits for any more.
    Nothing,
}

impl Table {
    /// A process has ended, and we were its parent if `status` is known.
    pub fn reaped(&mut self, id: &str, pid: i32, status: Option<Status>) -> Reaped {
        self.watched.remove(&(id.to_owned(), pid));
        // Its descriptor may have been replaced by another of the same process.
        let entry = self.entries.get_mut(id).filter(|entry| entry.pid == pid);
        let Some((entry, status)) = entry.zip(status) else { return Reaped::Nothing };
        if let Some((made, pidfd)) = entry.take_final() {
            let first = self.watched.insert((id.to_owned(), made));
            return if first { Reaped::Helper(made, pidfd) } else { Reaped::Nothing };
        }
        let note = entry.output.as_ref().and_then(|output| NotePage::map(output.note.as_fd()).ok());
        // Its keeper may have seen the end, and died before it could say so: of a process that a helper
        // had made and that is reaped, nobody else knows it.
        let unnoted = if entry.final_pid().is_some() { Status::Unknown } else { status };
        let noted = note.as_ref().and_then(NotePage::exit);
        let exit = noted.unwrap_or(Exit { status: unnoted, finished_at: now() });
        entry.reaped = Some(exit);
        // The kernel has forgotten it: should we die before a keeper hears of it, this remains.
        if let Some(note) = note {
            note.set_exit(exit);
        }
        Reaped::Exit(exit)
    }

    /// A process has ended and its log is whole.
    pub fn exited(&mut self, id: &str, exit: Exit) {
        if let Some(early) = self.spawning.get_mut(id) {
            *early = Some(exit);
            return;
        }
        let Some(entry) = self.entries.get_mut(id) else {
            if let Some(early) = &mut self.early {
                early.insert(id.to_owned(), exit);
            }
            return;
        };
        entry.settle(exit);
        // The keeper has dropped it as well.
        if entry.role == RoleKind::Exec {
            self.entries.remove(id);
        }
    }
}

impl Entry {
    fn settle(&mut self, exit: Exit) {
        let started_at = match self.phase {
            Phase::Running { started_at } => started_at,
            _ => 0,
        };
        if !matches!(self.phase, Phase::Exited { .. }) {
            self.phase = Phase::Exited { started_at, exit };
        }
        self.channel = None;
        self.report = None;
        self.exit.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(exit);
            first
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    /// A keeper reaped a process that a helper had made, wrote down how it ended, and died: the
    /// helper's own end says nothing about it.
    #[test]
    fn the_end_of_a_helper_is_not_taken_for_the_end_of_what_its_keeper_had_reaped() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let made = child.id();
        child.wait().unwrap();
        let report = Report::create().unwrap();
        Report::map(report.as_fd()).unwrap().pid_word().store(made, Ordering::Release);
        let null: Arc<OwnedFd> = Arc::new(std::fs::File::open("/dev/null").unwrap().into());
        let entry = |output| Entry {
            role: RoleKind::Container,
            name: Bytes::new(),
            pid: 1,
            joins: true,
            phase: Phase::Released,
            pidfd: Arc::clone(&null),
            channel: None,
            report: Some(Arc::new(report.try_clone().unwrap())),
            output,
            attached: Vec::new(),
            reaped: None,
            exit: watch::Sender::new(None),
            forgotten: false,
        };
        let note: OwnedFd = tempfile::tempfile().unwrap().into();
        let noted = Exit { status: Status::Code(7), finished_at: 1 };
        NotePage::map(note.as_fd()).unwrap().set_exit(noted);
        let source = Source::Pipes { stdout: Arc::clone(&null), stderr: Arc::clone(&null) };
        let output = Output { note: Arc::new(note), source, log: None, stdin: None };

        let mut table = Table::default();
        table.entries.insert("noted".into(), entry(Some(output)));
        table.entries.insert("unknown".into(), entry(None));
        let reaped = table.reaped("noted", 1, Some(Status::Code(0)));
        assert!(matches!(reaped, Reaped::Exit(exit) if exit == noted));
        let reaped = table.reaped("unknown", 1, Some(Status::Code(0)));
        assert!(matches!(reaped, Reaped::Exit(Exit { status: Status::Unknown, .. })));
    }
}
