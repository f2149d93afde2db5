//! What is held, told to a daemon or a successor, and taken from a daemon after a keeper's death.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::Control;
use super::process::{Process, Source, Waiter, Waiters};
use super::request::{Fds, Refused, internal};
use crate::keeper::protocol::{
    HoldStatus, KeeperStatus, OutputFds, Phase, ProcessStatus, Record, Refusal, Reply, SourceFds, VERSION,
};
use crate::keeper::report::Report;
use crate::sys::pidfd;

impl Process {
    /// The process as data; its descriptors are appended to `fds`.
    pub fn record(&self, fds: &mut Vec<Arc<OwnedFd>>) -> Record {
        let mut place = |fd: &Arc<OwnedFd>| {
            fds.push(Arc::clone(fd));
            (fds.len() - 1) as u16
        };
        let output = self.output.as_ref().map(|output| OutputFds {
            note: place(&output.note_fd),
            source: match &output.source {
                Source::Pipes { stdout, stderr } => {
                    SourceFds::Pipes { stdout: place(stdout), stderr: place(stderr) }
                }
                Source::Terminal { master, pipe_read, pipe_write } => SourceFds::Terminal {
                    master: place(master),
                    pipe_read: place(pipe_read),
                    pipe_write: place(pipe_write),
                },
            },
            log: output.log.as_ref().map(&mut place),
            stdin: output.stdin.as_ref().map(&mut place),
        });
        Record {
            id: self.id.clone(),
            role: self.role,
            name: self.name.clone(),
            pid: self.pid,
            // Once it is in its helper's place it is a process as any other.
            joins: self.joins && self.helper.is_none(),
            phase: self.phase,
            pidfd: place(&self.pidfd),
            channel: self.channel.as_ref().map(&mut place),
            report: self.report.as_ref().map(|(fd, _)| place(fd)),
            output,
        }
    }

    /// The other way.
    pub fn from_record(record: Record, fds: &Fds) -> Result<Self, Refused> {
        let report = record
            .report
            .map(|place| {
                let fd = fds.get(place)?;
                let report = Report::map(fd.as_fd()).map_err(internal("mapping the child's report"))?;
                report.hide_from_children().map_err(internal("hiding the child's report"))?;
                Ok((fd, report))
            })
            .transpose()?;
        let pidfd = fds.get(record.pidfd)?;
        // A helper that is gone: its place is taken already.
        let entered = report.as_ref().is_some_and(|(_, report)| report.final_pid() == Some(record.pid));
        let output = record.output.map(|output| fds.output(&output)).transpose()?;
        let noted = || output.as_ref().and_then(|output| output.note.started_at());
        let noted_exit = || output.as_ref().and_then(|output| output.note.exit());
        let (phase, exit) = match record.phase {
            // Whoever hands it over may have heard of its end, but never of its start.
            Phase::Exited { started_at: 0, exit } => {
                (Phase::Exited { started_at: noted().unwrap_or_default(), exit }, Some(exit))
            }
            Phase::Exited { exit, .. } => (record.phase, Some(exit)),
            // A keeper may have reaped it that died before it told of that. Of one that is not noted to
            // have run, it shows when the daemon tells of its end.
            phase => match (noted_exit(), noted()) {
                (Some(exit), Some(started_at)) => (Phase::Running { started_at }, Some(exit)),
                _ => (phase, None),
            },
        };
        let channel = record.channel.filter(|_| exit.is_none());
        Ok(Process {
            child: pidfd::is_child(pidfd.as_fd()),
            id: record.id,
            role: record.role,
            name: record.name,
            pid: record.pid,
            pidfd,
            joins: record.joins && !entered,
            helper: None,
            phase,
            channel: channel.map(|place| fds.get(place)).transpose()?,
            report,
            output,
            exit,
            drained: false,
            collecting: None,
            forgotten: false,
            waiters: Waiters::default(),
        })
    }
}

impl Control {
    /// All but the Done.
    pub(super) fn snapshot(&mut self, waiter: Waiter) {
        let mut messages = Vec::new();
        for process in self.processes.values().filter(|process| !process.forgotten) {
            let mut fds = Vec::new();
            messages.push((Reply::Process(process.record(&mut fds)), fds));
        }
        for (key, hold) in &self.holds {
            let about = hold.about.clone();
            messages.push((Reply::Hold { key: key.clone(), about }, hold.fds.clone()));
        }
        for (message, fds) in messages {
            self.reply(waiter.connection, waiter.message, &message, fds);
        }
    }

    pub(super) fn restore(&mut self, record: Record, fds: &Fds) -> Result<(), Refused> {
        if self.find(&record.id).is_some() {
            return Err((Refusal::Exists, format!("the keeper holds a process {} already", record.id)));
        }
        let process = Process::from_record(record, fds)?;
        self.take_over(process)
    }

    /// Looks after a process that somebody else did before.
    pub(super) fn take_over(&mut self, process: Process) -> Result<(), Refused> {
        let ended = process.exit.is_some();
        let number = self.add_process(process).map_err(internal("watching the process"))?;
        self.take_early(number);
        self.add_log(number).map_err(internal("duplicating the container's pipes"))?;
        if ended {
            self.resume_end(number);
        }
        Ok(())
    }

    /// Its own open files, and what it keeps.
    pub(super) fn status(&self) -> KeeperStatus {
        let processes = self.processes.values().filter(|process| !process.id.is_empty());
        KeeperStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: VERSION,
            pid: std::process::id() as i32,
            started_at: self.started_at,
            upgrades: self.upgrades,
            rss: self.rss().unwrap_or_default(),
            fds: self.open_files().unwrap_or_default(),
            daemon_connected: self.daemon.is_some(),
            processes: processes
                .map(|process| ProcessStatus {
                    id: process.id.clone(),
                    role: process.role,
                    pid: process.pid,
                    phase: process.phase,
                    log_stalled: process.output.as_ref().and_then(|output| output.stalled),
                    child: process.child,
                })
                .collect(),
            holds: self
                .holds
                .iter()
                .map(|(key, hold)| HoldStatus { key: key.clone(), fds: hold.fds.len() as u32 })
                .collect(),
        }
    }

    /// Bytes, from the keeper's own procfs. Not from statm: the size of a page is in the auxiliary
    /// vector, which kernels before 6.4 show in a /proc alone, and the keeper has none.
    fn rss(&self) -> Option<u64> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.base.proc, c"self/status", flags, Mode::empty()).ok()?;
        let mut buffer = [0u8; 4096];
        let length = rustix::io::read(&file, &mut buffer).ok()?;
        let text = std::str::from_utf8(&buffer[..length]).ok()?;
        let resident = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        resident.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
    }

    fn open_files(&self) -> Option<u32> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(&self.base.proc, c"self/fd", flags, Mode::empty()).ok()?;
        let entries = rustix::fs::Dir::read_from(&folder).ok()?;
        // Without ".", ".." and the folder itself.
        Some((entries.flatten().count() as u32).saturating_sub(3))
    }
}
