//! What follows an end: the last bytes of the log, telling of it, and letting go.

use std::time::{Duration, Instant};

use super::Control;
use super::process::Process;
use crate::keeper::log::Event;
use crate::keeper::protocol::{Exit, Phase, Reply, RoleKind, Status};

/// What a stalled log disk may delay an exit by (BEHAVIOUR 39).
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// What closing a forgotten container may take before its daemon is answered all the same.
const FORGET_LIMIT: Duration = Duration::from_secs(2);

/// Whether a process was executed and ended before its helper had closed the channel. A child of ours
/// says why before it exits without a program, so a code without a word is a program's.
fn ran_unseen(process: &Process, exit: Exit) -> bool {
    let failed = process.report.as_ref().is_some_and(|(_, report)| report.failure().is_some());
    let final_process = !process.joins || process.helper.is_some() || process.final_is_lost();
    is_starting(process) && !failed && final_process && matches!(exit.status, Status::Code(_))
}

pub(super) fn is_starting(process: &Process) -> bool {
    matches!(process.phase, Phase::Released | Phase::Preparing { parks: false })
}

impl Control {
    /// A process has ended.
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
