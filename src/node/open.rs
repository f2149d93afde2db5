//! The start of the daemon: services, keeper, and the pods of before.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::cgroup::Cgroups;
use crate::config::Config;
use crate::error::Step;
use crate::flight::Flights;
use crate::image::Images;
use crate::keeper::client::{self as keeper, Keeper, Snapshot};
use crate::network::{self, Network};
use crate::node::Node;
use crate::node::layout::Layout;
use crate::node::table::Table;
use crate::pod::events::Events;
use crate::{Result, container, pod};

/// What plugins of pods long gone may delay the start by: a CNI agent may itself be a pod of ours.
const RECONCILE_LIMIT: Duration = Duration::from_secs(10);

impl Node {
    /// Opens everything, connects to the keeper, and takes back the pods of before.
    pub async fn open(config: Config, fd_store: keeper::FdStore) -> Result<Arc<Node>> {
        let layout = Layout::new(&config.root, &config.state, &config.netns_dir);
        for path in layout.directories() {
            make_private(&path)?;
        }
        let cgroups = Cgroups::detect(config.cgroup.driver, &config.cgroup.root)?;
        let images = Images::open(config.image.service(layout.images())).await?;
        let network = Network::open(network_config(&config))?;
        let (keeper, snapshot) = Keeper::connect(keeper::Config {
            state: config.state.clone(),
            executable: keeper_executable(&config)?,
            cgroup_procs: cgroups.keeper_procs()?,
            fd_store: Arc::new(fd_store),
            met: keeper::Met(Arc::new({
                let cgroups = cgroups.clone();
                move |pid| {
                    let cgroups = cgroups.clone();
                    tokio::spawn(async move {
                        if let Err(error) = cgroups.adopt_keeper(pid).await {
                            tracing::warn!(%error, "systemd makes no unit for the keeper");
                        }
                    });
                }
            })),
        })
        .await?;
        let node = Arc::new(Node {
            layout,
            images,
            network,
            cgroups,
            keeper,
            events: Events::default(),
            pods: Table::new("pod sandbox"),
            containers: Table::new("container"),
            running: Flights::default(),
            creating: Flights::default(),
            changing: Flights::default(),
            capabilities: bounding_set(),
            config,
        });
        take_back(&node, snapshot).await?;
        empty_trash(&node);
        Ok(node)
    }
}

/// A directory that only root may enter: writable layers hold setuid programs of containers, and
/// records their environments.
fn make_private(path: &Path) -> Result<()> {
    let step = || format!("making directory {}", path.display());
    std::fs::create_dir_all(path).step(step)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).step(step)
}

/// Containers before pods: a pod whose fds are lost takes them back from a container that lives.
async fn take_back(node: &Arc<Node>, snapshot: Snapshot) -> Result<()> {
    let mut processes: HashMap<_, _> = HashMap::new();
    let mut inits = HashMap::new();
    for (process, state) in snapshot.processes {
        if process.id.starts_with("init/") {
            inits.insert(process.id.clone(), process);
        } else {
            processes.insert(process.id.clone(), (process, state));
        }
    }
    container::recover::recover(node, &mut processes).await?;
    let known = node.containers.all().iter().map(|container| container.id.clone()).collect();
    node.images.retain_holders(&known);
    for (process, _) in processes.into_values() {
        container::recover::end(node, &process).await;
    }
    remove_execs(node);
    let holds = snapshot.holds.into_iter().map(|hold| (hold.key.clone(), hold)).collect();
    let live = pod::recover::recover(node, pod::recover::Found { holds, inits }).await?;
    // Addresses of pods that ended with a reboot; what fails now is tried again by their removal.
    match tokio::time::timeout(RECONCILE_LIMIT, node.network.reconcile(&live)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "some addresses of earlier pods are not released"),
        Err(_) => {
            tracing::warn!("releasing the addresses of earlier pods takes too long; their removal will")
        }
    }
    Ok(())
}

/// The cgroups of execs that ended while there was no daemon, or just now. Where background children
/// live on, theirs goes with the container's.
fn remove_execs(node: &Arc<Node>) {
    let containers = node.containers.all();
    let cgroups = containers.iter().filter_map(|container| container.record.cgroup.as_ref());
    let execs: Vec<_> = cgroups.flat_map(|cgroup| node.cgroups.execs(cgroup)).collect();
    let node = Arc::clone(node);
    tokio::spawn(async move {
        for exec in execs {
            if let Err(error) = node.cgroups.remove(&exec).await {
                tracing::debug!(%error, "an exec's cgroup stays");
            }
        }
    });
}

fn network_config(config: &Config) -> network::Config {
    network::Config {
        mode: config.network.mode,
        cni_conf_dir: config.network.cni_conf_dir.clone(),
        cni_bin_dirs: config.network.cni_bin_dirs.clone(),
        bridge: config.network.bridge.clone(),
        subnet: config.network.subnet.clone(),
        mtu: config.network.mtu,
        root: config.root.clone(),
        cni_cache_dir: None,
    }
}

/// As configured, or the one beside this program.
fn keeper_executable(config: &Config) -> Result<PathBuf> {
    if !config.keeper.as_os_str().is_empty() {
        return Ok(config.keeper.clone());
    }
    let ours = std::env::current_exe().step(|| "finding our own executable")?;
    Ok(ours.with_file_name("podwright-keeper"))
}

/// Bit n: capability n is in this process's bounding set.
fn bounding_set() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or_default()
}

/// What an earlier daemon had no time to free.
fn empty_trash(node: &Arc<Node>) {
    let trash = node.layout.trash();
    tokio::task::spawn_blocking(move || {
        for entry in std::fs::read_dir(&trash).into_iter().flatten().flatten() {
            if let Err(error) = container::remove::remove_tree(&entry.path()) {
                tracing::warn!(%error, "the trash is not freed");
            }
        }
    });
}
