//! Which images an archive has: docker's index of it, or OCI's.

use std::collections::HashMap;

use serde::Deserialize;

use super::contents::Contents;
use crate::error::Step;
use crate::image::digest::Digest;
use crate::image::manifest::{self, Descriptor, Manifest, Platform};
use crate::{Error, Result};

/// Indexes inside indexes.
const MAX_NESTING: usize = 8;
/// Where tools leave an image's name: containerd's whole, the specification's perhaps only a tag.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// One image of an archive.
pub struct Found {
    pub config: Vec<u8>,
    pub id: Digest,
    /// Of its manifest, or of the index that it was chosen from.
    pub digest: Option<Digest>,
    /// Names of files.
    pub layers: Vec<String>,
    pub names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<IndexEntry>,
}

#[derive(Deserialize)]
struct IndexEntry {
    digest: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

impl Contents {
    /// OCI's form first: an archive that has both tells more in it.
    pub fn images(&self, host: &Platform) -> Result<Vec<Found>> {
        if self.has("index.json") && self.has("oci-layout") {
            return self.oci(host);
        }
        if self.has("manifest.json") {
            return self.docker();
        }
        Err(Error::invalid(
            "it is no image archive: it has neither index.json with oci-layout nor manifest.json",
        ))
    }

    fn docker(&self) -> Result<Vec<Found>> {
        let images: Vec<DockerImage> = self.json("manifest.json")?;
        let found = |image: DockerImage| {
            let config = self.document(&image.config)?.to_vec();
            let names = image.repo_tags.unwrap_or_default();
            Ok(Found { id: Digest::of(&config), config, digest: None, layers: image.layers, names })
        };
        images.into_iter().map(found).collect()
    }

    fn oci(&self, host: &Platform) -> Result<Vec<Found>> {
        let index: Index = self.json("index.json")?;
        // Docker's names, for an archive of both forms whose index has tags only.
        let docker: Vec<DockerImage> = self.json("manifest.json").unwrap_or_default();
        let mut found: Vec<Found> = Vec::new();
        for entry in index.manifests {
            let digest = Digest::parse(&entry.digest)?;
            let Some((config, layers)) = self.resolve(digest, host, 0)? else { continue };
            let mut names: Vec<_> =
                NAMES.iter().filter_map(|key| entry.annotations.get(*key).cloned()).collect();
            names.retain(|name| name.contains(['/', ':']) || !is_tag_only(name));
            names.dedup();
            names.truncate(1);
            if names.is_empty() {
                let of_it = docker.iter().filter(|image| image.config.contains(&config.hex()));
                names = of_it.filter_map(|image| image.repo_tags.clone()).flatten().collect();
            }
            // An image of several names has an entry for each.
            if let Some(same) = found.iter_mut().find(|image| image.digest == Some(digest)) {
                same.names.extend(names);
                continue;
            }
            let bytes = self.blob(config)?.to_vec();
            found.push(Found { config: bytes, id: config, digest: Some(digest), layers, names });
        }
        Ok(found)
    }

    /// The config and the layers of the image that `digest` means here; None: an index without an
    /// image for this platform.
    fn resolve(
        &self,
        digest: Digest,
        host: &Platform,
        depth: usize,
    ) -> Result<Option<(Digest, Vec<String>)>> {
        let parsed = Manifest::parse(self.blob(digest)?, "").step(|| blob_name(digest))?;
        let entries = match parsed {
            Manifest::Image { config, layers } => {
                layers.iter().try_for_each(Descriptor::check_layer)?;
                let layers = layers.iter().map(|layer| blob_name(layer.digest)).collect();
                return Ok(Some((config.digest, layers)));
            }
            Manifest::Index(_) if depth >= MAX_NESTING => return Ok(None),
            Manifest::Index(entries) => entries,
        };
        for entry in manifest::choose(&entries, host) {
            if let Some(found) = self.resolve(entry.digest, host, depth + 1)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        serde_json::from_slice(self.document(name)?).map_err(|e| Error::invalid(format!("{name}: {e}")))
    }

    /// A blob of an OCI layout, verified.
    fn blob(&self, digest: Digest) -> Result<&[u8]> {
        let name = blob_name(digest);
        let bytes = self.document(&name)?;
        match Digest::of(bytes) {
            found if found == digest => Ok(bytes),
            found => Err(Error::invalid(format!("{name} has digest {found}"))),
        }
    }
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The specification's annotation may be nothing but a tag.
fn is_tag_only(name: &str) -> bool {
    !name.contains(['/', ':', '@'])
}
