//! What is on disk of attachments by CNI:
//!
//! ```text
//! ROOT/network/cni/
//!     pods/POD-ID                  what was asked, written and synced before the first ADD
//!     results/NETWORK-POD-eth0     what it gave, where and as libcni caches it
//! ```
//!
//! The first alone is enough to take an attachment down: it is there for a failed ADD as well, and
//! has all that a plugin needs to be told. Plugins keep state of their own that a power cut does
//! not undo, so it is synced. The second is the result that DEL is to be given, and is for others
//! to read too; it can be kept in /var/lib/cni instead.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

use super::request::IN_POD;
use crate::Error;
use crate::error::{Result, Step};
use crate::network::PodNetwork;

/// What was asked for a pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub pod: PodNetwork,
    /// The version that was agreed on.
    pub version: String,
    /// The configuration of then: the one in use may have changed since.
    pub config: String,
    pub arguments: Vec<(String, String)>,
    pub capabilities: BTreeMap<String, Value>,
}

#[derive(Debug, Clone)]
pub struct Cache {
    pods: PathBuf,
    results: PathBuf,
}

impl Cache {
    /// `results`: libcni's cache directory, which has the results below it.
    pub fn open(dir: &Path, results: Option<&Path>) -> Result<Self> {
        let cache = Self { pods: dir.join("pods"), results: results.unwrap_or(dir).join("results") };
        for dir in [&cache.pods, &cache.results] {
            fs::create_dir_all(dir).step(|| format!("making {}", dir.display()))?;
        }
        Ok(cache)
    }

    /// Durable once it returns.
    pub fn write(&self, record: &Record) -> Result<()> {
        let bytes = serde_json::to_vec(record).map_err(|e| Error::internal(e.to_string()))?;
        put(&self.pods, &record.pod.pod_id, &bytes, Durable::Yes)
    }

    /// None: nothing was ever asked for this pod.
    ///
    /// # Errors
    /// A record that cannot be read; it names the file, which can be removed by hand.
    pub fn read(&self, pod_id: &str) -> Result<Option<Record>> {
        let path = self.pods.join(file_name(pod_id)?);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
        };
        let record = serde_json::from_slice(&bytes)
            .map_err(|e| Error::internal(format!("reading {}: {e}", path.display())))?;
        Ok(Some(record))
    }

    /// The IDs of all pods that have a record.
    pub fn pods(&self) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.pods).step(|| format!("reading {}", self.pods.display()))? {
            let name = entry.step(|| format!("reading {}", self.pods.display()))?.file_name();
            ids.extend(name.into_string().ok().filter(|name| !name.starts_with('.')));
        }
        Ok(ids)
    }

    /// Forgets a pod, its result first.
    pub fn remove(&self, pod_id: &str, network: &str) -> Result<()> {
        remove(&self.results.join(result_name(pod_id, network)?))?;
        remove(&self.pods.join(file_name(pod_id)?))
    }

    /// Keeps the last plugin's result in libcni's form (`cniCacheV1`).
    pub fn write_result(&self, record: &Record, network: &str, result: &Value) -> Result<()> {
        let pod = &record.pod;
        let cached = serde_json::json!({
            "kind": "cniCacheV1",
            "containerId": pod.pod_id,
            "config": STANDARD.encode(&record.config),
            "ifName": IN_POD,
            "networkName": network,
            "netns": pod.netns,
            "cniArgs": record.arguments,
            "capabilityArgs": record.capabilities,
            "result": result,
        });
        put(&self.results, &result_name(&pod.pod_id, network)?, cached.to_string().as_bytes(), Durable::No)
    }

    /// The cached result. None where there is none that can be read: a plugin's DEL then does
    /// what it can without.
    pub fn read_result(&self, pod_id: &str, network: &str) -> Option<Value> {
        let path = self.results.join(result_name(pod_id, network).ok()?);
        let mut cached: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        cached.get_mut("result").map(Value::take).filter(Value::is_object)
    }
}

enum Durable {
    Yes,
    No,
}

fn file_name(pod_id: &str) -> Result<&str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if pod_id.is_empty() || !pod_id.bytes().all(plain) {
        return Err(Error::invalid(format!("pod ID {pod_id:?} is not one of letters and digits")));
    }
    Ok(pod_id)
}

fn result_name(pod_id: &str, network: &str) -> Result<String> {
    Ok(format!("{network}-{}-{IN_POD}", file_name(pod_id)?))
}

/// A reader sees the whole file or none.
fn put(dir: &Path, name: &str, bytes: &[u8], durable: Durable) -> Result<()> {
    let (path, new) = (dir.join(name), dir.join(format!(".{name}.new")));
    let step = || format!("writing {}", path.display());
    let mut file = File::create(&new).step(step)?;
    file.write_all(bytes).step(step)?;
    match durable {
        Durable::Yes => {
            file.sync_data().step(step)?;
            fs::rename(&new, &path).step(step)?;
            File::open(dir).and_then(|dir| dir.sync_all()).step(step)
        }
        Durable::No => fs::rename(&new, &path).step(step),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", path.display()), e))
        }
        _ => Ok(()),
    }
}
