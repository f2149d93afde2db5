//! A plan turned into what its child can carry out without allocating: strings with their NUL,
//! pointer arrays, descriptors in place of their numbers.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::filter::{self, Filter, Loading};
use super::plan::{Bytes, DeviceKind, Fd, Identity, PidNamespace, Program, SpawnPlan, Step};
use super::report::Report;
use crate::sys::clone::{CLONE_NEWPID, Strings};

/// What a child works on. Everything in it was made before the clone.
pub struct Prepared<'a> {
    /// For the clone itself.
    pub clone_flags: u64,
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The descriptors that the child needs, ascending; all others are closed.
    pub keep: Vec<u32>,
    pub tasks: Vec<BorrowedFd<'a>>,
    pub join: Vec<(BorrowedFd<'a>, u64)>,
    /// The final process is cloned into this one, which was joined.
    pub enter: Option<BorrowedFd<'a>>,
    pub stdio: [BorrowedFd<'a>; 3],
    pub terminal: bool,
    pub steps: Vec<Action<'a>>,
    pub park: bool,
    pub filter: Option<Filter>,
    /// CAP_SYS_ADMIN must stay effective after the identity, for the filter.
    pub keeps_admin: bool,
    /// The identity's effective, permitted and inheritable sets, for who has to drop that.
    pub capabilities: Option<[u64; 3]>,
    pub program: Executable<'a>,
    pub argv: Strings,
    pub envp: Strings,
    pub channel: BorrowedFd<'a>,
    pub report: &'a Report,
    /// A procfs of the keeper's, which nothing in a container can stand in for.
    pub proc: BorrowedFd<'a>,
}

pub enum Executable<'a> {
    Search(Vec<CString>),
    File(BorrowedFd<'a>),
}

/// A step in its prepared form: see [`Step`] for what each does.
pub enum Action<'a> {
    CgroupNamespace,
    Reset,
    Hostname(Bytes),
    Root {
        mount: BorrowedFd<'a>,
        propagation: u64,
    },
    Attach {
        mount: BorrowedFd<'a>,
        target: CString,
        directory: bool,
    },
    Mount {
        fstype: CString,
        target: CString,
        options: Vec<(CString, CString)>,
        attributes: u64,
    },
    Bind {
        source: CString,
        target: CString,
        recursive: bool,
    },
    Device(Device),
    Symlink {
        path: CString,
        target: CString,
    },
    Directory {
        path: CString,
        mode: u32,
    },
    Mask(CString),
    ReadOnly(CString),
    PivotRoot,
    RootReadOnly,
    RootPropagation(u64),
    Sysctl {
        name: CString,
        value: Bytes,
    },
    Rlimit {
        resource: u32,
        soft: u64,
        hard: u64,
    },
    OomScoreAdj(Bytes),
    WorkingDirectory {
        path: CString,
        create: bool,
    },
    OwnStdio {
        uid: u32,
        gid: u32,
    },
    Identity(Identity),
    NoNewPrivileges,
    /// `exec NAME`, as the kernel takes it.
    AppArmor(Bytes),
}

pub struct Device {
    pub path: CString,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// What the keeper adds to every plan.
pub struct Surroundings<'a> {
    pub fds: &'a [Arc<OwnedFd>],
    /// The child's end.
    pub channel: BorrowedFd<'a>,
    pub report: &'a Report,
    pub proc: BorrowedFd<'a>,
    /// The keeper's executable, for a pod's init.
    pub executable: BorrowedFd<'a>,
}

/// A plan that makes no sense; the sentence says why.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid(pub String);

type Result<T> = std::result::Result<T, Invalid>;

/// Collects what the child must keep while it looks descriptors up.
struct Fds<'a> {
    list: &'a [Arc<OwnedFd>],
    keep: Vec<u32>,
}

impl<'a> Fds<'a> {
    fn get(&self, fd: Fd) -> Result<BorrowedFd<'a>> {
        let fd = self.list.get(usize::from(fd.0));
        fd.map(|fd| fd.as_fd()).ok_or_else(|| Invalid("the plan names a descriptor that did not come".into()))
    }

    fn kept(&mut self, fd: Fd) -> Result<BorrowedFd<'a>> {
        let fd = self.get(fd)?;
        self.keep(fd);
        Ok(fd)
    }

    fn keep(&mut self, fd: BorrowedFd<'a>) {
        self.keep.push(fd.as_raw_fd() as u32);
    }
}

fn string(bytes: Bytes) -> Result<CString> {
    CString::new(bytes).map_err(|e| {
        let text = String::from_utf8_lossy(&e.into_vec()).into_owned();
        Invalid(format!("a NUL byte in {text:?}"))
    })
}

fn strings(list: Vec<Bytes>) -> Result<Strings> {
    Ok(Strings::new(list.into_iter().map(string).collect::<Result<_>>()?))
}

/// An absolute path without empty and "." components, so that its last component is a name.
fn path(bytes: &[u8]) -> Result<CString> {
    if bytes.first() != Some(&b'/') {
        return Err(Invalid(format!("{:?} is not an absolute path", String::from_utf8_lossy(bytes))));
    }
    let mut clean = Vec::with_capacity(bytes.len() + 1);
    for part in bytes.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".") {
        clean.push(b'/');
        clean.extend_from_slice(part);
    }
    if clean.is_empty() {
        clean.push(b'/');
    }
    if clean.len() >= libc::PATH_MAX as usize {
        return Err(Invalid("a path of more than 4095 bytes".into()));
    }
    string(clean)
}

/// Prepares a plan. Its strings are moved, not copied.
pub fn prepare<'a>(plan: SpawnPlan, around: &Surroundings<'a>) -> Result<Prepared<'a>> {
    let mut fds = Fds { list: around.fds, keep: Vec::new() };
    fds.keep(around.channel);
    let no_new_privileges = plan.steps.iter().any(|step| matches!(step, Step::NoNewPrivileges));
    let joins = matches!(plan.pid, PidNamespace::Join(_));
    let needs_proc =
        |step: &Step| matches!(step, Step::Sysctl { .. } | Step::OomScoreAdj(_) | Step::AppArmor(_));
    if joins || plan.steps.iter().any(needs_proc) {
        fds.keep(around.proc);
    }
    let (new_pid, enter) = match plan.pid {
        PidNamespace::Host => (0, None),
        PidNamespace::New => (CLONE_NEWPID, None),
        PidNamespace::Join(fd) => (0, Some(fds.kept(fd)?)),
    };
    let join = plan.join.iter().map(|(fd, flags)| Ok((fds.kept(*fd)?, *flags))).collect::<Result<_>>()?;
    let tasks = plan.cgroup.tasks.iter().map(|fd| fds.kept(*fd)).collect::<Result<_>>()?;
    let cgroup = plan.cgroup.unified.map(|fd| fds.get(fd)).transpose()?;
    let [a, b, c] = plan.stdio;
    let stdio = [fds.kept(a)?, fds.kept(b)?, fds.kept(c)?];
    let capabilities = plan.steps.iter().find_map(|step| match step {
        Step::Identity(identity) => Some([identity.effective, identity.permitted, identity.inheritable]),
        _ => None,
    });
    let steps = plan.steps.into_iter().map(|step| action(step, &mut fds)).collect::<Result<_>>()?;
    let program = executable(plan.exec.program, around, &mut fds)?;
    let loading = |program: &[u8]| match enter {
        Some(_) => filter::loading(program, plan.terminal, !no_new_privileges),
        None => Loading::Last,
    };
    let filter =
        plan.seccomp.map(|program| whole_filter(program, plan.seccomp_flags, loading)).transpose()?;
    fds.keep.sort_unstable();
    fds.keep.dedup();
    Ok(Prepared {
        clone_flags: plan.new_namespaces | new_pid,
        cgroup,
        keep: fds.keep,
        tasks,
        join,
        enter,
        stdio,
        terminal: plan.terminal,
        steps,
        park: plan.park,
        keeps_admin: !no_new_privileges && filter.as_ref().is_some_and(|f| f.loading != Loading::Thread),
        filter,
        capabilities,
        program,
        argv: strings(plan.exec.argv)?,
        envp: strings(plan.exec.envp)?,
        channel: around.channel,
        report: around.report,
        proc: around.proc,
    })
}

fn executable<'a>(program: Program, around: &Surroundings<'a>, fds: &mut Fds<'a>) -> Result<Executable<'a>> {
    match program {
        Program::Search(list) if list.is_empty() => Err(Invalid("no program to execute".into())),
        Program::Search(list) => Ok(Executable::Search(list.into_iter().map(string).collect::<Result<_>>()?)),
        Program::PodInit => {
            fds.keep(around.executable);
            Ok(Executable::File(around.executable))
        }
    }
}

fn whole_filter(program: Bytes, flags: u32, loading: impl Fn(&[u8]) -> Loading) -> Result<Filter> {
    if program.is_empty() || !program.len().is_multiple_of(8) {
        return Err(Invalid("a seccomp program that is not made of 8-byte instructions".into()));
    }
    Ok(Filter { loading: loading(&program), program, flags })
}

fn action<'a>(step: Step, fds: &mut Fds<'a>) -> Result<Action<'a>> {
    Ok(match step {
        Step::CgroupNamespace => Action::CgroupNamespace,
        Step::Reset => Action::Reset,
        Step::Hostname(name) => Action::Hostname(name),
        Step::Root { mount, propagation } => Action::Root { mount: fds.kept(mount)?, propagation },
        Step::Attach { mount, target, directory, .. } => {
            Action::Attach { mount: fds.kept(mount)?, target: path(&target)?, directory }
        }
        Step::Mount { fstype, target, options, attributes } => {
            let options = options.into_iter().map(|(k, v)| Ok((string(k)?, string(v)?)));
            Action::Mount {
                fstype: string(fstype)?,
                target: path(&target)?,
                options: options.collect::<Result<_>>()?,
                attributes,
            }
        }
        Step::Bind { source, target, recursive } => {
            Action::Bind { source: path(&source)?, target: path(&target)?, recursive }
        }
        Step::Device { path: at, kind, major, minor, mode, uid, gid } => {
            Action::Device(Device { path: path(&at)?, kind, major, minor, mode, uid, gid })
        }
        Step::Symlink { path: at, target } => Action::Symlink { path: path(&at)?, target: string(target)? },
        Step::Directory { path: at, mode } => Action::Directory { path: path(&at)?, mode },
        Step::Mask { path: at } => Action::Mask(path(&at)?),
        Step::ReadOnly { path: at } => Action::ReadOnly(path(&at)?),
        Step::PivotRoot => Action::PivotRoot,
        Step::RootReadOnly => Action::RootReadOnly,
        Step::RootPropagation(flags) => Action::RootPropagation(flags),
        Step::Sysctl { name, value } => Action::Sysctl { name: sysctl_path(&name)?, value },
        Step::Rlimit { resource, soft, hard } => Action::Rlimit { resource, soft, hard },
        Step::OomScoreAdj(value) => Action::OomScoreAdj(value.to_string().into_bytes()),
        Step::WorkingDirectory { path: at, create } => Action::WorkingDirectory { path: path(&at)?, create },
        Step::OwnStdio { uid, gid } => Action::OwnStdio { uid, gid },
        Step::Identity(identity) => Action::Identity(identity),
        Step::NoNewPrivileges => Action::NoNewPrivileges,
        Step::AppArmor(profile) => Action::AppArmor([b"exec ".as_slice(), &profile].concat()),
    })
}

/// `net/ipv4/ip_forward` (or with dots) below the root of a procfs.
fn sysctl_path(name: &[u8]) -> Result<CString> {
    // With a slash anywhere the name is a path already, whose components may hold dots (eth0.1).
    let slashed = if name.contains(&b'/') {
        name.to_vec()
    } else {
        name.iter().map(|b| if *b == b'.' { b'/' } else { *b }).collect()
    };
    let path = [b"sys/".as_slice(), &slashed].concat();
    if path.split(|b| *b == b'/').any(|part| part.is_empty() || part == b"." || part == b"..") {
        return Err(Invalid(format!("{:?} is not a sysctl", String::from_utf8_lossy(name))));
    }
    string(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_but_never_leave_what_they_say() {
        assert_eq!(path(b"/a//b/./c/").unwrap().as_bytes(), b"/a/b/c");
        assert_eq!(path(b"//.").unwrap().as_bytes(), b"/");
        assert_eq!(path(b"/a/../b").unwrap().as_bytes(), b"/a/../b");
        assert!(path(b"a/b").is_err());
        assert!(path(b"").is_err());
        assert!(path(b"/a\0b").is_err());
        assert!(path(&[b"/".as_slice(), &[b'x'; 4095]].concat()).is_err());
    }

    #[test]
    fn sysctls_stay_below_proc_sys() {
        assert_eq!(sysctl_path(b"net.ipv4.ip_forward").unwrap().as_bytes(), b"sys/net/ipv4/ip_forward");
        assert_eq!(sysctl_path(b"net/ipv4/conf/eth0.1/x").unwrap().as_bytes(), b"sys/net/ipv4/conf/eth0.1/x");
        for bad in [&b""[..], b"..", b"../x", b"kernel/../../x", b"/kernel/x", b"a..b", b"kernel//x"] {
            assert!(sysctl_path(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
