//! Seeing an end: of a child of ours, of somebody else's, and of one whose parent was quicker.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::exit::is_starting;
use super::process::Process;
use super::{Control, now};
use crate::keeper::protocol::{Exit, Status};
use crate::sys::pidfd::{self, Ended};
use crate::sys::proc_stat::{self, ProcStat};

/// How long the exit of somebody else's child is awaited (BEHAVIOUR 41).
const COLLECT_LIMIT: Duration = Duration::from_secs(10);
const COLLECT_INTERVAL: Duration = Duration::from_millis(10);
/// How long a daemon that has reaped it may take to say so, where there is no note to write it in.
const TELL_LIMIT: Duration = Duration::from_secs(5);

impl Control {
    /// Whether a process has executed a program since its clone. None: it is reaped already, so that
    /// nobody can tell.
    pub(super) fn has_executed(&self, process: &Process) -> Option<bool> {
        self.stat(process, |stat| stat.has_executed())
    }

    /// How somebody else's child ended whom its parent has not reaped yet.
    fn unreaped(&self, process: &Process) -> Option<Status> {
        let ended = self.stat(process, |stat| stat.exit_status())?;
        // Without the right to trace it the kernel shows a zero.
        let may_trace = || {
            let own = rustix::thread::capabilities(None);
            own.is_ok_and(|own| own.effective.contains(rustix::thread::CapabilitySet::SYS_PTRACE))
        };
        (ended != 0 || may_trace()).then(|| status(Ended::from_status(ended)))
    }

    /// What the kernel says of a process. None: it is reaped.
    fn stat<T>(&self, process: &Process, of: impl Fn(&ProcStat) -> Option<T>) -> Option<T> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let path = format!("{}/stat", process.pid);
        let file = rustix::fs::openat(&self.base.proc, path, flags, Mode::empty()).ok()?;
        let mut buffer = [0u8; proc_stat::LONGEST];
        let length = rustix::io::read(&file, &mut buffer).ok()?;
        if is_reaped(process.pidfd.as_fd()) {
            // The number may have been another's by then.
            return None;
        }
        of(&ProcStat::of(&String::from_utf8_lossy(&buffer[..length]))?)
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
    pub(super) fn collect(&mut self, number: u64) {
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
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::keeper::control::Base;
    use crate::keeper::control::process::Waiter;
    use crate::keeper::control::request::Fds;
    use crate::keeper::protocol::{Phase, Record, RoleKind};
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
        let waiter = Waiter { connection: 0, message: 1 };
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
