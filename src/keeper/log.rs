//! The log copier: a thread that moves the output of all containers to their log files.
//!
//! Control hands it pipes, files and notes, and is told of what came of it by an eventfd; it never
//! waits for this thread. `log_copy` has the way of a batch, `log_note` what a
//! successor finds.
//!
//! - Each turn of a ready stream is one batch, in the order of epoll's list: a container that floods
//!   its log has one turn in each round, as all others.
//! - Where a log file cannot be written, the container's pipes are left alone, so that it blocks on
//!   them, and the batch is tried again, after 50 ms to 1 s.
//! - A disk that does not answer blocks the thread.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use super::feed::Feed;
use super::log_thread::LogThread;
use super::note::NotePage;

/// A container, as control names it; below 2^63.
pub type LogId = u64;

/// Enough for the deepest call here, in a debug build as well.
const STACK: usize = 256 * 1024;

/// Where a container's output comes from. All are set to non-blocking.
#[derive(Debug)]
pub enum LogSource {
    /// The pipes' read ends.
    Pipes { stdout: OwnedFd, stderr: OwnedFd },
    /// A pty's master, and the two ends of the pipe that it is spliced into: tee needs a pipe.
    Terminal { master: OwnedFd, pipe_r: OwnedFd, pipe_w: OwnedFd },
}

/// A container's log, as it was handed in or given back.
#[derive(Debug)]
pub struct Log {
    pub id: LogId,
    pub note: Arc<NotePage>,
    pub source: LogSource,
    /// Opened O_RDWR | O_APPEND: its end is compared with what was noted. None: output is dropped.
    pub file: Option<OwnedFd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The old file gets no more bytes.
    Reopened(LogId),
    /// What the pipes held at the drain is in the file, and an unfinished line too. Bytes that
    /// somebody who still holds a pipe writes are copied on.
    Drained(LogId),
    /// All its descriptors are closed.
    Removed(LogId),
    /// The file cannot be written, with the errno; the container blocks when its pipe is full.
    Stalled(LogId, i32),
    /// It can again.
    Resumed(LogId),
}

pub(super) enum Command {
    Add(Log),
    Reopen(LogId, OwnedFd),
    Drain(LogId),
    Remove(LogId),
    Attach(LogId, Feed),
    Detach(LogId, u64),
    DetachAll,
}

/// A queue of one side, and the eventfd that says it has something.
pub(super) struct Queue<T> {
    items: Mutex<Vec<T>>,
    ready: OwnedFd,
}

impl<T> Queue<T> {
    fn new() -> io::Result<Self> {
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { items: Mutex::new(Vec::new()), ready })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, item: T) {
        self.lock().push(item);
        self.wake();
    }

    /// Has the other side look, whether there is an item or not.
    pub(super) fn wake(&self) {
        // EAGAIN means that it is readable already.
        let _ = rustix::io::write(&self.ready, &1u64.to_ne_bytes());
    }

    pub(super) fn take(&self) -> Vec<T> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.ready, &mut count);
        std::mem::take(&mut *self.lock())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    pub(super) fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

const COPIES: u8 = 0;
const IS_TO_STOP: u8 = 1;
const HAS_STOPPED: u8 = 2;
const NOBODY: LogId = LogId::MAX;

/// What both sides know of the thread at any moment, even while a disk keeps it from answering.
pub(super) struct Course {
    stage: AtomicU8,
    /// Whose log it is at.
    at: AtomicU64,
}

impl Course {
    fn change(&self, from: u8, to: u8) -> bool {
        self.stage.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(super) fn is_to_stop(&self) -> bool {
        self.stage.load(Ordering::Acquire) == IS_TO_STOP
    }

    /// Whether to stop now. After a yes nobody can take the wish back.
    pub(super) fn stops(&self) -> bool {
        self.change(IS_TO_STOP, HAS_STOPPED)
    }

    pub(super) fn at(&self, id: LogId) {
        self.at.store(id, Ordering::Relaxed);
    }

    pub(super) fn at_nobody(&self) {
        self.at(NOBODY);
    }
}

/// The log thread. Dropped, it goes on; [`LogHandle::stop`] ends it.
pub struct LogHandle {
    commands: Arc<Queue<Command>>,
    events: Arc<Queue<Event>>,
    course: Arc<Course>,
    thread: JoinHandle<Vec<Log>>,
}

impl LogHandle {
    /// Starts the thread. It inherits the signal mask.
    pub fn start() -> io::Result<Self> {
        let commands = Arc::new(Queue::new()?);
        let events = Arc::new(Queue::new()?);
        let course = Arc::new(Course { stage: AtomicU8::new(COPIES), at: AtomicU64::new(NOBODY) });
        let log = LogThread::new(Arc::clone(&commands), Arc::clone(&events), Arc::clone(&course))?;
        let thread = std::thread::Builder::new().name("log".into()).stack_size(STACK).spawn(|| log.run())?;
        Ok(Self { commands, events, course, thread })
    }

    /// Copies from `source` to `file` from now on, after what `note` says was begun.
    pub fn add(&self, id: LogId, note: Arc<NotePage>, source: LogSource, file: Option<OwnedFd>) {
        self.commands.push(Command::Add(Log { id, note, source, file }));
    }

    /// Goes on with another file; [`Event::Reopened`] follows. A keeper that takes over before that
    /// is to be given the old file.
    pub fn reopen(&self, id: LogId, file: OwnedFd) {
        self.commands.push(Command::Reopen(id, file));
    }

    /// The process has ended: [`Event::Drained`] follows.
    pub fn drain(&self, id: LogId) {
        self.commands.push(Command::Drain(id));
    }

    /// Sends a container's output to a client as well, from now on.
    pub(super) fn attach(&self, id: LogId, feed: Feed) {
        self.commands.push(Command::Attach(id, feed));
    }

    pub fn detach(&self, id: LogId, key: u64) {
        self.commands.push(Command::Detach(id, key));
    }

    /// Drops every client.
    pub fn detach_all(&self) {
        self.commands.push(Command::DetachAll);
    }

    /// Closes all of a container's descriptors; [`Event::Removed`] follows.
    pub fn remove(&self, id: LogId) {
        self.commands.push(Command::Remove(id));
    }

    /// Readable when there are events.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.events.ready()
    }

    /// What happened since the last call.
    pub fn events(&self) -> Vec<Event> {
        self.events.take()
    }

    /// Asks the thread to end between two batches. When it has, the events' descriptor is readable.
    pub fn ask_to_stop(&self) {
        self.course.change(COPIES, IS_TO_STOP);
        self.commands.wake();
    }

    pub fn has_stopped(&self) -> bool {
        self.course.stage.load(Ordering::Acquire) == HAS_STOPPED
    }

    /// Takes it back: the thread copies on as if nobody had asked. False: it has stopped.
    pub fn ask_to_go_on(&self) -> bool {
        self.course.change(IS_TO_STOP, COPIES) || !self.has_stopped()
    }

    /// Whose log the thread is at, or sleeps at.
    pub fn at(&self) -> Option<LogId> {
        Some(self.course.at.load(Ordering::Relaxed)).filter(|id| *id != NOBODY)
    }

    /// Ends the thread and gives back all that it held, for an execve in place. A drain that was not
    /// reported is to be asked for again.
    /// Waits while a disk does not answer (as execve would), unless it [has stopped](Self::has_stopped).
    pub fn stop(self) -> Vec<Log> {
        self.ask_to_stop();
        self.thread.join().unwrap_or_default()
    }
}

/// By container.
pub(super) type Logs<T> = BTreeMap<LogId, T>;
