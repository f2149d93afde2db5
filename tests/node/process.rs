//! What a program finds when it starts: its arguments, limits, devices and file systems.

use podwright::cri::wire as cri;

use crate::harness::{Daemon, context, int, nsenter, pod, privileged_pod, rename, script, text};

// ---- 19: arguments and environment ----------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_19_command_and_args() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("nineteen")).await;
    let run = async |name: &str, command: &[&str], args: &[&str]| {
        let mut config = script(name, "");
        config.command = command.iter().map(|a| (*a).into()).collect();
        config.args = args.iter().map(|a| (*a).into()).collect();
        let (status, lines) = daemon.outcome(&pod, config).await;
        (status.exit_code, text(&lines))
    };
    assert_eq!(run("args", &[], &["echo", "from", "args"]).await, (0, "from args".into()));
    assert_eq!(run("both", &["echo", "-n"], &["a b", ""]).await, (0, "a b ".into()));
    // The image's Cmd is `sh`: it is dropped, and by itself ends at the end of its input.
    assert_eq!(run("command", &["echo"], &[]).await, (0, String::new()));
    assert_eq!(run("neither", &[], &[]).await, (0, String::new()));
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_19_the_environment() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("environment")).await;
    let bytes = b"\xff\xfe=\n\x01 z";
    let mut config = script("env", "hexdump -ve '1/1 \"%02x\"' /proc/1/environ; echo; sleep 1000");
    config.envs = vec![
        cri::KeyValue { key: "BYTES".into(), value: bytes.to_vec() },
        cri::KeyValue { key: "EMPTY".into(), value: Vec::new() },
    ];
    let id = daemon.run(&pod, config).await;
    let exec = daemon.exec(&id, &["cat", "/proc/self/environ"]).await.unwrap().stdout;
    let of_exec: Vec<&[u8]> = exec.split(|b| *b == 0).collect();
    let mut expected = vec![b"PATH=/bin:/usr/bin".to_vec(), b"FROM_IMAGE=yes".to_vec()];
    expected.extend([b"HOSTNAME=environment".to_vec(), b"HOME=/root".to_vec(), b"EMPTY=".to_vec()]);
    expected.push([b"BYTES=".as_slice(), bytes].concat());
    for entry in &expected {
        assert!(of_exec.contains(&entry.as_slice()), "{:?}", exec.escape_ascii().to_string());
    }
    assert!(!of_exec.iter().any(|e| e.starts_with(b"TERM=")), "TERM is for terminals");
    let lines = daemon.lines_of(&id, 1).await;
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    for entry in &expected {
        assert!(lines[0].1.contains(&format!("{}00", hex(entry))), "{}", entry.escape_ascii());
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_19_the_bytes_of_the_environment_outlive_the_daemon() {
    let mut daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("bytes")).await;
    let mut config = script("env", "sleep 1000");
    config.envs = vec![cri::KeyValue { key: "BYTES".into(), value: b"\xff\xfe".to_vec() }];
    let id = daemon.run(&pod, config).await;
    daemon.kill();
    daemon.start_again().await;
    let out = daemon.exec(&id, &["sh", "-c", "printf %s \"$BYTES\""]).await.unwrap();
    assert_eq!(out.stdout, b"\xff\xfe");
    daemon.finish().await;
}

// ---- 23, 24, 25: limits, devices, file systems -----------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_23_oom_score_and_limits() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("limits")).await;
    // Without CAP_SYS_RESOURCE a score cannot be lowered: it stays the daemon's.
    let of_daemon = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", daemon.pid())).unwrap();
    let effective =
        of_daemon("status").lines().find_map(|l| l.strip_prefix("CapEff:\t").map(str::to_owned)).unwrap();
    let may_lower = u64::from_str_radix(&effective, 16).unwrap() & (1 << 24) != 0;
    let lowest = if may_lower { -1000 } else { of_daemon("oom_score_adj").trim().parse().unwrap() };
    for adj in [-1000, 0, 321, 1000] {
        let mut config = script(&format!("adj{adj}"), "cat /proc/self/oom_score_adj; ulimit -c; ulimit -n");
        config.linux.as_mut().unwrap().resources =
            Some(cri::LinuxContainerResources { oom_score_adj: adj, ..Default::default() });
        let (_, lines) = daemon.outcome(&pod, config).await;
        assert_eq!(lines[0].1, adj.max(lowest).to_string());
        // By default no core files, and as many descriptors as the daemon may give.
        assert_eq!(lines[1].1, "0");
        assert!(lines[2].1.parse::<u64>().is_ok_and(|n| n >= 1024), "{lines:?}");
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_24_devices_and_file_systems() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("devices")).await;
    let mut config = script(
        "plain",
        "ls /dev | tr '\\n' ' '; echo; stat -c '%a %t %T' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty | tr '\\n' ' '; echo; \
         for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done | tr '\\n' ' '; echo; \
         awk '$5 ~ \"^/sys\" {print $5, $6}' /proc/self/mountinfo; \
         mkdir /sys/fs/cgroup/x 2>/dev/null && echo cgroup writable; \
         touch /file && echo root writable",
    );
    let (_, lines) = daemon.outcome(&pod, config.clone()).await;
    assert_eq!(
        lines[0].1.trim(),
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
    assert_eq!(lines[1].1.trim(), "666 1 3 666 1 5 666 1 7 666 1 8 666 1 9 666 5 0");
    assert_eq!(lines[2].1.trim(), "/proc/self/fd /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 pts/ptmx");
    let rest: Vec<&str> = lines[3..].iter().map(|(_, line)| line.as_str()).collect();
    let (mounts, writes): (Vec<&str>, Vec<&str>) = rest.iter().partition(|l| l.starts_with("/sys"));
    assert!(mounts.iter().any(|l| l.starts_with("/sys/fs/cgroup")), "{mounts:?}");
    for line in mounts {
        let options = line.split_once(' ').unwrap().1;
        for option in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(options.split(',').any(|o| o == option), "{option}: {line}");
        }
    }
    assert_eq!(writes, ["root writable"]);
    rename(&mut config, "readonly");
    context(&mut config).readonly_rootfs = true;
    context(&mut config).no_new_privs = true;
    config.command[2] =
        "touch /file && echo written; touch /dev/shm/x && echo shm; touch /etc/hosts && echo hosts; \
                         echo > /dev/null && echo null; grep ^NoNewPrivs: /proc/self/status"
            .into();
    let (_, lines) = daemon.outcome(&pod, config).await;
    let lines: Vec<_> = lines.iter().filter(|(s, _)| s == "stdout").map(|(_, l)| l.as_str()).collect();
    assert_eq!(lines, ["shm", "null", "NoNewPrivs:\t1"]);
    daemon.finish().await;
}

/// A node may be made by who has CAP_MKNOD; what it opens is the cgroup's affair.
#[tokio::test(flavor = "multi_thread")]
async fn behaviour_24_devices_are_enforced() {
    let daemon = Daemon::start().await;
    let plain = daemon.run_pod(pod("denied")).await;
    // 10:229 is fuse: opening it does nothing, and it is not in the default set.
    let probe = "test -e /dev/asked || mknod /dev/asked c 10 229; { exec 3< /dev/asked; } && echo read; \
                 { exec 4> /dev/asked; } && echo written; mknod /tmp/zero c 1 5; head -c 1 /tmp/zero | wc -c; \
                 mknod /tmp/memory c 1 1; head -c 1 /tmp/memory | wc -c; mknod /tmp/disk b 7 0; head -c 1 /tmp/disk | wc -c";
    // Each in a shell of its own, since a failed exec ends one.
    let probe = probe.replace("{ exec", "sh -c 'exec").replace("/dev/asked; }", "/dev/asked'");
    let with = |name: &str, permissions: &str| {
        let mut config = script(name, &format!("{{ {probe}; }} 2> /dev/null"));
        if !permissions.is_empty() {
            config.devices.push(cri::Device {
                container_path: "/dev/asked".into(),
                host_path: "/dev/fuse".into(),
                permissions: permissions.into(),
            });
        }
        config
    };
    for (name, permissions, expected) in [
        ("none", "", "1\n0\n0"),
        ("reads", "r", "read\n1\n0\n0"),
        ("writes", "w", "written\n1\n0\n0"),
        ("both", "rwm", "read\nwritten\n1\n0\n0"),
    ] {
        let (_, lines) = daemon.outcome(&plain, with(name, permissions)).await;
        assert_eq!(text(&lines), expected, "{name}");
    }
    // An exec is no way around, and neither is an update.
    let mut config = script("exec", "sleep 1000");
    config.command[2] = "mknod /dev/asked c 10 229; echo made; sleep 1000".into();
    let id = daemon.run(&plain, config).await;
    daemon.lines_of(&id, 1).await;
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(cri::LinuxContainerResources { cpu_shares: 700, ..Default::default() }),
        ..Default::default()
    };
    daemon.runtime().update_container_resources(request).await.unwrap();
    let out = daemon.exec(&id, &["sh", "-c", "exec 3< /dev/asked"]).await.unwrap();
    let error = String::from_utf8(out.stderr).unwrap();
    assert!(out.exit_code != 0 && error.contains("not permitted"), "{error}");
    // Privileged: everything.
    let privileged = daemon.run_pod(privileged_pod("privileged")).await;
    let mut config = with("everything", "");
    context(&mut config).privileged = true;
    let (_, lines) = daemon.outcome(&privileged, config).await;
    assert!(text(&lines).starts_with("read\nwritten\n1\n"), "{lines:?}");
    daemon.finish().await;
}

/// A privileged container has its cgroup for writing.
#[tokio::test(flavor = "multi_thread")]
async fn behaviour_24_a_privileged_container_writes_its_cgroup() {
    let daemon = Daemon::start().await;
    let privileged = daemon.run_pod(privileged_pod("privileged")).await;
    let probe = "cd /sys/fs/cgroup; for d in . *; do mkdir $d/made 2>/dev/null && rmdir $d/made && echo made; done | sort -u";
    let mut config = script("writes", probe);
    context(&mut config).privileged = true;
    let (_, lines) = daemon.outcome(&privileged, config.clone()).await;
    assert_eq!(text(&lines), "made");
    rename(&mut config, "reads");
    context(&mut config).privileged = false;
    let (_, lines) = daemon.outcome(&privileged, config).await;
    assert_eq!(text(&lines), "");
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_24_a_terminal_has_a_console() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("tty")).await;
    let mut config = script(
        "tty",
        "tty; stat -c %F /dev/console; test -t 0 && test -t 2 && echo terminal; echo err >&2; echo $TERM; echo > /dev/tty && echo controlling; stat -c %u /dev/pts/0",
    );
    config.tty = true;
    config.stdin = true;
    context(&mut config).run_as_user = int(1000);
    let (_, lines) = daemon.outcome(&pod, config).await;
    assert!(lines.iter().all(|(stream, _)| stream == "stdout"), "{lines:?}");
    let lines: Vec<_> =
        lines.iter().map(|(_, l)| l.trim_end_matches('\r')).filter(|l| !l.is_empty()).collect();
    assert!(["/dev/pts/0", "/dev/console"].contains(&lines[0]), "{lines:?}");
    assert_eq!(lines[1..], ["character special file", "terminal", "err", "xterm", "controlling", "1000"]);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_24_sysctls() {
    let daemon = Daemon::start().await;
    let mut config = pod("sysctls");
    let sysctls = &mut config.linux.as_mut().unwrap().sysctls;
    for (key, value) in [
        ("kernel.shm_rmid_forced", "1"),
        ("net.core.somaxconn", "777"),
        ("net/ipv4/ip_local_port_range", "2000 3000"),
        ("kernel.msgmax", "9000"),
        ("kernel.domainname", "example.org"),
    ] {
        sysctls.insert(key.into(), value.into());
    }
    let made = daemon.run_pod(config).await;
    let (_, lines) = daemon
        .outcome(&made, script("read", "cd /proc/sys; cat kernel/shm_rmid_forced net/core/somaxconn net/ipv4/ip_local_port_range kernel/msgmax kernel/domainname"))
        .await;
    assert_eq!(text(&lines), "1\n777\n2000\t3000\n9000\nexample.org");
    let outside = std::fs::read_to_string("/proc/sys/kernel/msgmax").unwrap();
    assert_ne!(outside.trim(), "9000", "a sysctl of the pod reached the node");
    // CVE-2022-0811 and what else is not the pod's alone.
    let core = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let rows = [
        ("vm.swappiness", "1"),
        ("kernel.core_pattern", "|/x"),
        ("net/../kernel/core_pattern", "|/x"),
        ("net.ipv4.ip_forward+kernel.core_pattern", "1"),
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/x"),
        ("kernel.shm_rmid_forced=1\nkernel.core_pattern", "|/x"),
        ("", "1"),
        ("kernel.hostname", "x"),
        ("net.no.such_thing", "1"),
    ];
    for (key, value) in rows {
        let mut config = pod("bad");
        config.linux.as_mut().unwrap().sysctls.insert(key.into(), value.into());
        let request = cri::RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let error = daemon.runtime().run_pod_sandbox(request).await.expect_err(key);
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{key:?}={value:?}: {error}");
        assert!(error.message().contains(&format!("{key:?}")), "{error}");
    }
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), core);
    // With the node's network a net sysctl would be the node's.
    let mut config = pod("host");
    let linux = config.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap().namespace_options.as_mut().unwrap().network =
        cri::NamespaceMode::Node as i32;
    for key in ["net.core.somaxconn", "kernel.domainname"] {
        let mut config = config.clone();
        config.linux.as_mut().unwrap().sysctls.insert(key.into(), "778".into());
        let request = cri::RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let error = daemon.runtime().run_pod_sandbox(request).await.unwrap_err();
        assert!(error.message().contains(key) && error.message().contains("shares"), "{error}");
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_25_shm_is_shared_in_the_pod() {
    let daemon = Daemon::start().await;
    let one = daemon.run_pod(pod("shm")).await;
    let other = daemon.run_pod(pod("other")).await;
    let id = daemon.run(&one, script("writer", "echo shared > /dev/shm/file; sleep 1000")).await;
    for _ in 0..500 {
        if daemon.exec(&id, &["cat", "/dev/shm/file"]).await.unwrap().stdout == b"shared\n" {
            break;
        }
    }
    let probe =
        "cat /dev/shm/file; stat -c %a /dev/shm; awk '$5 == \"/dev/shm\" {print $6}' /proc/self/mountinfo";
    let (_, lines) = daemon.outcome(&one, script("reader", probe)).await;
    assert_eq!(lines[..2].iter().map(|l| l.1.as_str()).collect::<Vec<_>>(), ["shared", "1777"]);
    for option in ["rw", "nosuid", "nodev", "noexec"] {
        assert!(lines[2].1.split(',').any(|o| o == option), "{lines:?}");
    }
    let (_, lines) =
        daemon.outcome(&other, script("reader", "ls /dev/shm | wc -l; df /dev/shm | wc -l")).await;
    assert_eq!(text(&lines), "0\n2");
    // IPC of the node: its /dev/shm.
    let mut config = pod("node");
    let options =
        config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options.as_mut().unwrap();
    options.ipc = cri::NamespaceMode::Node as i32;
    let node = daemon.run_pod(config).await;
    let mut config = script("reader", "readlink /proc/self/ns/ipc; stat -c '%d %i' /dev/shm");
    context(&mut config).namespace_options.as_mut().unwrap().ipc = cri::NamespaceMode::Node as i32;
    let (_, lines) = daemon.outcome(&node, config).await;
    let ours = nsenter(&daemon, &["stat", "-c", "%d %i", "/dev/shm"]);
    let ipc = std::fs::read_link("/proc/self/ns/ipc").unwrap();
    assert_eq!(text(&lines), format!("{}\n{}", ipc.display(), ours.trim()));
    daemon.finish().await;
}
