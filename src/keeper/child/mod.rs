//! What runs between clone3 and execve: raw system calls on prepared data, in order.
//!
//! Nothing here allocates, locks or panics on purpose: the process is a copy of a keeper with two
//! threads, of which only one was copied. The first error ends it; where it stands goes into the
//! shared report, which takes no system call.

mod attributes;
mod identity;
mod path;
mod rootfs;

use std::os::fd::AsRawFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::net::{RecvFlags, SendFlags};

use super::filter::Loading;
use super::plan::{Failure, Stage};
use super::prepare::{Action, Executable, Prepared};
use crate::sys::clone::{self, CLONE_NEWPID, Side};
use crate::sys::filter_thread::{self, FilterThread};
use crate::sys::prctl;

/// Sent by a child that stops until it is released.
pub const PARKED: &[u8] = b"parked";
/// Sent to it: go on.
pub const GO: &[u8] = b"go";

trait At<T> {
    fn at(self, stage: Stage) -> std::result::Result<T, Failure>;
}

impl<T> At<T> for Result<T> {
    fn at(self, stage: Stage) -> std::result::Result<T, Failure> {
        self.map_err(|e| Failure { stage, errno: e.raw_os_error() })
    }
}

/// The child's whole life before its program.
pub fn run(prepared: &Prepared<'_>) {
    let Err(failure) = until_exec(prepared);
    prepared.report.set_failure(failure);
    clone::exit(127);
}

fn until_exec(p: &Prepared<'_>) -> std::result::Result<std::convert::Infallible, Failure> {
    // 1. Other containers' pipes, channels and namespaces would live as long as we do.
    close_all_but(&p.keep).at(Stage::CloseFds)?;
    // 2. Before anything that the cgroup should account for.
    for tasks in &p.tasks {
        rustix::io::write(tasks, b"0").at(Stage::Cgroup)?;
    }
    // 3. Namespaces that exist. The PID namespace is for our child only.
    for (fd, flags) in &p.join {
        clone::setns(*fd, *flags).at(Stage::Join)?;
    }
    // A thread of ours must be in the PID namespace that our children come into: ours, so far.
    let filter_thread = match &p.filter {
        Some(filter) if filter.loading == Loading::Thread => {
            Some(filter_thread::start(&filter.program, filter.flags).at(Stage::Seccomp)?)
        }
        _ => None,
    };
    if let Some(namespace) = p.enter {
        clone::setns(namespace, CLONE_NEWPID).at(Stage::Enter)?;
    }
    // 4. Before the steps, so that they can give them to the user.
    for (number, fd) in p.stdio.iter().enumerate() {
        clone::dup_to(*fd, number as i32).at(Stage::Stdio)?;
    }
    // 5. What the plan asks for.
    let mut root = rootfs::Root::default();
    if p.enter.is_some() {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = rustix::fs::openat(p.proc, c"self/ns/pid_for_children", flags, Mode::empty());
        root.pid_namespace = Some(namespace.at(Stage::Enter)?);
    }
    for (index, action) in p.steps.iter().enumerate() {
        carry_out(action, p, &mut root).at(Stage::Step(index as u32))?;
    }
    // A process of its own session has the terminal; a helper leaves this to its child.
    if p.terminal && p.enter.is_none() {
        prctl::controlling_terminal(p.stdio_terminal()).at(Stage::Stdio)?;
    }
    // 6. What is left is our own, however long we are parked. Its owner must not close it again.
    std::mem::forget(root);
    close_all_but(&p.last_fds().map(|fd| fd as u32)).at(Stage::CloseFds)?;
    // 7. The other end closed means that nobody is left who could start us. No program ran, so the
    //    code must not look like a program's success.
    if p.park && !released(p) {
        clone::exit(126);
    }
    // 8. The final process has nothing left to do that another one in there could make use of.
    if p.enter.is_some() {
        enter(p, filter_thread)?;
    }
    // 9. Last of all, so that a filter may deny whatever was needed before.
    if let Some(filter) = p.filter.as_ref().filter(|filter| filter.loading == Loading::Last) {
        prctl::load_seccomp(&filter.program, filter.flags).at(Stage::Seccomp)?;
    }
    Err(Failure { stage: Stage::Exec, errno: execute(p).raw_os_error() })
}

impl<'a> Prepared<'a> {
    /// Standard input, which is the terminal. Its own number, since the source may be closed.
    fn stdio_terminal(&self) -> std::os::fd::BorrowedFd<'static> {
        crate::sys::fd::standard(0)
    }

    /// The descriptors that are open up to execve, ascending; doubles are harmless.
    fn last_fds(&self) -> [i32; 5] {
        let channel = self.channel.as_raw_fd();
        match &self.program {
            Executable::File(file) => {
                let file = file.as_raw_fd();
                [0, 1, 2, channel.min(file), channel.max(file)]
            }
            Executable::Search(_) => [0, 1, 2, channel, channel],
        }
    }
}

/// Closes the gaps between the numbers of an ascending list.
fn close_all_but(keep: &[u32]) -> Result<()> {
    let mut next = 0;
    for number in keep {
        if *number > next {
            clone::close_range(next, number - 1)?;
        }
        next = next.max(number + 1);
    }
    clone::close_range(next, u32::MAX)
}

/// Says that we are parked, and waits. False: nobody holds the other end any more.
fn released(p: &Prepared<'_>) -> bool {
    let mut buffer = [0u8; 8];
    // The holders may be gone already; the receive below tells.
    let _ = rustix::net::send(p.channel, PARKED, SendFlags::NOSIGNAL);
    loop {
        match rustix::net::recv(p.channel, &mut buffer, RecvFlags::empty()) {
            Ok((0, _)) => return false,
            Ok(_) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Clones the final process into the PID namespace and ends the helper.
fn enter(p: &Prepared<'_>, thread: Option<FilterThread<'_>>) -> std::result::Result<(), Failure> {
    // 1. Before a filter that may forbid it.
    p.report.hide_pid_from_children().at(Stage::Enter)?;
    // 2. The filter, and no privilege beyond it: somebody in there may take the final process over
    //    as soon as there is one (`filter`).
    if let Some(thread) = thread {
        filter_thread::load(thread).at(Stage::Seccomp)?;
    } else if let Some(filter) = p.filter.as_ref().filter(|filter| filter.loading == Loading::Helper) {
        prctl::load_seccomp(&filter.program, filter.flags).at(Stage::Seccomp)?;
        if let Some([effective, permitted, inheritable]) = p.capabilities.filter(|_| p.keeps_admin) {
            prctl::set_capabilities(effective, permitted, inheritable).at(Stage::Seccomp)?;
        }
    }
    match clone::clone_sibling(p.report.pid_word()).at(Stage::Enter)? {
        Side::Helper => clone::exit(0),
        Side::Child => {}
    }
    // 3. The helper's session ends with the helper; and with it would go the terminal.
    rustix::process::setsid().map(drop).at(Stage::Enter)?;
    if p.terminal {
        prctl::controlling_terminal(p.stdio_terminal()).at(Stage::Enter)?;
    }
    Ok(())
}

/// execve of the first candidate that there is. Returns only the reason why none could be.
fn execute(p: &Prepared<'_>) -> Errno {
    let candidates = match &p.program {
        Executable::File(file) => return clone::execve_fd(*file, &p.argv, &p.envp),
        Executable::Search(candidates) => candidates,
    };
    let mut answer = Errno::NOENT;
    for candidate in candidates {
        match clone::execve(candidate, &p.argv, &p.envp) {
            // One that may not be executed is the answer unless a later one can be.
            Errno::ACCESS => answer = Errno::ACCESS,
            Errno::NOENT | Errno::NOTDIR => {}
            error => return error,
        }
    }
    answer
}

fn carry_out<'a>(action: &Action<'a>, p: &Prepared<'a>, root: &mut rootfs::Root<'a>) -> Result<()> {
    match action {
        Action::CgroupNamespace => clone::unshare(clone::CLONE_NEWCGROUP),
        Action::Reset => attributes::reset(p.enter.is_some()),
        Action::Hostname(name) => rustix::system::sethostname(name),
        Action::Root { mount, propagation } => root.attach_root(*mount, *propagation),
        Action::Attach { mount, target, directory } => root.attach(*mount, target, *directory),
        Action::Mount { fstype, target, options, attributes } => {
            root.mount(fstype, target, options, *attributes)
        }
        Action::Bind { source, target, recursive } => root.bind(source, target, *recursive),
        Action::Device(device) => root.device(device),
        Action::Symlink { path, target } => root.symlink(path, target),
        Action::Directory { path, mode } => root.directory(path, *mode),
        Action::Mask(path) => root.mask(path),
        Action::ReadOnly(path) => root.read_only(path),
        Action::PivotRoot => root.pivot(),
        Action::RootReadOnly => root.make_read_only(),
        Action::RootPropagation(flags) => root.propagate(*flags),
        Action::Sysctl { name, value } => attributes::sysctl(p.proc, name, value),
        Action::Rlimit { resource, soft, hard } => attributes::limit(*resource, *soft, *hard),
        Action::OomScoreAdj(value) => attributes::oom_score(p.proc, value),
        Action::WorkingDirectory { path, create } => root.enter_directory(path, *create),
        Action::OwnStdio { uid, gid } => attributes::own_stdio(*uid, *gid),
        Action::Identity(identity) => identity::become_user(identity, p.keeps_admin),
        Action::NoNewPrivileges => prctl::no_new_privileges(),
        Action::AppArmor(text) => attributes::apparmor(p.proc, text),
    }
}
