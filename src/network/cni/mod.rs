//! The Container Network Interface, run as everywhere: plugins are executables, configured by the
//! files of /etc/cni/net.d (specification 0.3.0 to 1.1.0).
//!
//! ```text
//!            record ──▶ ADD 1 ─▶ ADD 2 ─▶ … ──▶ result cached ──▶ attached
//!              │           └───────┴─ failed ─┐                      │ detach
//!              │ crash, reboot, call given up │                      ▼
//!              └──────────────────────────────┴──────▶ DEL … ─▶ DEL 2 ─▶ DEL 1 ──▶ forgotten
//! ```
//!
//! Every way out of the record leads through DEL of all plugins, with the configuration and the
//! version of the ADD. DEL goes on past a plugin that fails, and the record stays until all
//! succeeded, so that a repeated StopPodSandbox tries again. The loopback plugin is not run: the
//! pod's loopback is up already.

mod cache;
mod config;
mod plugin;
mod request;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::{Attachment, Config, PodNetwork, namespace};
use crate::Error;
use crate::error::{Result, Step};

use cache::{Cache, Record};
use config::{ConfigDir, Loaded, NetworkList};
use plugin::{Plugins, Verb};
use request::IN_POD;

pub struct Cni {
    configs: ConfigDir,
    plugins: Plugins,
    cache: Cache,
    /// The pods that have a record, or are about to: all others need no look at the disk.
    recorded: Mutex<HashSet<String>>,
    /// Read by every ADD and DEL, written by GC.
    running: tokio::sync::RwLock<()>,
    /// What was agreed on with the plugins of a configuration.
    agreed: Mutex<Option<(PathBuf, NetworkList, String)>>,
}

impl Cni {
    pub fn open(config: &Config, dir: &Path) -> Result<Self> {
        let cache = Cache::open(&dir.join("cni"), config.cni_cache_dir.as_deref())?;
        Ok(Self {
            recorded: Mutex::new(cache.pods()?.into_iter().collect()),
            configs: ConfigDir::new(config.cni_conf_dir.clone()),
            plugins: Plugins { dirs: config.cni_bin_dirs.clone(), deadline: plugin::DEADLINE },
            cache,
            running: tokio::sync::RwLock::new(()),
            agreed: Mutex::new(None),
        })
    }

    #[cfg(test)]
    pub fn set_deadline(&mut self, deadline: std::time::Duration) {
        self.plugins.deadline = deadline;
    }

    /// Whether somebody put a configuration there, valid or not.
    pub fn is_configured(&self) -> bool {
        self.configs.has_any()
    }

    /// Err: no valid configuration, or a plugin of it that is missing.
    pub fn ready(&self) -> Result<(), String> {
        let loaded = self.configs.current()?;
        for plugin in &loaded.list.plugins {
            if let Err(error) = self.plugins.find(&plugin.kind) {
                return Err(format!("{}: {error}", loaded.path.display()));
            }
        }
        Ok(())
    }

    /// Records, then runs ADD of every plugin. On failure DEL has been run when it returns; a
    /// future that is dropped kills the plugin that runs, and leaves DEL to [`detach`].
    ///
    /// [`detach`]: Self::detach
    pub async fn attach(&self, pod: &PodNetwork, pod_cidr: &str) -> Result<Attachment> {
        let _running = self.running.read().await;
        let loaded = self.configs.current().map_err(Error::unavailable)?;
        let record = Record {
            pod: pod.clone(),
            version: self.agree(&loaded).await?,
            config: String::from_utf8_lossy(&loaded.list.bytes).into_owned(),
            arguments: request::arguments(pod)?,
            capabilities: request::capabilities(pod, pod_cidr)?,
        };
        self.recorded().insert(pod.pod_id.clone());
        self.on_disk({
            let record = record.clone();
            move |cache| cache.write(&record)
        })
        .await?;
        let added = match self.add(&record, &loaded.list).await {
            Ok(result) => self.keep(&record, &loaded.list.name, result).await,
            Err(error) => Err(error),
        };
        let error = match added {
            Ok(attachment) => return Ok(attachment),
            Err(error) => error.during(format!("adding the pod to network {}", loaded.list.name)),
        };
        match self.delete(&record, &pod.netns).await {
            Ok(()) => Err(error),
            Err(also) => Err(Error::new(error.kind, format!("{error}; and then: {also}"))),
        }
    }

    async fn add(&self, record: &Record, list: &NetworkList) -> Result<Value> {
        let environment = environment(record, &record.pod.netns);
        let mut result = None;
        for plugin in &list.plugins {
            let stdin =
                request::stdin(plugin, &list.name, &record.version, &record.capabilities, result.as_ref());
            let output = self.plugins.run(&plugin.kind, Verb::Add, &environment, &stdin).await?;
            result = Some(output.filter(Value::is_object).ok_or_else(|| {
                Error::internal(format!("CNI plugin {} answered ADD with no result", plugin.kind))
            })?);
        }
        result.ok_or_else(|| Error::internal("the CNI configuration has no plugin"))
    }

    async fn keep(&self, record: &Record, network: &str, result: Value) -> Result<Attachment> {
        let ips = addresses(&result);
        if ips.is_empty() {
            return Err(Error::internal(format!("the plugins gave {IN_POD} no address")));
        }
        let (record, network) = (record.clone(), network.to_owned());
        self.on_disk(move |cache| cache.write_result(&record, &network, &result)).await?;
        Ok(Attachment { ips })
    }

    /// Runs DEL of every plugin, if anything was ever asked for this pod.
    pub async fn detach(&self, pod: &PodNetwork) -> Result<()> {
        let Some(record) = self.record(&pod.pod_id).await? else { return Ok(()) };
        let _running = self.running.read().await;
        self.delete(&record, &pod.netns).await
    }

    /// The caller holds `running`.
    async fn delete(&self, record: &Record, netns: &Path) -> Result<()> {
        let list = config::parse(record.config.as_bytes())
            .map_err(|e| Error::internal(format!("the recorded CNI configuration: {e}")))?;
        // A namespace that is gone (after a reboot: BEHAVIOUR 13) is named by an empty path.
        let netns = if namespace::is_pinned(netns) { netns } else { Path::new("") };
        let environment = environment(record, netns);
        let result = self.on_disk({
            let (id, network) = (record.pod.pod_id.clone(), list.name.clone());
            move |cache| Ok(cache.read_result(&id, &network))
        });
        let result = result.await?;
        let mut failures = Vec::new();
        for plugin in list.plugins.iter().rev() {
            let stdin =
                request::stdin(plugin, &list.name, &record.version, &record.capabilities, result.as_ref());
            if let Err(error) = self.plugins.run(&plugin.kind, Verb::Del, &environment, &stdin).await {
                failures.push(error);
            }
        }
        if let Some(first) = failures.first() {
            let all: Vec<_> = failures.iter().map(ToString::to_string).collect();
            let step = format!("removing the pod from network {}", list.name);
            return Err(Error::new(first.kind, all.join("; ")).during(step));
        }
        let id = record.pod.pod_id.clone();
        self.on_disk(move |cache| cache.remove(&id, &list.name)).await?;
        self.recorded().remove(&record.pod.pod_id);
        Ok(())
    }

    async fn record(&self, pod_id: &str) -> Result<Option<Record>> {
        if !self.recorded().contains(pod_id) {
            return Ok(None);
        }
        let id = pod_id.to_owned();
        let record = self.on_disk(move |cache| cache.read(&id)).await?;
        if record.is_none() {
            // The call was given up before it was written.
            self.recorded().remove(pod_id);
        }
        Ok(record)
    }

    fn recorded(&self) -> MutexGuard<'_, HashSet<String>> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The IDs of all pods that anything was ever asked for and not taken down.
    pub fn pods(&self) -> Vec<String> {
        self.recorded().iter().cloned().collect()
    }

    /// Takes down what a pod has by its record alone, and unpins its namespace.
    pub async fn release(&self, pod_id: &str) -> Result<()> {
        let Some(record) = self.record(pod_id).await? else { return Ok(()) };
        let netns = record.pod.netns.clone();
        let _running = self.running.read().await;
        self.delete(&record, &netns).await?;
        if netns.as_os_str().is_empty() { Ok(()) } else { namespace::unpin(&netns) }
    }

    /// Lets plugins that can (from 1.1.0 on) drop whatever belongs to no attachment of ours. It
    /// must not run beside ADD or DEL: not done while one runs, and those that come wait for it.
    pub async fn collect_garbage(&self) {
        let Ok(_alone) = self.running.try_write() else { return };
        if let Err(error) = self.drop_stale().await {
            tracing::warn!(%error, "stale attachments may be left in CNI plugins");
        }
    }

    async fn drop_stale(&self) -> Result<()> {
        let Ok(loaded) = self.configs.current() else { return Ok(()) };
        let list = &loaded.list;
        if list.disable_gc || list.versions.iter().all(|v| v != config::WITH_GC) {
            return Ok(());
        }
        if self.agree(&loaded).await? != config::WITH_GC {
            return Ok(());
        }
        let valid: Vec<_> =
            self.pods().iter().map(|id| json!({"containerID": id, "ifname": IN_POD})).collect();
        let plugins = Plugins { deadline: plugin::GC_DEADLINE, ..self.plugins.clone() };
        for plugin in &list.plugins {
            let mut stdin = request::stdin(plugin, &list.name, config::WITH_GC, &BTreeMap::new(), None);
            if let Some(keys) = stdin.as_object_mut() {
                keys.insert("cni.dev/valid-attachments".to_owned(), json!(valid));
            }
            plugins.run(&plugin.kind, Verb::Gc, &[], &stdin).await?;
        }
        Ok(())
    }

    /// The best version that the configuration allows and every plugin of it speaks. Asked once
    /// for each state of the configuration.
    async fn agree(&self, loaded: &Arc<Loaded>) -> Result<String> {
        let known = self.agreed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((path, list, version)) = known
            && path == loaded.path
            && list == loaded.list
        {
            return Ok(version);
        }
        let mut versions = loaded.list.versions.clone();
        for plugin in &loaded.list.plugins {
            // As libcni asks: a version is not known yet, so the oldest form is used.
            let stdin = json!({"cniVersion": versions.first()});
            let answer = self.plugins.run(&plugin.kind, Verb::Version, &[], &stdin).await?;
            let spoken: Vec<String> = answer
                .as_ref()
                .and_then(|a| a.get("supportedVersions"))
                .and_then(Value::as_array)
                .map(|a| a.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect())
                .unwrap_or_default();
            let asked = versions.join(", ");
            versions.retain(|v| spoken.contains(v));
            if versions.is_empty() {
                return Err(Error::unavailable(format!(
                    "{} wants CNI version {asked}, and plugin {} speaks {}",
                    loaded.path.display(),
                    plugin.kind,
                    spoken.join(", ")
                )));
            }
        }
        let version = versions.swap_remove(0);
        let agreed = (loaded.path.clone(), loaded.list.clone(), version.clone());
        *self.agreed.lock().unwrap_or_else(PoisonError::into_inner) = Some(agreed);
        Ok(version)
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Cache) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let cache = self.cache.clone();
        tokio::task::spawn_blocking(move || work(&cache))
            .await
            .unwrap_or_else(|e| Err(Error::internal(format!("a network task failed: {e}"))))
            .step(|| "keeping track of a CNI attachment")
    }
}

fn environment(record: &Record, netns: &Path) -> Vec<(&'static str, String)> {
    let arguments: Vec<_> = record.arguments.iter().map(|(k, v)| format!("{k}={v}")).collect();
    vec![
        ("CNI_CONTAINERID", record.pod.pod_id.clone()),
        ("CNI_NETNS", netns.display().to_string()),
        ("CNI_IFNAME", IN_POD.to_owned()),
        ("CNI_ARGS", arguments.join(";")),
    ]
}

/// The pod's addresses in a result, in its order: those of interfaces in the pod (which have a
/// `sandbox`), and of no interface in particular.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let list = |key: &str| result.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let interfaces = list("interfaces");
    let is_pods = |ip: &Value| {
        let index = ip.get("interface").and_then(Value::as_u64);
        let interface = index.and_then(|i| interfaces.get(usize::try_from(i).ok()?));
        interface.is_none_or(|i| i.get("sandbox").and_then(Value::as_str).is_some_and(|s| !s.is_empty()))
    };
    let address = |ip: &Value| ip.get("address")?.as_str()?.split('/').next()?.parse().ok();
    list("ips").iter().filter(|ip| is_pods(ip)).filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_addresses_are_those_of_its_interfaces() {
        let result = json!({
            "interfaces": [{"name": "br0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/a"}],
            "ips": [
                {"interface": 0, "address": "10.0.0.1/24"},
                {"interface": 2, "address": "10.0.0.5/24"},
                {"address": "fd00::5/64"},
                {"interface": 2, "address": "nonsense"},
            ],
        });
        assert_eq!(addresses(&result), ["10.0.0.5".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
        assert!(addresses(&json!({})).is_empty());
    }
}
