//! Containers of before: found again after a restart of the daemon, of both processes, or the node.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::container::{Container, Ending, Phase, Record, end, stdio};
use crate::error::Step;
use crate::keeper::client::{Adopt, Output, Process, Source, State};
use crate::keeper::note::NotePage;
use crate::node::{Node, record, table};
use crate::pod::boot_id;

/// live.json: which process is meant, told apart from a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    pub pid: i32,
    /// Field 22 of proc_pid_stat(5): clock ticks after boot.
    start_time: u64,
    boot_id: String,
}

impl Live {
    pub fn of(pid: i32) -> Result<Self> {
        Ok(Self { pid, start_time: start_time(pid)?, boot_id: boot_id()? })
    }

    /// A pidfd, if the process is the one that was meant and still there.
    pub fn open(&self) -> Option<OwnedFd> {
        let pid = rustix::process::Pid::from_raw(self.pid)?;
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
        // Looked at after the pidfd was taken: the number cannot change hands between the two.
        (Self::of(self.pid).ok()? == *self).then_some(pidfd)
    }
}

fn start_time(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).step(|| format!("reading {path}"))?;
    // The command's name, in brackets, may hold anything.
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let field = fields.split(' ').nth(19).and_then(|f| f.parse().ok());
    field.ok_or_else(|| crate::Error::internal(format!("{path} has no start time")))
}

pub fn write_live(node: &Node, id: &str, pid: i32) -> Result<()> {
    record::write(&node.layout.container_state(id).join("live.json"), &Live::of(pid)?)
}

pub fn read_live(directory: &Path) -> Option<Live> {
    record::read(&directory.join("live.json")).ok().flatten()
}

/// Puts every recorded container into the table. `held`: what the keeper has, by ID; what is taken
/// from it is a container's, the rest is nobody's.
pub async fn recover(node: &Arc<Node>, held: &mut HashMap<String, (Process, State)>) -> Result<()> {
    let directory = node.layout.containers();
    let entries = std::fs::read_dir(&directory).step(|| format!("reading {}", directory.display()))?;
    for entry in entries.flatten() {
        let id = entry.file_name().to_string_lossy().into_owned();
        let found = held.remove(&id);
        match record::read::<Record>(&entry.path().join("container.json")) {
            Ok(Some(record)) => recover_one(node, record, found).await,
            // Its creation was cut off: nobody was told of it.
            Ok(None) => {
                if let Err(error) = super::remove::discard(node, &id, None).await {
                    tracing::warn!(container = id, %error, "a half made container is not freed");
                }
            }
            Err(error) => {
                tracing::warn!(container = id, %error, "a container's record is damaged");
                match found {
                    Some((process, _)) => end(node, &process).await,
                    None => end_unheld(node, &id),
                }
                let container = Container::new(damaged(&id), Phase::Unknown(error.message));
                node.containers.insert(&id, Arc::new(container));
            }
        }
    }
    Ok(())
}

/// How long a killed process may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Kills a process that nobody can look after any more, and has the keeper forget it.
pub async fn end(node: &Node, process: &Process) {
    let result = async {
        process.signal(libc::SIGKILL)?;
        let _ = tokio::time::timeout(KILL_LIMIT, process.exited()).await;
        node.keeper.forget(&process.id).await
    };
    if let Err(error) = result.await {
        tracing::warn!(process = process.id, %error, "a process that nobody knows is not ended");
    }
}

/// The same for one that the keeper does not have.
fn end_unheld(node: &Node, id: &str) {
    let live = read_live(&node.layout.container_state(id)).and_then(|live| live.open());
    if let Some(pidfd) = live
        && let Err(error) = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL)
    {
        tracing::warn!(container = id, %error, "a container whose record is damaged is not killed");
    }
}

/// Stands for a container whose record is gone: it can be seen and removed (BEHAVIOUR 4).
fn damaged(id: &str) -> Record {
    Record {
        id: id.to_owned(),
        pod_id: String::new(),
        spec: Arc::default(),
        created_at: table::now(),
        image_id: String::new(),
        image_ref: String::new(),
        user: Default::default(),
        stop_signal: "SIGKILL".into(),
        cgroup: None,
        log_path: Default::default(),
        oom_baseline: 0,
        warnings: Vec::new(),
    }
}

/// Said in the status of a container whose pipes nobody held when it ended.
const OUTPUT_LOST: &str =
    "what it wrote last may be lost: it ended while neither podwright nor its keeper ran";

/// Whether the process of a pidfd has ended.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).is_ok_and(|ready| ready > 0)
}

async fn recover_one(node: &Arc<Node>, mut record: Record, found: Option<(Process, State)>) {
    let id = record.id.clone();
    if let Err(error) = node.images.hold(&record.image_id, &id) {
        tracing::warn!(container = id, %error, "the container's image is gone");
    }
    let exit_path = node.layout.container(&id).join("exit.json");
    let ended: Option<Ending> = record::read(&exit_path).unwrap_or_else(|error| {
        tracing::warn!(container = id, %error, "the exit record is damaged");
        Some(lost(error.message))
    });
    if let Some(ending) = ended {
        node.containers.insert(&id, Arc::new(Container::new(record, Phase::Exited(ending))));
        return;
    }
    let found = match found {
        Some(found) => Some(found),
        None => adopt(node, &mut record).await,
    };
    let state_dir = node.layout.container_state(&id);
    let noted = state_dir.join("live.json").exists();
    if found.is_none() && state_dir.exists() && !noted {
        // Its creation was cut off after the record: nobody was told of it, a retry makes another.
        if let Err(error) = super::remove::discard(node, &id, record.cgroup.as_ref()).await {
            tracing::warn!(container = id, %error, "a half made container is not freed");
        }
        return;
    }
    let Some((process, state)) = found else {
        let container = Arc::new(Container::new(record, Phase::Unknown("being recovered".into())));
        node.containers.insert(&id, Arc::clone(&container));
        let why = "the container ended while neither podwright nor its keeper ran, or with a reboot";
        end::conclude(node, &container, lost(why.into())).await;
        return;
    };
    if !noted && let Err(error) = write_live(node, &id, process.pid) {
        tracing::debug!(container = id, %error, "the container has ended already");
    }
    let phase = match state {
        State::Parked => Phase::Created(process.clone()),
        State::Running { started_at } | State::Exited { started_at, .. } => {
            Phase::Running { process: process.clone(), started_at }
        }
    };
    let container = Arc::new(Container::new(record, phase));
    match record::read(&node.layout.container(&id).join("resources.json")) {
        Ok(Some(resources)) => container.set_resources(resources),
        Ok(None) => {}
        Err(error) => tracing::warn!(container = id, %error, "the updated limits are not known"),
    }
    if let Some(Err(error)) = container.record.cgroup.as_ref().map(|cgroup| node.cgroups.watch(cgroup)) {
        tracing::warn!(container = id, %error, "OOM kills of the container will not be seen");
    }
    node.containers.insert(&id, Arc::clone(&container));
    end::watch(node, &container, process);
}

fn lost(message: String) -> Ending {
    Ending {
        finished_at: table::now(),
        exit_code: 255,
        reason: "ContainerStatusUnknown".into(),
        message,
        ..Ending::default()
    }
}

/// Gives a container that outlived both of our processes to the new keeper.
async fn adopt(node: &Arc<Node>, record: &mut Record) -> Option<(Process, State)> {
    let state = node.layout.container_state(&record.id);
    let live = read_live(&state)?;
    let pidfd = Arc::new(live.open()?);
    let output = match reopen(record, &state) {
        Ok(output) => output,
        Err(error) => {
            tracing::warn!(container = record.id, %error, "the output cannot be copied any more");
            None
        }
    };
    // Looked at after the pipes were opened: had it lived until then, nothing of them is lost.
    if has_ended(&pidfd) {
        record.warnings.push(OUTPUT_LOST.into());
        let path = node.layout.container(&record.id).join("container.json");
        if let Err(error) = record::write(&path, record) {
            tracing::warn!(container = record.id, %error, "the loss of output is not recorded");
        }
    }
    let adopt = Adopt { id: record.id.clone(), pid: live.pid, pidfd, output };
    // The keeper's note tells whether its program ever ran.
    let note = stdio::open_note(&state).ok().and_then(|note| NotePage::map(note.as_fd()).ok());
    let started_at = note.and_then(|note| note.started_at());
    match node.keeper.adopt(adopt).await {
        Ok(process) => {
            Some((process, started_at.map_or(State::Parked, |started_at| State::Running { started_at })))
        }
        Err(error) => {
            tracing::warn!(container = record.id, %error, "the container is not adopted");
            None
        }
    }
}

/// Without a TTY, whose master died with its holders.
fn reopen(record: &Record, state: &Path) -> Result<Option<Output>> {
    if record.spec.tty {
        return Ok(None);
    }
    let source: Source = stdio::reopen_pipes(state)?;
    let has_log = !record.log_path.as_os_str().is_empty();
    let log = has_log.then(|| stdio::open_log(&record.log_path)).transpose()?.map(Arc::new);
    let note = Arc::new(stdio::open_note(state)?);
    Ok(Some(Output { note, source, log, stdin: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_apart_from_a_later_one_with_its_number() {
        let us = Live::of(std::process::id() as i32).unwrap();
        assert!(us.open().is_some());
        assert!(Live { start_time: us.start_time + 1, ..us.clone() }.open().is_none());
        assert!(Live { boot_id: "another".into(), ..us }.open().is_none());
    }
}
