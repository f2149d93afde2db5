//! `crictl inspect`: the OCI Spec that it shows is what runs.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, LinuxSeccompAction, PosixRlimitType, Spec};
use podwright::container::oci::capability_bits;
use podwright::cri::wire as cri;

use crate::harness::{Daemon, context, int, namespaces, pod, privileged_pod, script};

/// What the verbose status of a container says: its process on the host, and its Spec.
async fn inspect(daemon: &Daemon, id: &str) -> (i64, Spec) {
    let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: true };
    let info = daemon.runtime().container_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    (info["pid"].as_i64().unwrap(), serde_json::from_value(info["runtimeSpec"].clone()).unwrap())
}

/// A file of a process in /proc.
fn of(pid: i64, name: &str) -> String {
    String::from_utf8(std::fs::read(format!("/proc/{pid}/{name}")).unwrap()).unwrap()
}

/// The parts of what ends each with a zero byte.
fn parts(text: &str) -> Vec<String> {
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// A line of /proc/PID/status.
fn status(pid: i64, name: &str) -> String {
    let text = of(pid, "status");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("{name} in {text}")).trim().to_owned()
}

fn capabilities(pid: i64, set: &str) -> u64 {
    u64::from_str_radix(&status(pid, set), 16).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spec_names_the_process_that_runs() {
    let daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("spec")).await;
    let mut config = script("main", "");
    config.command = vec!["sleep".into()];
    config.args = vec!["1000".into()];
    config.working_dir = "/var".into();
    config.envs = vec![cri::KeyValue { key: "GIVEN".into(), value: "as it is".into() }];
    let security = context(&mut config);
    security.run_as_user = int(1000);
    security.supplemental_groups = vec![7, 8];
    security.no_new_privs = true;
    security.seccomp = Some(cri::SecurityProfile::default());
    security.capabilities =
        Some(cri::Capability { drop_capabilities: vec!["CHOWN".into()], ..Default::default() });
    let id = daemon.run(&made, config).await;
    let (pid, spec) = inspect(&daemon, &id).await;

    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &parts(&of(pid, "cmdline")));
    let environment = parts(&of(pid, "environ"));
    assert_eq!(process.env().as_ref().unwrap(), &environment);
    assert!(
        environment.contains(&"GIVEN=as it is".to_owned()) && environment.contains(&"FROM_IMAGE=yes".into())
    );
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!((process.cwd(), cwd.as_path()), (&cwd, Path::new("/var")));
    let user = process.user();
    let ids = |id: u32| [id; 4].map(|id| id.to_string()).join("\t");
    assert_eq!((ids(user.uid()), ids(user.gid())), (status(pid, "Uid"), status(pid, "Gid")));
    assert_eq!(user.uid(), 1000);
    let groups: BTreeSet<String> = user.additional_gids().iter().flatten().map(u32::to_string).collect();
    let has: BTreeSet<String> = status(pid, "Groups").split_whitespace().map(str::to_owned).collect();
    assert_eq!(groups, has);
    assert!(groups.is_superset(&["7".to_owned(), "8".to_owned()].into()), "{groups:?}");
    assert_eq!(process.no_new_privileges(), Some(true));
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    let sets = capability_bits(process.capabilities().as_ref());
    // A program of a user that is not root starts without the others (capabilities(7)).
    for (named, set) in [(sets.bounding, "CapBnd"), (sets.inheritable, "CapInh"), (sets.ambient, "CapAmb")] {
        assert_eq!(named, capabilities(pid, set), "{set}");
    }
    assert!(sets.bounding != 0 && sets.bounding & 1 == 0, "CHOWN is dropped: {:x}", sets.bounding);
    assert_eq!(
        process.oom_score_adj().map(|adj| adj.to_string()).as_deref(),
        Some(of(pid, "oom_score_adj").trim())
    );
    let files =
        process.rlimits().iter().flatten().find(|l| l.typ() == PosixRlimitType::RlimitNofile).unwrap();
    let limits = of(pid, "limits");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let has: Vec<u64> = line.split_whitespace().take(2).map(|n| n.parse().unwrap()).collect();
    assert_eq!(vec![files.soft(), files.hard()], has);
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spec_names_the_namespaces_the_filter_and_the_limits() {
    let daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("spec")).await;
    let mut confined = script("confined", "exec sleep 1000");
    context(&mut confined).seccomp = Some(cri::SecurityProfile::default());
    let linux = confined.linux.as_mut().unwrap();
    let limits = cri::LinuxContainerResources {
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    };
    linux.resources = Some(limits);
    let confined = daemon.run(&made, confined).await;
    let mut shares = script("shares", "exec sleep 1000");
    let unconfined = cri::security_profile::ProfileType::Unconfined as i32;
    let profile = cri::SecurityProfile { profile_type: unconfined, ..Default::default() };
    context(&mut shares).seccomp = Some(profile);
    context(&mut shares).namespace_options.as_mut().unwrap().pid = cri::NamespaceMode::Node as i32;
    let mut config = pod("of-the-node");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options =
        Some(namespaces(cri::NamespaceMode::Node));
    let shares = daemon.run(&daemon.run_pod(config).await, shares).await;

    for (id, filtered) in [(&confined, true), (&shares, false)] {
        let (pid, spec) = inspect(&daemon, id).await;
        let sets = capability_bits(spec.process().as_ref().unwrap().capabilities().as_ref());
        assert_eq!(
            (sets.effective, sets.permitted),
            (capabilities(pid, "CapEff"), capabilities(pid, "CapPrm"))
        );
        let linux = spec.linux().as_ref().unwrap();
        let named = linux.namespaces().as_ref().unwrap();
        for (typ, name) in [
            (LinuxNamespaceType::Mount, "mnt"),
            (LinuxNamespaceType::Pid, "pid"),
            (LinuxNamespaceType::Network, "net"),
            (LinuxNamespaceType::Ipc, "ipc"),
            (LinuxNamespaceType::Uts, "uts"),
            (LinuxNamespaceType::Cgroup, "cgroup"),
            (LinuxNamespaceType::User, "user"),
        ] {
            let has = std::fs::metadata(format!("/proc/{pid}/ns/{name}")).unwrap().ino();
            let nodes = std::fs::metadata(format!("/proc/{}/ns/{name}", daemon.pid())).unwrap().ino();
            let own = named.iter().find(|namespace| namespace.typ() == typ);
            assert_eq!(own.is_some(), has != nodes, "{name} of {id}");
            if let Some(path) = own.and_then(|namespace| namespace.path().as_ref()) {
                // A pin is in the daemon's mount namespace.
                let path = format!("/proc/{}/root{}", daemon.pid(), path.display());
                assert_eq!(std::fs::metadata(&path).unwrap().ino(), has, "{path}");
            }
        }
        assert_eq!(status(pid, "Seccomp"), if filtered { "2" } else { "0" });
        assert_eq!(linux.seccomp().is_some(), filtered);
        if let Some(filter) = linux.seccomp() {
            assert_eq!(filter.default_action(), LinuxSeccompAction::ScmpActErrno);
            // One that the filter names, and one that it does not.
            let names = |call: &str| {
                let mut rules = filter.syscalls().iter().flatten();
                rules.any(|r| {
                    r.action() == LinuxSeccompAction::ScmpActAllow && r.names().contains(&call.into())
                })
            };
            assert!(names("write") && !names("kexec_load"));
        }
        let path = linux.cgroups_path().as_ref().unwrap().to_str().unwrap().to_owned();
        let leaf = path.rsplit(['/', ':']).next().unwrap();
        let cgroups = of(pid, "cgroup");
        assert!(leaf == id && cgroups.lines().all(|line| line.contains(leaf)), "{path}: {cgroups}");
        let resources = linux.resources().as_ref().unwrap();
        let memory = resources.memory().as_ref().and_then(|memory| memory.limit());
        let shares = resources.cpu().as_ref().and_then(|cpu| cpu.shares());
        assert_eq!((memory, shares), if filtered { (Some(64 << 20), Some(512)) } else { (None, None) });
    }
    daemon.finish().await;
}

/// The point where each mount is, and whether it is read-only there.
fn mount_table(pid: i64) -> Vec<(String, bool)> {
    let table = of(pid, "mountinfo");
    let fields = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.map(|f| (f[4].to_owned(), f[5].split(',').any(|option| option == "ro"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spec_names_every_mount() {
    let daemon = Daemon::start().await;
    let made = daemon.run_pod(privileged_pod("spec")).await;
    let source = daemon.dir.path().join("volume");
    std::fs::create_dir(&source).unwrap();
    let mut config = script("main", "exec sleep 1000");
    for (container_path, readonly) in [("/data", false), ("/data-ro", true)] {
        config.mounts.push(cri::Mount {
            container_path: container_path.into(),
            host_path: source.to_str().unwrap().into(),
            readonly,
            ..Default::default()
        });
    }
    let security = context(&mut config);
    security.readonly_rootfs = true;
    security.masked_paths = vec!["/proc/interrupts".into(), "/proc/no-such".into()];
    security.readonly_paths = vec!["/proc/sys".into()];
    let id = daemon.run(&made, config).await;
    let (pid, spec) = inspect(&daemon, &id).await;
    let table = mount_table(pid);
    let mounted = |path: &str| table.iter().rev().find(|(point, _)| point == path);

    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
    assert_eq!(mounted("/"), Some(&("/".to_owned(), true)));
    let mut named: BTreeSet<&str> = ["/"].into();
    for mount in spec.mounts().as_ref().unwrap() {
        let path = mount.destination().to_str().unwrap();
        let (_, readonly) = mounted(path).unwrap_or_else(|| panic!("{path} is not mounted: {table:?}"));
        let options = mount.options().clone().unwrap_or_default();
        assert_eq!(options.iter().any(|o| o == "ro" || o == "rro"), *readonly, "{path}: {options:?}");
        named.insert(path);
    }
    assert!(named.contains("/data") && named.contains("/data-ro") && named.contains("/proc"), "{named:?}");
    let volume =
        spec.mounts().as_ref().unwrap().iter().find(|m| m.destination() == Path::new("/data")).unwrap();
    assert_eq!(volume.source().as_deref(), Some(source.as_path()));
    let linux = spec.linux().as_ref().unwrap();
    let masked = linux.masked_paths().as_ref().unwrap();
    let readonly = linux.readonly_paths().as_ref().unwrap();
    assert!(
        mounted("/proc/interrupts").is_some() && mounted("/proc/sys").is_some_and(|(_, ro)| *ro),
        "{table:?}"
    );
    // And there is nothing else.
    for (point, _) in &table {
        // One mount of the Spec, of which v1 makes one for each hierarchy.
        let cgroup = point.starts_with("/sys/fs/cgroup/");
        let known =
            cgroup || named.contains(point.as_str()) || masked.contains(point) || readonly.contains(point);
        assert!(known, "{point} is mounted, and nobody says so");
    }
    daemon.finish().await;
}
