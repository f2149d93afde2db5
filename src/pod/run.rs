//! RunPodSandbox.

use std::path::PathBuf;
use std::sync::Arc;

use crate::container::recover::Live;
use crate::error::{Kind, Step as _};
use crate::keeper::client::{Role, Spawn};
use crate::node::{Node, record, table};
use crate::pod::events::EventKind;
use crate::pod::spec::{NamespaceMode, PodSpec};
use crate::pod::{Phase, Pod, Record, Shared, boot_id, files, init, namespaces, stop};
use crate::{Error, Result};

/// Returns the pod's ID. A second call for the same name joins the first (BEHAVIOUR 3), and one
/// for a pod that runs already gets that pod.
pub async fn run(node: &Arc<Node>, spec: PodSpec) -> Result<String> {
    let key = spec.name.clone();
    let task = Arc::clone(node);
    node.running.join(key, move || async move { find_or_bring_up(&task, spec).await }).await
}

async fn find_or_bring_up(node: &Arc<Node>, spec: PodSpec) -> Result<String> {
    if let Some(pod) = node.pods.all().into_iter().find(|p| p.record().spec.name == spec.name) {
        let same = *pod.record().spec == spec && matches!(pod.phase(), Phase::Ready(_));
        return if same { Ok(pod.id.clone()) } else { Err(taken(&pod, &spec)) };
    }
    node.network_ready(&spec)?;
    let record = draft(node, spec)?;
    let pod = Arc::new(Pod::new(record, Phase::NotReady("the pod is being set up".into())));
    match bring_up(node, &pod).await {
        Ok(()) => {
            node.pods.insert(&pod.id, Arc::clone(&pod));
            node.announce_pod(&pod, EventKind::Created);
            node.announce_pod(&pod, EventKind::Started);
            Ok(pod.id.clone())
        }
        Err(error) => {
            // Every step's undo is in the teardown, which is fine with steps that never ran.
            if let Err(undo) = stop::tear_down(node, &pod).await {
                tracing::warn!(pod = pod.id, error = %undo, "a failed pod left something behind");
            }
            if let Err(undo) = stop::discard(node, &pod).await {
                tracing::warn!(pod = pod.id, error = %undo, "a failed pod left something behind");
            }
            Err(error.during(format!(
                "running pod {}/{}",
                pod.record().spec.name.namespace,
                pod.record().spec.name.name
            )))
        }
    }
}

fn taken(pod: &Pod, spec: &PodSpec) -> Error {
    Error::new(
        Kind::AlreadyExists,
        format!(
            "pod {}/{} (uid {}, attempt {}) exists already as {}",
            spec.name.namespace, spec.name.name, spec.name.uid, spec.name.attempt, pod.id
        ),
    )
}

fn draft(node: &Node, spec: PodSpec) -> Result<Record> {
    let id = table::new_id()?;
    let host_network = spec.security.namespaces.network == NamespaceMode::Node;
    let netns = if host_network { PathBuf::new() } else { node.layout.netns(&id) };
    Ok(Record {
        netns,
        spec: Arc::new(spec),
        created_at: table::now(),
        cgroup: None,
        ips: Vec::new(),
        complete: false,
        stopped: false,
        boot_id: boot_id()?,
        id,
    })
}

/// Record → cgroup → namespaces → network and keeping → ready. The record comes first: whatever is
/// made after it can be found and undone by it.
async fn bring_up(node: &Arc<Node>, pod: &Arc<Pod>) -> Result<()> {
    let mut record = Record::clone(&pod.record());
    save(node, &record)?;
    record.cgroup = Some(node.cgroups.create_pod(&record.spec.cgroup_parent, &record.id).await?);
    save(node, &record)?;
    pod.set_record(record.clone());
    let mut shared = make_shared(node, &record).await?;
    pod.set_phase(Phase::Ready(shared.clone()));
    let (attached, held) = tokio::join!(attach(node, &record), hold(node, &record, &mut shared));
    // Before either may fail: the teardown ends what it finds here.
    pod.set_phase(Phase::Ready(shared.clone()));
    record.ips = attached?;
    held?;
    record.complete = true;
    save(node, &record)?;
    pod.set_record(record);
    if let Some(init) = shared.init {
        init::watch(node, pod, init);
    }
    Ok(())
}

/// Writes the pod's record.
pub fn save(node: &Node, pod: &Record) -> Result<()> {
    let directory = node.layout.pod(&pod.id);
    std::fs::create_dir_all(&directory).step(|| format!("making directory {}", directory.display()))?;
    record::append(&node.layout.pod_record(&pod.id), pod)
}

async fn make_shared(node: &Arc<Node>, record: &Record) -> Result<Shared> {
    let (files_dir, record) = (node.layout.pod_state(&record.id), record.clone());
    let work = move || {
        let hostname = namespaces::hostname(&record.spec);
        files::write(&files_dir, &record.spec, &hostname)?;
        namespaces::make(&record, &hostname)
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal(format!("making namespaces: {e}")))?
}

async fn attach(node: &Arc<Node>, record: &Record) -> Result<Vec<std::net::IpAddr>> {
    if record.host_network() {
        return Ok(Vec::new());
    }
    Ok(node.network.attach(&record.network()).await?.ips)
}

/// Gives the fds into the keeper's keeping, and starts the pod's PID 1 where one is asked for.
async fn hold(node: &Arc<Node>, record: &Record, shared: &mut Shared) -> Result<()> {
    node.keeper.hold(namespaces::hold(&record.id, shared)).await?;
    if record.spec.security.namespaces.pid == NamespaceMode::Pod {
        let cgroup = record.cgroup.as_ref().ok_or_else(|| Error::internal("the pod has no cgroup"))?;
        let (plan, fds) = init::plan(node.cgroups.entry(cgroup)?, &record.spec, shared)?;
        let spawn = Spawn { id: init::id(&record.id), plan, fds, role: Role::PodInit };
        let init = node.keeper.spawn(spawn).await.step(|| "starting the pod's init")?;
        let live = Live::of(init.pid)?;
        shared.init = Some(init);
        record::write(&node.layout.pod_state(&record.id).join("live.json"), &live)?;
    }
    Ok(())
}
