//! Going on as another executable, under load.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use podwright::keeper::client::{self, Hold, Status};
use podwright::keeper::protocol::{Reply, Request};

use crate::support::{KEEPER, Node, RawObserver, exec_spawn, pipe};

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
    assert!(std::fs::read_link(format!("/proc/{keeper}/exe")).unwrap().to_string_lossy().contains("memfd"));
}

/// A reader that is slow gets what it asked for, from whichever keeper.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_loses_no_answer_that_its_reader_had_no_room_for() {
    let node = Node::new().await;
    let keeper = node.keeper_pid();
    // So that an answer is large.
    for number in 0..40 {
        let (kept, _) = pipe();
        let key = format!("{number}{}", "x".repeat(400));
        node.keeper.hold(Hold { key, about: Vec::new(), fds: vec![kept] }).await.unwrap();
    }
    let slow = RawObserver::new(&node.path("state"));
    const QUESTIONS: u32 = 200;
    for number in 0..QUESTIONS {
        slow.ask(10 + number, &Request::Status);
        if number % 60 == 59 {
            node.keeper.upgrade(KEEPER.as_ref()).await.unwrap();
        }
    }
    // The keeper has them all read, and not all answers can have gone out.
    node.keeper.status().await.unwrap();
    node.keeper.upgrade(KEEPER.as_ref()).await.unwrap();
    for number in 0..QUESTIONS {
        let (answered, reply) = slow.answer();
        assert_eq!(answered, 10 + number, "answers come in order, and each once");
        let Reply::Status(status) = reply else { panic!("{reply:?}") };
        assert_eq!((status.pid, status.holds.len()), (keeper, 40));
    }
    assert_eq!(node.keeper.status().await.unwrap().upgrades, 4);
}

/// Clients that ask all the time while the keeper is replaced again and again: each gets its answer,
/// each exit is told, each log is whole.
#[tokio::test(flavor = "multi_thread")]
async fn upgrades_under_load_lose_nothing() {
    let node = Node::new().await;
    let over = AtomicBool::new(false);
    let worker = |worker: u32| {
        let (node, over) = (&node, &over);
        async move {
            let mut lives = 0;
            while !over.load(Ordering::SeqCst) || lives < 3 {
                let id = format!("w{worker}-{lives}");
                let code = (lives % 100) as u8;
                let script = format!("for i in $(seq 1 500); do echo line $i; done; exit {code}");
                let process = node.run(node.container(&id, &script)).await;
                assert_eq!(process.exited().await.status, Status::Code(code), "{id}");
                assert_eq!(node.text(&id).lines().count(), 500, "{id}");
                node.keeper.forget(&id).await.unwrap();
                lives += 1;
            }
            lives
        }
    };
    let upgrades = async {
        for _ in 0..30 {
            node.keeper.upgrade(KEEPER.as_ref()).await.unwrap();
        }
        over.store(true, Ordering::SeqCst);
    };
    let (a, b, c, ()) = tokio::join!(worker(0), worker(1), worker(2), upgrades);
    println!("{} lives", a + b + c);
    let status = node.keeper.status().await.unwrap();
    assert_eq!((status.upgrades, status.processes.len()), (30, 0));
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
