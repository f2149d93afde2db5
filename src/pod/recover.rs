//! Pods of before, found again (BEHAVIOUR 13, 42).
//!
//! Each pod on its own: a broken one is NOTREADY with its reason and can be removed; it never keeps
//! the daemon from starting.

use std::collections::HashMap;
use std::sync::Arc;

use crate::Result;
use crate::container;
use crate::error::Step;
use crate::keeper::client::{Adopt, Hold, Process};
use crate::node::{Node, record, table};
use crate::pod::spec::NamespaceMode;
use crate::pod::{Phase, Pod, Record, Shared, boot_id, init, namespaces, stop};

/// What was found at the start: the keeper's holds by key, and the pods' inits by ID.
pub struct Found {
    pub holds: HashMap<String, Hold>,
    pub inits: HashMap<String, Process>,
}

/// Puts every recorded pod into the table and returns the IDs of those that keep their network.
pub async fn recover(node: &Arc<Node>, mut found: Found) -> Result<Vec<String>> {
    let directory = node.layout.pods();
    let boot = boot_id()?;
    let mut live = Vec::new();
    for entry in std::fs::read_dir(&directory).step(|| format!("reading {}", directory.display()))?.flatten()
    {
        let id = entry.file_name().to_string_lossy().into_owned();
        let record = match record::read::<Record>(&node.layout.pod_record(&id)) {
            Ok(Some(record)) if record.complete => record,
            // Its run was cut off: nobody was told of it, and a retry makes another.
            Ok(cut_off) => {
                let record = cut_off.unwrap_or_else(|| damaged(node, &id));
                tokio::spawn(undo(Arc::clone(node), record));
                continue;
            }
            Err(error) => {
                tracing::warn!(pod = id, %error, "a pod's record is damaged");
                let record = find_cgroup(node, damaged(node, &id)).await;
                node.pods.insert(&id, Arc::new(Pod::new(record, Phase::NotReady(error.message))));
                continue;
            }
        };
        let hold = found.holds.remove(&namespaces::hold_key(&id));
        let init = found.inits.remove(&init::id(&id));
        let phase = match regain(node, &record, &boot, hold, init).await {
            Ok(shared) => {
                live.push(id.clone());
                Phase::Ready(shared)
            }
            Err(why) => Phase::NotReady(why),
        };
        let init = match &phase {
            Phase::Ready(shared) => shared.init.clone(),
            Phase::NotReady(_) => None,
        };
        let pod = Arc::new(Pod::new(record, phase));
        if let Some(init) = init {
            init::watch(node, &pod, init);
        }
        node.pods.insert(&id, pod);
    }
    forget_the_rest(node, found).await;
    Ok(live)
}

/// Frees what a run that was cut off had made. What cannot be freed now is left to the next start.
async fn undo(node: Arc<Node>, record: Record) {
    let record = find_cgroup(&node, record).await;
    let pod = Arc::new(Pod::new(record, Phase::NotReady("its run was cut off".into())));
    let undone = match stop::tear_down(&node, &pod).await {
        Ok(()) => stop::discard(&node, &pod).await,
        failed => failed,
    };
    if let Err(error) = undone {
        tracing::warn!(pod = pod.id, %error, "a pod whose run was cut off left something behind");
    }
}

/// The cgroup is made before the record says so: its name follows from the pod's.
async fn find_cgroup(node: &Node, mut record: Record) -> Record {
    if record.cgroup.is_none() {
        match node.cgroups.create_pod(&record.spec.cgroup_parent, &record.id).await {
            Ok(cgroup) => record.cgroup = Some(cgroup),
            Err(error) => tracing::warn!(pod = record.id, %error, "the pod's cgroup is not found"),
        }
    }
    record
}

/// Stands for a pod whose record is gone: it can be seen and removed.
fn damaged(node: &Node, id: &str) -> Record {
    Record {
        id: id.to_owned(),
        spec: Arc::default(),
        created_at: table::now(),
        netns: node.layout.netns(id),
        cgroup: None,
        ips: Vec::new(),
        complete: false,
        stopped: false,
        boot_id: String::new(),
    }
}

/// Err: why the pod is not ready.
async fn regain(
    node: &Arc<Node>,
    record: &Record,
    boot: &str,
    hold: Option<Hold>,
    init: Option<Process>,
) -> Result<Shared, String> {
    if record.stopped {
        return Err(String::new());
    }
    if record.boot_id != boot {
        return Err("the node was rebooted".into());
    }
    if let Some(mut shared) = hold.as_ref().and_then(|hold| namespaces::unpack(record, hold)) {
        shared.init = init;
        return with_init(record, shared);
    }
    let mut shared = take_back(node, record)?;
    shared.init = adopt_init(node, record).await;
    let shared = with_init(record, shared)?;
    node.keeper.hold(namespaces::hold(&record.id, &shared)).await.map_err(|e| e.message)?;
    Ok(shared)
}

fn with_init(record: &Record, shared: Shared) -> Result<Shared, String> {
    if record.spec.security.namespaces.pid == NamespaceMode::Pod && shared.init.is_none() {
        return Err("the pod's shared PID namespace has lost its init".into());
    }
    Ok(shared)
}

/// From a container of the pod that lives: both of our processes died.
fn take_back(node: &Node, record: &Record) -> Result<Shared, String> {
    let gone = || "the pod's namespaces are gone: podwright and its keeper both ended and no container of the pod lives";
    let scratch = node.layout.pod_state(&record.id).join("shm");
    let mut pids = living(node, &record.id);
    pids.sort_by_key(|(_, private_shm)| !private_shm);
    let mut why = gone().to_owned();
    // One that has just ended may be among them.
    for (pid, has_shm) in pids {
        match namespaces::take_back(record, pid, has_shm.then_some(scratch.as_path())) {
            Ok(shared) if namespaces::complete(record, &shared) => return Ok(shared),
            Ok(_) => {}
            Err(error) => why = format!("{}: {error}", gone()),
        }
    }
    Err(why)
}

/// (pid, whether its /dev/shm is the pod's) of the pod's living containers.
fn living(node: &Node, pod_id: &str) -> Vec<(i32, bool)> {
    let containers = node.containers.all();
    let of_pod = containers.iter().filter(|c| c.record.pod_id == pod_id);
    of_pod
        .filter_map(|c| {
            let own_shm = c.record.spec.mounts.iter().any(|m| m.container_path == "/dev/shm");
            Some((c.process()?.pid, !own_shm))
        })
        .collect()
}

async fn adopt_init(node: &Arc<Node>, record: &Record) -> Option<Process> {
    let live = container::recover::read_live(&node.layout.pod_state(&record.id))?;
    let pidfd = Arc::new(live.open()?.pidfd);
    node.keeper.adopt(Adopt { id: init::id(&record.id), pid: live.pid, pidfd, output: None }).await.ok()
}

/// What the keeper holds for pods that nobody knows.
async fn forget_the_rest(node: &Arc<Node>, found: Found) {
    for key in found.holds.keys() {
        if let Err(error) = node.keeper.release(key).await {
            tracing::warn!(key, %error, "a stale hold is not released");
        }
    }
    for process in found.inits.into_values() {
        container::recover::end(node, &process).await;
    }
}
