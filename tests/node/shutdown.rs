//! SIGTERM to the daemon: what runs ends, and nothing that is not the daemon's.

use std::path::Path;

use podwright::cri::wire as cri;

use crate::harness::{Daemon, pod, read_log, script, text};
use crate::reliability::{RUNNING, alive, until};

/// Waits until the daemon says that it stops.
async fn until_it_stops(daemon: &Daemon) {
    let log = daemon.dir.path().join("daemon.log");
    let stops = || std::fs::read_to_string(&log).unwrap().contains("stopping; containers go on");
    until("the daemon's stop", stops).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_calls_end_and_containers_go_on() {
    let mut daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("lasting")).await;
    let id = daemon
        .run(&made, script("main", "trap 'echo told; exit 4' TERM; while true; do sleep 0.05; done"))
        .await;
    let (process, keeper) = (daemon.pid_of(&id).await, daemon.keeper_pid());
    let mut events =
        daemon.runtime().get_container_events(cri::GetEventsRequest {}).await.unwrap().into_inner();
    let (mut runtime, exec_in) = (daemon.runtime(), id.clone());
    let call = tokio::spawn(async move {
        let script =
            "touch /dev/shm/runs; while ! test -e /dev/shm/go; do sleep 0.02; done; echo done; exit 5";
        let cmd = ["sh", "-c", script].map(str::to_owned).into();
        runtime.exec_sync(cri::ExecSyncRequest { container_id: exec_in, cmd, timeout: 120 }).await
    });
    let shm = format!("/proc/{process}/root/dev/shm");
    until("the exec", || Path::new(&format!("{shm}/runs")).exists()).await;

    daemon.terminate();
    until_it_stops(&daemon).await;
    // What no client would end, the stop does.
    while let Ok(Some(_)) = events.message().await {}
    assert!(!call.is_finished());
    std::fs::write(format!("{shm}/go"), "").unwrap();
    let answer = call.await.unwrap().unwrap().into_inner();
    assert_eq!((answer.exit_code, answer.stdout.as_slice()), (5, &b"done\n"[..]));
    assert_eq!(daemon.ended().code(), Some(0));
    assert!(!daemon.dir.path().join("cri.sock").exists(), "nobody is told to connect there");

    assert!(alive(process) && alive(keeper.into()));
    daemon.start_again().await;
    assert_eq!(daemon.status(&id).await.state, RUNNING);
    assert_eq!((daemon.pid_of(&id).await, daemon.keeper_pid()), (process, keeper));
    assert_eq!(daemon.exec(&id, &["echo", "here"]).await.unwrap().stdout, b"here\n");
    daemon.stop(&id, 60).await.unwrap();
    let status = daemon.status(&id).await;
    assert_eq!((status.exit_code, text(&read_log(Path::new(&status.log_path)))), (4, "told".into()));
    daemon.finish().await;
}

/// Whether a process runs with these arguments.
fn runs(argv: &[String]) -> bool {
    let wanted: Vec<u8> = argv.iter().flat_map(|part| [part.as_bytes(), b"\0"].concat()).collect();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let mut lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.any(|line| line == wanted)
}

/// One that does not end in its own time is dropped, and what it had begun with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_does_not_end_holds_the_stop_up_for_a_while_only() {
    let mut daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("lasting")).await;
    let id = daemon.run(&made, script("main", "exec sleep 1000")).await;
    // Nobody else's.
    let argv = ["sleep".to_owned(), (2_000_000 + std::process::id()).to_string()];
    let (mut runtime, exec_in, cmd) = (daemon.runtime(), id.clone(), argv.to_vec());
    let call = tokio::spawn(async move {
        runtime.exec_sync(cri::ExecSyncRequest { container_id: exec_in, cmd, timeout: 0 }).await
    });
    until("the exec", || runs(&argv)).await;
    daemon.terminate();
    assert_eq!(daemon.ended().code(), Some(0));
    call.await.unwrap().unwrap_err();
    daemon.start_again().await;
    assert_eq!(daemon.status(&id).await.state, RUNNING);
    until("the end of what the call had begun", || !runs(&argv)).await;
    daemon.finish().await;
}
