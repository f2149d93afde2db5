//! ExecSync, and what streaming exec (`exec_session`) stands on.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime as oci;
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::cgroup::{Cgroup, Entry};
use crate::container::compile::{FdList, identity_steps, rlimit};
use crate::container::{Container, Phase, exposure, null, process_env};
use crate::error::{Kind, Step as _};
use crate::keeper::client::{Process, Role, Spawn};
use crate::keeper::filter::{self, Loading};
use crate::keeper::plan::{Bytes, CgroupEntry, Exec, PidNamespace, Program, SpawnPlan, Step};
use crate::node::{Node, record, table};
use crate::security::seccomp::{self, Filter};
use crate::{Error, Result};

/// More of either stream is read and dropped (BEHAVIOUR 15, CVE-2022-1708).
const OUTPUT_LIMIT: usize = 16 << 20;

/// How long a killed exec may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

/// What every exec of a container has in common with its main process.
#[derive(Debug)]
pub struct Template {
    env: Vec<Bytes>,
    cwd: String,
    limits: Vec<Step>,
    identity: Vec<Step>,
    seccomp: Option<Filter>,
}

impl Template {
    pub fn new(spec: &oci::Spec, env: Vec<Bytes>, seccomp: Option<Filter>) -> Result<Self> {
        let process =
            spec.process().as_ref().ok_or_else(|| Error::internal("the runtime spec has no process"))?;
        let mut limits = Vec::new();
        for limit in process.rlimits().iter().flatten() {
            limits.push(Step::Rlimit {
                resource: rlimit(limit.typ()),
                soft: limit.soft(),
                hard: limit.hard(),
            });
        }
        Ok(Self {
            env,
            cwd: process.cwd().to_string_lossy().into_owned(),
            limits,
            identity: identity_steps(process),
            seccomp,
        })
    }

    /// Whether a process that joins the container's PID namespace has its filter only later on.
    pub fn loads_in_sight(&self, terminal: bool) -> bool {
        // Whether capset is allowed makes no difference to that.
        let last = |f: &Filter| filter::loading(&f.program, terminal, false) == Loading::Last;
        self.seccomp.as_ref().is_some_and(last)
    }

    /// From the Spec on disk, after a restart of the daemon.
    fn load(node: &Node, container: &Container) -> Result<Self> {
        let path = node.layout.container(&container.id).join("config.json");
        let spec: oci::Spec = record::read(&path)?
            .ok_or_else(|| Error::internal(format!("the runtime spec {} is missing", path.display())))?;
        let env = spec.process().iter().flat_map(|p| p.env().iter().flatten());
        let env = env.map(|entry| original(entry, &container.record.spec.envs)).collect();
        let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let filter = profile.map(seccomp::compile).transpose()?;
        Self::new(&spec, env, filter)
    }

    /// Enters the container by its pidfd and becomes what its main process is.
    fn plan(&self, pidfd: &Arc<OwnedFd>, argv: &[String], entry: Entry, oom: i64, stdio: Stdio) -> Plan {
        let mut fds = FdList::default();
        let target = fds.push(Arc::clone(pidfd));
        let namespaces = libc::CLONE_NEWNS
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWCGROUP;
        let mut steps = vec![Step::Reset];
        steps.extend(self.limits.iter().cloned());
        // As it is now; and the keeper's own value is no container's business.
        steps.push(Step::OomScoreAdj(oom.clamp(-1000, 1000) as i32));
        let cwd = self.cwd.clone().into_bytes();
        steps.push(Step::WorkingDirectory { path: cwd, create: false });
        let (uid, gid) = self.user();
        if uid != 0 {
            // So that it can open /dev/stderr.
            steps.push(Step::OwnStdio { uid, gid });
        }
        steps.extend(self.identity.iter().cloned());
        let cgroup = CgroupEntry {
            unified: entry.unified.map(|fd| fds.push(fd)),
            tasks: entry.tasks.into_iter().map(|fd| fds.push(fd)).collect(),
        };
        let plan = SpawnPlan {
            pid: PidNamespace::Join(target),
            new_namespaces: 0,
            join: vec![(target, namespaces as u64)],
            cgroup,
            stdio: stdio.child.map(|fd| fds.push(fd)),
            terminal: stdio.terminal,
            steps,
            park: false,
            seccomp: self.seccomp.as_ref().map(|f| f.program.to_vec()),
            seccomp_flags: self.seccomp.as_ref().map_or(0, |f| f.flags),
            exec: Exec {
                program: Program::Search(process_env::candidates(argv, &self.env, &self.cwd)),
                argv: argv.iter().map(|a| a.clone().into_bytes()).collect(),
                envp: self.environment(stdio.terminal),
            },
        };
        Plan { plan, fds: fds.into_fds() }
    }

    /// With TERM where there is a terminal (BEHAVIOUR 19).
    fn environment(&self, terminal: bool) -> Vec<Bytes> {
        let mut env = self.env.clone();
        if terminal && !env.iter().any(|entry| entry.starts_with(b"TERM=")) {
            env.push(b"TERM=xterm".to_vec());
        }
        env
    }

    /// Whom its processes run as: (uid, gid).
    pub(super) fn user(&self) -> (u32, u32) {
        let identity = self.identity.iter().find_map(|step| match step {
            Step::Identity(identity) => Some((identity.uid, identity.gid)),
            _ => None,
        });
        identity.unwrap_or_default()
    }
}

/// What an exec gets as 0, 1 and 2; `terminal`: 0 is one, to be its session's.
pub(super) struct Stdio {
    pub child: [Arc<OwnedFd>; 3],
    pub terminal: bool,
}

/// The bytes that an entry of the Spec's environment stands for: its text is lossy where the
/// request's value is not UTF-8 (BEHAVIOUR 19).
fn original(entry: &str, request: &[(String, Vec<u8>)]) -> Bytes {
    let given = entry.split_once('=').and_then(|(name, text)| {
        let (_, value) = request.iter().rev().find(|(other, _)| other == name)?;
        (String::from_utf8_lossy(value) == text).then(|| [name.as_bytes(), b"=", value].concat())
    });
    given.unwrap_or_else(|| entry.as_bytes().to_vec())
}

struct Plan {
    plan: SpawnPlan,
    fds: Vec<Arc<OwnedFd>>,
}

/// Runs a command and collects its output. `timeout` zero: none. DEADLINE_EXCEEDED kills the whole
/// tree (BEHAVIOUR 15). A program that cannot be executed is an error that names it (BEHAVIOUR 16).
pub async fn exec_sync(node: &Arc<Node>, id: &str, argv: Vec<String>, timeout: Duration) -> Result<Output> {
    let container = node.containers.find(id)?;
    if argv.is_empty() || argv[0].is_empty() {
        return Err(Error::invalid("exec without a command"));
    }
    // A task of its own: a client that goes away must not leave the exec to itself.
    let node = Arc::clone(node);
    let task = tokio::spawn(async move { run(&node, &container, argv, timeout).await });
    let mut task = AbortOnDrop(task);
    (&mut task.0).await.unwrap_or_else(|e| Err(Error::internal(format!("the exec ended early: {e}"))))
}

/// The client's cancellation reaches the exec: its future is dropped, and [`Guard`] kills it.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run(
    node: &Arc<Node>,
    container: &Arc<Container>,
    argv: Vec<String>,
    timeout: Duration,
) -> Result<Output> {
    let Phase::Running { process: main, .. } = container.phase() else {
        return Err(Error::precondition(format!("container {} is not running", container.id)));
    };
    let (stdout, out) = output_pipe()?;
    let (stderr, err) = output_pipe()?;
    let null = null::open()?;
    let stdio = Stdio { child: [Arc::new(null), Arc::new(out), Arc::new(err)], terminal: false };
    let mut guard = Guard::new(node, container)?;
    let work = async {
        let process = guard.spawn(container, &main, &argv, stdio).await?;
        collect(&process, stdout, stderr).await
    };
    if timeout.is_zero() {
        return work.await;
    }
    match tokio::time::timeout(timeout, work).await {
        Ok(output) => output,
        Err(_) => {
            guard.end().await;
            Err(Error::new(
                Kind::DeadlineExceeded,
                format!("exec {argv:?} in container {} exceeded its limit of {timeout:?}", container.id),
            ))
        }
    }
}

/// What every exec of the container is made of.
pub fn template(node: &Node, container: &Container) -> Result<Arc<Template>> {
    if let Some(template) = container.exec.get() {
        return Ok(Arc::clone(template));
    }
    let loaded = Arc::new(Template::load(node, container)?);
    Ok(Arc::clone(container.exec.get_or_init(|| loaded)))
}

/// An exec's cgroup and process: whatever way the call ends, even dropped half way, what runs of it
/// is killed and its cgroup goes.
pub(super) struct Guard {
    node: Arc<Node>,
    id: String,
    cgroup: Option<Cgroup>,
    process: Option<Process>,
    /// What runs is left to itself.
    leave: bool,
}

impl Guard {
    pub(super) fn new(node: &Arc<Node>, container: &Container) -> Result<Self> {
        let id = table::new_id()?;
        let cgroup = container.record.cgroup.as_ref();
        let cgroup = cgroup.map(|cgroup| node.cgroups.create_exec(cgroup, &id)).transpose()?;
        Ok(Self { node: Arc::clone(node), id, cgroup, process: None, leave: false })
    }

    /// The process runs on, whatever becomes of us.
    pub(super) fn leave(&mut self) {
        self.leave = true;
    }

    pub(super) async fn spawn(
        &mut self,
        container: &Container,
        main: &Process,
        argv: &[String],
        stdio: Stdio,
    ) -> Result<Process> {
        let template = template(&self.node, container)?;
        if template.loads_in_sight(stdio.terminal) {
            exposure::refuse_if_traced(&self.node, container)?;
        }
        let entry = self.cgroup.as_ref().map(|c| self.node.cgroups.entry(c)).transpose()?.unwrap_or_default();
        let Plan { plan, fds } =
            template.plan(&main.pidfd, argv, entry, container.resources().oom_score_adj, stdio);
        let spawn = Spawn { id: self.id.clone(), plan, fds, role: Role::Exec };
        let process = self.node.keeper.spawn(spawn).await;
        let process = process.step(|| format!("exec in container {}", container.id))?;
        self.process = Some(process.clone());
        Ok(process)
    }

    /// Kills the tree and waits for its end.
    async fn end(&self) {
        self.kill();
        if let Some(process) = &self.process {
            let _ = tokio::time::timeout(KILL_LIMIT, process.exited()).await;
        }
    }

    fn kill(&self) {
        let by_cgroup = self.cgroup.as_ref().map(|cgroup| self.node.cgroups.kill(cgroup));
        if matches!(by_cgroup, Some(Ok(()))) {
            return;
        }
        // It shares its container's cgroup: only the process itself can be told apart.
        if let Some(Err(error)) = self.process.as_ref().map(|process| process.signal(libc::SIGKILL)) {
            tracing::warn!(%error, "an exec is not killed");
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.leave && self.process.as_ref().is_none_or(|process| process.exit().is_none()) {
            self.kill();
        }
        let Some(cgroup) = self.cgroup.take() else { return };
        let node = Arc::clone(&self.node);
        tokio::spawn(async move {
            // Background children of the exec live on; their cgroup goes with the container's.
            if let Err(error) = node.cgroups.remove(&cgroup).await {
                tracing::debug!(%error, "an exec's cgroup stays");
            }
        });
    }
}

fn output_pipe() -> Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).step(|| "making the exec's pipes")?;
    // Non-blocking for us alone: the other end is another open file.
    let flags = rustix::fs::fcntl_getfl(&read).step(|| "reading the flags of the exec's pipes")?;
    rustix::fs::fcntl_setfl(&read, flags | OFlags::NONBLOCK).step(|| "setting up the exec's pipes")?;
    let reader = pipe::Receiver::from_owned_fd(read).step(|| "watching the exec's pipes")?;
    Ok((reader, write))
}

async fn collect(process: &Process, stdout: pipe::Receiver, stderr: pipe::Receiver) -> Result<Output> {
    let exited = async { process.exited().await };
    let (mut out, mut err) = (Stream::new(stdout), Stream::new(stderr));
    tokio::pin!(exited);
    let mut exit = None;
    while exit.is_none() || !(out.ended && err.ended) {
        tokio::select! {
            biased;
            ended = &mut exited, if exit.is_none() => {
                exit = Some(ended);
                // What it wrote is in the pipes by now; background children that hold them open
                // do not hold up the call.
                out.drain()?;
                err.drain()?;
                break;
            }
            done = out.read(), if !out.ended => done?,
            done = err.read(), if !err.ended => done?,
        }
    }
    let exit = match exit {
        Some(exit) => exit,
        None => process.exited().await,
    };
    Ok(Output { stdout: out.kept, stderr: err.kept, exit_code: exit.status.code() })
}

/// One output stream: what is kept of it, up to the limit.
struct Stream {
    pipe: pipe::Receiver,
    kept: Vec<u8>,
    ended: bool,
}

impl Stream {
    fn new(pipe: pipe::Receiver) -> Self {
        Self { pipe, kept: Vec::new(), ended: false }
    }

    async fn read(&mut self) -> Result<()> {
        let mut chunk = [0u8; 16 << 10];
        let n = self.pipe.read(&mut chunk).await.step(|| "reading the exec's output")?;
        self.keep(&chunk[..n]);
        Ok(())
    }

    /// Takes what is there now: a background child that goes on writing must not hold up the call.
    fn drain(&mut self) -> Result<()> {
        let mut chunk = [0u8; 16 << 10];
        let there = rustix::io::ioctl_fionread(&self.pipe).step(|| "asking for the exec's output")?;
        let mut left = usize::try_from(there).unwrap_or_default();
        while !self.ended && left > 0 {
            let room = left.min(chunk.len());
            // Not try_read, which does not look while the reactor has not heard of the bytes yet.
            match rustix::io::read(&self.pipe, &mut chunk[..room]) {
                Ok(n) => {
                    left -= n;
                    self.keep(&chunk[..n]);
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::io("reading the exec's output", e)),
            }
        }
        Ok(())
    }

    fn keep(&mut self, chunk: &[u8]) {
        self.ended = chunk.is_empty();
        let room = OUTPUT_LIMIT - self.kept.len();
        self.kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
}
