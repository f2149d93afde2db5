//! Attach: clients beside the log, none of which holds up another.

use std::path::Path;

use podwright::cri::wire as cri;

use super::client::{Session, V4, V5, attach_url, raise_loopback};
use crate::harness::{Daemon, pod, read_log, script, text};

async fn start(name: &str) -> (Daemon, (String, cri::PodSandboxConfig)) {
    let daemon = Daemon::start().await;
    raise_loopback(&daemon);
    let pod = daemon.run_pod(pod(name)).await;
    (daemon, pod)
}

async fn open(daemon: &Daemon, id: &str, stdin: bool, tty: bool) -> Session {
    Session::open(daemon, &attach_url(daemon, id, stdin, tty).await, V5).await
}

#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_clients_before_and_after_the_start() {
    let (daemon, pod) = start("attach").await;
    let config = script(
        "main",
        "echo first; echo apart >&2; while ! test -e /go; do sleep 0.05; done; echo last; exit 3",
    );
    let id = daemon.create(&pod, config).await.unwrap();
    let mut early = open(&daemon, &id, false, false).await;
    daemon.start_container(&id).await.unwrap();
    early.until("first").await;
    let late = open(&daemon, &id, false, false).await;
    let dropped = open(&daemon, &id, false, false).await;
    drop(dropped);
    daemon.exec(&id, &["touch", "/go"]).await.unwrap();
    let (early, late) = (early.end().await, late.end().await);
    assert_eq!((early.out().as_str(), early.stderr.as_slice()), ("first\nlast\n", &b"apart\n"[..]));
    assert_eq!(late.out(), "last\n");
    assert_eq!(early.status()["status"], "Success");
    let lines = read_log(Path::new(&daemon.wait(&id).await.log_path));
    assert_eq!(text(&lines), "first\nlast");
    let request = cri::AttachRequest { container_id: id, stdout: true, ..cri::AttachRequest::default() };
    let error = daemon.runtime().attach(request).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_stays_open_or_ends_with_its_first_client() {
    let (daemon, pod) = start("stdin").await;
    let mut config = script("stays", "while read line; do echo got $line; done; echo end");
    (config.stdin, config.log_path) = (true, "stays.log".into());
    let id = daemon.run(&pod, config).await;
    for word in ["one", "two"] {
        let mut session = open(&daemon, &id, true, false).await;
        session.send(0, format!("{word}\n").as_bytes()).await;
        session.close(0).await;
        session.until(&format!("got {word}")).await;
    }
    let mut config = script("once", "cat; echo end");
    crate::harness::rename(&mut config, "once");
    (config.stdin, config.stdin_once) = (true, true);
    let id = daemon.run(&pod, config).await;
    let mut session = open(&daemon, &id, true, false).await;
    session.send(0, b"word\n").await;
    session.close(0).await;
    assert_eq!(session.end().await.out(), "word\nend\n");
    assert_eq!(daemon.wait(&id).await.exit_code, 0);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_outlives_its_clients_the_daemon_and_the_keeper() {
    let (mut daemon, pod) = start("tty").await;
    let mut config = script("tty", "while read line; do echo got $line; stty size; done");
    (config.stdin, config.tty) = (true, true);
    let id = daemon.run(&pod, config).await;
    let mut session = open(&daemon, &id, true, true).await;
    session.resize(90, 20).await;
    session.send(0, b"one\n").await;
    session.until("20 90").await;
    drop(session);
    let mut session = open(&daemon, &id, true, true).await;
    daemon.kill_keeper();
    // What is said between two keepers is said when there is one.
    session.send(0, b"two\n").await;
    session.until("got two").await;
    daemon.kill();
    drop(session);
    daemon.start_again().await;
    let mut session = open(&daemon, &id, true, true).await;
    session.resize(91, 21).await;
    session.send(0, b"three\n").await;
    session.until("21 91").await;
    drop(session);
    let lines = read_log(Path::new(&daemon.status(&id).await.log_path));
    let log = text(&lines);
    assert!(log.contains("got one") && log.contains("got two") && log.contains("got three"), "{log}");
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_holds_up_nobody_and_is_told_what_it_missed() {
    let (daemon, pod) = start("slow").await;
    let config = script(
        "flood",
        "yes $(printf %063d 7) | head -n 6400 >/f; while ! test -e /go; do sleep 0.05; done; \
         for i in $(seq 60); do cat /f; done; echo done",
    );
    let id = daemon.run(&pod, config).await;
    let slow = Session::open(&daemon, &attach_url(&daemon, &id, false, false).await, V4).await;
    daemon.exec(&id, &["touch", "/go"]).await.unwrap();
    // The slow one reads nothing until the container has ended.
    let status = daemon.wait(&id).await;
    assert_eq!(status.exit_code, 0);
    let lines = read_log(Path::new(&status.log_path));
    assert_eq!((lines.len(), lines.last().unwrap().1.as_str()), (384_001, "done"));
    let said = slow.end().await;
    let notices = String::from_utf8(said.stderr).unwrap();
    let missed: usize =
        notices.split('[').skip(1).map(|n| n.split(' ').next().unwrap().parse::<usize>().unwrap()).sum();
    assert!(missed > 0, "a client that reads nothing misses something");
    // What it missed at the very end is not told where there was no room for that either.
    assert!(said.stdout.len() + missed <= 24_576_005 && said.stdout.len() < 24_576_005);
    daemon.finish().await;
}
