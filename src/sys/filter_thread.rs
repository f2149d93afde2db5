//! A filter that is loaded by another thread: its caller needs no privilege for it, and no call
//! after it.
//!
//! Capabilities belong to threads, and SECCOMP_FILTER_FLAG_TSYNC loads for all of a process. So a
//! thread is made while there still is CAP_SYS_ADMIN; the caller drops that, and asks the thread.
//!
//! For a child of the keeper, which has one thread and forgets all of this at execve.

use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use rustix::io::{Errno, Result};
use rustix::mm::{MapFlags, ProtFlags};

use super::raw::{check, last_error};

const STACK: usize = 32 << 10;

const IDLE: u32 = 0;
const ASKED: u32 = 1;
/// And above: an errno on top of it.
const DONE: u32 = 2;

/// struct sock_fprog.
#[repr(C)]
struct Program {
    length: u16,
    filter: *const u8,
}

static PROGRAM: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static LENGTH: AtomicU32 = AtomicU32::new(0);
static FLAGS: AtomicU32 = AtomicU32::new(0);
static STATE: AtomicU32 = AtomicU32::new(IDLE);

/// The thread that waits. It ends with the process.
pub struct FilterThread<'a>(PhantomData<&'a [u8]>);

/// Makes it, with the capabilities and namespaces of now.
pub fn start(program: &[u8], flags: u32) -> Result<FilterThread<'_>> {
    LENGTH.store(u32::try_from(program.len() / 8).map_err(|_| Errno::INVAL)?, Ordering::Relaxed);
    PROGRAM.store(program.as_ptr().cast_mut(), Ordering::Relaxed);
    FLAGS.store(flags | libc::SECCOMP_FILTER_FLAG_TSYNC as u32, Ordering::Relaxed);
    // The table of descriptors is shared, so that the thread holds none that the caller closes.
    let shared =
        libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_FILES | libc::CLONE_SYSVSEM;
    // SAFETY: a new mapping that nothing else knows and that is never unmapped; the thread has its
    // stack there, downwards from the end, which is aligned. Thread-local storage is the caller's:
    // all that either keeps there is errno, and the thread sleeps while the caller works, and works
    // while the caller waits without a call.
    unsafe {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let stack = rustix::mm::mmap_anonymous(ptr::null_mut(), STACK, access, MapFlags::PRIVATE)?;
        let top = stack.cast::<u8>().add(STACK);
        if libc::clone(run, top.cast(), shared, ptr::null_mut()) < 0 {
            return Err(last_error());
        }
    }
    Ok(FilterThread(PhantomData))
}

/// Has the filter loaded, for the caller too.
///
/// From here on the filter may forbid any call, even one that waits, so this spins: the thread needs
/// some microseconds, or the scheduler's turn where there is one processor.
pub fn load(_thread: FilterThread<'_>) -> Result<()> {
    STATE.store(ASKED, Ordering::Release);
    // SAFETY: the address of a static word.
    check(unsafe { libc::syscall(libc::SYS_futex, STATE.as_ptr(), libc::FUTEX_WAKE, 1) })?;
    loop {
        match STATE.load(Ordering::Acquire) {
            IDLE | ASKED => std::hint::spin_loop(),
            DONE => return Ok(()),
            failed => return Err(Errno::from_raw_os_error((failed - DONE) as i32)),
        }
    }
}

extern "C" fn run(_: *mut libc::c_void) -> libc::c_int {
    while STATE.load(Ordering::Acquire) == IDLE {
        // SAFETY: the address of a static word; a null pointer means no limit of time.
        unsafe { libc::syscall(libc::SYS_futex, STATE.as_ptr(), libc::FUTEX_WAIT, IDLE, 0usize) };
    }
    let length = LENGTH.load(Ordering::Relaxed) as u16;
    let program = Program { length, filter: PROGRAM.load(Ordering::Relaxed) };
    let flags = FLAGS.load(Ordering::Relaxed);
    // SAFETY: the kernel copies `length` instructions of 8 bytes from what `start` was given, which
    // `load`, by which we are here, has a borrow of.
    let answer = check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    });
    let state = match answer {
        Ok(0) => DONE,
        // The thread that could not be brought along: it has another filter already.
        Ok(_) => DONE + Errno::BUSY.raw_os_error() as u32,
        Err(e) => DONE + e.raw_os_error() as u32,
    };
    STATE.store(state, Ordering::Release);
    // The filter may forbid to end, or to sleep. The process ends at once.
    loop {
        std::hint::spin_loop();
    }
}
