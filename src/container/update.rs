//! UpdateContainerResources.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::container::spec::Resources;
use crate::node::{Node, record};
use crate::{Error, Result};

/// Zero means unchanged; a CREATED container gets the limits at once as well (BEHAVIOUR 29).
pub async fn update(node: &Arc<Node>, id: &str, change: Resources) -> Result<()> {
    let container = node.containers.find(id)?;
    let _gate = container.gate.lock().await;
    if container.phase().stage().is_over() {
        return Err(Error::precondition(format!("container {} has ended", container.id)));
    }
    let cgroup = container
        .record
        .cgroup
        .clone()
        .ok_or_else(|| Error::precondition(format!("container {} has no cgroup", container.id)))?;
    for warning in node.cgroups.update(&cgroup, &change).await? {
        tracing::warn!(container = container.id, warning, "a limit has no effect on this host");
    }
    let change_of_score = change.oom_score_adj;
    let merged = merge(container.resources(), change);
    // For status after a restart of the daemon.
    record::write(&node.layout.container(&container.id).join("resources.json"), &merged)?;
    container.set_resources(merged);
    if let Some(main) = container.process().filter(|_| change_of_score != 0) {
        let pids = node.cgroups.processes(&cgroup)?;
        let score = change_of_score.clamp(-1000, 1000);
        let set = tokio::task::spawn_blocking(move || set_oom_scores(main.pid, &pids, score)).await;
        if let Ok(Err(error)) = set {
            tracing::warn!(container = container.id, score, %error, "the OOM score stays as it was");
        }
    }
    Ok(())
}

/// Gives the score to the main process and to what has the same score as that one: what chose
/// another for itself keeps it. EACCES where the score would be lowered without CAP_SYS_RESOURCE.
fn set_oom_scores(main: i32, pids: &[i32], score: i64) -> io::Result<()> {
    // First of all its directory: that stays this process's, whoever gets its number.
    let main = process_directory(main)?;
    let former = read(&main)?;
    write(&main, score)?;
    for pid in pids {
        let done = process_directory(*pid)
            .and_then(|process| if read(&process)? == former { write(&process, score) } else { Ok(()) });
        match done {
            // It has ended meanwhile.
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::SRCH)) => {}
            done => done?,
        }
    }
    Ok(())
}

fn process_directory(pid: i32) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())?)
}

fn read(process: &OwnedFd) -> io::Result<String> {
    let file = open_score(process, OFlags::RDONLY)?;
    io::read_to_string(std::fs::File::from(file))
}

fn write(process: &OwnedFd, score: i64) -> io::Result<()> {
    rustix::io::write(open_score(process, OFlags::WRONLY)?, score.to_string().as_bytes())?;
    Ok(())
}

fn open_score(process: &OwnedFd, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(process, c"oom_score_adj", flags | OFlags::CLOEXEC, Mode::empty())?)
}

fn merge(mut now: Resources, change: Resources) -> Resources {
    let number = |now: &mut i64, new: i64| {
        if new != 0 {
            *now = new;
        }
    };
    let text = |now: &mut String, new: String| {
        if !new.is_empty() {
            *now = new;
        }
    };
    number(&mut now.cpu_period, change.cpu_period);
    number(&mut now.cpu_quota, change.cpu_quota);
    number(&mut now.cpu_shares, change.cpu_shares);
    number(&mut now.memory_limit, change.memory_limit);
    number(&mut now.memory_swap_limit, change.memory_swap_limit);
    number(&mut now.oom_score_adj, change.oom_score_adj);
    text(&mut now.cpuset_cpus, change.cpuset_cpus);
    text(&mut now.cpuset_mems, change.cpuset_mems);
    for (size, limit) in change.hugepage_limits {
        match now.hugepage_limits.iter_mut().find(|(s, _)| *s == size) {
            Some(row) => row.1 = limit,
            None => now.hugepage_limits.push((size, limit)),
        }
    }
    now.unified.extend(change.unified);
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaviour_29_zero_means_unchanged() {
        let now =
            Resources { cpu_shares: 2, memory_limit: 5, cpuset_cpus: "0".into(), ..Resources::default() };
        let change = Resources { memory_limit: 7, ..Resources::default() };
        let merged = merge(now.clone(), change);
        assert_eq!(merged, Resources { memory_limit: 7, ..now });
    }
}
