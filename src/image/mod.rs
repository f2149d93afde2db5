//! Images: references, registries, layers, the store.

mod digest;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod import;
mod inflate;
mod layer;
mod manifest;
mod progress;
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
pub use self::import::Imported;
pub use self::progress::{LayerStatus, PullStatus};
use self::pull::Puller;
use self::reference::{Query, Reference};
use self::registry::Registries;
pub use self::registry::{Proxy, Settings};
use self::store::Store;
pub use self::store::check::{Fault, Report, offline as check_offline};
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
    /// An empty directory that is not among them.
    pub bottom: PathBuf,
}

impl Resolved {
    /// The layers of a stack without a writable one, of which overlay wants two at least.
    pub fn volume_layers(&self) -> Vec<PathBuf> {
        let mut layers = self.layers.clone();
        layers.push(self.bottom.clone());
        layers
    }
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
            store.withdraw_missing()?;
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

    /// Pulls under way.
    pub fn pulling(&self) -> Vec<PullStatus> {
        self.puller.list()
    }

    /// Takes in every image of an archive. `name` is for one that the archive does not name.
    pub async fn import(
        &self,
        archive: Box<dyn std::io::Read + Send>,
        name: Option<String>,
    ) -> Result<Vec<Imported>> {
        let imported = self.puller.import(archive, name).await;
        self.puller.give_memory_back();
        imported
    }

    /// Compares the store with what it should hold; `repair` withdraws what is wrong.
    pub async fn check(&self, repair: bool) -> Result<Report> {
        let store = Arc::clone(&self.store);
        let report = blocking(move || store.check(repair)).await?;
        if repair {
            self.sweep();
        }
        Ok(report)
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

    /// The same for an image that the container has as its volume number `volume`.
    pub fn hold_volume(&self, image_id: &str, container: &str, volume: usize) -> Result<Resolved> {
        self.hold(image_id, &format!("{container}.{volume}"))
    }

    /// Releases the container's image and those of its volumes.
    pub fn release(&self, holder: &str) {
        let volumes = self.store.catalog().volume_holders(holder);
        let mut free = self.store.release(holder);
        for volume in volumes {
            free |= self.store.release(&volume);
        }
        if free {
            self.sweep();
        }
    }

    /// Releases every holder that is not among `living`: containers that went while no daemon ran.
    pub fn retain_holders(&self, living: &HashSet<String>) {
        let container = |holder: &String| holder.split('.').next().unwrap_or_default().to_owned();
        let holders: HashSet<_> = self.store.catalog().holders().iter().map(container).collect();
        holders.difference(living).for_each(|holder| self.release(holder));
    }

    fn resolved(&self, id: Digest) -> Result<Option<Resolved>> {
        let (image, stack) = {
            let catalog = self.store.catalog();
            let Some(image) = catalog.image(id) else { return Ok(None) };
            let stack = catalog.stack(id);
            (image, stack.ok_or_else(|| Error::internal(format!("image {id} lacks a layer")))?)
        };
        let config = match self.store.config(id) {
            Ok(config) => config,
            // It was removed this moment.
            Err(_) if self.store.catalog().image(id).is_none() => return Ok(None),
            Err(error) => return Err(error),
        };
        let config = pull::parse_config(&config).map_err(|e| e.during(format!("image {id}")))?;
        Ok(Some(Resolved {
            image,
            config,
            layers: self.store.lower_directories(&stack),
            bottom: self.store.bottom(),
        }))
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
