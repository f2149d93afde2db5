//! The registry client: OCI distribution API (Docker Registry HTTP API V2), reading only.
//!
//! A [`Session`] is one pull's view of one repository with one credential. Each has connections of
//! its own, so that nothing authenticated for one pull serves another.

mod auth;
mod blob;
mod challenge;
mod client;
mod dns;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use auth::Credential;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use reqwest::{Response, Url};

use self::client::{Clients, transport};
use super::Auth;
use super::digest::Digest;
use super::reference::Reference;
use crate::error::Kind;
use crate::{Error, Result};

const MAX_REDIRECTS: usize = 10;
const MAX_ATTEMPTS: u32 = 4;
const FIRST_DELAY: Duration = Duration::from_millis(250);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
const MAX_ERROR_BODY: usize = 16 << 10;

/// What all pulls share.
#[derive(Clone)]
pub struct Registries {
    clients: Clients,
    tokens: Arc<auth::Tokens>,
}

/// One repository, seen with one credential.
pub struct Session {
    registries: Registries,
    /// As in the reference.
    host: String,
    repository: String,
    credential: Credential,
    /// Where the API answered.
    base: Mutex<Option<Url>>,
    /// The Authorization header that was accepted last.
    accepted: Mutex<Option<HeaderValue>>,
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
}

impl Registries {
    pub fn new(insecure: &[String]) -> Self {
        Self { clients: Clients::new(insecure), tokens: Arc::default() }
    }

    pub fn session(&self, reference: &Reference, auth: &Auth) -> Result<Session> {
        let credential = Credential::of(auth, &reference.host)?;
        let accepted = match &credential {
            Credential::Registry(token) => auth::bearer(token),
            _ => None,
        };
        Ok(Session {
            registries: Registries { clients: self.clients.fresh(), tokens: Arc::clone(&self.tokens) },
            host: reference.host.clone(),
            repository: reference.repository.clone(),
            credential,
            base: Mutex::default(),
            accepted: Mutex::new(accepted),
        })
    }
}

impl Session {
    /// A manifest or index by tag or digest: its bytes and media type. The caller verifies them.
    pub async fn manifest(&self, version: &str, accept: &str, limit: usize) -> Result<(Vec<u8>, String)> {
        let what = format!("manifest {version}");
        let path = format!("manifests/{version}");
        let ask = Ask { path: &path, what: &what, accept, offset: 0 };
        self.read(&ask, limit).await
    }

    /// A blob that is small enough for memory, verified.
    pub async fn small_blob(&self, digest: Digest, size: u64, limit: usize) -> Result<Vec<u8>> {
        let what = format!("blob {digest}");
        if size > limit as u64 {
            return Err(self.failed(&what, Error::invalid(format!("{size} bytes are too many"))));
        }
        let path = format!("blobs/{digest}");
        let ask = Ask { path: &path, what: &what, accept: "*/*", offset: 0 };
        let (body, _) = self.read(&ask, limit).await?;
        if body.len() as u64 != size || Digest::of(&body) != digest {
            let got = format!("it has {} bytes and digest {}", body.len(), Digest::of(&body));
            return Err(self.failed(&what, Error::internal(format!("{got}, not {size} bytes"))));
        }
        Ok(body)
    }

    /// Names the registry, the repository and what was wanted of it.
    pub fn failed(&self, what: &str, error: Error) -> Error {
        error.during(format!("registry {}, repository {}, {what}", self.host, self.repository))
    }

    /// A small body and its media type, tried again while the error may pass.
    async fn read(&self, ask: &Ask<'_>, limit: usize) -> Result<(Vec<u8>, String)> {
        let mut delay = FIRST_DELAY;
        for _ in 1..MAX_ATTEMPTS {
            match self.read_once(ask, limit).await {
                Err(error) if error.kind == Kind::Unavailable => {}
                other => return other.map_err(|e| self.failed(ask.what, e)),
            }
            tokio::time::sleep(jitter(delay)).await;
            delay *= 2;
        }
        self.read_once(ask, limit).await.map_err(|e| self.failed(ask.what, e))
    }

    async fn read_once(&self, ask: &Ask<'_>, limit: usize) -> Result<(Vec<u8>, String)> {
        let response = self.send(ask).await?;
        let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
        Ok((small_body(response, limit).await?, kind))
    }

    /// Sends one request, answers a challenge, follows redirects. The answer is a success.
    async fn send(&self, ask: &Ask<'_>) -> Result<Response> {
        let mut url = self.base().await?.join(ask.path).map_err(|e| Error::internal(e.to_string()))?;
        let mut authorization = self.accepted();
        let mut at_home = true;
        let mut challenged = 0;
        for _ in 0..=MAX_REDIRECTS + 2 {
            let mut request = self.registries.clients.for_url(&url).await?.get(url.clone());
            request = request.header(ACCEPT, ask.accept);
            if ask.offset > 0 {
                request = request.header(RANGE, format!("bytes={}-", ask.offset));
            }
            if let Some(header) = authorization.clone().filter(|_| at_home) {
                request = request.header(AUTHORIZATION, header);
            }
            let response = request.send().await.map_err(transport)?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && at_home && challenged < 2 {
                // The second time a cached token had expired.
                let header = self.answer(&response, challenged > 0 || authorization.is_some()).await?;
                let Some(header) = header else { return Err(refusal(response).await) };
                challenged += 1;
                *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(header.clone());
                authorization = Some(header);
                continue;
            }
            if !is_redirect(status) {
                return Err(refusal(response).await);
            }
            let next = self.redirect(&url, &response)?;
            at_home = at_home && next.origin() == url.origin();
            url = next;
        }
        Err(Error::internal(format!(
            "{} was redirected too often, the last time to {}",
            ask.what,
            shown(&url)
        )))
    }

    fn accepted(&self) -> Option<HeaderValue> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The header that answers a 401, None where this credential cannot.
    async fn answer(&self, response: &Response, fresh: bool) -> Result<Option<HeaderValue>> {
        let lines = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<_> = lines.iter().flat_map(|line| challenge::parse(line.as_bytes())).collect();
        if let Some(bearer) = challenges.iter().find(|c| c.scheme == "bearer")
            && !matches!(self.credential, Credential::Registry(_))
        {
            let scope = format!("repository:{}:pull", self.repository);
            let ask = auth::AskToken { challenge: bearer, scope: &scope, host: &self.host, fresh };
            let Registries { clients, tokens } = &self.registries;
            let token = tokens.get(clients, &self.credential, ask).await?;
            return Ok(Some(token));
        }
        if challenges.iter().any(|c| c.scheme == "basic") {
            return Ok(auth::basic(&self.credential));
        }
        Ok(None)
    }

    fn redirect(&self, from: &Url, response: &Response) -> Result<Url> {
        let location = response.headers().get(LOCATION).and_then(|v| v.to_str().ok());
        let location = location.ok_or_else(|| Error::internal("a redirect without a location"))?;
        let to =
            from.join(location).map_err(|e| Error::internal(format!("a redirect to {location:?}: {e}")))?;
        let secure = to.scheme() == "https" || (to.scheme() == "http" && from.scheme() == "http");
        if !secure {
            return Err(Error::internal(format!("a redirect from {} to {}", from.scheme(), shown(&to))));
        }
        Ok(to)
    }

    /// `SCHEME://HOST/v2/REPOSITORY/`, the scheme found out once.
    async fn base(&self) -> Result<Url> {
        if let Some(url) = self.base.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(url);
        }
        let root = self.registries.clients.root(&self.host).await?;
        let url =
            root.join(&format!("v2/{}/", self.repository)).map_err(|e| Error::internal(e.to_string()))?;
        *self.base.lock().unwrap_or_else(PoisonError::into_inner) = Some(url.clone());
        Ok(url)
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// A URL for an error message: queries carry signatures.
fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

/// Reads a body that must not be longer than `limit` bytes.
pub async fn small_body(mut response: Response, limit: usize) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        if body.len() + chunk.len() > limit {
            return Err(Error::invalid(format!("the body is longer than {limit} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The error that a status says, with the registry's own words where it has some.
pub async fn refusal(mut response: Response) -> Error {
    let status = response.status();
    let kind = match status.as_u16() {
        401 | 403 => Kind::PermissionDenied,
        404 => Kind::NotFound,
        408 | 429 | 500..=599 => Kind::Unavailable,
        _ => Kind::Internal,
    };
    let after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk[..chunk.len().min(MAX_ERROR_BODY - body.len())]);
        if body.len() == MAX_ERROR_BODY {
            break;
        }
    }
    if let Some(seconds) = after.filter(|_| kind == Kind::Unavailable) {
        tokio::time::sleep(Duration::from_secs(seconds).min(MAX_RETRY_AFTER)).await;
    }
    let said = words(&body).map(|words| format!(": {words}")).unwrap_or_default();
    Error::new(kind, format!("the answer is {status}{said}"))
}

/// The messages of a distribution-spec error body: `{"errors":[{"code","message"}]}`.
fn words(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let errors = body.get("errors")?.as_array()?.iter();
    let text = |error: &serde_json::Value| {
        let field = |name| error.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        format!("{} ({})", field("message"), field("code"))
    };
    let words: Vec<String> = errors.take(3).map(text).collect();
    (!words.is_empty()).then(|| words.join("; ").chars().filter(|c| !c.is_control()).take(300).collect())
}

/// Between one half and all of `delay`, so that many clients do not come back at once.
fn jitter(delay: Duration) -> Duration {
    let mut random = [0_u8; 2];
    let share =
        getrandom::fill(&mut random).map_or(1.0, |()| f64::from(u16::from_le_bytes(random)) / 65535.0);
    delay.mul_f64(0.5 + share / 2.0)
}
