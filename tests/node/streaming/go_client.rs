//! Kubernetes' own client library, over SPDY and WebSocket: `tests/stream-client`, where Go is.
//! STREAM_MB: how much each bulk transfer moves (64). STREAM_RUN: the checks that have this in their names.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::client::raise_loopback;
use crate::harness::{Daemon, pod, script};

fn build() -> Option<PathBuf> {
    let go = ["go", "/usr/local/go/bin/go"]
        .into_iter()
        .find(|go| Command::new(go).arg("version").output().is_ok());
    let Some(go) = go else {
        eprintln!("skipped: there is no Go here");
        return None;
    };
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stream-client");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stream-client");
    let status = Command::new(go).current_dir(source).args(["build", "-o"]).arg(&program).arg(".").status();
    assert!(status.unwrap().success(), "building tests/stream-client");
    Some(program)
}

/// Built once. None: there is no Go here.
pub async fn program() -> Option<PathBuf> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    tokio::task::spawn_blocking(|| BUILT.get_or_init(build).clone()).await.unwrap()
}

/// Runs it in the daemon's network; what it finds wrong fails the test.
pub fn run(daemon: &Daemon, program: &Path, pod: &str, container: &str, arguments: &[&str]) {
    let netns = daemon.dir.path().join("netns").join(format!("podwright-{}", &pod[..16]));
    let socket = daemon.dir.path().join("cri.sock");
    let place = ["-cri", socket.to_str().unwrap(), "-container", container, "-pod", pod];
    let netns = ["-netns", netns.to_str().unwrap()];
    daemon.in_namespaces(program.to_str().unwrap(), &[&place[..], &netns, arguments].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kubernetes_clients_do() {
    let Some(program) = program().await else { return };
    let daemon = Daemon::start().await;
    raise_loopback(&daemon);
    let pod = daemon.run_pod(pod("go-client")).await;
    let id = daemon.run(&pod, script("main", "mkdir -p /tmp; sleep 10000")).await;
    let answer = "while read line; do echo got $line; [ -t 0 ] && sleep 0.3 && stty size; done";
    let mut config = script("attached", answer);
    config.stdin = true;
    let attached = daemon.run(&pod, config).await;
    let mut config = script("console", answer);
    (config.stdin, config.tty) = (true, true);
    let console = daemon.run(&pod, config).await;
    let megabytes = std::env::var("STREAM_MB").unwrap_or_else(|_| "64".into());
    let only = std::env::var("STREAM_RUN").unwrap_or_default();
    let attach = ["-attach", &attached, "-attach-tty", &console];
    let what = ["-mb", &megabytes, "-run", &only, "check"];
    run(&daemon, &program, &pod.0, &id, &[&attach[..], &what].concat());
    daemon.finish().await;
}
