//! Going on as another executable: execve keeps the process, its children and its descriptors.
//!
//! What is in memory travels in a memfd as numbers and names. Nothing that is under way is lost:
//! whoever waits for an answer gets it from the successor, and so does who was slow to read one.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

use super::process::{Attached, Process, Waiter, Waiters};
use super::request::Fds;
use super::{Base, Control, Hold};
use crate::keeper::log::{Event, LogHandle};
use crate::keeper::plan::Bytes;
use crate::keeper::protocol::{Exit, Record, Refusal, Reply};
use crate::keeper::setup;
use crate::keeper::wire::{self, Inbox};
use crate::sys::clone::{self, Strings};
use crate::sys::fd::take_inherited;

pub const RESUME: &str = "--resume";

/// How long the log thread may take to stop: longer than that it sleeps, in a write to a disk that
/// does not answer. Control waits meanwhile.
const STOP_LIMIT: Duration = Duration::from_secs(1);
const STOP_INTERVAL: Duration = Duration::from_micros(200);

pub struct Upgrade {
    pub executable: Arc<OwnedFd>,
    pub waiter: Waiter,
}

type WaiterState = (u64, u32);

/// What the successor reads. New fields are appended, and an older successor ignores them.
#[derive(Serialize, Deserialize)]
struct State {
    listener: RawFd,
    lock: RawFd,
    executable: RawFd,
    proc: RawFd,
    started_at: i64,
    upgrades: u32,
    next_number: u64,
    daemon: Option<u64>,
    connections: Vec<ConnectionState>,
    processes: Vec<ProcessState>,
    holds: Vec<(String, Bytes, Vec<RawFd>)>,
    /// Who asked for it.
    waiter: WaiterState,
}

/// What follows it: a predecessor that did not know of this wrote nothing.
#[derive(Default, Serialize, Deserialize)]
struct Unsent {
    /// By the connections' numbers: what their sockets had no room for.
    packets: Vec<(u64, Vec<UnsentPacket>)>,
}

/// With its descriptors.
type UnsentPacket = (Bytes, Vec<RawFd>);

#[derive(Serialize, Deserialize)]
struct ConnectionState {
    number: u64,
    socket: RawFd,
    daemon: bool,
    /// Descriptors of a message whose last packet has not come.
    pending: Vec<RawFd>,
}

#[derive(Serialize, Deserialize)]
struct ProcessState {
    number: u64,
    record: Record,
    fds: Vec<RawFd>,
    helper: Option<RawFd>,
    /// Reaped, but not told yet.
    exit: Option<Exit>,
    drained: bool,
    forgotten: bool,
    new_log: Option<RawFd>,
    run: Option<WaiterState>,
    reopen: Vec<WaiterState>,
    forget: Option<WaiterState>,
}

/// A client that is attached to a process's output. They follow the state: a predecessor that knows
/// of none has nothing there.
#[derive(Serialize, Deserialize)]
struct AttachedState {
    process: u64,
    key: u64,
    wants: [bool; 2],
    socket: RawFd,
}

fn waiter_state(waiter: &Waiter) -> WaiterState {
    (waiter.connection, waiter.message)
}

fn waiter(state: WaiterState) -> Waiter {
    Waiter { connection: state.0, message: state.1 }
}

impl Control {
    /// Has the log thread stop, between two batches. False: it sleeps, and copies on when it wakes up.
    fn logs_stop(&self) -> bool {
        let Some(logs) = &self.logs else { return true };
        logs.ask_to_stop();
        let deadline = Instant::now() + STOP_LIMIT;
        while !logs.has_stopped() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return !logs.ask_to_go_on();
            }
            std::thread::sleep(left.min(STOP_INTERVAL));
        }
        true
    }

    /// Why the log thread does not stop.
    fn stalled_log(&self) -> String {
        let process = self.logs.as_ref().and_then(LogHandle::at).and_then(|id| self.processes.get(&id));
        let which = process.map_or("a log".to_owned(), |process| {
            let log = process.output.as_ref().and_then(|output| output.log.as_ref());
            match log.and_then(|log| self.path_of(log.as_fd())) {
                Some(path) => format!("{path}, the log of {},", process.id),
                None => format!("the log of {}", process.id),
            }
        });
        format!(
            "the keeper goes on as it is: the disk of {which} does not answer, and what is being written \
             there would be lost to another executable; ask again when the disk answers"
        )
    }

    /// As the mount namespace has it in which the file was opened.
    fn path_of(&self, file: BorrowedFd<'_>) -> Option<String> {
        let link = format!("self/fd/{}", file.as_raw_fd());
        let path = rustix::fs::readlinkat(&self.base.proc, link, Vec::new()).ok()?;
        Some(path.to_string_lossy().into_owned())
    }

    /// Returns only if it did not work: then everything is as it was.
    pub(super) fn try_upgrade(&mut self, upgrade: Upgrade) {
        let Upgrade { executable, waiter } = upgrade;
        if !self.logs_stop() {
            let text = self.stalled_log();
            return self.refuse(waiter.connection, waiter.message, Refusal::State, text);
        }
        // What it held are duplicates of ours.
        if let Some(logs) = self.logs.take() {
            self.unwatch(logs.event_fd());
            for event in logs.events() {
                self.log_event(event);
            }
            for log in logs.stop() {
                self.log_in_use(log.id, log.file);
            }
        }
        let error = self.execute(executable, waiter);
        match LogHandle::start() {
            Ok(logs) => self.logs = Some(logs),
            Err(e) => eprintln!("podwright-keeper: starting the log thread again: {e}"),
        }
        let _ = self.watch_logs();
        let numbers: Vec<u64> = self.processes.keys().copied().collect();
        for number in numbers {
            let _ = self.add_log(number);
            self.resume_end(number);
        }
        let text = crate::Error::io("executing the new keeper", error).message;
        self.refuse(waiter.connection, waiter.message, Refusal::Internal, text);
    }

    /// Which file the copier has really come to, whatever of its events was still unread.
    fn log_in_use(&mut self, number: u64, file: Option<OwnedFd>) {
        let output = self.processes.get_mut(&number).and_then(|process| process.output.as_mut());
        let (Some(output), Some(file)) = (output, file) else { return };
        let same = |other: &Arc<OwnedFd>| match (rustix::fs::fstat(&file), rustix::fs::fstat(other)) {
            (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
            _ => false,
        };
        if output.new_log.as_ref().is_some_and(same) {
            self.log_event(Event::Reopened(number));
        }
    }

    fn execute(&mut self, executable: Arc<OwnedFd>, waiter: Waiter) -> io::Error {
        let mut kept: Vec<RawFd> = Vec::new();
        let state = self.state(&executable, waiter, &mut kept);
        let attached = self.attached_state(&mut kept);
        // Until execve, which they outlive.
        let mut duplicates = Vec::new();
        let result = self
            .unsent(&mut duplicates)
            .and_then(|unsent| postcard::to_stdvec(&(state, unsent, attached)).map_err(io::Error::other))
            .and_then(|content| wire::sealed("podwright-keeper-state", &content))
            .and_then(|state| {
                kept.extend(duplicates.iter().map(AsRawFd::as_raw_fd));
                kept.push(state.as_raw_fd());
                keep_open(&kept, true)?;
                let argument = CString::new(state.as_raw_fd().to_string())?;
                let argv =
                    Strings::new(vec![c"podwright-keeper".to_owned(), c"--resume".to_owned(), argument]);
                Ok(clone::execve_fd(executable.as_fd(), &argv, &Strings::new(Vec::new())).into())
            });
        let _ = keep_open(&kept, false);
        match result {
            Ok(error) | Err(error) => error,
        }
    }

    fn attached_state(&self, kept: &mut Vec<RawFd>) -> Vec<AttachedState> {
        let mut all = Vec::new();
        for (number, process) in &self.processes {
            for attached in process.output.iter().flat_map(|output| &output.attached) {
                let socket = attached.socket.as_raw_fd();
                kept.push(socket);
                all.push(AttachedState {
                    process: *number,
                    key: attached.key,
                    wants: attached.wants,
                    socket,
                });
            }
        }
        all
    }

    fn state(&self, executable: &Arc<OwnedFd>, waiter: Waiter, kept: &mut Vec<RawFd>) -> State {
        let mut keep = |fd: BorrowedFd<'_>| {
            kept.push(fd.as_raw_fd());
            fd.as_raw_fd()
        };
        State {
            listener: keep(self.base.listener.as_fd()),
            lock: keep(self.base.lock.as_fd()),
            executable: keep(executable.as_fd()),
            proc: keep(self.base.proc.as_fd()),
            started_at: self.started_at,
            upgrades: self.upgrades + 1,
            next_number: self.next_number,
            daemon: self.daemon,
            connections: (self.connections.iter())
                .map(|(number, connection)| ConnectionState {
                    number: *number,
                    socket: keep(connection.socket.as_fd()),
                    daemon: connection.daemon,
                    pending: connection.inbox.pending().iter().map(|fd| keep(fd.as_fd())).collect(),
                })
                .collect(),
            processes: (self.processes.iter())
                .map(|(number, process)| {
                    let mut fds = Vec::new();
                    let output = process.output.as_ref();
                    ProcessState {
                        number: *number,
                        record: process.record(&mut fds),
                        fds: fds.iter().map(|fd| keep(fd.as_fd())).collect(),
                        helper: process.helper.as_ref().map(|fd| keep(fd.as_fd())),
                        exit: process.exit,
                        drained: process.drained,
                        forgotten: process.forgotten,
                        new_log: output.and_then(|o| o.new_log.as_ref()).map(|fd| keep(fd.as_fd())),
                        run: process.waiters.run.as_ref().map(waiter_state),
                        reopen: process.waiters.reopen.iter().map(waiter_state).collect(),
                        forget: process.waiters.forget.as_ref().map(waiter_state),
                    }
                })
                .collect(),
            holds: (self.holds.iter())
                .map(|(key, hold)| {
                    let fds = hold.fds.iter().map(|fd| keep(fd.as_fd())).collect();
                    (key.clone(), hold.about.clone(), fds)
                })
                .collect(),
            waiter: waiter_state(&waiter),
        }
    }

    /// `duplicates`: of the descriptors, since a process and an answer about it share theirs here, but
    /// cannot after execve.
    fn unsent(&self, duplicates: &mut Vec<OwnedFd>) -> io::Result<Unsent> {
        let mut unsent = Unsent::default();
        for (number, connection) in &self.connections {
            let mut packets = Vec::new();
            for (bytes, fds) in connection.outbox.unsent() {
                let mut numbers = Vec::new();
                for fd in fds {
                    let duplicate = fd.as_ref().try_clone()?;
                    numbers.push(duplicate.as_raw_fd());
                    duplicates.push(duplicate);
                }
                packets.push((bytes, numbers));
            }
            unsent.packets.push((*number, packets));
        }
        Ok(unsent)
    }

    /// Goes on with an end that a predecessor (or we, before an upgrade that failed) had begun.
    pub(super) fn resume_end(&mut self, number: u64) {
        let Some(process) = self.processes.get(&number) else { return };
        if process.forgotten && (process.exit.is_some() || process.waiters.forget.is_some()) {
            self.forget(number);
        } else if process.exit.is_some() && !process.drained {
            self.drain(number);
        }
    }

    fn take_state(&mut self, state: State, unsent: Unsent) -> io::Result<()> {
        let State { processes, holds, connections, daemon, next_number, .. } = state;
        // First, so that what comes of the processes is told behind what waits.
        for connection in connections {
            let inbox = Inbox::with_pending(take_all(&connection.pending)?);
            self.next_number = connection.number;
            let number = self.add_connection(take_inherited(connection.socket)?, inbox)?;
            if let Some(taken) = self.connections.get_mut(&number) {
                taken.daemon = connection.daemon;
            }
        }
        self.daemon = daemon;
        self.take_unsent(unsent)?;
        for process in processes {
            let fds = Fds(take_all(&process.fds)?.into_iter().map(Arc::new).collect());
            let mut taken =
                Process::from_record(process.record, &fds).map_err(|(_, text)| io::Error::other(text))?;
            taken.exit = process.exit;
            taken.drained = process.drained;
            taken.forgotten = process.forgotten;
            taken.helper = process.helper.map(take_inherited).transpose()?.map(Arc::new);
            if let Some(output) = &mut taken.output {
                output.new_log = process.new_log.map(take_inherited).transpose()?.map(Arc::new);
            }
            taken.waiters = Waiters {
                run: process.run.map(waiter),
                reopen: process.reopen.into_iter().map(waiter).collect(),
                forget: process.forget.map(waiter),
            };
            // Waiters name processes and connections by their numbers, which stay.
            self.next_number = process.number;
            let number = self.add_process(taken)?;
            self.watch_helper(number)?;
            self.take_early(number);
            self.add_log(number)?;
            self.resume_end(number);
        }
        for (key, about, fds) in holds {
            let fds = take_all(&fds)?.into_iter().map(Arc::new).collect();
            self.holds.insert(key, Hold { about, fds });
        }
        self.next_number = next_number;
        Ok(())
    }

    /// Before any reply of our own: what a connection is told stays in order.
    fn take_unsent(&mut self, unsent: Unsent) -> io::Result<()> {
        for (number, packets) in unsent.packets {
            for (bytes, fds) in packets {
                let fds = take_all(&fds)?.into_iter().map(Arc::new).collect();
                if let Some(connection) = self.connections.get_mut(&number) {
                    let pushed = connection.outbox.push_unsent(&bytes, fds);
                    pushed.ok_or_else(|| io::Error::other("an unsent packet is too short"))?;
                }
            }
            self.flush(number);
        }
        Ok(())
    }
}

fn take_all(fds: &[RawFd]) -> io::Result<Vec<OwnedFd>> {
    fds.iter().copied().map(take_inherited).collect()
}

/// Whether descriptors outlive execve.
fn keep_open(fds: &[RawFd], open: bool) -> io::Result<()> {
    let flags = if open { FdFlags::empty() } else { FdFlags::CLOEXEC };
    for fd in fds {
        crate::sys::fd::set_flags(*fd, flags)?;
    }
    Ok(())
}

/// A part that was appended to the state in the course of time: a predecessor may not have known it.
fn appended<'a, T: Default + Deserialize<'a>>(rest: &'a [u8]) -> io::Result<(T, &'a [u8])> {
    match rest {
        [] => Ok((T::default(), rest)),
        _ => postcard::take_from_bytes(rest).map_err(io::Error::other),
    }
}

/// The successor's start.
pub fn resume(state: &OsStr) -> io::Result<()> {
    // The execve has reset it.
    setup::harden()?;
    let number = state.to_str().and_then(|text| text.parse().ok());
    let number = number.ok_or_else(|| io::Error::other("the state's descriptor is no number"))?;
    let memory = take_inherited(number)?;
    let length = rustix::fs::fstat(&memory)?.st_size as usize;
    let content = wire::read_all(memory.as_fd(), length)?;
    let (state, rest): (State, _) = postcard::take_from_bytes(&content).map_err(io::Error::other)?;
    let (unsent, rest): (Unsent, _) = appended(rest)?;
    let (attached, _): (Vec<AttachedState>, _) = appended(rest)?;
    drop(memory);
    let base = Base {
        listener: take_inherited(state.listener)?,
        lock: take_inherited(state.lock)?,
        executable: take_inherited(state.executable)?,
        proc: take_inherited(state.proc)?,
    };
    let asked = waiter(state.waiter);
    let mut control = Control::new(base, state.started_at, state.upgrades)?;
    for AttachedState { process, key, wants, socket } in attached {
        let socket = Arc::new(take_inherited(socket)?);
        if let Some(process) = state.processes.iter().find(|other| other.number == process) {
            control.early.push((process.record.id.clone(), Attached { key, wants, socket }));
        }
    }
    control.take_state(state, unsent)?;
    control.reply(asked.connection, asked.message, &Reply::Done, Vec::new());
    // Children that ended meanwhile.
    control.sweep();
    control.serve()
}
