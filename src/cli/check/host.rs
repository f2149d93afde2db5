//! What is around the kernel: cgroups, network, disk, security modules.

use std::path::Path;

use rustix::fs::statvfs;
use rustix::process::{Resource, getrlimit};

use crate::cgroup::{Cgroups, Driver};
use crate::cli::check::{Finding, read};
use crate::cli::client::table::size;
use crate::config::Config;
use crate::container::spec::AppArmor;
use crate::network::Mode;

pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let mut findings = cgroups(config);
    findings.extend([
        apparmor(),
        selinux(),
        forwarding(),
        cni(config),
        disk("disk of root", &config.root),
        disk("disk of state", &config.state),
        descriptors(),
        keeper(config),
    ]);
    findings
}

fn cgroups(config: &Config) -> Vec<Finding> {
    // The layout is the same for both drivers, and asking for it needs no D-Bus.
    let cgroups = match Cgroups::detect(Driver::Cgroupfs, &config.cgroup.root) {
        Ok(cgroups) => cgroups,
        Err(error) => return vec![Finding::missing("cgroups", error.message)],
    };
    let layout = match cgroups.layout() {
        "unified" => Finding::ok("cgroups", "unified (v2)"),
        other => Finding::degraded(
            "cgroups",
            format!("{other}: no memory.high, io.max or PSI per container; children enter by themselves"),
        ),
    };
    let wanted = ["cpu", "cpuset", "memory", "pids", "hugetlb"];
    let (have, lack): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|name| cgroups.has_controller(name));
    let controllers = if lack.is_empty() {
        Finding::ok("cgroup controllers", have.join(", "))
    } else {
        let text = format!("no {}: such limits are warned of and ignored", lack.join(", "));
        Finding::degraded("cgroup controllers", text)
    };
    vec![layout, controllers, cgroup_kill(), systemd(config)]
}

/// Every cgroup but the root has the file, where the kernel (5.14) does.
fn cgroup_kill() -> Finding {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let below = roots.into_iter().flat_map(std::fs::read_dir).flatten().flatten();
    let mut v2 = below.map(|entry| entry.path()).filter(|dir| dir.join("cgroup.events").exists());
    match v2.next() {
        Some(dir) if dir.join("cgroup.kill").exists() => {
            Finding::ok("cgroup.kill", "ends whole trees at once; clone3 makes children in their cgroup")
        }
        Some(_) => Finding::degraded("cgroup.kill", "not in this kernel: trees are frozen, then killed"),
        None => Finding::degraded("cgroup.kill", "no cgroup2 to find it in: trees are frozen, then killed"),
    }
}

fn systemd(config: &Config) -> Finding {
    // sd_booted(3).
    let booted = Path::new("/run/systemd/system").is_dir();
    match (config.cgroup.driver, booted) {
        (Driver::Systemd, false) => {
            Finding::missing("cgroup driver", "systemd is configured, and does not run here")
        }
        (Driver::Systemd, true) => Finding::ok("cgroup driver", "systemd"),
        (Driver::Cgroupfs, true) => Finding::degraded(
            "cgroup driver",
            "cgroupfs beside systemd: set cgroup.driver to systemd, or give ours a delegated root",
        ),
        (Driver::Cgroupfs, false) => Finding::ok("cgroup driver", "cgroupfs"),
    }
}

fn apparmor() -> Finding {
    match read("/sys/module/apparmor/parameters/enabled").as_deref() {
        Some("Y") => match crate::security::apparmor::resolve(&AppArmor::RuntimeDefault) {
            Ok(_) => Finding::ok("AppArmor", "on; the default profile is loaded"),
            Err(error) => Finding::degraded(
                "AppArmor",
                format!("{error}: containers that ask for RuntimeDefault are refused, others run without"),
            ),
        },
        _ => Finding::ok("AppArmor", "off; containers that ask for a profile by name are refused"),
    }
}

fn selinux() -> Finding {
    match read("/sys/fs/selinux/enforce").as_deref() {
        Some("1") => Finding::degraded("SELinux", "enforcing; this version sets no labels"),
        Some(_) => Finding::degraded("SELinux", "permissive; this version sets no labels"),
        None => Finding::ok("SELinux", "off"),
    }
}

fn forwarding() -> Finding {
    match read("/proc/sys/net/ipv4/ip_forward").as_deref() {
        Some("1") => Finding::ok("ip_forward", "on"),
        _ => Finding::degraded("ip_forward", "off: the builtin network switches it on, CNI plugins may not"),
    }
}

fn cni(config: &Config) -> Finding {
    let network = &config.network;
    let files = |dir: &Path, keep: &dyn Fn(&Path) -> bool| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter(|entry| keep(&entry.path())).count()
    };
    let is_config = |path: &Path| {
        path.extension().is_some_and(|e| ["conflist", "conf", "json"].iter().any(|known| e == *known))
    };
    let configs = files(&network.cni_conf_dir, &is_config);
    let plugins: usize = network.cni_bin_dirs.iter().map(|dir| files(dir, &|path| path.is_file())).sum();
    let text = format!("{configs} configurations in {}, {plugins} plugins", network.cni_conf_dir.display());
    match network.mode {
        Some(Mode::Cni) if configs == 0 || plugins == 0 => {
            Finding::degraded("CNI", format!("{text}: pods wait for them (NetworkReady is false)"))
        }
        None if configs > 0 && plugins == 0 => {
            Finding::degraded("CNI", format!("{text}: the configuration will be used and will fail"))
        }
        Some(Mode::Builtin) => Finding::ok("CNI", format!("{text}, not used: the mode is builtin")),
        None if configs == 0 => Finding::ok("CNI", format!("{text}; the builtin network is used")),
        _ => Finding::ok("CNI", text),
    }
}

/// Of the directory, or of where it will be made.
fn disk(what: &'static str, dir: &Path) -> Finding {
    let Some(existing) = dir.ancestors().find(|path| path.exists()) else {
        return Finding::missing(what, format!("{} can be made nowhere", dir.display()));
    };
    let disk = match statvfs(existing) {
        Ok(disk) => disk,
        Err(errno) => return Finding::degraded(what, format!("{}: {errno}", existing.display())),
    };
    let free = disk.f_bavail * disk.f_frsize;
    let total = disk.f_blocks * disk.f_frsize;
    let text = format!("{} of {} free, {} free inodes", size(free), size(total), disk.f_favail);
    // kubelet evicts pods below 15 % (imagefs.available) and 5 % (inodesFree).
    let few_inodes = disk.f_files > 0 && disk.f_favail < disk.f_files / 20;
    if free < total / 100 * 15 || few_inodes {
        return Finding::degraded(what, format!("{text}: kubelet will evict pods"));
    }
    Finding::ok(what, text)
}

fn descriptors() -> Finding {
    /// A thousand pods with two containers each, in the daemon.
    const ENOUGH: u64 = 1 << 16;
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < ENOUGH => Finding::degraded(
            "open files",
            format!("at most {most}: a container needs about 10 (LimitNOFILE= of the unit raises it)"),
        ),
        Some(most) => Finding::ok("open files", format!("at most {most}")),
        None => Finding::ok("open files", "any number"),
    }
}

fn keeper(config: &Config) -> Finding {
    let beside = || std::env::current_exe().map(|exe| exe.with_file_name("podwright-keeper"));
    let path = if config.keeper.as_os_str().is_empty() { beside() } else { Ok(config.keeper.clone()) };
    match path {
        Ok(path) if path.is_file() => Finding::ok("keeper", path.display().to_string()),
        Ok(path) => Finding::missing("keeper", format!("{} is not there", path.display())),
        Err(error) => Finding::missing("keeper", format!("our own executable is unknown: {error}")),
    }
}
