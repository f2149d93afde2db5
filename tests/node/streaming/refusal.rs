//! What the server refuses, and what a hostile client costs.

use std::time::Duration;

use podwright::cri::wire as cri;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use super::client::{Session, V4, V5, attach_url, connect, exec_url, raise_loopback};
use super::eventually;
use crate::harness::{Daemon, pod, script};

const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n";

/// Of a URL.
const LIFETIME: Duration = Duration::from_secs(60);

/// This process has an end of each connection; 1024 descriptors are the usual soft limit.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

/// The status and what follows it.
async fn ask(daemon: &Daemon, url: &str, method: &str, path: &str, headers: &str) -> (u16, String) {
    let mut tcp = connect(daemon, url).await;
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(200), tcp.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_18_a_url_is_for_one_use_and_one_thing() {
    let daemon = Daemon::start().await;
    raise_loopback(&daemon);
    let pod = daemon.run_pod(pod("refusal")).await;
    let id = daemon.run(&pod, script("main", "sleep 1000")).await;
    let url = exec_url(&daemon, &id, &["true"], false).await;
    let path = |url: &str| format!("/{}", url.splitn(4, '/').nth(3).unwrap());
    assert_eq!(Session::open(&daemon, &url, V4).await.end().await.exit_code(), 0);
    assert_eq!(ask(&daemon, &url, "GET", &path(&url), WEBSOCKET).await.0, 404, "a token was used twice");
    let spdy = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
    let cases = [
        ("GET", "", 400),
        ("PUT", WEBSOCKET, 405),
        ("POST", WEBSOCKET, 405),
        ("GET", "Connection: Upgrade\r\nUpgrade: h2c\r\n", 400),
        ("GET", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\n", 426),
        ("GET", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n", 400),
        ("GET", &format!("{WEBSOCKET}Sec-WebSocket-Protocol: chat, v9.channel.k8s.io\r\n"), 403),
        ("POST", &format!("{spdy}X-Stream-Protocol-Version: v9.channel.k8s.io\r\n"), 403),
    ];
    for (method, headers, status) in cases {
        let url = exec_url(&daemon, &id, &["true"], false).await;
        let (got, answer) = ask(&daemon, &url, method, &path(&url), headers).await;
        assert_eq!(got, status, "{method} {headers}: {answer}");
        if headers.contains("X-Stream") {
            assert!(answer.to_lowercase().contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io"));
        }
    }
    for wrong in ["/", "/exec", "/exec/", "/exec/AAAAAAAAAAAAAAAAAAAAAA", "/exec/../exec", "/healthz"] {
        assert_eq!(ask(&daemon, &url, "GET", wrong, WEBSOCKET).await.0, 404, "{wrong}");
    }
    // A token of one kind opens nothing of another, and is gone.
    let url = exec_url(&daemon, &id, &["true"], false).await;
    let other = path(&url).replace("/exec/", "/attach/");
    assert_eq!(ask(&daemon, &url, "GET", &other, WEBSOCKET).await.0, 404);
    assert_eq!(ask(&daemon, &url, "GET", &path(&url), WEBSOCKET).await.0, 404);
    // The peers look at no Origin: the API server's proxy passes on its client's.
    let url = exec_url(&daemon, &id, &["true"], false).await;
    let headers = format!("{WEBSOCKET}Origin: https://elsewhere.example\r\n");
    assert_eq!(ask(&daemon, &url, "GET", &path(&url), &headers).await.0, 101);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_18_a_thousand_urls_may_wait() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("many")).await;
    let request = cri::PortForwardRequest { pod_sandbox_id: pod.0.clone(), port: vec![] };
    let began = std::time::Instant::now();
    let callers = (0..10).map(|_| {
        let (mut runtime, request) = (daemon.runtime(), request.clone());
        tokio::spawn(async move {
            for _ in 0..100 {
                runtime.port_forward(request.clone()).await.unwrap();
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    let one_more = daemon.runtime().port_forward(request).await;
    if began.elapsed() < LIFETIME {
        assert_eq!(one_more.unwrap_err().code(), Code::ResourceExhausted);
    } else {
        println!("skipped: the first URLs had ended before the last was made");
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_slow_or_long_winded_costs_nothing() {
    raise_descriptors();
    let daemon = Daemon::start().await;
    raise_loopback(&daemon);
    let pod = daemon.run_pod(pod("slow")).await;
    let id = daemon.run(&pod, script("main", "sleep 1000")).await;
    let url = exec_url(&daemon, &id, &["true"], false).await;
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    };
    let before = memory();
    let begun = format!("GET /exec/x HTTP/1.1\r\nX-Slow: {}", "x".repeat(30_000));
    let mut slow = Vec::new();
    for _ in 0..1100 {
        let mut tcp = connect(&daemon, &url).await;
        let _ = tcp.write_all(begun.as_bytes()).await;
        slow.push(tcp);
    }
    let port = url.split('/').nth(2).unwrap().rsplit_once(':').unwrap().1;
    let filter = format!("sport = :{port}");
    // What is one too many is closed when its turn has come.
    eventually("no more than so many are open", async || {
        daemon.in_netns("ss", &["-tnH", "state", "established", &filter]).lines().count() <= 1050
    })
    .await;
    let grown = memory().saturating_sub(before);
    assert!(grown < 80 << 20, "they cost {grown} bytes");
    let long = format!("X-Long: {}\r\n", "x".repeat(100_000));
    let (status, answer) = ask(&daemon, &url, "GET", "/exec/x", &long).await;
    assert!(matches!(status, 431 | 400 | 0), "{answer}");
    assert_eq!(Session::open(&daemon, &url, V4).await.end().await.exit_code(), 0);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_make_no_sense_end_their_session_alone() {
    let daemon = Daemon::start().await;
    raise_loopback(&daemon);
    let pod = daemon.run_pod(pod("nonsense")).await;
    let id = daemon.run(&pod, script("main", "sleep 1000")).await;
    // Of no channel: dropped.
    let mut session = Session::open(&daemon, &exec_url(&daemon, &id, &["cat"], false).await, V4).await;
    for channel in [1, 2, 3, 5, 77, 255] {
        session.send(channel, b"x").await;
    }
    session.send(0, b"still here\n").await;
    session.until("still here").await;
    // A close signal of a channel that is none, and sizes of nobody.
    let mut broken = Session::open(&daemon, &exec_url(&daemon, &id, &["cat"], false).await, V5).await;
    broken.close(9).await;
    assert_eq!(broken.end().await.error, "");
    let mut odd = Session::open(&daemon, &exec_url(&daemon, &id, &["cat"], true).await, V5).await;
    odd.send(4, b"{\"Width\":99999999}{{{{").await;
    odd.send(0, b"odd\n").await;
    odd.until("odd").await;
    session.send(0, b"and here\n").await;
    session.until("and here").await;
    assert!(odd.leave().await, "a close that is not answered");
    let url = exec_url(&daemon, &id, &["cat"], false).await;
    let five_mib = [&[0x82, 0xff][..], &(5u64 << 20).to_be_bytes(), &[0; 4]].concat();
    assert_eq!(closed_with(&daemon, &url, &five_mib).await, 1009);
    let url = exec_url(&daemon, &id, &["cat"], false).await;
    assert_eq!(closed_with(&daemon, &url, &[0x82, 1, 0]).await, 1002, "a frame without a mask");
    drop(session);
    daemon.finish().await;
}

/// The code that the server closes with after these bytes.
async fn closed_with(daemon: &Daemon, url: &str, bytes: &[u8]) -> u16 {
    let mut tcp = connect(daemon, url).await;
    let path = url.splitn(4, '/').nth(3).unwrap();
    let request =
        format!("GET /{path} HTTP/1.1\r\nHost: x\r\n{WEBSOCKET}Sec-WebSocket-Protocol: {V5}\r\n\r\n");
    tcp.write_all(&[request.as_bytes(), bytes].concat()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(60), tcp.read_to_end(&mut answer)).await;
    let close = answer.windows(4).rfind(|frame| frame[..2] == [0x88, 2]).expect("a close frame");
    u16::from_be_bytes([close[2], close[3]])
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_18_a_url_is_good_for_a_minute() {
    let daemon = Daemon::start().await;
    raise_loopback(&daemon);
    let pod = daemon.run_pod(pod("minute")).await;
    let id = daemon.run(&pod, script("main", "sleep 1000")).await;
    let early = exec_url(&daemon, &id, &["true"], false).await;
    tokio::time::sleep(LIFETIME / 2).await;
    let late = exec_url(&daemon, &id, &["true"], false).await;
    tokio::time::sleep(LIFETIME / 2 + Duration::from_secs(1)).await;
    let path = format!("/{}", early.splitn(4, '/').nth(3).unwrap());
    assert_eq!(ask(&daemon, &early, "GET", &path, WEBSOCKET).await.0, 404);
    assert_eq!(Session::open(&daemon, &late, V4).await.end().await.exit_code(), 0);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_sessions_and_no_more() {
    raise_descriptors();
    let daemon = Daemon::start().await;
    raise_loopback(&daemon);
    let pod = daemon.run_pod(pod("full")).await;
    let id = daemon.run(&pod, script("main", "echo up; sleep 1000")).await;
    let mut sessions = Vec::new();
    for _ in 0..500 {
        sessions.push(Session::open(&daemon, &attach_url(&daemon, &id, false, false).await, V4).await);
    }
    let url = attach_url(&daemon, &id, false, false).await;
    let refused = Session::try_open(&daemon, &url, V4).await.err().map(|e| e.to_string());
    assert!(refused.as_deref().is_some_and(|text| text.contains("503")), "{refused:?}");
    drop(sessions);
    for _ in 0..400 {
        let url = attach_url(&daemon, &id, false, false).await;
        if Session::try_open(&daemon, &url, V4).await.is_ok() {
            return daemon.finish().await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("sessions that have ended take their places for ever");
}
