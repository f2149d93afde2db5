//! Large requests, hostile users of the log's pipe, volumes that must go at once, plugins that hang.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use podwright::cri::wire as cri;

use super::{assert_whole, counter, go, until};
use crate::harness::{Daemon, pod, script};
use crate::streaming::eventually;

/// The environment is what execve allows with the usual stack limit: a quarter of 8 MiB, pointers
/// and arguments included.
#[tokio::test(flavor = "multi_thread")]
async fn two_megabytes_of_environment_and_300_mounts() {
    let daemon = Daemon::start().await;
    let pod_1 = daemon.run_pod(pod("large")).await;
    let mut config = script("main", "env | wc -c; cat /m/*/file | sort -u | wc -l");
    for n in 0..20 {
        config.envs.push(cri::KeyValue { key: format!("VAR_{n}"), value: "x".repeat(100_000).into() });
    }
    for n in 0..300 {
        let host = daemon.dir.path().join(format!("volumes/{n}"));
        std::fs::create_dir_all(&host).unwrap();
        std::fs::write(host.join("file"), format!("{n}\n")).unwrap();
        config.mounts.push(cri::Mount {
            container_path: format!("/m/{n}"),
            host_path: host.to_string_lossy().into_owned(),
            ..Default::default()
        });
    }
    let (status, lines) = daemon.outcome(&pod_1, config).await;
    assert_eq!(status.exit_code, 0, "{status:?} {lines:?}");
    assert!(lines[0].1.trim().parse::<usize>().unwrap() > 2_000_000, "{lines:?}");
    assert_eq!(lines[1].1.trim(), "300");
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_on_a_loop_device_is_free_right_after_remove_container() {
    let daemon = Daemon::start().await;
    let image = daemon.dir.path().join("volume.img");
    let file = std::fs::File::create(&image).unwrap();
    file.set_len(16 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).status();
    let device = Command::new("losetup").args(["-f", "--show"]).arg(&image).output();
    let (Ok(true), Ok(device)) = (made.map(|s| s.success()), device) else {
        println!("skipped: no mkfs.ext4 or no losetup");
        return;
    };
    if !device.status.success() {
        println!("skipped: no loop device: {}", String::from_utf8_lossy(&device.stderr));
        return;
    }
    let device = String::from_utf8(device.stdout).unwrap().trim().to_owned();
    let volume = daemon.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let volume = volume.to_string_lossy().into_owned();
    for _ in 0..5 {
        daemon.in_namespaces("mount", &[&device, &volume]);
        let pod_1 = daemon.run_pod(pod("loop")).await;
        let mut config = script("main", "echo written > /data/file; exec sleep 1000");
        config.mounts.push(cri::Mount {
            container_path: "/data".into(),
            host_path: volume.clone(),
            ..Default::default()
        });
        let id = daemon.run(&pod_1, config).await;
        daemon.exec(&id, &["ls", "/data"]).await.unwrap();
        daemon.stop_container(&id).await;
        daemon.remove_container(&id).await;
        daemon.in_namespaces("umount", &[&volume]);
        // Only a device that nothing has mounted any more can be opened exclusively.
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::EXCL;
        let open = rustix::fs::open(&device, flags, rustix::fs::Mode::empty());
        assert!(open.is_ok(), "{device} is in use after RemoveContainer: {open:?}");
        drop(open);
        daemon.remove_pod(&pod_1.0).await.unwrap();
    }
    let detached = Command::new("losetup").args(["-d", &device]).status().unwrap();
    assert!(detached.success());
    daemon.finish().await;
}

/// Runs inside a container: this test binary is static.
#[test]
#[ignore = "a program for the test below"]
fn misuses_its_own_stdout() {
    use std::io::Write;
    if !std::path::Path::new("/run-in-a-container").exists() {
        return;
    }
    let read_back = std::fs::File::options().read(true).write(true).open("/dev/stdout").unwrap();
    rustix::io::ioctl_fionbio(&read_back, true).unwrap();
    let stdout = std::io::stdout();
    let plain = rustix::fs::fcntl_getfl(&stdout).unwrap();
    let mut buffer = [0u8; 3000];
    for n in 0..3000 {
        let size = [4096, 1 << 16, 1 << 20][n % 3];
        let _ = rustix::pipe::fcntl_setpipe_size(&stdout, size);
        let direct = plain | rustix::fs::OFlags::DIRECT;
        let _ = rustix::fs::fcntl_setfl(&stdout, if n % 2 == 0 { direct } else { plain });
        let _ = stdout.lock().write_all(format!("noise {n}\n").repeat(n % 20).as_bytes());
        let _ = rustix::io::read(&read_back, &mut buffer);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_misuses_its_stdout_disturbs_no_other() {
    let daemon = Daemon::start().await;
    let pod_1 = daemon.run_pod(pod("misuse")).await;
    let mut counters = Vec::new();
    for n in 0..20 {
        counters.push(daemon.run(&pod_1, counter(&daemon, &format!("c{n}"), n)).await);
    }
    let text = "touch /run-in-a-container; for i in 1 2 3; do /probe --exact \
                reliability::extremes::misuses_its_own_stdout --ignored --nocapture; done";
    let mut config = script("misuse", text);
    config.mounts.push(cri::Mount {
        container_path: "/probe".into(),
        host_path: std::env::current_exe().unwrap().to_string_lossy().into_owned(),
        readonly: true,
        ..Default::default()
    });
    let misuse = daemon.run(&pod_1, config).await;
    daemon.exec(&counters[0], &["true"]).await.unwrap();
    // What they write meanwhile arrives meanwhile.
    for id in &counters {
        let path = daemon.status(id).await.log_path;
        let length = || std::fs::metadata(&path).map_or(0, |file| file.len());
        let before = length();
        until("the neighbour's next line", || length() > before).await;
    }
    let status = daemon.wait(&misuse).await;
    assert_eq!(status.exit_code, 0, "{:?}", std::fs::read_to_string(&status.log_path));
    for (n, id) in counters.iter().enumerate() {
        go(&daemon, &format!("c{n}"));
        let status = daemon.wait(id).await;
        assert_eq!(status.exit_code, n as i32);
        assert_whole(&status.log_path);
    }
    daemon.finish().await;
}

/// Answers as CNI wants, but hangs for pods whose names begin with `hung` while the flag is there;
/// then fails for those that are to. Writes down what it was asked.
const PLUGIN: &str = r#"#!/bin/sh
cat > /dev/null
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'; exit 0 ;;
esac
name=${CNI_ARGS##*K8S_POD_NAME=}; name=${name%%;*}
echo "$CNI_COMMAND $name" >> DIRECTORY/calls
case "$CNI_COMMAND $name" in
ADD\ hung*) while [ -e DIRECTORY/hang ]; do sleep 0.05; done ;;
esac
case "$CNI_COMMAND $name" in
ADD\ *failed) echo '{"cniVersion":"1.0.0","code":100,"msg":"as it was told"}'; exit 1 ;;
ADD\ *) echo '{"cniVersion":"1.0.0","interfaces":[],"ips":[{"address":"10.9.8.7/24"}]}' ;;
esac
exit 0
"#;

/// Where the plugin is, the flag that makes it hang, and the configuration that uses it.
pub struct Plugin {
    pub directory: tempfile::TempDir,
    pub flag: std::path::PathBuf,
    pub extra: String,
}

pub fn plugin() -> Plugin {
    let directory = tempfile::tempdir().unwrap();
    let flag = directory.path().join("hang");
    std::fs::write(&flag, "").unwrap();
    let plugin = directory.path().join("pwtest");
    std::fs::write(&plugin, PLUGIN.replace("DIRECTORY", &directory.path().to_string_lossy())).unwrap();
    std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
    let list = r#"{"cniVersion":"1.0.0","name":"pwtest","plugins":[{"type":"pwtest"}]}"#;
    std::fs::write(directory.path().join("10-test.conflist"), list).unwrap();
    let extra = format!("mode = \"cni\"\ncni_conf_dir = {0:?}\ncni_bin_dirs = [{0:?}]", directory.path());
    Plugin { directory, flag, extra }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_cni_plugin_holds_up_nobody_else() {
    let Plugin { directory: _directory, flag, extra } = plugin();
    let daemon = Arc::new(Daemon::start_with(&extra).await);
    let hung = tokio::spawn({
        let daemon = Arc::clone(&daemon);
        async move { daemon.run_pod(pod("hung")).await }
    });
    let limit = Duration::from_secs(80);
    let others = async {
        for n in 0..3 {
            let pod = daemon.run_pod(pod(&format!("other-{n}"))).await;
            let (status, _) = daemon.outcome(&pod, script("main", "exit 3")).await;
            assert_eq!(status.exit_code, 3);
            let list = daemon.runtime().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await;
            assert!(list.unwrap().into_inner().items.iter().any(|item| item.id == pod.0));
            daemon.runtime().status(cri::StatusRequest::default()).await.unwrap();
            daemon.remove_pod(&pod.0).await.unwrap();
        }
    };
    tokio::time::timeout(limit, others).await.expect("nobody waits for a plugin of another pod");
    assert!(!hung.is_finished());
    std::fs::remove_file(&flag).unwrap();
    let pod = hung.await.unwrap();
    assert!(daemon.pod_ready(&pod.0).await);
    Arc::into_inner(daemon).unwrap().finish().await;
}

/// BEHAVIOUR 41: the daemon is a subreaper, so what a plugin leaves behind is its child in the end.
#[tokio::test(flavor = "multi_thread")]
async fn behaviour_41_what_a_plugin_leaves_behind_is_reaped() {
    let Plugin { directory, flag, extra } = plugin();
    std::fs::remove_file(flag).unwrap();
    let path = directory.path().join("pwtest");
    let script = std::fs::read_to_string(&path).unwrap();
    let orphan = "#!/bin/sh\n(sleep 0.5 & exec true) </dev/null >/dev/null 2>&1\n";
    std::fs::write(&path, script.replacen("#!/bin/sh\n", orphan, 1)).unwrap();
    let daemon = Daemon::start_with(&extra).await;
    daemon.run_pod(pod("orphan")).await;
    let seen = || children(daemon.pid()).into_iter().filter(|(name, _)| name == "sleep").collect::<Vec<_>>();
    eventually("the orphan is the daemon's", async || !seen().is_empty()).await;
    eventually("the orphan is reaped", async || seen().is_empty()).await;
    daemon.finish().await;
}

/// The names and states of a process's children.
fn children(pid: u32) -> Vec<(String, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<String> =
        lists.flat_map(|l| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect();
    let stats = pids.iter().filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    stats
        .filter_map(|stat| {
            let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
            Some((name.to_owned(), rest.split_whitespace().next()?.to_owned()))
        })
        .collect()
}
