//! SIGKILL to the keeper, and daemons that come and go: nothing is lost.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use podwright::keeper::client::{Hold, Role, State, Status};
use podwright::keeper::note::NotePage;
use podwright::keeper::plan::{Fd, PidNamespace};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Node, RawObserver, eventually, pipe, pod_init, proc_text};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_keeper_loses_no_container_no_byte_and_no_code() {
    let node = Node::new().await;
    let mut running = Vec::new();
    for number in 0..4 {
        // Each ends on its own some time, whoever is there.
        let script = format!(
            "for i in $(seq 1 {}); do echo line $i; done; sleep 0.{number}; exit {}",
            2000 * number,
            40 + number
        );
        running.push(node.run(node.container(&format!("r{number}"), &script)).await);
    }
    let parked = node.keeper.spawn(node.container("parked", "echo started; exit 3")).await.unwrap();
    let forever = node.run(node.container("forever", "sleep 1000")).await;
    let (kept, _) = pipe();
    node.keeper.hold(Hold { key: "pod".into(), about: b"word".to_vec(), fds: vec![kept] }).await.unwrap();
    for _ in 0..5 {
        node.kill_keeper();
        node.alive().await;
    }
    for (number, process) in running.iter().enumerate() {
        assert_eq!(process.exited().await.status, Status::Code(40 + number as u8), "r{number}");
        let expected: String = (1..=2000 * number).map(|i| format!("line {i}\n")).collect();
        assert!(node.text(&format!("r{number}")) == expected, "r{number}'s log is not whole");
    }
    // Still startable, still signalled, still held.
    let (started, _) = node.keeper.start("parked").await.unwrap();
    assert_eq!(started.pid, parked.pid);
    assert_eq!(parked.exited().await.status, Status::Code(3));
    assert_eq!(node.text("parked"), "started\n");
    forever.signal(libc::SIGTERM).unwrap();
    forever.signal(libc::SIGKILL).unwrap();
    assert_eq!(forever.exited().await.status, Status::Signal(9));
    let status = node.keeper.status().await.unwrap();
    assert_eq!((status.holds.len(), status.holds[0].fds), (1, 1));
    assert_eq!(status.processes.len(), 6);
}

/// The note of a container.
fn note(node: &Node, id: &str) -> NotePage {
    let mut options = std::fs::File::options();
    NotePage::map(options.read(true).write(true).open(node.path(&format!("{id}.note"))).unwrap().as_fd())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_outlives_the_keeper_that_reaped_it_and_did_not_tell() {
    let node = Node::new().await;
    let mut spawn = node.container("full", "echo x; exit 7");
    let Role::Container(output) = &mut spawn.role else { panic!() };
    // It tells after a second only, in which what cannot be written might be.
    let full = std::fs::File::options().append(true).open("/dev/full").unwrap();
    output.log = Some(Arc::new(full.into()));
    let process = node.run(spawn).await;
    eventually(|| note(&node, "full").exit().is_some()).await;
    node.kill_keeper();
    assert_eq!(process.exited().await.status, Status::Code(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_moments_of_many_lives() {
    let node = Node::new().await;
    let init = node.keeper.spawn(pod_init("init")).await.unwrap();
    let worker = |worker: u32| {
        let (node, init) = (&node, &init);
        // Of those who join a PID namespace a helper is the first process.
        let container = move |id: &str, script: &str| {
            let mut spawn = node.container(id, script);
            if worker % 2 == 1 && podwright::sys::probe::procfs_of_others().is_ok() {
                spawn.fds.push(Arc::clone(&init.pidfd));
                spawn.plan.pid = PidNamespace::Join(Fd(4));
            }
            spawn
        };
        async move {
            for round in 0..12 {
                let id = format!("w{worker}-{round}");
                // A request may hit the moment of a death; then the daemon tries again.
                let script = format!("echo {id}; sleep 0.0{}; exit {round}", round % 4);
                loop {
                    match node.keeper.spawn(container(&id, &script)).await {
                        Ok(_) => break,
                        Err(e) if e.kind == podwright::error::Kind::Unavailable => {}
                        Err(e) => panic!("{id}: {e}"),
                    }
                }
                let process = loop {
                    match node.keeper.start(&id).await {
                        Ok((process, _)) => break process,
                        Err(e) if e.kind == podwright::error::Kind::Unavailable => {}
                        Err(e) => panic!("{id}: {e}"),
                    }
                };
                assert_eq!(process.exited().await.status, Status::Code(round), "{id}");
                assert_eq!(node.text(&id), format!("{id}\n"));
                node.keeper.forget(&id).await.unwrap();
            }
        }
    };
    let killer = async {
        for round in 0..12u64 {
            tokio::time::sleep(std::time::Duration::from_millis(3 + round * 17 % 60)).await;
            node.alive().await;
            node.kill_keeper();
        }
        node.alive().await;
    };
    tokio::join!(worker(0), worker(1), worker(2), worker(3), killer);
    init.signal(libc::SIGTERM).unwrap();
    init.exited().await;
    node.keeper.forget("init").await.unwrap();
    let status = node.keeper.status().await.unwrap();
    assert!(status.processes.is_empty(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_comes_again_is_handed_everything_back() {
    let mut node = Node::new().await;
    let keeper = node.keeper_pid();
    node.keeper.spawn(node.container("parked", "exit 3")).await.unwrap();
    let running = node.run(node.container("running", "sleep 0.3; echo late; exit 5")).await;
    let ended = node.run(node.container("ended", "exit 4")).await;
    ended.exited().await;
    let (kept, _) = pipe();
    node.keeper.hold(Hold { key: "pod".into(), about: b"word".to_vec(), fds: vec![kept] }).await.unwrap();

    let mut snapshot = node.reconnect().await;
    snapshot.processes.sort_by_key(|(process, _)| process.id.clone());
    let [(a, ended), (b, parked), (c, still)] = &snapshot.processes[..] else { panic!() };
    assert_eq!((a.id.as_str(), b.id.as_str(), c.id.as_str()), ("ended", "parked", "running"));
    assert!(matches!(ended, State::Exited { started_at: 1.., exit } if exit.status == Status::Code(4)));
    assert_eq!(*parked, State::Parked);
    assert!(matches!(still, State::Running { started_at: 1.. }));
    assert_eq!((c.pid, snapshot.holds[0].about.as_slice()), (running.pid, b"word".as_slice()));
    assert_eq!(node.keeper_pid(), keeper);
    assert_eq!(c.exited().await.status, Status::Code(5));
    assert_eq!(node.text("running"), "late\n");
    let (started, _) = node.keeper.start("parked").await.unwrap();
    assert_eq!(started.exited().await.status, Status::Code(3));

    // The second daemon's duplicates are as good as the first's.
    let again = node.run(node.container("again", "sleep 0.3; exit 6")).await;
    node.kill_keeper();
    assert_eq!(again.exited().await.status, Status::Code(6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_child_ends_with_its_holders() {
    let mut node = Node::new().await;
    let pid = node.keeper.spawn(node.container("c1", "exit 3")).await.unwrap().pid;
    node.keeper.die();
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    node.kill_keeper();
    // Neither starts it: it goes.
    eventually(|| {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        state.is_empty() || state.contains(") Z ")
    })
    .await;
}

/// The connection breaks, the keeper lives: what ended meanwhile is not waited for in vain.
#[tokio::test(flavor = "multi_thread")]
async fn what_ended_while_the_connection_was_down_is_told_when_it_is_made_again() {
    let mut node = Node::new().await;
    let init = node.keeper.spawn(pod_init("init")).await.unwrap();
    let lasting = node.keeper.spawn(pod_init("lasting")).await.unwrap();
    // Not the one that started the keeper, which would replace it.
    let snapshot = node.reconnect().await;
    let of = |id: &str| snapshot.processes.iter().find(|(p, _)| p.id == id).unwrap().0.clone();
    let (again, lasting_again) = (of("init"), of("lasting"));
    let keeper = node.keeper_pid();
    let pid = Pid::from_raw(keeper).unwrap();
    // Another daemon greets the keeper, which hangs up on ours and is then stopped: our greeting waits,
    // unless it was quicker.
    let mut rival = RawObserver::connect(&node.path("state"), false);
    kill_process(pid, Signal::STOP).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    while node.keeper.alive() {
        kill_process(pid, Signal::CONT).unwrap();
        rival = RawObserver::connect(&node.path("state"), false);
        kill_process(pid, Signal::STOP).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    init.signal(libc::SIGTERM).unwrap();
    eventually(|| {
        let stat = proc_text(init.pid, "stat");
        stat.contains(") Z ")
    })
    .await;
    // It tells the rival of the end, before it reads what we say.
    kill_process(pid, Signal::CONT).unwrap();
    let exit = tokio::time::timeout(Duration::from_secs(200), again.exited()).await;
    assert_eq!(exit.expect("the end is told").status, Status::Code(0));
    drop(rival);
    eventually(|| node.keeper.alive()).await;
    assert_eq!(node.keeper_pid(), keeper, "it is the same keeper");
    assert_eq!(lasting_again.exit(), None);
    lasting.signal(libc::SIGTERM).unwrap();
    assert_eq!(lasting_again.exited().await.status, Status::Code(0));
}
