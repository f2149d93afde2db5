//! Makes images durable and visible.
//!
//! What a commit costs is waiting for the disk, whatever it commits: pulls that end while another
//! commit runs are committed by the next one together.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::catalog::{LayerState, NewImage};
use super::index::{Change, LayerRecord};
use super::{Store, delete, unpack};
use crate::error::Step;
use crate::image::digest::Digest;
use crate::{Error, Result};

type Unindexed = (Digest, LayerRecord, LayerState);

/// An image that waits for being committed.
pub(super) struct Commit {
    new: NewImage,
    config: Vec<u8>,
    outcome: Arc<Mutex<Option<Result<()>>>>,
}

impl Commit {
    fn end(&self, result: Result<()>) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
    }
}

impl Store {
    /// Makes the image durable and visible. Its layers must be staged or here, and pinned. Blocking.
    pub fn commit(&self, new: NewImage, config: Vec<u8>) -> Result<()> {
        let outcome = Arc::default();
        let commit = Commit { new, config, outcome: Arc::clone(&outcome) };
        self.commits.lock().unwrap_or_else(PoisonError::into_inner).push(commit);
        loop {
            let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
            // Who had the lock before may have done it.
            if let Some(result) = outcome.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return result;
            }
            let batch = self.next_batch();
            if batch.is_empty() {
                return Err(Error::internal("the commit ended early"));
            }
            self.commit_batch(batch);
        }
    }

    /// All that wait and change different records: the first one always, the rest another time.
    fn next_batch(&self) -> Vec<Commit> {
        let mut waiting = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        let catalog = self.catalog();
        let (mut batch, mut later) = (Vec::new(), Vec::new());
        let (mut changed, mut names) = (HashSet::new(), HashSet::new());
        for commit in waiting.drain(..) {
            let records = catalog.records_for(&commit.new);
            let named: Vec<_> = commit.new.tag.iter().chain(&commit.new.digest).cloned().collect();
            if records.iter().any(|(id, _)| changed.contains(id)) || named.iter().any(|n| names.contains(n)) {
                later.push(commit);
                continue;
            }
            changed.extend(records.iter().map(|(id, _)| *id));
            names.extend(named);
            batch.push(commit);
        }
        *waiting = later;
        batch
    }

    fn commit_batch(&self, batch: Vec<Commit>) {
        let mut ready = Vec::new();
        for commit in batch {
            // What is wrong with one is not the others' fault.
            match self.prepare(&commit.new) {
                Ok(()) => ready.push(commit),
                Err(error) => commit.end(Err(error)),
            }
        }
        let mut seen = HashSet::new();
        let mut layers: Vec<_> =
            ready.iter().flat_map(|commit| self.catalog().unindexed(&commit.new.layers)).collect();
        layers.retain(|(diff_id, ..)| seen.insert(*diff_id));
        match self.make_durable(&ready, &layers) {
            Ok(()) => {
                for Commit { new, outcome, .. } in ready {
                    let visible = self.catalog_mut().put_image(new);
                    *outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(visible);
                }
            }
            Err(error) => {
                self.drop_unwritten(&layers);
                ready.iter().for_each(|commit| commit.end(Err(error.clone())));
            }
        }
    }

    /// Finishes the image's layers.
    fn prepare(&self, new: &NewImage) -> Result<()> {
        if let Some(gone) = new.layers.iter().find(|layer| !self.catalog().has_layer(**layer)) {
            let text = format!("layer {gone} was withdrawn before its image was committed; pull it again");
            return Err(Error::unavailable(text));
        }
        let unindexed = self.catalog().unindexed(&new.layers);
        if unindexed.iter().any(|(_, _, state)| *state == LayerState::Staged) {
            self.inherit(&new.layers)?;
        }
        Ok(())
    }

    fn make_durable(&self, batch: &[Commit], layers: &[Unindexed]) -> Result<()> {
        if !layers.is_empty() {
            self.sync()?;
            for (diff_id, layer, _) in layers.iter().filter(|(_, _, state)| *state == LayerState::Staged) {
                self.rename(layer.number, "staging", "layers")?;
                self.catalog_mut().set_state(*diff_id, LayerState::Placed);
            }
            self.sync_directories()?;
        }
        let put_images = batch.iter().flat_map(|commit| self.catalog().records_for(&commit.new)).collect();
        self.index.apply(&Change {
            put_images,
            put_configs: batch.iter().map(|commit| (commit.new.id, commit.config.clone())).collect(),
            put_layers: layers.iter().map(|(id, record, _)| (*id, *record)).collect(),
            ..Change::default()
        })?;
        let mut catalog = self.catalog_mut();
        layers.iter().for_each(|(diff_id, ..)| catalog.set_state(*diff_id, LayerState::Indexed));
        Ok(())
    }

    /// Layers that may not be on the disk as they should: the kernel tells of a lost write once, and a
    /// second try would find nothing wrong. The next pull fetches them anew.
    fn drop_unwritten(&self, layers: &[Unindexed]) {
        for (diff_id, ..) in layers {
            let state = self.catalog().place_of(*diff_id).map(|(_, state)| state);
            let number = self.catalog_mut().withdraw(&[], Some(*diff_id));
            self.implied.lock().unwrap_or_else(PoisonError::into_inner).remove(diff_id);
            let Some((number, state)) = number.zip(state) else { continue };
            match if state == LayerState::Staged { Ok(()) } else { self.take_away(number) } {
                Ok(()) => delete(&self.root.join("staging").join(number.to_string())),
                Err(error) => {
                    tracing::warn!(%diff_id, %error, "a layer that was not made durable is not deleted");
                }
            }
        }
    }

    /// Directories that a new layer has without having said anything about them look like what the
    /// image has there already. `layers`: the bottom one first.
    fn inherit(&self, layers: &[Digest]) -> Result<()> {
        let paths: Vec<_> = {
            let catalog = self.catalog();
            layers
                .iter()
                .map(|layer| catalog.place_of(*layer).map(|(number, state)| self.placed(number, state)))
                .collect()
        };
        for (at, diff_id) in layers.iter().enumerate() {
            let implied = self.implied.lock().unwrap_or_else(PoisonError::into_inner).get(diff_id).cloned();
            let (Some(implied), Some(upper)) = (implied, &paths[at]) else { continue };
            let lowers: Vec<_> = paths[..at].iter().rev().flatten().cloned().collect();
            for path in implied {
                let step = || format!("finishing {} in {}", String::from_utf8_lossy(&path), upper.display());
                unpack::inherit(upper, &path, &lowers).step(step)?;
            }
            self.implied.lock().unwrap_or_else(PoisonError::into_inner).remove(diff_id);
        }
        Ok(())
    }
}
