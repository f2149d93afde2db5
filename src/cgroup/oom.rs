//! Counts of OOM kills that outlive their cgroup.
//!
//! systemd removes a scope's directory as soon as its last process has ended, so whoever asks after
//! a container's exit may find nothing to read. The count is therefore followed while it grows.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;
use tokio::io::Interest;
use tokio::task::AbortHandle;

use super::layout::{Layout, Place};
use super::{file, stats};
use crate::Result;
use crate::error::Step;
use crate::sys::async_fd::watch;

#[derive(Debug, Default)]
pub(super) struct Watches(Mutex<HashMap<String, Watch>>);

#[derive(Debug)]
struct Watch {
    kills: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watches {
    /// Follows `memory.events` of `path` until [`Self::stop`]. v1's file cannot be waited on, so
    /// there nothing is followed.
    pub fn start(&self, layout: &Layout, path: &str) -> Result<()> {
        if layout.place("memory") != Some(Place::V2) {
            return Ok(());
        }
        let name = format!("{}{path}/memory.events", layout.mount(Place::V2));
        let events = file::open(&name, OFlags::RDONLY).and_then(|fd| watch(fd, Interest::PRIORITY));
        let events = events.step(|| format!("watching {name}"))?;
        let kills = Arc::new(AtomicU64::new(0));
        let seen = kills.clone();
        let task = tokio::spawn(async move {
            let mut buffer = [0; 512];
            // An error of reading: the cgroup is gone, and the count is final.
            while let Ok(text) = file::read_fd(events.get_ref(), &mut buffer) {
                seen.fetch_max(stats::value(text, "oom_kill").unwrap_or(0), Ordering::Relaxed);
                match events.ready(Interest::PRIORITY).await {
                    Ok(mut guard) => guard.clear_ready(),
                    Err(_) => return,
                }
            }
        });
        let watch = Watch { kills, task: task.abort_handle() };
        self.lock().insert(path.to_owned(), watch);
        Ok(())
    }

    pub fn last(&self, path: &str) -> Option<u64> {
        self.lock().get(path).map(|watch| watch.kills.load(Ordering::Relaxed))
    }

    pub fn stop(&self, path: &str) {
        self.lock().remove(path);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Watch>> {
        // Each change of the map is one call, so it is whole even after a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
