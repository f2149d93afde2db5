//! Against the real kernel, as root, each test below a root of its own.

mod devices;
mod figures;
mod lifecycle;
mod limits;
mod scope;

use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::*;
use crate::error::Kind;

/// Cgroups below `/podwright-test-<pid>-<n>`, which must be empty in the end.
struct Scratch {
    cgroups: Cgroups,
    root: String,
}

impl Scratch {
    /// None, with the reason printed, where root tests cannot run.
    fn new() -> Option<Self> {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Layout)) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making cgroups needs root");
            return None;
        }
        let root = format!("/podwright-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut layout = Layout::detect().unwrap();
        change(&mut layout);
        let inner = Inner {
            layout,
            root: root.clone(),
            root_made: OnceLock::new(),
            driver: Driver::Cgroupfs,
            systemd: None,
            oom_watches: oom::Watches::default(),
        };
        Some(Self { cgroups: Cgroups(Arc::new(inner)), root })
    }

    fn layout(&self) -> &Layout {
        &self.cgroups.0.layout
    }

    async fn pod(&self, id: &str) -> Cgroup {
        self.cgroups.create_pod("", id).await.unwrap()
    }

    fn container(&self, pod: &Cgroup, id: &str, resources: &Resources) -> Cgroup {
        let container = self.cgroups.create_container(pod, id).unwrap();
        assert_eq!(self.cgroups.limit(&container, resources).unwrap(), Vec::<String>::new());
        container
    }

    /// Nothing may be left below the root, in any hierarchy.
    async fn finish(self) {
        for mount in self.layout().mounts() {
            let left = tree::children(&format!("{mount}{}", self.root)).unwrap();
            assert_eq!(left, Vec::<String>::new());
        }
        tree::remove(self.layout(), &self.root).await.unwrap();
    }

    /// A process that enters through the fds of `entry`, as a child of the keeper does, and then
    /// runs `script`.
    fn run(&self, cgroup: &Cgroup, script: &str) -> Process {
        let entry = self.cgroups.entry(cgroup).unwrap();
        let us = std::process::id();
        let mut files: Vec<String> =
            entry.tasks.iter().map(|fd| format!("/proc/{us}/fd/{}", fd.as_raw_fd())).collect();
        files.extend(entry.unified.iter().map(|fd| format!("/proc/{us}/fd/{}/cgroup.procs", fd.as_raw_fd())));
        let enter = r#"set -e; for f; do echo 0 > "$f"; done; echo in; set +e; "#;
        let child = Command::new("sh")
            .args(["-c", &format!("{enter}{script}"), "sh"])
            .args(files)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut process = Process(child);
        let mut said = [0; 3];
        process.0.stdout.as_mut().unwrap().read_exact(&mut said).expect("entering the cgroup");
        assert_eq!(&said, b"in\n");
        process
    }

    /// What a file says, in whichever hierarchy has the controller.
    fn file(&self, cgroup: &Cgroup, controller: &str, v1: &str, v2: &str) -> String {
        let place = self.layout().place(controller).unwrap();
        let name = if place == layout::Place::V2 { v2 } else { v1 };
        file::read_all(&format!("{}{}/{name}", self.layout().mount(place), cgroup.path))
            .unwrap()
            .trim()
            .to_owned()
    }

    fn exists(&self, path: &str) -> bool {
        self.layout().mounts().any(|mount| Path::new(&format!("{mount}{path}")).exists())
    }
}

struct Process(Child);

impl Process {
    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn output(self) -> String {
        let mut this = std::mem::ManuallyDrop::new(self);
        let mut text = String::new();
        this.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        this.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        this.0.wait().unwrap();
        text
    }

    fn killed(mut self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        self.0.wait().unwrap().signal() == Some(libc::SIGKILL)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An emulated processor takes its time.
const SECONDS: Duration = Duration::from_secs(300);
