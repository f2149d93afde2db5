//! Full lifecycles on all sides while podwright's processes are killed at random moments.
//!
//! `KILLS=200 SEED=… cargo test --test node random -- --nocapture`

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use podwright::cri::wire as cri;
use tonic::{Code, Status};

use super::{EXITED, assert_whole};
use crate::harness::{Daemon, Runtime, kill, pod, read_log, script};

const WORKERS: u32 = 8;
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// Long enough for a few kills.
const SCRIPT: &str = "i=0; for burst in 1 2 3 4 5 6; do j=0; while [ $j -lt 100 ]; do i=$((i+1)); j=$((j+1)); echo $i; \
                      done; sleep 0.05; done; echo end $i >&2; : > /shared/$NAME";

#[tokio::test(flavor = "multi_thread")]
async fn random_kills_lose_nothing() {
    let kills = number("KILLS", 20);
    let seed = number("SEED", u64::from(std::process::id()));
    println!("{kills} kills, SEED={seed}");
    let mut random = Random(seed | 1);
    let mut daemon = Daemon::start().await;
    let tally = Arc::new(Tally::default());
    let workers: Vec<_> = (0..WORKERS)
        .map(|number| {
            let worker = Worker {
                number,
                runtime: daemon.runtime(),
                logs: daemon.dir.path().join("logs").to_string_lossy().into_owned(),
                shared: super::shared(&daemon),
                tally: Arc::clone(&tally),
            };
            tokio::spawn(worker.work())
        })
        .collect();
    let mut killer = Killer { keeper: daemon.keeper_pid(), dead: 0, tally: Arc::clone(&tally) };
    for n in 0..kills {
        tokio::time::sleep(Duration::from_millis(random.below(600))).await;
        match n % 3 {
            0 => killer.daemon(&mut daemon).await,
            1 => killer.keeper(&daemon),
            _ if random.below(2) == 0 => {
                killer.keeper(&daemon);
                killer.daemon(&mut daemon).await;
            }
            _ => killer.both(&mut daemon).await,
        }
        assert!(!workers.iter().any(tokio::task::JoinHandle::is_finished), "a worker failed");
    }
    tally.over.store(true, Ordering::SeqCst);
    for worker in workers {
        worker.await.expect("a worker's lifecycles are whole");
    }
    let Tally { lifecycles, again, unknown, alone, .. } = &*tally;
    println!(
        "{lifecycles:?} lifecycles, {again:?} made again, {} times nobody held them, {unknown:?} ends unseen",
        alone.lock().unwrap().len()
    );
    daemon.finish().await;
}

/// Kills, and writes down when no process of podwright's held the containers.
struct Killer {
    /// The last keeper that is known to have been given all that there was.
    keeper: i32,
    /// The last one that was killed alone.
    dead: i32,
    tally: Arc<Tally>,
}

impl Killer {
    async fn daemon(&mut self, daemon: &mut Daemon) {
        let held = self.keeper_holds(daemon).await;
        let since = SystemTime::now();
        daemon.kill();
        if held {
            daemon.start_again().await;
        } else {
            self.alone(since, daemon).await;
        }
        self.keeper = daemon.keeper_pid();
    }

    fn keeper(&mut self, daemon: &Daemon) {
        for pid in daemon.keeper_pids() {
            kill(pid, 9);
            self.dead = pid;
        }
    }

    async fn both(&mut self, daemon: &mut Daemon) {
        let held = self.keeper_holds(daemon).await;
        let before = SystemTime::now();
        let keeper = daemon.keeper_pids();
        daemon.kill();
        let after = SystemTime::now();
        keeper.into_iter().for_each(|pid| kill(pid, 9));
        self.alone(if held { after } else { before }, daemon).await;
        self.keeper = daemon.keeper_pid();
    }

    /// Starts the daemon again. Until it answers nobody holds the containers.
    async fn alone(&self, since: SystemTime, daemon: &mut Daemon) {
        self.tally.alone.lock().unwrap().push((since, None));
        daemon.start_again().await;
        self.tally.alone.lock().unwrap().last_mut().unwrap().1 = Some(SystemTime::now());
    }

    /// Whether the keeper that runs holds everything: its daemon says so once it has handed all over.
    async fn keeper_holds(&mut self, daemon: &Daemon) -> bool {
        let Some(keeper) = daemon.keeper_pids().first().copied() else { return false };
        if keeper == self.dead || keeper == self.keeper {
            return keeper != self.dead;
        }
        let status = daemon.runtime().status(cri::StatusRequest::default()).await;
        let conditions = status.map(|s| s.into_inner().status.unwrap_or_default().conditions);
        let ready = conditions.is_ok_and(|c| c.iter().any(|c| c.r#type == "RuntimeReady" && c.status));
        if ready {
            self.keeper = keeper;
        }
        ready
    }
}

pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

/// xorshift: the same kills for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[derive(Debug, Default)]
struct Tally {
    over: AtomicBool,
    /// From when until when neither process held the containers.
    alone: Mutex<Vec<(SystemTime, Option<SystemTime>)>>,
    lifecycles: AtomicU32,
    /// Pods and containers that lost their namespaces or never started, and were made again.
    again: AtomicU32,
    /// Exits that nobody saw, as their status said.
    unknown: AtomicU32,
}

struct Worker {
    number: u32,
    runtime: Runtime,
    logs: String,
    /// Each container leaves its last word here, whose time is known.
    shared: PathBuf,
    tally: Arc<Tally>,
}

impl Worker {
    async fn work(self) {
        let mut lifecycle = 0;
        while !self.tally.over.load(Ordering::SeqCst) {
            lifecycle += 1;
            let name = format!("w{}-{lifecycle}", self.number);
            let mut attempt = 0;
            while !self.lifecycle(&name, attempt).await {
                attempt += 1;
                self.tally.again.fetch_add(1, Ordering::SeqCst);
                assert!(attempt < 50, "{name} never gets through");
            }
            self.tally.lifecycles.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// False: what was made was lost before the container had started; kubelet makes another.
    async fn lifecycle(&self, name: &str, attempt: u32) -> bool {
        let mut config = pod(name);
        config.metadata.as_mut().unwrap().attempt = attempt;
        config.log_directory = format!("{}/{name}-{attempt}", self.logs);
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let pod = retry(|| {
            let (mut runtime, request) = (self.runtime.clone(), request.clone());
            async move { runtime.run_pod_sandbox(request).await }
        });
        let pod = match pod.await {
            Ok(answer) => answer.pod_sandbox_id,
            // It came to be, and lost its namespaces before we heard of it.
            Err(status) if status.code() == Code::AlreadyExists => return false,
            Err(status) => panic!("running pod {name}: {status:?}"),
        };
        let whole = self.container(name, &pod, config).await;
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
        let stopped = retry(|| {
            let (mut runtime, request) = (self.runtime.clone(), request.clone());
            async move { runtime.stop_pod_sandbox(request).await }
        });
        stopped.await.expect("stop pod");
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: pod };
        let removed = retry(|| {
            let (mut runtime, request) = (self.runtime.clone(), request.clone());
            async move { runtime.remove_pod_sandbox(request).await }
        });
        removed.await.expect("remove pod");
        whole
    }

    async fn container(&self, name: &str, pod: &str, sandbox: cri::PodSandboxConfig) -> bool {
        let code = 1 + (self.number as i32 * 7) % 100;
        // Of this pod alone, whatever its name.
        let word = pod.to_owned();
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(self.config(code, &word)),
            sandbox_config: Some(sandbox),
        };
        let created = retry(|| {
            let (mut runtime, request) = (self.runtime.clone(), request.clone());
            async move { runtime.create_container(request).await }
        });
        let id = match created.await {
            Ok(answer) => answer.container_id,
            Err(status) if matches!(status.code(), Code::FailedPrecondition | Code::AlreadyExists) => {
                return false;
            }
            Err(status) => panic!("creating a container in {name}: {status:?}"),
        };
        let request = cri::StartContainerRequest { container_id: id.clone() };
        let started = retry(|| {
            let (mut runtime, request) = (self.runtime.clone(), request.clone());
            async move { runtime.start_container(request).await }
        });
        match started.await {
            Ok(_) => {}
            // An earlier try started it, or it went while both processes were dead.
            Err(status) if status.code() == Code::FailedPrecondition => {}
            Err(status) => panic!("starting the container of {name}: {status:?}"),
        }
        let end = self.watch_end(&id).await;
        let _ = self.exec(&id).await;
        let status = self.wait(&id).await;
        let before = SystemTime::now();
        if status.started_at == 0 {
            return false;
        }
        let after = end.await.unwrap().unwrap_or(before);
        self.check(name, code, &status, (self.shared.join(word), after))
    }

    fn config(&self, code: i32, word: &str) -> cri::ContainerConfig {
        let mut config = script("main", &format!("NAME={word}; {SCRIPT}; exit {code}"));
        config.mounts = vec![cri::Mount {
            container_path: "/shared".into(),
            host_path: self.shared.to_string_lossy().into_owned(),
            ..Default::default()
        }];
        config
    }

    /// The time at which the container's process is seen to have ended, if it can be seen at all.
    async fn watch_end(&self, id: &str) -> tokio::task::JoinHandle<Option<SystemTime>> {
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: true };
        let answer = retry(|| {
            let (mut runtime, request) = (self.runtime.clone(), request.clone());
            async move { runtime.container_status(request).await }
        });
        let info = answer.await.expect("container status").info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        let pid = rustix::process::Pid::from_raw(info["pid"].as_i64().unwrap() as i32);
        tokio::task::spawn_blocking(move || {
            let pidfd = rustix::process::pidfd_open(pid?, rustix::process::PidfdFlags::empty()).ok()?;
            let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut poll, None).ok()?;
            Some(SystemTime::now())
        })
    }

    /// Exit and log are exact, unless the container ended while nobody held it. `end`: its last word,
    /// written just before its end, and a time at which it had ended.
    fn check(
        &self,
        name: &str,
        code: i32,
        status: &cri::ContainerStatus,
        end: (PathBuf, SystemTime),
    ) -> bool {
        let (word, after) = end;
        let before = std::fs::metadata(&word).and_then(|m| m.modified()).unwrap_or_else(|e| {
            panic!("{name} did not come to its end: {}: {e}: {status:?}", word.display());
        });
        std::fs::remove_file(&word).unwrap();
        // What it had written may wait for the copier as long as its exit may (BEHAVIOUR 39).
        let alone = |(from, to): &(SystemTime, Option<SystemTime>)| {
            to.is_none_or(|to| before <= to) && after + DRAIN_LIMIT >= *from
        };
        let said = status.reason == "ContainerStatusUnknown" || status.message.contains("may be lost");
        if said && self.tally.alone.lock().unwrap().iter().any(alone) {
            self.tally.unknown.fetch_add(1, Ordering::SeqCst);
            assert!(!status.message.is_empty());
            let lines = read_log(Path::new(&status.log_path));
            let out = lines.iter().filter(|(stream, _)| stream == "stdout");
            for (place, (_, text)) in out.enumerate() {
                assert_eq!(*text, (place + 1).to_string(), "{name}: {}", status.log_path);
            }
            return true;
        }
        assert_eq!((status.exit_code, status.reason.as_str()), (code, "Error"), "{name}: {status:?}");
        assert!(!said, "{name} ended between {before:?} and {after:?}: {status:?}");
        assert_whole(&status.log_path);
        true
    }

    async fn exec(&self, id: &str) -> Result<cri::ExecSyncResponse, Status> {
        let request = cri::ExecSyncRequest { container_id: id.into(), cmd: vec!["true".into()], timeout: 10 };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    async fn wait(&self, id: &str) -> cri::ContainerStatus {
        for _ in 0..20_000 {
            let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
            let status = retry(|| {
                let (mut runtime, request) = (self.runtime.clone(), request.clone());
                async move { runtime.container_status(request).await }
            });
            let status = status.await.expect("container status").status.unwrap();
            if status.state == EXITED {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("container {id} does not end");
    }
}

/// As kubelet: what failed because podwright was away is asked again.
async fn retry<T, F>(mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let mut tries = 0;
    loop {
        match call().await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) if away(&status) && tries < 1000 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(status) => return Err(status),
        }
    }
}

fn away(status: &Status) -> bool {
    let transport = matches!(status.code(), Code::Unknown | Code::Cancelled | Code::Internal)
        && ["transport", "h2", "broken pipe", "connection", "operation was canceled", "Timeout expired"]
            .iter()
            .any(|text| status.message().contains(text));
    status.code() == Code::Unavailable || transport
}
