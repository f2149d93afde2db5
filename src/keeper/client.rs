//! The daemon's end: requests to the keeper, duplicates of all it holds, its restart.
//!
//! The duplicates live here: whoever spawns hands in every fd once, the client keeps a copy of
//! what must outlive the keeper (pidfd, release end, log pipes, holds) and hands all of it to the
//! next keeper when one dies. The rest of the daemon sees a keeper's death only as UNAVAILABLE on
//! the requests that were under way.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::plan::SpawnPlan;
pub use super::protocol::{Exit, Status};
use crate::Result;

#[derive(Debug, Clone)]
pub struct Config {
    /// Of this boot; holds `keeper.sock`.
    pub state: PathBuf,
    /// The keeper's executable; copied into a sealed memfd before it runs.
    pub executable: PathBuf,
    /// Where the keeper goes, out of the daemon's own cgroup: `tasks` or `cgroup.procs` files.
    pub cgroup_procs: Vec<PathBuf>,
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
pub struct Output {
    /// One page, mapped by the keeper: the note of the log copier, the start and the exit.
    /// A file of the state directory, so that it outlives both processes.
    pub note: Arc<OwnedFd>,
    pub source: Source,
    /// Opened for appending; None: drained and dropped (BEHAVIOUR 39).
    pub log: Option<Arc<OwnedFd>>,
    /// The write end of its standard input, kept open while the container may read it.
    pub stdin: Option<Arc<OwnedFd>>,
}

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
    /// On the host. The helper's until Start for a container in a PID namespace that exists.
    pub pid: i32,
    pub pidfd: Arc<OwnedFd>,
    exit: tokio::sync::watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Waits for the end; what the process had written is in its log by then (BEHAVIOUR 39).
    pub async fn exited(&self) -> Exit {
        todo!()
    }

    /// The end, if it came.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// pidfd_send_signal; a process that is gone is no error.
    pub fn signal(&self, _signal: i32) -> Result<()> {
        todo!()
    }
}

/// How far a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Parked,
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
pub struct Keeper {}

impl Keeper {
    /// Finds the running keeper, or starts one, and takes over what it holds.
    pub async fn connect(_config: Config) -> Result<(Keeper, Snapshot)> {
        todo!()
    }

    /// Clones, prepares, and (if the plan parks) waits until the child is parked, else until it
    /// has executed its program. A failed step is an error with the plan's sentence; nothing is
    /// left of the process then.
    pub async fn spawn(&self, _spawn: Spawn) -> Result<Process> {
        todo!()
    }

    /// Releases a parked container: the process that runs, and when it started (ns). A failed
    /// execve is FAILED_PRECONDITION-free INTERNAL text from the plan; the exit follows as well.
    pub async fn start(&self, _id: &str) -> Result<(Process, i64)> {
        todo!()
    }

    /// Whether a keeper answers now.
    pub fn alive(&self) -> bool {
        todo!()
    }

    /// Takes fds into keeping under `key`, replacing what was there.
    pub async fn hold(&self, _hold: Hold) -> Result<()> {
        todo!()
    }

    pub async fn release(&self, _key: &str) -> Result<()> {
        todo!()
    }

    pub async fn adopt(&self, _adopt: Adopt) -> Result<Process> {
        todo!()
    }

    /// Goes on writing to `log`; returns when the old file gets no more bytes.
    pub async fn reopen_log(&self, _id: &str, _log: OwnedFd) -> Result<()> {
        todo!()
    }

    /// Drops a container (a parked one exits; a running one must have been killed before).
    pub async fn forget(&self, _id: &str) -> Result<()> {
        todo!()
    }
}
