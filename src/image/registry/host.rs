//! One host that is asked for an image: authorisation, redirects, refusals.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use reqwest::{Response, Url};

use super::auth::{self, Credential};
use super::challenge;
use super::client::{Clients, transport};
use super::endpoint::{Endpoint, Root};
use super::{Ask, Registries};
use crate::error::Kind;
use crate::{Error, Result};

const MAX_REDIRECTS: usize = 10;
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
const MAX_ERROR_BODY: usize = 16 << 10;
const ERROR_BODY: Duration = Duration::from_secs(3);
/// A manifest, a config or a token that takes longer, however it trickles, is given up.
const SMALL_BODY: Duration = Duration::from_secs(120);

/// An endpoint with a credential, and what was found out about it.
pub struct Host {
    pub endpoint: Endpoint,
    credential: Credential,
    clients: Clients,
    /// `SCHEME://HOST/v2/REPOSITORY/`, once that is known.
    base: Mutex<Option<Url>>,
    /// The Authorization header that was accepted last.
    accepted: Mutex<Option<HeaderValue>>,
    /// Failures that may pass: others are asked before it.
    failures: AtomicU32,
    /// It asked not to be asked before.
    not_before: Mutex<Option<Instant>>,
}

impl Host {
    pub fn new(endpoint: Endpoint, credential: Credential, clients: Clients) -> Self {
        let accepted = match &credential {
            Credential::Registry(token) => auth::bearer(token),
            _ => None,
        };
        Self {
            endpoint,
            credential,
            clients,
            base: Mutex::default(),
            accepted: Mutex::new(accepted),
            failures: AtomicU32::new(0),
            not_before: Mutex::default(),
        }
    }

    /// For messages: `HOST[:PORT]`.
    pub fn name(&self) -> String {
        self.endpoint.root.host()
    }

    pub fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// How long it wants to be left alone.
    pub fn pause(&self) -> Duration {
        let until = *self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    /// A small body and its media type.
    pub async fn read(
        &self,
        registries: &Registries,
        ask: &Ask<'_>,
        limit: usize,
    ) -> Result<(Vec<u8>, String)> {
        let response = self.send(registries, ask).await?;
        let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
        Ok((small_body(response, limit).await?, kind))
    }

    /// Sends one request, answers a challenge, follows redirects. The answer is a success.
    pub async fn send(&self, registries: &Registries, ask: &Ask<'_>) -> Result<Response> {
        let mut url = self.url(registries, ask.path).await?;
        let mut authorization = self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut at_home = true;
        let mut challenged = 0;
        for _ in 0..=MAX_REDIRECTS + 2 {
            let mut request = self.clients.for_url(&url).await?.get(url.clone());
            request = request.header(ACCEPT, ask.accept);
            if ask.offset > 0 {
                request = request.header(RANGE, format!("bytes={}-", ask.offset));
            }
            if at_home {
                request = request.headers(self.headers(authorization.clone()));
            }
            let response = request.send().await.map_err(transport);
            let response = response.inspect_err(|_| registries.forget_root(&self.endpoint.root))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && at_home && challenged < 2 {
                // The second time a cached token had expired.
                let fresh = challenged > 0 || authorization.is_some();
                let header = self.answer(registries, &response, fresh).await?;
                let Some(header) = header else { return Err(refusal(response).await) };
                challenged += 1;
                *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(header.clone());
                authorization = Some(header);
                continue;
            }
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                self.note_pause(&response);
                return Err(refusal(response).await);
            }
            let next = redirect(&url, &response)?;
            at_home = at_home && next.origin() == url.origin();
            url = next;
        }
        let last = shown(&url);
        Err(Error::internal(format!("{} was redirected too often, the last time to {last}", ask.what)))
    }

    /// The endpoint's own headers; an Authorization among them gives way to a credential.
    fn headers(&self, authorization: Option<HeaderValue>) -> HeaderMap {
        let mut headers = self.endpoint.headers.clone();
        if let Some(header) = authorization {
            headers.insert(AUTHORIZATION, header);
        }
        headers
    }

    /// The header that answers a 401, None where this credential cannot.
    async fn answer(
        &self,
        registries: &Registries,
        response: &Response,
        fresh: bool,
    ) -> Result<Option<HeaderValue>> {
        let lines = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<_> = lines.iter().flat_map(|line| challenge::parse(line.as_bytes())).collect();
        if let Some(bearer) = challenges.iter().find(|c| c.scheme == "bearer")
            && !matches!(self.credential, Credential::Registry(_))
        {
            let scope = format!("repository:{}:pull", self.endpoint.repository);
            let ask = auth::AskToken { challenge: bearer, scope: &scope, fresh };
            let token = registries.tokens.get(&self.clients, &self.credential, ask).await?;
            return Ok(Some(token));
        }
        if challenges.iter().any(|c| c.scheme == "basic") {
            return Ok(auth::basic(&self.credential));
        }
        Ok(None)
    }

    fn note_pause(&self, response: &Response) {
        let status = response.status().as_u16();
        if !matches!(status, 429 | 503) {
            return;
        }
        let Some(value) = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()) else { return };
        let pause = retry_after(value).unwrap_or_default().min(MAX_RETRY_AFTER);
        *self.not_before.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + pause);
    }

    async fn url(&self, registries: &Registries, path: &str) -> Result<Url> {
        if let Root::Blob(url) = &self.endpoint.root {
            return Ok(url.clone());
        }
        let known = self.base.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let base = match known {
            Some(base) => base,
            None => {
                let root = self.root(registries).await?;
                let base = root.join(&format!("{}/", self.endpoint.repository));
                let base = base.map_err(|e| Error::internal(e.to_string()))?;
                self.base.lock().unwrap_or_else(PoisonError::into_inner).insert(base).clone()
            }
        };
        let mut url = base.join(path).map_err(|e| Error::internal(e.to_string()))?;
        if let Some(namespace) = &self.endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// The root of the API, its scheme found out by asking.
    async fn root(&self, registries: &Registries) -> Result<Url> {
        let (host, schemes) = match &self.endpoint.root {
            Root::Known(url) | Root::Blob(url) => return Ok(url.clone()),
            Root::Probe(host, schemes) => (host, *schemes),
        };
        if let Some(url) = registries.root(&self.endpoint.root) {
            return Ok(url);
        }
        let mut first_error = None;
        for scheme in schemes {
            let url = Url::parse(&format!("{scheme}://{host}/v2/"));
            let url = url.map_err(|e| Error::invalid(format!("registry {host}: {e}")))?;
            match self.clients.speaks(&url).await {
                Ok(()) => {
                    registries.remember_root(&self.endpoint.root, &url);
                    return Ok(url);
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| Error::unavailable("no scheme to try")))
    }
}

/// Plain HTTP is never where TLS leads to.
fn redirect(from: &Url, response: &Response) -> Result<Url> {
    let location = response.headers().get(LOCATION).and_then(|v| v.to_str().ok());
    let location = location.ok_or_else(|| Error::internal("a redirect without a location"))?;
    let to = from.join(location).map_err(|e| Error::internal(format!("a redirect to {location:?}: {e}")))?;
    let secure = to.scheme() == "https" || (to.scheme() == "http" && from.scheme() == "http");
    if !secure {
        return Err(Error::internal(format!("a redirect from {} to {}", from.scheme(), shown(&to))));
    }
    Ok(to)
}

/// Seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value.trim()).ok()?;
    Some(date.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}

/// A URL for an error message: queries carry signatures.
pub fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

/// Reads a body that must not be longer than `limit` bytes.
pub async fn small_body(mut response: Response, limit: usize) -> Result<Vec<u8>> {
    let read = async {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(transport)? {
            if body.len() + chunk.len() > limit {
                return Err(Error::invalid(format!("the body is longer than {limit} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    };
    let late = || Error::unavailable(format!("the body did not end within {} s", SMALL_BODY.as_secs()));
    tokio::time::timeout(SMALL_BODY, read).await.unwrap_or_else(|_| Err(late()))
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
    let mut body = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk[..chunk.len().min(MAX_ERROR_BODY - body.len())]);
            if body.len() == MAX_ERROR_BODY {
                break;
            }
        }
    };
    // The status alone would do: who is slow to explain it is not waited for.
    let _ = tokio::time::timeout(ERROR_BODY, read).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert!(retry_after("Sat, 06 Nov 2094 08:49:37 GMT").unwrap() > MAX_RETRY_AFTER);
        assert_eq!(retry_after("soon"), None);
    }
}
