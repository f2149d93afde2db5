//! Full lifecycles on all sides while podwright's processes are killed at random moments.
//!
//! `KILLS=200 SEED=… cargo test --test node random -- --nocapture`

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use podwright::cri::wire as cri;
use tonic::{Code, Status};

use super::{EXITED, assert_whole};
use crate::harness::{Daemon, Runtime, kill, pod, read_log, script};

const WORKERS: u32 = 8;

/// Long enough for a few kills.
const SCRIPT: &str = "i=0; for burst in 1 2 3 4 5 6; do j=0; while [ $j -lt 100 ]; do i=$((i+1)); j=$((j+1)); echo $i; \
                      done; sleep 0.05; done; echo end $i >&2";

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
                tally: Arc::clone(&tally),
            };
            tokio::spawn(worker.work())
        })
        .collect();
    for n in 0..kills {
        tokio::time::sleep(Duration::from_millis(random.below(600))).await;
        match n % 3 {
            0 => kill_daemon(&mut daemon).await,
            1 => kill_keeper(&daemon),
            _ => {
                tally.both.fetch_add(1, Ordering::SeqCst);
                if random.below(2) == 0 {
                    kill_keeper(&daemon);
                    kill_daemon(&mut daemon).await;
                } else {
                    let keeper = daemon.keeper_pids();
                    daemon.kill();
                    keeper.into_iter().for_each(|pid| kill(pid, 9));
                    daemon.start_again().await;
                }
            }
        }
        assert!(!workers.iter().any(tokio::task::JoinHandle::is_finished), "a worker failed");
    }
    tally.over.store(true, Ordering::SeqCst);
    for worker in workers {
        worker.await.expect("a worker's lifecycles are whole");
    }
    println!("{tally:?}");
    daemon.finish().await;
}

async fn kill_daemon(daemon: &mut Daemon) {
    daemon.kill();
    daemon.start_again().await;
}

fn kill_keeper(daemon: &Daemon) {
    daemon.keeper_pids().into_iter().for_each(|pid| kill(pid, 9));
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
    /// Times both processes were killed.
    both: AtomicU32,
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
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(script("main", &format!("{SCRIPT}; exit {code}"))),
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
        let _ = self.exec(&id).await;
        let status = self.wait(&id).await;
        if status.started_at == 0 {
            return false;
        }
        self.check(name, code, &status)
    }

    fn check(&self, name: &str, code: i32, status: &cri::ContainerStatus) -> bool {
        let said = status.reason == "ContainerStatusUnknown" || status.message.contains("may be lost");
        if said && self.tally.both.load(Ordering::SeqCst) > 0 {
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
        assert_whole(&status.log_path);
        true
    }

    async fn exec(&self, id: &str) -> Result<cri::ExecSyncResponse, Status> {
        let request = cri::ExecSyncRequest { container_id: id.into(), cmd: vec!["true".into()], timeout: 10 };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    async fn wait(&self, id: &str) -> cri::ContainerStatus {
        for _ in 0..3000 {
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
