//! How clients reach the server: IPv6, TLS, and what becomes of connections that say nothing.

use std::path::Path;
use std::time::Duration;

use super::client::{Session, V4, V5, connect, exec_url, raise_loopback};
use super::eventually;
use super::go_client;
use crate::harness::{Daemon, pod, script};

async fn start(streaming: &str) -> (Daemon, String) {
    let daemon = Daemon::start_with(&format!("[streaming]\n{streaming}")).await;
    raise_loopback(&daemon);
    let pod = daemon.run_pod(pod("transport")).await;
    let id = daemon.run(&pod, script("main", "sleep 1000")).await;
    (daemon, id)
}

/// Not in the guests of hack/vm.
fn has_curl() -> bool {
    let found = std::process::Command::new("curl").arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: there is no curl here");
    }
    found
}

/// curl's exit code, and the status that it was answered with.
fn curl(daemon: &Daemon, arguments: &[&str]) -> (i32, String) {
    let script = "curl -s -o /dev/null -w '%{http_code} ' \"$@\"; echo $?";
    let said = daemon.in_netns("sh", &[&["-c", script, "curl"], arguments].concat());
    let (status, code) = said.trim().split_once(' ').unwrap_or_else(|| panic!("curl says {said:?}"));
    (code.parse().unwrap(), status.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn over_ipv6() {
    for (configured, host) in [
        ("address = \"[::1]:0\"", "[::1]"),
        ("address = \"[::]:0\"", "[::1]"),
        ("address = \"[::]:0\"\nadvertise = \"::1\"", "[::1]"),
        // An address of both families, when it listens on all of one.
        ("address = \"[::]:0\"\nadvertise = \"127.0.0.1\"", "127.0.0.1"),
    ] {
        let (daemon, id) = start(configured).await;
        let url = exec_url(&daemon, &id, &["echo", "six"], false).await;
        assert!(url.starts_with(&format!("http://{host}:")), "{configured}: {url}");
        assert_eq!(Session::open(&daemon, &url, V4).await.end().await.out(), "six\n");
        daemon.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_our_own() {
    if !has_curl() {
        return;
    }
    let (daemon, id) = start("tls = \"self-signed\"").await;
    let url = exec_url(&daemon, &id, &["true"], false).await;
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let guess = format!("{}/guess", url.rsplit_once('/').unwrap().0);
    assert_eq!(curl(&daemon, &[&guess]).0, 60, "nobody vouches for it");
    assert_eq!(curl(&daemon, &["-k", &guess]), (0, "404".into()));
    // What the server says of requests, as a real client hears it.
    assert_eq!(curl(&daemon, &["-k", "-X", "DELETE", &url]), (0, "405".into()));
    assert_eq!(curl(&daemon, &["-k", &url]), (0, "400".into()), "no upgrade");
    assert_eq!(curl(&daemon, &["-k", &url]), (0, "404".into()), "a token used twice");
    assert_ne!(curl(&daemon, &[&url.replace("https", "http")]).0, 0, "no plain HTTP");
    assert_ne!(curl(&daemon, &["-k", "--tls-max", "1.1", &guess]).0, 0, "no old TLS");
    daemon.finish().await;
}

/// A certificate and its key, for 127.0.0.1.
fn write_pair(directory: &Path, name: &str) -> String {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let copy = directory.join(format!("{name}.crt"));
    for (path, text) in [
        (&directory.join("tls.key"), made.signing_key.serialize_pem()),
        (&directory.join("tls.crt"), made.cert.pem()),
        (&copy, made.cert.pem()),
    ] {
        // As cert-manager and kubelet do it: a new file in place of the old one.
        let new = directory.join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, path).unwrap();
    }
    copy.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_renewed_while_sessions_run() {
    if !has_curl() {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
    let first = write_pair(files.path(), "first");
    let config =
        format!("tls = \"files\"\ntls_certificate = {:?}\ntls_key = {:?}", path("tls.crt"), path("tls.key"));
    let (daemon, id) = start(&config).await;
    let url = exec_url(&daemon, &id, &["true"], false).await;
    let guess = format!("{}/guess", url.rsplit_once('/').unwrap().0);
    assert_eq!(curl(&daemon, &["--cacert", &first, &guess]), (0, "404".into()));
    let second = write_pair(files.path(), "second");
    assert_eq!(curl(&daemon, &["--cacert", &first, &guess]).0, 60, "it is another's");
    assert_eq!(curl(&daemon, &["--cacert", &second, &guess]), (0, "404".into()));
    // A pair that makes no sense changes nothing.
    std::fs::write(path("tls.key"), "no key").unwrap();
    assert_eq!(curl(&daemon, &["--cacert", &second, &guess]), (0, "404".into()));
    let third = write_pair(files.path(), "third");
    assert_eq!(curl(&daemon, &["--cacert", &third, &guess]), (0, "404".into()));
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_clients_over_tls() {
    let Some(client) = go_client::program().await else { return };
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
    let ca = write_pair(files.path(), "ca");
    let config =
        format!("tls = \"files\"\ntls_certificate = {:?}\ntls_key = {:?}", path("tls.crt"), path("tls.key"));
    let daemon = Daemon::start_with(&format!("[streaming]\n{config}")).await;
    raise_loopback(&daemon);
    let pod = daemon.run_pod(pod("tls")).await;
    let id = daemon.run(&pod, script("main", "sleep 10000")).await;
    for checks in ["exit codes", "stdin", "forwarded connections", "a refused port"] {
        go_client::run(&daemon, &client, &pod.0, &id, &["-mb", "8", "-ca", &ca, "-run", checks, "check"]);
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_for_too_long_is_let_go() {
    let (daemon, id) = start("idle_timeout = 8").await;
    let mut busy = Session::open(&daemon, &exec_url(&daemon, &id, &["cat"], false).await, V5).await;
    let argv = ["sh", "-c", "echo up; cat; echo ended >/ended"];
    let mut idle = Session::open(&daemon, &exec_url(&daemon, &id, &argv, false).await, V5).await;
    idle.until("up").await;
    // Its input is closed with it.
    let mut turns = 0;
    while daemon.exec(&id, &["test", "-e", "/ended"]).await.unwrap().exit_code != 0 {
        assert!(turns < 400, "the session goes on");
        busy.send(0, b".").await;
        turns += 1;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(idle.end().await.error, "");
    busy.send(0, b"end").await;
    busy.until(&format!("{}end", ".".repeat(turns))).await;
    busy.close(0).await;
    assert_eq!(busy.end().await.exit_code(), 0);
    daemon.finish().await;
}

/// A client whose node lost its power closes nothing: the kernel asks after it.
#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_asks_after_a_silent_client() {
    let (daemon, id) = start("").await;
    let url = exec_url(&daemon, &id, &["cat"], false).await;
    let address = url.split('/').nth(2).unwrap();
    let port = address.rsplit_once(':').unwrap().1;
    let session = Session::open(&daemon, &url, V4).await;
    // One that has not even asked yet.
    let silent = connect(&daemon, &url).await;
    let filter = format!("sport = :{port}");
    // A connection is set up after it is accepted, and what it waits to acknowledge is shown instead.
    eventually("both are asked after", async || {
        let said = daemon.in_netns("ss", &["-tnoH", "state", "established", &filter]);
        said.lines().filter(|line| line.contains("timer:(keepalive,")).count() == 2
    })
    .await;
    drop((session, silent));
    daemon.finish().await;
}
