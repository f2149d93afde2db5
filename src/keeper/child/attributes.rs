//! What a program would inherit from the keeper unless it is reset, and what it is given instead.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

use crate::sys::fd::standard;
use crate::sys::prctl;

/// Major numbers of pseudo terminals.
const PTS: std::ops::RangeInclusive<u32> = 136..=143;

/// `helper`: the session is for the process that a helper clones.
pub fn reset(helper: bool) -> Result<()> {
    if !helper {
        // The leader of a session already (of a PID namespace, say) is fine.
        let _ = rustix::process::setsid();
    }
    // Dispositions were reset by the clone, except of signals that the keeper ignores: this one only
    // (keeper::setup).
    prctl::default_signal(libc::SIGPIPE)?;
    prctl::set_signal_mask(0)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    match prctl::new_session_keyring() {
        // A kernel without keyrings has none to share.
        Ok(()) | Err(Errno::NOSYS) => {}
        Err(e) => return Err(e),
    }
    prctl::no_death_signal()?;
    prctl::timer_slack(50_000)?;
    // Where it may not be changed it is what the whole host runs with.
    let _ = prctl::default_scheduling();
    Ok(())
}

/// Raises or lowers a limit as far as is allowed: an unprivileged host keeps its hard limit.
pub fn limit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    match prctl::set_limit(resource, soft, hard) {
        Err(Errno::PERM) => {
            let (_, highest) = prctl::limit(resource)?;
            prctl::set_limit(resource, soft.min(highest), hard.min(highest))
        }
        other => other,
    }
}

/// Writes through the keeper's own procfs: the container's could be anything.
pub fn oom_score(proc: BorrowedFd<'_>, value: &[u8]) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    // "self" is ours there, since this procfs is of the keeper's PID namespace.
    let file = rustix::fs::openat(proc, c"self/oom_score_adj", flags, Mode::empty())?;
    match rustix::io::write(&file, value) {
        Ok(_) | Err(Errno::ACCESS | Errno::PERM) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Asks for a profile at the next execve, which the process that a helper clones inherits.
pub fn apparmor(proc: BorrowedFd<'_>, text: &[u8]) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(proc, c"self/attr/apparmor/exec", flags, Mode::empty()) {
        // The name that it shares with other modules, before Linux 5.8.
        Err(Errno::NOENT) => rustix::fs::openat(proc, c"self/attr/exec", flags, Mode::empty())?,
        other => other?,
    };
    match rustix::io::write(&file, text)? {
        n if n == text.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}

/// Writes a sysctl through the keeper's own procfs, which nothing in the container can cover; what
/// is namespaced there is so by the writer's namespaces.
pub fn sysctl(proc: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<()> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(proc, name, flags, Mode::empty(), resolve)?;
    if rustix::fs::fstatfs(&file)?.f_type != rustix::fs::PROC_SUPER_MAGIC {
        return Err(Errno::XDEV);
    }
    match rustix::io::write(&file, value)? {
        n if n == value.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}

/// Pipes and terminals only: /dev/null is everybody's.
pub fn own_stdio(uid: u32, gid: u32) -> Result<()> {
    for fd in [0, 1, 2].map(standard) {
        let stat = rustix::fs::fstat(fd)?;
        let ours = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Fifo | FileType::Socket => true,
            FileType::CharacterDevice => PTS.contains(&rustix::fs::major(stat.st_rdev)),
            _ => false,
        };
        if !ours || (stat.st_uid, stat.st_gid) == (uid, gid) {
            continue;
        }
        let owner = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        match rustix::fs::chownat(fd, c"", Some(owner.0), Some(owner.1), AtFlags::EMPTY_PATH) {
            // Not ours to give: an inherited descriptor of a read-only file system, or a mapped one.
            Ok(()) | Err(Errno::PERM | Errno::ROFS | Errno::INVAL) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
