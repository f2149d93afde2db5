//! A cgroup for each pod and each of its containers, and one below a container's for each exec.
//!
//! [`Cgroups`] knows the host's layout (unified, hybrid, v1) and the driver (cgroupfs, systemd);
//! a [`Cgroup`] is one node of the tree, in every mounted hierarchy at once.
//!
//! ```text
//! cgroupfs                                systemd
//! <cgroup_parent>/                        /kubepods.slice/…/kubepods-podX.slice/
//! ├── <pod id>                            ├── podwright-<pod id>.scope
//! └── <container id>                      └── podwright-<container id>.scope
//!     └── exec-<id>                           └── exec-<id>
//! ```
//!
//! kubelet makes and limits the pod's cgroup and passes it as cgroup_parent; where a request has
//! none it is `<root>/pod-<pod id>`, or the slice `<root>-pod<pod id>.slice`. The sandbox's own
//! cgroup holds the pod's init if it has one, else nothing.
//!
//! A child is in its cgroup from its making, through [`Entry`]. systemd refuses a scope without a
//! process, so there the scope's directory is made first, the child enters it and parks, and only
//! then [`Cgroups::adopt`] tells systemd of the scope, which finds its directory and its process
//! where it would have put them. The configured driver is that of new pods: a pod stays with the one it
//! was made by, and so do its containers, as their recorded paths tell. An exec lives where processes are killed, in the unified hierarchy
//! (pure v1: the freezer), and shares its container's cgroups in the others.

mod apply;
mod details;
mod devices;
mod file;
mod kill;
mod layout;
mod limits;
mod oom;
mod path;
mod show;
mod stats;
mod systemd;
#[cfg(test)]
mod tests;
mod tree;
mod weight;

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use details::{CpuTime, Details, DeviceIo, HugePages, MemoryDetails, Throttling};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
pub use show::View;
pub use stats::{MemoryStats, Psi, PsiLine, Stats};

use crate::container::spec::Resources;
use crate::error::{Error, Step};
use crate::{Result, cgroup::layout::Layout};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    #[default]
    Cgroupfs,
    Systemd,
}

/// The host's cgroup layout and our way of using it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cgroups(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layout: Layout,
    /// The parent of all that requests give no parent, e.g. `/podwright`.
    root: String,
    root_made: OnceLock<()>,
    /// Of new pods.
    driver: Driver,
    /// None where systemd does not run the host.
    systemd: Option<systemd::Manager>,
    /// Of systemd's scopes.
    oom_watches: oom::Watches,
}

/// One cgroup, by its path below the root of each hierarchy, e.g. `/kubepods/pod1/abc`.
/// Serialisable, so that it can be recorded and found again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    pub path: String,
    #[serde(default)]
    pub role: Role,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    #[default]
    Container,
    /// The sandbox's own. With `parent_is_ours` the directory above belongs to this pod alone:
    /// killing and removing the pod covers it. Otherwise it may hold other pods.
    Pod { parent_is_ours: bool },
    /// `container` is the path in the hierarchies that it shares with its container. Where even
    /// `path` is the container's (see [`Cgroups::create_exec`]) it is `shared`.
    Exec { container: String, shared: bool },
}

/// The fds through which a child enters: see `keeper::plan::CgroupEntry`.
#[derive(Debug, Default)]
pub struct Entry {
    pub unified: Option<OwnedFd>,
    pub tasks: Vec<OwnedFd>,
}

/// What a limit could not do here (BEHAVIOUR 38), as a sentence for the container's status.
pub type Warning = String;

impl Cgroups {
    /// Reads the host's mounts. `root` is the parent of all cgroups that requests give no parent.
    pub fn detect(driver: Driver, root: &str) -> Result<Self> {
        let layout = Layout::detect()?;
        // With cgroupfs too: for pods of a time when the driver was the other one.
        let systemd = match driver {
            Driver::Cgroupfs => systemd::Manager::new().ok(),
            Driver::Systemd => Some(systemd::Manager::new()?),
        };
        let root = match driver {
            Driver::Cgroupfs => path::normalise(root)?,
            Driver::Systemd => systemd::root_slice(root)?,
        };
        let (root_made, oom_watches) = (OnceLock::new(), oom::Watches::default());
        Ok(Self(Arc::new(Inner { layout, root, root_made, driver, systemd, oom_watches })))
    }

    /// "unified", "hybrid" or "v1", for humans.
    pub fn layout(&self) -> &'static str {
        self.0.layout.name()
    }

    /// Whether the host has this controller, under its name in v2 or v1.
    pub fn has_controller(&self, name: &str) -> bool {
        self.0.layout.place(name).is_some()
    }

    /// Makes the pod's cgroup under `parent` (kubelet's cgroup_parent, or empty for our root), with
    /// the controllers enabled for its children. Repeating it is fine.
    pub async fn create_pod(&self, parent: &str, pod_id: &str) -> Result<Cgroup> {
        path::check_name(pod_id)?;
        let parent_is_ours = parent.is_empty();
        let driver = self.0.driver;
        let above = match driver {
            Driver::Systemd => self.0.pod_slice(self.0.systemd()?, parent, pod_id).await?,
            Driver::Cgroupfs => self.0.pod_parent(parent, pod_id)?,
        };
        let path = format!("{above}/{}", driver.leaf(pod_id));
        let cgroup = Cgroup { path, role: Role::Pod { parent_is_ours } };
        let inner = self.0.clone();
        // Below a parent of ours the sandbox's own is left to `entry`: most pods have no process.
        let path = if parent_is_ours { above } else { cgroup.path.clone() };
        let result = blocking(move || {
            if parent_is_ours && driver == Driver::Cgroupfs {
                inner.make_root()?;
            }
            tree::make(&inner.layout, &path, false)?;
            tree::enable_controllers(&inner.layout, if parent_is_ours { &path } else { path::parent(&path) })
        });
        match result.await {
            Ok(()) => Ok(cgroup),
            Err(e) => Err(self.undo(&cgroup, e).await),
        }
    }

    /// Makes a container's cgroup, or nothing. In a pod of the systemd driver's this is the directory of the
    /// scope that [`Self::adopt`] makes, around the parked child. A few dozen short system calls, none
    /// of which waits for a disk.
    pub fn create_container(&self, pod: &Cgroup, id: &str) -> Result<Cgroup> {
        path::check_name(id)?;
        let path = format!("{}/{}", path::parent(&pod.path), pod.driver().leaf(id));
        tree::make(&self.0.layout, &path, true)?;
        Ok(Cgroup { path, role: Role::Container })
    }

    /// Writes the limits of a cgroup that was just made. What fails is undone by removing it.
    pub fn limit(&self, cgroup: &Cgroup, resources: &Resources) -> Result<Vec<Warning>> {
        apply::create(&self.0.layout, &cgroup.path, resources)
    }

    /// Tells systemd of the scope around `pid`, a parked child that entered `cgroup`. Limits are
    /// given as properties too, so that systemd does not set them back. Nothing to do for a cgroup
    /// of the cgroupfs driver's, and for an exec.
    pub async fn adopt(&self, cgroup: &Cgroup, pid: i32, resources: &Resources) -> Result<()> {
        if cgroup.driver() == Driver::Cgroupfs || matches!(cgroup.role, Role::Exec { .. }) {
            return Ok(());
        }
        let systemd = self.0.systemd()?;
        let (slice, scope) = (path::base(path::parent(&cgroup.path)), path::base(&cgroup.path));
        let devices = devices::of_systemd(&self.0.layout, &cgroup.path)?;
        systemd.start_scope(scope, slice, pid, resources, devices).await?;
        // What properties cannot say: huge pages, `unified`, and on v1 most of it.
        apply::create(&self.0.layout, &cgroup.path, resources)?;
        self.watch(cgroup)
    }

    /// Follows what would be lost with the cgroup, for [`Self::oom_kills`]: [`Self::adopt`] begins
    /// it, and a daemon that finds a running container after its restart has to. Nothing to do with
    /// the cgroupfs driver, where a cgroup goes when we remove it.
    pub fn watch(&self, cgroup: &Cgroup) -> Result<()> {
        match cgroup.driver() {
            Driver::Systemd => self.0.oom_watches.start(&self.0.layout, &cgroup.path),
            Driver::Cgroupfs => Ok(()),
        }
    }

    /// A cgroup for one exec, below the container's, by the beginning of its ID. If the container turned its own into the root
    /// of a threaded tree, or forbade children, the exec has to share a cgroup with it.
    pub fn create_exec(&self, container: &Cgroup, exec_id: &str) -> Result<Cgroup> {
        path::check_name(exec_id)?;
        let mount = self.0.layout.killer();
        let mount = mount.ok_or_else(|| Error::precondition("no hierarchy to put an exec into"))?;
        let (name, shared) = tree::make_exec(mount, &container.path, exec_id)?;
        Ok(Cgroup { path: name, role: Role::Exec { container: container.path.clone(), shared } })
    }

    /// Those that [`Self::create_exec`] made for a container and nobody has removed: their daemon died.
    pub fn execs(&self, container: &Cgroup) -> Vec<Cgroup> {
        let Some(mount) = self.0.layout.killer() else { return Vec::new() };
        let role = Role::Exec { container: container.path.clone(), shared: false };
        let found = tree::execs(mount, &container.path).into_iter();
        found.map(|path| Cgroup { path, role: role.clone() }).collect()
    }

    /// What the child enters through, opened anew at each call.
    pub fn entry(&self, cgroup: &Cgroup) -> Result<Entry> {
        let layout = &self.0.layout;
        if matches!(cgroup.role, Role::Pod { parent_is_ours: true }) {
            tree::make(layout, &cgroup.path, false)?;
        }
        let open = |name: String, flags| file::open(&name, flags).step(|| format!("opening {name}"));
        let unified = layout.unified.as_ref();
        let unified =
            unified.map(|u| open(format!("{}{}", u.mount, cgroup.path), OFlags::DIRECTORY)).transpose()?;
        let shared = match &cgroup.role {
            Role::Exec { container, .. } => container,
            Role::Container | Role::Pod { .. } => &cgroup.path,
        };
        let tasks = layout.v1.iter().map(|hierarchy| {
            let own = layout.killer() == Some(&hierarchy.mount);
            let path = if own { &cgroup.path } else { shared };
            open(format!("{}{path}/tasks", hierarchy.mount), OFlags::WRONLY)
        });
        Ok(Entry { unified, tasks: tasks.collect::<Result<_>>()? })
    }

    /// Writes the limits that are given (zero: unchanged), or none of them. FAILED_PRECONDITION: a
    /// memory limit below what the container cannot give back.
    pub async fn update(&self, cgroup: &Cgroup, resources: &Resources) -> Result<Vec<Warning>> {
        let (inner, path, wanted) = (self.0.clone(), cgroup.path.clone(), resources.clone());
        let warnings = blocking(move || apply::update(&inner.layout, &path, &wanted)).await?;
        if cgroup.driver() == Driver::Systemd {
            self.0.systemd()?.set_limits(path::base(&cgroup.path), resources).await?;
        }
        Ok(warnings)
    }

    /// The limits in force, for status (BEHAVIOUR 30): -1 where there is none, zero where the host
    /// lacks the controller. Without huge pages and `unified`.
    pub fn limits(&self, cgroup: &Cgroup) -> Resources {
        apply::in_force(&self.0.layout, &cgroup.path)
    }

    /// SIGKILL to everything in it and below: cgroup.kill, or freeze and kill. Missing is fine.
    /// FAILED_PRECONDITION for an exec that shares its container's cgroup.
    pub fn kill(&self, cgroup: &Cgroup) -> Result<()> {
        if let Role::Exec { shared: true, container } = &cgroup.role {
            return Err(Error::precondition(format!(
                "an exec shares the cgroup {container} and cannot be killed with its children"
            )));
        }
        kill::kill(&self.0.layout, cgroup.whole())
    }

    /// Waits until nothing lives in it, or names what still does (pid, comm, state).
    pub async fn wait_empty(&self, cgroup: &Cgroup, limit: Duration) -> Result<()> {
        if matches!(cgroup.role, Role::Exec { shared: true, .. }) {
            return Ok(());
        }
        kill::wait_empty(&self.0.layout, cgroup.whole(), limit).await
    }

    /// OOM kills since it was made (BEHAVIOUR 10). None where it cannot be told.
    pub fn oom_kills(&self, cgroup: &Cgroup) -> Option<u64> {
        let path = cgroup.accounted();
        stats::oom_kills(&self.0.layout, path).or_else(|| self.0.oom_watches.last(path))
    }

    /// A pod's are those of the cgroup above its own, which holds the containers too. NOT_FOUND if
    /// it is gone.
    pub fn stats(&self, cgroup: &Cgroup) -> Result<Stats> {
        stats::read(&self.0.layout, cgroup.accounted())
    }

    /// What [`Self::stats`] leaves out because it is only wanted now and then.
    pub fn details(&self, cgroup: &Cgroup) -> Details {
        let oom_kills = self.oom_kills(cgroup);
        Details { oom_kills, ..details::read(&self.0.layout, cgroup.accounted()) }
    }

    /// The processes in it and below, as the node numbers them.
    pub fn processes(&self, cgroup: &Cgroup) -> Result<Vec<i32>> {
        let mount = self.0.layout.killer();
        let mount = mount.ok_or_else(|| Error::precondition("no hierarchy to find processes by"))?;
        let full = format!("{mount}{}", cgroup.accounted());
        kill::processes(&full).step(|| format!("listing the processes in cgroup {full}"))
    }

    /// Removes it and everything below from every hierarchy; missing is fine, all errors told.
    pub async fn remove(&self, cgroup: &Cgroup) -> Result<()> {
        if let Role::Exec { shared, .. } = cgroup.role {
            return if shared { Ok(()) } else { tree::remove_exec(&self.0.layout, &cgroup.path).await };
        }
        self.0.oom_watches.stop(&cgroup.path);
        let removed = tree::remove(&self.0.layout, cgroup.whole()).await;
        // Where systemd is not there any more its slice is not either.
        let systemd = self.0.systemd.as_ref().filter(|_| cgroup.driver() == Driver::Systemd);
        if let (Some(systemd), Role::Pod { parent_is_ours: true }) = (systemd, &cgroup.role) {
            let stopped = systemd.stop_slice(path::base(cgroup.whole())).await;
            return removed.and(stopped);
        }
        removed
    }

    /// Device access (v1: devices controller; v2: an eBPF program): the default set plus `rules`,
    /// or everything that the parent has for a privileged container. To be called once, before
    /// anything enters.
    pub fn allow_devices(&self, cgroup: &Cgroup, rules: &DeviceRules) -> Result<()> {
        devices::allow(&self.0.layout, &cgroup.path, rules)
    }

    /// The cgroup that the keeper runs in, made if missing: files to write a pid to.
    pub fn keeper_procs(&self) -> Result<Vec<std::path::PathBuf>> {
        self.0.make_root()?;
        let path = format!("{}/{}", self.0.root, self.0.keeper());
        tree::make(&self.0.layout, &path, false)?;
        Ok(self.0.layout.mounts().map(|mount| format!("{mount}{path}/cgroup.procs").into()).collect())
    }

    /// Tells systemd of a keeper that went there, so that it has a unit of its own. Nothing to do with
    /// the cgroupfs driver.
    pub async fn adopt_keeper(&self, pid: i32) -> Result<()> {
        if self.0.driver == Driver::Cgroupfs {
            return Ok(());
        }
        let slice = path::base(&self.0.root);
        self.0.systemd()?.renew_scope(&self.0.keeper(), slice, pid).await
    }

    /// Removes what a half-made cgroup left, and returns why it is half-made.
    async fn undo(&self, cgroup: &Cgroup, error: Error) -> Error {
        match self.remove(cgroup).await {
            Ok(()) => error,
            Err(left) => Error { message: format!("{error}; and then {left}"), ..error },
        }
    }
}

impl Driver {
    /// The directory of a pod or container below the pod's parent.
    fn leaf(self, id: &str) -> String {
        match self {
            Driver::Systemd => systemd::scope_name(id),
            Driver::Cgroupfs => id.to_owned(),
        }
    }
}

impl Inner {
    fn systemd(&self) -> Result<&systemd::Manager> {
        self.systemd.as_ref().ok_or_else(|| {
            Error::precondition("the cgroup is a scope of systemd's, and systemd does not run this host")
        })
    }

    /// The keeper's directory below the root; a scope's name is one for the whole host.
    fn keeper(&self) -> String {
        match path::base(&self.root).strip_suffix(".slice") {
            Some(stem) if self.driver == Driver::Systemd => format!("{stem}-keeper.scope"),
            _ => "keeper".to_owned(),
        }
    }

    fn make_root(&self) -> Result<()> {
        if self.root_made.get().is_none() {
            tree::make(&self.layout, &self.root, false)?;
            let _ = self.root_made.set(());
        }
        Ok(())
    }

    fn pod_parent(&self, parent: &str, pod_id: &str) -> Result<String> {
        if parent.is_empty() {
            return Ok(format!("{}/pod-{pod_id}", self.root));
        }
        let clean = path::normalise(parent)?;
        if path::base(&clean).ends_with(".slice") {
            return Err(Error::invalid(format!(
                "cgroup_parent {parent:?} is a systemd slice, but the cgroup driver here is cgroupfs: \
                 set the same driver in kubelet and podwright"
            )));
        }
        Ok(clean)
    }

    async fn pod_slice(&self, systemd: &systemd::Manager, parent: &str, pod_id: &str) -> Result<String> {
        let slice = if parent.is_empty() {
            systemd::pod_slice_name(path::base(&self.root), pod_id)
        } else {
            let clean = path::normalise(parent)?;
            if !clean.ends_with(".slice") {
                return Err(Error::invalid(format!(
                    "cgroup_parent {parent:?} is not a systemd slice, but the cgroup driver here is systemd: \
                     set the same driver in kubelet and podwright"
                )));
            }
            path::base(&clean).to_owned()
        };
        let directory = path::expand_slice(&slice)?;
        // kubelet has made its slices; others come to be here.
        if !self.layout.mounts().any(|mount| std::path::Path::new(&format!("{mount}{directory}")).exists()) {
            systemd.start_slice(&slice).await?;
        }
        Ok(directory)
    }
}

impl Cgroup {
    /// By which it was made.
    pub fn driver(&self) -> Driver {
        let own = match &self.role {
            Role::Exec { container, .. } => container,
            Role::Container | Role::Pod { .. } => &self.path,
        };
        // An ID has no dot.
        if path::base(own).ends_with(".scope") { Driver::Systemd } else { Driver::Cgroupfs }
    }

    /// What is killed and removed with it.
    fn whole(&self) -> &str {
        match self.role {
            Role::Pod { parent_is_ours: true } => path::parent(&self.path),
            _ => &self.path,
        }
    }

    /// What counts its use.
    fn accounted(&self) -> &str {
        match &self.role {
            Role::Pod { .. } => path::parent(&self.path),
            Role::Exec { container, .. } => container,
            Role::Container => &self.path,
        }
    }
}

/// Making a directory in each hierarchy takes a fraction of a millisecond, but waits for the
/// kernel's one lock on all cgroups.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::internal(format!("working on a cgroup: {e}"))),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceRules {
    All,
    /// The runtime's default set and these.
    Listed(Vec<DeviceRule>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRule {
    pub block: bool,
    pub major: u32,
    pub minor: u32,
    /// Of "rwm".
    pub access: String,
}
