//! Attach: a client at a container's own streams. The copier of its log shows it what comes.
//!
//! ```text
//!  container ──▶ log copier ──▶ log
//!                  └─ socket, full: counted ─▶ 1 MiB here ─▶ client
//! ```
//!
//! A client that reads too slowly holds up nobody: it is told how much it has missed. Where the log
//! cannot be written, what it would have shown last is not shown either, and the client is told so.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, watch};

use super::chunk::Chunk;
use super::remote_command::pump::{self, Input};
use super::remote_command::status::Status;
use super::remote_command::{Outlet, Streams, Wanted};
use crate::container::{Container, exec_session};
use crate::error::Step;
use crate::keeper::client::{Attached, Detach, Output, Process, Source};
use crate::keeper::feed;
use crate::keeper::note::{self, Stream};
use crate::node::Node;
use crate::sys::async_fd;
use crate::{Error, Result};

/// Records of at most 32 KiB that wait for a client.
const WAITING: usize = 32;

/// How long after the container's end the copier may take to say that this was all. It does not where
/// the log's disk is stalled, or where it is of an older version.
const LAST_LIMIT: Duration = Duration::from_secs(5);

/// What waits for a client.
enum Shown {
    Record(Chunk),
    /// No more comes: the log is not written, maybe with this errno.
    Unfinished(Option<i32>),
}

#[derive(Debug, Clone)]
pub struct Ticket {
    pub container_id: String,
    pub wanted: Wanted,
}

/// NOT_FOUND or FAILED_PRECONDITION unless the container runs or is going to.
pub fn check(node: &Node, id: &str) -> Result<Arc<Container>> {
    let container = node.containers.find(id)?;
    process(&container)?;
    Ok(container)
}

fn process(container: &Container) -> Result<Process> {
    let gone = || Error::precondition(format!("container {} has ended", container.id));
    container.process().ok_or_else(gone)
}

/// Serves one session, up to the container's end or the client's.
pub async fn serve(node: &Arc<Node>, ticket: Ticket, streams: Streams) {
    let session = match Session::begin(node, &ticket).await {
        Ok(session) => session,
        Err(error) => {
            let status = Status::Error(format!("error attaching to container: {error}"));
            return streams.conclude(&status).await;
        }
    };
    let id = ticket.container_id;
    let once = session.once;
    let ended = session.run(node, &streams).await;
    if once {
        close_stdin(node, &id).await;
    }
    if ended {
        streams.conclude(&Status::Success).await;
    }
}

async fn close_stdin(node: &Node, id: &str) {
    // One that has ended, or whose keeper is gone, has none.
    if let Err(error) = node.keeper.close_stdin(id).await {
        tracing::debug!(%error, "standard input is not closed");
    }
}

struct Session {
    id: String,
    process: Process,
    records: AsyncFd<OwnedFd>,
    _detach: Detach,
    stdin: Option<Input>,
    /// Its input ends with its first client's.
    once: bool,
    /// Of a terminal, for its size.
    master: Option<Arc<OwnedFd>>,
}

impl Session {
    async fn begin(node: &Arc<Node>, ticket: &Ticket) -> Result<Self> {
        let container = node.containers.find(&ticket.container_id)?;
        let process = process(&container)?;
        let Wanted { stdin, stdout, stderr, .. } = ticket.wanted;
        let Attached { socket, guard } = node.keeper.attach(&container.id, stdout, stderr).await?;
        let step = || "watching the container's streams";
        let records = async_fd::watch(socket, Interest::READABLE).step(step)?;
        let output = node.keeper.output(&container.id);
        let master = output.as_ref().and_then(|output| match &output.source {
            Source::Terminal { master, .. } => Some(Arc::clone(master)),
            Source::Pipes { .. } => None,
        });
        let input = output.as_ref().filter(|_| stdin).map(open_input).transpose().step(step)?.flatten();
        let once = input.is_some() && container.record.spec.stdin_once && master.is_none();
        Ok(Self { id: container.id.clone(), process, records, _detach: guard, stdin: input, once, master })
    }

    /// Up to the container's end. False: the client left.
    async fn run(self, node: &Node, streams: &Streams) -> bool {
        let Self { id, process, records, stdin, once, master, _detach } = self;
        let taken = Notify::new();
        let input = async {
            match (stdin, &streams.stdin) {
                (Some(stdin), Some(inlet)) => {
                    stdin.copy(inlet).await;
                    if once {
                        close_stdin(node, &id).await;
                    }
                }
                (_, Some(inlet)) => inlet.stop_reading(),
                _ => {}
            }
            taken.notify_one();
        };
        let sizes = async {
            if let (Some(master), Some(inlet)) = (&master, &streams.resize) {
                pump::sizes(inlet, |size| exec_session::resize(master, size.width, size.height)).await;
            }
        };
        let inputs = async {
            tokio::join!(input, sizes);
            std::future::pending::<()>().await;
        };
        let (end, ended) = watch::channel(false);
        let (queue, waiting) = mpsc::channel(WAITING);
        let outputs = async {
            let exit = async {
                process.exited().await;
                let _ = end.send(true);
            };
            let collect = async {
                let came = collect(records, &queue, ended).await;
                let note = node.layout.container_state(&id).join("note");
                if !came && note::is_whole_in(&note) == Some(false) {
                    let _ = queue.send(Shown::Unfinished(note::stalled_in(&note))).await;
                }
                drop(queue);
            };
            tokio::join!(exit, collect, show(waiting, streams));
        };
        tokio::select! {
            () = outputs => true,
            () = inputs => false,
            () = streams.left(&taken) => false,
        }
    }
}

/// An end of its own, which is closed with the session.
fn open_input(output: &Output) -> io::Result<Option<Input>> {
    let Some(stdin) = &output.stdin else { return Ok(None) };
    let stdin = stdin.try_clone()?;
    // The daemon's end alone: the container reads from another open file.
    let flags = rustix::fs::fcntl_getfl(&stdin)?;
    rustix::fs::fcntl_setfl(&stdin, flags | rustix::fs::OFlags::NONBLOCK)?;
    Input::new(stdin).map(Some)
}

/// Takes records as they come, up to the end of them. False: it does not come in time.
async fn collect(
    records: AsyncFd<OwnedFd>,
    queue: &mpsc::Sender<Shown>,
    mut ended: watch::Receiver<bool>,
) -> bool {
    let read = |fd: &AsyncFd<OwnedFd>| Ok(Chunk::read(fd.get_ref(), feed::HEADER + feed::RECORD)?);
    loop {
        let next = async {
            loop {
                let mut ready = records.readable().await?;
                if let Ok(record) = ready.try_io(read) {
                    return record;
                }
            }
        };
        let over = *ended.borrow_and_update();
        let record = tokio::select! {
            record = next => record,
            changed = ended.changed(), if !over => if changed.is_err() { return true } else { continue },
            () = tokio::time::sleep(LAST_LIMIT), if over => return false,
        };
        match record {
            Ok(record) if record.is_empty() => return true,
            Ok(record) => {
                if queue.send(Shown::Record(record)).await.is_err() {
                    return true;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return true,
        }
    }
}

async fn show(mut waiting: mpsc::Receiver<Shown>, streams: &Streams) {
    while let Some(shown) = waiting.recv().await {
        let mut record = match shown {
            Shown::Record(record) => record,
            Shown::Unfinished(errno) => {
                if let Some(outlet) = streams.stderr.as_ref().or(streams.stdout.as_ref()) {
                    let _ = outlet.write(Chunk::copied(unfinished_notice(errno).as_bytes())).await;
                }
                continue;
            }
        };
        let Some((stream, missed)) = feed::header(record.as_slice()) else { continue };
        let outlet = match stream {
            Stream::Stdout => &streams.stdout,
            Stream::Stderr => &streams.stderr,
        };
        let Some(outlet) = outlet else { continue };
        if missed > 0 {
            let _ = told(streams, outlet).write(Chunk::copied(notice(missed).as_bytes())).await;
        }
        record.skip(feed::HEADER);
        if !record.is_empty() {
            let _ = outlet.write(record).await;
        }
    }
    for outlet in [&streams.stdout, &streams.stderr].into_iter().flatten() {
        let _ = outlet.finish().await;
    }
}

/// Where a client is told of what it missed: beside its output, if it can be.
fn told<'a>(streams: &'a Streams, outlet: &'a Outlet) -> &'a Outlet {
    streams.stderr.as_ref().unwrap_or(outlet)
}

fn unfinished_notice(errno: Option<i32>) -> String {
    let why = errno.map(|errno| format!(" ({})", io::Error::from_raw_os_error(errno))).unwrap_or_default();
    format!("\r\n[the end of the output is not shown: it is not in the log yet{why}]\r\n")
}

fn notice(missed: u64) -> String {
    format!("\r\n[{missed} bytes are not shown: they came faster than they were read]\r\n")
}
