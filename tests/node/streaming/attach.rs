//! Attach: clients beside the log, none of which holds up another.

use std::collections::BTreeSet;
use std::path::Path;

use podwright::cri::wire as cri;

use super::client::{Session, V4, V5, attach_url, raise_loopback};
use super::eventually;
use crate::harness::{Daemon, nsenter, pod, read_log, script, text};

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

/// The same of one that attaches, says a line and leaves.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_word_of_a_client_that_leaves_is_heard() {
    let (daemon, pod) = start("word").await;
    let mut config = script("word", "while read line; do echo got $line; done");
    config.stdin = true;
    let id = daemon.run(&pod, config).await;
    for number in 0..40 {
        let mut session = open(&daemon, &id, true, false).await;
        session.send(0, format!("{number}\n").as_bytes()).await;
        session.leave().await;
    }
    let log = daemon.status(&id).await.log_path;
    // One may be heard after the next.
    let all: BTreeSet<_> = (0..40).map(|number| ("stdout".to_owned(), format!("got {number}"))).collect();
    eventually("all is heard", async || {
        read_log(Path::new(&log)).into_iter().collect::<BTreeSet<_>>() == all
    })
    .await;
    daemon.finish().await;
}

/// A client that comes between two keepers is both handed over and asked for.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_between_two_keepers_sees_everything_once() {
    let (daemon, pod) = start("between").await;
    let program = "while :; do if test -e /say; then cat /say; rm /say; fi; sleep 0.02; done";
    let id = daemon.run(&pod, script("between", program)).await;
    for round in 0..4 {
        let url = attach_url(&daemon, &id, false, false).await;
        daemon.kill_keeper();
        let mut session = Session::open(&daemon, &url, V5).await;
        let mut all = String::new();
        for word in ["one", "two", "three"] {
            let say = format!("echo {word} > /new; mv /new /say");
            let argv = ["sh", "-c", &say];
            // There may be no keeper yet.
            eventually("there is a keeper", async || daemon.exec(&id, &argv).await.is_ok()).await;
            all += &format!("{word}\n");
            session.until(word).await;
        }
        assert_eq!(session.said().out(), all, "round {round}");
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_outlives_its_clients_the_daemon_and_the_keeper() {
    let (mut daemon, pod) = start("tty").await;
    // A size may come later than the line behind it.
    let program = "while read line size; do echo got $line; until [ \"$(stty size 2>/dev/null)\" = \"$size\" ]; do \
                 sleep 0.05; done; stty size; done";
    let mut config = script("tty", program);
    (config.stdin, config.tty) = (true, true);
    let id = daemon.run(&pod, config).await;
    let mut session = open(&daemon, &id, true, true).await;
    session.resize(90, 20).await;
    session.send(0, b"one 20 90\n").await;
    session.until("\n20 90").await;
    drop(session);
    let mut session = open(&daemon, &id, true, true).await;
    daemon.kill_keeper();
    // What is said between two keepers is said when there is one.
    session.send(0, b"two 20 90\n").await;
    session.until("got two").await;
    daemon.kill();
    drop(session);
    daemon.start_again().await;
    let mut session = open(&daemon, &id, true, true).await;
    session.resize(91, 21).await;
    session.send(0, b"three 21 91\n").await;
    session.until("\n21 91").await;
    drop(session);
    let lines = read_log(Path::new(&daemon.status(&id).await.log_path));
    let log = text(&lines);
    assert!(log.contains("got one") && log.contains("got two") && log.contains("got three"), "{log}");
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_and_clients_outlive_the_keeper_and_the_daemon() {
    let (mut daemon, pod) = start("pipe").await;
    let mut config =
        script("pipe", "while read line; do echo aside $line >&2; echo got $line; done; echo end");
    config.stdin = true;
    let id = daemon.run(&pod, config).await;
    let mut session = open(&daemon, &id, true, false).await;
    session.send(0, b"one\n").await;
    session.until("got one").await;
    daemon.kill_keeper();
    session.send(0, b"two\n").await;
    session.until("got two").await;
    daemon.kill();
    drop(session);
    daemon.start_again().await;
    let mut session = open(&daemon, &id, true, false).await;
    session.send(0, b"three\n").await;
    session.until("got three").await;
    daemon.stop(&id, 0).await.unwrap();
    let said = session.end().await;
    assert_eq!((said.out().as_str(), said.stderr.as_slice()), ("got three\n", &b"aside three\n"[..]));
    daemon.finish().await;
}

/// Writes 24,576,000 bytes when it is told to.
const FLOOD: &str = "yes $(printf %063d 7) | head -n 6400 >/f; while ! test -e /go; do sleep 0.05; done; \
                     for i in $(seq 60); do cat /f; done";
const FLOODED: usize = 24_576_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_holds_up_nobody_and_is_told_what_it_missed() {
    let (daemon, pod) = start("slow").await;
    let id = daemon.run(&pod, script("flood", &format!("{FLOOD}; echo done"))).await;
    let slow = Session::open(&daemon, &attach_url(&daemon, &id, false, false).await, V4).await;
    daemon.exec(&id, &["touch", "/go"]).await.unwrap();
    // The slow one reads nothing until the container has ended.
    let status = daemon.wait(&id).await;
    assert_eq!(status.exit_code, 0);
    let lines = read_log(Path::new(&status.log_path));
    assert_eq!((lines.len(), lines.last().unwrap().1.as_str()), (384_001, "done"));
    let said = slow.end().await;
    assert!(said.missed() > 0, "a client that reads nothing misses something");
    assert_eq!(said.stdout.len() + said.missed(), FLOODED + "done\n".len());
    daemon.finish().await;
}

/// What is not in the log is not shown: who is attached is told that there is something.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_the_log_has_no_room_for_is_told() {
    let daemon = Daemon::start().await;
    raise_loopback(&daemon);
    let directory = daemon.dir.path().join("full");
    std::fs::create_dir(&directory).unwrap();
    let path = directory.to_str().unwrap();
    nsenter(&daemon, &["mount", "-t", "tmpfs", "-o", "size=64k", "logs", path]);
    let mut config = pod("full");
    config.log_directory = path.into();
    let pod = daemon.run_pod(config).await;
    let wait = |file: &str| format!("while ! test -e {file}; do sleep 0.05; done");
    let last = "yes $(printf %063d 7) | head -n 200";
    let program = format!("{}; echo first; {}; {last}", wait("/here"), wait("/go"));
    let id = daemon.run(&pod, script("main", &program)).await;
    let mut session = open(&daemon, &id, false, false).await;
    daemon.exec(&id, &["touch", "/here"]).await.unwrap();
    session.until("first").await;
    let filler = format!("/proc/{}/root{path}/filler", daemon.pid());
    std::fs::write(filler, [0; 100_000]).unwrap_err();
    daemon.exec(&id, &["touch", "/go"]).await.unwrap();
    let ended = daemon.wait(&id).await;
    assert_eq!(ended.exit_code, 0);
    let said = session.end().await;
    let told = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(told.contains("the end of the output is not shown"), "{told}");
    assert!(told.contains("No space left"), "{told}");
    assert_eq!((said.out().as_str(), &said.status()["status"]), ("first\n", &"Success".into()));
    daemon.remove(&id).await.unwrap();
    nsenter(&daemon, &["umount", path]);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_catches_up_with_a_quiet_container_is_told_what_it_missed() {
    let (daemon, pod) = start("quiet").await;
    let script = script("flood", &format!("{FLOOD}; touch /quiet; sleep 1000"));
    let id = daemon.run(&pod, script).await;
    let mut slow = Session::open(&daemon, &attach_url(&daemon, &id, false, false).await, V4).await;
    daemon.exec(&id, &["touch", "/go"]).await.unwrap();
    daemon.exec(&id, &["sh", "-c", "while ! test -e /quiet; do sleep 0.05; done"]).await.unwrap();
    slow.until_all(FLOODED).await;
    assert!(slow.said().missed() > 0, "a client that reads nothing misses something");
    drop(slow);
    daemon.finish().await;
}
