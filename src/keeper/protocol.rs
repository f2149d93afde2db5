//! What daemon and keeper say to each other, in the order in which they say it.
//!
//! ```text
//!  daemon                          keeper
//!  Setup + listener, lock, … ────▶          (once, by the one that starts it)
//!  Hello ────────────────────────▶
//!        ◀──────────────────────── Welcome
//!  Snapshot ─────────────────────▶
//!        ◀──────────────────────── Process*, Hold*, Done
//!  Restore*, Hold* ──────────────▶          (what a keeper that died had held)
//!  Spawn, Start, Reopen, … ──────▶
//!        ◀──────────────────────── Spawned, Started, Failed, Done
//!        ◀──────────────────────── Exited    (whenever a process has ended and its log is whole)
//! ```
//!
//! Every message has a number (`wire`) which its answers repeat; events have number 0. Variants and
//! fields are only ever appended, and what one end does not know it answers with a sentence:
//! a new daemon talks to an old keeper. `u16` fields named after descriptors are places in the list
//! of descriptors that comes with the message.

use serde::{Deserialize, Serialize};

use super::plan::{Bytes, Failure, SpawnPlan};

/// Of this protocol. Both ends speak the lower of their two.
/// 2: Attach, Detach, CloseStdin.
pub const VERSION: u32 = 2;

/// The first message on descriptor 0 of a keeper that is being started, with its descriptors:
/// listener, lock, own executable, then `cgroup_procs` files to write oneself to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    pub version: u32,
    pub cgroup_procs: u16,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// The daemon, which gets the events, or somebody who only looks.
    Hello {
        version: u32,
        observer: bool,
    },
    /// All that is held, with duplicates of its descriptors.
    Snapshot,
    /// A process of a keeper that died.
    Restore(Record),
    Spawn(Box<SpawnRequest>),
    Start {
        id: String,
    },
    /// Keeps the message's descriptors under a key.
    Hold {
        key: String,
        about: Bytes,
    },
    Release {
        key: String,
    },
    /// The message's descriptor becomes the log.
    Reopen {
        id: String,
    },
    /// Drops a process. The answer comes when it has ended and its log's descriptors are closed.
    Forget {
        id: String,
    },
    /// A restored process ended, and the daemon, its parent by then, has reaped it.
    Reaped {
        id: String,
        exit: Exit,
    },
    Status,
    /// Go on as the executable in the message's descriptor.
    Upgrade,
    /// What a container writes from now on goes to the message's descriptor too (`feed`), until it is
    /// detached, another daemon says Hello, or the container is forgotten. Before its Restore: from
    /// the first byte on that this keeper copies.
    Attach {
        id: String,
        key: u64,
        stdout: bool,
        stderr: bool,
    },
    /// Twice is fine.
    Detach {
        id: String,
        key: u64,
    },
    /// Closes the write end of a container's standard input, so that it sees the end of it.
    CloseStdin {
        id: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub struct SpawnRequest {
    pub id: String,
    pub role: RoleKind,
    /// Its `Fd`s are places in this message's list too.
    pub plan: SpawnPlan,
    pub output: Option<OutputFds>,
    /// The keeper's end of the channel to the child, and the child's.
    pub channel: (u16, u16),
    /// Two pages of shared memory: see `report`.
    pub report: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RoleKind {
    Container,
    PodInit,
    Exec,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OutputFds {
    pub note: u16,
    pub source: SourceFds,
    pub log: Option<u16>,
    pub stdin: Option<u16>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum SourceFds {
    Pipes { stdout: u16, stderr: u16 },
    Terminal { master: u16, pipe_read: u16, pipe_write: u16 },
}

/// A process as one holder tells it to the other (or to its own successor).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub role: RoleKind,
    /// argv[0], for the sentence about a failed execve.
    pub name: Bytes,
    pub pid: i32,
    /// It goes into a PID namespace that exists: until its start `pid` is the helper's.
    pub joins: bool,
    pub phase: Phase,
    pub pidfd: u16,
    pub channel: Option<u16>,
    pub report: Option<u16>,
    pub output: Option<OutputFds>,
}

/// How far a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Cloned; carries out its steps. `parks` at their end, or executes its program.
    Preparing {
        parks: bool,
    },
    Parked,
    /// Was told to go on; has not executed its program yet as far as is known.
    Released,
    /// Nanoseconds since the epoch.
    Running {
        started_at: i64,
    },
    /// `started_at` zero: it never ran its program.
    Exited {
        started_at: i64,
        exit: Exit,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    Code(u8),
    Signal(u8),
    /// Nobody can know it (BEHAVIOUR 41).
    Unknown,
}

impl Status {
    /// As a shell and the CRI have it: 128 + signal; 255 where it is unknown.
    pub fn code(self) -> i32 {
        match self {
            Status::Code(code) => i32::from(code),
            Status::Signal(signal) => 128 + i32::from(signal),
            Status::Unknown => 255,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub status: Status,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    Welcome {
        version: u32,
        keeper: String,
        pid: i32,
    },
    /// One of a snapshot's processes.
    Process(Record),
    /// One of a snapshot's holds.
    Hold {
        key: String,
        about: Bytes,
    },
    Done,
    /// Parked. With the pidfd.
    Spawned {
        pid: i32,
    },
    /// Runs its program. With the pidfd.
    Started {
        pid: i32,
        started_at: i64,
    },
    /// A step failed; nothing is left of the process.
    Failed(Failure),
    /// It ended before it had run its program, without a word.
    Died(Exit),
    Status(KeeperStatus),
    Refused {
        reason: Refusal,
        text: String,
    },
    Exited {
        id: String,
        exit: Exit,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    NotFound,
    Exists,
    /// The process is in another phase.
    State,
    Invalid,
    /// The keeper is of another version.
    Unknown,
    Internal,
}

/// What `podwright keeper status` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperStatus {
    pub version: String,
    pub protocol: u32,
    pub pid: i32,
    /// Nanoseconds since the epoch; upgrades keep it.
    pub started_at: i64,
    pub upgrades: u32,
    /// Bytes.
    pub rss: u64,
    pub fds: u32,
    pub daemon_connected: bool,
    pub processes: Vec<ProcessStatus>,
    pub holds: Vec<HoldStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    pub id: String,
    pub role: RoleKind,
    pub pid: i32,
    pub phase: Phase,
    /// The log's last write failed with this errno, and is tried again.
    pub log_stalled: Option<i32>,
    /// Whether we are its parent; else its exit code comes through its pidfd.
    pub child: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldStatus {
    pub key: String,
    pub fds: u32,
}
