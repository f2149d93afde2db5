//! From a plan to a program.

use podwright::keeper::client::Status;
use podwright::keeper::plan::{Program, Step};

use crate::support::{Node, eventually, exec_spawn, proc_text, read_all};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_parks_starts_logs_and_exits() {
    let node = Node::new().await;
    let script = "echo hello; echo bad >&2; pwd; hostname 2>/dev/null; id -u; ulimit -n; \
                  cat /proc/self/oom_score_adj /proc/sys/kernel/shmmni; echo $$; exit 7";
    let parked = node.keeper.spawn(node.container("c1", script)).await.unwrap();
    assert_eq!(parked.exit(), None);
    assert_eq!(node.log("c1"), "");
    let (process, started_at) = node.keeper.start("c1").await.unwrap();
    assert!(started_at > 0);
    assert_eq!(process.exited().await.status, Status::Code(7));
    let text = node.text("c1");
    for line in ["hello\n", "bad\n", "/tmp/made\n", "0\n512\n500\n77\n1\n"] {
        assert!(text.contains(line), "{line:?} is not in {text:?}");
    }
    node.keeper.forget("c1").await.unwrap();
    node.keeper.forget("c1").await.unwrap();
    assert!(node.keeper.status().await.unwrap().processes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_are_told_from_codes() {
    let node = Node::new().await;
    let process = node.run(node.container("c1", "sleep 1000")).await;
    process.signal(libc::SIGKILL).unwrap();
    assert_eq!(process.exited().await.status, Status::Signal(9));
    process.signal(libc::SIGKILL).unwrap();
}

/// DESIGN: a parked child holds nothing but its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_parked_child_holds_its_own_descriptors_only() {
    let node = Node::new().await;
    let other = node.keeper.spawn(node.container("other", "true")).await.unwrap();
    let parked = node.keeper.spawn(node.container("c1", "true")).await.unwrap();
    let fds: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", parked.pid)).unwrap().flatten().collect();
    let mut targets: Vec<_> =
        fds.iter().map(|fd| std::fs::read_link(fd.path()).unwrap().to_string_lossy().into_owned()).collect();
    targets.sort();
    assert_eq!(targets.len(), 4, "{targets:?}");
    assert!(
        targets[0].ends_with("/null") && targets[1].starts_with("pipe:") && targets[3].starts_with("socket:")
    );
    // Non-dumpable: its files are root's, whoever it runs as; and the mount table is its own.
    let mounts = proc_text(parked.pid, "mounts");
    assert!(mounts.lines().count() < 12, "{mounts}");
    // Forgotten: the channel ends, and so does the child.
    node.keeper.forget("c1").await.unwrap();
    node.keeper.forget("other").await.unwrap();
    eventually(|| !std::path::Path::new(&format!("/proc/{}", other.pid)).exists()).await;
    assert!(parked.signal(0).is_ok());
}

/// A process that is not dumpable is closed to others of its user who are no less privileged. Only
/// the child that is parked shows this (the keeper's own capabilities keep such readers out anyway),
/// and it has the flag from the keeper, which has to set it again after each execve.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_keeper_and_its_children_hold_is_not_dumpable() {
    let node = Node::new().await;
    let bare = |id: &str| {
        let mut spawn = node.container(id, "exec sleep 1000");
        *spawn.plan.steps.last_mut().unwrap() = Step::Identity(podwright::keeper::plan::Identity::default());
        spawn
    };
    let parked = node.keeper.spawn(bare("parked")).await.unwrap();
    assert!(!readable_by_its_user(parked.pid));
    // The same process is open to the same reader once it runs a program, which is dumpable.
    let (running, _) = node.keeper.start("parked").await.unwrap();
    eventually(|| proc_text(running.pid, "cmdline").starts_with("sleep")).await;
    assert!(readable_by_its_user(running.pid), "the reader could read what is not protected");

    node.keeper.upgrade(crate::support::KEEPER.as_ref()).await.unwrap();
    let parked = node.keeper.spawn(bare("after")).await.unwrap();
    assert!(!readable_by_its_user(parked.pid), "after an upgrade");
}

/// Whether root without any capability may look into the memory of `pid` (ptrace(2): read access).
fn readable_by_its_user(pid: i32) -> bool {
    let maps = format!("/proc/{pid}/maps");
    let reader = std::process::Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "cat", &maps])
        .output()
        .unwrap();
    let denied = String::from_utf8_lossy(&reader.stderr).contains("Permission denied");
    assert!(reader.status.success() || denied, "{reader:?}");
    reader.status.success() && !reader.stdout.is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_step_is_told_with_its_path_and_cause() {
    let node = Node::new().await;
    let mut spawn = node.container("c1", "true");
    spawn.plan.steps.insert(
        6,
        Step::Mount {
            fstype: b"nosuchfs".to_vec(),
            target: b"/data".to_vec(),
            options: Vec::new(),
            attributes: 0,
        },
    );
    let error = node.keeper.spawn(spawn).await.unwrap_err();
    assert_eq!(error.message, "mounting nosuchfs at /data: no such device");

    let mut spawn = node.container("c2", "true");
    spawn.plan.exec.program = Program::Search(vec![b"/bin/none".to_vec(), b"/none".to_vec()]);
    spawn.plan.exec.argv = vec![b"none".to_vec()];
    let parked = node.keeper.spawn(spawn).await.unwrap();
    let error = node.keeper.start("c2").await.unwrap_err();
    assert_eq!(error.message, "exec \"none\": no such file or directory");
    assert_eq!(parked.exited().await.status, Status::Code(127));

    // Nothing may be mounted over procfs: CVE-2019-19921.
    let mut spawn = node.container("c3", "true");
    spawn
        .plan
        .steps
        .insert(6, Step::Bind { source: b"/tmp".to_vec(), target: b"/proc/self".to_vec(), recursive: false });
    let error = node.keeper.spawn(spawn).await.unwrap_err();
    assert_eq!(error.message, "binding /tmp to /proc/self: operation not permitted");

    // A directory outside of the root is none to work in: CVE-2024-21626.
    let mut spawn = node.container("c4", "true");
    spawn.plan.steps.push(Step::WorkingDirectory { path: b"/proc/self/fd/0/..".to_vec(), create: false });
    let error = node.keeper.spawn(spawn).await.unwrap_err();
    assert!(error.message.starts_with("changing to working directory /proc/self/fd/0/..: "), "{error}");
    node.keeper.forget("c2").await.unwrap();
    assert!(node.keeper.status().await.unwrap().processes.is_empty());
}

/// A filter that allows nothing but exit_group and execve: it denies write and sendmsg, so that a
/// failure could not be told by either.
fn filter(allowed: &[i64]) -> Vec<u8> {
    let mut program: Vec<(u16, u8, u8, u32)> = vec![(0x20, 0, 0, 0)];
    for (index, number) in allowed.iter().enumerate() {
        program.push((0x15, (allowed.len() - index) as u8, 0, *number as u32));
    }
    program.push((0x06, 0, 0, 0x0005_0000 | libc::EPERM as u32));
    program.push((0x06, 0, 0, 0x7fff_0000));
    let bytes = |(code, jt, jf, k): &(u16, u8, u8, u32)| {
        [&code.to_ne_bytes()[..], &[*jt, *jf], &k.to_ne_bytes()].concat()
    };
    program.iter().flat_map(bytes).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_denies_writing_cannot_hide_a_failed_exec() {
    let node = Node::new().await;
    let mut spawn = node.container("c1", "true");
    spawn.plan.exec.program = Program::Search(vec![b"/bin/none".to_vec()]);
    spawn.plan.seccomp = Some(filter(&[libc::SYS_execve, libc::SYS_exit_group]));
    node.keeper.spawn(spawn).await.unwrap();
    let error = node.keeper.start("c1").await.unwrap_err();
    assert_eq!(error.message, "exec \"sh\": no such file or directory");
    // One that denies even exit_group does not keep the process alive.
    let mut spawn = node.container("c2", "true");
    spawn.plan.exec.program = Program::Search(vec![b"/bin/none".to_vec()]);
    spawn.plan.seccomp = Some(filter(&[libc::SYS_execve]));
    let process = node.keeper.spawn(spawn).await.unwrap();
    node.keeper.start("c2").await.unwrap_err();
    assert!(matches!(process.exited().await.status, Status::Signal(_)));
}

/// With no_new_privs off the filter is loaded last: it may deny what was needed before, and
/// CAP_SYS_ADMIN, which its loading takes, is gone after execve.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_without_no_new_privs_leaves_no_capability_behind() {
    let node = Node::new().await;
    for (id, uid) in [("root", 0), ("user", 1000)] {
        let mut spawn = node.container(id, "grep -E 'Cap|NoNew|Seccomp:|Groups' /proc/self/status; id -u");
        let identity = Step::Identity(podwright::keeper::plan::Identity {
            uid,
            gid: uid,
            groups: vec![7, 8],
            bounding: 1 << 10,
            effective: if uid == 0 { 1 << 10 } else { 0 },
            permitted: if uid == 0 { 1 << 10 } else { 0 },
            ..Default::default()
        });
        *spawn.plan.steps.last_mut().unwrap() = identity;
        spawn.plan.seccomp = Some(deny(&[libc::SYS_capset, libc::SYS_setuid, libc::SYS_setresuid]));
        let process = node.run(spawn).await;
        assert_eq!(process.exited().await.status, Status::Code(0), "{}", node.log(id));
        let text = node.text(id);
        let expected = if uid == 0 { "0000000000000400" } else { "0000000000000000" };
        assert!(text.contains(&format!("CapEff:\t{expected}\n")), "{text}");
        assert!(text.contains(&format!("CapPrm:\t{expected}\n")), "{text}");
        assert!(text.contains("CapBnd:\t0000000000000400\n"), "{text}");
        assert!(text.contains("CapAmb:\t0000000000000000\n"), "{text}");
        assert!(text.contains("NoNewPrivs:\t0\n") && text.contains("Seccomp:\t2\n"), "{text}");
        assert!(text.contains("Groups:\t7 8 \n") && text.ends_with(&format!("{uid}\n")), "{text}");
    }
}

fn deny(denied: &[i64]) -> Vec<u8> {
    let mut program = filter(denied);
    let end = program.len();
    // Swaps the two verdicts.
    let (a, b) = (program[end - 16..end - 8].to_vec(), program[end - 8..].to_vec());
    program[end - 16..end - 8].copy_from_slice(&b);
    program[end - 8..].copy_from_slice(&a);
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn ambient_capabilities_reach_a_user() {
    let node = Node::new().await;
    let mut spawn = node.container("c1", "grep Cap /proc/self/status");
    let set = 1 << 10;
    *spawn.plan.steps.last_mut().unwrap() = Step::Identity(podwright::keeper::plan::Identity {
        uid: 1000,
        gid: 1000,
        bounding: set,
        effective: set,
        permitted: set,
        inheritable: set,
        ambient: set,
        ..Default::default()
    });
    let process = node.run(spawn).await;
    process.exited().await;
    assert!(node.text("c1").contains("CapEff:\t0000000000000400\n"), "{}", node.text("c1"));
}

/// Issue 4, section 8: a pod with 2 MB of environment and 300 mounts.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_of_any_size_arrives() {
    let node = Node::new().await;
    let mut spawn = node.container("c1", "cat /proc/mounts | grep -c /m/; echo ${#V19}");
    std::fs::create_dir(node.path("volume")).unwrap();
    for number in 0..300 {
        let flags =
            rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE | rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = rustix::mount::open_tree(rustix::fs::CWD, node.path("volume"), flags).unwrap();
        spawn.fds.push(std::sync::Arc::new(mount));
        spawn.plan.steps.insert(
            6,
            Step::Attach {
                mount: podwright::keeper::plan::Fd(4 + number),
                target: format!("/m/{number}").into_bytes(),
                directory: true,
                label: b"a volume".to_vec(),
            },
        );
    }
    for number in 0..20 {
        let value = vec![b'x'; 100_000];
        spawn.plan.exec.envp.push([format!("V{number}=").as_bytes(), &value].concat());
    }
    // The stack, of which execve takes a quarter for strings.
    spawn.plan.steps.insert(1, Step::Rlimit { resource: 3, soft: 64 << 20, hard: 64 << 20 });
    let process = node.run(spawn).await;
    assert_eq!(process.exited().await.status, Status::Code(0), "{}", node.log("c1"));
    assert_eq!(node.text("c1"), "300\n100000\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spawn_that_its_caller_gives_up_leaves_nothing() {
    let node = Node::new().await;
    let container = node.run(node.container("c1", "sleep 1000")).await;
    let (exec, output) = exec_spawn(&container, "given-up", "sleep 1000");
    for spawn in [exec, node.container("parked", "true")] {
        tokio::select! {
            biased;
            spawned = node.keeper.spawn(spawn) => panic!("it is answered at its first poll: {spawned:?}"),
            () = std::future::ready(()) => {}
        }
    }
    // Its end of the pipe is closed.
    let ended = tokio::task::spawn_blocking(move || read_all(&output));
    tokio::time::timeout(std::time::Duration::from_secs(30), ended).await.unwrap().unwrap();
    while node.keeper.status().await.unwrap().processes.len() > 1 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// The end of its channel is what an execve leaves behind as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_parked_child_that_is_killed_was_never_started() {
    let node = Node::new().await;
    for round in 0..20 {
        let id = format!("c{round}");
        let parked = node.keeper.spawn(node.container(&id, "exit 3")).await.unwrap();
        let start = async {
            if round % 2 == 0 {
                tokio::task::yield_now().await;
            }
            node.keeper.start(&id).await
        };
        let kill = async { parked.signal(libc::SIGKILL).unwrap() };
        let ((), started) = tokio::join!(kill, start);
        let error = started.unwrap_err();
        assert!(error.message.contains("by signal 9 before it could execute its program"), "{error}");
        node.keeper.forget(&id).await.unwrap();
    }
}
