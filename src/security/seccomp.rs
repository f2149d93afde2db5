//! Seccomp: the default profile, profiles from files, and their compilation to a tree.

mod bpf;
mod compile;
mod default;
mod read;
mod syscalls;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod verify;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag as Flag};
use sha2::{Digest, Sha256};

use crate::container::spec::Seccomp;
use crate::{Error, Result};

/// A cBPF program in the kernel's layout, 8 bytes an instruction, and the flags to load it with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub program: Arc<Vec<u8>>,
    pub flags: u32,
}

/// A profile, and the filter that it compiles to.
#[derive(Debug, Clone)]
pub struct Compiled {
    pub profile: Arc<LinuxSeccomp>,
    pub filter: Filter,
}

/// What a request asks for: None if unconfined. `capabilities` (effective set) widens the default
/// profile, as the peers' default does.
///
/// A Localhost profile is read from its file each time, which blocks; errors name the path and the
/// field.
pub fn resolve(request: &Seccomp, capabilities: u64) -> Result<Option<Compiled>> {
    let profile = match request {
        Seccomp::Unconfined => return Ok(None),
        Seccomp::RuntimeDefault => return runtime_default(capabilities).map(Some),
        Seccomp::Localhost(path) => read::profile(Path::new(path), capabilities)?,
    };
    let filter = compile(&profile)?;
    Ok(Some(Compiled { profile: Arc::new(profile), filter }))
}

/// The default profile for a set of capabilities, made once: nearly every container has the same.
fn runtime_default(capabilities: u64) -> Result<Compiled> {
    static MADE: LazyLock<Mutex<HashMap<u64, Compiled>>> = LazyLock::new(Mutex::default);
    if let Some(made) = MADE.lock().unwrap_or_else(PoisonError::into_inner).get(&capabilities) {
        return Ok(made.clone());
    }
    let profile = default::profile(capabilities)?;
    let compiled = Compiled { filter: compile(&profile)?, profile: Arc::new(profile) };
    insert(&MADE, capabilities, compiled.clone());
    Ok(compiled)
}

/// Compiles a profile, or takes it from the cache.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    static CACHE: LazyLock<Mutex<HashMap<[u8; 32], Filter>>> = LazyLock::new(Mutex::default);
    let text = serde_json::to_vec(profile)
        .map_err(|e| Error::internal(format!("hashing the seccomp profile: {e}")))?;
    let key: [u8; 32] = Sha256::digest(&text).into();
    if let Some(filter) = CACHE.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
        return Ok(filter.clone());
    }
    let program = compile::program(profile).map_err(|e| e.during("compiling the seccomp profile"))?;
    let filter = Filter { program: Arc::new(bpf::bytes(&program)), flags: flags(profile)? };
    insert(&CACHE, key, filter.clone());
    Ok(filter)
}

/// A node has few profiles; one whose files change all the time starts over.
fn insert<K: std::hash::Hash + Eq, V>(cache: &Mutex<HashMap<K, V>>, key: K, value: V) {
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    if cache.len() >= CACHED {
        cache.clear();
    }
    cache.insert(key, value);
}

/// Programs kept, about 4 KB each.
const CACHED: usize = 256;

/// Whether this kernel takes filters at all: CONFIG_SECCOMP_FILTER, from Linux 4.14 on.
pub fn supported() -> bool {
    // PR_GET_SECCOMP is EINVAL where the kernel was built without any of it.
    rustix::thread::secure_computing_mode().is_ok()
        && std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail")
            .is_ok_and(|actions| actions.split_ascii_whitespace().any(|action| action == "errno"))
}

/// SECCOMP_FILTER_FLAG_* (linux/seccomp.h).
fn flags(profile: &LinuxSeccomp) -> Result<u32> {
    // Both mean an agent that answers for the kernel.
    if profile.listener_path().is_some() || profile.listener_metadata().is_some() {
        return Err(Error::unimplemented("the seccomp profile's listenerPath"));
    }
    profile.flags().iter().flatten().try_fold(0, |flags, flag| match flag {
        // The process has one thread when it loads its filter.
        Flag::SeccompFilterFlagTsync => Ok(flags),
        Flag::SeccompFilterFlagLog => Ok(flags | 1 << 1),
        Flag::SeccompFilterFlagSpecAllow => Ok(flags | 1 << 2),
        Flag::SeccompFilterFlagWaitKillableRecv => {
            Err(Error::unimplemented("seccomp flag SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"))
        }
    })
}
