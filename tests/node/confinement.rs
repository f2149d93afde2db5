//! Who a program is and what it may do: user, capabilities, filter, masked paths.

use std::collections::BTreeMap;

use podwright::cri::wire as cri;
use tonic::Code;

use crate::harness::{Daemon, context, int, pod, privileged_pod, rename, script, text};

type Pod = (String, cri::PodSandboxConfig);

/// The fields of /proc/self/status of a program with this configuration.
async fn proc_status(
    daemon: &Daemon,
    pod: &Pod,
    mut config: cri::ContainerConfig,
) -> BTreeMap<String, String> {
    config.command = vec!["cat".into(), "/proc/self/status".into()];
    let (status, lines) = daemon.outcome(pod, config).await;
    assert_eq!(status.exit_code, 0, "{status:?} {lines:?}");
    let fields = lines.iter().filter_map(|(_, line)| line.split_once(':'));
    fields.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

fn profile(kind: cri::security_profile::ProfileType, path: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: kind as i32, localhost_ref: path.into() })
}

// ---- 20: the user ---------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_20_user_and_groups() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("twenty")).await;
    type Change = fn(&mut cri::LinuxContainerSecurityContext);
    type Ids<'a> = (u32, u32, &'a [u32]);
    let rows: [(&str, Change, Ids<'_>, &str); 7] = [
        ("image", |_| (), (0, 0, &[0]), "/root"),
        ("uid", |c| c.run_as_user = int(1000), (1000, 1000, &[1000, 50000]), "/home/default-user"),
        ("name", |c| c.run_as_username = "www-data".into(), (33, 33, &[33]), "/var/www"),
        (
            "group",
            |c| {
                c.run_as_user = int(1000);
                c.run_as_group = int(33);
            },
            (1000, 33, &[33, 50000]),
            "/home/default-user",
        ),
        (
            "merge",
            |c| {
                c.run_as_username = "default-user".into();
                c.supplemental_groups = vec![7, 50000, 8];
            },
            (1000, 1000, &[1000, 50000, 7, 8]),
            "/home/default-user",
        ),
        (
            "strict",
            |c| {
                c.run_as_user = int(1000);
                c.supplemental_groups = vec![7];
                c.supplemental_groups_policy = cri::SupplementalGroupsPolicy::Strict as i32;
            },
            (1000, 1000, &[1000, 7]),
            "/home/default-user",
        ),
        ("unknown", |c| c.run_as_user = int(4242), (4242, 0, &[0]), "/"),
    ];
    for (name, change, (uid, gid, groups), home) in rows {
        let mut config = script(name, "");
        change(context(&mut config));
        config.command =
            ["sh", "-c", "id -u; id -g; grep ^Groups: /proc/self/status; echo $HOME"].map(Into::into).into();
        let (status, lines) = daemon.outcome(&pod, config).await;
        let lines: Vec<&str> = lines.iter().map(|(_, line)| line.as_str()).collect();
        assert_eq!((lines[0], lines[1], lines[3]), (&*uid.to_string(), &*gid.to_string(), home), "{name}");
        let sorted = |groups: Vec<u32>| std::collections::BTreeSet::from_iter(groups);
        let seen = lines[2].split_whitespace().skip(1).map(|g| g.parse().unwrap()).collect();
        assert_eq!(sorted(seen), sorted(groups.to_vec()), "{name}");
        let user = status.user.unwrap().linux.unwrap();
        let reported = user.supplemental_groups.iter().map(|g| *g as u32).collect();
        assert_eq!(
            (user.uid, user.gid, sorted(reported)),
            (uid.into(), gid.into(), sorted(groups.to_vec())),
            "{name}"
        );
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_20_users_that_are_refused() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("refused")).await;
    type Change = fn(&mut cri::LinuxContainerSecurityContext);
    let rows: [(Change, &str); 5] = [
        (|c| c.run_as_group = int(33), "run_as_group"),
        (|c| c.run_as_user = int(1 << 32), "run_as_user"),
        (|c| c.run_as_user = int(-1), "run_as_user"),
        (|c| c.run_as_username = "nobody-here".into(), "nobody-here"),
        (|c| c.supplemental_groups = vec![1 << 40], "supplemental_groups"),
    ];
    for (change, name) in rows {
        let mut config = script("bad", "true");
        change(context(&mut config));
        let error = daemon.create(&pod, config).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(name), "{name}: {error}");
    }
    daemon.finish().await;
}

// ---- 21: capabilities -----------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_21_capabilities() {
    const DEFAULT: u64 = 0xa804_25fb;
    const NET_ADMIN: u64 = 1 << 12;
    const NET_BIND_SERVICE: u64 = 1 << 10;
    let daemon = Daemon::start().await;
    let own = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let all = own.lines().find_map(|l| l.strip_prefix("CapBnd:")).unwrap().trim();
    let all = u64::from_str_radix(all, 16).unwrap();
    let plain = daemon.run_pod(pod("capabilities")).await;
    let privileged = daemon.run_pod(privileged_pod("privileged")).await;
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let caps = |add: &[&str], drop: &[&str], ambient: &[&str]| {
        Some(cri::Capability {
            add_capabilities: words(add),
            drop_capabilities: words(drop),
            add_ambient_capabilities: words(ambient),
        })
    };
    // (name, capabilities, user, privileged) → (bounding, permitted and effective, ambient and inheritable)
    let rows = [
        ("default", None, 0, false, (DEFAULT, DEFAULT, 0)),
        ("add", caps(&["NET_ADMIN"], &[], &[]), 0, false, (DEFAULT | NET_ADMIN, DEFAULT | NET_ADMIN, 0)),
        (
            "prefix",
            caps(&["CAP_NET_ADMIN"], &["cap_chown"], &[]),
            0,
            false,
            (DEFAULT & !1 | NET_ADMIN, DEFAULT & !1 | NET_ADMIN, 0),
        ),
        ("none", caps(&[], &["ALL"], &[]), 0, false, (0, 0, 0)),
        ("only", caps(&["CHOWN"], &["ALL"], &[]), 0, false, (1, 1, 0)),
        ("all", caps(&["ALL"], &[], &[]), 0, false, (all, all, 0)),
        ("all-but", caps(&["ALL"], &["CHOWN"], &[]), 0, false, (all & !1, all & !1, 0)),
        ("user", None, 1000, false, (DEFAULT, 0, 0)),
        (
            "ambient",
            caps(&[], &[], &["NET_BIND_SERVICE"]),
            1000,
            false,
            (DEFAULT, NET_BIND_SERVICE, NET_BIND_SERVICE),
        ),
        ("privileged", None, 0, true, (all, all, 0)),
    ];
    for (name, capabilities, user, is_privileged, expected) in rows {
        let mut config = script(name, "");
        let security = context(&mut config);
        (security.capabilities, security.run_as_user, security.privileged) =
            (capabilities, int(user), is_privileged);
        let status = proc_status(&daemon, if is_privileged { &privileged } else { &plain }, config).await;
        let set = |key: &str| u64::from_str_radix(&status[key], 16).unwrap();
        assert_eq!((set("CapBnd"), set("CapEff"), set("CapAmb")), expected, "{name}: {status:#?}");
        assert_eq!(set("CapPrm"), set("CapEff"), "{name}");
        assert_eq!(set("CapInh"), set("CapAmb"), "{name}: CVE-2022-29162");
    }
    let mut config = script("unknown", "true");
    context(&mut config).capabilities = caps(&["NET_ADMIM"], &[], &[]);
    let error = daemon.create(&plain, config).await.unwrap_err();
    assert!(error.code() == Code::InvalidArgument && error.message().contains("NET_ADMIM"), "{error}");
    daemon.finish().await;
}

// ---- 22: seccomp, masked and read-only paths ------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_22_seccomp_modes() {
    use cri::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let daemon = Daemon::start().await;
    let plain = daemon.run_pod(pod("seccomp")).await;
    let privileged = daemon.run_pod(privileged_pod("privileged")).await;
    let path = daemon.dir.path().join("profile.json");
    let denied = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ERRNO", "names":
        ["capset", "setuid", "setgid", "setgroups", "setresuid", "setresgid", "mkdir", "mkdirat"]}]}"#;
    std::fs::write(&path, denied).unwrap();
    let local = profile(Localhost, path.to_str().unwrap());
    let probe = "echo mode $(grep ^Seccomp: /proc/self/status | tr -cd 0-9) nnp $(grep ^NoNewPrivs: /proc/self/status | tr -cd 0-9); \
                 unshare -U true && echo unshared; mkdir /tmp/made-$$ && echo made";
    let rows = [
        ("nil", None, false, "mode 0 nnp 0|unshared|made"),
        ("unconfined", profile(Unconfined, ""), false, "mode 0 nnp 0|unshared|made"),
        ("default", profile(RuntimeDefault, ""), false, "mode 2 nnp 0|made"),
        ("local", local.clone(), false, "mode 2 nnp 0|unshared"),
        ("privileged", local.clone(), true, "mode 0 nnp 0|unshared|made"),
    ];
    for (name, seccomp, is_privileged, expected) in rows {
        for user in [0, 1000] {
            for nnp in [false, true] {
                let mut config =
                    script(&format!("{name}-{user}-{nnp}"), &format!("{{ {probe}; }} 2>/dev/null"));
                let security = context(&mut config);
                (security.seccomp, security.privileged) = (seccomp.clone(), is_privileged);
                (security.run_as_user, security.no_new_privs) = (int(user), nnp);
                let pod = if is_privileged { &privileged } else { &plain };
                let (_, lines) = daemon.outcome(pod, config).await;
                let expected = expected.replace("nnp 0", if nnp { "nnp 1" } else { "nnp 0" });
                assert_eq!(text(&lines).replace('\n', "|"), expected, "{name} {user} {nnp}");
            }
        }
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_22_a_filter_without_no_new_privs_leaves_no_capability() {
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("leftover")).await;
    for user in [0, 1000] {
        let mut config = script(&format!("user-{user}"), "");
        let security = context(&mut config);
        security.seccomp = profile(cri::security_profile::ProfileType::RuntimeDefault, "");
        security.run_as_user = int(user);
        security.capabilities =
            Some(cri::Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
        let status = proc_status(&daemon, &pod, config.clone()).await;
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{set} of user {user}");
        }
        config.metadata.as_mut().unwrap().name += "-exec";
        config.command = vec!["sleep".into(), "1000".into()];
        let id = daemon.run(&pod, config).await;
        let out = daemon.exec(&id, &["cat", "/proc/self/status"]).await.unwrap().stdout;
        let out = String::from_utf8(out).unwrap();
        for line in
            ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "Seccomp:\t2", "NoNewPrivs:\t0"]
        {
            assert!(out.contains(line), "{line} in an exec as {user}: {out}");
        }
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_22_masked_and_readonly_paths() {
    let daemon = Daemon::start().await;
    let plain = daemon.run_pod(pod("masks")).await;
    let privileged = daemon.run_pod(privileged_pod("privileged")).await;
    let probe = "wc -c < /proc/timer_list; ls /sys/firmware | wc -l; ls /nothing 2>/dev/null; \
                 touch /proc/sys/kernel/domainname 2>/dev/null; \
                 { echo x > /proc/sys/kernel/domainname; } 2>/dev/null && echo written";
    let masked: Vec<String> = ["/proc/timer_list", "/sys/firmware", "/nothing"].map(Into::into).into();
    let mut config = script("masked", probe);
    context(&mut config).masked_paths = masked.clone();
    context(&mut config).readonly_paths = vec!["/proc/sys".into()];
    context(&mut config).capabilities =
        Some(cri::Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() });
    let (_, lines) = daemon.outcome(&plain, config.clone()).await;
    assert_eq!(text(&lines), "0\n0");
    // Empty means none.
    rename(&mut config, "bare");
    context(&mut config).masked_paths.clear();
    context(&mut config).readonly_paths.clear();
    let (_, lines) = daemon.outcome(&plain, config.clone()).await;
    assert!(text(&lines).ends_with("written") && !text(&lines).starts_with("0\n"), "{lines:?}");
    // Privileged clears them.
    rename(&mut config, "privileged");
    context(&mut config).privileged = true;
    context(&mut config).masked_paths = masked;
    context(&mut config).readonly_paths = vec!["/proc/sys".into()];
    let (_, lines) = daemon.outcome(&privileged, config).await;
    assert!(text(&lines).ends_with("written") && !text(&lines).starts_with("0\n"), "{lines:?}");
    daemon.finish().await;
}
