//! Images: references, registries, layers, the store.

mod digest;
mod layer;
mod manifest;
mod pull;
mod reference;
mod registry;
mod store;
#[cfg(test)]
mod tests;
mod unpack;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;

use self::digest::Digest;
use self::pull::Puller;
use self::reference::{Query, Reference};
use self::registry::Registries;
pub use self::registry::{Proxy, Settings};
use self::store::Store;
pub use self::unpack::Limits;
use crate::{Error, Result};

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

#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Of the store.
    pub root: PathBuf,
    pub registries: Settings,
    /// Of one layer.
    pub limits: Limits,
    /// Images that are never to be collected: names with `*` for any characters.
    pub pinned: Vec<String>,
}

/// The image service. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    store: Arc<Store>,
    puller: Arc<Puller>,
    runtime: tokio::runtime::Handle,
}

impl Images {
    /// Opens the store and frees, in the background, what an interrupted pull or removal left.
    /// FAILED_PRECONDITION where the store is damaged or in use by another daemon.
    pub async fn open(config: Config) -> Result<Self> {
        let root = config.root.clone();
        let (store, leftovers) = blocking(move || {
            let store = Store::open(&root)?;
            let leftovers = store.leftovers()?;
            Ok((Arc::new(store), leftovers))
        })
        .await?;
        store.catalog_mut().pin_patterns(config.pinned);
        let puller = Puller::new(Arc::clone(&store), Registries::new(config.registries), config.limits);
        let background = Arc::clone(&store);
        tokio::task::spawn_blocking(move || background.delete_leftovers(leftovers));
        Ok(Self { store, puller, runtime: tokio::runtime::Handle::current() })
    }

    /// All images, or the one that `reference` (name, digest, or ID) means.
    pub fn list(&self, reference: Option<&str>) -> Result<Vec<Image>> {
        match reference {
            None => Ok(self.store.catalog().images()),
            Some(text) => {
                let id = self.find(text)?;
                let catalog = self.store.catalog();
                Ok(id.and_then(|id| catalog.image(id)).into_iter().collect())
            }
        }
    }

    /// None: no such image (BEHAVIOUR 2).
    pub fn status(&self, reference: &str) -> Result<Option<Resolved>> {
        let id = self.find(reference)?;
        id.map_or(Ok(None), |id| self.resolved(id))
    }

    /// Returns the image's ID (BEHAVIOUR 5). The pull goes on when the caller goes away.
    pub async fn pull(&self, reference: &str, auth: Auth) -> Result<String> {
        let mut last = None;
        for reference in self.meanings(reference)? {
            match self.puller.pull(reference, auth.clone()).await {
                Err(error) => last = Some(error),
                Ok(id) => return Ok(id),
            }
        }
        Err(last.unwrap_or_else(|| Error::invalid(format!("image reference {reference:?} means nothing"))))
    }

    /// What a pull of `text` asks for, in order: more than one where the node's registries.conf
    /// says where short names are searched.
    fn meanings(&self, text: &str) -> Result<Vec<Reference>> {
        let parse = |text: &str| Reference::parse(text.as_bytes());
        let names = match reference::is_short(text) {
            true => self.puller.full_names(text)?,
            false => Vec::new(),
        };
        match names.is_empty() {
            true => Ok(vec![parse(text)?]),
            false => names.iter().map(|name| parse(name)).collect(),
        }
    }

    fn find(&self, text: &str) -> Result<Option<Digest>> {
        let query = Query::parse(text);
        let meanings =
            if reference::is_short(text) { self.meanings(text).unwrap_or_default() } else { Vec::new() };
        let catalog = self.store.catalog();
        for name in meanings {
            if let Some(id) = catalog.find(&Query { name: Some(name), id_prefix: None })? {
                return Ok(Some(id));
            }
        }
        catalog.find(&query)
    }

    /// Drops all names of the image; layers go when no image and no container uses them.
    pub async fn remove(&self, reference: &str) -> Result<()> {
        let Some(id) = self.find(reference)? else { return Ok(()) };
        let store = Arc::clone(&self.store);
        blocking(move || store.unname(id)).await?;
        self.sweep();
        Ok(())
    }

    /// What the store uses, from counters: cheap.
    pub fn usage(&self) -> Usage {
        self.store.catalog().usage()
    }

    /// The image's layers stay while `holder` (a container ID) holds it, also over a restart of
    /// the daemon. An image that was removed can be held as long as others hold it. NOT_FOUND
    /// without it.
    pub fn hold(&self, image_id: &str, holder: &str) -> Result<Resolved> {
        let not_found = || Error::not_found(format!("image {image_id} is not here"));
        let id = Digest::parse(image_id)?;
        self.store.hold(id, holder)?;
        self.resolved(id)?.ok_or_else(not_found)
    }

    pub fn release(&self, holder: &str) {
        if self.store.release(holder) {
            self.sweep();
        }
    }

    /// Releases every holder that is not among `living`: containers that went while no daemon ran.
    pub fn retain_holders(&self, living: &HashSet<String>) {
        let holders = self.store.catalog().holders();
        holders.iter().filter(|holder| !living.contains(*holder)).for_each(|holder| self.release(holder));
    }

    fn resolved(&self, id: Digest) -> Result<Option<Resolved>> {
        let (image, stack) = {
            let catalog = self.store.catalog();
            let Some(image) = catalog.image(id) else { return Ok(None) };
            (image, catalog.stack(id).unwrap_or_default())
        };
        let config =
            pull::parse_config(&self.store.config(id)?).map_err(|e| e.during(format!("image {id}")))?;
        Ok(Some(Resolved { image, config, layers: self.store.lower_directories(&stack) }))
    }

    /// Frees what nothing uses any more, in the background.
    fn sweep(&self) {
        let store = Arc::clone(&self.store);
        self.runtime.spawn_blocking(move || store.sweep_logged());
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let result = tokio::task::spawn_blocking(work).await;
    result.unwrap_or_else(|e| Err(Error::internal(format!("a task of the image store ended: {e}"))))
}
