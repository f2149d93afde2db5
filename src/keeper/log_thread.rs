//! The log thread's loop: which stream has a turn, what stalls, what is drained.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

use super::feed::{Feed, Feeds};
use super::log::{Command, Course, Event, Log, LogId, LogSource, Logs, Queue};
use super::log_copy::{Copier, Stalled, Turn};
use super::log_note::StreamNote;
use super::note::{NotePage, Stream};

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(1);

/// A program that writes line by line would have a batch for each few lines: in a round that comes
/// less than [`BUSY`] after the last and moves less than [`SMALL`] bytes, the pipes are given
/// [`GATHER`] to fill.
const GATHER: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000 };
const BUSY: Duration = Duration::from_millis(1);
const SMALL: usize = 16 * 1024;

/// The key of the command queue in epoll; those of streams are twice the container's and the stream,
/// that of clients who wait for room is the container's with this bit.
const COMMANDS: u64 = u64::MAX;
const FEEDS: u64 = 1 << 63;

/// What a terminal can hold for us: its buffer and the pipe behind it.
const TERMINAL: u64 = 128 * 1024;

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// One stream of a container.
struct Input {
    pipe: OwnedFd,
    /// The pty's master and the pipe's write end, where this is a terminal.
    terminal: Option<(OwnedFd, OwnedFd)>,
    watched: bool,
    /// Nobody can write any more. The descriptors are kept to be given back.
    closed: bool,
    /// Bytes still to copy of those that were there when the process ended.
    to_drain: u64,
}

struct Stall {
    retry_at: Instant,
    delay: Duration,
}

struct Container {
    note: Arc<NotePage>,
    file: Option<OwnedFd>,
    inputs: [Option<Input>; 2],
    stall: Option<Stall>,
    draining: bool,
    /// The clients that are attached.
    feeds: Feeds,
}

pub(super) struct LogThread {
    commands: Arc<Queue<Command>>,
    events: Arc<Queue<Event>>,
    course: Arc<Course>,
    epoll: Arc<OwnedFd>,
    copier: Copier,
    containers: Logs<Container>,
    /// Streams to have a turn whether epoll names them or not.
    due: Vec<(LogId, Stream)>,
    stalled: Vec<LogId>,
    /// Clients whose container is about to be added.
    early: Vec<(LogId, Feed)>,
    /// Bytes copied in this round.
    moved: usize,
}

impl LogThread {
    pub(super) fn new(
        commands: Arc<Queue<Command>>,
        events: Arc<Queue<Event>>,
        course: Arc<Course>,
    ) -> io::Result<Self> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let key = epoll::EventData::new_u64(COMMANDS);
        epoll::add(&epoll, commands.ready(), key, epoll::EventFlags::IN)?;
        let copier = Copier::new()?;
        Ok(Self {
            commands,
            events,
            course,
            epoll,
            copier,
            containers: Logs::new(),
            due: Vec::new(),
            stalled: Vec::new(),
            early: Vec::new(),
            moved: 0,
        })
    }

    /// Copies until told to stop; returns what it held.
    pub(super) fn run(mut self) -> Vec<Log> {
        let mut ready = [MaybeUninit::<epoll::Event>::uninit(); 64];
        let mut ended = Instant::now();
        loop {
            let timeout = self.timeout();
            let ready = match epoll::wait(&self.epoll, &mut ready, timeout.as_ref()) {
                Ok((ready, _)) => &*ready,
                Err(_) => &[],
            };
            let busy = ended.elapsed() < BUSY;
            let mut commanded = false;
            for event in ready {
                match event.data.u64() {
                    COMMANDS => commanded = true,
                    key if key & FEEDS != 0 => self.settle(key & !FEEDS),
                    key => self.turn(key / 2, STREAMS[(key % 2) as usize]),
                }
            }
            for (id, stream) in std::mem::take(&mut self.due) {
                self.turn(id, stream);
            }
            self.retry();
            if commanded {
                self.obey();
            }
            if self.course.is_to_stop() {
                // What was asked for before.
                self.obey();
            }
            self.course.at_nobody();
            if self.course.stops() {
                self.events.wake();
                return self.give_back();
            }
            if busy && (1..SMALL).contains(&std::mem::take(&mut self.moved)) {
                self.gather();
            }
            ended = Instant::now();
        }
    }

    fn gather(&self) {
        let mut commands = [PollFd::from_borrowed_fd(self.commands.ready(), PollFlags::IN)];
        let _ = poll(&mut commands, Some(&GATHER));
    }

    /// Until the next thing to do that epoll does not know of; None: there is none.
    fn timeout(&self) -> Option<Timespec> {
        if !self.due.is_empty() {
            return Some(Timespec { tv_sec: 0, tv_nsec: 0 });
        }
        let stalls = self.stalled.iter().filter_map(|id| self.containers.get(id)?.stall.as_ref());
        let wait = stalls.map(|stall| stall.retry_at).min()?.saturating_duration_since(Instant::now());
        Some(Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) })
    }

    fn obey(&mut self) {
        for command in self.commands.take() {
            match command {
                Command::Add(log) => self.add(log),
                Command::Reopen(id, file) => self.reopen(id, file),
                Command::Drain(id) => self.drain(id),
                Command::Remove(id) => {
                    self.unwatch(id);
                    self.containers.remove(&id);
                    self.early.retain(|(of, _)| *of != id);
                    self.stalled.retain(|other| *other != id);
                    self.events.push(Event::Removed(id));
                }
                Command::Attach(id, feed) => match self.containers.get_mut(&id) {
                    Some(container) => container.feeds.push(feed),
                    None => self.early.push((id, feed)),
                },
                Command::Detach(id, key) => {
                    self.early.retain(|(_, feed)| feed.key != key);
                    if let Some(container) = self.containers.get_mut(&id) {
                        container.feeds.remove(key);
                    }
                }
                Command::DetachAll => {
                    self.early.clear();
                    self.containers.values_mut().for_each(|c| c.feeds.clear());
                }
            }
        }
    }

    fn add(&mut self, log: Log) {
        let Log { id, note, source, file } = log;
        let input = |pipe, terminal| {
            let input = Input { pipe, terminal, watched: false, closed: false, to_drain: 0 };
            set_nonblocking(input.pipe.as_fd());
            set_nonblocking(input.watch_fd());
            Some(input)
        };
        let inputs = match source {
            LogSource::Pipes { stdout, stderr } => [input(stdout, None), input(stderr, None)],
            LogSource::Terminal { master, pipe_r, pipe_w } => [input(pipe_r, Some((master, pipe_w))), None],
        };
        self.unwatch(id);
        let (early, others) = std::mem::take(&mut self.early).into_iter().partition(|(of, _)| *of == id);
        self.early = others;
        let feeds = Vec::into_iter(early).map(|(_, feed)| feed).collect();
        let feeds = Feeds::new(feeds, &self.epoll, FEEDS | id);
        self.containers.insert(id, Container { note, file, inputs, stall: None, draining: false, feeds });
        self.resume(id);
    }

    /// Ends what was begun, then copies; or stalls.
    fn resume(&mut self, id: LogId) {
        self.course.at(id);
        let Some(container) = self.containers.get_mut(&id) else { return };
        if let Err(stalled) = container.recover(&mut self.copier) {
            return self.stall(id, stalled);
        }
        container.note.set_stalled(None);
        self.stalled.retain(|other| *other != id);
        if container.stall.take().is_some() {
            self.events.push(Event::Resumed(id));
        }
        if container.inputs.iter().flatten().any(|input| input.terminal.is_some()) {
            // Its pipe may hold bytes, and epoll watches the master.
            self.due.push((id, Stream::Stdout));
        }
        self.watch(id);
    }

    fn stall(&mut self, id: LogId, stalled: Stalled) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        let delay = match &container.stall {
            Some(stall) => (stall.delay * 2).min(RETRY_LAST),
            None => {
                container.note.set_stalled(Some(stalled.0));
                self.events.push(Event::Stalled(id, stalled.0));
                self.stalled.push(id);
                RETRY_FIRST
            }
        };
        container.stall = Some(Stall { retry_at: Instant::now() + delay, delay });
        self.unwatch(id);
    }

    fn retry(&mut self) {
        if self.stalled.is_empty() {
            return;
        }
        let now = Instant::now();
        for id in self.stalled.clone() {
            let stall = self.containers.get(&id).and_then(|container| container.stall.as_ref());
            if stall.is_some_and(|stall| stall.retry_at <= now) {
                self.resume(id);
            }
        }
    }

    fn reopen(&mut self, id: LogId, file: OwnedFd) {
        self.course.at(id);
        if let Some(container) = self.containers.get_mut(&id) {
            if container.recover(&mut self.copier).is_err() {
                container.retarget(&mut self.copier, &file);
            }
            container.file = Some(file);
            if container.stall.is_some() {
                self.resume(id);
            }
        }
        self.events.push(Event::Reopened(id));
    }

    fn drain(&mut self, id: LogId) {
        let Some(container) = self.containers.get_mut(&id) else {
            self.events.push(Event::Drained(id));
            return;
        };
        container.draining = true;
        for (input, stream) in container.inputs.iter_mut().zip(STREAMS) {
            if let Some(input) = input.as_mut().filter(|input| !input.closed) {
                let held = rustix::io::ioctl_fionread(&input.pipe).unwrap_or(0);
                // A terminal's count is not to be had: until it is empty, or what it can hold is out.
                input.to_drain = held + if input.terminal.is_some() { TERMINAL } else { 0 };
                self.due.push((id, stream));
            }
        }
        self.drained(id);
    }

    /// Reports the drain if it is done.
    fn drained(&mut self, id: LogId) {
        self.course.at(id);
        let Some(container) = self.containers.get_mut(&id) else { return };
        let left = container.inputs.iter().flatten().any(|input| input.to_drain > 0);
        if !container.draining || left || container.stall.is_some() {
            return;
        }
        for stream in STREAMS {
            if let Err(stalled) = container.flush(&mut self.copier, stream) {
                return self.stall(id, stalled);
            }
        }
        container.draining = false;
        container.feeds.end();
        self.events.push(Event::Drained(id));
    }

    /// One batch of one stream.
    fn turn(&mut self, id: LogId, stream: Stream) {
        // A client that was attached before these bytes were written sees them.
        if !self.commands.is_empty() {
            self.obey();
        }
        self.course.at(id);
        let Some(container) = self.containers.get_mut(&id) else { return };
        let Some(input) = &container.inputs[stream as usize] else { return };
        if input.closed || container.stall.is_some() {
            return;
        }
        match container.turn(&mut self.copier, stream) {
            Ok(Turn::Moved(n)) => {
                self.moved += n;
                container.feeds.send(stream, self.copier.taken(n));
                let Some(input) = container.input(stream) else { return };
                input.to_drain = input.to_drain.saturating_sub(n as u64);
                // Epoll tells of a terminal once, and not of the pipe behind it.
                if input.to_drain > 0 || input.terminal.is_some() {
                    self.due.push((id, stream));
                }
            }
            Ok(Turn::Empty) => {
                if let Some(input) = container.input(stream) {
                    input.to_drain = 0;
                }
            }
            Ok(Turn::Closed) => {
                if let Some(input) = container.input(stream) {
                    input.to_drain = 0;
                    // A terminal can be opened again, by an init that closes its console in between.
                    if input.terminal.is_none() {
                        input.unwatch(&self.epoll);
                        input.closed = true;
                    }
                }
            }
            Err(stalled) => return self.stall(id, stalled),
        }
        self.drained(id);
    }

    fn settle(&mut self, id: LogId) {
        if let Some(container) = self.containers.get_mut(&id) {
            container.feeds.settle();
        }
    }

    fn watch(&mut self, id: LogId) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        for (input, stream) in container.inputs.iter_mut().zip(STREAMS) {
            let Some(input) = input.as_mut().filter(|input| !input.closed && !input.watched) else {
                continue;
            };
            let key = epoll::EventData::new_u64(2 * id + stream as u64);
            // A terminal hangs up for as long as nobody has it open: told once, not for ever.
            let edge =
                if input.terminal.is_some() { epoll::EventFlags::ET } else { epoll::EventFlags::empty() };
            let flags = epoll::EventFlags::IN | edge;
            input.watched = epoll::add(&*self.epoll, input.watch_fd(), key, flags).is_ok();
        }
    }

    fn unwatch(&mut self, id: LogId) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        for input in container.inputs.iter_mut().flatten() {
            input.unwatch(&self.epoll);
        }
    }

    fn give_back(self) -> Vec<Log> {
        let containers = self.containers.into_iter();
        containers.filter_map(|(id, container)| container.into_log(id)).collect()
    }
}

impl Input {
    /// What tells that there is something to copy.
    fn watch_fd(&self) -> BorrowedFd<'_> {
        match &self.terminal {
            Some((master, _)) => master.as_fd(),
            None => self.pipe.as_fd(),
        }
    }

    /// Explicitly: others hold duplicates, so that closing it would not end the watch.
    fn unwatch(&mut self, epoll: &OwnedFd) {
        if std::mem::take(&mut self.watched) {
            let _ = epoll::delete(epoll, self.watch_fd());
        }
    }

    /// Moves what a terminal has into its pipe. True: nobody has it open.
    fn fill(&self) -> bool {
        let Some((master, pipe)) = &self.terminal else { return false };
        match rustix::pipe::splice(master, None, pipe, None, TERMINAL as usize, SpliceFlags::NONBLOCK) {
            // EIO: the last slave was closed.
            Ok(0) => true,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => false,
            Err(_) => true,
        }
    }
}

impl Container {
    fn input(&mut self, stream: Stream) -> Option<&mut Input> {
        self.inputs[stream as usize].as_mut()
    }

    fn note(&self, stream: Stream) -> StreamNote<'_> {
        StreamNote { page: &self.note, stream }
    }

    fn recover(&mut self, copier: &mut Copier) -> Result<(), Stalled> {
        for stream in STREAMS {
            let Some(file) = &self.file else { return Ok(()) };
            let pipe = self.inputs[stream as usize].as_ref().map(|input| input.pipe.as_fd());
            let taken = copier.recover(self.note(stream), pipe, file)?;
            self.feeds.send(stream, copier.taken(taken));
        }
        Ok(())
    }

    /// A batch that the old file did not take goes on in the new one. What fails here fails again,
    /// and is reported, when the batch is tried.
    fn retarget(&self, copier: &mut Copier, file: &OwnedFd) {
        let Some(old) = &self.file else { return };
        for stream in STREAMS {
            let pipe = self.inputs[stream as usize].as_ref().map(|input| input.pipe.as_fd());
            let _ = copier.retarget(self.note(stream), pipe, old, file);
        }
    }

    fn turn(&self, copier: &mut Copier, stream: Stream) -> Result<Turn, Stalled> {
        let Some(input) = &self.inputs[stream as usize] else { return Ok(Turn::Empty) };
        let closed = input.fill();
        let turn = match &self.file {
            Some(file) => copier.copy(self.note(stream), input.pipe.as_fd(), file)?,
            None => copier.discard(input.pipe.as_fd()),
        };
        match turn {
            Turn::Empty if closed => {}
            Turn::Closed => {}
            turn => return Ok(turn),
        }
        self.flush(copier, stream)?;
        Ok(Turn::Closed)
    }

    fn flush(&self, copier: &mut Copier, stream: Stream) -> Result<(), Stalled> {
        match &self.file {
            Some(file) => copier.flush(self.note(stream), file),
            None => Ok(()),
        }
    }

    fn into_log(self, id: LogId) -> Option<Log> {
        let [stdout, stderr] = self.inputs;
        let source = match (stdout?, stderr) {
            (Input { pipe, terminal: Some((master, pipe_w)), .. }, _) => {
                LogSource::Terminal { master, pipe_r: pipe, pipe_w }
            }
            (stdout, Some(stderr)) => LogSource::Pipes { stdout: stdout.pipe, stderr: stderr.pipe },
            _ => return None,
        };
        Some(Log { id, note: self.note, source, file: self.file })
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) {
    if let Ok(flags) = rustix::fs::fcntl_getfl(fd) {
        let _ = rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK);
    }
}
