//! OCI Spec → [`SpawnPlan`]: typed steps in the order that the child carries them out.
//!
//! Pure: what needed the host was opened before and comes as fds. The order matters and is kept in
//! one place, [`steps`].

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use oci_spec::runtime as oci;

use crate::cgroup::Entry;
use crate::container::devices::LINKS;
use crate::container::oci::capability_bits;
use crate::keeper::plan::{
    Bytes, CgroupEntry, DeviceKind, Exec, Fd, Identity, PidNamespace, Program, SpawnPlan, Step,
};
use crate::security::seccomp::Filter;
use crate::sys::mount::{
    MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MOUNT_ATTR_STRICTATIME,
};
use crate::{Error, Result};

/// A namespace to be in.
pub enum Pid {
    Host,
    New,
    /// An nsfs fd or a pidfd.
    Join(Arc<OwnedFd>),
}

/// A detached mount for one of the Spec's bind mounts, by the mount's place in the list.
pub struct Tree {
    pub mount: OwnedFd,
    pub directory: bool,
    pub label: String,
    /// Detached mounts for directories in it, by their names. They come apart since kernels before
    /// 6.15 attach nothing to what is itself detached.
    pub below: Vec<(String, OwnedFd)>,
}

pub struct Inputs<'a> {
    pub spec: &'a oci::Spec,
    /// The environment as bytes: the Spec's is lossy.
    pub env: Vec<Bytes>,
    pub program: Vec<Bytes>,
    pub root: OwnedFd,
    pub trees: HashMap<usize, Tree>,
    /// (namespace, CLONE_NEW* flag)
    pub join: Vec<(Arc<OwnedFd>, u64)>,
    /// CLONE_NEW* flags of namespaces made for this container alone, NEWNS and NEWPID aside.
    pub new_namespaces: u64,
    pub pid: Pid,
    pub cgroup: Entry,
    pub cgroup_namespace: bool,
    pub stdio: [Arc<OwnedFd>; 3],
    pub terminal: bool,
    pub seccomp: Option<Filter>,
}

/// The fds of a plan, numbered as they come.
#[derive(Default)]
pub struct FdList(Vec<Arc<OwnedFd>>);

impl FdList {
    pub fn push(&mut self, fd: impl Into<Arc<OwnedFd>>) -> Fd {
        self.0.push(fd.into());
        // A plan of 65,536 fds cannot be sent; `compile` checks the length at its end.
        Fd((self.0.len() - 1) as u16)
    }

    pub fn into_fds(self) -> Vec<Arc<OwnedFd>> {
        self.0
    }
}

pub fn compile(mut inputs: Inputs<'_>) -> Result<(SpawnPlan, Vec<Arc<OwnedFd>>)> {
    let spec = inputs.spec;
    let process =
        spec.process().as_ref().ok_or_else(|| Error::internal("the runtime spec has no process"))?;
    let mut fds = FdList::default();
    let steps = steps(&mut inputs, process, &mut fds)?;
    let cgroup = CgroupEntry {
        unified: inputs.cgroup.unified.map(|fd| fds.push(fd)),
        tasks: inputs.cgroup.tasks.into_iter().map(|fd| fds.push(fd)).collect(),
    };
    let join = inputs.join.into_iter().map(|(fd, flag)| (fds.push(fd), flag)).collect();
    let pid = match inputs.pid {
        Pid::Host => PidNamespace::Host,
        Pid::New => PidNamespace::New,
        Pid::Join(fd) => PidNamespace::Join(fds.push(fd)),
    };
    let stdio = inputs.stdio.map(|fd| fds.push(fd));
    let argv = process.args().iter().flatten().map(|arg| arg.clone().into_bytes()).collect();
    let plan = SpawnPlan {
        pid,
        new_namespaces: inputs.new_namespaces | libc::CLONE_NEWNS as u64,
        join,
        cgroup,
        stdio,
        terminal: inputs.terminal,
        steps,
        park: true,
        seccomp_flags: inputs.seccomp.as_ref().map_or(0, |f| f.flags),
        seccomp: inputs.seccomp.map(|f| f.program.to_vec()),
        exec: Exec { program: Program::Search(inputs.program), argv, envp: inputs.env },
    };
    let fds = fds.into_fds();
    if fds.len() > usize::from(u16::MAX) {
        return Err(Error::invalid(format!("the container needs {} file descriptors to set up", fds.len())));
    }
    Ok((plan, fds))
}

/// First what the process is; 2. its root and mounts, shallow ones first; 3. devices as soon as /dev is
/// there; 4. the pivot; 5. masks, which must find the final tree; 6. limits; 7. the directory, still
/// as root; 8. the identity, after which nothing else may need a privilege.
fn steps(inputs: &mut Inputs<'_>, process: &oci::Process, fds: &mut FdList) -> Result<Vec<Step>> {
    let spec = inputs.spec;
    let linux = spec.linux().as_ref().ok_or_else(|| Error::internal("the runtime spec has no linux part"))?;
    let mut steps = Vec::new();
    if inputs.cgroup_namespace {
        steps.push(Step::CgroupNamespace);
    }
    steps.push(Step::Reset);
    let root = rustix::io::fcntl_dupfd_cloexec(&inputs.root, 3)
        .map_err(|e| Error::io("duplicating the root mount", e))?;
    steps.push(Step::Root { mount: fds.push(root), propagation: 0 });
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        mount_steps(inputs, index, mount, fds, &mut steps)?;
        if mount.destination() == Path::new("/dev") && mount.typ().as_deref() == Some("tmpfs") {
            steps.extend(device_steps(linux));
        }
    }
    if inputs.terminal {
        let (source, target) = (b"/dev/pts/0".to_vec(), b"/dev/console".to_vec());
        steps.push(Step::Bind { source, target, recursive: false });
    }
    steps.push(Step::PivotRoot);
    let paths = |list: &Option<Vec<String>>| -> Vec<Bytes> {
        list.iter().flatten().map(|p| p.clone().into_bytes()).collect()
    };
    steps.extend(paths(linux.readonly_paths()).into_iter().map(|path| Step::ReadOnly { path }));
    steps.extend(paths(linux.masked_paths()).into_iter().map(|path| Step::Mask { path }));
    steps.extend(process_steps(process));
    if spec.root().as_ref().and_then(oci::Root::readonly).unwrap_or(false) {
        steps.insert(last_root_step(&steps), Step::RootReadOnly);
    }
    steps.extend(identity_steps(process));
    Ok(steps)
}

/// The working directory may have to be made, so the root turns read-only after it.
fn last_root_step(steps: &[Step]) -> usize {
    steps
        .iter()
        .rposition(|s| matches!(s, Step::WorkingDirectory { .. } | Step::PivotRoot))
        .map_or(steps.len(), |i| i + 1)
}

fn mount_steps(
    inputs: &mut Inputs<'_>,
    index: usize,
    mount: &oci::Mount,
    fds: &mut FdList,
    steps: &mut Vec<Step>,
) -> Result<()> {
    let target = mount.destination().as_os_str().as_bytes().to_vec();
    if let Some(tree) = inputs.trees.remove(&index) {
        steps.extend(attach_steps(tree, target, fds));
        return Ok(());
    }
    let (attributes, options) = options(mount.options().as_deref().unwrap_or_default());
    match mount.typ().as_deref() {
        Some("bind" | "cgroup") | None => {
            Err(Error::internal(format!("mount {} has no opened source", mount.destination().display())))
        }
        Some(fstype) => {
            steps.push(Step::Mount { fstype: fstype.as_bytes().to_vec(), target, options, attributes });
            Ok(())
        }
    }
}

fn attach_steps(tree: Tree, target: Bytes, fds: &mut FdList) -> Vec<Step> {
    let mut attach = |mount, target, directory, label: &str| Step::Attach {
        mount: fds.push(mount),
        target,
        directory,
        label: label.as_bytes().to_vec(),
    };
    let mut steps = vec![attach(tree.mount, target.clone(), tree.directory, &tree.label)];
    steps.extend(tree.below.into_iter().map(|(name, mount)| {
        attach(
            mount,
            [&target[..], b"/", name.as_bytes()].concat(),
            true,
            &format!("{name} in {}", tree.label),
        )
    }));
    steps
}

/// fstab options as mount attributes and file system options.
fn options(list: &[String]) -> (u64, Vec<(Bytes, Bytes)>) {
    let mut attributes = 0;
    let mut options = Vec::new();
    for option in list {
        match option.as_str() {
            "ro" => attributes |= MOUNT_ATTR_RDONLY,
            "nosuid" => attributes |= MOUNT_ATTR_NOSUID,
            "nodev" => attributes |= MOUNT_ATTR_NODEV,
            "noexec" => attributes |= MOUNT_ATTR_NOEXEC,
            "strictatime" => attributes |= MOUNT_ATTR_STRICTATIME,
            // Defaults, and what bind mounts carry in their fds.
            "rw" | "relatime" => {}
            other => match other.split_once('=') {
                Some((key, value)) => options.push((key.as_bytes().to_vec(), value.as_bytes().to_vec())),
                None => options.push((other.as_bytes().to_vec(), Vec::new())),
            },
        }
    }
    (attributes, options)
}

fn device_steps(linux: &oci::Linux) -> Vec<Step> {
    let nodes = linux.devices().iter().flatten().map(|device| Step::Device {
        path: device.path().as_os_str().as_bytes().to_vec(),
        kind: match device.typ() {
            oci::LinuxDeviceType::B => DeviceKind::Block,
            oci::LinuxDeviceType::P => DeviceKind::Fifo,
            _ => DeviceKind::Character,
        },
        major: u32::try_from(device.major()).unwrap_or_default(),
        minor: u32::try_from(device.minor()).unwrap_or_default(),
        mode: device.file_mode().unwrap_or(0o666),
        uid: device.uid().unwrap_or_default(),
        gid: device.gid().unwrap_or_default(),
    });
    let links = LINKS.iter().map(|(path, target)| Step::Symlink {
        path: path.as_bytes().to_vec(),
        target: target.as_bytes().to_vec(),
    });
    nodes.chain(links).collect()
}

/// Limits and the working directory.
fn process_steps(process: &oci::Process) -> Vec<Step> {
    let mut steps = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let resource = rlimit(limit.typ());
        steps.push(Step::Rlimit { resource, soft: limit.soft(), hard: limit.hard() });
    }
    if let Some(value) = process.oom_score_adj() {
        steps.push(Step::OomScoreAdj(value));
    }
    let path = process.cwd().as_os_str().as_bytes().to_vec();
    steps.push(Step::WorkingDirectory { path, create: true });
    steps
}

/// no_new_privs first: it needs no privilege, and the filter is loaded later either way.
pub fn identity_steps(process: &oci::Process) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(profile) = process.apparmor_profile() {
        steps.push(Step::AppArmor(profile.clone().into_bytes()));
    }
    if process.no_new_privileges().unwrap_or(false) {
        steps.push(Step::NoNewPrivileges);
    }
    let sets = capability_bits(process.capabilities().as_ref());
    let user = process.user();
    steps.push(Step::Identity(Identity {
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        bounding: sets.bounding,
        effective: sets.effective,
        permitted: sets.permitted,
        inheritable: sets.inheritable,
        ambient: sets.ambient,
    }));
    steps
}

pub fn rlimit(typ: oci::PosixRlimitType) -> u32 {
    use oci::PosixRlimitType as T;
    match typ {
        T::RlimitCpu => libc::RLIMIT_CPU,
        T::RlimitFsize => libc::RLIMIT_FSIZE,
        T::RlimitData => libc::RLIMIT_DATA,
        T::RlimitStack => libc::RLIMIT_STACK,
        T::RlimitCore => libc::RLIMIT_CORE,
        T::RlimitRss => libc::RLIMIT_RSS,
        T::RlimitNproc => libc::RLIMIT_NPROC,
        T::RlimitNofile => libc::RLIMIT_NOFILE,
        T::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        T::RlimitAs => libc::RLIMIT_AS,
        T::RlimitLocks => libc::RLIMIT_LOCKS,
        T::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        T::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        T::RlimitNice => libc::RLIMIT_NICE,
        T::RlimitRtprio => libc::RLIMIT_RTPRIO,
        T::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}
