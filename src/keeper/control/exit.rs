//! Ends: reaping, the last bytes of the log, and telling of it.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::process::Process;
use super::{Control, now};
use crate::keeper::log::Event;
use crate::keeper::protocol::{Exit, Phase, Reply, RoleKind, Status};
use crate::sys::pidfd::{self, Ended};

/// What a stalled log disk may delay an exit by (BEHAVIOUR 39).
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// How long the exit of somebody else's child is awaited (BEHAVIOUR 41).
const COLLECT_LIMIT: Duration = Duration::from_secs(10);
const COLLECT_INTERVAL: Duration = Duration::from_millis(10);
/// How long a daemon that has reaped it may take to say so.
const TELL_LIMIT: Duration = Duration::from_secs(5);
/// What closing a forgotten container may take before its daemon is answered all the same.
const FORGET_LIMIT: Duration = Duration::from_secs(2);

/// Whether a process was executed and ended before its helper had closed the channel. A child of ours
/// says why before it exits without a program, so a code without a word is a program's.
fn ran_unseen(process: &Process, exit: Exit) -> bool {
    let failed = process.report.as_ref().is_some_and(|(_, report)| report.failure().is_some());
    let final_process = !process.joins || process.helper.is_some();
    is_starting(process) && !failed && final_process && matches!(exit.status, Status::Code(_))
}

fn is_starting(process: &Process) -> bool {
    matches!(process.phase, Phase::Released | Phase::Preparing { parks: false })
}

impl Control {
    /// Whether a child that is not reaped yet, so that its number is its own, has executed a program
    /// since its clone (proc_pid_stat(5), the flags).
    fn has_executed(&self, pid: i32) -> bool {
        /// PF_FORKNOEXEC of the kernel's include/linux/sched.h.
        const NOT_EXECUTED: u64 = 0x40;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(&self.base.proc, format!("{pid}/stat"), flags, Mode::empty())
        else {
            return false;
        };
        let mut buffer = [0u8; 1024];
        let length = rustix::io::read(&file, &mut buffer).unwrap_or(0);
        let text = String::from_utf8_lossy(&buffer[..length]);
        // The command's name, in brackets, may hold anything. Field 9, counted from field 3.
        let flags = text.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(6)?.parse::<u64>().ok());
        flags.is_some_and(|flags| flags & NOT_EXECUTED == 0)
    }

    pub(super) fn pidfd_ready(&mut self, number: u64) {
        // What it said before it ended comes first; a helper's end is none of its process.
        self.channel_ready(number);
        let before = self.processes.get(&number).map(|p| p.helper.is_some());
        self.take_final(number);
        let Some(process) = self.processes.get(&number) else { return };
        if before == Some(false) && process.helper.is_some() {
            return self.helper_ended(number);
        }
        if process.exit.is_some() {
            return;
        }
        // A signal can end a program before its helper has closed the channel.
        if process.child && is_starting(process) && self.has_executed(process.pid) {
            self.executed(number);
        }
        let Some(process) = self.processes.get(&number) else { return };
        match pidfd::reap(process.pidfd.as_fd()) {
            Ok(Some(ended)) => self.ended(number, status(ended)),
            Ok(None) => {}
            Err(Errno::CHILD) => self.collect(number),
            Err(_) => self.ended(number, Status::Unknown),
        }
    }

    /// Reaps children that nobody asked for: orphans of containers in the node's PID namespace.
    pub(super) fn sweep(&mut self) {
        let mut buffer = [0u8; 128];
        while rustix::io::read(&self.signals, &mut buffer).is_ok() {}
        let mut last = 0;
        while let Some(pid) = pidfd::any_ended_child() {
            if pid == last {
                return;
            }
            last = pid;
            let known = self.processes.iter().find_map(|(number, process)| {
                let made = process.report.as_ref().and_then(|(_, report)| report.final_pid());
                (process.exit.is_none() && (process.pid == pid || made == Some(pid))).then_some(*number)
            });
            match known {
                Some(number) => self.pidfd_ready(number),
                None => pidfd::reap_pid(pid),
            }
        }
    }

    /// Somebody else's child has ended: its parent (init, or the daemon) must reap it before the
    /// kernel tells us how.
    fn collect(&mut self, number: u64) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        process.child = false;
        if process.collecting.is_none() {
            process.collecting = Some(Instant::now());
            let pidfd = process.pidfd.clone();
            self.unwatch(pidfd.as_ref());
        }
        let Some(process) = self.processes.get(&number) else { return };
        if let Some(ended) = pidfd::ended(process.pidfd.as_fd()) {
            return self.ended(number, status(ended));
        }
        let waited = process.collecting.map_or(Duration::ZERO, |since| since.elapsed());
        let limit = match (is_reaped(process.pidfd.as_fd()), self.daemon.is_some()) {
            (true, true) => TELL_LIMIT,
            (true, false) => Duration::ZERO,
            (false, _) => COLLECT_LIMIT,
        };
        if waited >= limit {
            return self.ended(number, Status::Unknown);
        }
        self.timers.insert((Instant::now() + COLLECT_INTERVAL, number));
    }

    fn ended(&mut self, number: u64, status: Status) {
        self.exited(number, Exit { status, finished_at: now() });
    }

    /// A process has ended, and is reaped.
    pub(super) fn exited(&mut self, number: u64, exit: Exit) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        if process.exit.is_some() {
            return;
        }
        if ran_unseen(process, exit) {
            self.executed(number);
        }
        let Some(process) = self.processes.get_mut(&number) else { return };
        process.exit = Some(exit);
        let failure = process.report.take().and_then(|(_, report)| report.failure());
        if let Some(output) = &mut process.output {
            if let Some(failure) = failure {
                output.note.set_failure(failure);
            }
            // First of all, since it outlives us.
            output.note.set_exit(exit);
            output.stdin = None;
        }
        let waiter = process.waiters.run.take();
        let nothing_left = matches!(process.phase, Phase::Preparing { .. });
        let pidfd = process.pidfd.clone();
        self.unwatch(pidfd.as_ref());
        self.close_channel(number);
        if nothing_left {
            self.remove(number);
        }
        if let Some(waiter) = waiter {
            let reply = failure.map_or(Reply::Died(exit), Reply::Failed);
            self.reply(waiter.connection, waiter.message, &reply, Vec::new());
        }
        if !nothing_left {
            self.drain(number);
        }
    }

    /// Has the rest of the log written, then tells of the exit.
    pub(super) fn drain(&mut self, number: u64) {
        match (self.processes.get(&number).map(|p| p.output.is_some()), &self.logs) {
            (Some(true), Some(logs)) => {
                logs.drain(number);
                self.timers.insert((Instant::now() + DRAIN_LIMIT, number));
            }
            (Some(_), _) => self.publish(number),
            (None, _) => {}
        }
    }

    pub(super) fn log_events(&mut self) {
        let events = self.logs.as_ref().map(|logs| logs.events()).unwrap_or_default();
        for event in events {
            self.log_event(event);
        }
    }

    pub(super) fn log_event(&mut self, event: Event) {
        match event {
            Event::Drained(number) => {
                let process = self.processes.get(&number);
                if let Some(output) = process.filter(|p| p.exit.is_some()).and_then(|p| p.output.as_ref()) {
                    output.note.set_log_whole();
                }
                self.publish(number);
            }
            Event::Removed(number) => {
                if let Some(process) = self.processes.remove(&number) {
                    self.answer_forget(process.waiters.forget);
                }
            }
            Event::Reopened(number) => {
                let Some(process) = self.processes.get_mut(&number) else { return };
                if let Some(output) = &mut process.output {
                    output.log = output.new_log.take().or(output.log.take());
                }
                for waiter in std::mem::take(&mut process.waiters.reopen) {
                    self.reply(waiter.connection, waiter.message, &Reply::Done, Vec::new());
                }
            }
            Event::Stalled(number, errno) => self.stalled(number, Some(errno)),
            Event::Resumed(number) => self.stalled(number, None),
        }
    }

    fn stalled(&mut self, number: u64, errno: Option<i32>) {
        if let Some(output) = self.processes.get_mut(&number).and_then(|p| p.output.as_mut()) {
            output.stalled = errno;
        }
    }

    /// Tells of an exit whose log is whole, or late.
    fn publish(&mut self, number: u64) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        let Some(exit) = process.exit else { return };
        if process.drained {
            return;
        }
        process.drained = true;
        process.phase = Phase::Exited { started_at: process.started_at(), exit };
        let (id, role, forgotten) = (process.id.clone(), process.role, process.forgotten);
        if forgotten {
            return self.remove(number);
        }
        let told = self.tell_daemon(&Reply::Exited { id, exit });
        if told && role == RoleKind::Exec {
            self.remove(number);
        }
    }

    pub(super) fn timer(&mut self, number: u64, _now: Instant) {
        let Some(process) = self.processes.get(&number) else { return };
        if process.waiters.forget.is_some() {
            // It closes behind our back; whoever asked need not wait for it.
            let waiter = self.processes.get_mut(&number).and_then(|p| p.waiters.forget.take());
            return self.answer_forget(waiter);
        }
        if process.exit.is_some() {
            self.publish(number);
        } else if process.collecting.is_some() {
            self.collect(number);
        }
    }

    /// Lets go of a process that has ended or is about to.
    pub(super) fn forget(&mut self, number: u64) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        process.forgotten = true;
        self.timers.insert((Instant::now() + FORGET_LIMIT, number));
        if self.processes[&number].exit.is_some() {
            self.remove(number);
        } else {
            // A parked child ends when its channel does.
            self.close_channel(number);
        }
    }

    /// Drops a process that was reaped, after its log.
    fn remove(&mut self, number: u64) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        process.forgotten = true;
        match (&process.output, &self.logs) {
            (Some(_), Some(logs)) => {
                // Out of the way of a successor of the same name.
                process.id.clear();
                logs.remove(number);
            }
            _ => {
                if let Some(process) = self.processes.remove(&number) {
                    self.answer_forget(process.waiters.forget);
                }
            }
        }
    }

    fn answer_forget(&mut self, waiter: Option<super::process::Waiter>) {
        if let Some(waiter) = waiter {
            self.reply(waiter.connection, waiter.message, &Reply::Done, Vec::new());
        }
    }
}

fn status(ended: Ended) -> Status {
    match ended {
        Ended::Code(code) => Status::Code(code),
        Ended::Signal(signal) => Status::Signal(signal),
    }
}

/// POLLHUP on a pidfd: nothing is left of the process.
fn is_reaped(pidfd: std::os::fd::BorrowedFd<'_>) -> bool {
    let mut poll = [PollFd::new(&pidfd, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut poll, Some(&at_once)).is_ok() && poll[0].revents().contains(PollFlags::HUP)
}
