//! A process to make, as data: what the daemon compiles and the keeper's child carries out.
//!
//! A plan names file descriptors by their place in the list that travels with it. The child runs
//! the steps in order, each a few raw system calls on data prepared before the clone; the first
//! that fails ends it, and is reported as {index, errno}. Sentences are made by the daemon, which
//! has the plan: [`SpawnPlan::describe`].
//!
//! ```text
//!  init, PID namespace new or the node's          init in a PID namespace that exists; exec
//!  ─────────────────────────────────────          ────────────────────────────────────────
//!  keeper ─clone3─▶ child                         keeper ─clone3─▶ helper (outside the namespace)
//!                   steps … park, seccomp, exec                    steps … park, clone3(CLONE_PARENT)
//!                                                                   └▶ child: seccomp, exec
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// A place in the fd list of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fd(pub u16);

/// Bytes without NUL that the kernel takes as a string: paths, arguments, environment.
pub type Bytes = Vec<u8>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpawnPlan {
    pub pid: PidNamespace,
    /// Further CLONE_NEW* flags for the clone itself (NEWNS, NEWCGROUP, NEWIPC, NEWUTS, NEWNET).
    pub new_namespaces: u64,
    /// Joined by the child before its first step: (nsfs fd or pidfd, CLONE_NEW* flags of setns).
    pub join: Vec<(Fd, u64)>,
    pub cgroup: CgroupEntry,
    /// What becomes 0, 1 and 2.
    pub stdio: [Fd; 3],
    /// Descriptor 0 is a terminal that becomes the controlling one.
    pub terminal: bool,
    pub steps: Vec<Step>,
    /// Stop before seccomp and execve until released (containers), or go on (execs, pod inits).
    pub park: bool,
    /// A cBPF program in the kernel's layout (8 bytes an instruction), loaded last of all.
    pub seccomp: Option<Bytes>,
    /// SECCOMP_FILTER_FLAG_* for it.
    pub seccomp_flags: u32,
    pub exec: Exec,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// The node's: no flag.
    Host,
    /// CLONE_NEWPID: the child is PID 1.
    New,
    /// One that exists, by an nsfs fd or a pidfd: entered through a helper (module text).
    Join(Fd),
}

/// How the child gets into its cgroup (guide: DESIGN, cgroups).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupEntry {
    /// A directory of a cgroup2 file system, for CLONE_INTO_CGROUP.
    pub unified: Option<Fd>,
    /// `tasks` files of v1 hierarchies, opened for writing: the child writes `0` to each.
    pub tasks: Vec<Fd>,
}

/// What is run, after everything else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    pub program: Program,
    pub argv: Vec<Bytes>,
    pub envp: Vec<Bytes>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// Tried in order, as execvp does: ENOENT, ENOTDIR and EACCES go on to the next, and EACCES is
    /// the answer if any candidate gave it. One candidate when argv[0] holds a slash.
    Search(Vec<Bytes>),
    /// The keeper's own sealed executable, which acts as a pod's PID 1 when argv[0] says so.
    PodInit,
}

/// One step of a child. Paths are absolute inside the container and resolved with
/// RESOLVE_IN_ROOT below the root that [`Step::Root`] attached, until [`Step::PivotRoot`] has
/// made it the root; none is ever resolved as a string on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// A v2 cgroup namespace rooted at the cgroup that was entered: unshare(CLONE_NEWCGROUP).
    CgroupNamespace,
    /// setsid, default dispositions and an empty mask, umask 0022, a new session keyring, no
    /// PDEATHSIG, scheduler, nice, ioprio and timer slack as they are by default (BEHAVIOUR 40).
    Reset,
    Hostname(Bytes),
    /// Make the mount namespace's propagation private, attach this detached mount as the future
    /// root (with `propagation`, MS_* flags, if not zero) and resolve later paths below it.
    Root {
        mount: Fd,
        propagation: u64,
    },
    /// Attach a detached mount at `target`, which is made if missing, as what the mount is.
    Attach {
        mount: Fd,
        target: Bytes,
        directory: bool,
        label: Bytes,
    },
    /// Mount a new file system at `target` (made if missing) by fsopen; for what must be made
    /// inside the child's namespaces: proc, sysfs, mqueue, and small tmpfs. Options with an empty
    /// value are flags. `attributes`: MOUNT_ATTR_*.
    Mount {
        fstype: Bytes,
        target: Bytes,
        options: Vec<(Bytes, Bytes)>,
        attributes: u64,
    },
    /// Bind `source` (inside the root) to `target` (made if missing as a file or directory like it).
    Bind {
        source: Bytes,
        target: Bytes,
        recursive: bool,
    },
    /// mknod, with mode and owner set after it; a node that is there already is kept if equal.
    Device {
        path: Bytes,
        kind: DeviceKind,
        major: u32,
        minor: u32,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    Symlink {
        path: Bytes,
        target: Bytes,
    },
    Directory {
        path: Bytes,
        mode: u32,
    },
    /// Cover a path: a file by /dev/null, a directory by an empty read-only tmpfs. Missing is fine.
    Mask {
        path: Bytes,
    },
    /// Make what stands there a read-only mount of its own. Missing is fine.
    ReadOnly {
        path: Bytes,
    },
    /// pivot_root into the root and detach the old one.
    PivotRoot,
    /// Make the root mount itself read-only (not what is mounted below it).
    RootReadOnly,
    /// Set the root's propagation again, after the pivot (MS_SHARED, MS_SLAVE; with MS_REC).
    RootPropagation(u64),
    /// Write `value` below /proc/sys, `name` being a path there, without following links or
    /// crossing mounts, and only if that is procfs.
    Sysctl {
        name: Bytes,
        value: Bytes,
    },
    /// RLIMIT_*: soft and hard.
    Rlimit {
        resource: u32,
        soft: u64,
        hard: u64,
    },
    /// Best effort: what may not be lowered stays (BEHAVIOUR 23).
    OomScoreAdj(i32),
    /// Change directory; made if missing and `create`. The result must be below the root.
    WorkingDirectory {
        path: Bytes,
        create: bool,
    },
    /// Give descriptors 0, 1, 2 to the user, so that /dev/stdout can be opened again.
    OwnStdio {
        uid: u32,
        gid: u32,
    },
    /// Groups, gid, uid, then capabilities: the bounding set is cut to `bounding`, the others are
    /// set; CAP_SYS_ADMIN stays effective until execve where a filter is to be loaded without
    /// no_new_privs. `ambient` is raised last.
    Identity(Identity),
    NoNewPrivileges,
    /// The AppArmor profile that execve changes to.
    AppArmor(Bytes),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    Character,
    Block,
    Fifo,
}

/// Bit n of a set is capability n.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// Where a child failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// clone3 itself, in the keeper.
    Clone,
    /// Closing what is not in the plan.
    CloseFds,
    Cgroup,
    Join,
    Stdio,
    /// A step, by its index.
    Step(u32),
    /// The second clone, into the PID namespace.
    Enter,
    Seccomp,
    Exec,
}

/// A child's report of its failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub stage: Stage,
    pub errno: i32,
}

impl SpawnPlan {
    /// The failure as a sentence: step, path, cause.
    pub fn describe(&self, failure: Failure) -> String {
        let cause = crate::error::errno_text(failure.errno);
        match failure.stage {
            Stage::Clone => format!("cloning the process: {cause}"),
            Stage::CloseFds => format!("closing inherited file descriptors: {cause}"),
            Stage::Cgroup => format!("entering the cgroup: {cause}"),
            Stage::Join => format!("joining the namespaces: {cause}"),
            Stage::Stdio => format!("setting up standard input and output: {cause}"),
            Stage::Enter => format!("entering the PID namespace: {cause}"),
            Stage::Seccomp => format!("loading the seccomp filter: {cause}"),
            Stage::Exec => {
                let name = self.exec.argv.first().map(Vec::as_slice).unwrap_or_default();
                format!("exec {:?}: {cause}", String::from_utf8_lossy(name))
            }
            Stage::Step(i) => match self.steps.get(i as usize) {
                Some(step) => format!("{step}: {cause}"),
                None => format!("step {i}: {cause}"),
            },
        }
    }
}

impl fmt::Display for Step {
    /// The step as a gerund phrase with its path, to stand before a cause.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy;
        match self {
            Step::CgroupNamespace => write!(f, "making the cgroup namespace"),
            Step::Reset => write!(f, "resetting the process's attributes"),
            Step::Hostname(name) => write!(f, "setting the hostname to {:?}", text(name)),
            Step::Root { .. } => write!(f, "attaching the root filesystem"),
            Step::Attach { label, .. } => write!(f, "mounting {}", text(label)),
            Step::Mount { fstype, target, .. } => write!(f, "mounting {} at {}", text(fstype), text(target)),
            Step::Bind { source, target, .. } => write!(f, "binding {} to {}", text(source), text(target)),
            Step::Device { path, .. } => write!(f, "making device {}", text(path)),
            Step::Symlink { path, .. } => write!(f, "making symlink {}", text(path)),
            Step::Directory { path, .. } => write!(f, "making directory {}", text(path)),
            Step::Mask { path } => write!(f, "masking {}", text(path)),
            Step::ReadOnly { path } => write!(f, "making {} read-only", text(path)),
            Step::PivotRoot => write!(f, "pivoting into the root filesystem"),
            Step::RootReadOnly => write!(f, "making the root filesystem read-only"),
            Step::RootPropagation(_) => write!(f, "setting the root filesystem's propagation"),
            Step::Sysctl { name, value } => write!(f, "setting sysctl {} to {:?}", text(name), text(value)),
            Step::Rlimit { resource, .. } => write!(f, "setting resource limit {resource}"),
            Step::OomScoreAdj(value) => write!(f, "setting oom_score_adj to {value}"),
            Step::WorkingDirectory { path, .. } => write!(f, "changing to working directory {}", text(path)),
            Step::OwnStdio { uid, .. } => write!(f, "giving standard output to user {uid}"),
            Step::Identity(id) => {
                write!(f, "becoming user {} group {} with its capabilities", id.uid, id.gid)
            }
            Step::NoNewPrivileges => write!(f, "setting no_new_privs"),
            Step::AppArmor(profile) => write!(f, "asking for the AppArmor profile {:?}", text(profile)),
        }
    }
}
