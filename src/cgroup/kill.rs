//! Ending what lives in a cgroup, and knowing when it has ended.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::layout::Layout;
use super::{file, tree};
use crate::Result;
use crate::error::{Error, Kind, Step};
use crate::sys::async_fd::watch;

/// SIGKILL to everything in it and below. Missing is fine.
pub(super) fn kill(layout: &Layout, path: &str) -> Result<()> {
    let Some(mount) = layout.killer() else {
        return Err(Error::precondition("this host has neither cgroup2 nor the freezer mounted"));
    };
    let full = format!("{mount}{path}");
    if layout.unified.is_some() {
        let name = format!("{full}/cgroup.kill");
        match file::write(&name, "1") {
            // Since Linux 5.14; on an older kernel freeze as on v1.
            Err(e) if file::missing(&e) && std::path::Path::new(&full).exists() => {
                freeze_and_kill(&full, "cgroup.freeze", "1", "0")
            }
            Err(e) if file::missing(&e) => Ok(()),
            result => result.step(|| format!("killing everything in cgroup {full}")),
        }
    } else {
        freeze_and_kill(&full, "freezer.state", "FROZEN", "THAWED")
    }
}

/// Frozen, nothing can fork away from the signal. A task in uninterruptible sleep may keep the
/// freezer from finishing; the signal waits for it all the same.
fn freeze_and_kill(full: &str, control: &str, frozen: &str, thawed: &str) -> Result<()> {
    let name = format!("{full}/{control}");
    match file::write(&name, frozen) {
        Err(e) if file::missing(&e) => return Ok(()),
        result => result.step(|| format!("freezing cgroup {full}"))?,
    }
    let killed = processes(full).map(|pids| {
        for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            // ESRCH: it ended meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    file::write(&name, thawed).step(|| format!("thawing cgroup {full}"))?;
    killed.step(|| format!("listing the processes in cgroup {full}"))
}

/// The processes in a cgroup and below, as the node numbers them.
pub(super) fn processes(full: &str) -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    let mut directories = vec![full.to_owned()];
    while let Some(directory) = directories.pop() {
        match std::fs::read_to_string(format!("{directory}/cgroup.procs")) {
            Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
            // EOPNOTSUPP: a threaded cgroup, whose processes are told by the one above it.
            Err(e) if file::missing(&e) || e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
        directories.extend(tree::children(&directory)?);
    }
    Ok(pids)
}

/// Waits until nothing lives in it or below.
pub(super) async fn wait_empty(layout: &Layout, path: &str, limit: Duration) -> Result<()> {
    let Some(mount) = layout.killer() else { return Ok(()) };
    let full = format!("{mount}{path}");
    let deadline = Instant::now() + limit;
    let events = match Events::open(layout, &full) {
        Ok(events) => events,
        Err(e) if file::missing(&e) => return Ok(()),
        Err(e) => return Err(Error::io(format!("watching cgroup {full}"), e)),
    };
    // The kernel tells of a change at most once in 10 ms, so look by ourselves as well.
    let mut pause = Duration::from_millis(1);
    loop {
        match events.populated(&full) {
            Ok(false) => return Ok(()),
            Err(e) if file::missing(&e) => return Ok(()),
            Err(e) => return Err(Error::io(format!("reading the state of cgroup {full}"), e)),
            Ok(true) if Instant::now() >= deadline => {
                let text = format!("cgroup {full} still has {}", survivors(&full));
                return Err(Error::new(Kind::DeadlineExceeded, text));
            }
            Ok(true) => events.changed(pause.min(deadline - Instant::now())).await,
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// `cgroup.events`, or where there is none (pure v1) the lists of processes.
enum Events {
    Notified(AsyncFd<OwnedFd>),
    Polled,
}

impl Events {
    fn open(layout: &Layout, full: &str) -> io::Result<Self> {
        if layout.unified.is_none() {
            return Ok(Self::Polled);
        }
        let fd = file::open(&format!("{full}/cgroup.events"), OFlags::RDONLY)?;
        Ok(Self::Notified(watch(fd, Interest::PRIORITY)?))
    }

    fn populated(&self, full: &str) -> io::Result<bool> {
        match self {
            Self::Notified(fd) => {
                let mut buffer = [0; 128];
                Ok(!file::read_fd(fd.get_ref(), &mut buffer)?.contains("populated 0"))
            }
            Self::Polled => processes(full).map(|pids| !pids.is_empty()),
        }
    }

    async fn changed(&self, limit: Duration) {
        match self {
            Self::Notified(fd) => {
                if let Ok(Ok(mut guard)) = tokio::time::timeout(limit, fd.ready(Interest::PRIORITY)).await {
                    guard.clear_ready();
                }
            }
            Self::Polled => tokio::time::sleep(limit).await,
        }
    }
}

/// As in `4711 (dd) in state D`, at most eight of them.
fn survivors(full: &str) -> String {
    const SHOWN: usize = 8;
    let pids = processes(full).unwrap_or_default();
    let mut shown: Vec<String> = pids.iter().take(SHOWN).filter_map(|pid| describe(*pid)).collect();
    if pids.len() > SHOWN {
        shown.push(format!("{} more", pids.len() - SHOWN));
    }
    if shown.is_empty() { "processes that cannot be named".to_owned() } else { shown.join(", ") }
}

fn describe(pid: i32) -> Option<String> {
    // proc_pid_stat(5): the name stands in parentheses and may hold any character, also these.
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let name = &stat[stat.find('(')? + 1..stat.rfind(')')?];
    let state = stat[stat.rfind(')')? + 1..].split_whitespace().next()?;
    Some(format!("process {pid} ({name}) in state {state}"))
}
