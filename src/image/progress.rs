//! Pulls under way, for those who watch them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::digest::Digest;

/// One pull, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullStatus {
    pub reference: String,
    pub running: Duration,
    /// Empty until the image's manifest is here.
    pub layers: Vec<LayerStatus>,
    /// Bytes of an archive that were read: nobody knows of how many.
    pub archive: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerStatus {
    /// Of the blob.
    pub digest: String,
    /// Bytes of the blob, and how many of them came in.
    pub size: u64,
    pub fetched: u64,
    /// It is unpacked, or was here before.
    pub done: bool,
}

impl PullStatus {
    /// Bytes that came in, and of how many; what was here already counts as both.
    pub fn total(&self) -> (u64, u64) {
        let fetched = |layer: &LayerStatus| if layer.done { layer.size } else { layer.fetched };
        (self.layers.iter().map(fetched).sum(), self.layers.iter().map(|layer| layer.size).sum())
    }
}

#[derive(Default)]
pub struct Progress {
    next: AtomicU64,
    pulls: Mutex<BTreeMap<u64, Pull>>,
    /// Bytes of the layers on their way, by diff ID: simultaneous pulls share them.
    fetching: Mutex<HashMap<Digest, Arc<AtomicU64>>>,
}

struct Pull {
    reference: String,
    started: Instant,
    layers: Vec<(Digest, u64, Digest)>,
    archive: Arc<AtomicU64>,
}

/// A pull's entry in the list. Dropped, it is taken off.
pub struct Watched<'a> {
    progress: &'a Progress,
    number: u64,
}

/// The same of a layer on its way.
pub struct Fetching<'a> {
    progress: &'a Progress,
    diff_id: Digest,
    pub bytes: Arc<AtomicU64>,
}

impl Progress {
    pub fn begin(&self, reference: &str) -> Watched<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (layers, archive) = (Vec::new(), Arc::default());
        let pull = Pull { reference: reference.to_owned(), started: Instant::now(), layers, archive };
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner).insert(number, pull);
        Watched { progress: self, number }
    }

    pub fn fetching(&self, diff_id: Digest) -> Fetching<'_> {
        let bytes = Arc::new(AtomicU64::new(0));
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        fetching.insert(diff_id, Arc::clone(&bytes));
        Fetching { progress: self, diff_id, bytes }
    }

    pub fn is_idle(&self) -> bool {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// `here` says whether a layer is in the store.
    pub fn list(&self, here: impl Fn(Digest) -> bool) -> Vec<PullStatus> {
        let fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let layer = |(digest, size, diff_id): &(Digest, u64, Digest)| LayerStatus {
            digest: digest.to_string(),
            size: *size,
            fetched: fetching.get(diff_id).map_or(0, |bytes| bytes.load(Ordering::Relaxed)),
            done: !fetching.contains_key(diff_id) && here(*diff_id),
        };
        let pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        let status = |pull: &Pull| PullStatus {
            reference: pull.reference.clone(),
            running: pull.started.elapsed(),
            layers: pull.layers.iter().map(layer).collect(),
            archive: pull.archive.load(Ordering::Relaxed),
        };
        pulls.values().map(status).collect()
    }
}

impl Watched<'_> {
    /// Blob, size and diff ID of each layer.
    pub fn layers(&self, layers: Vec<(Digest, u64, Digest)>) {
        let mut pulls = self.progress.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pull) = pulls.get_mut(&self.number) {
            pull.layers = layers;
        }
    }
}

impl Watched<'_> {
    /// Counts the bytes of an archive.
    pub fn archive(&self) -> Arc<AtomicU64> {
        let pulls = self.progress.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.get(&self.number).map(|pull| Arc::clone(&pull.archive)).unwrap_or_default()
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.progress.pulls.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.progress.fetching.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.diff_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_count_as_they_come_and_when_they_are_here() {
        let [a, b, c] = ["a", "b", "c"].map(|name| Digest::of(name.as_bytes()));
        let progress = Progress::default();
        let watched = progress.begin("a.b/c:d");
        assert!(progress.list(|_| true)[0].layers.is_empty());
        watched.layers(vec![(a, 10, a), (b, 20, b), (c, 30, c)]);
        let fetching = progress.fetching(b);
        fetching.bytes.fetch_add(5, Ordering::Relaxed);
        let status = progress.list(|id| id == a).remove(0);
        assert_eq!(status.total(), (15, 60));
        assert_eq!(status.layers.iter().map(|l| l.done).collect::<Vec<_>>(), [true, false, false]);
        drop(fetching);
        drop(watched);
        assert!(progress.list(|_| true).is_empty());
    }
}
