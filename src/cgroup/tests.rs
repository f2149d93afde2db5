//! Against the real kernel, as root, each test below a root of its own.

use std::collections::BTreeMap;
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
        let inner = Inner { layout, root: root.clone(), root_made: OnceLock::new(), systemd: None };
        Some(Self { cgroups: Cgroups(Arc::new(inner)), root })
    }

    fn layout(&self) -> &Layout {
        &self.cgroups.0.layout
    }

    async fn pod(&self, id: &str) -> Cgroup {
        self.cgroups.create_pod("", id).await.unwrap()
    }

    async fn container(&self, pod: &Cgroup, id: &str, resources: &Resources) -> Cgroup {
        self.cgroups.create_container(pod, id, resources).await.unwrap().0
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
        use std::io::Read;
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
        use std::io::Read;
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

const SECONDS: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_pod_with_a_container_and_an_exec_lives_and_goes() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let pod = scratch.pod("p1").await;
    assert_eq!(pod, scratch.pod("p1").await, "repeating is fine");
    assert_eq!(pod.path, format!("{}/pod-p1/p1", scratch.root));
    let container = scratch.container(&pod, "c1", &Resources::default()).await;
    let taken = c.create_container(&pod, "c1", &Resources::default()).await.unwrap_err();
    assert!(taken.message.contains("is there already"), "{taken}");

    let main = scratch.run(&container, "sleep 1000");
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", main.pid())).unwrap();
    let paths: Vec<&str> = text.lines().filter_map(|l| l.splitn(3, ':').nth(2)).collect();
    assert!(paths.iter().all(|p| *p == container.path), "in every hierarchy: {text}");

    let exec = c.create_exec(&container, "e1").unwrap();
    let command = scratch.run(&exec, "sleep 1000 & sleep 1000");
    assert_eq!(c.wait_empty(&exec, Duration::ZERO).await.unwrap_err().kind, Kind::DeadlineExceeded);
    c.kill(&exec).unwrap();
    c.wait_empty(&exec, SECONDS).await.unwrap();
    assert!(command.killed());
    c.remove(&exec).await.unwrap();
    assert!(!scratch.exists(&exec.path));

    let survivors = c.wait_empty(&container, Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(survivors.kind, Kind::DeadlineExceeded);
    assert!(survivors.message.contains("(sleep) in state S"), "{survivors}");
    c.kill(&container).unwrap();
    c.wait_empty(&container, SECONDS).await.unwrap();
    assert!(main.killed());
    c.remove(&container).await.unwrap();
    c.remove(&pod).await.unwrap();
    c.remove(&pod).await.unwrap();
    c.kill(&pod).unwrap();
    c.wait_empty(&pod, SECONDS).await.unwrap();
    assert_eq!(c.stats(&container).unwrap_err().kind, Kind::NotFound);
    assert_eq!(c.create_exec(&container, "e2").unwrap_err().kind, Kind::NotFound);
    scratch.finish().await;
}

#[tokio::test]
async fn b28_a_parent_of_others_stays_and_one_of_ours_goes_with_the_last_pod() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let kubelets = format!("{}/kubepods/podx", scratch.root);
    tree::make(scratch.layout(), &scratch.root, false).unwrap();
    for mount in scratch.layout().mounts() {
        std::fs::create_dir_all(format!("{mount}{kubelets}")).unwrap();
    }
    let pod = c.create_pod(&kubelets, "p").await.unwrap();
    assert_eq!(pod.path, format!("{kubelets}/p"));
    let container = scratch.container(&pod, "c", &Resources::default()).await;
    assert_eq!(container.path, format!("{kubelets}/c"));
    let process = scratch.run(&container, "sleep 1000");
    c.kill(&pod).unwrap();
    c.wait_empty(&pod, SECONDS).await.unwrap();
    assert!(c.wait_empty(&container, Duration::ZERO).await.is_err(), "a parent may hold other pods");
    c.kill(&container).unwrap();
    assert!(process.killed());
    c.wait_empty(&container, SECONDS).await.unwrap();
    c.remove(&container).await.unwrap();
    c.remove(&pod).await.unwrap();
    assert!(scratch.layout().mounts().all(|m| Path::new(&format!("{m}{kubelets}")).exists()));

    let ours = format!("{}/made/deep", scratch.root);
    let (one, two) = (c.create_pod(&ours, "1").await.unwrap(), c.create_pod(&ours, "2").await.unwrap());
    c.remove(&one).await.unwrap();
    assert!(scratch.exists(&two.path));
    c.remove(&two).await.unwrap();
    assert!(!scratch.exists(&format!("{}/made", scratch.root)));

    assert_eq!(c.create_pod("/a/../b", "p").await.unwrap_err().kind, Kind::InvalidArgument);
    assert_eq!(c.create_pod("/", "../p").await.unwrap_err().kind, Kind::InvalidArgument);
    let slice = c.create_pod("/kubepods.slice/kubepods-podx.slice", "p").await.unwrap_err();
    assert!(slice.message.contains("same driver"), "{slice}");
    tree::remove(scratch.layout(), &format!("{}/kubepods", scratch.root)).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn b29_limits_are_written_changed_and_taken_back_whole() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let pod = scratch.pod("p").await;
    let resources = Resources {
        cpu_shares: 512,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        memory_limit: 64 << 20,
        cpuset_cpus: "0".into(),
        hugepage_limits: vec![("2MB".into(), 0)],
        unified: [("pids.max".to_owned(), "77".to_owned())].into(),
        ..Default::default()
    };
    let (container, warnings) = c.create_container(&pod, "c", &resources).await.unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(
        scratch.file(&container, "cpu", "cpu.shares", "cpu.weight").len(),
        if c.layout() == "unified" { 2 } else { 3 }
    );
    let memory = || scratch.file(&container, "memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(memory(), (64 << 20).to_string());
    assert_eq!(scratch.file(&container, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(scratch.file(&container, "pids", "pids.max", "pids.max"), "77");
    let in_force = c.limits(&container);
    assert_eq!(in_force.cpu_quota, 50_000);
    assert_eq!((in_force.cpu_period, in_force.memory_limit), (100_000, 64 << 20));
    assert_eq!(in_force.memory_swap_limit, 64 << 20);

    // Growing, then shrinking: limit and swap have to be written in opposite orders on v1.
    for mebibytes in [256, 32] {
        let update = Resources { memory_limit: mebibytes << 20, ..Default::default() };
        assert!(c.update(&container, &update).await.unwrap().is_empty());
        assert_eq!(memory(), (mebibytes << 20).to_string());
        assert_eq!(c.limits(&container).memory_swap_limit, mebibytes << 20);
        assert_eq!(c.limits(&container).cpu_quota, 50_000, "zero means unchanged");
    }
    // A shorter period with the old quota, and back.
    for (quota, period) in [(2_000, 2_000), (900_000, 1_000_000)] {
        let update = Resources { cpu_quota: quota, cpu_period: period, ..Default::default() };
        c.update(&container, &update).await.unwrap();
        assert_eq!((c.limits(&container).cpu_quota, c.limits(&container).cpu_period), (quota, period));
    }
    let before = c.limits(&container);
    // A quota below 1 ms is refused by the kernel, after memory and shares went through.
    let bad = Resources { cpu_shares: 99, memory_limit: 128 << 20, cpu_quota: 1, ..Default::default() };
    let error = c.update(&container, &bad).await.unwrap_err();
    assert_eq!(error.kind, Kind::InvalidArgument);
    assert!(error.message.contains("cpu_quota"), "{error}");
    assert_eq!(c.limits(&container), before);

    let lifted = Resources { cpu_quota: -1, memory_limit: -1, ..Default::default() };
    c.update(&container, &lifted).await.unwrap();
    assert_eq!((c.limits(&container).cpu_quota, c.limits(&container).memory_limit), (-1, -1));
    c.remove(&container).await.unwrap();
    assert!(c.update(&container, &resources).await.is_err());

    let refused = Resources { cpu_quota: 1, ..Default::default() };
    assert!(c.create_container(&pod, "d", &refused).await.is_err());
    assert!(!scratch.exists(&format!("{}/d", path::parent(&pod.path))), "nothing is left of it");
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn b29_a_memory_limit_below_what_is_in_use_is_refused() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let pod = scratch.pod("p").await;
    let limited = Resources { memory_limit: 256 << 20, ..Default::default() };
    let container = scratch.container(&pod, "c", &limited).await;
    let process =
        scratch.run(&container, "x=$(head -c 60000000 /dev/zero | tr '\\0' x); echo full; sleep 1000");
    let deadline = Instant::now() + SECONDS;
    while c.stats(&container).unwrap().memory.unwrap().rss < 50_000_000 {
        assert!(Instant::now() < deadline, "{:?}", c.stats(&container));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let less = Resources { memory_limit: 16 << 20, ..Default::default() };
    assert_eq!(c.update(&container, &less).await.unwrap_err().kind, Kind::FailedPrecondition);
    assert_eq!(c.limits(&container).memory_limit, 256 << 20);
    assert_eq!(c.oom_kills(&container), Some(0));
    c.kill(&pod).unwrap();
    assert!(process.killed());
    c.wait_empty(&pod, SECONDS).await.unwrap();
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn b10_oom_kills_are_counted() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let pod = scratch.pod("p").await;
    let limited = Resources { memory_limit: 16 << 20, ..Default::default() };
    let container = scratch.container(&pod, "c", &limited).await;
    assert_eq!(c.oom_kills(&container), Some(0));
    let process = scratch.run(&container, "exec tail /dev/zero");
    assert!(process.killed());
    assert_eq!(c.oom_kills(&container), Some(1));
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn b36_stats_tell_use() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let pod = scratch.pod("p").await;
    let limited = Resources { memory_limit: 128 << 20, ..Default::default() };
    let container = scratch.container(&pod, "c", &limited).await;
    let process = scratch.run(&container, "x=$(head -c 20000000 /dev/zero | tr '\\0' x); sleep 1000");
    // The kernel folds small changes of memory.stat in late.
    let deadline = Instant::now() + SECONDS;
    let stats = loop {
        let stats = c.stats(&container).unwrap();
        let settled =
            stats.pids == Some(2) && stats.memory.is_some_and(|m| m.rss > 19_000_000 && m.page_faults > 0);
        if settled || Instant::now() > deadline {
            break stats;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(stats.cpu_usage.unwrap() > 1_000_000, "{stats:?}");
    assert!(stats.timestamp > 1_600_000_000_000_000_000);
    let memory = stats.memory.unwrap();
    assert!(
        memory.rss > 19_000_000 && memory.working_set <= memory.usage && memory.page_faults > 0,
        "{memory:?}"
    );
    assert_eq!(memory.available, Some((128 << 20) - memory.working_set));
    assert_eq!(stats.pids, Some(2));
    assert_eq!(stats.swap_available, Some(0));
    let psi = Path::new("/proc/pressure/cpu").exists() && scratch.layout().unified.is_some();
    assert_eq!(stats.cpu_psi.is_some(), psi);
    let all = c.stats(&pod).unwrap();
    assert!(all.cpu_usage >= stats.cpu_usage && all.memory.unwrap().usage >= memory.usage, "{all:?}");
    c.kill(&pod).unwrap();
    assert!(process.killed());
    c.wait_empty(&pod, SECONDS).await.unwrap();
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn cgroups_that_a_container_made_go_with_it() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let pod = scratch.pod("p").await;
    let container = scratch.container(&pod, "c", &Resources::default()).await;
    for mount in scratch.layout().mounts() {
        for below in ["a/b/c", "a/d", "e"] {
            std::fs::create_dir_all(format!("{mount}{}/{below}", container.path)).unwrap();
        }
    }
    let inner = Cgroup { path: format!("{}/a/b", container.path), role: Role::Container };
    let cpuset = scratch.layout().v1("cpuset").map(|h| format!("{}{}/cpuset.cpus", h.mount, inner.path));
    assert!(cpuset.is_none_or(|name| !file::read_all(&name).unwrap().trim().is_empty()), "cloned from ours");
    let process = scratch.run(&inner, "sleep 1000");
    let error = tree::remove(scratch.layout(), &container.path).await.unwrap_err();
    assert!(error.message.matches("busy").count() == scratch.layout().mounts().count(), "{error}");
    c.kill(&container).unwrap();
    assert!(process.killed());
    c.wait_empty(&container, SECONDS).await.unwrap();
    c.remove(&container).await.unwrap();
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn devices_are_the_default_set_and_those_listed() {
    let Some(scratch) = Scratch::new() else { return };
    devices_case(scratch).await;
    // The v2 way, which a hybrid host has as well.
    let Some(scratch) = Scratch::with(|layout| layout.v1.retain(|h| h.controllers != ["devices"])) else {
        return;
    };
    if scratch.layout().unified.is_some() {
        devices_case(scratch).await;
    }
}

async fn devices_case(scratch: Scratch) {
    let c = &scratch.cgroups;
    let pod = scratch.pod("p").await;
    let script = "for d in null zero urandom; do head -c 0 /dev/$d && echo $d; done;
                  head -c 0 /dev/kmsg 2>&1 && echo kmsg; : > /dev/kmsg && echo kmsg-written";
    let listed = |access: &str| {
        DeviceRules::Listed(vec![DeviceRule { block: false, major: 1, minor: 11, access: access.into() }])
    };
    for (id, rules, reads, writes) in [
        ("none", DeviceRules::Listed(vec![]), false, false),
        ("read", listed("r"), true, false),
        ("both", listed("rw"), true, true),
        ("all", DeviceRules::All, true, true),
    ] {
        let container = scratch.container(&pod, id, &Resources::default()).await;
        c.allow_devices(&container, &rules).unwrap();
        let said = scratch.run(&container, script).output();
        assert!(said.starts_with("null\nzero\nurandom\n"), "{id}: {said}");
        assert_eq!(said.contains("\nkmsg\n"), reads, "{id}: {said}");
        assert_eq!(said.contains("\nkmsg-written\n"), writes, "{id}: {said}");
        c.remove(&container).await.unwrap();
    }
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn pure_v1_kills_by_the_freezer() {
    let Some(scratch) = Scratch::with(|layout| {
        if !layout.v1.is_empty() {
            layout.unified = None;
        }
    }) else {
        return;
    };
    if scratch.layout().killer().is_none() || scratch.layout().unified.is_some() {
        eprintln!("skipped: no v1 freezer here");
        return;
    }
    let c = &scratch.cgroups;
    let pod = scratch.pod("p").await;
    let container = scratch.container(&pod, "c", &Resources::default()).await;
    let main = scratch.run(&container, "sleep 1000");
    let exec = c.create_exec(&container, "e").unwrap();
    let command = scratch.run(&exec, "while :; do sleep 0.001 & done");
    assert!(c.wait_empty(&exec, Duration::from_millis(30)).await.is_err());
    c.kill(&exec).unwrap();
    c.wait_empty(&exec, SECONDS).await.unwrap();
    assert!(command.killed());
    c.remove(&exec).await.unwrap();
    assert!(c.wait_empty(&container, Duration::ZERO).await.is_err(), "the container lives on");
    c.kill(&container).unwrap();
    c.wait_empty(&container, SECONDS).await.unwrap();
    assert!(main.killed());
    c.remove(&container).await.unwrap();
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn an_exec_finds_a_place_beside_a_threaded_container() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let Some(unified) = scratch.layout().unified.clone() else { return };
    let pod = scratch.pod("p").await;
    let container = scratch.container(&pod, "c", &Resources::default()).await;
    let main = scratch.run(&container, "sleep 1000");
    let full = format!("{}{}", unified.mount, container.path);
    std::fs::create_dir(format!("{full}/t")).unwrap();
    if file::write(&format!("{full}/t/cgroup.type"), "threaded").is_ok() {
        let exec = c.create_exec(&container, "e").unwrap();
        assert_eq!(exec.path, container.path);
        assert_eq!(c.kill(&exec).unwrap_err().kind, Kind::FailedPrecondition);
        drop(scratch.run(&exec, "sleep 1000"));
        c.wait_empty(&exec, Duration::ZERO).await.unwrap();
        c.remove(&exec).await.unwrap();
        assert!(scratch.exists(&container.path));
    }
    file::write(&format!("{full}/cgroup.max.descendants"), "0").unwrap();
    let exec = c.create_exec(&container, "f").unwrap();
    assert_eq!(exec.role, Role::Exec { container: container.path.clone(), shared: true });
    c.kill(&pod).unwrap();
    assert!(main.killed());
    c.wait_empty(&pod, SECONDS).await.unwrap();
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pods_come_and_go_in_one_parent_that_comes_and_goes() {
    let Some(scratch) = Scratch::new() else { return };
    tree::make(scratch.layout(), &scratch.root, false).unwrap();
    let parent = format!("{}/shared", scratch.root);
    let tasks: Vec<_> = (0..4)
        .map(|worker| {
            let (cgroups, parent) = (scratch.cgroups.clone(), parent.clone());
            tokio::spawn(async move {
                for turn in 0..10 {
                    let pod = cgroups.create_pod(&parent, &format!("{worker}-{turn}")).await.unwrap();
                    cgroups.remove(&pod).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    scratch.finish().await;
}

#[tokio::test]
async fn the_keeper_has_a_cgroup_of_its_own() {
    let Some(scratch) = Scratch::new() else { return };
    let files = scratch.cgroups.keeper_procs().unwrap();
    assert_eq!(files.len(), scratch.layout().mounts().count());
    let sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
    let sleeper = Process(sleeper);
    for name in &files {
        std::fs::write(name, sleeper.pid().to_string()).unwrap();
    }
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", sleeper.pid())).unwrap();
    assert!(text.lines().all(|line| line.ends_with(&format!(":{}/keeper", scratch.root))), "{text}");
    drop(sleeper);
    tree::remove(scratch.layout(), &format!("{}/keeper", scratch.root)).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn a_record_of_a_cgroup_is_read_back() {
    let pod = Cgroup { path: "/a/b".into(), role: Role::Pod { parent_is_ours: true } };
    let exec = Cgroup { path: "/a/c".into(), role: Role::Exec { container: "/a".into(), shared: false } };
    for cgroup in [pod, exec, Cgroup::default()] {
        let text = serde_json::to_string(&cgroup).unwrap();
        assert_eq!(serde_json::from_str::<Cgroup>(&text).unwrap(), cgroup);
    }
    assert_eq!(serde_json::from_str::<Cgroup>(r#"{"path":"/x"}"#).unwrap().role, Role::Container);
}

/// `cargo test --lib cgroup::tests::figures -- --ignored --nocapture`
#[tokio::test]
#[ignore = "measures, asserts nothing"]
async fn figures() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut note = |what, since: Instant| times.entry(what).or_default().push(since.elapsed());
    let resources = Resources {
        cpu_shares: 512,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        memory_limit: 64 << 20,
        ..Default::default()
    };
    for turn in 0..200 {
        let start = Instant::now();
        let pod = scratch.pod(&format!("p{turn}")).await;
        note("1 create pod", start);
        let start = Instant::now();
        let container = scratch.container(&pod, "c", &resources).await;
        note("2 create container with 5 limits", start);
        let start = Instant::now();
        c.allow_devices(&container, &DeviceRules::Listed(vec![])).unwrap();
        note("3 confine devices", start);
        let start = Instant::now();
        let entry = c.entry(&container).unwrap();
        note("4 open entry", start);
        drop(entry);
        let start = Instant::now();
        c.stats(&container).unwrap();
        note("5 stats", start);
        let start = Instant::now();
        let exec = c.create_exec(&container, "e").unwrap();
        note("6 create exec", start);
        let start = Instant::now();
        c.remove(&exec).await.unwrap();
        note("7 remove exec", start);
        let start = Instant::now();
        c.kill(&container).unwrap();
        note("8 kill, empty", start);
        let start = Instant::now();
        c.wait_empty(&container, SECONDS).await.unwrap();
        note("9 wait, empty", start);
        let start = Instant::now();
        c.remove(&container).await.unwrap();
        note("a remove container", start);
        let start = Instant::now();
        c.remove(&pod).await.unwrap();
        note("b remove pod", start);
    }
    for (what, mut list) in times {
        list.sort();
        eprintln!("{what}: p50 {:?} p99 {:?}", list[list.len() / 2], list[list.len() * 99 / 100]);
    }
    scratch.finish().await;
}
