//! Images: references, registries, layers, the store.

use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;

use crate::Result;

/// Credentials of one pull (the CRI's AuthConfig). Debug must not show them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Auth {
    pub username: String,
    pub password: String,
    pub auth: String,
    pub server_address: String,
    pub identity_token: String,
    pub registry_token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

/// An image, as the CRI shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// `sha256:…` of the config.
    pub id: String,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    /// Bytes on disk, unpacked.
    pub size: u64,
    /// The config's User: a number, or a name.
    pub uid: Option<i64>,
    pub username: String,
    pub pinned: bool,
}

/// What a container needs of an image.
#[derive(Debug, Clone)]
pub struct Resolved {
    pub image: Image,
    pub config: ImageConfiguration,
    /// Directories for overlay, the topmost layer first.
    pub layers: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

#[derive(Debug, Clone)]
pub struct Config {
    /// Of the store.
    pub root: PathBuf,
    /// Registries (HOST or HOST:PORT) that may be plain HTTP; loopback always may.
    pub insecure_registries: Vec<String>,
}

/// The image service. Cheap to clone.
#[derive(Clone)]
pub struct Images {}

impl Images {
    pub async fn open(_config: Config) -> Result<Self> {
        todo!()
    }

    /// All images, or the one that `reference` (name, digest, or ID) means.
    pub fn list(&self, _reference: Option<&str>) -> Result<Vec<Image>> {
        todo!()
    }

    /// None: no such image (BEHAVIOUR 2).
    pub fn status(&self, _reference: &str) -> Result<Option<Resolved>> {
        todo!()
    }

    /// Returns the image's ID (BEHAVIOUR 5).
    pub async fn pull(&self, _reference: &str, _auth: Auth) -> Result<String> {
        todo!()
    }

    /// Drops all names of the image; layers go when no image and no container uses them.
    pub async fn remove(&self, _reference: &str) -> Result<()> {
        todo!()
    }

    /// What the store uses, from counters: cheap.
    pub fn usage(&self) -> Usage {
        todo!()
    }

    /// The image's layers stay while `holder` (a container ID) holds it. NOT_FOUND without it.
    pub fn hold(&self, _image_id: &str, _holder: &str) -> Result<Resolved> {
        todo!()
    }

    pub fn release(&self, _holder: &str) {
        todo!()
    }
}
