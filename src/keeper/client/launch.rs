//! Finding a keeper, or starting one.
//!
//! ```text
//! STATE/keeper.sock   where it listens
//! STATE/keeper.lock   locked while it lives: there is never a second one
//! STATE/keeper.log    what it has to say when something is badly wrong
//! ```

use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FlockOperation;

use super::Config;
use crate::error::Step;
use crate::keeper::protocol::{KeeperStatus, Reply, Request, Setup, VERSION};
use crate::keeper::wire::{self, Inbox};
use crate::sys::seqpacket;
use crate::{Error, Result};

const SOCKET: &str = "keeper.sock";
/// How long a keeper that holds the lock may take to listen.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long one that listens may take to answer who only looks.
const LOOK_LIMIT: Duration = Duration::from_secs(20);

/// A connection to a keeper, and the keeper itself if we have just started it. Blocks.
pub fn find_or_start(config: &Config) -> Result<(OwnedFd, Option<Child>)> {
    std::fs::create_dir_all(&config.state).step(|| format!("creating {}", config.state.display()))?;
    let path = config.state.join("keeper.lock");
    let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let lock = OwnedFd::from(open.step(|| format!("opening {}", path.display()))?);
    let deadline = Instant::now() + ANSWER_LIMIT;
    loop {
        if let Ok(socket) = seqpacket::connect(&config.state, SOCKET) {
            return Ok((socket, None));
        }
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let (socket, child) = start(config, lock)?;
                return Ok((socket, Some(child)));
            }
            Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(rustix::io::Errno::AGAIN) => {
                let text = format!("a keeper holds {}, but does not answer", path.display());
                return Err(Error::unavailable(text));
            }
            Err(e) => return Err(Error::io(format_args!("locking {}", path.display()), e)),
        }
    }
}

fn start(config: &Config, lock: OwnedFd) -> Result<(OwnedFd, Child)> {
    let executable = sealed_executable(&config.executable)?;
    let socket = config.state.join(SOCKET);
    let listener =
        seqpacket::listen(&config.state, SOCKET).step(|| format!("listening on {}", socket.display()))?;
    let mut fds = vec![Arc::new(listener), Arc::new(lock), Arc::clone(&executable)];
    for path in &config.cgroup_procs {
        // systemd removes the cgroup of a scope whose process, the keeper before, has ended.
        if let Some(cgroup) = path.parent() {
            std::fs::create_dir_all(cgroup).step(|| format!("making cgroup {}", cgroup.display()))?;
        }
        let file = OpenOptions::new().write(true).open(path);
        fds.push(Arc::new(file.step(|| format!("opening {}", path.display()))?.into()));
    }
    let (ours, theirs) = seqpacket::pair().step(|| "making the keeper's first connection")?;
    let log = config.state.join("keeper.log");
    let open = OpenOptions::new().create(true).append(true).mode(0o600).open(&log);
    let log = open.step(|| format!("opening {}", log.display()))?;
    let number = std::os::fd::AsRawFd::as_raw_fd(executable.as_ref());
    let child = Command::new(format!("/proc/self/fd/{number}"))
        .arg0("podwright-keeper")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .spawn()
        .step(|| format!("starting {}", config.executable.display()))?;
    let cgroup_procs = config.cgroup_procs.len() as u16;
    wire::send_all(ours.as_fd(), 0, &Setup { version: VERSION, cgroup_procs }, fds)
        .step(|| "setting the keeper up")?;
    Ok((ours, child))
}

/// A copy that no container could write to, were it to get at it: CVE-2019-5736.
pub fn sealed_executable(path: &Path) -> Result<Arc<OwnedFd>> {
    let content = std::fs::read(path).step(|| format!("reading {}", path.display()))?;
    let fd = wire::sealed("podwright-keeper", &content).step(|| "copying the keeper's executable")?;
    Ok(Arc::new(fd))
}

/// One question on a connection of its own.
fn ask(state: &Path, request: &Request, fds: Vec<Arc<OwnedFd>>) -> Result<Reply> {
    let step = || format!("asking the keeper at {}", state.join(SOCKET).display());
    let socket = seqpacket::connect(state, SOCKET).step(step)?;
    let hello = Request::Hello { version: VERSION, observer: true };
    wire::send_all(socket.as_fd(), 1, &hello, Vec::new()).step(step)?;
    wire::send_all(socket.as_fd(), 2, request, fds).step(step)?;
    let mut inbox = Inbox::default();
    let limit = rustix::event::Timespec { tv_sec: LOOK_LIMIT.as_secs() as i64, tv_nsec: 0 };
    loop {
        let wait = || poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&limit));
        if rustix::io::retry_on_intr(wait).step(step)? == 0 {
            return Err(Error::unavailable(format!("{}: it does not answer", step())));
        }
        match inbox.receive(socket.as_fd()) {
            Ok(answer) if answer.number == 2 => {
                return answer
                    .decode()
                    .map_err(|e| Error::internal(format!("{}: it may be of another version: {e}", step())));
            }
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(Error::io(step(), e)),
        }
    }
}

pub fn observe(state: &Path) -> Result<KeeperStatus> {
    match ask(state, &Request::Status, Vec::new())? {
        Reply::Status(status) => Ok(status),
        other => Err(super::requests::unexpected(other)),
    }
}

pub fn upgrade(state: &Path, executable: &Path) -> Result<()> {
    match ask(state, &Request::Upgrade, vec![sealed_executable(executable)?])? {
        Reply::Done => Ok(()),
        other => Err(super::requests::unexpected(other)),
    }
}
