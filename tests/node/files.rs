//! Files of the pod, volumes, and what a program inherits.

use podwright::cri::wire as cri;
use tonic::Code;

use crate::harness::{Daemon, context, mount, nsenter, pod, program, read_log, script, text};

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_26_hosts_hostname_and_resolv_conf() {
    let daemon = Daemon::start().await;
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let dns = |servers: &[&str], searches: &[&str], options: &[&str]| {
        let words = |w: &[&str]| w.iter().map(|w| (*w).to_owned()).collect();
        Some(cri::DnsConfig { servers: words(servers), searches: words(searches), options: words(options) })
    };
    let given = "search a.b c\nnameserver 10.9.8.7\noptions ndots:3";
    let rows = [
        ("copied", None, host.trim_end()),
        ("empty", dns(&[], &[], &[]), ""),
        ("given", dns(&["10.9.8.7"], &["a.b", "c"], &["ndots:3"]), given),
    ];
    for (name, dns, expected) in rows {
        let mut config = pod(name);
        config.dns_config = dns;
        let made = daemon.run_pod(config).await;
        let probe = script(
            "read",
            "hostname; cat /etc/hostname; grep -c localhost /etc/hosts; uname -n; cat /etc/resolv.conf",
        );
        let (_, lines) = daemon.outcome(&made, probe).await;
        let lines = text(&lines);
        let mut parts = lines.splitn(5, '\n');
        assert_eq!((parts.next(), parts.next()), (Some(name), Some(name)));
        assert!(parts.next().unwrap().parse::<u32>().unwrap() > 0, "{lines}");
        assert_eq!(parts.next(), Some(name));
        assert_eq!(parts.next().unwrap_or_default().trim_end(), expected, "{name}");
    }
    // The request's own mount wins.
    let made = daemon.run_pod(pod("own")).await;
    let file = daemon.dir.path().join("my-hosts");
    std::fs::write(&file, "10.1.1.1 mine\n").unwrap();
    let mut config = script("own", "cat /etc/hosts");
    config.mounts = vec![mount("/etc/hosts", &file)];
    let (_, lines) = daemon.outcome(&made, config).await;
    assert_eq!(text(&lines), "10.1.1.1 mine");
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_27_host_paths() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("volumes")).await;
    let dir = daemon.dir.path().join("volumes");
    std::fs::create_dir_all(dir.join("real/sub")).unwrap();
    std::os::unix::fs::symlink("real", dir.join("link")).unwrap();
    std::fs::write(dir.join("real/file"), "content\n").unwrap();
    let mut config = script(
        "volumes",
        "cat /link/file /single /deep/er/still/file; touch /read-only/x || echo refused; touch /link/y && echo ok; \
         stat -c %a /missing; ls -d /outer/inner /outer/sub",
    );
    config.mounts = vec![
        // The deeper one first: the sort puts it on top of the shallower one.
        mount("/outer/inner", &dir.join("real")),
        mount("/outer", &dir.join("link")),
        mount("/link", &dir.join("link")),
        mount("/single", &dir.join("real/file")),
        mount("/deep/er/still", &dir.join("real")),
        mount("/missing", &dir.join("not/there")),
        cri::Mount { readonly: true, ..mount("/read-only", &dir.join("real")) },
    ];
    // Read-only must find the mount targets made.
    context(&mut config).readonly_rootfs = true;
    let (_, lines) = daemon.outcome(&pod, config).await;
    let lines: Vec<_> = lines.iter().filter(|(s, _)| s == "stdout").map(|(_, l)| l.as_str()).collect();
    assert_eq!(
        lines,
        ["content", "content", "content", "refused", "ok", "755", "/outer/inner", "/outer/sub"]
    );
    assert!(dir.join("not/there").is_dir() && dir.join("real/y").exists());
    // An error names both ends of a volume.
    let mut config = script("broken", "true");
    config.mounts = vec![mount("/data", &dir.join("real/file/below"))];
    let error = daemon.create(&pod, config).await.unwrap_err();
    assert!(error.message().contains("/data") && error.message().contains("real/file/below"), "{error}");
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_27_recursive_read_only_and_propagation() {
    let daemon = Daemon::start().await;
    let mut config = pod("propagation");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let pod = daemon.run_pod(config).await;
    let dir = daemon.dir.path().join("tree");
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.to_str().unwrap();
    nsenter(&daemon, &["mount", "-t", "tmpfs", "source", path]);
    nsenter(&daemon, &["mkdir", &format!("{path}/sub"), &format!("{path}/late"), &format!("{path}/made")]);
    nsenter(&daemon, &["mount", "-t", "tmpfs", "below", &format!("{path}/sub")]);

    let mut config = script(
        "read-only",
        "touch /ro/sub/x && echo sub; touch /rro/sub/x && echo rro; touch /rro/x && echo rro; true",
    );
    config.mounts = vec![
        cri::Mount { readonly: true, ..mount("/ro", &dir) },
        cri::Mount { readonly: true, recursive_read_only: true, ..mount("/rro", &dir) },
    ];
    let (_, lines) = daemon.outcome(&pod, config).await;
    let lines: Vec<_> = lines.iter().filter(|(s, _)| s == "stdout").map(|(_, l)| l.as_str()).collect();
    assert_eq!(lines, ["sub"]);
    for bad in [
        cri::Mount { recursive_read_only: true, ..mount("/x", &dir) },
        cri::Mount { readonly: true, recursive_read_only: true, propagation: 1, ..mount("/x", &dir) },
    ] {
        let mut config = script("bad", "true");
        config.mounts = vec![bad];
        let error = daemon.create(&pod, config).await.unwrap_err();
        assert!(
            error.code() == Code::InvalidArgument && error.message().contains("recursive_read_only"),
            "{error}"
        );
    }

    let propagation = |name: &str, mode: cri::MountPropagation, text: &str| {
        let mut config = script(name, text);
        config.mounts = vec![cri::Mount { propagation: mode as i32, ..mount("/tree", &dir) }];
        context(&mut config).privileged = true;
        config
    };
    let both = propagation(
        "both",
        cri::MountPropagation::PropagationBidirectional,
        "mount -t tmpfs up /tree/made; touch /tree/made/in; sleep 1000",
    );
    let error = daemon.create(&pod, both.clone()).await.unwrap_err();
    assert!(error.message().contains("shared"), "{error}");
    nsenter(&daemon, &["mount", "--make-shared", path]);
    let private = daemon
        .run(&pod, propagation("private", cri::MountPropagation::PropagationPrivate, "sleep 1000"))
        .await;
    let slave = daemon
        .run(
            &pod,
            propagation(
                "slave",
                cri::MountPropagation::PropagationHostToContainer,
                "mount -t tmpfs no /tree/made; sleep 1000",
            ),
        )
        .await;
    nsenter(&daemon, &["mount", "-t", "tmpfs", "late", &format!("{path}/late")]);
    nsenter(&daemon, &["touch", &format!("{path}/late/seen")]);
    assert_eq!(daemon.exec(&private, &["ls", "/tree/late"]).await.unwrap().stdout, b"");
    assert_eq!(daemon.exec(&slave, &["ls", "/tree/late"]).await.unwrap().stdout, b"seen\n");
    assert_eq!(nsenter(&daemon, &["ls", &format!("{path}/made")]), "", "a slave mounts for itself alone");
    let both = daemon.run(&pod, both).await;
    let mut seen = String::new();
    for _ in 0..500 {
        seen = nsenter(&daemon, &["ls", &format!("{path}/made")]);
        if !seen.is_empty() {
            break;
        }
    }
    assert_eq!(seen, "in\n");
    for id in [private, slave, both] {
        daemon.remove(&id).await.unwrap();
    }
    // Nothing of a removed container holds the volume.
    nsenter(&daemon, &["umount", &format!("{path}/made")]);
    nsenter(&daemon, &["umount", &format!("{path}/late")]);
    nsenter(&daemon, &["umount", &format!("{path}/sub")]);
    nsenter(&daemon, &["umount", path]);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_40_what_a_program_inherits() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("forty")).await;
    // A shell ignores some signals itself.
    let mut config = script("signals", "");
    config.command = ["grep", "-E", "^Sig(Blk|Ign)|^ShdPnd", "/proc/self/status"].map(Into::into).into();
    let (_, lines) = daemon.outcome(&pod, config).await;
    let zero = "0000000000000000";
    assert_eq!(text(&lines), format!("ShdPnd:\t{zero}\nSigBlk:\t{zero}\nSigIgn:\t{zero}"));
    let probe = "umask; cut -d' ' -f1,5,6,7,18,19,41 /proc/1/stat; cat /proc/1/timerslack_ns; \
                 pwd";
    let mut config = script("main", probe);
    // To read the timer slack.
    let add_capabilities = vec!["SYS_NICE".into()];
    context(&mut config).capabilities = Some(cri::Capability { add_capabilities, ..Default::default() });
    let (_, lines) = daemon.outcome(&pod, config).await;
    let lines: Vec<_> = lines.iter().map(|(_, l)| l.as_str()).collect();
    // pid, process group, session, terminal, priority, nice, policy
    assert_eq!(lines[..2], ["0022", "1 1 1 0 20 0 0"]);
    assert_eq!(lines[2..4], ["50000", "/"]);
    let id = daemon.run(&pod, script("exec", "sleep 1000")).await;
    let out = daemon
        .exec(&id, &["sh", "-c", "umask; test $(cut -d' ' -f6 /proc/$$/stat) = $$ && echo leader"])
        .await
        .unwrap();
    let out = String::from_utf8(out.stdout).unwrap();
    assert_eq!(out, "0022\nleader\n");
    let out = daemon.exec(&id, &["grep", "-cE", "^Sig(Blk|Ign):.0{16}$", "/proc/self/status"]).await.unwrap();
    assert_eq!(out.stdout, b"2\n");
    daemon.finish().await;
}

/// What /proc does not show: session keyring, death signal, priorities, handlers.
#[tokio::test(flavor = "multi_thread")]
async fn behaviour_40_what_a_program_inherits_out_of_sight() {
    let daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("out-of-sight")).await;
    let expected =
        "pdeathsig 0\nsubreaper 0\nioprio 0\npolicy 0\nnice 0\ntimerslack 50000\nkeepcaps 0\nsecurebits 0\n";
    let mut keyrings = std::collections::BTreeSet::new();
    // A non-root user's process is dumpable too, whatever its maker was.
    for (name, user) in [("root", 0), ("user", 1000)] {
        let mut config = script(name, "/inherited; sleep 1000");
        program(&mut config, "inherited");
        context(&mut config).run_as_user = Some(cri::Int64Value { value: user });
        let id = daemon.run(&made, config).await;
        daemon.lines_of(&id, 10).await;
        let log = read_log(std::path::Path::new(&daemon.status(&id).await.log_path));
        let exec = String::from_utf8(daemon.exec(&id, &["/inherited"]).await.unwrap().stdout).unwrap();
        for found in [text(&log), exec] {
            let (keyring, rest) = found.split_once('\n').unwrap();
            assert_eq!(rest.trim_end(), format!("{expected}dumpable 1"), "{name}");
            keyrings.insert(keyring.to_owned());
        }
    }
    // Nobody shares another's session keyring.
    assert_eq!(keyrings.len(), 4, "{keyrings:?}");
    assert!(!keyrings.iter().any(|k| k.contains('-')), "{keyrings:?}");
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stdout_can_be_reopened_by_any_user() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("stdout")).await;
    let mut config =
        script("user", "echo a > /dev/stdout; echo b > /dev/stderr; echo c >> /proc/self/fd/1; echo d");
    context(&mut config).run_as_user = Some(cri::Int64Value { value: 1000 });
    let (status, lines) = daemon.outcome(&pod, config).await;
    assert_eq!(status.exit_code, 0, "{lines:?}");
    let of = |stream: &str| lines.iter().filter(|l| l.0 == stream).map(|l| l.1.clone()).collect::<String>();
    assert_eq!((of("stdout"), of("stderr")), ("acd".into(), "b".into()));
    daemon.finish().await;
}
