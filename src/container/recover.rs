//! Containers of before: found again after a restart of the daemon, of both processes, or the node.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::container::spec::ContainerSpec;
use crate::container::{Container, Ending, Phase, Record, end, oci, stdio};
use crate::error::Step;
use crate::keeper::client::{self as keeper, Adopt, Exit, Output, Process, Source, State};
use crate::keeper::note::NotePage;
use crate::node::{Node, record, table};
use crate::pod::boot_id;
use crate::sys::proc_stat::ProcStat;

/// live.json: which process is meant, told apart from a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    pub pid: i32,
    /// Field 22 of proc_pid_stat(5): clock ticks after boot.
    start_time: u64,
    boot_id: String,
    /// Of a container.
    #[serde(default)]
    pod_id: String,
}

impl Live {
    pub fn of(pid: i32) -> Result<Self> {
        let start_time = stat(pid, |stat| stat.start_time())?;
        Ok(Self { pid, start_time, boot_id: boot_id()?, pod_id: String::new() })
    }

    /// The process, if it is the one that was meant and still there.
    pub fn open(&self) -> Option<Living> {
        let pid = rustix::process::Pid::from_raw(self.pid)?;
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
        // Looked at after the pidfd was taken: the number cannot change hands between the two.
        let of = |stat: &ProcStat| Some((stat.start_time()?, stat.has_executed()?));
        let (start_time, executed) = stat(self.pid, of).ok()?;
        let same = start_time == self.start_time && boot_id().ok()? == self.boot_id;
        same.then_some(Living { pidfd, executed })
    }
}

/// A process that was found again: it lives, or nobody has reaped it yet.
pub struct Living {
    pub pidfd: OwnedFd,
    /// It has executed a program since it was cloned.
    executed: bool,
}

/// What it says of a process.
fn stat<T>(pid: i32, of: impl Fn(&ProcStat) -> Option<T>) -> Result<T> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).step(|| format!("reading {path}"))?;
    ProcStat::of(&text)
        .and_then(|stat| of(&stat))
        .ok_or_else(|| crate::Error::internal(format!("{path} lacks a field")))
}

pub fn write_live(node: &Node, container: &Record, pid: i32) -> Result<()> {
    let live = Live { pod_id: container.pod_id.clone(), ..Live::of(pid)? };
    record::write(&node.layout.container_state(&container.id).join("live.json"), &live)
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
                let container = Container::new(damaged(node, &id), Phase::Unknown(error.message));
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
    if let Some(living) = live
        && let Err(error) = rustix::process::pidfd_send_signal(living.pidfd, rustix::process::Signal::KILL)
    {
        tracing::warn!(container = id, %error, "a container whose record is damaged is not killed");
    }
}

/// Stands for a container whose record is gone: it can be seen and removed, by itself and with its
/// pod (BEHAVIOUR 4), as far as the runtime spec and live.json still tell what it was.
fn damaged(node: &Node, id: &str) -> Record {
    let mut told = runtime_spec(node, id).and_then(|spec| spec.annotations().clone()).unwrap_or_default();
    let mut tell = |key: &str| told.remove(key).filter(|value| !value.is_empty());
    let live = || Some(read_live(&node.layout.container_state(id))?.pod_id);
    let pod_id = tell(oci::OF_POD).or_else(live).unwrap_or_default();
    let image = tell(oci::OF_IMAGE).unwrap_or_else(|| "unknown".into());
    let mut spec = ContainerSpec::default();
    spec.name.name = tell(oci::OF_NAME).unwrap_or_else(|| id.to_owned());
    spec.image.image.clone_from(&image);
    Record {
        id: id.to_owned(),
        pod_id,
        spec: Arc::new(spec),
        created_at: table::now(),
        image_id: image.clone(),
        image_ref: image,
        user: Default::default(),
        stop_signal: "SIGKILL".into(),
        cgroup: None,
        log_path: Default::default(),
        oom_baseline: 0,
        warnings: Vec::new(),
        volume_images: Vec::new(),
    }
}

fn runtime_spec(node: &Node, id: &str) -> Option<oci_spec::runtime::Spec> {
    record::read(&node.layout.container(id).join("config.json")).ok().flatten()
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
        Some(lost(node, &id, error.message))
    });
    if let Some(ending) = ended {
        node.containers.insert(&id, Arc::new(Container::new(record, Phase::Exited(ending))));
        return;
    }
    let found = match found {
        Some((process, state)) => Found::Held(process, state),
        None => adopt(node, &mut record).await,
    };
    let state_dir = node.layout.container_state(&id);
    let noted = state_dir.join("live.json").exists();
    if !matches!(found, Found::Held(..)) && state_dir.exists() && !noted {
        // Its creation was cut off after the record: nobody was told of it, a retry makes another.
        if let Err(error) = super::remove::discard(node, &id, record.cgroup.as_ref()).await {
            tracing::warn!(container = id, %error, "a half made container is not freed");
        }
        return;
    }
    match (found, failed_start(node, &record)) {
        (Found::Held(process, state), None) => {
            if !noted && let Err(error) = write_live(node, &record, process.pid) {
                tracing::debug!(container = id, %error, "the container has ended already");
            }
            go_on(node, record, process, state);
        }
        (found, failed) => {
            let container = Arc::new(Container::new(record, Phase::Unknown("being recovered".into())));
            node.containers.insert(&id, Arc::clone(&container));
            let ending = match (found, failed) {
                (_, Some(message)) => end::start_error(message),
                (Found::Ended { exit, started_at }, None) => end::ending(node, &container, exit, started_at),
                _ => lost(node, &id, LOST.into()),
            };
            end::conclude(node, &container, ending).await;
        }
    }
}

/// Looks after a container whose process is held.
fn go_on(node: &Arc<Node>, record: Record, process: Process, state: State) {
    let id = record.id.clone();
    let phase = match state {
        State::Parked | State::Released => Phase::Created(process.clone()),
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
    if state == State::Released {
        // What the daemon before us had begun; a retry of the call joins.
        let node = Arc::clone(node);
        tokio::spawn(async move {
            if let Err(error) = super::start::start(&node, &id).await {
                tracing::warn!(container = id, %error, "a start that was under way has failed");
            }
        });
    }
}

/// Of an end that nobody saw; of the start there is the note.
fn lost(node: &Node, id: &str, message: String) -> Ending {
    Ending {
        started_at: note(node, id).and_then(|note| note.started_at()).unwrap_or_default(),
        finished_at: table::now(),
        exit_code: 255,
        reason: "ContainerStatusUnknown".into(),
        message,
    }
}

const LOST: &str = "the container ended while neither podwright nor its keeper ran, or with a reboot";

/// What its keeper has noted of a container.
pub fn note(node: &Node, id: &str) -> Option<NotePage> {
    let note = stdio::open_note(&node.layout.container_state(id)).ok()?;
    NotePage::map(note.as_fd()).ok()
}

/// Why a start failed whose daemon died before it could record that.
pub fn failed_start(node: &Node, record: &Record) -> Option<String> {
    let failure = note(node, &record.id)?.failure()?;
    let spec =
        record::read::<oci_spec::runtime::Spec>(&node.layout.container(&record.id).join("config.json"));
    let argv = spec.ok().flatten().and_then(|spec| spec.process().as_ref()?.args().clone());
    let name = argv.and_then(|argv| argv.into_iter().next()).unwrap_or_default();
    Some(keeper::exec_failed(name.as_bytes(), failure).message)
}

/// What has become of a recorded container.
enum Found {
    Held(Process, State),
    /// Nothing is left of the process but what its keeper had noted. `started_at` 0: it never ran.
    Ended {
        exit: Exit,
        started_at: i64,
    },
    Lost,
}

/// Gives a container that outlived both of our processes to the new keeper.
async fn adopt(node: &Arc<Node>, record: &mut Record) -> Found {
    let state = node.layout.container_state(&record.id);
    let Some(live) = read_live(&state) else { return Found::Lost };
    let note = note(node, &record.id);
    let Some(found) = live.open() else {
        let Some(exit) = note.as_ref().and_then(NotePage::exit) else { return Found::Lost };
        if !note.as_ref().is_some_and(NotePage::log_is_whole) {
            warn_of_loss(node, record);
        }
        let started_at = note.and_then(|note| note.started_at()).unwrap_or_default();
        return Found::Ended { exit, started_at };
    };
    let output = match reopen(record, &state) {
        Ok(output) => output,
        Err(error) => {
            tracing::warn!(container = record.id, %error, "the output cannot be copied any more");
            None
        }
    };
    // Looked at after the pipes were opened: had it lived until then, nothing of them is lost. Between
    // closing its files and its end lies the teardown of its mounts, which takes a while.
    let closed =
        has_ended(&found.pidfd) || stat(live.pid, |stat| stat.is_exiting()).is_ok_and(|exiting| exiting);
    if closed && !note.as_ref().is_some_and(NotePage::log_is_whole) {
        warn_of_loss(node, record);
    }
    let Some(started_at) = started_at(&live, &found, note.as_ref()).await else { return Found::Lost };
    let adopt = Adopt { id: record.id.clone(), pid: live.pid, pidfd: Arc::new(found.pidfd), output };
    match node.keeper.adopt(adopt).await {
        Ok(process) => Found::Held(process, State::Running { started_at }),
        Err(error) => {
            tracing::warn!(container = record.id, %error, "the container is not adopted");
            Found::Lost
        }
    }
}

/// How long a child that was released may take to execute its program, or one that was not to see
/// that nobody holds it.
const EXECUTE_LIMIT: Duration = Duration::from_secs(2);
const EXECUTE_INTERVAL: Duration = Duration::from_millis(2);

/// When a container's program was started: nanoseconds since the epoch, None if it never was. The
/// keeper that released it may have died before it could note that. A process that has not executed
/// anything is one that is about to, or a helper whose final process nobody has noted.
async fn started_at(live: &Live, found: &Living, note: Option<&NotePage>) -> Option<i64> {
    let deadline = tokio::time::Instant::now() + EXECUTE_LIMIT;
    let mut executed = found.executed;
    // What is still there at the deadline is on its way to its program: what was parked has ended.
    while !executed && tokio::time::Instant::now() < deadline {
        let ended = has_ended(&found.pidfd);
        // After that look: a zombie still tells, and it may have executed and ended meanwhile.
        executed = stat(live.pid, |stat| stat.has_executed()).is_ok_and(|executed| executed);
        if ended && !executed {
            return None;
        }
        tokio::time::sleep(EXECUTE_INTERVAL).await;
    }
    if let Some(at) = note.and_then(NotePage::started_at) {
        return Some(at);
    }
    let now = table::now();
    if let Some(note) = note {
        note.set_started_at(now);
    }
    Some(now)
}

fn warn_of_loss(node: &Node, record: &mut Record) {
    record.warnings.push(OUTPUT_LOST.into());
    let path = node.layout.container(&record.id).join("container.json");
    if let Err(error) = record::write(&path, record) {
        tracing::warn!(container = record.id, %error, "the loss of output is not recorded");
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
