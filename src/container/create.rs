//! CreateContainer: everything up to the parked child.
//!
//! Image and rootfs → user → volumes → Spec → plan → cgroup → keeper. What a failed creation has
//! made is freed by the same code that removes a container.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use oci_spec::runtime as oci;

use crate::cgroup::{Cgroup, Entry, View, Warning};
use crate::container::compile::{self, Inputs, Pid, Tree};
use crate::container::exec::Template;
use crate::container::ground::{self, Ground};
use crate::container::inside::Inside;
use crate::container::mounts::Source;
use crate::container::oci::NamespacePaths;
use crate::container::spec::ContainerSpec;
use crate::container::{
    Container, Phase, Record, attached, end, image_volume, process_env, remove, rlimits, rootfs, signal,
    volumes,
};
use crate::error::{Kind, Step};
use crate::image::Resolved;
use crate::keeper::client::{Role, Spawn};
use crate::node::{Node, record, table};
use crate::pod::events::EventKind;
use crate::pod::spec::NamespaceMode;
use crate::pod::{self, Pod, Shared};
use crate::security::{capabilities, seccomp};
use crate::sys::probe;
use crate::{Error, Result};

/// Preparations at a time: on a disk that hangs they do not take all of the daemon's threads.
static PREPARATIONS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(32);

/// How long a failed call waits for what it has made to be gone.
const UNDO_LIMIT: Duration = Duration::from_secs(5);

/// Returns the container's ID. A second call for the same name in the pod joins the first, and one
/// for a container that was created already gets that one (BEHAVIOUR 3).
pub async fn create(node: &Arc<Node>, pod_id: &str, spec: ContainerSpec) -> Result<String> {
    let pod = node.pods.find(pod_id)?;
    let key = (pod.id.clone(), spec.name.clone());
    let task = Arc::clone(node);
    node.creating.join(key, move || async move { find_or_make(&task, &pod, spec).await }).await
}

async fn find_or_make(node: &Arc<Node>, pod: &Arc<Pod>, spec: ContainerSpec) -> Result<String> {
    let _gate = pod.gate.read().await;
    let spec = align(spec, &pod.record())?;
    let twin = node
        .containers
        .all()
        .into_iter()
        .find(|c| c.record.pod_id == pod.id && c.record.spec.name == spec.name);
    if let Some(twin) = twin {
        if *twin.record.spec == spec && matches!(twin.phase(), Phase::Created(_)) {
            return Ok(twin.id.clone());
        }
        let message = format!(
            "container {} (attempt {}) exists already in pod {} as {}",
            spec.name.name, spec.name.attempt, pod.id, twin.id
        );
        return Err(Error::new(Kind::AlreadyExists, message));
    }
    let pod::Phase::Ready(shared) = pod.phase() else {
        return Err(Error::precondition(format!("pod {} is not ready", pod.id)));
    };
    let name = spec.name.name.clone();
    let id = table::new_id()?;
    let making = Making { node, pod, shared, id: &id, cgroup: OnceLock::new() };
    let made = tokio::select! {
        made = making.run(spec) => made,
        // A stop does not wait for what hangs here.
        () = pod.closed() => Err(Error::precondition(format!("pod {} is being stopped", pod.id))),
    };
    match made {
        Ok(container) => {
            let container = Arc::new(container);
            node.containers.insert(&id, Arc::clone(&container));
            if let Some(process) = container.process() {
                end::watch(node, &container, process);
            }
            node.announce(&container, EventKind::Created);
            Ok(id)
        }
        Err(error) => {
            undo(node, &id, making.cgroup.into_inner()).await;
            Err(error.during(format!("creating container {name}")))
        }
    }
}

/// Frees what a failed creation has made. On a disk that hangs this goes on without the call, and so
/// without holding up the pod's stop.
async fn undo(node: &Arc<Node>, id: &str, cgroup: Option<Cgroup>) {
    let (node, id) = (Arc::clone(node), id.to_owned());
    let undone = tokio::spawn(async move {
        if let Err(error) = remove::discard(&node, &id, cgroup.as_ref()).await {
            tracing::warn!(container = id, %error, "a failed container left something behind");
        }
    });
    let _ = tokio::time::timeout(UNDO_LIMIT, undone).await;
}

/// What the container may ask of the node is bounded by what its pod was made with, whatever the
/// client repeats of the pod's configuration.
fn align(mut spec: ContainerSpec, pod: &pod::Record) -> Result<ContainerSpec> {
    let (ours, theirs) = (&mut spec.security, &pod.spec.security);
    if ours.privileged && !theirs.privileged {
        return Err(Error::invalid("a privileged container needs a privileged pod"));
    }
    let modes = [
        ("network", &mut ours.namespaces.network, theirs.namespaces.network),
        ("ipc", &mut ours.namespaces.ipc, theirs.namespaces.ipc),
        ("pid", &mut ours.namespaces.pid, theirs.namespaces.pid),
    ];
    for (name, mode, of_pod) in modes {
        if *mode == NamespaceMode::Node && of_pod != NamespaceMode::Node {
            return Err(Error::invalid(format!(
                "namespace_options.{name}: the container asks for the node's, its pod has one of its own"
            )));
        }
        if *mode == NamespaceMode::Pod && name != "pid" {
            *mode = of_pod;
        }
    }
    Ok(spec)
}

impl Tree {
    /// A directory with nothing mounted in it.
    fn of(mount: OwnedFd, label: impl Into<String>) -> Self {
        Self { mount, directory: true, label: label.into(), below: Vec::new() }
    }

    /// For /sys/fs/cgroup.
    fn of_cgroup(view: View, read_only: bool) -> Result<Self> {
        let label = "the cgroup at /sys/fs/cgroup";
        match view {
            View::Unified(mount) => Ok(Self::of(mount, label)),
            View::Hierarchies(below) => {
                let mount = rootfs::directories(below.iter().map(|(name, _)| name.as_str()), read_only)?;
                Ok(Self { below, ..Self::of(mount, label) })
            }
        }
    }
}

impl From<volumes::Volume> for Tree {
    fn from(volume: volumes::Volume) -> Self {
        Self { directory: volume.directory, ..Self::of(volume.mount, volume.label) }
    }
}

/// A container's cgroup.
struct Confined {
    cgroup: Cgroup,
    /// Of limits that this host cannot give.
    warnings: Vec<Warning>,
    entry: Entry,
}

/// A creation under way.
struct Making<'a> {
    node: &'a Arc<Node>,
    pod: &'a Arc<Pod>,
    shared: Shared,
    id: &'a str,
    /// Once there is one, for the way back.
    cgroup: OnceLock<Cgroup>,
}

impl Making<'_> {
    async fn run(&self, spec: ContainerSpec) -> Result<Container> {
        let node = self.node;
        let image = node.images.hold(&image_volume::image_id(node, &spec.image.image)?, self.id)?;
        let volumes = image_volume::hold(node, self.id, &spec)?;
        let spec = Arc::new(spec);
        // Neither needs the other, and each takes half a millisecond of the kernel's time: the first
        // on a thread of its own, the second right here.
        let (ground, confined) = tokio::join!(self.prepare(Arc::clone(&spec), image), self.confine(&spec));
        let (confined, view) = confined?;
        let mut ground = ground?;
        ground.volumes = volumes;
        let trees = self.open_trees(&mut ground, view).await?;
        node.cgroups.allow_devices(&confined.cgroup, &ground.devices.rules)?;
        self.finish(ground, trees, confined).await
    }

    /// The cgroup with its limits, the way into it and the view of it.
    async fn confine(&self, spec: &ContainerSpec) -> Result<(Confined, Tree)> {
        let pod = self.pod.record();
        let parent = pod.cgroup.as_ref().ok_or_else(|| Error::precondition("the pod has no cgroup"))?;
        let cgroups = &self.node.cgroups;
        let cgroup = cgroups.create_container(parent, self.id).step(|| "making the cgroup")?;
        let _ = self.cgroup.set(cgroup.clone());
        let warnings = cgroups.limit(&cgroup, &spec.resources).step(|| "making the cgroup")?;
        let entry = cgroups.entry(&cgroup)?;
        // A privileged one has the host's cgroup namespace, and so its view.
        let privileged = spec.security.privileged;
        let step = || "mounting /sys/fs/cgroup";
        let view = cgroups.show((!privileged).then_some(&cgroup), !privileged).step(step)?;
        let tree = Tree::of_cgroup(view, !privileged).step(step)?;
        Ok((Confined { cgroup, warnings, entry }, tree))
    }

    /// The part that touches the store and the state directory, on a blocking thread. Where nobody
    /// waits for it any more it frees itself what it has made.
    async fn prepare(&self, spec: Arc<ContainerSpec>, image: Resolved) -> Result<Ground> {
        let (node, pod, id) = (Arc::clone(self.node), self.pod.record(), self.id.to_owned());
        let limit = Duration::from_secs(node.config.container.volume_timeout);
        let late = || {
            let text = format!("a disk did not answer within {} s", limit.as_secs());
            Error::new(Kind::DeadlineExceeded, format!("preparing the container: {text}"))
        };
        let deadline = tokio::time::Instant::now() + limit;
        let room = tokio::time::timeout_at(deadline, PREPARATIONS.acquire()).await.map_err(|_| late())?;
        let room = room.map_err(|e| Error::internal(e.to_string()))?;
        let (maker, name) = (Arc::clone(&node), id.clone());
        let made = tokio::task::spawn_blocking(move || ground::prepare(&maker, &pod, &name, spec, image));
        let (answer, answered) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let made = made.await;
            drop(room);
            let made = made.unwrap_or_else(|e| Err(Error::internal(format!("preparing the container: {e}"))));
            if answer.send(made).is_err()
                && let Err(error) = remove::discard(&node, &id, None).await
            {
                tracing::warn!(container = id, %error, "a container that came too late left something behind");
            }
        });
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(made)) => made,
            Ok(Err(_)) => Err(Error::internal("preparing the container was interrupted")),
            Err(_) => Err(late()),
        }
    }

    /// The detached mounts, by their place in the list.
    async fn open_trees(&self, ground: &mut Ground, cgroup: Tree) -> Result<HashMap<usize, Tree>> {
        let mut trees = HashMap::new();
        let mut cgroup = Some(cgroup);
        let mut hosts = (Vec::new(), Vec::new());
        for (index, planned) in ground.mounts.iter().enumerate() {
            let at = planned.destination.display();
            match &planned.source {
                Source::Host(mount) => {
                    hosts.0.push(index);
                    hosts.1.push(mount.clone());
                }
                Source::Ours(mount) => {
                    let volume = volumes::open(mount)?;
                    trees.insert(index, volume.into());
                }
                Source::Image(at, mount) => {
                    let layers =
                        ground.volumes.get(*at).map(|image| image.volume_layers()).unwrap_or_default();
                    let mount = mount.clone();
                    let opened = tokio::task::spawn_blocking(move || image_volume::open(&mount, &layers));
                    let volume = opened.await.unwrap_or_else(|e| Err(Error::internal(e.to_string())))?;
                    trees.insert(index, volume.into());
                }
                Source::PodShm => {
                    let mount = self.clone_shm().step(|| format!("mounting {at}"))?;
                    trees.insert(index, Tree::of(mount, "the pod's /dev/shm"));
                }
                Source::Devpts => {
                    if let Some(mount) = ground.stdio.devpts.take() {
                        trees.insert(index, Tree::of(mount, "devpts at /dev/pts"));
                    }
                }
                Source::Cgroup => trees.extend(cgroup.take().map(|tree| (index, tree))),
                Source::FileSystem if planned.oci.typ().as_deref() == Some("proc") => {
                    if let Some(mount) = self.joined_procfs(&ground.spec).await? {
                        trees.insert(index, Tree::of(mount, format!("procfs at {at}")));
                    }
                }
                Source::FileSystem => {}
            }
        }
        let limit = Duration::from_secs(self.node.config.container.volume_timeout);
        let opened = volumes::open_all(hosts.1, limit).await?;
        for (index, volume) in hosts.0.into_iter().zip(opened) {
            trees.insert(index, volume.into());
        }
        Ok(trees)
    }

    /// The procfs of a PID namespace that is joined, where the child, which is outside of it, cannot
    /// make one that shows it.
    async fn joined_procfs(&self, spec: &ContainerSpec) -> Result<Option<OwnedFd>> {
        let modes = &spec.security.namespaces;
        let mut target = None;
        let (pid, path) = match modes.pid {
            _ if probe::procfs_of_others().is_ok() => return Ok(None),
            NamespaceMode::Pod => (self.shared.init.as_ref().map(|init| init.pid), attached::INIT_PROC),
            NamespaceMode::Target => {
                let target = target.insert(self.node.containers.find(&modes.target)?);
                (target.process().map(|p| p.pid), "/proc")
            }
            NamespaceMode::Container | NamespaceMode::Node => return Ok(None),
        };
        // `pid` refuses one that does not run, with a sentence of its own.
        let Some(pid) = pid else { return Ok(None) };
        // A file system of the target's own making may never answer.
        let limit = Duration::from_secs(self.node.config.container.volume_timeout);
        // A pod's own PID 1 has nothing mounted that is not ours.
        let own = Inside::default();
        let inside = target.as_ref().map_or(&own, |target| &target.inside);
        let what = format!("taking the procfs of process {pid}");
        inside.look(&what, limit, move || attached::procfs(pid, path)).await.map(Some)
    }

    fn clone_shm(&self) -> Result<OwnedFd> {
        let shm = self.shared.shm.as_ref().ok_or_else(|| Error::internal("the pod has no /dev/shm"))?;
        rootfs::clone(shm.as_fd())
    }

    async fn finish(
        &self,
        ground: Ground,
        trees: HashMap<usize, Tree>,
        confined: Confined,
    ) -> Result<Container> {
        let node = self.node;
        let Confined { cgroup, warnings, entry } = confined;
        let (spec, filter) = self.runtime_spec(&ground, &cgroup)?;
        let template = Template::new(&spec, ground.env.clone(), filter.clone())?;
        let record = self.record(&ground, &cgroup, warnings)?;
        record::write(&node.layout.container(self.id).join("container.json"), &record)?;
        let security = &ground.spec.security;
        let modes = &security.namespaces;
        let (plan, fds) = compile::compile(Inputs {
            spec: &spec,
            program: process_env::candidates(&ground.argv, &ground.env, &ground.cwd),
            env: ground.env,
            root: ground.root,
            trees,
            join: self.shared.joins(),
            new_namespaces: if modes.ipc == NamespaceMode::Container { libc::CLONE_NEWIPC as u64 } else { 0 },
            pid: self.pid(modes.pid, &modes.target)?,
            cgroup: entry,
            cgroup_namespace: !security.privileged,
            stdio: ground.stdio.child,
            terminal: ground.spec.tty,
            seccomp: filter,
        })?;
        let role = Role::Container(ground.stdio.output);
        // Only a reader of the Spec waits for its file, so the kernel may work at both.
        let path = node.layout.container(self.id).join("config.json");
        let writing = tokio::task::spawn_blocking(move || record::write(&path, &spec));
        let spawned = node.keeper.spawn(Spawn { id: self.id.to_owned(), plan, fds, role }).await;
        writing.await.map_err(|e| Error::internal(format!("writing the runtime spec: {e}")))??;
        let process = spawned?;
        node.cgroups.adopt(&cgroup, process.pid, &record.spec.resources).await?;
        crate::container::recover::write_live(node, &record, process.pid)?;
        let container = Container::new(record, Phase::Created(process));
        let _ = container.exec.set(Arc::new(template));
        Ok(container)
    }

    fn record(&self, ground: &Ground, cgroup: &Cgroup, warnings: Vec<String>) -> Result<Record> {
        let image = &ground.image.image;
        Ok(Record {
            id: self.id.to_owned(),
            pod_id: self.pod.id.clone(),
            spec: Arc::clone(&ground.spec),
            created_at: table::now(),
            image_id: image.id.clone(),
            image_ref: image.repo_digests.first().unwrap_or(&image.id).clone(),
            user: ground.user.clone(),
            stop_signal: stop_signal(&ground.spec, &ground.image)?,
            oom_baseline: self.node.cgroups.oom_kills(cgroup).unwrap_or_default(),
            cgroup: Some(cgroup.clone()),
            log_path: ground.log_path.clone(),
            warnings,
            volume_images: ground.volumes.iter().map(|volume| volume.image.id.clone()).collect(),
        })
    }

    /// The Spec, and the filter that its profile compiles to.
    fn runtime_spec(&self, ground: &Ground, cgroup: &Cgroup) -> Result<(oci::Spec, Option<seccomp::Filter>)> {
        let (node, security) = (self.node, &ground.spec.security);
        let sets = capabilities::resolve(&security.capabilities, security.privileged, node.capabilities)?;
        // Privileged ignores profiles (BEHAVIOUR 22).
        let compiled = match security.privileged {
            true => None,
            false => seccomp::resolve(&security.seccomp, sets.effective)?,
        };
        let (profile, filter) = compiled.map(|c| (c.profile, c.filter)).unzip();
        let spec = super::oci::spec(super::oci::Wish {
            spec: &ground.spec,
            argv: ground.argv.clone(),
            env: &ground.env,
            cwd: &ground.cwd,
            user: &ground.user,
            sets,
            seccomp: profile.map(|profile| profile.as_ref().clone()),
            apparmor: ground.apparmor.clone(),
            mounts: ground.mounts.iter().map(|m| m.oci.clone()).collect(),
            devices: ground.devices.nodes.clone(),
            rules: &ground.devices.rules,
            rootfs: &node.layout.container(self.id).join("upper"),
            cgroup: &cgroup.path,
            driver: cgroup.driver(),
            namespaces: self.namespace_paths(),
            rlimits: rlimits::defaults(node.config.container.nofile)?,
            pod_id: &self.pod.id,
        })?;
        Ok((spec, filter))
    }

    fn namespace_paths(&self) -> NamespacePaths {
        let netns = &self.pod.record().netns;
        NamespacePaths {
            network: (!netns.as_os_str().is_empty()).then(|| netns.clone()),
            ..NamespacePaths::default()
        }
    }

    fn pid(&self, mode: NamespaceMode, target: &str) -> Result<Pid> {
        match mode {
            NamespaceMode::Node => Ok(Pid::Host),
            NamespaceMode::Container => Ok(Pid::New),
            NamespaceMode::Pod => match &self.shared.init {
                Some(init) => Ok(Pid::Join(Arc::clone(&init.pidfd))),
                None => Err(Error::precondition("the pod was made without a shared PID namespace")),
            },
            NamespaceMode::Target => {
                let target = self.node.containers.find(target).step(|| "finding the target container")?;
                if target.record.pod_id != self.pod.id {
                    return Err(Error::invalid(format!("target container {} is of another pod", target.id)));
                }
                match target.phase() {
                    Phase::Running { process, .. } => Ok(Pid::Join(process.pidfd)),
                    _ => Err(Error::precondition(format!("target container {} is not running", target.id))),
                }
            }
        }
    }
}

/// The request's, else the image's, else SIGTERM; by the CRI's name (BEHAVIOUR 11).
fn stop_signal(spec: &ContainerSpec, image: &Resolved) -> Result<String> {
    let of_image = || image.config.config().as_ref().and_then(|c| c.stop_signal().clone());
    let name = spec.stop_signal.clone().or_else(of_image).filter(|n| !n.is_empty());
    let name = name.as_deref().unwrap_or("SIGTERM");
    signal::canonical(name).ok_or_else(|| Error::invalid(format!("stop signal {name:?} is not a signal")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(privileged: bool, network: NamespaceMode) -> pod::Record {
        let mut spec = pod::spec::PodSpec::default();
        spec.security.privileged = privileged;
        spec.security.namespaces.network = network;
        pod::Record { spec: Arc::new(spec), ..pod::fixtures::record() }
    }

    #[test]
    fn a_container_gets_no_more_of_the_node_than_its_pod() {
        let mut privileged = ContainerSpec::default();
        privileged.security.privileged = true;
        assert!(align(privileged.clone(), &pod(false, NamespaceMode::Pod)).is_err());
        assert!(align(privileged, &pod(true, NamespaceMode::Pod)).is_ok());
        let mut host = ContainerSpec::default();
        host.security.namespaces.network = NamespaceMode::Node;
        assert!(align(host, &pod(true, NamespaceMode::Pod)).is_err());
    }

    #[test]
    fn a_container_that_says_nothing_has_its_pods_network() {
        let spec = align(ContainerSpec::default(), &pod(false, NamespaceMode::Node)).unwrap();
        assert_eq!(spec.security.namespaces.network, NamespaceMode::Node);
    }
}
