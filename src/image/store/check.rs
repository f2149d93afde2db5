//! Whether the store holds what it should, and what to do where it does not.
//!
//! A layer that differs from its manifest is never mended in place, since a container's overlay may
//! stand on it. It is withdrawn: its images leave the index, so that the next pull makes the layer
//! anew in another directory, and the directory stays until the containers that use it are gone.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{MutexGuard, PoisonError};

use super::index::Change;
use super::{Store, delete, numbers};
use crate::image::digest::Digest;
use crate::image::unpack;
use crate::{Error, Result};

/// Differences told of one layer.
const MAX_TOLD: usize = 20;

/// What is wrong with one layer, one image's config, or one directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// A layer's diff ID, an image's ID, or a path.
    pub what: String,
    /// Sentences without a subject, or with a path of the layer as it.
    pub found: Vec<String>,
    /// Names of images that are not whole because of it.
    pub images: Vec<String>,
    /// What was done about it, or would be.
    pub remedy: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Layers that were looked at.
    pub layers: usize,
    /// Of those, layers that have no manifest to compare with.
    pub unverified: usize,
    pub faults: Vec<Fault>,
    pub repaired: bool,
}

/// What a look at one layer's directory gives.
enum Found {
    Differences(Vec<String>),
    NoManifest,
}

impl Store {
    /// Reads the whole store. Blocking, for as long as that takes; pulls and containers go on.
    pub fn check(&self, repair: bool) -> Result<Report> {
        let mut report = Report { repaired: repair, ..Report::default() };
        let layers = self.catalog().indexed_layers();
        for (diff_id, number) in layers {
            let found = self.check_layer(number);
            // It may have been removed meanwhile, and what was found is that.
            if self.catalog().number_of(diff_id) != Some(number) {
                continue;
            }
            report.layers += 1;
            let found = match found {
                Found::Differences(found) if found.is_empty() => continue,
                Found::Differences(found) => found,
                Found::NoManifest => {
                    report.unverified += 1;
                    continue;
                }
            };
            let images = self.catalog().names_with(diff_id);
            let remedy = "withdraw it: its images are pulled anew, containers that use it keep it".to_owned();
            report.faults.push(Fault { what: format!("layer {diff_id}"), found, images, remedy });
            if repair {
                self.withdraw_layer(diff_id, number)?;
            }
        }
        self.check_configs(repair, &mut report)?;
        self.check_directories(repair, &mut report)?;
        Ok(report)
    }

    fn check_layer(&self, number: u64) -> Found {
        let directory = self.root.join("layers").join(number.to_string());
        let (root, manifest) = (directory.join("fs"), directory.join("manifest"));
        if !root.is_dir() {
            return Found::Differences(vec![format!("{} is missing", root.display())]);
        }
        match unpack::verify(&root, &manifest, MAX_TOLD) {
            Ok(found) => Found::Differences(found),
            Err(e) if e.kind() == ErrorKind::NotFound && !manifest.exists() => Found::NoManifest,
            Err(e) if e.kind() == ErrorKind::InvalidData => Found::Differences(vec![e.to_string()]),
            Err(e) => Found::Differences(vec![format!("reading {}: {e}", directory.display())]),
        }
    }

    fn check_configs(&self, repair: bool, report: &mut Report) -> Result<()> {
        let ids = self.catalog().image_ids();
        for id in ids {
            if self.config_fault(id).is_none() {
                continue;
            }
            // It may have been removed meanwhile, and what was found is that.
            let change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
            let image = self.catalog().image(id);
            let Some((image, found)) = image.zip(self.config_fault(id)) else { continue };
            let images = image.repo_tags.into_iter().chain(image.repo_digests).collect();
            let remedy = "withdraw it: it is pulled anew".to_owned();
            report.faults.push(Fault { what: format!("image {id}"), found: vec![found], images, remedy });
            if repair {
                self.withdraw(change, vec![id], None)?;
            }
        }
        Ok(())
    }

    fn config_fault(&self, id: Digest) -> Option<String> {
        match self.config(id).map(|config| Digest::of(&config)) {
            Ok(digest) => (digest != id).then(|| format!("its config has digest {digest}")),
            Err(error) => Some(error.message),
        }
    }

    /// Directories that no record names: what an interrupted removal left, freed at a start.
    fn check_directories(&self, repair: bool, report: &mut Report) -> Result<()> {
        let layers = self.root.join("layers");
        let there = numbers(&layers)?;
        let known = self.catalog().layer_numbers();
        for number in there.difference(&known) {
            let path = layers.join(number.to_string());
            // A commit may have just placed it, or a removal be about to take it away.
            let change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
            if self.catalog().layer_numbers().contains(number) || !path.exists() {
                continue;
            }
            if repair {
                self.rename(*number, "layers", "staging")?;
            }
            drop(change);
            report.faults.push(Fault {
                what: path.display().to_string(),
                found: vec!["is in no index".into()],
                images: Vec::new(),
                remedy: "delete it".into(),
            });
            if repair {
                delete(&self.root.join("staging").join(number.to_string()));
            }
        }
        Ok(())
    }

    /// Takes the layer in directory `number` out of the index, and all images that have it. Where it lies
    /// in another one by now, it was removed and pulled again, and stays.
    pub(super) fn withdraw_layer(&self, diff_id: Digest, number: u64) -> Result<()> {
        let change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        if self.catalog().number_of(diff_id) != Some(number) {
            return Ok(());
        }
        let images = self.catalog().images_with(diff_id);
        self.withdraw(change, images, Some(diff_id))
    }

    /// Takes images out of the index, and `diff_id`'s directory with them. What containers use
    /// stays on the disk until they release it, also over restarts.
    fn withdraw(
        &self,
        change: MutexGuard<'_, ()>,
        images: Vec<Digest>,
        diff_id: Option<Digest>,
    ) -> Result<()> {
        let doomed = {
            // Held meanwhile, rare and short as this is: nobody comes to hold such an image while the index is
            // written, and where that fails nothing has changed.
            let mut catalog = self.catalog_mut();
            self.index.apply(&Change {
                delete_images: images.clone(),
                delete_layers: diff_id.into_iter().collect(),
                put_kept: catalog.kept_by_holders(&images),
                ..Change::default()
            })?;
            catalog.withdraw(&images, diff_id)
        };
        let Some(number) = doomed else { return Ok(()) };
        self.take_away(number)?;
        drop(change);
        delete(&self.root.join("staging").join(number.to_string()));
        Ok(())
    }
}

/// Opens the store of a daemon that does not run, and checks it. Blocking.
pub fn offline(root: &std::path::Path, repair: bool) -> Result<Report> {
    if !fs::metadata(root.join("index.redb")).is_ok_and(|m| m.is_file()) {
        let missing: PathBuf = root.join("index.redb");
        return Err(Error::not_found(format!("there is no image store: {} is missing", missing.display())));
    }
    Store::open(root)?.check(repair)
}
