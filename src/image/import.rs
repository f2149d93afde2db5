//! Images from archives, for nodes without a registry: what `docker save` writes, OCI archives and
//! layouts, plain or compressed.
//!
//! An archive's order is not ours to choose (docker's index of it comes last), so its files are
//! spooled into the store first; layers are unpacked from there like those of a registry.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::digest::Digest;
use super::layer::{self, Source};
use super::manifest::{self, Descriptor, Manifest, Platform};
use super::pull::{self, Pins, Puller};
use super::reference::{Reference, Version};
use super::store::NewImage;
use super::unpack::archive::{Archive, Kind};
use crate::error::Step;
use crate::{Error, Result};

const MAX_DOCUMENT: u64 = 8 << 20;
const MAX_FILES: usize = 100_000;
/// Links to links: older `docker save`s have one.
const MAX_LINKS: usize = 8;
/// Where tools leave an image's name: containerd's whole, the specification's perhaps only a tag.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An image that came in: its ID, and the names that it got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub id: String,
    pub names: Vec<String>,
}

/// The files of an archive, by their clean names.
struct Spool {
    files: HashMap<Vec<u8>, PathBuf>,
    links: HashMap<Vec<u8>, Vec<u8>>,
}

/// One image of an archive.
struct Found {
    config: Vec<u8>,
    id: Digest,
    /// Of its manifest, or of the index that it was chosen from.
    digest: Option<Digest>,
    layers: Vec<PathBuf>,
    names: Vec<String>,
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

impl Puller {
    /// Takes in every image of the archive that `input` reads. `name` is for an image that the
    /// archive does not name, or names otherwise.
    pub async fn import(
        self: &Arc<Self>,
        input: Box<dyn Read + Send>,
        name: Option<String>,
    ) -> Result<Vec<Imported>> {
        let this = Arc::clone(self);
        let spooling = tokio::task::spawn_blocking(move || {
            let scratch = this.store.scratch()?;
            let spool = Spool::fill(input, &scratch.fs())?;
            let found = spool.images(&this.host)?;
            Ok((scratch, found))
        });
        let spooled =
            spooling.await.unwrap_or_else(|e| Err(Error::internal(format!("reading an archive: {e}"))));
        let (_scratch, mut found) = spooled.step(|| "importing an archive")?;
        if let Some(name) = name {
            let [image] = &mut found[..] else {
                let count = found.len();
                return Err(Error::invalid(format!("a name is given, but the archive has {count} images")));
            };
            image.names = vec![name];
        }
        let mut imported = Vec::new();
        for image in found {
            let id = image.id;
            imported.push(self.take_in(image).await.step(|| format!("importing image {id}"))?);
        }
        Ok(imported)
    }

    async fn take_in(self: &Arc<Self>, image: Found) -> Result<Imported> {
        if image.names.is_empty() {
            return Err(Error::invalid("the archive does not name it; give it a name"));
        }
        let references = image.names.iter().map(|name| Reference::parse(name.as_bytes()));
        let references = references.collect::<Result<Vec<_>>>()?;
        let config = pull::parse_config(&image.config)?;
        let diff_ids = pull::diff_ids(&config, image.layers.len())?;
        let mut pins = Pins::new(&self.store);
        pins.add(&diff_ids);
        for (diff_id, path) in diff_ids.iter().copied().zip(&image.layers) {
            let (this, path) = (Arc::clone(self), path.clone());
            let unpack = move || async move { this.unpack_file(path, diff_id).await };
            self.layers.join(diff_id, unpack).await?;
        }
        for reference in &references {
            let new = NewImage {
                id: image.id,
                tag: matches!(reference.version, Version::Tag(_)).then(|| reference.to_string()),
                digest: image.digest.map(|digest| format!("{}@{digest}", reference.name())),
                layers: pull::once_each(diff_ids.clone()),
                user: config.config().as_ref().and_then(|c| c.user().clone()).unwrap_or_default(),
            };
            let (store, bytes) = (Arc::clone(&self.store), image.config.clone());
            let commit = tokio::task::spawn_blocking(move || store.commit(new, bytes)).await;
            commit.unwrap_or_else(|e| Err(Error::internal(format!("the commit ended: {e}"))))?;
        }
        let names: Vec<_> = references.iter().map(Reference::to_string).collect();
        tracing::info!(id = %image.id, names = names.join(", "), "image imported");
        Ok(Imported { id: image.id.to_string(), names })
    }

    async fn unpack_file(self: Arc<Self>, path: PathBuf, diff_id: Digest) -> Result<()> {
        if self.store.catalog().has_layer(diff_id) {
            return Ok(());
        }
        let layer = Descriptor { media_type: String::new(), digest: diff_id, size: 0, platform: None };
        let from = Source::File(path, "the archive");
        layer::fetch(from, &layer, diff_id, Arc::clone(&self.store), self.limits).await
    }
}

impl Spool {
    /// Writes every file of the archive below `directory`, under a number as its name.
    fn fill(input: Box<dyn Read + Send>, directory: &Path) -> Result<Self> {
        let mut input = BufReader::with_capacity(128 << 10, input);
        let magic = input.fill_buf().step(|| "reading the archive")?.get(..4).unwrap_or_default().to_vec();
        let plain: Box<dyn Read> = match magic[..] {
            [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            [0x28, 0xb5, 0x2f, 0xfd] => {
                Box::new(zstd::stream::read::Decoder::with_buffer(input).step(|| "reading the archive")?)
            }
            _ => Box::new(input),
        };
        let mut archive = Archive::new(BufReader::with_capacity(128 << 10, plain));
        let mut spool = Self { files: HashMap::new(), links: HashMap::new() };
        while let Some(entry) = archive.next_entry().map_err(unreadable)? {
            let Some(name) = clean(&entry.path) else {
                return Err(Error::invalid("the archive has a name that leads out of it"));
            };
            if spool.files.len() + spool.links.len() >= MAX_FILES {
                return Err(Error::invalid(format!("the archive has more than {MAX_FILES} files")));
            }
            match entry.kind {
                Kind::File => {
                    let path = directory.join(spool.files.len().to_string());
                    let step = || format!("writing {}", path.display());
                    let mut file = File::create(&path).step(step)?;
                    loop {
                        let bytes = archive.fill_body().map_err(unreadable)?;
                        if bytes.is_empty() {
                            break;
                        }
                        file.write_all(bytes).step(step)?;
                        let len = bytes.len();
                        archive.consume(len);
                    }
                    spool.files.insert(name, path);
                }
                Kind::Symlink => {
                    let parent = name.iter().rposition(|b| *b == b'/').map_or(&b""[..], |at| &name[..at]);
                    if let Some(target) = clean(&[parent, b"/", &entry.link].concat()) {
                        spool.links.insert(name, target);
                    }
                }
                Kind::HardLink => {
                    if let Some(target) = clean(&entry.link) {
                        spool.links.insert(name, target);
                    }
                }
                _ => {}
            }
        }
        Ok(spool)
    }

    fn path(&self, name: &str) -> Result<&Path> {
        let missing = || Error::invalid(format!("the archive has no {name:?}"));
        let mut key = clean(name.as_bytes()).ok_or_else(missing)?;
        for _ in 0..MAX_LINKS {
            if let Some(path) = self.files.get(&key) {
                return Ok(path);
            }
            key = self.links.get(&key).ok_or_else(missing)?.clone();
        }
        Err(missing())
    }

    fn document(&self, name: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(self.path(name)?).step(|| format!("opening {name}"))?;
        file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).step(|| format!("reading {name}"))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(Error::invalid(format!("{name} is longer than {MAX_DOCUMENT} bytes")));
        }
        Ok(bytes)
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        serde_json::from_slice(&self.document(name)?).map_err(|e| Error::invalid(format!("{name}: {e}")))
    }

    /// A blob of an OCI layout, verified.
    fn blob(&self, digest: Digest) -> Result<Vec<u8>> {
        let name = blob_name(digest);
        let bytes = self.document(&name)?;
        match Digest::of(&bytes) {
            found if found == digest => Ok(bytes),
            found => Err(Error::invalid(format!("{name} has digest {found}"))),
        }
    }

    /// OCI's form first: an archive that has both tells more in it.
    fn images(&self, host: &Platform) -> Result<Vec<Found>> {
        if self.path("index.json").is_ok() && self.path("oci-layout").is_ok() {
            return self.oci(host);
        }
        if self.path("manifest.json").is_ok() {
            return self.docker();
        }
        Err(Error::invalid(
            "it is no image archive: it has neither index.json with oci-layout nor manifest.json",
        ))
    }

    fn docker(&self) -> Result<Vec<Found>> {
        let images: Vec<DockerImage> = self.json("manifest.json")?;
        let found = |image: DockerImage| {
            let config = self.document(&image.config)?;
            let layers = image.layers.iter().map(|name| self.path(name).map(Path::to_owned));
            Ok(Found {
                id: Digest::of(&config),
                config,
                digest: None,
                layers: layers.collect::<Result<_>>()?,
                names: image.repo_tags.unwrap_or_default(),
            })
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
            found.push(Found { config: self.blob(config)?, id: config, digest: Some(digest), layers, names });
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
    ) -> Result<Option<(Digest, Vec<PathBuf>)>> {
        let parsed = Manifest::parse(&self.blob(digest)?, "").step(|| blob_name(digest))?;
        let entries = match parsed {
            Manifest::Image { config, layers } => {
                layers.iter().try_for_each(Descriptor::check_layer)?;
                let layers =
                    layers.iter().map(|layer| self.path(&blob_name(layer.digest)).map(Path::to_owned));
                return Ok(Some((config.digest, layers.collect::<Result<_>>()?)));
            }
            Manifest::Index(_) if depth >= MAX_LINKS => return Ok(None),
            Manifest::Index(entries) => entries,
        };
        for entry in manifest::choose(&entries, host) {
            if let Some(found) = self.resolve(entry.digest, host, depth + 1)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The specification's annotation may be nothing but a tag.
fn is_tag_only(name: &str) -> bool {
    !name.contains(['/', ':', '@'])
}

fn unreadable(error: io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(ours) => ours.clone(),
        None => Error::invalid(format!("reading the archive: {error}")),
    }
}

/// Components joined by slashes, `..` resolved; None where it leads out.
fn clean(path: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert_eq!(clean(b"./a//b/../c").unwrap(), b"a/c");
        assert_eq!(clean(b"a/../../x"), None);
        assert_eq!(clean(b"").unwrap(), b"");
    }
}
