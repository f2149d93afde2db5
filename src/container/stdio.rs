//! A container's standard input and output: what it holds, and what the keeper reads.
//!
//! Output goes through FIFOs in the state directory which the container has open for reading *and*
//! writing: a FIFO without a reader then blocks instead of raising SIGPIPE, and while the container
//! lives, so do its unread bytes, whoever of us is killed. A successor opens them again by path.
//! The price: a container can read back its own output, as it can with any pipe, and gets no
//! SIGPIPE. A TTY's output goes through the pty's master and a pipe of ours (tee needs a pipe).

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FallocateFlags, Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::OpenptFlags;

use crate::Result;
use crate::container::null;
use crate::error::Step;
use crate::keeper::client::{Output, Source};

/// What the child gets as 0, 1 and 2.
pub struct Stdio {
    pub child: [Arc<OwnedFd>; 3],
    pub output: Output,
    /// The devpts instance that the terminal is of, to be attached at /dev/pts.
    pub devpts: Option<OwnedFd>,
}

pub struct Wish<'a> {
    /// Of the state directory, made by the caller.
    pub directory: &'a Path,
    pub log: Option<&'a Path>,
    pub stdin: bool,
    pub tty: bool,
    /// The container's user, who owns the ends, so that /dev/stdout can be opened again.
    pub uid: u32,
    pub gid: u32,
}

/// The size of the note: one page (keeper::note).
const NOTE_SIZE: u64 = 4096;

pub fn open(wish: &Wish<'_>) -> Result<Stdio> {
    let note = Arc::new(open_note(wish.directory)?);
    let log = wish.log.map(open_log).transpose()?.map(Arc::new);
    if wish.tty {
        return open_terminal(wish, note, log);
    }
    let (stdout, out) = make_fifo(&wish.directory.join("stdout"), wish)?;
    let (stderr, err) = make_fifo(&wish.directory.join("stderr"), wish)?;
    let (input, stdin) = open_stdin(wish)?;
    let source = Source::Pipes { stdout: Arc::new(stdout), stderr: Arc::new(stderr) };
    Ok(Stdio {
        child: [Arc::new(input), Arc::new(out), Arc::new(err)],
        output: Output { note, source, log, stdin },
        devpts: None,
    })
}

/// The note of a container, made if missing.
pub fn open_note(directory: &Path) -> Result<OwnedFd> {
    let path = directory.join("note");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let note = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
        .step(|| format!("opening {}", path.display()))?;
    if rustix::fs::fstat(&note).step(|| format!("reading {}", path.display()))?.st_size < NOTE_SIZE as i64 {
        // Allocated, not only sized: on a full tmpfs the first touch of the mapping would be SIGBUS.
        rustix::fs::fallocate(&note, FallocateFlags::empty(), 0, NOTE_SIZE)
            .step(|| format!("allocating {}", path.display()))?;
    }
    Ok(note)
}

/// Opens a log for appending (mode 0640; BEHAVIOUR 17), its directory made if missing.
pub fn open_log(path: &Path) -> Result<OwnedFd> {
    // Readable, since the copier compares its end with what a predecessor noted.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOCTTY;
    // A FIFO or a terminal in a log's place must not hang the daemon.
    let open = || rustix::fs::open(path, flags | OFlags::NONBLOCK, Mode::from_raw_mode(0o640));
    let log = match open() {
        Err(rustix::io::Errno::NOENT) => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(parent).step(|| format!("making log directory {}", parent.display()))?;
            open()
        }
        other => other,
    };
    log.step(|| format!("opening log {}", path.display()))
}

/// Opens the read ends of a container's FIFOs again.
pub fn reopen_pipes(directory: &Path) -> Result<Source> {
    let open = |name: &str| {
        let path = directory.join(name);
        reader(&path).map(Arc::new)
    };
    Ok(Source::Pipes { stdout: open("stdout")?, stderr: open("stderr")? })
}

fn reader(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).step(|| format!("opening FIFO {}", path.display()))
}

fn make_fifo(path: &PathBuf, wish: &Wish<'_>) -> Result<(OwnedFd, OwnedFd)> {
    let step = || format!("making FIFO {}", path.display());
    rustix::fs::mkfifoat(CWD, path, Mode::from_raw_mode(0o600)).step(step)?;
    let ours = reader(path)?;
    let theirs =
        rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()).step(step)?;
    give(&theirs, wish.uid, wish.gid).step(step)?;
    Ok((ours, theirs))
}

pub fn give(fd: &OwnedFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
    rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)))
}

/// (the container's end, the end that is kept open for attach)
fn open_stdin(wish: &Wish<'_>) -> Result<(OwnedFd, Option<Arc<OwnedFd>>)> {
    if !wish.stdin {
        return Ok((null::open()?, None));
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).step(|| "making the pipe of standard input")?;
    give(&read, wish.uid, wish.gid).step(|| "giving standard input to the user")?;
    Ok((read, Some(Arc::new(write))))
}

fn open_terminal(wish: &Wish<'_>, note: Arc<OwnedFd>, log: Option<Arc<OwnedFd>>) -> Result<Stdio> {
    let devpts = mount_devpts()?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = rustix::fs::openat(&devpts, "ptmx", flags, Mode::empty()).step(|| "opening a terminal")?;
    rustix::pty::unlockpt(&master).step(|| "unlocking the terminal")?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave =
        rustix::pty::ioctl_tiocgptpeer(master.as_fd(), peer).step(|| "opening the terminal's slave")?;
    // The group stays tty's, as for a login.
    rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(wish.uid)), None)
        .step(|| "giving the terminal to the user")?;
    let (read, write) =
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).step(|| "making the terminal's pipe")?;
    let slave = Arc::new(slave);
    let master = Arc::new(master);
    let source = Source::Terminal { master: Arc::clone(&master), pipe: (Arc::new(read), Arc::new(write)) };
    let stdin = wish.stdin.then_some(master);
    Ok(Stdio {
        child: [Arc::clone(&slave), Arc::clone(&slave), slave],
        output: Output { note, source, log, stdin },
        devpts: Some(devpts),
    })
}

/// A devpts instance of its own (devpts(5): each mount is one since Linux 4.7), still detached.
fn mount_devpts() -> Result<OwnedFd> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
        fsmount, fsopen,
    };
    let step = || "mounting devpts for the terminal";
    let fs = fsopen("devpts", FsOpenFlags::FSOPEN_CLOEXEC).step(step)?;
    fsconfig_set_flag(&fs, "newinstance").step(step)?;
    for (key, value) in DEVPTS_OPTIONS {
        fsconfig_set_string(&fs, *key, *value).step(step)?;
    }
    fsconfig_create(&fs).step(step)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).step(step)
}

/// Of every container's devpts; group 5 is `tty` wherever the number means anything.
pub const DEVPTS_OPTIONS: &[(&str, &str)] = &[("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
