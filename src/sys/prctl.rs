//! What a process may be told about itself, by raw calls: libc's set*id signal other threads.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Result;

use super::raw::check;

const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

fn prctl(option: libc::c_int, a: u64, b: u64) -> Result<usize> {
    // SAFETY: only options that take numbers are used in this file.
    check(unsafe { libc::syscall(libc::SYS_prctl, option, a, b, 0u64, 0u64) })
}

/// EINVAL: the kernel knows no such capability.
pub fn drop_from_bounding_set(capability: u32) -> Result<()> {
    prctl(libc::PR_CAPBSET_DROP, u64::from(capability), 0).map(drop)
}

/// Whether the bounding set has it; EINVAL as above.
pub fn in_bounding_set(capability: u32) -> Result<bool> {
    Ok(prctl(libc::PR_CAPBSET_READ, u64::from(capability), 0)? == 1)
}

pub fn keep_capabilities() -> Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1, 0).map(drop)
}

pub fn clear_ambient() -> Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0).map(drop)
}

pub fn raise_ambient(capability: u32) -> Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, u64::from(capability)).map(drop)
}

pub fn no_new_privileges() -> Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// Neither core dumps nor ptrace nor /proc/PID/mem by anyone without CAP_SYS_PTRACE over us.
pub fn not_dumpable() -> Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

pub fn child_subreaper() -> Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).map(drop)
}

pub fn no_death_signal() -> Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, 0, 0).map(drop)
}

/// Nanoseconds; 50,000 is the kernel's default.
pub fn timer_slack(nanoseconds: u64) -> Result<()> {
    prctl(libc::PR_SET_TIMERSLACK, nanoseconds, 0).map(drop)
}

/// capset(2) of the calling thread.
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<()> {
    let header: [u32; 2] = [CAPABILITY_VERSION_3, 0];
    let half = |shift: u32| [effective, permitted, inheritable].map(|set| (set >> shift) as u32);
    let data: [[u32; 3]; 2] = [half(0), half(32)];
    // SAFETY: version 3 reads a header of two words and two triples of words.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}

pub fn set_groups(groups: &[u32]) -> Result<()> {
    // SAFETY: length and pointer are of one slice; the kernel reads it only.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

pub fn set_gid(gid: u32) -> Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

pub fn set_uid(uid: u32) -> Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// A session keyring of its own, without a name.
pub fn new_session_keyring() -> Result<()> {
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0usize) }).map(drop)
}

/// SCHED_OTHER, nice 0, no I/O priority of its own.
pub fn default_scheduling() -> Result<()> {
    let priority: libc::c_int = 0;
    // SAFETY: a valid pointer to sched_param, which is one int; the rest are numbers.
    unsafe {
        check(libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_OTHER, &raw const priority))?;
        check(libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, 0))?;
        check(libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, 0)).map(drop)
    }
}

/// Whether a signal is ignored; false for what is no signal.
pub fn is_ignored(signal: i32) -> bool {
    let mut action = [0u64; 4];
    // SAFETY: as long as the kernel's structure with its 8-byte mask, which is written there.
    let asked = check(unsafe {
        libc::syscall(libc::SYS_rt_sigaction, signal, 0usize, action.as_mut_ptr(), size_of::<u64>())
    });
    asked.is_ok() && action[0] == libc::SIG_IGN as u64
}

/// The default disposition of a signal that was ignored.
pub fn default_signal(signal: i32) -> Result<()> {
    // The kernel's struct sigaction: handler, flags, restorer, mask; all zero is SIG_DFL.
    let action = [0u64; 4];
    // SAFETY: as long as the kernel's structure with its 8-byte mask, and only read.
    check(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), 0usize, size_of::<u64>()) })
        .map(drop)
}

/// Sets the mask of blocked signals: bit n-1 is signal n.
pub fn set_signal_mask(mask: u64) -> Result<()> {
    // SAFETY: reads 8 bytes.
    check(unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, 0usize, size_of::<u64>())
    })
    .map(drop)
}

/// signalfd4(2) for the signals of `mask`, non-blocking, CLOEXEC.
pub fn signal_fd(mask: u64) -> Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    let flags = libc::SFD_NONBLOCK | libc::SFD_CLOEXEC;
    // SAFETY: reads 8 bytes; the descriptor is new and ours.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, size_of::<u64>(), flags))?;
        Ok(std::os::fd::OwnedFd::from_raw_fd(fd as i32))
    }
}

/// prlimit64(2) of this process.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let new = [soft, hard];
    // SAFETY: struct rlimit64 is two words, only read.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, new.as_ptr(), 0usize) }).map(drop)
}

/// Soft and hard limit of this process.
pub fn limit(resource: u32) -> Result<(u64, u64)> {
    let mut old = [0u64; 2];
    // SAFETY: struct rlimit64 is two words, which the kernel fills.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, 0usize, old.as_mut_ptr()) })?;
    Ok((old[0], old[1]))
}

/// Loads a filter of 8-byte cBPF instructions.
pub fn load_seccomp(program: &[u8], flags: u32) -> Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const u8,
    }
    let length = u16::try_from(program.len() / 8).map_err(|_| rustix::io::Errno::INVAL)?;
    let program = Program { length, filter: program.as_ptr() };
    // SAFETY: struct sock_fprog; the kernel copies `length` instructions of 8 bytes from the slice.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    })
    .map(drop)
}

/// The working directory as the kernel says it, without its NUL: "(unreachable)…" if it lies
/// outside the root.
pub fn current_directory(buffer: &mut [u8]) -> Result<&[u8]> {
    // SAFETY: pointer and length are of one slice.
    let length = check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })?;
    Ok(&buffer[..length.saturating_sub(1)])
}

/// Makes a terminal the controlling one of this session.
pub fn controlling_terminal(terminal: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: takes a number.
    check(unsafe { libc::syscall(libc::SYS_ioctl, terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}
