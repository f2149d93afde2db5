//! The registry client: OCI distribution API (Docker Registry HTTP API V2), reading only.
//!
//! A [`Session`] is one pull's view of one repository, on every host that may have it. Each has
//! connections and credentials of its own, so that nothing authenticated for one pull serves
//! another.

mod auth;
mod auth_file;
mod blob;
mod challenge;
mod client;
mod dns;
mod endpoint;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod host;
mod hosts_toml;
mod registries_conf;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use auth::Credential;
pub use auth::fingerprint;
pub use blob::Served;
use client::Clients;
use endpoint::{Endpoint, Root};
pub use endpoint::{Proxy, Settings};
use host::Host;
use reqwest::Url;

use super::Auth;
use super::digest::Digest;
use super::reference::Reference;
use crate::error::Kind;
use crate::{Error, Result};

/// Rounds over all hosts that may still have an answer.
const MAX_ATTEMPTS: u32 = 4;
const FIRST_DELAY: Duration = Duration::from_millis(250);

/// What all pulls share.
#[derive(Clone)]
pub struct Registries {
    settings: Arc<Settings>,
    conf: Arc<registries_conf::Files>,
    resolver: dns::Resolver,
    tokens: Arc<auth::Tokens>,
    /// The root URL that answered, where the scheme had to be found out.
    roots: Arc<Mutex<HashMap<String, Url>>>,
}

/// One repository, on the hosts that may have it, in the order in which they are asked.
pub struct Session {
    registries: Registries,
    /// As in the reference.
    registry: String,
    repository: String,
    hosts: Vec<Host>,
}

/// A request to the repository.
struct Ask<'a> {
    /// Below `/v2/REPOSITORY/`.
    path: &'a str,
    /// For error messages: "the manifest x".
    what: &'a str,
    accept: &'a str,
    /// The first byte wanted.
    offset: u64,
    /// It asks what a tag means.
    resolves: bool,
}

impl Registries {
    pub fn new(settings: Settings) -> Self {
        Self {
            conf: Arc::new(registries_conf::Files::new(settings.registries_conf.clone())),
            settings: Arc::new(settings),
            resolver: dns::Resolver::default(),
            tokens: Arc::default(),
            roots: Arc::default(),
        }
    }

    /// What a name without a registry's host may mean; empty where nothing is said about it.
    pub fn full_names(&self, text: &str) -> Result<Vec<String>> {
        Ok(self.conf.read()?.full_names(text))
    }

    /// Reads what files say about the image's registry now.
    pub async fn session(&self, reference: &Reference, auth: &Auth) -> Result<Session> {
        let mut hosts = Vec::new();
        for endpoint in self.settings.endpoints(reference, &*self.conf.read()?)? {
            let credential = self.credential(reference, auth, &endpoint).await?;
            let clients = Clients::new(&self.settings, &self.resolver, &endpoint);
            hosts.push(Host::new(endpoint, credential, clients));
        }
        Ok(Session {
            registries: self.clone(),
            registry: reference.host.clone(),
            repository: reference.repository.clone(),
            hosts,
        })
    }

    /// The pull's own credential goes to the image's own registry, or to the host that it names;
    /// every other host gets what the node's files have for it.
    async fn credential(
        &self,
        reference: &Reference,
        auth: &Auth,
        endpoint: &Endpoint,
    ) -> Result<Credential> {
        let host = if endpoint.own { reference.host.clone() } else { endpoint.root.host() };
        if *auth != Auth::default() && (endpoint.own || !auth.server_address.is_empty()) {
            let credential = Credential::of(auth, &host)?;
            if !credential.is_anonymous() {
                return Ok(credential);
            }
        }
        let found = auth_file::find(&self.settings.auth_files, &host, &endpoint.repository).await?;
        found.map_or(Ok(Credential::Anonymous), |auth| Credential::of(&auth, &host))
    }

    fn root(&self, of: &Root) -> Option<Url> {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).get(&of.host()).cloned()
    }

    fn remember_root(&self, of: &Root, url: &Url) {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).insert(of.host(), url.clone());
    }

    /// A host that does not answer may have begun to speak the other scheme.
    fn forget_root(&self, of: &Root) {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).remove(&of.host());
    }
}

impl Session {
    /// The same for a foreign layer at these URLs; None without one.
    pub fn elsewhere(&self, urls: &[String]) -> Result<Option<Self>> {
        let Registries { settings, resolver, .. } = &self.registries;
        let mut hosts = Vec::new();
        for url in urls {
            let endpoint = settings.foreign(url)?;
            let clients = Clients::new(settings, resolver, &endpoint);
            hosts.push(Host::new(endpoint, Credential::Anonymous, clients));
        }
        let (registry, repository) = (self.registry.clone(), self.repository.clone());
        let session = Self { registries: self.registries.clone(), registry, repository, hosts };
        Ok((!urls.is_empty()).then_some(session))
    }

    /// A manifest or index by tag or digest, which is verified: its bytes and media type.
    pub async fn manifest(&self, version: &str, accept: &str, limit: usize) -> Result<(Vec<u8>, String)> {
        let what = format!("manifest {version}");
        let path = format!("manifests/{version}");
        let resolves = !version.contains(':');
        let ask = Ask { path: &path, what: &what, accept, offset: 0, resolves };
        let wanted = Digest::parse(version).ok();
        self.read(&ask, limit, |bytes| wanted.map_or(Ok(()), |wanted| right(wanted, Digest::of(bytes)))).await
    }

    /// A blob that is small enough for memory, verified.
    pub async fn small_blob(&self, digest: Digest, size: u64, limit: usize) -> Result<Vec<u8>> {
        let what = format!("blob {digest}");
        if size > limit as u64 {
            return Err(self.failed(&what, Error::invalid(format!("{size} bytes are too many"))));
        }
        let path = format!("blobs/{digest}");
        let ask = Ask { path: &path, what: &what, accept: "*/*", offset: 0, resolves: false };
        let whole = |body: &[u8]| {
            if body.len() as u64 != size {
                let got = format!("it has {} bytes and digest {}", body.len(), Digest::of(body));
                return Err(Error::wrong_bytes(format!("{got}, not {size} bytes")));
            }
            right(digest, Digest::of(body))
        };
        Ok(self.read(&ask, limit, whole).await?.0)
    }

    /// Names the registry, the repository and what was wanted of it.
    pub fn failed(&self, what: &str, error: Error) -> Error {
        error.during(format!("registry {}, repository {}, {what}", self.registry, self.repository))
    }

    /// A small body and its media type: from the first host that has the right one, in rounds over those
    /// whose error may pass.
    async fn read(
        &self,
        ask: &Ask<'_>,
        limit: usize,
        verify: impl Fn(&[u8]) -> Result<()>,
    ) -> Result<(Vec<u8>, String)> {
        let mut failures = Failures::new(self, ask.resolves);
        let mut delay = FIRST_DELAY;
        for attempt in 1..=MAX_ATTEMPTS {
            for at in failures.open() {
                let answer = self.hosts[at].read(&self.registries, ask, limit).await;
                match answer.and_then(|answer| verify(&answer.0).map(|()| answer)) {
                    Ok(answer) => return Ok(answer),
                    Err(error) => failures.add(at, error),
                }
            }
            let open = failures.open();
            let Some(pause) = open.iter().map(|at| self.hosts[*at].pause()).min() else { break };
            if attempt < MAX_ATTEMPTS {
                tokio::time::sleep(jitter(delay).max(pause)).await;
                delay *= 2;
            }
        }
        Err(self.failed(ask.what, failures.error()))
    }
}

/// What each host of a session has said about one thing that was asked for.
struct Failures<'a> {
    session: &'a Session,
    /// Hosts that are asked for such things, and their last errors.
    hosts: Vec<(usize, Option<Error>)>,
}

impl<'a> Failures<'a> {
    fn new(session: &'a Session, resolves: bool) -> Self {
        let may = |host: &Host| if resolves { host.endpoint.resolve } else { host.endpoint.pull };
        let hosts = session.hosts.iter().enumerate().filter(|(_, host)| may(host));
        Self { session, hosts: hosts.map(|(at, _)| (at, None)).collect() }
    }

    fn leave_out(&mut self, hosts: &[usize]) {
        self.hosts.retain(|(at, _)| !hosts.contains(at));
    }

    /// Those worth asking (again): first whoever failed least in this session.
    fn open(&self) -> Vec<usize> {
        let may_pass = |error: &Option<Error>| error.as_ref().is_none_or(|e| e.kind == Kind::Unavailable);
        let mut open: Vec<_> = self.hosts.iter().filter(|(_, e)| may_pass(e)).map(|(at, _)| *at).collect();
        open.sort_by_key(|at| self.session.hosts[*at].failures());
        open
    }

    fn add(&mut self, at: usize, error: Error) {
        let host = &self.session.hosts[at];
        if error.kind == Kind::Unavailable {
            host.failed();
        }
        tracing::debug!(host = host.name(), %error, "asking a registry failed");
        if let Some((_, last)) = self.hosts.iter_mut().find(|(host, _)| *host == at) {
            *last = Some(error);
        }
    }

    /// The last host's error, after what the others said.
    fn error(self) -> Error {
        let Self { session, hosts } = self;
        let several = hosts.len() > 1;
        let mut errors: Vec<_> = hosts
            .into_iter()
            .filter_map(|(at, error)| {
                let error = error?;
                Some(if several { error.during(session.hosts[at].name()) } else { error })
            })
            .collect();
        let Some(last) = errors.pop() else {
            return Error::precondition("hosts.toml leaves no host that may be asked for it");
        };
        let words = errors.iter().map(|e| e.message.as_str()).chain([last.message.as_str()]);
        Error::new(last.kind, words.collect::<Vec<_>>().join("; "))
    }
}

fn right(wanted: Digest, found: Digest) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(Error::wrong_bytes(format!("its digest is {found}: not what was asked for")))
}

/// Between one half and all of `delay`, so that many clients do not come back at once.
fn jitter(delay: Duration) -> Duration {
    let mut random = [0_u8; 2];
    let share =
        getrandom::fill(&mut random).map_or(1.0, |()| f64::from(u16::from_le_bytes(random)) / 65535.0);
    delay.mul_f64(0.5 + share / 2.0)
}
