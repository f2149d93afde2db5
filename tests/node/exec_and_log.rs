//! ExecSync, and the log that a container's output goes to.

use std::time::Duration;

use podwright::cri::wire as cri;
use tonic::Code;

use crate::harness::{Daemon, pod, read_log, script, text};

/// 16, 41: however soon it ends, and however.
#[tokio::test(flavor = "multi_thread")]
async fn behaviour_16_a_program_that_kills_itself_has_run() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("suicide")).await;
    let id = daemon.run(&pod, script("main", "sleep 1000")).await;
    for _ in 0..100 {
        let answer = daemon.exec(&id, &["sh", "-c", "kill -9 $$"]).await.unwrap();
        assert_eq!(answer.exit_code, 137);
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_15_a_timeout_ends_the_whole_tree() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("fifteen")).await;
    let id = daemon.run(&pod, script("main", "sleep 1000")).await;
    let exec = async |script: &str, timeout| {
        let cmd = vec!["sh".into(), "-c".into(), script.into()];
        let request = cri::ExecSyncRequest { container_id: id.clone(), cmd, timeout };
        daemon.runtime().exec_sync(request).await.map(tonic::Response::into_inner)
    };
    let error = exec("setsid sleep 777 & (sleep 778 &) ; sleep 779", 1).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    let left = exec("ps | grep -c 'sleep 77[0-9]'", 120).await.unwrap();
    assert_eq!(left.stdout, b"0\n", "the tree of a timed out exec lives");
    // A background child that holds the pipes does not hold the call.
    let answer =
        tokio::time::timeout(Duration::from_secs(300), exec("echo before; setsid sleep 555 & echo after", 0))
            .await;
    assert_eq!(answer.expect("the call returns").unwrap().stdout, b"before\nafter\n");
    // Nor does one that goes on writing.
    let answer =
        tokio::time::timeout(Duration::from_secs(300), exec("setsid yes & sleep 0.1; echo last >&2", 0))
            .await;
    assert_eq!(answer.expect("the call returns").unwrap().stderr, b"last\n");
    // CVE-2022-1708: what does not fit an answer is dropped.
    let output =
        exec("head -c 20000000 /dev/zero; head -c 17000000 /dev/zero >&2; exit 5", 600).await.unwrap();
    assert_eq!((output.stdout.len() + output.stderr.len(), output.exit_code), ((16 << 20) - 64, 5));
    assert_eq!(exec("kill -9 $$", 120).await.unwrap().exit_code, 137);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_17_log_lines() {
    use std::os::unix::fs::PermissionsExt as _;
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("seventeen")).await;
    let mut config = script(
        "log",
        "echo short; echo; head -c 40000 /dev/zero | tr '\\0' x; echo; printf part; sleep 0.3; printf ' rest\\n'; printf unended",
    );
    config.log_path = "sub/dir/log.log".into();
    let (status, lines) = daemon.outcome(&pod, config).await;
    let expected = ["short", "", &"x".repeat(40000), "part rest", "unended"];
    assert_eq!(lines.iter().map(|l| l.1.as_str()).collect::<Vec<_>>(), expected);
    let raw = std::fs::read_to_string(&status.log_path).unwrap();
    let tags: Vec<&str> = raw.lines().map(|l| l.split(' ').nth(2).unwrap()).collect();
    assert!(tags[..2] == ["F", "F"] && tags[2..5] == ["P", "P", "F"], "{tags:?}");
    for line in raw.lines() {
        let text = line.splitn(4, ' ').nth(3).unwrap();
        assert!(text.len() <= 16 << 10, "{}", text.len());
        assert_is_time(line.split(' ').next().unwrap());
    }
    assert_eq!(std::fs::metadata(&status.log_path).unwrap().permissions().mode() & 0o777, 0o640);
    daemon.finish().await;
}

/// RFC 3339 with nanoseconds.
fn assert_is_time(time: &str) {
    let digits = time.bytes().filter(u8::is_ascii_digit).count();
    assert!(time.as_bytes()[10] == b'T' && time.contains('.') && digits >= 15, "{time}");
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_17_reopening_a_log() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("reopen")).await;
    let id =
        daemon.run(&pod, script("log", "echo one; while ! test -e /go; do sleep 0.02; done; echo two")).await;
    daemon.lines_of(&id, 1).await;
    let path = std::path::PathBuf::from(daemon.status(&id).await.log_path);
    let rotated = path.with_extension("1");
    std::fs::rename(&path, &rotated).unwrap();
    let reopen = || cri::ReopenContainerLogRequest { container_id: id.clone() };
    daemon.runtime().reopen_container_log(reopen()).await.unwrap();
    assert!(path.exists(), "the new file is there when the call returns");
    daemon.exec(&id, &["touch", "/go"]).await.unwrap();
    daemon.wait(&id).await;
    assert_eq!((text(&read_log(&rotated)), text(&read_log(&path))), ("one".into(), "two".into()));
    std::fs::remove_file(&path).unwrap();
    daemon.runtime().reopen_container_log(reopen()).await.unwrap_err();
    assert!(!path.exists(), "reopening the log of an ended container leaves no file");
    // Without a path the output is drained and dropped (39).
    let mut config = script("none", "head -c 1000000 /dev/zero");
    config.log_path.clear();
    let id = daemon.run(&pod, config).await;
    assert_eq!(daemon.wait(&id).await.exit_code, 0);
    daemon.finish().await;
}
