//! What a container's end, its log and its log's disk have to do with each other.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use podwright::cri::wire as cri;

use crate::harness::{Daemon, context, namespaces, nsenter, pod, read_log, script, text};

/// Waits until the log has this line.
async fn until_line(path: &Path, line: &str) {
    for _ in 0..20_000 {
        if path.exists() && read_log(path).iter().any(|(_, text)| text == line) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{line:?} does not come: {:?}", read_log(path));
}

/// Somebody else holds the pipe when the container ends: its exit is told all the same, and what
/// comes through the pipe later still goes into the log.
#[tokio::test(flavor = "multi_thread")]
async fn behaviour_39_a_background_holder_of_the_pipe() {
    let daemon = Daemon::start().await;
    let mut config = pod("holder");
    let shared = namespaces(cri::NamespaceMode::Pod);
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options =
        Some(shared.clone());
    let made = daemon.run_pod(config).await;
    let in_pod = |mut config: cri::ContainerConfig| {
        context(&mut config).namespace_options = Some(shared.clone());
        config
    };
    let wait = |file: &str| format!("while ! test -e /dev/shm/{file}; do sleep 0.02; done");
    let mut ends = in_pod(script("ends", &format!("echo first; {}; echo last; exit 5", wait("go"))));
    ends.envs = vec![cri::KeyValue { key: "WHO".into(), value: "the-one-that-ends".into() }];
    let ends = daemon.run(&made, ends).await;
    daemon.lines_of(&ends, 1).await;
    let find = "for p in /proc/[0-9]*; do grep -q the-one-that-ends $p/environ 2>/dev/null && break; done";
    let holds = format!("{find}; exec 3> $p/fd/1; echo held; {}; echo late >&3; sleep 1000", wait("late"));
    let holds = daemon.run(&made, in_pod(script("holds", &holds))).await;
    assert_eq!(daemon.lines_of(&holds, 1).await[0].1, "held");
    daemon.exec(&holds, &["touch", "/dev/shm/go"]).await.unwrap();
    let status = daemon.wait(&ends).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (5, "Error"));
    let log = PathBuf::from(&status.log_path);
    // What the pipe held at the exit is in the file.
    assert_eq!(text(&read_log(&log)), "first\nlast");
    daemon.exec(&holds, &["touch", "/dev/shm/late"]).await.unwrap();
    until_line(&log, "late").await;
    daemon.remove(&ends).await.unwrap();
    daemon.finish().await;
}

/// A log directory on a file system of its own in the daemon's mount namespace, seen from here.
fn on_own_disk(daemon: &Daemon, name: &str, options: &[&str]) -> (cri::PodSandboxConfig, PathBuf) {
    let directory = daemon.dir.path().join(name);
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.to_str().unwrap();
    nsenter(daemon, &[&["mount"], options, &[path]].concat());
    let mut config = pod(name);
    config.log_directory = path.into();
    (config, PathBuf::from(format!("/proc/{}/root{path}", daemon.pid())))
}

const LINES: usize = 20_000;

fn count_to(name: &str, code: u32) -> cri::ContainerConfig {
    let line = "the-rest-of-a-line-of-sixty-bytes-or-so-to-fill-the-disk";
    script(name, &format!("i=0; while test $i -lt {LINES}; do i=$((i+1)); echo $i {line}; done; exit {code}"))
}

/// Every line once and whole.
fn assert_counted(log: &Path) {
    let lines = read_log(log);
    assert_eq!(lines.len(), LINES);
    for (n, (_, line)) in lines.iter().enumerate() {
        assert!(line.starts_with(&format!("{} the-rest", n + 1)) && line.ends_with("disk"), "{n}: {line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_39_a_full_disk_blocks_and_shows_in_the_status() {
    let daemon = Daemon::start().await;
    let (config, seen) = on_own_disk(&daemon, "full", &["-t", "tmpfs", "-o", "size=256k", "logs"]);
    let made = daemon.run_pod(config).await;
    let id = daemon.run(&made, count_to("main", 3)).await;
    let mut status = daemon.status(&id).await;
    for _ in 0..20_000 {
        if !status.message.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        status = daemon.status(&id).await;
    }
    assert!(
        status.message.contains("no space") && status.message.contains("main.log"),
        "{:?}",
        status.message
    );
    // It waits, and loses nothing.
    assert_eq!(status.state, cri::ContainerState::ContainerRunning as i32);
    // Others log, run and end.
    let other = daemon.run_pod(pod("other")).await;
    let (ended, lines) = daemon.outcome(&other, script("main", "echo fine; exit 4")).await;
    assert_eq!((ended.exit_code, text(&lines)), (4, "fine".into()));
    assert_eq!(daemon.exec(&id, &["echo", "here"]).await.unwrap().stdout, b"here\n");
    nsenter(&daemon, &["mount", "-o", "remount,size=16m", daemon.dir.path().join("full").to_str().unwrap()]);
    let status = daemon.wait(&id).await;
    assert_eq!((status.exit_code, status.message.as_str()), (3, ""));
    assert_counted(&seen.join("main.log"));
    daemon.remove(&id).await.unwrap();
    nsenter(&daemon, &["umount", daemon.dir.path().join("full").to_str().unwrap()]);
    daemon.finish().await;
}

/// A file system that is frozen: who writes there sleeps. Thawed at the end, whatever happens, since
/// nothing could take it away before.
struct Frozen(Vec<String>);

impl Frozen {
    fn new(daemon: &Daemon, path: &Path) -> Self {
        let path = path.to_str().unwrap();
        nsenter(daemon, &["fsfreeze", "-f", path]);
        let mount = format!("--mount=/proc/{}/ns/mnt", daemon.pid());
        Self([mount.as_str(), "--", "fsfreeze", "-u", path].map(Into::into).into())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("nsenter").args(&self.0).status();
    }
}

/// As [`on_own_disk`], on one that can be frozen.
fn on_own_ext4(daemon: &Daemon, name: &str) -> (cri::PodSandboxConfig, PathBuf) {
    let image = daemon.dir.path().join("disk.img");
    std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status().unwrap();
    assert!(made.success());
    on_own_disk(daemon, name, &["-o", "loop", image.to_str().unwrap()])
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_39_a_stalled_disk_holds_up_no_exit() {
    let daemon = Daemon::start().await;
    let (config, seen) = on_own_ext4(&daemon, "stalled");
    let directory = daemon.dir.path().join("stalled");
    let made = daemon.run_pod(config).await;
    let other = daemon.run_pod(pod("other")).await;
    let wait = "echo ready; while ! test -e /dev/shm/go; do sleep 0.02; done";
    let stalls = daemon.run(&made, script("stalls", &format!("{wait}; echo last; exit 6"))).await;
    until_line(&seen.join("stalls.log"), "ready").await;
    let frozen = Frozen::new(&daemon, &directory);
    daemon.exec(&stalls, &["touch", "/dev/shm/go"]).await.unwrap();
    let status = daemon.wait(&stalls).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (6, "Error"));
    // The one thread that copies logs sleeps; control does not.
    let (ended, _) = daemon.outcome(&other, script("main", "echo fine; exit 4")).await;
    assert_eq!(ended.exit_code, 4);
    drop(frozen);
    until_line(&seen.join("stalls.log"), "last").await;
    until_line(Path::new(&ended.log_path), "fine").await;
    daemon.remove(&stalls).await.unwrap();
    nsenter(&daemon, &["umount", directory.to_str().unwrap()]);
    daemon.finish().await;
}

/// Until the thread that copies logs sleeps in a write.
async fn until_copying_sleeps(daemon: &Daemon) {
    let task = format!("/proc/{}/task", daemon.keeper_pid());
    let state = |thread: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.contains("(log) D")
    };
    for _ in 0..20_000 {
        if std::fs::read_dir(&task).unwrap().flatten().any(state) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the log thread does not sleep");
}

/// `podwright keeper upgrade`, for 30 s at most: its exit code and what it says to stderr.
async fn upgrade(daemon: &Daemon) -> (Option<i32>, String) {
    let output = tokio::process::Command::new("timeout")
        .args(["30", env!("CARGO_BIN_EXE_podwright"), "keeper", "--config"])
        .arg(daemon.dir.path().join("config.toml"))
        .arg("upgrade")
        .output();
    let output = output.await.unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// The log thread would take what it is about to write along, and cannot be waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_with_a_stalled_log_disk_goes_on_as_it_is() {
    let daemon = Daemon::start().await;
    let (config, seen) = on_own_ext4(&daemon, "stalled");
    let directory = daemon.dir.path().join("stalled");
    let made = daemon.run_pod(config).await;
    let other = daemon.run_pod(pod("other")).await;
    let wait = "echo ready; while ! test -e /dev/shm/go; do sleep 0.02; done";
    let stalls = daemon.run(&made, script("stalls", &format!("{wait}; echo one; sleep 1000"))).await;
    until_line(&seen.join("stalls.log"), "ready").await;
    let frozen = Frozen::new(&daemon, &directory);
    daemon.exec(&stalls, &["touch", "/dev/shm/go"]).await.unwrap();
    until_copying_sleeps(&daemon).await;
    let (refused, ended) = tokio::join!(upgrade(&daemon), daemon.outcome(&other, script("during", "exit 4")));
    assert_eq!(refused.0, Some(1), "{}", refused.1);
    let log = directory.join("stalls.log");
    assert!(refused.1.contains(log.to_str().unwrap()) && refused.1.contains(&stalls), "{}", refused.1);
    assert!(refused.1.contains("does not answer"), "{}", refused.1);
    assert_eq!(ended.0.exit_code, 4);
    // Whatever was refused, what goes on does so.
    assert_eq!(daemon.exec(&stalls, &["echo", "here"]).await.unwrap().stdout, b"here\n");
    let (ended, _) = daemon.outcome(&other, script("after", "echo fine; exit 5")).await;
    assert_eq!(ended.exit_code, 5);
    drop(frozen);
    until_line(&seen.join("stalls.log"), "one").await;
    until_line(Path::new(&ended.log_path), "fine").await;
    let (upgraded, said) = upgrade(&daemon).await;
    assert_eq!(upgraded, Some(0), "{said}");
    let (ended, lines) = daemon.outcome(&other, script("upgraded", "echo fine; exit 6")).await;
    assert_eq!((ended.exit_code, text(&lines)), (6, "fine".into()));
    daemon.remove(&stalls).await.unwrap();
    assert_eq!(text(&read_log(&seen.join("stalls.log"))), "ready\none");
    nsenter(&daemon, &["umount", directory.to_str().unwrap()]);
    daemon.finish().await;
}

/// CVE-2019-14891: output without an end of line must not pile up in memory.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_14891_a_line_without_end_takes_no_memory() {
    let daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("endless")).await;
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.keeper_pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = resident();
    let id =
        daemon.run(&made, script("main", "head -c 30000000 /dev/zero | tr '\\0' x; echo; echo end")).await;
    let status = daemon.wait(&id).await;
    let lines = read_log(Path::new(&status.log_path));
    assert_eq!((lines[0].1.len(), lines[1].1.as_str()), (30_000_000, "end"));
    let grown = resident() - before;
    assert!(grown < 2048, "{grown} KiB");
    daemon.finish().await;
}
