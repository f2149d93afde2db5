//! Ways out of a container that other runtimes have had.

use podwright::cri::wire as cri;

use crate::harness::{Daemon, add_capabilities, context, mount, pod, read_log, script, text};

/// CVE-2019-5736: a program that is `/proc/self/exe` gets the runtime's own file to write to.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_5736_the_runtime_is_no_file_to_write_to() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("exe")).await;
    let binary = env!("CARGO_BIN_EXE_podwright-keeper");
    let before = std::fs::read(binary).unwrap();
    let main = daemon.run(&pod, script("main", "sleep 1000")).await;
    // What it executes is the keeper's image at the moment of the execve.
    let mut config = script("init", "");
    config.command = vec!["/proc/self/exe".into()];
    match daemon.create(&pod, config).await {
        Ok(id) => drop(daemon.start_container(&id).await),
        Err(error) => assert!(error.message().contains("/proc/self/exe"), "{error}"),
    }
    let _ = daemon.exec(&main, &["/proc/self/exe", "keeper"]).await;
    // A parked container and a running exec, seen from a container that shares their PID namespace,
    // and may trace them.
    let mut attacker = script(
        "attacker",
        "i=0; while test $i -lt 300; do i=$((i+1)); for p in /proc/[0-9]*; do \
         case \"$(readlink $p/exe)\" in */busybox|'') ;; *) echo found $p $(readlink $p/exe); \
         { echo overwritten > $p/exe; } 2>/dev/null && echo wrote $p; esac; done; done",
    );
    add_capabilities(&mut attacker, &["SYS_PTRACE"]);
    let options = context(&mut attacker).namespace_options.as_mut().unwrap();
    (options.pid, options.target_id) = (cri::NamespaceMode::Target as i32, main.clone());
    let attacker = daemon.run(&pod, attacker).await;
    while daemon.status(&attacker).await.state == cri::ContainerState::ContainerRunning as i32 {
        daemon.exec(&main, &["true"]).await.unwrap();
    }
    let log = read_log(std::path::Path::new(&daemon.status(&attacker).await.log_path));
    assert!(!text(&log).contains("wrote"), "{log:?}");
    assert!(std::fs::read(binary).unwrap() == before, "the keeper's binary was written to");
    daemon.finish().await;
}

/// CVE-2024-21626 and its kin: descriptors of the runtime that a program inherits or can name.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_21626_no_descriptor_of_the_runtime_is_inside() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("leak")).await;
    let mut config = script("fds", "");
    config.command = vec!["ls".into(), "/proc/self/fd".into()];
    // 3 is the directory that ls reads.
    let (_, lines) = daemon.outcome(&pod, config).await;
    assert_eq!(text(&lines), "0\n1\n2\n3");
    let id = daemon.run(&pod, script("main", "sleep 1000")).await;
    assert_eq!(daemon.exec(&id, &["ls", "/proc/self/fd"]).await.unwrap().stdout, b"0\n1\n2\n3\n");
    for number in 0..40 {
        for directory in [format!("/proc/self/fd/{number}"), format!("/proc/self/fd/{number}/../../..")] {
            let mut config = script(
                &format!("cwd-{number}-{}", directory.len()),
                "pwd -P; ls -d /work /usr 2>/dev/null; ls ../../../../..",
            );
            config.working_dir = directory.clone();
            let Ok(id) = daemon.create(&pod, config).await else { continue };
            if daemon.start_container(&id).await.is_ok() {
                let status = daemon.wait(&id).await;
                let log = text(&read_log(std::path::Path::new(&status.log_path)));
                assert!(!log.contains("usr"), "{directory}: {log}");
            }
            daemon.remove(&id).await.unwrap();
        }
    }
    // A link in the image that leads there is no better.
    let error = daemon.exec(&id, &["sh", "-c", "ln -s /proc/self/fd/7/ /cwd; ls /cwd/"]).await.unwrap();
    assert_ne!(error.exit_code, 0);
    daemon.finish().await;
}

/// What a process has as its input where nothing is connected is no file of the node's.
#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_null_device_stays_as_it_is() {
    use std::os::unix::fs::MetadataExt;
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("null")).await;
    let change = "chmod 600 /proc/self/fd/0 2>/dev/null && echo changed; \
                  chown 5 /proc/self/fd/0 2>/dev/null && echo given; echo x >&0 && readlink /proc/self/fd/0";
    let (_, lines) = daemon.outcome(&pod, script("main", change)).await;
    assert_eq!(lines, [("stdout".into(), "/dev/null".into())]);
    let id = daemon.run(&pod, script("other", "sleep 1000")).await;
    let output = daemon.exec(&id, &["sh", "-c", change]).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "/dev/null\n");
    let node = std::fs::metadata("/dev/null").unwrap();
    assert_eq!((node.mode() & 0o777, node.uid()), (0o666, 0));
    daemon.finish().await;
}

/// CVE-2021-30465: a volume that contains a link, as the target of the next mount.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2021_30465_mount_targets_stay_inside() {
    use std::os::unix::fs::symlink;
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("links")).await;
    let dir = daemon.dir.path().join("volume");
    let outside = daemon.dir.path().join("outside");
    let data = daemon.dir.path().join("data");
    for path in [&dir, &outside, &data] {
        std::fs::create_dir_all(path).unwrap();
    }
    std::fs::write(data.join("mark"), "").unwrap();
    // A name that nobody else gives anything on this machine.
    let placed = daemon.dir.path().file_name().unwrap().to_str().unwrap().replace("test", "placed");
    symlink("/", dir.join("root")).unwrap();
    symlink(&outside, dir.join("absolute")).unwrap();
    symlink("../../../../../../../../tmp", dir.join("relative")).unwrap();
    symlink("/proc", dir.join("proc")).unwrap();
    for (name, target) in [
        ("absolute", "/volume/absolute"),
        ("absolute-below", "/volume/absolute/new/er"),
        ("relative", &format!("/volume/relative/{placed}")),
        ("root", &format!("/volume/root/{placed}")),
        ("proc", "/volume/proc/self"),
        ("proc-sys", "/volume/proc/sys"),
        ("real-proc", "/proc/1/attr"),
    ] {
        let mut config = script(name, &format!("ls {target}/mark"));
        config.mounts = vec![mount("/volume", &dir), mount(target, &data)];
        match daemon.create(&pod, config).await {
            Ok(id) => {
                assert!(!name.contains("proc"), "a mount over procfs was made: {target}");
                daemon.start_container(&id).await.unwrap();
                assert_eq!(daemon.wait(&id).await.exit_code, 0, "{name}: mounted inside");
                daemon.remove(&id).await.unwrap();
            }
            Err(error) => assert!(error.message().contains(target), "{target}: {error}"),
        }
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "something was made outside");
    for directory in ["/", "/tmp"] {
        assert!(!std::path::Path::new(directory).join(&placed).exists(), "made in the node's {directory}");
    }
    daemon.finish().await;
}

/// CVE-2025-31133, CVE-2025-52565, CVE-2023-25809: masks and the cgroup as hostile images want them.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_31133_masks_cover_what_they_name() {
    use std::os::unix::fs::symlink;
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("masks")).await;
    let volume = daemon.dir.path().join("dev");
    std::fs::create_dir_all(volume.join("shm")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", volume.join("null")).unwrap();
    // The request's own /dev, whose `null` leads elsewhere.
    let mut config = script(
        "null",
        "wc -c < /proc/timer_list; { echo '|/x' > /proc/timer_list; } 2>/dev/null; cat /proc/sys/kernel/core_pattern",
    );
    config.mounts = vec![mount("/dev", &volume)];
    context(&mut config).masked_paths = vec!["/proc/timer_list".into()];
    context(&mut config).readonly_paths = vec!["/proc/sys".into()];
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    match daemon.create(&pod, config).await {
        Ok(id) => {
            daemon.start_container(&id).await.unwrap();
            let status = daemon.wait(&id).await;
            assert!(text(&read_log(std::path::Path::new(&status.log_path))).starts_with("0\n"));
        }
        Err(error) => assert!(error.message().contains("/proc/timer_list"), "{error}"),
    }
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    // A link where a mask should be covers what it leads to, and it must be there inside.
    let etc = daemon.dir.path().join("etc");
    std::fs::create_dir_all(&etc).unwrap();
    symlink("/etc/passwd", etc.join("secret")).unwrap();
    let mut config = script("link", "wc -c < /files/secret; wc -c < /etc/passwd");
    config.mounts = vec![mount("/files", &etc)];
    context(&mut config).masked_paths = vec!["/files/secret".into()];
    let (_, lines) = daemon.outcome(&pod, config).await;
    assert_eq!(text(&lines), "0\n0");
    assert!(std::fs::metadata("/etc/passwd").unwrap().len() > 0);
    // Whatever capabilities it has, an unprivileged container does not write its cgroup's limits.
    let mut config = script(
        "cgroup",
        "for f in $(find /sys/fs/cgroup -type f 2>/dev/null); do { echo 1 > $f; } 2>/dev/null && echo wrote $f; done; \
         find /sys/fs/cgroup -type d | while read d; do mkdir $d/x 2>/dev/null && echo made $d/x; done; cat /proc/self/cgroup",
    );
    add_capabilities(&mut config, &["NET_ADMIN", "DAC_OVERRIDE"]);
    let (_, lines) = daemon.outcome(&pod, config).await;
    let lines = text(&lines);
    assert!(!lines.contains("wrote") && !lines.contains("made"), "{lines}");
    assert!(lines.lines().all(|l| l.ends_with(":/")), "the cgroup namespace hides the host's names: {lines}");
    daemon.finish().await;
}

/// CVE-2025-52565: a terminal's /dev/console is bound over a path that the container's files choose.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_52565_the_console_stays_inside() {
    use std::os::unix::fs::symlink;
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("console")).await;
    let core = || std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let before = core();
    let victim = daemon.dir.path().join("victim");
    std::fs::write(&victim, "untouched").unwrap();
    for (name, target) in [
        ("procfs", "/proc/sys/kernel/core_pattern"),
        ("trigger", "/proc/sysrq-trigger"),
        ("relative", "../../../../../../../../proc/sys/kernel/core_pattern"),
        ("outside", victim.to_str().unwrap()),
        ("passwd", "/etc/passwd"),
    ] {
        let dev = daemon.dir.path().join(name);
        std::fs::create_dir_all(dev.join("pts")).unwrap();
        std::fs::create_dir_all(dev.join("shm")).unwrap();
        symlink(target, dev.join("console")).unwrap();
        // Masks and the like come after it: who had a core_pattern to write to would write now.
        let mut config = script(
            name,
            "{ echo '|/evil' > /proc/sys/kernel/core_pattern; } 2>/dev/null; echo evil > /dev/console; true",
        );
        config.tty = true;
        config.mounts = vec![mount("/dev", &dev)];
        context(&mut config).readonly_paths = vec!["/proc/sys".into(), "/proc/sysrq-trigger".into()];
        if let Ok(id) = daemon.create(&pod, config).await {
            let _ = daemon.start_container(&id).await;
            daemon.wait(&id).await;
            daemon.remove(&id).await.unwrap();
        }
        assert_eq!(core(), before, "{name}");
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched", "{name}");
    }
    daemon.finish().await;
}

/// CVE-2025-52881, CVE-2019-16884: what is written for a container through procfs must not land in
/// something that it has put over procfs.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_52881_nothing_is_written_through_a_false_procfs() {
    use std::os::unix::fs::symlink;
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("procfs")).await;
    let fake = daemon.dir.path().join("fake");
    std::fs::create_dir_all(fake.join("self/attr")).unwrap();
    std::fs::create_dir_all(fake.join("sys/kernel")).unwrap();
    let victim = daemon.dir.path().join("victim");
    for path in [victim.clone(), fake.join("self/oom_score_adj"), fake.join("self/attr/exec")] {
        std::fs::write(path, "untouched").unwrap();
    }
    symlink(&victim, fake.join("sys/kernel/shm_rmid_forced")).unwrap();
    for target in ["/proc", "/proc/self", "/proc/sys", "/proc/thread-self/attr", "/proc/1", "/proc/../proc"] {
        let mut config = script("over", "true");
        config.mounts = vec![mount(target, &fake)];
        config.linux.as_mut().unwrap().resources =
            Some(cri::LinuxContainerResources { oom_score_adj: 555, ..Default::default() });
        // Refused, or it has the score that was asked for and the false file has not.
        match daemon.create(&pod, config).await {
            Err(error) => assert!(error.message().contains("proc"), "{target}: {error}"),
            Ok(id) => {
                let adj =
                    std::fs::read_to_string(format!("/proc/{}/oom_score_adj", daemon.pid_of(&id).await));
                assert_eq!(adj.unwrap().trim(), "555", "{target}");
                daemon.remove(&id).await.unwrap();
            }
        }
    }
    for path in [victim, fake.join("self/oom_score_adj"), fake.join("self/attr/exec")] {
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "untouched", "{}", path.display());
    }
    daemon.finish().await;
}

/// CVE-2022-23648: the image's VOLUMEs, some of which lead out of it (`layout`), bring nothing of
/// the node in.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_23648_volumes_of_an_image_bring_nothing_in() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("volumes")).await;
    let (_, lines) =
        daemon.outcome(&pod, script("main", "ls /etc /volume /up 2>/dev/null; ls -d /usr /boot")).await;
    let out = text(&lines);
    let own = ["passwd", "group", "hosts", "hostname", "resolv.conf", "/etc:", "/volume:", "/up:", ""];
    assert!(out.lines().all(|line| own.contains(&line)), "{out}");
    daemon.finish().await;
}

/// Another process of the node, or of the pod's neighbours, is out of reach.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_node_is_seen() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("view")).await;
    let (_, lines) = daemon
        .outcome(
            &pod,
            script(
                "view",
                "awk '{print $4, $5}' /proc/self/mountinfo; ls / | tr '\\n' ' '; ls /proc | grep -c '^[0-9]'",
            ),
        )
        .await;
    let out = text(&lines);
    assert!(!out.contains("oldroot") && !out.contains("pivot"), "{out}");
    for namespace in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let (_, lines) = daemon
            .outcome(&pod, script(&format!("ns-{namespace}"), &format!("readlink /proc/self/ns/{namespace}")))
            .await;
        let ours = std::fs::read_link(format!("/proc/{}/ns/{namespace}", daemon.pid())).unwrap();
        assert_ne!(text(&lines), ours.to_str().unwrap(), "{namespace}");
    }
    daemon.finish().await;
}
