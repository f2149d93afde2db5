//! What is measured, and how.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::Options;
use crate::client::{Client, Failure, Pod};
use crate::memory;

/// One runtime's figures. Milliseconds, KiB.
#[derive(Default, Serialize, Deserialize)]
pub struct Run {
    pub name: String,
    pub calls: BTreeMap<String, Summary>,
    pub lifecycles_per_second: f64,
    pub parallel: usize,
    pub held: usize,
    /// Until that many pods had a container up.
    pub hold_ms: f64,
    pub stats_ms: f64,
    /// RunPodSandbox with that many held, against none: a ratio of medians.
    pub run_ratio: f64,
    pub pss_empty: BTreeMap<String, u64>,
    pub pss_held: BTreeMap<String, u64>,
    pub log_lines: u64,
    pub log_ms: f64,
    /// Lines of the log that are not whole.
    pub log_split: u64,
}

#[derive(Default, Serialize, Deserialize)]
pub struct Summary {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

#[derive(Default)]
struct Times(BTreeMap<&'static str, Vec<f64>>);

impl Times {
    async fn measure<T>(
        &mut self,
        name: &'static str,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let start = Instant::now();
        let result = call.await?;
        self.0.entry(name).or_default().push(millis(start));
        Ok(result)
    }

    fn summaries(self) -> BTreeMap<String, Summary> {
        self.0.into_iter().map(|(name, times)| (name.to_owned(), summary(times))).collect()
    }
}

fn millis(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

fn summary(mut times: Vec<f64>) -> Summary {
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
    Summary { p50: at(0.5), p90: at(0.9), p99: at(0.99) }
}

const SLEEP: &str = "exec sleep 100000";

pub async fn run(options: &Options) -> Result<Run, Failure> {
    let client = Client::connect(&options.endpoint, &options.image, options.seccomp).await?;
    let mut run = Run { name: options.name.clone(), parallel: options.parallel, ..Run::default() };
    lifecycle(&client, "warm-up", &mut Times::default()).await?;
    run.pss_empty = memory::pss(&options.processes);
    let mut times = Times::default();
    for i in 0..options.n {
        lifecycle(&client, &format!("one-{i}"), &mut times).await?;
    }
    run.calls = times.summaries();
    run.lifecycles_per_second = parallel(&client, options).await?;
    hold(&client, options, &mut run).await?;
    if options.lines > 0 {
        log(&client, options.lines, &mut run).await?;
    }
    let _ = std::fs::remove_dir_all(client.logs());
    Ok(run)
}

async fn lifecycle(client: &Client, name: &str, times: &mut Times) -> Result<(), Failure> {
    let pod = times.measure("RunPodSandbox", client.run_pod(name)).await?;
    let container = times.measure("Create + StartContainer", up(client, &pod)).await?;
    times.measure("ExecSync(true)", client.exec_true(&container)).await?;
    times.measure("StopContainer(0) + Remove", client.end(&container)).await?;
    times.measure("StopPodSandbox + Remove", client.end_pod(&pod)).await
}

async fn up(client: &Client, pod: &Pod) -> Result<String, Failure> {
    let container = client.create(pod, SLEEP).await?;
    client.start(&container).await?;
    Ok(container)
}

/// Lifecycles per second over all workers.
async fn parallel(client: &Client, options: &Options) -> Result<f64, Failure> {
    let start = Instant::now();
    let workers = (0..options.parallel).map(|worker| async move {
        for i in (worker..options.n).step_by(options.parallel) {
            lifecycle(client, &format!("par-{i}"), &mut Times::default()).await?;
        }
        Ok::<_, Failure>(())
    });
    futures_util::future::try_join_all(workers).await?;
    Ok(options.n as f64 / start.elapsed().as_secs_f64())
}

async fn hold(client: &Client, options: &Options, run: &mut Run) -> Result<(), Failure> {
    let start = Instant::now();
    let mut pods = Vec::new();
    for i in 0..options.hold {
        let pod = client.run_pod(&format!("hold-{i}")).await?;
        let container = up(client, &pod).await?;
        pods.push((pod, container));
    }
    run.hold_ms = millis(start);
    run.held = pods.len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    run.pss_held = memory::pss(&options.processes);
    let mut times = Times::default();
    for _ in 0..20 {
        times.measure("stats", client.stats()).await?;
    }
    for i in 0..30 {
        let pod = times.measure("run", client.run_pod(&format!("more-{i}"))).await?;
        client.end_pod(&pod).await?;
    }
    let summaries = times.summaries();
    run.stats_ms = summaries["stats"].p50;
    run.run_ratio = summaries["run"].p50 / run.calls["RunPodSandbox"].p50;
    for (pod, _) in &pods {
        client.end_pod(pod).await?;
    }
    Ok(())
}

/// Until the log of a container that writes `lines` lines of 100 bytes is whole. dd, since busybox's
/// head takes more time to find so many lines than it takes to log them.
async fn log(client: &Client, lines: u64, run: &mut Run) -> Result<(), Failure> {
    let pod = client.run_pod("log").await?;
    let text = "x".repeat(99);
    let blocks = lines.div_ceil(1000);
    let program = format!("yes {text} | dd bs=100000 count={blocks} iflag=fullblock 2>/dev/null");
    let container = client.create(&pod, &program).await?;
    let start = Instant::now();
    client.start(&container).await?;
    while !client.exited(&container).await? {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    run.log_ms = millis(start);
    let written = std::fs::read(format!("{}/log/main.log", client.logs()))?;
    let whole = written.split(|b| *b == b'\n').filter(|l| l.ends_with(text.as_bytes())).count() as u64;
    let all = written.iter().filter(|b| **b == b'\n').count() as u64;
    run.log_split = all - whole;
    run.log_lines = whole;
    client.end_pod(&pod).await
}
