//! Exec: a process in a container whose standard streams are a client's.
//!
//! It is the keeper's child, as every exec; its pipes or its terminal are the caller's alone. When
//! the caller drops them the terminal hangs up, or the pipes close; the process is left to itself.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::OpenptFlags;

use crate::container::exec::{Guard, Stdio, template};
use crate::container::{Container, Phase, null, stdio};
use crate::error::{Kind, Step as _};
use crate::keeper::client::{Exit, Process};
use crate::node::Node;
use crate::{Error, Result};

/// statfs(2)
const DEVPTS_SUPER_MAGIC: rustix::fs::FsWord = 0x1cd1;

/// What to run; the streams that are not asked for are the null device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    pub argv: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// One terminal in place of the three.
    pub tty: bool,
}

/// The caller's ends, non-blocking.
pub enum Ends {
    Pipes { stdin: Option<OwnedFd>, stdout: Option<OwnedFd>, stderr: Option<OwnedFd> },
    Terminal { master: OwnedFd },
}

pub struct Session {
    process: Process,
    guard: Guard,
}

impl Session {
    pub async fn exited(&self) -> Exit {
        self.process.exited().await
    }

    /// The client is gone. The process may go on, and its cgroup goes when it ends.
    pub fn release(self) {
        tokio::spawn(async move {
            let Self { process, guard } = self;
            process.exited().await;
            drop(guard);
        });
    }
}

/// NOT_FOUND or FAILED_PRECONDITION unless the container runs.
pub fn check(node: &Node, id: &str) -> Result<Arc<Container>> {
    let container = node.containers.find(id)?;
    running(&container)?;
    Ok(container)
}

fn running(container: &Container) -> Result<Process> {
    match container.phase() {
        Phase::Running { process, .. } => Ok(process),
        _ => Err(Error::precondition(format!("container {} is not running", container.id))),
    }
}

/// Runs it. A program that cannot be executed is an error that names it (BEHAVIOUR 16).
pub async fn begin(node: &Arc<Node>, id: &str, wish: &Wish) -> Result<(Session, Ends)> {
    let container = node.containers.find(id)?;
    let main = running(&container)?;
    let (uid, gid) = template(node, &container)?.user();
    let (stdio, ends) = if wish.tty {
        open_terminal(node, &container, &main, uid).await?
    } else {
        open_pipes(wish, uid, gid)?
    };
    let mut guard = Guard::new(node, &container)?;
    let process = guard.spawn(&container, &main, &wish.argv, stdio).await?;
    guard.leave();
    Ok((Session { process, guard }, ends))
}

fn open_pipes(wish: &Wish, uid: u32, gid: u32) -> Result<(Stdio, Ends)> {
    let null = Arc::new(null::open()?);
    // (ours, the process's)
    let make = |wanted: bool, input: bool| -> Result<(Option<OwnedFd>, Arc<OwnedFd>)> {
        if !wanted {
            return Ok((None, Arc::clone(&null)));
        }
        let step = || "making the exec's pipes";
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).step(step)?;
        let (ours, theirs) = if input { (write, read) } else { (read, write) };
        stdio::give(&theirs, uid, gid).step(step)?;
        // For us alone: the other end is another open file.
        let flags = rustix::fs::fcntl_getfl(&ours).step(step)?;
        rustix::fs::fcntl_setfl(&ours, flags | OFlags::NONBLOCK).step(step)?;
        Ok((Some(ours), Arc::new(theirs)))
    };
    let (stdin, a) = make(wish.stdin, true)?;
    let (stdout, b) = make(wish.stdout, false)?;
    let (stderr, c) = make(wish.stderr, false)?;
    Ok((Stdio { child: [a, b, c], terminal: false }, Ends::Pipes { stdin, stdout, stderr }))
}

/// A terminal of the container's own devpts, so that its name means something in there.
async fn open_terminal(
    node: &Node,
    container: &Container,
    main: &Process,
    uid: u32,
) -> Result<(Stdio, Ends)> {
    let main = main.clone();
    let limit = Duration::from_secs(node.config.container.volume_timeout);
    let what = format!("opening a terminal of container {}", container.id);
    let master = container.inside.look(&what, limit, move || open_ptmx(&main)).await?;
    rustix::pty::unlockpt(&master).step(|| "unlocking the terminal")?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave =
        rustix::pty::ioctl_tiocgptpeer(master.as_fd(), flags).step(|| "opening the terminal's slave")?;
    // The group stays tty's, as for a login.
    rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None)
        .step(|| "giving the terminal to the user")?;
    let slave = Arc::new(slave);
    let child = [Arc::clone(&slave), Arc::clone(&slave), slave];
    Ok((Stdio { child, terminal: true }, Ends::Terminal { master }))
}

/// /dev/pts/ptmx as the container sees it, found without following anything that it may have put in
/// the way, and on devpts itself.
fn open_ptmx(main: &Process) -> Result<OwnedFd> {
    let step = || "opening /dev/pts of the container";
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::openat(CWD, format!("/proc/{}/root", main.pid), directory, Mode::empty()).step(step)?;
    if !crate::sys::pidfd::is_alive(main.pidfd.as_fd()) {
        // Its number may be another's by now.
        return Err(Error::precondition("the container has ended"));
    }
    let plain = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let pts = rustix::fs::openat2(&root, "dev/pts", directory, Mode::empty(), plain | ResolveFlags::IN_ROOT);
    let pts =
        pts.map_err(|e| Error::io(step(), e)).map_err(|e| Error::new(Kind::FailedPrecondition, e.message))?;
    if rustix::fs::fstatfs(&pts).step(step)?.f_type != DEVPTS_SUPER_MAGIC {
        return Err(Error::precondition("/dev/pts of the container is not devpts: it can have no terminal"));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let beneath = plain | ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(&pts, "ptmx", flags, Mode::empty(), beneath)
        .step(|| "opening a terminal of the container")
}

/// Tells a terminal its size; the programs on it get SIGWINCH.
pub fn resize(master: impl AsFd, width: u16, height: u16) {
    let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // A terminal that is gone has no size.
    let _ = rustix::termios::tcsetwinsize(master, size);
}
