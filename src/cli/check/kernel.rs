//! Probes of the kernel: by trying, not by version, since distributions carry features back.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use netlink_sys::{Socket, SocketAddr};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen, open_tree,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cli::check::{Finding, read};
use crate::error::errno_text;
use crate::sys::mount::MountAttr;
use crate::sys::{mount, pidfd, probe};

/// What Debian 12 has, and what we run on.
const OLDEST: (u32, u32) = (6, 1);

pub(super) fn findings() -> Vec<Finding> {
    let mut findings = vec![version(), capabilities()];
    findings.extend(mounts());
    findings.extend([overlay(), exit_codes(), seccomp(), user_namespaces(), nf_tables(), pipes()]);
    findings
}

fn version() -> Finding {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut parts = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version >= OLDEST {
        return Finding::ok("kernel", release);
    }
    Finding::degraded("kernel", format!("{release} is older than 6.1, the oldest that is tested"))
}

fn capabilities() -> Finding {
    const NEEDED: [(u32, &str); 4] =
        [(12, "CAP_NET_ADMIN"), (18, "CAP_SYS_CHROOT"), (21, "CAP_SYS_ADMIN"), (1, "CAP_DAC_OVERRIDE")];
    const SYS_RESOURCE: u32 = 24;
    let status = read("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or_default();
    let lacks = |bit: u32| set & (1 << bit) == 0;
    let lacking: Vec<_> = NEEDED.iter().filter(|(bit, _)| lacks(*bit)).map(|(_, name)| *name).collect();
    if !lacking.is_empty() {
        let text = format!("this process lacks {}: run it as root", lacking.join(", "));
        return Finding::missing("capabilities", text);
    }
    if lacks(SYS_RESOURCE) {
        let text = "without CAP_SYS_RESOURCE oom_score_adj is never lowered and no hard rlimit raised";
        return Finding::degraded("capabilities", text);
    }
    Finding::ok("capabilities", "all that are needed, with CAP_SYS_RESOURCE")
}

/// fsopen, fsmount, mount_setattr, and open_tree of a mount that is attached nowhere.
fn mounts() -> Vec<Finding> {
    let tmpfs = || -> rustix::io::Result<OwnedFd> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(context.as_fd())?;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    let detached = match tmpfs() {
        Ok(detached) => detached,
        Err(errno) => {
            let text = format!("fsopen and fsmount of a tmpfs: {}", text(errno));
            return vec![Finding::missing("mounts by descriptor", text)];
        }
    };
    let root = open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
    let read_only = MountAttr { set: mount::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    vec![
        match root {
            Ok(_) => Finding::ok("mounts by descriptor", "fsopen, fsmount, open_tree"),
            Err(errno) => {
                Finding::missing("mounts by descriptor", format!("open_tree of /: {}", text(errno)))
            }
        },
        match mount::set_attributes(detached.as_fd(), true, read_only) {
            Ok(()) => Finding::ok("mount_setattr", "read-only mounts, also recursive ones"),
            Err(errno) => Finding::missing("mount_setattr", text(errno)),
        },
        match probe::detached_clones() {
            Ok(()) => Finding::ok("clones of detached mounts", "/dev/shm and parts of images, by descriptor"),
            Err(errno) => Finding::degraded(
                "clones of detached mounts",
                format!(
                    "{} (Linux 6.15 has them): /dev/shm and parts of images are cloned in mount namespaces \
                     of their own",
                    text(errno)
                ),
            ),
        },
        match probe::procfs_of_others() {
            Ok(()) => Finding::ok("procfs of a joined PID namespace", "made for each container (pidns)"),
            Err(errno) => Finding::degraded(
                "procfs of a joined PID namespace",
                format!(
                    "{} (Linux 6.17 makes them): a clone of that of the pod's init or of the target",
                    text(errno)
                ),
            ),
        },
    ]
}

fn overlay() -> Finding {
    if let Err(errno) = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        return Finding::missing("overlay", format!("{} (modprobe overlay?)", text(errno)));
    }
    match probe::single_layers() {
        Ok(()) => Finding::ok("overlay", "layers are given one by one (lowerdir+)"),
        Err(errno) => Finding::degraded(
            "overlay",
            format!(
                "lowerdir+: {} (Linux 6.8 has it): layers are mounted by relative paths in a mount \
                 namespace of their own",
                text(errno)
            ),
        ),
    }
}

/// Whether the exit code of a process that somebody else has reaped can be read: here the one
/// who reaps is us, the code is read afterwards.
fn exit_codes() -> Finding {
    let probe = || -> std::io::Result<bool> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let fd = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        child.wait()?;
        let fd = fd.ok_or(std::io::ErrorKind::NotFound)??;
        Ok(pidfd::ended(fd.as_fd()).is_some())
    };
    match probe() {
        Ok(true) => Finding::ok("exit codes by pidfd", "known even of containers that a dead keeper had"),
        Ok(false) => Finding::degraded(
            "exit codes by pidfd",
            "the kernel does not tell them (Linux 6.15 does): those of containers that end while keeper \
             and daemon are both away are unknown",
        ),
        Err(error) => Finding::degraded("exit codes by pidfd", format!("the probe failed: {error}")),
    }
}

fn seccomp() -> Finding {
    let Some(actions) = read("/proc/sys/kernel/seccomp/actions_avail") else {
        return Finding::missing("seccomp", "the kernel has no seccomp filters");
    };
    let needed = ["kill_process", "errno", "log", "allow"];
    let lacking: Vec<_> = needed.into_iter().filter(|a| !actions.split(' ').any(|have| have == *a)).collect();
    match lacking.as_slice() {
        [] => Finding::ok("seccomp", actions),
        _ => Finding::degraded("seccomp", format!("the kernel has no action {}", lacking.join(", "))),
    }
}

fn user_namespaces() -> Finding {
    let most = read("/proc/sys/user/max_user_namespaces").and_then(|n| n.parse::<u64>().ok());
    match most {
        Some(most) if most > 0 => Finding::ok("user namespaces", format!("at most {most}")),
        Some(_) => Finding::degraded("user namespaces", "switched off (user.max_user_namespaces is 0)"),
        None => Finding::degraded("user namespaces", "the kernel has none"),
    }
}

/// Asks for the generation of the rule set, which only a kernel with nf_tables answers.
fn nf_tables() -> Finding {
    const NETLINK_NETFILTER: isize = 12;
    const SUBSYSTEM: u16 = 10 << 8;
    const GET_GENERATION: u16 = SUBSYSTEM | 16;
    const NEW_GENERATION: u16 = SUBSYSTEM | 15;
    let ask = || -> std::io::Result<u16> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // struct nlmsghdr: length, type, flags (NLM_F_REQUEST), sequence, port; then nfgenmsg.
        let mut request = [0; 20];
        request[..4].copy_from_slice(&20u32.to_ne_bytes());
        request[4..6].copy_from_slice(&GET_GENERATION.to_ne_bytes());
        request[6..8].copy_from_slice(&1u16.to_ne_bytes());
        socket.send(&request, 0)?;
        let (answer, _) = socket.recv_from_full()?;
        let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok());
        Ok(u16::from_ne_bytes(kind.unwrap_or_default()))
    };
    match ask() {
        Ok(NEW_GENERATION) => Finding::ok("nf_tables", "masquerading of the builtin network"),
        Ok(_) => Finding::degraded("nf_tables", "the kernel has none: the builtin network has no way out"),
        Err(error) => Finding::degraded("nf_tables", format!("{error}: the builtin network has no way out")),
    }
}

fn pipes() -> Finding {
    let number = |name: &str| read(&format!("/proc/sys/fs/{name}")).and_then(|n| n.parse::<u64>().ok());
    let soft = number("pipe-user-pages-soft").unwrap_or_default();
    let largest = number("pipe-max-size").unwrap_or_default();
    let text = format!("largest {largest} bytes; {soft} pages for a user before they shrink (0: any number)");
    Finding::ok("pipes", text)
}

fn text(errno: Errno) -> String {
    errno_text(errno.raw_os_error())
}
