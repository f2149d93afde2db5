//! The profile of RuntimeDefault: an allowlist, everything else is EPERM.
//!
//! The policy is that of the other CRI runtimes (moby's profile, as containerd and CRI-O ship it), so
//! that what runs there runs here. It is for kernels from 4.8 on, where a tracer cannot get round a
//! filter, hence ptrace is in it.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator as Op, LinuxSyscall, LinuxSyscallBuilder,
};

use crate::security::capabilities;
use crate::{Error, Result};

/// For a process with these capabilities. System calls that only serve a capability are allowed to
/// those who have it.
pub fn profile(capabilities: u64) -> Result<LinuxSeccomp> {
    let has = |name| capabilities::number(name).is_some_and(|n| capabilities & 1 << n != 0);
    let mut rules = Vec::new();
    for group in ALWAYS {
        rules.push(rule(group, Action::ScmpActAllow, None)?);
    }
    for family in socket_families() {
        rules.push(rule("socket", Action::ScmpActAllow, Some(family?))?);
    }
    for value in PERSONALITIES {
        rules.push(rule(
            "personality",
            Action::ScmpActAllow,
            Some(argument(0, Op::ScmpCmpEq, value, None)?),
        )?);
    }
    for (capability, names) in WITH_CAPABILITY {
        if has(capability) {
            rules.push(rule(names, Action::ScmpActAllow, None)?);
        }
    }
    if !has("CAP_SYS_ADMIN") {
        let flags = argument(0, Op::ScmpCmpMaskedEq, NEW_NAMESPACES, Some(0))?;
        rules.push(rule("clone", Action::ScmpActAllow, Some(flags))?);
        // Its flags are in memory, where no filter can look; on ENOSYS libc falls back to clone.
        let clone3 = LinuxSyscallBuilder::default()
            .names(["clone3".to_owned()])
            .action(Action::ScmpActErrno)
            .errno_ret(libc::ENOSYS as u32);
        rules.push(clone3.build().map_err(internal)?);
    }
    LinuxSeccompBuilder::default()
        .default_action(Action::ScmpActErrno)
        .default_errno_ret(libc::EPERM as u32)
        .architectures([Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32])
        .syscalls(rules)
        .build()
        .map_err(internal)
}

/// Every family but AF_ALG (an attack surface of the kernel's) and AF_VSOCK (which reaches past the
/// network namespace).
///
/// What is left above them is listed rather than compared with GT: the kernel looks at the lower half
/// of the argument, so that 1 << 32 | AF_VSOCK would pass a 64-bit comparison and mean AF_VSOCK.
fn socket_families() -> impl Iterator<Item = Result<LinuxSeccompArg>> {
    let above = (libc::AF_ALG + 1..AF_MAX).filter(|family| *family != libc::AF_VSOCK);
    std::iter::once(argument(0, Op::ScmpCmpLt, libc::AF_ALG as u64, None))
        .chain(above.map(|family| argument(0, Op::ScmpCmpEq, family as u64, None)))
}

fn rule(names: &str, action: Action, argument: Option<LinuxSeccompArg>) -> Result<LinuxSyscall> {
    let names: Vec<String> = names.split_ascii_whitespace().map(str::to_owned).collect();
    let mut rule = LinuxSyscallBuilder::default().names(names).action(action);
    if let Some(argument) = argument {
        rule = rule.args([argument]);
    }
    rule.build().map_err(internal)
}

fn argument(index: usize, op: Op, value: u64, two: Option<u64>) -> Result<LinuxSeccompArg> {
    let mut argument = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    if let Some(two) = two {
        argument = argument.value_two(two);
    }
    argument.build().map_err(internal)
}

fn internal(cause: oci_spec::OciSpecError) -> Error {
    Error::internal(format!("building the default seccomp profile: {cause}"))
}

/// The first number that is no address family (linux/socket.h).
const AF_MAX: i32 = 46;

/// PER_LINUX, PER_LINUX32, both with UNAME26, and the question what it is.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x20000, 0x20008, 0xffff_ffff];

const NEW_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u64;

const ALWAYS: [&str; 12] = [
    FILES,
    EVENTS,
    MEMORY,
    PROCESSES,
    SCHEDULING,
    SIGNALS,
    IDENTITY,
    TIME,
    SOCKETS,
    IPC,
    "ptrace process_vm_readv process_vm_writev",
    // x86 only
    "arch_prctl modify_ldt",
];

const WITH_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr \
         move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog \
         umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Files and descriptors.
const FILES: &str = "\
    _llseek access cachestat chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 \
    dup3 faccessat faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown \
    fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat \
    fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 \
    getrandom getxattr getxattrat io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 \
    io_setup io_submit ioctl lchown lchown32 lgetxattr link linkat listmount listxattr listxattrat \
    llistxattr lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at \
    newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read \
    readahead readlink readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir \
    sendfile sendfile64 setxattr setxattrat splice stat stat64 statfs statfs64 statmount statx symlink \
    symlinkat sync sync_file_range syncfs tee truncate truncate64 unlink unlinkat utime utimensat \
    utimensat_time64 utimes vmsplice write writev";

/// Waiting for descriptors.
const EVENTS: &str = "\
    _newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
    epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 \
    inotify_rm_watch poll ppoll ppoll_time64 pselect6 pselect6_time64 select";

/// Memory.
const MEMORY: &str = "\
    brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap \
    mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect \
    process_mrelease remap_file_pages";

/// Processes and threads; clone has a rule of its own.
const PROCESSES: &str = "\
    execve execveat exit exit_group fork get_thread_area getpgid getpgrp getpid getppid getsid gettid \
    landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr lsm_list_modules \
    lsm_set_self_attr pidfd_open prctl restart_syscall seccomp set_thread_area set_tid_address setpgid \
    setsid sysinfo umask uname uretprobe vfork wait4 waitid waitpid";

/// Scheduling and futexes.
const SCHEDULING: &str = "\
    futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list getcpu rseq \
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity \
    sched_setattr sched_setparam sched_setscheduler sched_yield set_robust_list";

/// Signals.
const SIGNALS: &str = "\
    kill pause pidfd_send_signal rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn \
    rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack signalfd \
    signalfd4 sigprocmask sigreturn tgkill tkill";

/// Users, groups, capabilities, limits.
const IDENTITY: &str = "\
    capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpriority \
    getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getuid getuid32 ioprio_get \
    ioprio_set prlimit64 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 \
    setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 \
    setrlimit setuid setuid32 ugetrlimit";

/// Clocks, timers, sleeping. Setting the clock needs a capability.
const TIME: &str = "\
    adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer \
    time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime \
    timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 \
    times";

/// Sockets; socket itself has a rule of its own.
const SOCKETS: &str = "\
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair";

/// System V and POSIX message queues, semaphores, shared memory.
const IPC: &str = "\
    ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop \
    semtimedop_time64 shmat shmctl shmdt shmget";
