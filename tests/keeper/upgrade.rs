//! Going on as another executable, under load.

use std::os::fd::OwnedFd;

use podwright::keeper::client::{self, Status};

use crate::support::{KEEPER, Node, exec_spawn};

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_keeps_what_runs_logs_and_ends() {
    let node = Node::new().await;
    let keeper = node.keeper_pid();
    let before = node.keeper.status().await.unwrap();
    let chatty =
        node.run(node.container("chatty", "for i in $(seq 1 30000); do echo line $i; done; exit 9")).await;
    let forever = node.run(node.container("forever", "sleep 1000")).await;
    node.keeper.spawn(node.container("parked", "exit 3")).await.unwrap();
    let lives = async {
        for round in 0..20u8 {
            let id = format!("c{round}");
            let process = node.run(node.container(&id, &format!("exit {round}"))).await;
            assert_eq!(process.exited().await.status, Status::Code(round));
            let (spawn, _output) = exec_spawn(&forever, &format!("e{round}"), "exit 2");
            let exec = node.keeper.spawn(spawn).await.unwrap();
            assert_eq!(exec.exited().await.status, Status::Code(2));
            node.keeper.forget(&id).await.unwrap();
        }
    };
    let upgrades = async {
        for _ in 0..10 {
            node.keeper.upgrade(KEEPER.as_ref()).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::join!(lives, upgrades);
    assert_eq!(chatty.exited().await.status, Status::Code(9));
    let expected: String = (1..=30000).map(|i| format!("line {i}\n")).collect();
    assert!(node.text("chatty") == expected, "the log is not whole");
    let after = node.keeper.status().await.unwrap();
    assert_eq!((after.pid, after.upgrades, after.started_at), (keeper, 10, before.started_at));
    assert!(after.processes.iter().filter(|process| process.id != "chatty").all(|process| process.child));
    let (started, _) = node.keeper.start("parked").await.unwrap();
    assert_eq!(started.exited().await.status, Status::Code(3));
    // Still not dumpable, though execve has reset that.
    assert!(std::fs::read_link(format!("/proc/{keeper}/exe")).unwrap().to_string_lossy().contains("memfd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_to_what_cannot_run_changes_nothing() {
    let node = Node::new().await;
    let process = node.run(node.container("c1", "sleep 0.2; echo x; exit 4")).await;
    let broken = node.path("broken");
    std::fs::write(&broken, "no program").unwrap();
    let error = node.keeper.upgrade(&broken).await.unwrap_err();
    assert_eq!(error.message, "executing the new keeper: exec format error");
    assert_eq!(process.exited().await.status, Status::Code(4));
    assert_eq!(node.text("c1"), "x\n");
    client::upgrade(&node.path("state"), KEEPER.as_ref()).unwrap();
    assert_eq!(node.keeper.status().await.unwrap().upgrades, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_reopened_and_nothing_falls_between() {
    let node = Node::new().await;
    let process = node.run(node.container("c1", "for i in $(seq 1 20000); do echo line $i; done")).await;
    let (old, new) = (node.path("c1.log"), node.path("c1.log.1"));
    std::fs::rename(&old, &new).unwrap();
    let file = std::fs::OpenOptions::new().read(true).append(true).create(true).open(&old).unwrap();
    node.keeper.reopen_log("c1", OwnedFd::from(file)).await.unwrap();
    process.exited().await;
    let text = std::fs::read_to_string(&new).unwrap() + &node.log("c1");
    let lines = text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap());
    assert!(lines.eq((1..=20000).map(|i| format!("line {i}"))), "lines are lost or doubled");
}
