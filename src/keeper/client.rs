//! The daemon's end: requests to the keeper, duplicates of all it holds, its restart.
//!
//! The duplicates live here: whoever spawns hands in every fd once, the client keeps a copy of
//! what must outlive the keeper (pidfd, release end, log pipes, holds) and hands all of it to the
//! next keeper when one dies. The rest of the daemon sees a keeper's death only as UNAVAILABLE on
//! the requests that were under way.

mod fd_store;
mod launch;
mod link;
mod recover;
mod requests;
mod table;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::fd_store::FdStore;
use self::recover::Shared;
pub use self::requests::exec_failed;
use super::plan::SpawnPlan;
pub use super::protocol::{Exit, KeeperStatus, RoleKind, Status};
use crate::{Error, Result};

#[derive(Debug, Clone)]
pub struct Config {
    /// Of this boot; holds `keeper.sock`.
    pub state: PathBuf,
    /// The keeper's executable; copied into a sealed memfd before it runs.
    pub executable: PathBuf,
    /// Where the keeper goes, out of the daemon's own cgroup: `tasks` or `cgroup.procs` files.
    pub cgroup_procs: Vec<PathBuf>,
    /// A third holder of what is held.
    pub fd_store: Arc<FdStore>,
    /// Told the pid of each keeper that this daemon gets to know.
    pub met: Met,
}

/// What is done about a keeper, e.g. making a unit around it; it must not block.
#[derive(Clone)]
pub struct Met(pub Arc<dyn Fn(i32) + Send + Sync>);

impl Default for Met {
    fn default() -> Self {
        Self(Arc::new(|_| ()))
    }
}

impl std::fmt::Debug for Met {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Met")
    }
}

/// A process to spawn. `fds` is what the plan's numbers mean.
pub struct Spawn {
    /// A container's ID, or that of a pod's init or an exec: unique on the node.
    pub id: String,
    pub plan: SpawnPlan,
    pub fds: Vec<Arc<OwnedFd>>,
    pub role: Role,
}

pub enum Role {
    /// Parks; its output is copied to its log; kept until forgotten.
    Container(Output),
    /// PID 1 of a pod with a shared PID namespace; kept until forgotten.
    PodInit,
    /// Runs at once; its stdio is the daemon's business. Forgotten when its exit was told.
    Exec,
}

/// Where a container's output comes from and goes to.
#[derive(Clone)]
pub struct Output {
    /// One page, mapped by the keeper: the note of the log copier, the start and the exit.
    /// A file of the state directory, so that it outlives both processes.
    pub note: Arc<OwnedFd>,
    pub source: Source,
    /// Opened O_RDWR | O_APPEND; None: drained and dropped (BEHAVIOUR 39).
    pub log: Option<Arc<OwnedFd>>,
    /// The write end of its standard input, kept open while the container may read it.
    pub stdin: Option<Arc<OwnedFd>>,
}

#[derive(Clone)]
pub enum Source {
    /// Read ends of the FIFOs, non-blocking.
    Pipes { stdout: Arc<OwnedFd>, stderr: Arc<OwnedFd> },
    /// The pty's master, and the pipe that it is spliced into (read end, write end).
    Terminal { master: Arc<OwnedFd>, pipe: (Arc<OwnedFd>, Arc<OwnedFd>) },
}

/// A process that the keeper looks after.
#[derive(Debug, Clone)]
pub struct Process {
    pub id: String,
    pub role: RoleKind,
    /// On the host. The helper's until Start for a container in a PID namespace that exists.
    pub pid: i32,
    pub pidfd: Arc<OwnedFd>,
    exit: tokio::sync::watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Waits for the end; what the process had written is in its log by then (BEHAVIOUR 39).
    pub async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            // Forgotten before its end was told.
            _ => Exit { status: Status::Unknown, finished_at: now() },
        }
    }

    /// The end, if it came.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// pidfd_send_signal; a process that is gone is no error.
    pub fn signal(&self, signal: i32) -> Result<()> {
        match crate::sys::pidfd::send_signal(self.pidfd.as_fd(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(Error::io(format_args!("sending signal {signal} to process {}", self.id), e)),
        }
    }
}

/// A client's view of a container's output.
pub struct Attached {
    pub socket: OwnedFd,
    pub guard: Detach,
}

/// Dropped, it ends the view.
pub struct Detach {
    shared: Arc<Shared>,
    id: String,
    key: u64,
}

impl Drop for Detach {
    fn drop(&mut self) {
        let (shared, id, key) = (Arc::clone(&self.shared), std::mem::take(&mut self.id), self.key);
        // Without a runtime the daemon ends, and its sockets with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { shared.detach(&id, key).await });
        }
    }
}

fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| d.as_nanos() as i64)
}

/// How far a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Parked,
    /// Told to go on; has not executed its program yet as far as is known.
    Released,
    /// Nanoseconds since the epoch.
    Running {
        started_at: i64,
    },
    Exited {
        started_at: i64,
        exit: Exit,
    },
}

/// What the keeper held when this daemon connected.
#[derive(Default)]
pub struct Snapshot {
    pub processes: Vec<(Process, State)>,
    pub holds: Vec<Hold>,
}

/// fds that the keeper keeps for the daemon (a pod's namespaces and /dev/shm), with a word on them.
#[derive(Debug, Clone)]
pub struct Hold {
    pub key: String,
    pub about: Vec<u8>,
    pub fds: Vec<Arc<OwnedFd>>,
}

/// A container of a keeper that died together with its daemon, found again by its records.
pub struct Adopt {
    pub id: String,
    pub pid: i32,
    pub pidfd: Arc<OwnedFd>,
    pub output: Option<Output>,
}

/// The keeper, as the daemon sees it. Cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
}

impl Keeper {
    /// Finds the running keeper, or starts one, and takes over what it holds.
    ///
    /// Makes this process a subreaper: when a keeper dies its containers become our children.
    pub async fn connect(config: Config) -> Result<(Keeper, Snapshot)> {
        let fd_store = Arc::clone(&config.fd_store);
        let (shared, mut snapshot) = Shared::connect(config).await?;
        for hold in &snapshot.holds {
            fd_store.put(hold);
        }
        // Of a keeper that died together with its daemon: ours had nobody to have them from.
        for hold in fd_store.take() {
            if snapshot.holds.iter().all(|held| held.key != hold.key) {
                shared.hold(hold.clone()).await?;
                snapshot.holds.push(hold);
            }
        }
        Ok((Keeper { shared }, snapshot))
    }

    /// Clones, prepares, and (if the plan parks) waits until the child is parked, else until it
    /// has executed its program. A failed step is an error with the plan's sentence; nothing is
    /// left of the process then. Nor is if the caller stops waiting.
    pub async fn spawn(&self, spawn: Spawn) -> Result<Process> {
        let shared = Arc::clone(&self.shared);
        let (answer, answered) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let id = spawn.id.clone();
            let result = shared.spawn(spawn).await;
            let made = result.as_ref().ok().cloned();
            let unheard = answer.is_closed() || answer.send(result).is_err();
            if let (true, Some(process)) = (unheard, made) {
                let _ = process.signal(libc::SIGKILL);
                process.exited().await;
                let _ = shared.forget(&id).await;
            }
        });
        answered.await.unwrap_or_else(|_| Err(Error::internal("spawning was interrupted")))
    }

    /// Releases a parked container: the process that runs, and when it started (ns). A failed
    /// execve is an error with the plan's sentence; the exit follows as well.
    pub async fn start(&self, id: &str) -> Result<(Process, i64)> {
        self.shared.start(id).await
    }

    /// Takes fds into keeping under `key`, replacing what was there.
    pub async fn hold(&self, hold: Hold) -> Result<()> {
        self.shared.hold(hold).await
    }

    pub async fn release(&self, key: &str) -> Result<()> {
        self.shared.release(key).await
    }

    /// Gives a process whose keeper and daemon both died into keeping.
    pub async fn adopt(&self, adopt: Adopt) -> Result<Process> {
        self.shared.adopt(adopt).await
    }

    /// Goes on writing to `log`; returns when the old file gets no more bytes.
    pub async fn reopen_log(&self, id: &str, log: OwnedFd) -> Result<()> {
        self.shared.reopen_log(id, Arc::new(log)).await
    }

    /// What a container writes from now on, as long as the answer lives: records on a non-blocking
    /// socket (`keeper::feed`). It goes on with the next keeper when one dies.
    pub async fn attach(&self, id: &str, stdout: bool, stderr: bool) -> Result<Attached> {
        let (socket, key) = self.shared.attach(id, stdout, stderr).await?;
        Ok(Attached { socket, guard: Detach { shared: Arc::clone(&self.shared), id: id.to_owned(), key } })
    }

    /// A container's standard streams as the daemon holds them.
    pub fn output(&self, id: &str) -> Option<Output> {
        self.shared.output(id)
    }

    /// The container sees the end of its standard input once no attached client holds it either.
    pub async fn close_stdin(&self, id: &str) -> Result<()> {
        self.shared.close_stdin(id).await
    }

    /// Drops a container (a parked one exits; a running one must have been killed before).
    /// Repeating it is fine.
    pub async fn forget(&self, id: &str) -> Result<()> {
        self.shared.forget(id).await
    }

    /// Whether a keeper answers now.
    pub fn alive(&self) -> bool {
        self.shared.alive()
    }

    /// What the keeper says about itself.
    pub async fn status(&self) -> Result<KeeperStatus> {
        self.shared.status().await
    }

    /// Makes the keeper go on as another executable, with all that it holds.
    pub async fn upgrade(&self, executable: &Path) -> Result<()> {
        self.shared.upgrade(executable).await
    }
}

/// Asks the keeper of a state directory about itself, without being its daemon. Blocks.
pub fn observe(state: &Path) -> Result<KeeperStatus> {
    launch::observe(state)
}

/// Upgrades the keeper of a state directory, without being its daemon. Blocks.
pub fn upgrade(state: &Path, executable: &Path) -> Result<()> {
    launch::upgrade(state, executable)
}
