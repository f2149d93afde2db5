//! Exec sessions: what reaches the program and what comes back, and who outlives whom.

use std::collections::BTreeMap;
use std::time::Duration;

use podwright::cri::wire as cri;
use tonic::Code;

use super::client::{Session, V4, V5, exec_url, raise_loopback};
use super::eventually;
use super::spdy;
use crate::harness::{Daemon, hierarchies, pod, script};

async fn start() -> (Daemon, String) {
    let daemon = Daemon::start().await;
    raise_loopback(&daemon);
    let pod = daemon.run_pod(pod("stream")).await;
    let id = daemon.run(&pod, script("main", "sleep 1000")).await;
    (daemon, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_16_streams_and_status_over_every_protocol() {
    let (daemon, id) = start().await;
    for protocol in [V5, V4, "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io", ""] {
        for (code, end) in [(0, "true"), (3, "exit 3"), (137, "kill -9 $$")] {
            let argv = ["sh", "-c", &format!("read line; echo \"got $line\"; echo apart >&2; {end}")];
            let mut session =
                Session::open(&daemon, &exec_url(&daemon, &id, &argv, false).await, protocol).await;
            session.send(0, b"this\n").await;
            let said = session.end().await;
            assert_eq!((said.out().as_str(), said.stderr.as_slice()), ("got this\n", &b"apart\n"[..]));
            if protocol.starts_with('v') {
                assert_eq!(said.exit_code(), code, "{protocol}");
            } else {
                let text = if code == 0 { String::new() } else { format!("exit status {code}") };
                assert!(said.error.ends_with(&text), "{said:?}");
                assert_eq!(said.error.is_empty(), code == 0);
            }
        }
    }
    let session = Session::open(&daemon, &exec_url(&daemon, &id, &["/no/such"], false).await, V4).await;
    let said = session.end().await;
    assert_eq!(said.status()["reason"], "InternalError");
    assert!(said.status()["message"].as_str().unwrap().contains("/no/such"), "{said:?}");
    let exec = |id: &str| cri::ExecRequest {
        container_id: id.into(),
        cmd: vec!["true".into()],
        stdout: true,
        ..cri::ExecRequest::default()
    };
    assert_eq!(daemon.runtime().exec(exec("unknown")).await.unwrap_err().code(), Code::NotFound);
    daemon.finish().await;
}

/// Kubernetes' library speaks the fourth alone.
#[tokio::test(flavor = "multi_thread")]
async fn behaviour_16_every_version_over_spdy() {
    let (daemon, id) = start().await;
    let versions = [
        "v4.channel.k8s.io",
        "v3.channel.k8s.io",
        "v2.channel.k8s.io",
        "channel.k8s.io",
        "",
        "v9, v2.channel.k8s.io",
    ];
    for version in versions {
        for (end, text) in [("true", ""), ("exit 3", "exit status 3")] {
            let script = format!("cat; echo apart >&2; {end}");
            let url = exec_url(&daemon, &id, &["sh", "-c", &script], false).await;
            let mut client = spdy::Client::open(&daemon, &url, version).await;
            let mut streams = BTreeMap::new();
            for kind in ["error", "stdin", "stdout", "stderr"] {
                streams.insert(client.syn(&[("streamtype", kind)]).await, kind);
            }
            let (stdin, _) = streams.iter().find(|(_, kind)| **kind == "stdin").unwrap();
            client.data(*stdin, false, b"to and").await;
            client.data(*stdin, true, b" fro").await;
            let mut said: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
            let mut ended = 0;
            while ended < 3 {
                if let spdy::Frame::Data { stream, fin, content } = client.frame().await.unwrap() {
                    said.entry(streams[&stream]).or_default().extend(content);
                    ended += usize::from(fin);
                }
            }
            assert_eq!(
                (&said["stdout"][..], &said["stderr"][..]),
                (&b"to and fro"[..], &b"apart\n"[..]),
                "{version}"
            );
            let error = String::from_utf8(said.remove("error").unwrap()).unwrap();
            if version.starts_with("v4") {
                let status: serde_json::Value = serde_json::from_str(&error).unwrap();
                assert_eq!(status["status"] == "Success", text.is_empty(), "{error}");
            } else {
                assert!(error.ends_with(text) && error.is_empty() == text.is_empty(), "{version}: {error}");
            }
        }
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_ends_when_the_client_says_so() {
    let (daemon, id) = start().await;
    let mut session = Session::open(&daemon, &exec_url(&daemon, &id, &["sha256sum"], false).await, V5).await;
    let block = vec![b'x'; 100_000];
    for _ in 0..50 {
        session.send(0, &block).await;
    }
    session.close(0).await;
    let said = session.end().await;
    let expected =
        daemon.exec(&id, &["sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x | sha256sum"]).await;
    assert_eq!(said.out().as_bytes(), expected.unwrap().stdout);
    daemon.finish().await;
}

/// Libraries that ping now and then drop a session that does not answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_session_answers_pings() {
    let (daemon, id) = start().await;
    let url = exec_url(&daemon, &id, &["cat"], false).await;
    let mut session = Session::open(&daemon, &url, V5).await;
    session.send(0, b"hello").await;
    session.until("hello").await;
    for _ in 0..2 {
        assert!(session.ping().await);
    }
    drop(session);
    daemon.finish().await;
}

/// What a client said last is read, though it has left by then.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_word_of_a_client_that_leaves_is_heard() {
    let (daemon, id) = start().await;
    let argv = ["sh", "-c", "cat >> /said"];
    for number in 0..30 {
        let url = exec_url(&daemon, &id, &argv, false).await;
        let mut session = Session::open(&daemon, &url, V4).await;
        session.send(0, format!("{number}\n").as_bytes()).await;
        session.leave().await;
        let url = exec_url(&daemon, &id, &argv, false).await;
        let mut client = spdy::Client::open(&daemon, &url, V4).await;
        let mut stdin = 0;
        for kind in ["error", "stdin", "stdout", "stderr"] {
            let stream = client.syn(&[("streamtype", kind)]).await;
            stdin = if kind == "stdin" { stream } else { stdin };
            // What is unread at the end would make it a reset.
            client.frame().await.unwrap();
        }
        client.data(stdin, false, format!("{number}\n").as_bytes()).await;
    }
    let all: String = (0..30).map(|number| format!("{number}\n")).collect();
    let all: Vec<_> = all.lines().flat_map(|line| [line, line]).collect();
    eventually("all is heard", async || {
        let said = daemon.exec(&id, &["sort", "-n", "/said"]).await.unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        said.lines().collect::<Vec<_>>() == all
    })
    .await;
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_the_size_that_the_client_tells() {
    let (daemon, id) = start().await;
    // A size may come later than the line behind it.
    let program = "size() { until stty size 2>/dev/null | grep \"$1\"; do sleep 0.05; done; }; \
                   tty; echo $TERM; read a; size '31 101'; read b; size '62 202'; test -t 2; exit $?";
    let argv = ["sh", "-c", program];
    let mut session = Session::open(&daemon, &exec_url(&daemon, &id, &argv, true).await, V5).await;
    session.until("xterm").await;
    session.resize(101, 31).await;
    session.send(0, b"a\n").await;
    session.until("31 101").await;
    session.resize(202, 62).await;
    session.send(0, b"b\n").await;
    let said = session.end().await;
    assert!(said.out().contains("/dev/pts/") && said.out().contains("62 202"), "{said:?}");
    assert_eq!(said.exit_code(), 0);
    // ^C is the terminal's business.
    let argv = ["sh", "-c", "trap 'exit 9' INT; echo up; while :; do sleep 0.1; done"];
    let mut session = Session::open(&daemon, &exec_url(&daemon, &id, &argv, true).await, V4).await;
    session.until("up").await;
    session.send(0, b"\x03").await;
    assert_eq!(session.end().await.exit_code(), 9);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn background_children_do_not_hold_a_session() {
    let (daemon, id) = start().await;
    for tty in [false, true] {
        let argv = ["sh", "-c", "trap '' HUP; (sleep 555; :) & echo on; exit 4"];
        let session = Session::open(&daemon, &exec_url(&daemon, &id, &argv, tty).await, V4).await;
        let said = session.end().await;
        assert_eq!((said.out().trim_end(), said.exit_code()), ("on", 4));
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_client_that_went_away() {
    let (daemon, id) = start().await;
    let fds = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let alive = async |text: &str| {
        let ps = daemon.exec(&id, &["sh", "-c", "ps -o args | grep -v grep"]).await.unwrap();
        String::from_utf8(ps.stdout).unwrap().contains(text)
    };
    // So that what is opened once is open.
    Session::open(&daemon, &exec_url(&daemon, &id, &["true"], false).await, V4).await.end().await;
    let before = fds();
    for (tty, text) in [(true, "sleep 801"), (false, "sleep 0.0802")] {
        let script = if tty { format!("echo up; {text}") } else { format!("while echo up; do {text}; done") };
        let argv = ["sh", "-c", &script];
        let mut session = Session::open(&daemon, &exec_url(&daemon, &id, &argv, tty).await, V4).await;
        session.until("up").await;
        drop(session);
        eventually("the program has ended", async || !alive(text).await).await;
    }
    eventually("every descriptor is closed", async || fds() <= before).await;
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_the_keeper_ends_no_session() {
    let (daemon, id) = start().await;
    let argv = ["sh", "-c", "echo up; read line; echo got $line; exit 6"];
    let mut session = Session::open(&daemon, &exec_url(&daemon, &id, &argv, false).await, V4).await;
    session.until("up").await;
    let former = daemon.keeper_pid();
    daemon.kill_keeper();
    eventually("there is another keeper", async || {
        daemon.keeper_pids().first().is_some_and(|pid| *pid != former)
    })
    .await;
    session.send(0, b"this\n").await;
    let said = session.end().await;
    assert_eq!((said.out().as_str(), said.exit_code()), ("up\ngot this\n", 6));
    daemon.finish().await;
}

/// Cgroups of execs.
fn exec_cgroups(daemon: &Daemon) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut pending: Vec<std::path::PathBuf> =
        hierarchies().into_iter().map(|mount| format!("{mount}{}", daemon.cgroup()).into()).collect();
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let exec = entry.file_name().to_string_lossy().starts_with("exec-");
                if exec { &mut found } else { &mut pending }.push(entry.path());
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_the_daemon_ends_sessions_and_no_container() {
    let (mut daemon, id) = start().await;
    let mut session = Session::open(&daemon, &exec_url(&daemon, &id, &["cat"], false).await, V4).await;
    session.send(0, b"up\n").await;
    session.until("up").await;
    // One that does not notice, and one with a child that goes on.
    let argv = ["sh", "-c", "echo up; exec sleep 803 </dev/null >/dev/null 2>&1"];
    let mut deaf = Session::open(&daemon, &exec_url(&daemon, &id, &argv, false).await, V4).await;
    deaf.until("up").await;
    let argv = ["sh", "-c", "sleep 804 </dev/null >/dev/null 2>&1 & echo up; cat"];
    let mut parent = Session::open(&daemon, &exec_url(&daemon, &id, &argv, false).await, V4).await;
    parent.until("up").await;
    let execs = exec_cgroups(&daemon);
    assert_eq!(execs.len(), 3);
    // What an older daemon left behind: it named them by the whole ID.
    std::fs::create_dir(execs[0].with_file_name(format!("exec-{}", "0a".repeat(32)))).unwrap();
    daemon.kill();
    for session in [session, deaf, parent] {
        session.end().await;
    }
    daemon.start_again().await;
    raise_loopback(&daemon);
    assert_eq!(daemon.status(&id).await.state, cri::ContainerState::ContainerRunning as i32);
    eventually("the programs of the sessions have ended", async || {
        let ps = daemon
            .exec(&id, &["sh", "-c", "ps -o args | grep -v grep | grep -c -e ^cat -e '^sleep 803'"])
            .await;
        ps.unwrap().stdout == b"0\n"
    })
    .await;
    eventually("their cgroups are gone", async || exec_cgroups(&daemon).len() <= 1).await;
    let ps = daemon.exec(&id, &["sh", "-c", "ps -o args | grep -c '^sleep 804'"]).await.unwrap();
    assert_eq!(ps.stdout, b"1\n", "a child that the session left behind");
    let session = Session::open(&daemon, &exec_url(&daemon, &id, &["true"], false).await, V4).await;
    assert_eq!(session.end().await.exit_code(), 0);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_stops_the_program() {
    let (daemon, id) = start().await;
    let argv = ["sh", "-c", "echo $$; exec cat /dev/zero"];
    let mut session = Session::open(&daemon, &exec_url(&daemon, &id, &argv, false).await, V4).await;
    session.until("\n").await;
    // It has stopped once its reads are where they were.
    let read = async || {
        let io = daemon.exec(&id, &["sh", "-c", "cat /proc/$(pidof cat)/io | grep rchar"]).await.unwrap();
        String::from_utf8(io.stdout).unwrap()
    };
    let mut last = read().await;
    eventually("the program waits", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = read().await;
        std::mem::replace(&mut last, now) == last
    })
    .await;
    drop(session);
    daemon.finish().await;
}

/// kubectl and crictl ping every few seconds, also while whoever reads from them is slow.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_that_pings_has_all_of_the_output() {
    const SIZE: usize = 600_000;
    let (daemon, id) = start().await;
    let argv = ["sh", "-c", &format!("head -c {SIZE} /dev/zero; : >/tmp/done")];
    let url = exec_url(&daemon, &id, &argv, false).await;
    let mut client = spdy::Client::open(&daemon, &url, "v4.channel.k8s.io").await;
    let mut streams = BTreeMap::new();
    for kind in ["error", "stdin", "stdout", "stderr"] {
        streams.insert(client.syn(&[("streamtype", kind)]).await, kind);
    }
    eventually("the program's end", async || {
        daemon.exec(&id, &["test", "-e", "/tmp/done"]).await.unwrap().exit_code == 0
    })
    .await;
    for id in [1, 3, 5] {
        client.ping(id).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let (mut size, mut ended) = (0, Vec::new());
    while ended.len() < 3 {
        if let spdy::Frame::Data { stream, fin, content } = client.frame().await.expect("all of it") {
            size += if streams[&stream] == "stdout" { content.len() } else { 0 };
            if fin {
                ended.push(streams[&stream]);
            }
        }
    }
    assert_eq!(size, SIZE);
    assert!(ended.contains(&"error"), "{ended:?}");
    drop(client);
    daemon.finish().await;
}
