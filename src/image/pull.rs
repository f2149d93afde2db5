//! PullImage: manifest → config → layers → commit.
//!
//! A pull runs in a task of its own: who asks for it waits, and may go away. Whoever asks for the
//! same reference with the same credential meanwhile joins. Layers are shared among all pulls by
//! diff ID.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use oci_spec::image::ImageConfiguration;
use tokio::sync::Semaphore;

use super::Auth;
use super::digest::Digest;
use super::layer;
use super::manifest::{self, Descriptor, Manifest, Platform};
use super::progress::{Progress, PullStatus, Watched};
use super::reference::{Reference, Version};
use super::registry::{Registries, Session, fingerprint};
use super::store::{NewImage, Store};
use super::unpack::Limits;
use crate::error::Kind;
use crate::flight::Flights;
use crate::{Error, Result, sys};

const MAX_CONFIG: usize = 8 << 20;
/// Indexes inside indexes, and manifests fetched until one fits.
const MAX_NESTING: usize = 4;
const MAX_MANIFESTS: usize = 16;
/// Layers on their way at once, over all pulls: each has three threads, a connection and some 2 MiB.
const MAX_LAYERS: usize = 12;
/// Commits tried of one pull: where a repair withdraws a layer under its hands.
const MAX_COMMITS: usize = 3;
/// How often a long pull says in the log how far it is.
const TELL: Duration = Duration::from_secs(30);
/// The layers of a failed pull stay this long for the next attempt.
const GRACE: Duration = Duration::from_secs(600);
/// How long the memory of pulls is kept for the next one.
const REUSE: Duration = Duration::from_secs(1);

pub struct Puller {
    pub(super) store: Arc<Store>,
    registries: Registries,
    pub(super) limits: Limits,
    pub(super) progress: Progress,
    pub(super) host: Platform,
    /// By reference and credential.
    pulls: Flights<(Reference, Digest), String>,
    /// By diff ID.
    pub(super) layers: Flights<Digest, ()>,
    slots: Semaphore,
    giving_back: AtomicBool,
}

/// The image that a reference means on this host.
struct Found {
    /// Of what the registry has under the reference: perhaps an index.
    digest: Digest,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// Layers that a pull needs: they stay until it has ended, however it ends.
pub(super) struct Pins {
    store: Arc<Store>,
    diff_ids: Vec<Digest>,
}

impl Pins {
    pub fn new(store: &Arc<Store>) -> Self {
        Self { store: Arc::clone(store), diff_ids: Vec::new() }
    }

    pub fn add(&mut self, diff_ids: &[Digest]) {
        let mut catalog = self.store.catalog_mut();
        diff_ids.iter().for_each(|diff_id| catalog.pin(*diff_id));
        self.diff_ids.extend_from_slice(diff_ids);
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut catalog = self.store.catalog_mut();
        self.diff_ids.drain(..).for_each(|diff_id| catalog.unpin(diff_id));
    }
}

impl Puller {
    pub fn new(store: Arc<Store>, registries: Registries, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            store,
            registries,
            limits,
            progress: Progress::default(),
            host: Platform::host(),
            pulls: Flights::default(),
            layers: Flights::default(),
            slots: Semaphore::new(MAX_LAYERS),
            giving_back: AtomicBool::new(false),
        })
    }

    /// What a name without a registry's host may mean; empty where nothing is said about it.
    pub fn full_names(&self, text: &str) -> Result<Vec<String>> {
        self.registries.full_names(text)
    }

    /// Pulls, or joins the pull that is running. Returns the image's ID.
    pub async fn pull(self: &Arc<Self>, reference: Reference, auth: Auth) -> Result<String> {
        let this = Arc::clone(self);
        let key = (reference.clone(), fingerprint(&auth));
        self.pulls.join(key, move || async move { this.run(&reference, &auth).await }).await
    }

    async fn run(self: &Arc<Self>, reference: &Reference, auth: &Auth) -> Result<String> {
        let started = Instant::now();
        let session = Arc::new(self.registries.session(reference, auth).await?);
        let mut pins = Pins::new(&self.store);
        let watched = self.progress.begin(&reference.to_string());
        let result = tokio::select! {
            result = self.fetch(reference, &session, &mut pins, &watched) => result,
            never = self.tell_now_and_then(reference, TELL) => never,
        };
        drop((pins, watched));
        self.give_memory_back();
        if result.is_err() {
            let store = Arc::clone(&self.store);
            tokio::spawn(async move {
                tokio::time::sleep(GRACE).await;
                let _ = tokio::task::spawn_blocking(move || store.sweep_logged()).await;
            });
        }
        let id = result.map_err(|e| e.during(format!("pulling image {reference}")))?;
        let seconds = started.elapsed().as_secs_f32();
        tracing::info!(image = %reference, id = %id, seconds, "image pulled");
        Ok(id.to_string())
    }

    /// What unpacking took is of no use to anybody else.
    pub(super) fn give_memory_back(self: &Arc<Self>) {
        if self.giving_back.swap(true, Ordering::Relaxed) {
            return;
        }
        let this = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(REUSE).await;
            let Some(this) = this.upgrade() else { return };
            this.giving_back.store(false, Ordering::Relaxed);
            // Who pulls now does it afterwards.
            if this.progress.is_idle() {
                let _ = tokio::task::spawn_blocking(sys::heap::give_back).await;
                sys::text::unmap();
            }
        });
    }

    /// Long pulls leave a trace in the log.
    async fn tell_now_and_then(&self, reference: &Reference, every: Duration) -> Result<Digest> {
        let name = reference.to_string();
        loop {
            tokio::time::sleep(every).await;
            for pull in self.list().iter().filter(|pull| pull.reference == name) {
                let (fetched, of) = pull.total();
                tracing::info!(image = name, fetched, of, seconds = pull.running.as_secs(), "pulling");
            }
        }
    }

    /// Pulls under way.
    pub fn list(&self) -> Vec<PullStatus> {
        self.progress.list(|diff_id| self.store.catalog().has_layer(diff_id))
    }

    /// A pull that cannot fit ends before it begins: unpacked, layers are rarely smaller than they
    /// come over the wire. RESOURCE_EXHAUSTED says what is missing.
    fn check_headroom(&self, layers: &[Descriptor], diff_ids: &[Digest]) -> Result<()> {
        let missing = {
            let catalog = self.store.catalog();
            let missing = layers.iter().zip(diff_ids).filter(|(_, diff_id)| !catalog.has_layer(**diff_id));
            missing.map(|(layer, _)| (layer.digest, layer.size)).collect::<HashMap<_, _>>()
        };
        let needed = missing.values().fold(0_u64, |sum, size| sum.saturating_add(*size));
        let free = self.store.free_bytes()?;
        if needed <= free {
            return Ok(());
        }
        let short = needed - free;
        Err(Error::new(
            Kind::ResourceExhausted,
            format!(
                "it needs {needed} bytes at least, {free} are free in the image store: {short} are missing"
            ),
        ))
    }

    async fn fetch(
        self: &Arc<Self>,
        reference: &Reference,
        session: &Arc<Session>,
        pins: &mut Pins,
        watched: &Watched<'_>,
    ) -> Result<Digest> {
        let found = self.resolve(reference, session).await?;
        let id = found.config.digest;
        let bytes = session.small_blob(id, found.config.size, MAX_CONFIG).await?;
        let what = format!("config {id}");
        let config = parse_config(&bytes).map_err(|e| session.failed(&what, e))?;
        let diff_ids = diff_ids(&config, found.layers.len()).map_err(|e| session.failed(&what, e))?;
        pins.add(&diff_ids);
        let blobs = found.layers.iter().zip(&diff_ids);
        watched.layers(blobs.map(|(layer, diff_id)| (layer.digest, layer.size, *diff_id)).collect());
        self.check_headroom(&found.layers, &diff_ids)?;
        let user = config.config().as_ref().and_then(|c| c.user().clone()).unwrap_or_default();
        let tag = match &reference.version {
            Version::Tag(_) => Some(reference.to_string()),
            Version::Digest(_) => None,
        };
        let digest = Some(format!("{}@{}", reference.name(), found.digest));
        let new = NewImage { id, tag, digest, layers: once_each(diff_ids.clone()), user };
        let mut attempt = 1;
        loop {
            let pairs = diff_ids.iter().zip(&found.layers);
            let fetches = pairs.map(|(id, layer)| self.layer(Arc::clone(session), layer.clone(), *id));
            futures_util::future::try_join_all(fetches).await?;
            match self.commit(new.clone(), bytes.clone()).await {
                // A repair has withdrawn one meanwhile: it is fetched anew.
                Err(error) if error.kind == Kind::Unavailable && attempt < MAX_COMMITS => attempt += 1,
                ended => return ended.map(|()| id),
            }
        }
    }

    pub(super) async fn commit(&self, new: NewImage, config: Vec<u8>) -> Result<()> {
        if self.store.catalog().is_named(&new) {
            return Ok(());
        }
        let store = Arc::clone(&self.store);
        let commit = tokio::task::spawn_blocking(move || store.commit(new, config)).await;
        commit.unwrap_or_else(|e| Err(Error::internal(format!("the commit ended: {e}"))))
    }

    /// Follows the reference to an image for this host's platform; the session verifies every document.
    async fn resolve(&self, reference: &Reference, session: &Session) -> Result<Found> {
        let version = match &reference.version {
            Version::Tag(tag) => tag.clone(),
            Version::Digest(digest) => digest.to_string(),
        };
        let (bytes, content_type) =
            session.manifest(&version, manifest::ACCEPT, manifest::MAX_MANIFEST).await?;
        let top = Digest::of(&bytes);
        let parse = |bytes: &[u8], kind: &str, version: &str| {
            Manifest::parse(bytes, kind).map_err(|e| session.failed(&format!("manifest {version}"), e))
        };
        // Depth first, the best entry first.
        let mut open = vec![(0, parse(&bytes, &content_type, &version)?)];
        let mut waiting: Vec<(usize, Descriptor)> = Vec::new();
        let mut fetched = 1;
        loop {
            match open.pop() {
                Some((_, Manifest::Image { config, layers })) => {
                    return Ok(Found { digest: top, config, layers });
                }
                Some((depth, Manifest::Index(entries))) => {
                    let entries = manifest::choose(&entries, &self.host).into_iter();
                    waiting.extend(
                        entries.rev().filter(|_| depth < MAX_NESTING).map(|entry| (depth + 1, entry)),
                    );
                }
                None => {
                    let next = waiting.pop().filter(|_| fetched < MAX_MANIFESTS);
                    let Some((depth, entry)) = next else { return Err(self.no_platform(session, &version)) };
                    fetched += 1;
                    let version = entry.digest.to_string();
                    let limit = manifest::MAX_MANIFEST;
                    let (bytes, kind) = session.manifest(&version, manifest::ACCEPT, limit).await?;
                    open.push((depth, parse(&bytes, &kind, &version)?));
                }
            }
        }
    }

    fn no_platform(&self, session: &Session, version: &str) -> Error {
        let Platform { os, architecture, .. } = &self.host;
        let error = Error::not_found(format!("it has no image for {os}/{architecture}"));
        session.failed(&format!("index {version}"), error)
    }

    /// Sees to it that the layer, which is pinned, is staged or here.
    async fn layer(
        self: &Arc<Self>,
        session: Arc<Session>,
        layer: Descriptor,
        diff_id: Digest,
    ) -> Result<()> {
        loop {
            let mut mine = false;
            let flight = self.layers.join(diff_id, || {
                mine = true;
                Arc::clone(self).fetch_layer(Arc::clone(&session), layer.clone(), diff_id)
            });
            match flight.await {
                Err(error) if mine => return Err(error),
                // Another pull's credential or registry failed it; ours may do better.
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
        }
    }

    async fn fetch_layer(
        self: Arc<Self>,
        session: Arc<Session>,
        layer: Descriptor,
        diff_id: Digest,
    ) -> Result<()> {
        let slot = self.slots.acquire().await;
        let _slot = slot.map_err(|_| Error::internal("the image service is closing"))?;
        // It may have come here since this pull pinned it.
        if self.store.catalog().has_layer(diff_id) {
            return Ok(());
        }
        let fetching = self.progress.fetching(diff_id);
        layer::fetch((&session, &fetching.bytes), &layer, diff_id, Arc::clone(&self.store), self.limits).await
    }
}

/// Overlay refuses a directory twice; only the topmost can be seen anyway, since whatever the
/// lower one has the upper one has too.
pub fn once_each(diff_ids: Vec<Digest>) -> Vec<Digest> {
    let last = |at: usize| !diff_ids[at + 1..].contains(&diff_ids[at]);
    (0..diff_ids.len()).filter(|at| last(*at)).map(|at| diff_ids[at]).collect()
}

/// The diff IDs of an image with so many layers.
pub fn diff_ids(config: &ImageConfiguration, layers: usize) -> Result<Vec<Digest>> {
    let diff_ids = config.rootfs().diff_ids().iter().map(|d| Digest::parse(d)).collect::<Result<Vec<_>>>()?;
    match diff_ids.len() {
        count if count == layers => Ok(diff_ids),
        count => Err(Error::invalid(format!("it names {count} diff IDs, but the manifest {layers} layers"))),
    }
}

/// An image's config. Builders write null where they have nothing, and some leave out the os.
pub fn parse_config(bytes: &[u8]) -> Result<ImageConfiguration> {
    let wrong = |e: serde_json::Error| Error::invalid(format!("it is not an image's config: {e}"));
    let mut value: serde_json::Value = serde_json::from_slice(bytes).map_err(wrong)?;
    drop_nulls(&mut value);
    if let Some(object) = value.as_object_mut() {
        object.entry("os").or_insert_with(|| "linux".into());
        object.entry("architecture").or_insert_with(|| "".into());
    }
    serde_json::from_value(value).map_err(wrong)
}

fn drop_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(drop_nulls);
        }
        serde_json::Value::Array(array) => array.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_repeats_is_stacked_once() {
        let [a, b] = [Digest::of(b"a"), Digest::of(b"b")];
        assert_eq!(once_each(vec![a, b, a, a]), [b, a]);
        assert!(once_each(Vec::new()).is_empty());
    }

    #[tokio::test]
    async fn a_long_pull_tells_the_log_how_far_it_is() {
        let root = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(root.path()).unwrap());
        let puller = Puller::new(store, Registries::new(Default::default()), Limits::default());
        let reference = Reference::parse(b"a.b/c:d").unwrap();
        let (watched, blob) = (puller.progress.begin(&reference.to_string()), Digest::of(b"x"));
        let _other = puller.progress.begin("a.b/other:d");
        watched.layers(vec![(blob, 100, blob)]);
        let fetching = puller.progress.fetching(blob);
        fetching.bytes.store(40, std::sync::atomic::Ordering::Relaxed);
        let path = root.path().join("log");
        let log = Arc::new(std::fs::File::create(&path).unwrap());
        let subscriber = tracing_subscriber::fmt().with_writer(log).with_ansi(false).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let told = async {
            loop {
                let log = std::fs::read_to_string(&path).unwrap();
                if log.lines().count() >= 3 {
                    return log;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let log = tokio::select! {
            log = told => log,
            _ = puller.tell_now_and_then(&reference, Duration::from_millis(2)) => unreachable!(),
        };
        let line = |line: &str| {
            line.contains("pulling") && line.contains("a.b/c:d") && line.contains("fetched=40 of=100")
        };
        assert!(log.lines().all(line), "{log}");
    }

    #[test]
    fn configs_with_nulls_are_read() {
        let config = br#"{"config":{"Env":null,"Cmd":["sh"],"User":"1:2","Labels":null,"ExposedPorts":null},
            "architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]},"history":null,"container_config":{}}"#;
        let config = parse_config(config).unwrap();
        assert_eq!(config.config().as_ref().unwrap().user().as_deref(), Some("1:2"));
        assert!(parse_config(b"{}").is_err());
    }
}
