//! A keeper of its own for each test, and containers made of busybox.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use podwright::keeper::client::{self, Config, Keeper, Output, Process, Role, Snapshot, Source, Spawn};
use podwright::keeper::plan::{
    CgroupEntry, DeviceKind, Exec, Fd, Identity, PidNamespace, Program, SpawnPlan, Step,
};
use podwright::keeper::protocol::{Phase, Reply, Request, VERSION};
use podwright::keeper::wire::{self, Inbox};
use podwright::sys::mount::{MountAttr, set_attributes};
use podwright::sys::seqpacket;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Pid, PidfdFlags};
use tokio::sync::{Mutex, MutexGuard};

pub const KEEPER: &str = env!("CARGO_BIN_EXE_podwright-keeper");

const NEWNS: u64 = 0x0002_0000;
const NEWUTS: u64 = 0x0400_0000;
const NEWIPC: u64 = 0x0800_0000;
pub const ALL_CAPABILITIES: u64 = (1 << 41) - 1;

/// Orphans go to the process as a whole, so that two tests would reap each other's.
static ALONE: Mutex<()> = Mutex::const_new(());

pub async fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}

pub struct Node {
    // Goes first: as long as there is a client it starts the next keeper.
    pub keeper: Daemon,
    files: Files,
    _alone: MutexGuard<'static, ()>,
}

/// The daemon's end; None between two daemons.
pub struct Daemon(Option<Keeper>);

impl std::ops::Deref for Daemon {
    type Target = Keeper;

    fn deref(&self) -> &Keeper {
        self.0.as_ref().unwrap()
    }
}

impl Daemon {
    /// As if it had been killed.
    pub fn die(&mut self) {
        self.0 = None;
    }
}

/// Ends the keeper and all that it looks after.
struct Files {
    folder: tempfile::TempDir,
}

impl Node {
    pub async fn new() -> Self {
        let alone = alone().await;
        let folder = tempfile::tempdir().unwrap();
        make_rootfs(&folder.path().join("rootfs"));
        let (keeper, snapshot) = connect(folder.path()).await;
        assert!(snapshot.processes.is_empty());
        Self { keeper: Daemon(Some(keeper)), files: Files { folder }, _alone: alone }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.files.folder.path().join(name)
    }

    pub fn keeper_pid(&self) -> i32 {
        client::observe(&self.path("state")).unwrap().pid
    }

    /// What a daemon that is started again does.
    pub async fn reconnect(&mut self) -> Snapshot {
        self.keeper.die();
        let (keeper, snapshot) = connect(self.files.folder.path()).await;
        self.keeper = Daemon(Some(keeper));
        snapshot
    }

    pub fn kill_keeper(&self) {
        let pid = Pid::from_raw(self.keeper_pid()).unwrap();
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
        rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
        let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, None).unwrap();
    }

    pub async fn alive(&self) {
        eventually(|| self.keeper.alive() && client::observe(&self.path("state")).is_ok()).await;
    }

    pub fn log(&self, id: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{id}.log"))).unwrap()
    }

    /// The text of a log's lines, without time, stream and tag.
    pub fn text(&self, id: &str) -> String {
        let log = self.log(id);
        log.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap().to_owned() + "\n").collect()
    }

    /// A container that runs a shell script as root of a namespace of everything but the network.
    pub fn container(&self, id: &str, script: &str) -> Spawn {
        let fd = |file: File| Arc::new(OwnedFd::from(file));
        let null = fd(OpenOptions::new().read(true).write(true).open("/dev/null").unwrap());
        let (out_read, out_write) = pipe();
        let (err_read, err_write) = pipe();
        let rootfs = open_tree(
            rustix::fs::CWD,
            self.path("rootfs"),
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
        .unwrap();
        // systemd makes all mounts shared, and a shared one cannot become a root.
        let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
        set_attributes(rootfs.as_fd(), false, private).unwrap();
        let open = |name: String| {
            let mut options = OpenOptions::new();
            fd(options.read(true).append(true).create(true).open(self.path(&name)).unwrap())
        };
        let output = Output {
            note: {
                let path = self.path(&format!("{id}.note"));
                fd(OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap())
            },
            source: Source::Pipes { stdout: out_read, stderr: err_read },
            log: Some(open(format!("{id}.log"))),
            stdin: None,
        };
        Spawn {
            id: id.to_owned(),
            plan: container_plan(script),
            fds: vec![null, out_write, err_write, Arc::new(rootfs)],
            role: Role::Container(output),
        }
    }

    pub async fn run(&self, spawn: Spawn) -> Process {
        let id = spawn.id.clone();
        self.keeper.spawn(spawn).await.unwrap();
        self.keeper.start(&id).await.unwrap().0
    }

    /// An exec into a running container: its output, read to the end, and its exit.
    pub async fn exec(&self, container: &Process, id: &str, script: &str) -> (String, i32) {
        let (spawn, output) = exec_spawn(container, id, script);
        let process = self.keeper.spawn(spawn).await.unwrap();
        let text = tokio::task::spawn_blocking(move || read_all(&output)).await.unwrap();
        (text, process.exited().await.status.code())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let Ok(status) = client::observe(&self.folder.path().join("state")) else { return };
        let pids = status
            .processes
            .iter()
            .filter(|process| !matches!(process.phase, Phase::Exited { .. }))
            .map(|p| p.pid);
        for pid in pids.chain([status.pid]).filter_map(Pid::from_raw) {
            if let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            }
        }
    }
}

async fn connect(folder: &Path) -> (Keeper, Snapshot) {
    Keeper::connect(Config {
        state: folder.join("state"),
        executable: KEEPER.into(),
        cgroup_procs: Vec::new(),
        fd_store: Default::default(),
        met: Default::default(),
    })
    .await
    .unwrap()
}

fn make_rootfs(root: &Path) {
    for folder in ["bin", "proc", "dev", "tmp", "etc"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in
        ["sh", "cat", "sleep", "echo", "id", "ls", "true", "false", "dd", "grep", "stat", "seq", "kill"]
    {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
}

pub fn pipe() -> (Arc<OwnedFd>, Arc<OwnedFd>) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (Arc::new(read), Arc::new(write))
}

pub fn shell(script: &str) -> Exec {
    Exec {
        program: Program::Search(vec![b"/bin/sh".to_vec()]),
        argv: vec![b"sh".to_vec(), b"-c".to_vec(), script.into()],
        envp: vec![b"PATH=/bin".to_vec()],
    }
}

pub fn root_identity() -> Identity {
    Identity {
        bounding: ALL_CAPABILITIES & !(1 << 24),
        effective: ALL_CAPABILITIES & !(1 << 24),
        permitted: ALL_CAPABILITIES & !(1 << 24),
        ..Identity::default()
    }
}

fn container_plan(script: &str) -> SpawnPlan {
    let null = Step::Device {
        path: b"/dev/null".to_vec(),
        kind: DeviceKind::Character,
        major: 1,
        minor: 3,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    let mount = |fstype: &[u8], target: &[u8], options: &[(&[u8], &[u8])]| Step::Mount {
        fstype: fstype.into(),
        target: target.into(),
        options: options.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect(),
        attributes: 0,
    };
    SpawnPlan {
        pid: PidNamespace::New,
        new_namespaces: NEWNS | NEWUTS | NEWIPC,
        join: Vec::new(),
        cgroup: CgroupEntry::default(),
        stdio: [Fd(0), Fd(1), Fd(2)],
        terminal: false,
        steps: vec![
            Step::Reset,
            Step::Hostname(b"box".to_vec()),
            Step::Root { mount: Fd(3), propagation: 0 },
            mount(b"proc", b"/proc", &[]),
            mount(b"tmpfs", b"/dev", &[(b"mode", b"0755"), (b"size", b"64k")]),
            null,
            Step::Symlink { path: b"/dev/stdout".to_vec(), target: b"/proc/self/fd/1".to_vec() },
            Step::Mask { path: b"/proc/kcore".to_vec() },
            Step::Mask { path: b"/proc/acpi".to_vec() },
            Step::Mask { path: b"/no/such/path".to_vec() },
            Step::ReadOnly { path: b"/proc/sys".to_vec() },
            Step::PivotRoot,
            Step::Sysctl { name: b"kernel.shmmni".to_vec(), value: b"77".to_vec() },
            Step::Rlimit { resource: 7, soft: 512, hard: 1024 },
            Step::OomScoreAdj(500),
            Step::WorkingDirectory { path: b"/tmp/made".to_vec(), create: true },
            Step::OwnStdio { uid: 0, gid: 0 },
            Step::Identity(root_identity()),
        ],
        park: true,
        seccomp: None,
        seccomp_flags: 0,
        exec: shell(script),
    }
}

/// An exec by the container's pidfd, with a pipe for its output.
pub fn exec_spawn(container: &Process, id: &str, script: &str) -> (Spawn, OwnedFd) {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let plan = SpawnPlan {
        pid: PidNamespace::Join(Fd(2)),
        new_namespaces: 0,
        join: vec![(Fd(2), NEWNS | NEWUTS | NEWIPC)],
        cgroup: CgroupEntry::default(),
        stdio: [Fd(0), Fd(1), Fd(1)],
        terminal: false,
        steps: vec![
            Step::Reset,
            Step::WorkingDirectory { path: b"/".to_vec(), create: false },
            Step::Identity(root_identity()),
        ],
        park: false,
        seccomp: None,
        seccomp_flags: 0,
        exec: shell(script),
    };
    let fds = vec![Arc::new(null.into()), Arc::new(write), Arc::clone(&container.pidfd)];
    (Spawn { id: id.to_owned(), plan, fds, role: Role::Exec }, read)
}

pub fn read_all(fd: &OwnedFd) -> String {
    let mut text = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        match rustix::io::read(fd.as_fd(), &mut buffer).unwrap() {
            0 => return String::from_utf8(text).unwrap(),
            n => text.extend_from_slice(&buffer[..n]),
        }
    }
}

/// Waits for what must come, however slow the machine is.
pub async fn eventually(mut condition: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("what was waited for did not come");
}

pub fn proc_text(pid: i32, name: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default()).into_owned()
}

/// PID 1 of a pod with a shared PID namespace.
pub fn pod_init(id: &str) -> Spawn {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    let plan = SpawnPlan {
        pid: PidNamespace::New,
        new_namespaces: 0,
        join: Vec::new(),
        cgroup: CgroupEntry::default(),
        stdio: [Fd(0), Fd(0), Fd(0)],
        terminal: false,
        steps: vec![Step::Reset],
        park: false,
        seccomp: None,
        seccomp_flags: 0,
        exec: Exec { program: Program::PodInit, argv: vec![b"podwright-init".to_vec()], envp: Vec::new() },
    };
    Spawn { id: id.to_owned(), plan, fds: vec![Arc::new(null.into())], role: Role::PodInit }
}

/// A connection whose packets the test itself sends and reads, when it likes.
pub struct RawObserver {
    pub socket: OwnedFd,
    inbox: std::cell::RefCell<Inbox>,
}

impl RawObserver {
    /// One that only looks.
    pub fn new(state: &Path) -> Self {
        Self::connect(state, true)
    }

    /// Greets the keeper, and waits for its answer.
    pub fn connect(state: &Path, observer: bool) -> Self {
        let socket = seqpacket::connect(state, "keeper.sock").unwrap();
        let raw = Self { socket, inbox: Default::default() };
        raw.ask(1, &Request::Hello { version: VERSION, observer });
        let (number, reply) = raw.answer();
        assert!(number == 1 && matches!(reply, Reply::Welcome { .. }), "{reply:?}");
        raw
    }

    pub fn ask(&self, number: u32, request: &Request) {
        wire::send_all(self.socket.as_fd(), number, request, Vec::new()).unwrap();
    }

    /// One packet, as it is.
    pub fn send(&self, bytes: &[u8]) {
        let parts = [std::io::IoSlice::new(bytes)];
        seqpacket::send(self.socket.as_fd(), &parts, &[], rustix::net::SendFlags::empty()).unwrap();
    }

    pub fn answer(&self) -> (u32, Reply) {
        let incoming = self.receive().unwrap();
        (incoming.number, incoming.decode().unwrap())
    }

    /// Waits for the end of the connection.
    pub fn ended(&self) {
        let error = self.receive().map(|incoming| incoming.number).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{error}");
    }

    fn receive(&self) -> std::io::Result<wire::Incoming> {
        loop {
            let mut poll = [rustix::event::PollFd::new(&self.socket, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut poll, None).unwrap();
            match self.inbox.borrow_mut().receive(self.socket.as_fd()) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }
}
