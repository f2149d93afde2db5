//! Making and removing directories, in every hierarchy at once.

use std::io;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, XattrFlags};

use super::file;
use super::layout::Layout;
use super::path::{base, parent};
use crate::Result;
use crate::error::{Error, Step};

/// On directories above a pod that were missing: whoever removes the last pod below removes them.
const MARK: &str = "trusted.podwright.made";

/// The name of an exec's cgroup: this, and so many digits of its ID; once they were all of it.
const EXEC: &str = "exec-";
const EXEC_ID: usize = 16;
const FULL_ID: usize = 64;

/// Attempts at a directory whose parent vanishes again and again: each costs another pod its removal.
const MAKE_ATTEMPTS: u32 = 50;

/// Attempts at a directory that is still busy, 2 ms apart at first and 64 ms at last: about 1 s.
const REMOVE_ATTEMPTS: u32 = 20;

/// Makes `path` in every hierarchy, its parents too; with `fresh` it must not be there yet, and
/// nothing of it is left on failure.
pub(super) fn make(layout: &Layout, path: &str, fresh: bool) -> Result<()> {
    let mut made = Vec::new();
    let result = layout.mounts().try_for_each(|mount| {
        let full = format!("{mount}{path}");
        match make_one(layout, mount, path) {
            Ok(new) => {
                if new {
                    made.push(full);
                } else if fresh {
                    return Err(Error::internal(format!("cgroup {full} is there already")));
                }
                Ok(())
            }
            Err(e) => Err(Error::io(format!("making cgroup {full}"), e)),
        }
    });
    if result.is_err() && fresh {
        for full in made {
            // The error that is told is why it was made in vain.
            let _ = rmdir(&full);
        }
    }
    result
}

/// True if it was not there before.
fn make_one(layout: &Layout, mount: &str, path: &str) -> io::Result<bool> {
    let full = format!("{mount}{path}");
    // The parent may vanish between two steps, when the last pod in it is removed.
    for attempt in 0.. {
        match mkdir(&full) {
            Ok(()) => break,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(e)
                if e.raw_os_error() == Some(libc::ENOENT) && attempt < MAKE_ATTEMPTS && !path.is_empty() =>
            {
                let above = parent(path);
                if make_one(layout, mount, above)? && !above.is_empty() {
                    mark(&format!("{mount}{above}"))?;
                }
            }
            Err(e) => return Err(e),
        }
    }
    if layout.v1("cpuset").is_some_and(|h| h.mount == mount) {
        inherit_cpuset(mount, path)?;
    }
    Ok(true)
}

fn mkdir(full: &str) -> io::Result<()> {
    Ok(rustix::fs::mkdir(full, Mode::from_raw_mode(0o755))?)
}

fn mark(full: &str) -> io::Result<()> {
    match rustix::fs::setxattr(full, MARK, b"", XattrFlags::empty()) {
        // Removed already, by whoever took it for another pod's.
        Err(rustix::io::Errno::NOENT) => Ok(()),
        // A kernel without attributes here: the directory stays behind when the pods are gone.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => Ok(()),
        result => Ok(result?),
    }
}

/// No task can enter a v1 cpuset without CPUs and memory nodes, and a new one has none unless its
/// parent says that children begin as its copies.
fn inherit_cpuset(mount: &str, path: &str) -> io::Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let mut buffer = [0; file::BUFFER];
        let target = format!("{mount}{path}/{name}");
        if !file::read(&target, &mut buffer)?.is_empty() {
            // Both were copied at mkdir.
            return Ok(());
        }
        let value = file::read(&format!("{mount}{}/{name}", parent(path)), &mut buffer)?;
        file::write(&target, value)?;
    }
    file::write(&format!("{mount}{path}/cgroup.clone_children"), "1")
}

/// Lets the children of `path` be limited: on v2 each controller must be enabled at each level.
/// One that cannot be is no error here: a limit that needs it will say so.
pub(super) fn enable_controllers(layout: &Layout, path: &str) -> Result<()> {
    let Some(unified) = &layout.unified else { return Ok(()) };
    if unified.controllers.is_empty() {
        return Ok(());
    }
    let mut levels = vec![""];
    levels.extend(path.match_indices('/').skip(1).map(|(at, _)| &path[..at]));
    if !path.is_empty() {
        levels.push(path);
    }
    let lacking = |level: &str| -> Result<Vec<&str>> {
        let name = format!("{}{level}/cgroup.subtree_control", unified.mount);
        let mut buffer = [0; 512];
        let enabled = file::read(&name, &mut buffer).step(|| format!("reading {name}"))?;
        let enabled: Vec<&str> = enabled.split(' ').collect();
        let all = unified.controllers.iter().map(String::as_str);
        Ok(all.filter(|c| !enabled.contains(c)).collect())
    };
    if lacking(path)?.is_empty() {
        return Ok(());
    }
    for level in levels {
        let lacking = lacking(level)?;
        let name = format!("{}{level}/cgroup.subtree_control", unified.mount);
        let all: Vec<String> = lacking.iter().map(|c| format!("+{c}")).collect();
        if lacking.is_empty() || file::write(&name, &all.join(" ")).is_ok() {
            continue;
        }
        for one in all {
            if let Err(e) = file::write(&name, &one) {
                tracing::debug!(file = name, controller = one, error = %e, "controller not enabled");
            }
        }
    }
    Ok(())
}

/// Removes `path` and everything below it from every hierarchy, and above it what was made for
/// pods and is empty now. Goes on past errors and tells them all.
pub(super) async fn remove(layout: &Layout, path: &str) -> Result<()> {
    let result = remove_all(layout.mounts().map(|mount| format!("{mount}{path}")).collect()).await;
    for mount in layout.mounts() {
        remove_marked(mount, parent(path));
    }
    result
}

/// Tries each until it is gone; the time for those that are busy is limited in all.
async fn remove_all(mut pending: Vec<String>) -> Result<()> {
    let mut errors = Vec::new();
    let mut pause = Duration::from_millis(2);
    for attempt in 1..=REMOVE_ATTEMPTS {
        pending.retain(|full| match remove_tree(full) {
            Ok(()) => false,
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && attempt < REMOVE_ATTEMPTS => true,
            Err(e) => {
                errors.push(Error::io(format!("removing cgroup {full}"), e).message);
                false
            }
        });
        if pending.is_empty() {
            break;
        }
        // Tasks that were killed just now are still on their way out.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(64));
    }
    if errors.is_empty() { Ok(()) } else { Err(Error::internal(errors.join("; "))) }
}

/// A cgroup for an exec below the container's in one hierarchy: its path, and whether it is one
/// that the container's own processes are in.
///
/// A child is always a leaf, so that no-internal-processes never bars the way in. But a container
/// that manages cgroups can make its own a threaded one, in which a new child is unusable, or limit
/// the number of children.
pub(super) fn make_exec(mount: &str, container: &str, id: &str) -> Result<(String, bool)> {
    let path = format!("{container}/{EXEC}{}", &id[..id.len().min(EXEC_ID)]);
    let full = format!("{mount}{path}");
    match mkdir(&full) {
        Ok(()) => {
            let mut buffer = [0; 64];
            if !matches!(file::read(&format!("{full}/cgroup.type"), &mut buffer), Ok("domain invalid")) {
                return Ok((path, false));
            }
            rmdir(&full).step(|| format!("removing cgroup {full}"))?;
        }
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EOPNOTSUPP)) => {}
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
            return Err(Error::not_found(format!("cgroup {mount}{container} is gone")));
        }
        Err(e) => return Err(Error::io(format!("making cgroup {full}"), e)),
    }
    Ok((inhabited(mount, container)?, true))
}

/// What [`make_exec`] made below a container's cgroup. The container may have made others.
pub(super) fn execs(mount: &str, container: &str) -> Vec<String> {
    let ours = |full: &str| {
        let id = base(full).strip_prefix(EXEC);
        id.is_some_and(|id| {
            matches!(id.len(), EXEC_ID | FULL_ID) && id.bytes().all(|b| b.is_ascii_hexdigit())
        })
    };
    let below = children(&format!("{mount}{container}")).unwrap_or_default().into_iter();
    below.filter(|full| ours(full)).map(|full| full[mount.len()..].to_owned()).collect()
}

/// The first cgroup, from the top, that processes live in: another may join it.
fn inhabited(mount: &str, path: &str) -> Result<String> {
    let mut found = vec![format!("{mount}{path}")];
    let mut next = 0;
    while next < found.len() {
        let full = &found[next];
        // One process is enough to see; in threaded cgroups the list cannot be read.
        if file::read(&format!("{full}/cgroup.procs"), &mut [0; 16]).is_ok_and(|pids| !pids.is_empty()) {
            return Ok(full[mount.len()..].to_owned());
        }
        let below = children(full).step(|| format!("listing cgroup {full}"))?;
        found.extend(below);
        next += 1;
    }
    Err(Error::precondition(format!("no process lives in cgroup {path}")))
}

/// Removes an exec's cgroup: it exists in one hierarchy only.
pub(super) async fn remove_exec(layout: &Layout, path: &str) -> Result<()> {
    match layout.killer() {
        Some(mount) => remove_all(vec![format!("{mount}{path}")]).await,
        None => Ok(()),
    }
}

fn rmdir(full: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(rustix::fs::CWD, full, AtFlags::REMOVEDIR) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        result => Ok(result?),
    }
}

/// The container may have made cgroups of its own below, to any depth, so no recursion.
fn remove_tree(full: &str) -> io::Result<()> {
    match rmdir(full) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
        result => return result,
    }
    let mut found = vec![full.to_owned()];
    let mut next = 0;
    while next < found.len() {
        let below = children(&found[next])?;
        found.extend(below);
        next += 1;
    }
    // Deeper ones were found later. The first that is busy is the reason for those above it.
    let mut result = Ok(());
    for directory in found.iter().rev() {
        result = result.and(rmdir(directory));
    }
    result
}

/// The cgroups directly below one.
pub(super) fn children(full: &str) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(full) {
        Ok(entries) => entries,
        Err(e) if file::missing(&e) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            found.push(format!("{full}/{name}"));
        }
    }
    Ok(found)
}

/// Best effort: another pod in it is why it is busy, and will do the same.
fn remove_marked(mount: &str, mut path: &str) {
    while !path.is_empty() {
        let full = format!("{mount}{path}");
        if rustix::fs::getxattr(&full, MARK, &mut [0u8; 8]).is_err() || rmdir(&full).is_err() {
            return;
        }
        path = parent(path);
    }
}
