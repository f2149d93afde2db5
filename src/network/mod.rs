//! Addresses for pods: the embedded bridge network, or CNI plugins.
//!
//! ```text
//!   namespace::create ──▶ attach ──▶ (containers run) ──▶ detach ──▶ namespace::unpin
//!                            │                               ▲
//!                  journal, then interfaces    by what the journal says, not by today's mode
//! ```
//!
//! What is journalled before it is done: a line of the address file in `builtin`, the request
//! itself in `cni`. `detach` and `reconcile` go by that, so a pod attached under one
//! mode is taken down rightly under the other, after a crash, and after a reboot.

mod builtin;
mod cni;
pub mod namespace;
mod netlink;
mod stats;
pub mod sysctl;
#[cfg(test)]
mod tests;
mod turn;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::error::{Result, Step};
use crate::pod::spec::{PodName, PortMapping};

use builtin::Builtin;
use cni::Cni;
use turn::Turns;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Builtin,
    Cni,
}

#[derive(Debug, Clone)]
pub struct Config {
    /// None: builtin where there is no CNI configuration.
    pub mode: Option<Mode>,
    pub cni_conf_dir: PathBuf,
    pub cni_bin_dirs: Vec<PathBuf>,
    /// The builtin bridge's name (at most 15 bytes) and IPv4 subnet in CIDR form.
    pub bridge: String,
    pub subnet: String,
    pub mtu: Option<u32>,
    /// What outlives a reboot: addresses, cached CNI results.
    pub root: PathBuf,
    /// Where results are cached as libcni does. None: under `root`, so that daemons side by side
    /// do not meet; other tools of the host look in /var/lib/cni.
    pub cni_cache_dir: Option<PathBuf>,
}

/// A pod, as far as its network is concerned. Serialisable: intent is journalled before ADD.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodNetwork {
    pub pod_id: String,
    pub name: PodName,
    /// The pinned namespace; empty after a reboot (DEL runs all the same; BEHAVIOUR 13).
    pub netns: PathBuf,
    pub port_mappings: Vec<PortMapping>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The first is the primary one.
    pub ips: Vec<IpAddr>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceStats {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// The node's pod network. Cheap to clone.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    dir: PathBuf,
    builtin: Builtin,
    cni: Cni,
    /// As kubelet told it; empty: it did not.
    pod_cidr: Mutex<String>,
    turns: Turns,
    sweeping: AtomicBool,
}

/// How often freed addresses are looked after while some wait for the kernel: it takes a
/// namespace down in about 30 ms.
const SWEEP: Duration = Duration::from_millis(100);

impl Network {
    /// Reads what is on disk, and sets up the bridge where it will be used. Blocks. A network that
    /// cannot be set up now is no error: [`ready`](Self::ready) has the reason and tries again.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a bridge name or subnet that cannot work; files that cannot be read.
    pub fn open(config: Config) -> Result<Self> {
        let dir = config.root.join("network");
        std::fs::create_dir_all(&dir).step(|| format!("making {}", dir.display()))?;
        let builtin = Builtin::open(&config, &dir)?;
        let inner = Inner {
            cni: Cni::open(&config, &dir)?,
            pod_cidr: Mutex::default(),
            turns: Turns::default(),
            sweeping: AtomicBool::new(false),
            dir,
            builtin,
            config,
        };
        let network = Self { inner: Arc::new(inner) };
        let cidr = std::fs::read_to_string(network.cidr_path()).unwrap_or_default();
        if !cidr.is_empty()
            && let Err(error) = network.use_pod_cidr(&cidr)
        {
            tracing::warn!(%error, "the pod CIDR of before is not used");
        }
        if network.mode() == Mode::Builtin
            && let Err(error) = network.inner.builtin.prepare()
        {
            tracing::warn!(%error, "the network is not ready");
        }
        Ok(network)
    }

    /// What the next pod is attached by. Where it was not chosen, a CNI configuration that turns
    /// up later is used from then on.
    pub fn mode(&self) -> Mode {
        let configured = || if self.inner.cni.is_configured() { Mode::Cni } else { Mode::Builtin };
        self.inner.config.mode.unwrap_or_else(configured)
    }

    /// Err: the reason why no pod can get an address now (Status: NetworkReady).
    pub fn ready(&self) -> Result<(), String> {
        match self.mode() {
            Mode::Builtin => self.inner.builtin.ready(),
            Mode::Cni => self.inner.cni.ready(),
        }
    }

    /// Journals, then gives the pod its interfaces. On failure everything is undone before it
    /// returns. Safe to cancel: what was begun is finished or undone by `detach`.
    pub async fn attach(&self, pod: &PodNetwork) -> Result<Attachment> {
        let turn = self.inner.turns.wait(&pod.pod_id).await;
        match self.mode() {
            Mode::Builtin => {
                let pod = pod.clone();
                // The turn goes along: if this call is given up, `detach` waits for the thread.
                self.blocking(move |inner| {
                    let _turn = turn;
                    inner.builtin.attach(&pod)
                })
                .await
            }
            Mode::Cni => {
                let cidr = self.pod_cidr();
                let attached = self.inner.cni.attach(pod, &cidr).await;
                drop(turn);
                attached
            }
        }
    }

    /// Takes everything back; repeating it is fine, and so is a namespace that is gone. The caller
    /// then unpins and drops the namespace; an address is not used again before its link is gone.
    pub async fn detach(&self, pod: &PodNetwork) -> Result<()> {
        let turn = self.inner.turns.wait(&pod.pod_id).await;
        self.inner.cni.detach(pod).await?;
        let id = pod.pod_id.clone();
        self.blocking(move |inner| {
            let _turn = turn;
            inner.builtin.detach(&id)
        })
        .await?;
        self.sweep_later();
        Ok(())
    }

    /// Releases what pods hold that are not among `live` (IDs), e.g. after a reboot.
    pub async fn reconcile(&self, live: &[String]) -> Result<()> {
        let live: HashSet<String> = live.iter().cloned().collect();
        let inner = &self.inner;
        let failed = Mutex::new(None);
        let stale = inner.cni.pods().into_iter().filter(|id| !live.contains(id));
        // Several at once, since each may have a plugin that hangs.
        let released = futures_util::stream::iter(stale).for_each_concurrent(8, |id| {
            let failed = &failed;
            async move {
                let _turn = inner.turns.wait(&id).await;
                match inner.cni.release(&id).await {
                    Ok(()) => tracing::info!(pod = id, "released the network of a pod that is no more"),
                    Err(error) => *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
                }
            }
        });
        released.await;
        inner.cni.collect_garbage().await;
        let builtin = self.blocking(move |inner| inner.builtin.reconcile(&|id| live.contains(id))).await;
        self.sweep_later();
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(builtin, Err)
    }

    /// Takes the builtin bridge and its rules away, pods or no pods: for tests, and for a node that
    /// is given back. The next attach makes them again. Blocks for 30 ms.
    pub fn remove(&self) -> Result<()> {
        self.inner.builtin.remove()
    }

    /// UpdateRuntimeConfig's pod CIDR, empty meaning none. Pods that have an address keep it; it
    /// is remembered over restarts, since kubelet tells it once. Blocks.
    pub fn set_pod_cidr(&self, cidr: &str) -> Result<()> {
        if cidr.trim().is_empty() || cidr.trim() == self.pod_cidr() {
            return Ok(());
        }
        self.use_pod_cidr(cidr)?;
        let path = self.cidr_path();
        std::fs::write(&path, cidr).step(|| format!("writing {}", path.display()))
    }

    /// Counters of every interface in each network namespace, in their order, the pod's default one
    /// first, loopback left out: one that is gone fails alone. Blocks for a hundred microseconds and
    /// some fifty for each.
    pub fn stats_of(pins: &[impl AsRef<Path> + Sync]) -> Vec<Result<Vec<InterfaceStats>>> {
        if pins.is_empty() {
            return Vec::new();
        }
        stats::read(pins).unwrap_or_else(|e| pins.iter().map(|_| Err(e.clone())).collect())
    }

    fn use_pod_cidr(&self, cidr: &str) -> Result<()> {
        let subnets: Vec<_> = cidr.split(',').map(str::trim).collect();
        if let Some(wrong) = subnets.iter().find(|s| !is_subnet(s)) {
            return Err(Error::invalid(format!("pod CIDR {wrong:?} is not a subnet")));
        }
        if self.mode() == Mode::Builtin {
            let subnet = subnets.iter().find(|s| !s.contains(':')).ok_or_else(|| {
                Error::invalid(format!(
                    "pod CIDR {cidr:?} has no IPv4 subnet, and the builtin network no IPv6"
                ))
            })?;
            self.inner.builtin.set_subnet(subnet)?;
        }
        *self.inner.pod_cidr.lock().unwrap_or_else(PoisonError::into_inner) = cidr.trim().to_owned();
        Ok(())
    }

    fn pod_cidr(&self) -> String {
        self.inner.pod_cidr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn cidr_path(&self) -> PathBuf {
        self.inner.dir.join("pod_cidr")
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .unwrap_or_else(|e| Err(Error::internal(format!("a network task failed: {e}"))))
    }

    /// Looks after the addresses that wait for their links to go, until none does; only one task
    /// does so at a time. A link that stays (somebody holds its namespace) is given up after a
    /// minute: the next attach or detach looks again.
    fn sweep_later(&self) {
        if self.inner.sweeping.swap(true, Ordering::AcqRel) {
            return;
        }
        let network = self.clone();
        tokio::spawn(async move {
            for _ in 0..600 {
                tokio::time::sleep(SWEEP).await;
                match network.blocking(|inner| inner.builtin.sweep()).await {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, "freed addresses stay reserved");
                        break;
                    }
                }
            }
            network.inner.sweeping.store(false, Ordering::Release);
        });
    }
}

/// Whether the builtin network can use a subnet.
///
/// # Errors
/// INVALID_ARGUMENT with the reason.
pub fn check_subnet(subnet: &str) -> Result<()> {
    subnet.parse::<builtin::subnet::Subnet>().map(drop)
}

/// An address and a prefix length that it has.
fn is_subnet(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else { return false };
    let bits = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    prefix.parse::<u8>().is_ok_and(|p| p <= bits)
}
