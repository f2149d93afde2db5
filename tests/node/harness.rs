//! A podwright of the test's own: fresh network and mount namespaces, its own directories, bridge,
//! subnet and cgroup root, real gRPC over its socket; and a check that it leaves nothing behind.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use podwright::cri::wire as cri;
use tonic::transport::{Channel, Endpoint, Uri};

pub use crate::requests::*;

pub type Runtime = cri::runtime_service_client::RuntimeServiceClient<Channel>;
pub type Images = cri::image_service_client::ImageServiceClient<Channel>;

pub struct Daemon {
    pub dir: tempfile::TempDir,
    number: u32,
    child: Child,
    /// Of the daemon, kept when it is killed: its pins are mounted there.
    namespaces: Namespaces,
    channel: Channel,
}

/// A network and a mount namespace.
struct Namespaces {
    net: std::fs::File,
    mnt: std::fs::File,
}

impl Namespaces {
    fn of(pid: u32) -> Self {
        let open = |name: &str| std::fs::File::open(format!("/proc/{pid}/ns/{name}")).unwrap();
        Self { net: open("net"), mnt: open("mnt") }
    }

    /// nsenter into both, ready for the program.
    fn enter(&self) -> Command {
        let path = |file: &std::fs::File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", path(&self.net)))
            .arg(format!("--mount={}", path(&self.mnt)))
            .arg("--");
        command
    }
}

/// The suite runs with either driver: PODWRIGHT_TEST_DRIVER=systemd needs a host of systemd's.
pub fn systemd_driver() -> bool {
    std::env::var("PODWRIGHT_TEST_DRIVER").is_ok_and(|driver| driver == "systemd")
}

/// Unique on this machine while the test runs.
fn next_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    (std::process::id() % 10_000) * 100 + NEXT.fetch_add(1, Ordering::SeqCst)
}

impl Daemon {
    /// Starts one with the busybox image in its store.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// `extra`: lines of configuration, in the section `network` to begin with.
    pub async fn start_with(extra: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("podwright-test-").tempdir().unwrap();
        let number = next_number();
        let root = dir.path().join("root");
        std::fs::create_dir_all(&root).unwrap();
        copy_tree(&crate::seed::store(), &root.join("image"));
        let config = format!(
            "listen = {listen:?}\nroot = {root:?}\nstate = {state:?}\nnetns_dir = {netns:?}\nlog_level = \"debug\"\n\
             [cgroup]\ndriver = {driver:?}\nroot = \"/podwrighttest{number}\"\n\
             [network]\n{mode}bridge = \"pwt{number}\"\nsubnet = \"10.213.0.0/16\"\n{extra}\n",
            driver = if systemd_driver() { "systemd" } else { "cgroupfs" },
            listen = dir.path().join("cri.sock"),
            state = dir.path().join("state"),
            netns = dir.path().join("netns"),
            mode = if extra.contains("mode =") { "" } else { "mode = \"builtin\"\n" },
        );
        std::fs::write(dir.path().join("config.toml"), config).unwrap();
        let child = spawn(dir.path(), None);
        let channel = connect(&dir.path().join("cri.sock")).await;
        let namespaces = Namespaces::of(child.id());
        Self { dir, number, child, namespaces, channel }
    }

    pub fn runtime(&self) -> Runtime {
        Runtime::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub fn images(&self) -> Images {
        Images::new(self.channel.clone())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The parent of all its cgroups. Without a dash, which for systemd would be a level.
    pub fn cgroup(&self) -> String {
        let suffix = if systemd_driver() { ".slice" } else { "" };
        format!("/podwrighttest{}{suffix}", self.number)
    }

    /// The keeper's below it.
    fn keeper_cgroup(&self) -> String {
        if systemd_driver() { format!("podwrighttest{}-keeper.scope", self.number) } else { "keeper".into() }
    }

    /// By its cgroup.
    pub fn keeper_pid(&self) -> i32 {
        *self.keeper_pids().first().expect("the keeper runs")
    }

    /// None between two keepers.
    pub fn keeper_pids(&self) -> Vec<i32> {
        let path = format!("{}{}/{}/cgroup.procs", unified(), self.cgroup(), self.keeper_cgroup());
        let procs = std::fs::read_to_string(path).unwrap_or_default();
        procs.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// SIGKILL to the daemon alone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks the daemon to end.
    pub fn terminate(&self) {
        kill(self.pid().cast_signed(), 15);
    }

    /// The daemon's exit.
    pub fn ended(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// SIGKILL to the keeper alone.
    pub fn kill_keeper(&self) {
        kill(self.keeper_pid(), 9);
    }

    /// A new daemon in the namespaces of the old one, which must be dead.
    pub async fn start_again(&mut self) {
        self.child = spawn(self.dir.path(), Some(&self.namespaces));
        self.channel = connect(&self.dir.path().join("cri.sock")).await;
    }

    /// Ends all processes and takes away what a reboot takes away: the state directory, the pinned
    /// namespaces and whatever is in the daemon's own, the cgroups.
    pub async fn reboot(&mut self) {
        self.end();
        std::fs::remove_dir_all(self.dir.path().join("state")).unwrap();
        // The pins are files here and mounts over them in the daemon's mount namespace.
        let _ = std::fs::remove_dir_all(self.dir.path().join("netns"));
        self.child = spawn(self.dir.path(), None);
        self.channel = connect(&self.dir.path().join("cri.sock")).await;
        self.namespaces = Namespaces::of(self.child.id());
    }

    /// Ends both processes and all containers, and removes their cgroups.
    fn end(&mut self) {
        let root = format!("{}{}", unified(), self.cgroup());
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::write(format!("{root}/cgroup.kill"), "1");
        for _ in 0..2000 {
            let events = std::fs::read_to_string(format!("{root}/cgroup.events")).unwrap_or_default();
            if !events.contains("populated 1") {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if systemd_driver() {
            let unit = self.cgroup();
            let _ = Command::new("systemctl").args(["stop", unit.trim_start_matches('/')]).status();
        }
        for mount in hierarchies() {
            remove_cgroup(&PathBuf::from(format!("{mount}{}", self.cgroup())));
        }
    }

    /// Removes every pod, and checks that nothing is left of them anywhere.
    pub async fn finish(self) {
        let mut runtime = self.runtime();
        let pods =
            runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.unwrap().into_inner();
        for pod in pods.items {
            let request = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id };
            runtime.remove_pod_sandbox(request).await.expect("every pod can be removed");
        }
        let mut left = self.leftovers();
        for _ in 0..600 {
            if left.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            left = self.leftovers();
        }
        assert_eq!(left, Vec::<String>::new(), "something is left behind");
    }

    /// Cgroups, mounts, links, processes, files of pods that should be gone.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for mount in hierarchies() {
            let root = PathBuf::from(format!("{mount}{}", self.cgroup()));
            for entry in std::fs::read_dir(&root).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) && entry.file_name() != *self.keeper_cgroup() {
                    left.push(format!("cgroup {}", entry.path().display()));
                }
            }
        }
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.pid())).unwrap_or_default();
        let ours = self.dir.path().to_string_lossy().into_owned();
        left.extend(mounts.lines().filter(|l| l.contains(&ours)).map(|l| format!("mount {l}")));
        let links = self.in_netns("ip", &["-o", "link", "show", "type", "veth"]);
        left.extend(links.lines().map(|l| format!("link {l}")));
        for place in ["netns", "root/pods", "root/containers", "root/trash", "state/pods", "state/containers"]
        {
            let entries = std::fs::read_dir(self.dir.path().join(place)).into_iter().flatten().flatten();
            left.extend(entries.map(|e| format!("file {}", e.path().display())));
        }
        left.extend(self.addresses().into_iter().map(|line| format!("address {line}")));
        left
    }

    /// Addresses that are taken, by the builtin network's journal.
    pub fn addresses(&self) -> Vec<String> {
        let path = self.dir.path().join("root/network/builtin/addresses");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut taken = BTreeMap::new();
        for line in text.lines() {
            let Some((sign, rest)) = line.split_at_checked(1) else { continue };
            let address = rest.split_whitespace().next().unwrap_or_default().to_owned();
            if sign == "+" {
                taken.insert(address, line.to_owned());
            } else {
                taken.remove(&address);
            }
        }
        taken.into_values().collect()
    }

    /// A command in the daemon's network and mount namespaces.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.namespaces.enter();
        command.arg(program);
        command
    }

    /// The output of a command in the daemon's network namespace.
    pub fn in_netns(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.namespaces.enter().arg(program).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must succeed in the daemon's network and mount namespaces.
    pub fn in_namespaces(&self, program: &str, arguments: &[&str]) {
        let output = self.namespaces.enter().arg(program).args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{program} {arguments:?}: {error}{said}");
        print!("{said}");
    }
}

impl Drop for Daemon {
    /// Ends both processes and frees what they held, also after a failed test.
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("KEEP").is_some() {
            let log = std::fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default();
            eprintln!("{log}");
        }
        self.end();
    }
}

fn remove_cgroup(path: &Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(path);
}

/// `podwright serve` in namespaces of its own, or in those of a process.
fn spawn(dir: &Path, namespaces: Option<&Namespaces>) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("daemon.log")).unwrap();
    let mut command = match namespaces {
        None => {
            let mut command = Command::new("unshare");
            command.args(["--net", "--mount", "--propagation", "private", "--"]);
            command
        }
        Some(namespaces) => namespaces.enter(),
    };
    command
        .args([env!("CARGO_BIN_EXE_podwright"), "serve", "--config"])
        .arg(dir.join("config.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .process_group(0);
    command.spawn().unwrap()
}

async fn connect(socket: &Path) -> Channel {
    let path = socket.to_owned();
    for _ in 0..1600 {
        let path = path.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector_lazy(connector);
        let request = cri::VersionRequest::default();
        // Lazy: it connects again by itself when the daemon was started again.
        if Runtime::new(channel.clone()).version(request).await.is_ok() {
            return channel;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let log = std::fs::read_to_string(socket.with_file_name("daemon.log")).unwrap_or_default();
    panic!("the daemon does not answer on {}:\n{log}", socket.display());
}

pub fn kill(pid: i32, signal: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(e) => panic!("killing {pid:?}: {e}"),
    }
}

/// Mount points of every cgroup hierarchy.
pub fn hierarchies() -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|f| f[2] == "cgroup" || f[2] == "cgroup2").map(|f| f[1].to_owned()).collect()
}

/// Where cgroup2 is mounted.
pub fn unified() -> String {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let line =
        mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("cgroup2 is mounted");
    line.split(' ').nth(1).unwrap().to_owned()
}

/// Copies with hard links for the layers' files, so that a test's store costs no disk.
pub fn copy_tree(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg("--reflink=auto").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "copying the seeded store");
}
