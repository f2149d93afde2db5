//! SIGKILL to the daemon, to the keeper, and to both.

use super::{
    CREATED, EXITED, RUNNING, alive, assert_code_of_orphan, assert_whole, counter, go, sharing, until,
    until_logged,
};
use crate::harness::{Daemon, kill, pod, script};

/// The exit that nobody saw in person is known where PIDFD_GET_INFO tells it (Linux 6.15), or
/// where one of the two holders was there.
#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_dies_while_containers_run_log_and_exit() {
    let mut daemon = Daemon::start().await;
    let pod_1 = daemon.run_pod(pod("daemon-dies")).await;
    let runs = daemon.run(&pod_1, counter(&daemon, "runs", 5)).await;
    let ends = daemon.run(&pod_1, counter(&daemon, "ends", 7)).await;
    let ends_pid = daemon.pid_of(&ends).await;
    let waits = daemon.create(&pod_1, script("waits", "echo started; exit 3")).await.unwrap();
    let keeper = daemon.keeper_pid();
    daemon.kill();
    go(&daemon, "ends");
    until("the end of a container", || !alive(ends_pid)).await;
    daemon.start_again().await;

    assert_eq!(daemon.keeper_pid(), keeper, "the keeper lives on");
    assert!(daemon.pod_ready(&pod_1.0).await);
    let status = daemon.wait(&ends).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    assert_whole(&status.log_path);
    assert_eq!(daemon.states(&[&runs, &waits]).await, [RUNNING, CREATED]);
    let output = daemon.exec(&runs, &["echo", "hello"]).await.unwrap();
    assert_eq!(output.stdout, b"hello\n");
    daemon.start_container(&waits).await.unwrap();
    assert_eq!(daemon.wait(&waits).await.exit_code, 3);
    go(&daemon, "runs");
    let status = daemon.wait(&runs).await;
    assert_eq!(status.exit_code, 5);
    assert_whole(&status.log_path);

    // What was there before stops and goes as what comes after.
    let another = daemon.run(&pod_1, script("another", "sleep 1000")).await;
    daemon.stop_container(&another).await;
    daemon.remove_container(&another).await;
    daemon.remove_container(&ends).await;
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keeper_dies_three_times_while_containers_run_log_and_exit() {
    let daemon = Daemon::start().await;
    let pod_1 = daemon.run_pod(pod("keeper-dies")).await;
    let mut counters = Vec::new();
    for n in 0..4 {
        counters.push(daemon.run(&pod_1, counter(&daemon, &format!("c{n}"), 10 + n)).await);
    }
    let waits = daemon.create(&pod_1, script("waits", "echo started; exit 3")).await.unwrap();
    for n in 0..3 {
        let keeper = daemon.keeper_pid();
        let pid = daemon.pid_of(&counters[n]).await;
        daemon.kill_keeper();
        go(&daemon, &format!("c{n}"));
        until("the end of a container", || !alive(pid)).await;
        let output = daemon.exec_again(&counters[3], &["echo", "hello"]).await;
        assert_eq!(output.stdout, b"hello\n");
        assert_ne!(daemon.keeper_pid(), keeper);
        let status = daemon.wait(&counters[n]).await;
        assert_eq!(status.exit_code, 10 + n as i32, "{status:?}");
        assert_whole(&status.log_path);
    }
    assert_eq!(daemon.states(&[&counters[3], &waits]).await, [RUNNING, CREATED]);
    assert!(daemon.pod_ready(&pod_1.0).await);
    daemon.start_container(&waits).await.unwrap();
    assert_eq!(daemon.wait(&waits).await.exit_code, 3);
    go(&daemon, "c3");
    let status = daemon.wait(&counters[3]).await;
    assert_eq!(status.exit_code, 13);
    assert_whole(&status.log_path);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_42_both_die_at_once() {
    let mut daemon = Daemon::start().await;
    let lives = daemon.run_pod(pod("lives")).await;
    let empty = daemon.run_pod(pod("empty")).await;
    let runs = daemon.run(&lives, counter(&daemon, "runs", 5)).await;
    let ends = daemon
        .run(&lives, sharing(&daemon, "ends", "while [ ! -e /shared/ends.go ]; do sleep 0.02; done"))
        .await;
    let waits = daemon.create(&lives, script("waits", "echo started")).await.unwrap();
    let (ends_pid, waits_pid) = (daemon.pid_of(&ends).await, daemon.pid_of(&waits).await);
    daemon.exec(&runs, &["sh", "-c", "echo kept > /dev/shm/file"]).await.unwrap();
    let address = daemon.pod_status(&lives.0).await.network.unwrap().ip;
    let keeper = daemon.keeper_pid();
    daemon.kill();
    kill(keeper, 9);
    go(&daemon, "ends");
    until("the end of a container", || !alive(ends_pid) && !alive(waits_pid)).await;
    daemon.start_again().await;

    assert!(daemon.pod_ready(&lives.0).await);
    assert_eq!(daemon.pod_status(&lives.0).await.network.unwrap().ip, address);
    assert!(!daemon.pod_ready(&empty.0).await, "no pod goes on with new namespaces in silence");
    assert_eq!(daemon.states(&[&runs]).await, [RUNNING]);
    let status = daemon.wait(&waits).await;
    assert_eq!((status.state, status.reason.as_str()), (EXITED, "ContainerStatusUnknown"));
    assert!(!status.message.is_empty());
    assert_eq!(daemon.wait(&ends).await.state, EXITED);
    let output = daemon.exec(&runs, &["cat", "/dev/shm/file"]).await.unwrap();
    assert_eq!(output.stdout, b"kept\n");
    // A container that joins what was taken back is in the same namespaces.
    let (status, lines) =
        daemon.outcome(&lives, script("joins", "cat /dev/shm/file; ip -o -4 addr show eth0")).await;
    assert_eq!(status.exit_code, 0, "{lines:?}");
    assert_eq!(lines[0].1, "kept");
    assert!(lines[1].1.contains(&address), "{lines:?}");
    let error = daemon.create(&empty, script("refused", "true")).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);

    until_logged(&daemon.status(&runs).await.log_path, " 1").await;
    go(&daemon, "runs");
    let status = daemon.wait(&runs).await;
    assert_whole(&status.log_path);
    assert_code_of_orphan(&status, 5);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_die_in_turn_and_nothing_is_lost() {
    let mut daemon = Daemon::start().await;
    let pod_1 = daemon.run_pod(pod("in-turn")).await;
    let runs = daemon.run(&pod_1, counter(&daemon, "runs", 9)).await;
    let waits = daemon.create(&pod_1, script("waits", "exit 3")).await.unwrap();
    for _ in 0..3 {
        daemon.kill();
        daemon.start_again().await;
        let keeper = daemon.keeper_pid();
        daemon.kill_keeper();
        daemon.exec_again(&runs, &["true"]).await;
        assert_ne!(daemon.keeper_pid(), keeper);
    }
    daemon.start_container(&waits).await.unwrap();
    assert_code_of_orphan(&daemon.wait(&waits).await, 3);
    go(&daemon, "runs");
    let status = daemon.wait(&runs).await;
    assert_code_of_orphan(&status, 9);
    assert_whole(&status.log_path);
    daemon.finish().await;
}
