//! A pod's network, IPC and UTS namespaces: made once, held by fd, the network one also pinned to
//! a path, since CNI plugins take a path (DESIGN 3).
//!
//! Whatever has to happen inside a namespace happens on a thread that lives for that one thing:
//! a thread that changed its namespace and went back to a pool would take the next task with it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::mount::UnmountFlags;
use rustix::thread::LinkNameSpaceType;

use super::netlink::link::Link;
use super::netlink::message::Batch;
use super::netlink::{self, Socket};
use super::sysctl::{self, Own};
use crate::Error;
use crate::error::{Result, Step, errno_text};
use crate::sys::namespace::{Unshare, unshare};

/// statfs(2)
pub const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// Which namespaces a pod gets of its own; those that it does not are the node's.
#[derive(Debug, Clone, Copy, Default)]
pub struct NewNamespaces<'a> {
    /// Where the network namespace is pinned; its directory is made. None: no namespace.
    pub pin: Option<&'a Path>,
    pub ipc: bool,
    /// The name in a UTS namespace. None: no namespace.
    pub hostname: Option<&'a str>,
    /// As the CRI gives them; each must belong to a namespace that is made here.
    pub sysctls: Option<&'a BTreeMap<String, String>>,
}

/// The namespaces that were made.
#[derive(Debug)]
pub struct Namespaces {
    pub net: Option<OwnedFd>,
    pub ipc: Option<OwnedFd>,
    pub uts: Option<OwnedFd>,
}

/// Makes a pod's namespaces: loopback up, hostname and sysctls set, network pinned. Blocks for
/// about half a millisecond. On failure nothing is left.
///
/// # Errors
/// INVALID_ARGUMENT names a hostname of more than 64 bytes, or a sysctl that is not namespaced, is the node's or is refused by the kernel.
pub fn create(new: &NewNamespaces) -> Result<Namespaces> {
    let none = BTreeMap::new();
    let own = Own { net: new.pin.is_some(), ipc: new.ipc, uts: new.hostname.is_some() };
    let sysctls = sysctl::check(new.sysctls.unwrap_or(&none), own)?;
    if new.pin.is_none() && !new.ipc && new.hostname.is_none() {
        return Ok(Namespaces { net: None, ipc: None, uts: None });
    }
    on_a_thread(|| make(new, &sysctls))
}

/// Runs on a thread of its own, in the order in which the steps depend on each other.
fn make(new: &NewNamespaces, sysctls: &[sysctl::Sysctl]) -> Result<Namespaces> {
    // 1. The namespaces themselves.
    unshare(Unshare { net: new.pin.is_some(), ipc: new.ipc, uts: new.hostname.is_some() })
        .step(|| "making the pod's namespaces")?;
    // 2. What is set inside them.
    if let Some(name) = new.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|e| Error::invalid(format!("hostname {name:?}: {}", errno_text(e.raw_os_error()))))?;
    }
    if new.pin.is_some() {
        let mut batch = Batch::new();
        batch.set_up(Link::Name("lo"));
        Socket::open(netlink::ROUTE)?.call(batch)?;
    }
    sysctl::write(sysctls)?;
    // 3. The fds that keep them once this thread ends.
    let hold = |wanted: bool, kind: &str| {
        wanted.then(|| open(Path::new(&format!("/proc/thread-self/ns/{kind}")))).transpose()
    };
    let namespaces = Namespaces {
        net: hold(new.pin.is_some(), "net")?,
        ipc: hold(new.ipc, "ipc")?,
        uts: hold(new.hostname.is_some(), "uts")?,
    };
    // 4. Last, the one thing that would outlive a failure.
    if let Some(path) = new.pin {
        pin(path)?;
    }
    Ok(namespaces)
}

/// Binds the calling thread's network namespace to `path`.
fn pin(path: &Path) -> Result<()> {
    let step = || format!("pinning the network namespace at {}", path.display());
    let create = || OpenOptions::new().write(true).create_new(true).mode(0o444).open(path);
    match create() {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let dir = path.parent().unwrap_or(Path::new("/"));
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(dir);
            made.step(|| format!("making {}", dir.display()))?;
            create().step(step)?;
        }
        // A pin of another pod's, or of anyone's, is never taken over.
        Err(e) => return Err(Error::io(step(), e)),
    }
    rustix::mount::mount_bind("/proc/thread-self/ns/net", path).map_err(|e| {
        let _ = fs::remove_file(path);
        Error::io(step(), e)
    })
}

/// Takes a pin away; one that is gone, half made or doubled is fine. The namespace lives on until
/// its last fd and process are gone, and the kernel then takes it down in its own time.
pub fn unpin(path: &Path) -> Result<()> {
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // EINVAL: not a mount point (any more).
            Err(rustix::io::Errno::INVAL) => break,
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(e) => return Err(Error::io(format!("unmounting {}", path.display()), e)),
        }
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

/// Opens a namespace by its pin, or by a link in /proc/PID/ns.
pub fn open(path: &Path) -> Result<OwnedFd> {
    let file = File::open(path).step(|| format!("opening the namespace {}", path.display()))?;
    Ok(file.into())
}

/// Whether a namespace is mounted at `path`.
pub fn is_pinned(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC)
}

/// A detached clone of the mount at `path` in another process's mount namespace.
pub fn clone_mount(pid: i32, path: &str) -> Result<OwnedFd> {
    use rustix::mount::OpenTreeFlags as Flags;
    let step = || format!("cloning {path} of process {pid}");
    let namespace = open(Path::new(&format!("/proc/{pid}/ns/mnt")))?;
    on_a_thread(|| {
        crate::sys::namespace::enter_mounts(namespace.as_fd()).step(step)?;
        let flags = Flags::OPEN_TREE_CLONE | Flags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(rustix::fs::CWD, path, flags).step(step)
    })
}

/// Runs `work` in the network namespace `netns`, on a thread made for it.
///
/// # Errors
/// Those of `work`, and EINVAL where the fd is of no network namespace (an unmounted pin).
pub fn run<T: Send>(netns: impl AsFd + Sync, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_a_thread(|| {
        enter(netns.as_fd())?;
        work()
    })
}

/// Runs `work` in each of the pinned network namespaces, one after the other on one thread: the
/// thread costs more than the visits.
pub fn visit<T: Send>(
    pins: &[impl AsRef<Path> + Sync],
    work: impl Fn() -> Result<T> + Sync,
) -> Result<Vec<Result<T>>> {
    let one = |pin: &Path| {
        enter(open(pin)?.as_fd())?;
        work()
    };
    on_a_thread(|| Ok(pins.iter().map(|pin| one(pin.as_ref())).collect()))
}

fn enter(netns: BorrowedFd) -> Result<()> {
    rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
        .step(|| "entering the pod's network namespace")
}

/// Runs `work` on a thread of its own, which ends with it: for what changes a thread for good.
pub fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).stack_size(256 << 10);
        let thread = thread.spawn_scoped(scope, work).step(|| "starting a thread for a namespace")?;
        thread.join().unwrap_or_else(|_| Err(Error::internal("a thread in a pod's namespace panicked")))
    })
}
