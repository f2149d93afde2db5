//! clone3(2), execve(2) and what stands between them.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, Result};

use super::raw::{check, last_error};

pub const CLONE_NEWNS: u64 = 0x0002_0000;
pub const CLONE_NEWCGROUP: u64 = 0x0200_0000;
pub const CLONE_NEWUTS: u64 = 0x0400_0000;
pub const CLONE_NEWIPC: u64 = 0x0800_0000;
pub const CLONE_NEWUSER: u64 = 0x1000_0000;
pub const CLONE_NEWPID: u64 = 0x2000_0000;
pub const CLONE_NEWNET: u64 = 0x4000_0000;
const CLONE_PIDFD: u64 = 0x0000_1000;
const CLONE_PARENT: u64 = 0x0000_8000;
const CLONE_PARENT_SETTID: u64 = 0x0010_0000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// struct clone_args of clone3(2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

impl CloneArgs {
    /// 0 in the child, which goes on with a copy of this thread's stack and memory.
    fn call(&self) -> Result<usize> {
        // SAFETY: the structure is as the kernel has it, its pointers are valid for the call, and
        // without CLONE_VM the child has memory of its own, so that it can spoil nothing here.
        check(unsafe { libc::syscall(libc::SYS_clone3, self as *const Self, size_of::<Self>()) })
    }
}

/// Clones this process: `child` runs in the copy, which ends with it.
///
/// The copy has this thread only: where another thread held a lock (malloc's too), it stays held
/// for ever. So `child` may allocate nothing and call nothing that locks.
pub fn clone_child(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce(),
) -> Result<(i32, OwnedFd)> {
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: flags | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    match args.call()? {
        0 => {
            child();
            exit(127)
        }
        // SAFETY: the kernel has just made this descriptor for us.
        pid => Ok((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) })),
    }
}

pub enum Side {
    Helper,
    Child,
}

/// What [`clone_sibling`] asks of clone(2): its first argument, for who must know whether a filter
/// lets it pass.
pub const SIBLING_FLAGS: u64 = CLONE_PARENT | CLONE_PARENT_SETTID;

/// Clones a sibling into the PID namespace that setns(2) chose: its parent is our parent. Its ID
/// there is stored at `pid` before it runs.
///
/// clone(2), since filters that cannot look into clone3's structure forbid that.
pub fn clone_sibling(pid: &std::sync::atomic::AtomicU32) -> Result<Side> {
    // SAFETY: without CLONE_VM the child has memory of its own, and without a new stack it goes on
    // with its copy of this one; `pid` is a word that the kernel may write.
    let answer = check(unsafe {
        libc::syscall(libc::SYS_clone, SIBLING_FLAGS, 0usize, pid.as_ptr(), 0usize, 0usize)
    })?;
    Ok(if answer == 0 { Side::Child } else { Side::Helper })
}

/// Leaves without running anything of libc's. A filter that forbids exit_group cannot keep us.
pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: takes a number only; where it does return, the undefined instruction ends the
        // process.
        unsafe {
            libc::syscall(libc::SYS_exit_group, code);
            #[cfg(target_arch = "x86_64")]
            std::arch::asm!("ud2");
            #[cfg(target_arch = "aarch64")]
            std::arch::asm!("udf #0");
        }
    }
}

/// Strings as execve takes them: an array of pointers with a null at its end, made beforehand.
pub struct Strings {
    pointers: Vec<*const libc::c_char>,
    _strings: Vec<CString>,
}

// SAFETY: the pointers point into heap blocks that `_strings` owns, wherever the structure moves.
unsafe impl Send for Strings {}

impl Strings {
    pub fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect();
        Self { pointers, _strings: strings }
    }
}

/// execve(2); returns the error only.
pub fn execve(path: &CStr, argv: &Strings, envp: &Strings) -> Errno {
    // SAFETY: three valid pointers; both arrays end with a null.
    unsafe { libc::syscall(libc::SYS_execve, path.as_ptr(), argv.pointers.as_ptr(), envp.pointers.as_ptr()) };
    last_error()
}

/// execveat(2) of an open file; returns the error only.
pub fn execve_fd(file: BorrowedFd<'_>, argv: &Strings, envp: &Strings) -> Errno {
    // SAFETY: as for execve; the empty path with AT_EMPTY_PATH means the file itself.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.pointers.as_ptr(),
            envp.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    last_error()
}

/// close_range(2), both ends included.
///
/// For a child that has just been cloned: the owners of what it closes are in its copy of the
/// parent's memory, and never run there.
pub fn close_range(first: u32, last: u32) -> Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: see above; nothing in the child uses these numbers again.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) }).map(drop)
}

/// dup3(2) onto a standard descriptor, without CLOEXEC.
pub fn dup_to(fd: BorrowedFd<'_>, number: i32) -> Result<()> {
    // SAFETY: 0, 1 and 2 are owned by nobody in particular.
    check(unsafe { libc::syscall(libc::SYS_dup3, fd.as_raw_fd(), number, 0) }).map(drop)
}

/// setns(2).
pub fn setns(fd: BorrowedFd<'_>, flags: u64) -> Result<()> {
    // SAFETY: changes this process only, which has one thread.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), flags as libc::c_int) }).map(drop)
}

/// unshare(2).
pub fn unshare(flags: u64) -> Result<()> {
    // SAFETY: without CLONE_FILES and CLONE_VM nothing that Rust relies on changes.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags as libc::c_int) }).map(drop)
}
