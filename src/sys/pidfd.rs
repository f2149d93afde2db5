//! What a pidfd tells about a process that has ended.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Result;
use rustix::process::{WaitId, WaitIdOptions};

use super::raw::check;

/// How a process ended: exit code or signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Code(u8),
    Signal(u8),
}

impl Ended {
    /// From the status word of wait(2).
    pub fn from_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Code((status >> 8) as u8),
            signal => Self::Signal(signal as u8),
        }
    }
}

/// How the child behind `pidfd` ended, if it has; it stays to be reaped, so that whoever is killed
/// before it could write that down loses nothing. ECHILD: it is no (or no longer a) child of ours.
pub fn peek(pidfd: BorrowedFd<'_>) -> Result<Option<Ended>> {
    wait(pidfd, WaitIdOptions::NOWAIT)
}

/// Reaps the child behind `pidfd` if it has ended. ECHILD: it is no (or no longer a) child of ours.
pub fn reap(pidfd: BorrowedFd<'_>) -> Result<Option<Ended>> {
    wait(pidfd, WaitIdOptions::empty())
}

fn wait(pidfd: BorrowedFd<'_>, more: WaitIdOptions) -> Result<Option<Ended>> {
    // __WALL: a child's exit signal does not matter to us.
    let all = WaitIdOptions::from_bits_retain(libc::__WALL as u32);
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | all | more;
    let status = rustix::process::waitid(WaitId::PidFd(pidfd), options)?;
    Ok(status.map(|status| match status.exit_status() {
        Some(code) => Ended::Code(code as u8),
        None => Ended::Signal(status.terminating_signal().unwrap_or_default() as u8),
    }))
}

/// struct pidfd_info, version 0.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ids: [u32; 8],
    exit_code: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
const PIDFD_GET_INFO: u64 = 0xC000_FF0B | ((size_of::<PidfdInfo>() as u64) << 16);

/// How the stranger behind `pidfd` ended: known once somebody has reaped it, on kernels from 6.15.
pub fn ended(pidfd: BorrowedFd<'_>) -> Option<Ended> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the structure's size is part of the request's number.
    let done =
        check(unsafe { libc::syscall(libc::SYS_ioctl, pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) });
    match done {
        Ok(_) if info.mask & PIDFD_INFO_EXIT != 0 => Some(Ended::from_status(info.exit_code)),
        _ => None,
    }
}

/// Whether the process is a child of ours (alive or not yet reaped).
pub fn is_child(pidfd: BorrowedFd<'_>) -> bool {
    peek(pidfd).is_ok()
}

/// Whether it has not ended yet.
pub fn is_alive(pidfd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&at_once)) == Ok(0)
}

/// The ID of some child that has ended and is not reaped yet.
pub fn any_ended_child() -> Option<i32> {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: all zero is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure; si_pid is valid after waitid and 0 if there was none.
    unsafe {
        check(libc::syscall(libc::SYS_waitid, libc::P_ALL, 0, &raw mut info, options, 0usize)).ok()?;
        Some(info.si_pid()).filter(|pid| *pid > 0)
    }
}

/// Reaps a child that [`any_ended_child`] named.
pub fn reap_pid(pid: i32) {
    let options = libc::WEXITED | libc::WNOHANG | libc::__WALL;
    // SAFETY: no result is asked for.
    unsafe { libc::syscall(libc::SYS_waitid, libc::P_PID, pid, 0usize, options, 0usize) };
}

/// pidfd_send_signal(2); 0 tests only. ESRCH: it has ended.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: a null siginfo means one as of kill(2).
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0usize, 0u32) })
        .map(drop)
}
