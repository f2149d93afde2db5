//! Images from archives, for nodes without a registry: what `docker save` writes, OCI archives and
//! layouts, plain or compressed.
//!
//! An archive's order is not ours to choose (docker's index of it comes last), and it is read once,
//! since it may come through a pipe. So its documents are kept in memory, and whatever looks like a layer
//! is unpacked as it comes: nothing is spooled. Where the documents come first, as `podwright image
//! import` sends those of a directory, layers of other platforms are passed over.

mod contents;
mod images;

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::digest::Digest;
use super::layer::Unpacked;
use super::pull::{self, Pins, Puller};
use super::reference::{Reference, Version};
use super::store::NewImage;
use crate::error::Step;
use crate::{Error, Result};
use contents::Contents;
use images::Found;

/// An image that came in: its ID, and the names that it got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub id: String,
    pub names: Vec<String>,
}

/// An archive, and how many of its bytes were read.
struct Counted {
    input: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.input.read(buffer)?;
        self.read.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
}

impl Puller {
    /// Takes in every image of the archive that `input` reads. `name` is for an image that the
    /// archive does not name, or names otherwise.
    pub async fn import(
        self: &Arc<Self>,
        input: Box<dyn Read + Send>,
        name: Option<String>,
    ) -> Result<Vec<Imported>> {
        let this = Arc::clone(self);
        // Until it has ended, an archive is known by its bytes alone.
        let watched = self.progress.begin(name.as_deref().unwrap_or("an archive"));
        let input = Counted { input, read: watched.archive() };
        let reading = tokio::task::spawn_blocking(move || {
            let contents = Contents::read(Box::new(input), &this.store, &this.host, this.limits)?;
            let found = contents.images(&this.host)?;
            Ok((contents, found))
        });
        let read = reading.await.unwrap_or_else(|e| Err(Error::internal(format!("reading an archive: {e}"))));
        let (mut contents, mut found) = read.step(|| "importing an archive")?;
        if let Some(name) = name {
            let [image] = &mut found[..] else {
                let count = found.len();
                return Err(Error::invalid(format!("a name is given, but the archive has {count} images")));
            };
            image.names = vec![name];
        }
        let mut pins = Pins::new(&self.store);
        let mut imported = Vec::new();
        for image in found {
            let id = image.id;
            let taken = self.take_in(image, &mut contents, &mut pins).await;
            imported.push(taken.step(|| format!("importing image {id}"))?);
        }
        Ok(imported)
    }

    async fn take_in(
        self: &Arc<Self>,
        image: Found,
        contents: &mut Contents,
        pins: &mut Pins,
    ) -> Result<Imported> {
        if image.names.is_empty() {
            return Err(Error::invalid("the archive does not name it; give it a name"));
        }
        let references = image.names.iter().map(|name| Reference::parse(name.as_bytes()));
        let references = references.collect::<Result<Vec<_>>>()?;
        let config = pull::parse_config(&image.config)?;
        let diff_ids = pull::diff_ids(&config, image.layers.len())?;
        for (diff_id, layer) in diff_ids.iter().zip(&image.layers) {
            let found = contents.layer(layer)?;
            if found != *diff_id {
                return Err(Error::wrong_bytes(format!(
                    "layer {layer} has diff ID {found}, but the image's config says {diff_id}"
                )));
            }
        }
        pins.add(&diff_ids);
        for diff_id in &diff_ids {
            self.take_in_layer(*diff_id, contents.unpacked.remove(diff_id)).await?;
        }
        for reference in &references {
            let new = NewImage {
                id: image.id,
                tag: matches!(reference.version, Version::Tag(_)).then(|| reference.to_string()),
                digest: image.digest.map(|digest| format!("{}@{digest}", reference.name())),
                layers: pull::once_each(diff_ids.clone()),
                user: config.config().as_ref().and_then(|c| c.user().clone()).unwrap_or_default(),
            };
            self.commit(new, image.config.clone()).await?;
        }
        let names: Vec<_> = references.iter().map(Reference::to_string).collect();
        tracing::info!(id = %image.id, names = names.join(", "), "image imported");
        Ok(Imported { id: image.id.to_string(), names })
    }

    /// Stages the layer, which is pinned, unless a pull has or does so.
    async fn take_in_layer(self: &Arc<Self>, diff_id: Digest, mut unpacked: Option<Unpacked>) -> Result<()> {
        loop {
            let mut mine = false;
            let flight = self.layers.join(diff_id, || {
                mine = true;
                Arc::clone(self).stage(diff_id, unpacked.take())
            });
            match flight.await {
                // That of a pull.
                Err(_) if !mine => {}
                ended => return ended,
            }
        }
    }

    async fn stage(self: Arc<Self>, diff_id: Digest, unpacked: Option<Unpacked>) -> Result<()> {
        if self.store.catalog().has_layer(diff_id) {
            return Ok(());
        }
        // It was here when the archive was read.
        let removed =
            || Error::unavailable(format!("layer {diff_id} was just removed; import the archive again"));
        let unpacked = unpacked.ok_or_else(removed)?;
        unpacked.stage(&self.store).await
    }
}
