//! Kubernetes' own client library, over SPDY and WebSocket: `tests/stream-client`, where Go is.
//! STREAM_MB: how much each bulk transfer moves (64).

use std::path::Path;
use std::process::Command;

use super::client::raise_loopback;
use crate::harness::{Daemon, pod, script};

fn build() -> Option<std::path::PathBuf> {
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

#[tokio::test(flavor = "multi_thread")]
async fn what_kubernetes_clients_do() {
    let Some(program) = tokio::task::spawn_blocking(build).await.unwrap() else { return };
    let daemon = Daemon::start().await;
    raise_loopback(&daemon);
    let pod = daemon.run_pod(pod("go-client")).await;
    let id = daemon.run(&pod, script("main", "mkdir -p /tmp; sleep 10000")).await;
    let netns = daemon.dir.path().join("netns").join(format!("podwright-{}", &pod.0[..16]));
    let socket = daemon.dir.path().join("cri.sock");
    let megabytes = std::env::var("STREAM_MB").unwrap_or_else(|_| "64".into());
    let arguments = [
        "-cri",
        socket.to_str().unwrap(),
        "-container",
        &id,
        "-pod",
        &pod.0,
        "-netns",
        netns.to_str().unwrap(),
        "-mb",
        &megabytes,
        "check",
    ];
    daemon.in_namespaces(program.to_str().unwrap(), &arguments);
    daemon.finish().await;
}
