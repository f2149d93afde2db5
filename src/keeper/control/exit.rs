//! Ends: reaping, the last bytes of the log, and telling of it.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
/// How long a daemon that has reaped it may take to say so, where there is no note to write it in.
const TELL_LIMIT: Duration = Duration::from_secs(5);
/// What closing a forgotten container may take before its daemon is answered all the same.
const FORGET_LIMIT: Duration = Duration::from_secs(2);

/// Whether a process was executed and ended before its helper had closed the channel. A child of ours
/// says why before it exits without a program, so a code without a word is a program's.
fn ran_unseen(process: &Process, exit: Exit) -> bool {
    let failed = process.report.as_ref().is_some_and(|(_, report)| report.failure().is_some());
    let final_process = !process.joins || process.helper.is_some() || process.final_is_lost();
    is_starting(process) && !failed && final_process && matches!(exit.status, Status::Code(_))
}

fn is_starting(process: &Process) -> bool {
    matches!(process.phase, Phase::Released | Phase::Preparing { parks: false })
}

impl Control {
    /// Whether a process has executed a program since its clone. None: it is reaped already, so that
    /// nobody can tell.
    pub(super) fn has_executed(&self, process: &Process) -> Option<bool> {
        /// PF_FORKNOEXEC of the kernel's include/linux/sched.h; cleared before an execve closes files.
        const NOT_EXECUTED: i64 = 0x40;
        Some(self.stat(process, 9)? & NOT_EXECUTED == 0)
    }

    /// How somebody else's child ended whom its parent has not reaped yet.
    fn unreaped(&self, process: &Process) -> Option<Status> {
        let ended = self.stat(process, 52)?;
        // Without the right to trace it the kernel shows a zero.
        let may_trace = || {
            let own = rustix::thread::capabilities(None);
            own.is_ok_and(|own| own.effective.contains(rustix::thread::CapabilitySet::SYS_PTRACE))
        };
        (ended != 0 || may_trace()).then(|| status(Ended::from_status(ended as i32)))
    }

    /// A number of proc_pid_stat(5), by its place there. None: the process is reaped.
    fn stat(&self, process: &Process, field: usize) -> Option<i64> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let path = format!("{}/stat", process.pid);
        let file = rustix::fs::openat(&self.base.proc, path, flags, Mode::empty()).ok()?;
        let mut buffer = [0u8; 1024];
        let length = rustix::io::read(&file, &mut buffer).ok()?;
        if is_reaped(process.pidfd.as_fd()) {
            // The number may have been another's by then.
            return None;
        }
        let text = String::from_utf8_lossy(&buffer[..length]);
        // The command's name, in brackets, may hold anything.
        let (_, rest) = text.rsplit_once(") ")?;
        rest.trim_end().split(' ').nth(field - 3)?.parse().ok()
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
        // The event may have been its helper's, whose place it has taken since.
        if process.exit.is_some() || pidfd::is_alive(process.pidfd.as_fd()) {
            return;
        }
        // A signal can end a program before its helper has closed the channel.
        if is_starting(process) && self.has_executed(process) == Some(true) {
            self.executed(number);
        }
        let Some(process) = self.processes.get(&number) else { return };
        let pidfd = Arc::clone(&process.pidfd);
        match pidfd::peek(pidfd.as_fd()) {
            Ok(Some(ended)) => {
                // Reaped once it is written down: the kernel may be the only one who remembers it.
                self.ended(number, status(ended));
                let _ = pidfd::reap(pidfd.as_fd());
            }
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

    /// Somebody else's child has ended. Until its parent (init, or the daemon) reaps it, its stat says
    /// how; after that the kernel's pidfd does, or the daemon.
    fn collect(&mut self, number: u64) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        process.child = false;
        if process.collecting.is_none() {
            process.collecting = Some(Instant::now());
            let pidfd = process.pidfd.clone();
            self.unwatch(pidfd.as_ref());
        }
        let Some(process) = self.processes.get(&number) else { return };
        // Of one whose process the daemon has reaped already, only the daemon knows how it ended.
        if !process.final_is_lost()
            && let Some(status) =
                self.unreaped(process).or_else(|| pidfd::ended(process.pidfd.as_fd()).map(status))
        {
            return self.ended(number, status);
        }
        let is_reaped = is_reaped(process.pidfd.as_fd());
        // A daemon that reaps writes down first how it ended.
        let noted = process.output.as_ref().and_then(|output| output.note.exit());
        if let Some(exit) = noted.filter(|_| is_reaped) {
            return self.exited(number, exit);
        }
        let waited = process.collecting.map_or(Duration::ZERO, |since| since.elapsed());
        let limit = match (is_reaped, self.daemon.is_some()) {
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

fn status(ended: Ended) -> Status {
    match ended {
        Ended::Code(code) => Status::Code(code),
        Ended::Signal(signal) => Status::Signal(signal),
    }
}

/// Whether nothing is left of the process: a signal finds one that has ended until it is reaped.
fn is_reaped(pidfd: std::os::fd::BorrowedFd<'_>) -> bool {
    pidfd::send_signal(pidfd, 0) == Err(Errno::SRCH)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::process::Command;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::keeper::control::Base;
    use crate::keeper::control::request::Fds;
    use crate::keeper::protocol::Record;
    use crate::keeper::report::Report;
    use crate::sys::seqpacket;

    fn control() -> Control {
        let open = |path| OwnedFd::from(std::fs::File::open(path).unwrap());
        let base = Base {
            listener: seqpacket::pair().unwrap().0,
            lock: open("/dev/null"),
            executable: open("/dev/null"),
            proc: open("/proc"),
        };
        let mut control = Control::new(base, now(), 0).unwrap();
        // One that nobody hears.
        control.daemon = Some(u64::MAX);
        control
    }

    /// A process that has ended and is reaped.
    fn gone(command: &str) -> (i32, OwnedFd) {
        let mut child = Command::new("/bin/sh").args(["-c", command]).spawn().unwrap();
        let pid = child.id() as i32;
        let number = rustix::process::Pid::from_raw(pid).unwrap();
        let pidfd = rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty()).unwrap();
        child.wait().unwrap();
        (pid, pidfd)
    }

    /// A keeper has died after the start of a process that joins a PID namespace; its successor is
    /// handed the helper, and before it can look the daemon has reaped both.
    fn handed_over_late(control: &mut Control) -> u64 {
        let (helper, pidfd) = gone("exit 0");
        let (made, _) = gone("exit 3");
        let report = Report::create().unwrap();
        Report::map(report.as_fd()).unwrap().pid_word().store(made as u32, Ordering::Release);
        let record = Record {
            id: "late".into(),
            role: RoleKind::Container,
            name: b"sh".to_vec(),
            pid: helper,
            joins: true,
            phase: Phase::Released,
            pidfd: 0,
            channel: Some(1),
            report: Some(2),
            output: None,
        };
        let fds = [pidfd, seqpacket::pair().unwrap().0, report].map(Arc::new);
        control.restore(record, &Fds(fds.into())).unwrap();
        control.find("late").unwrap()
    }

    const EXIT: Exit = Exit { status: Status::Code(3), finished_at: 1 };

    #[test]
    fn a_process_that_the_daemon_has_reaped_before_we_looked_has_run() {
        let mut control = control();
        let number = handed_over_late(&mut control);
        control.channel_ready(number);
        control.exited(number, EXIT);
        let process = &control.processes[&number];
        assert!(process.started_at() > 0);
        assert_eq!(process.exit, Some(EXIT));
    }

    #[test]
    fn the_end_of_a_helper_is_not_taken_for_the_end_of_what_it_made() {
        let mut control = control();
        let number = handed_over_late(&mut control);
        control.pidfd_ready(number);
        assert_eq!(control.processes[&number].exit, None);
        control.exited(number, EXIT);
        assert!(control.processes[&number].started_at() > 0);
    }

    /// A record of a stranger that runs or ran, as a keeper is handed one by a daemon that is not its
    /// parent either.
    fn stranger(control: &mut Control, pid: i32) -> u64 {
        let number = rustix::process::Pid::from_raw(pid).unwrap();
        let pidfd = rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty()).unwrap();
        let record = Record {
            id: "stranger".into(),
            role: RoleKind::Container,
            name: b"sh".to_vec(),
            pid,
            joins: false,
            phase: Phase::Running { started_at: 1 },
            pidfd: 0,
            channel: None,
            report: None,
            output: None,
        };
        control.restore(record, &Fds(vec![Arc::new(pidfd)])).unwrap();
        control.find("stranger").unwrap()
    }

    /// A process that was put in its helper's place is handed on as any other.
    #[test]
    fn a_record_of_a_final_process_names_no_helper() {
        let mut control = control();
        let number = stranger(&mut control, std::process::id() as i32);
        let process = control.processes.get_mut(&number).unwrap();
        process.joins = true;
        process.helper = Some(Arc::clone(&process.pidfd));
        assert!(!process.record(&mut Vec::new()).joins);
    }

    /// Its word to be parked went to a keeper that died, or is on its way: it is told to go on all the
    /// same.
    #[test]
    fn a_start_reaches_a_child_that_is_not_known_to_be_parked() {
        let mut control = control();
        let number = stranger(&mut control, std::process::id() as i32);
        let (ours, theirs) = seqpacket::pair().unwrap();
        let process = control.processes.get_mut(&number).unwrap();
        process.phase = Phase::Preparing { parks: true };
        process.channel = Some(Arc::new(ours));
        let waiter = crate::keeper::control::process::Waiter { connection: 0, message: 1 };
        control.start("stranger", waiter).unwrap();
        let mut word = [0u8; 16];
        let length = rustix::io::read(&theirs, &mut word).unwrap();
        assert_eq!(&word[..length], crate::keeper::child::GO);
    }

    /// Of a shell that is nobody's of ours: its own parent waits for it when its input ends.
    #[test]
    fn a_stranger_that_its_parent_has_not_reaped_yet_tells_how_it_ended() {
        let mut parent = Command::new("/bin/sh")
            .args(["-c", "exec 3<&0; (read -r x <&3; exit 7) & echo $!; exec sleep 1000"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(parent.stdout.take().unwrap()), &mut line)
            .unwrap();
        let mut control = control();
        let number = stranger(&mut control, line.trim().parse().unwrap());
        // An event that was its helper's.
        control.pidfd_ready(number);
        assert_eq!(control.processes[&number].exit, None);
        assert_eq!(control.processes[&number].collecting, None);

        drop(parent.stdin.take());
        let pidfd = Arc::clone(&control.processes[&number].pidfd);
        while pidfd::is_alive(pidfd.as_fd()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        control.pidfd_ready(number);
        assert_eq!(control.processes[&number].exit.map(|exit| exit.status), Some(Status::Code(7)));
        parent.kill().unwrap();
        parent.wait().unwrap();
    }
}
