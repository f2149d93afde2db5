//! Makes images durable and visible.
//!
//! What a commit costs is waiting for the disk, whatever it commits: pulls that end while another
//! commit runs are committed by the next one together.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::catalog::{LayerState, NewImage};
use super::index::{Change, ImageRecord};
use super::{Store, unpack};
use crate::error::Step;
use crate::image::digest::Digest;
use crate::{Error, Result};

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
            let (batch, records) = self.next_batch();
            if batch.is_empty() {
                return Err(Error::internal("the commit ended early"));
            }
            self.commit_batch(batch, records);
        }
    }

    /// All that wait and change different records: the first one always, the rest another time.
    fn next_batch(&self) -> (Vec<Commit>, Vec<(Digest, ImageRecord)>) {
        let mut waiting = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        let catalog = self.catalog();
        let (mut batch, mut later) = (Vec::new(), Vec::new());
        let (mut all, mut changed, mut names) = (Vec::new(), HashSet::new(), HashSet::new());
        for commit in waiting.drain(..) {
            let records = catalog.records_for(&commit.new);
            let named: Vec<_> = commit.new.tag.iter().chain(&commit.new.digest).cloned().collect();
            if records.iter().any(|(id, _)| changed.contains(id)) || named.iter().any(|n| names.contains(n)) {
                later.push(commit);
                continue;
            }
            changed.extend(records.iter().map(|(id, _)| *id));
            names.extend(named);
            all.extend(records);
            batch.push(commit);
        }
        *waiting = later;
        (batch, all)
    }

    fn commit_batch(&self, batch: Vec<Commit>, records: Vec<(Digest, ImageRecord)>) {
        match self.make_durable(&batch, records) {
            // What is wrong with one is not the others' fault.
            Err(_) if batch.len() > 1 => {
                for commit in batch {
                    let records = self.catalog().records_for(&commit.new);
                    self.commit_batch(vec![commit], records);
                }
            }
            Err(error) => batch.iter().for_each(|commit| commit.end(Err(error.clone()))),
            Ok(()) => {
                for Commit { new, outcome, .. } in batch {
                    let visible = self.catalog_mut().put_image(new);
                    *outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(visible);
                }
            }
        }
    }

    fn make_durable(&self, batch: &[Commit], records: Vec<(Digest, ImageRecord)>) -> Result<()> {
        let mut unindexed = Vec::new();
        let mut seen = HashSet::new();
        for commit in batch {
            let its = self.catalog().unindexed(&commit.new.layers);
            if its.iter().any(|(_, _, state)| *state == LayerState::Staged) {
                self.inherit(&commit.new.layers)?;
            }
            unindexed.extend(its.into_iter().filter(|(diff_id, ..)| seen.insert(*diff_id)));
        }
        let staged: Vec<_> = unindexed.iter().filter(|(_, _, state)| *state == LayerState::Staged).collect();
        if !staged.is_empty() {
            self.sync()?;
            for (diff_id, layer, _) in staged {
                self.rename(layer.number, "staging", "layers")?;
                self.catalog_mut().set_state(*diff_id, LayerState::Placed);
            }
            self.sync_directories()?;
        }
        self.index.apply(&Change {
            put_images: records,
            put_configs: batch.iter().map(|commit| (commit.new.id, commit.config.clone())).collect(),
            put_layers: unindexed.iter().map(|(id, record, _)| (*id, *record)).collect(),
            ..Change::default()
        })?;
        let mut catalog = self.catalog_mut();
        unindexed.iter().for_each(|(diff_id, ..)| catalog.set_state(*diff_id, LayerState::Indexed));
        Ok(())
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
