//! Credentials, and the tokens that they buy.
//!
//! A credential is sent to the registry that it was given for, or to the token server which that
//! registry names, and to no other host. Tokens are cached by credential: what one pull secret
//! bought never serves another pull.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use serde::Deserialize;

use super::challenge::Challenge;
use super::client::Clients;
use crate::image::Auth;
use crate::image::digest::Digest;
use crate::{Error, Result};

/// Distribution spec, token authentication: a token without `expires_in` lives this long.
const DEFAULT_LIFE: f64 = 60.0;
const MAX_LIFE: f64 = 86_400.0;
const MAX_TOKENS: usize = 1024;
const CLIENT: &str = "podwright";

#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    Anonymous,
    Basic {
        username: String,
        password: String,
    },
    /// An OAuth2 refresh token.
    Identity(String),
    /// A bearer token for the registry itself.
    Registry(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

impl Credential {
    /// What `auth` holds for `host`; anonymous where it is meant for another registry.
    pub fn of(auth: &Auth, host: &str) -> Result<Self> {
        if !auth.server_address.is_empty() && server_host(&auth.server_address) != server_host(host) {
            return Ok(Self::Anonymous);
        }
        if !auth.username.is_empty() {
            return Ok(Self::Basic { username: auth.username.clone(), password: auth.password.clone() });
        }
        if !auth.identity_token.is_empty() {
            return Ok(Self::Identity(auth.identity_token.clone()));
        }
        if !auth.auth.is_empty() {
            return Self::from_encoded(&auth.auth);
        }
        if !auth.registry_token.is_empty() {
            return Ok(Self::Registry(auth.registry_token.clone()));
        }
        Ok(Self::Anonymous)
    }

    /// base64 of `USERNAME:PASSWORD`, as in Docker's config.json. The error must not show it.
    fn from_encoded(encoded: &str) -> Result<Self> {
        let wrong = || Error::invalid("the pull credential's auth is not base64 of USERNAME:PASSWORD");
        let bytes = BASE64_STANDARD.decode(encoded.trim()).map_err(|_| wrong())?;
        let text = String::from_utf8(bytes).map_err(|_| wrong())?;
        let (username, password) = text.trim_end_matches('\0').split_once(':').ok_or_else(wrong)?;
        Ok(Self::Basic { username: username.into(), password: password.into() })
    }

    /// Tells credentials apart without keeping them.
    pub fn fingerprint(&self) -> Digest {
        digest_of(&match self {
            Self::Anonymous => ["anonymous", "", ""],
            Self::Basic { username, password } => ["basic", username, password],
            Self::Identity(token) => ["identity", token, ""],
            Self::Registry(token) => ["registry", token, ""],
        })
    }

    pub fn is_anonymous(&self) -> bool {
        *self == Self::Anonymous
    }
}

/// Tells pulls apart by the secrets that they bring, and by whom those are for: a mirror may be asked with
/// what the image's own registry never sees.
pub fn fingerprint(auth: &Auth) -> Digest {
    let Auth { username, password, auth, server_address, identity_token, registry_token } = auth;
    digest_of(&[username, password, auth, server_address, identity_token, registry_token])
}

fn digest_of(parts: &[&str]) -> Digest {
    let bytes: Vec<u8> =
        parts.iter().flat_map(|p| [&p.len().to_le_bytes()[..], p.as_bytes()].concat()).collect();
    Digest::of(&bytes)
}

/// Docker's registry in references.
pub const DOCKER_HUB: &str = "docker.io";

/// The host of a server address, which may be a URL; Docker's registry has several.
pub fn server_host(address: &str) -> String {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = address.split('/').next().unwrap_or_default().to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.into(),
        _ => host,
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    realm: String,
    service: String,
    scope: String,
    credential: Digest,
}

/// Bearer tokens of all registries.
#[derive(Default)]
pub struct Tokens {
    cached: Mutex<HashMap<TokenKey, (HeaderValue, Instant)>>,
}

/// Which token is wanted.
pub struct AskToken<'a> {
    pub challenge: &'a Challenge,
    /// Where the challenge names none.
    pub scope: &'a str,
    /// Not a cached one: that was refused.
    pub fresh: bool,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    /// Seconds.
    expires_in: Option<f64>,
}

impl TokenAnswer {
    /// How long the token is used: less than it is good for, and never for ever, whatever is said.
    fn life(&self) -> Duration {
        let stated = self.expires_in.unwrap_or(DEFAULT_LIFE).min(MAX_LIFE);
        Duration::try_from_secs_f64(stated * 0.8).unwrap_or_default()
    }
}

/// The Authorization header that answers `challenge`, if the credential can.
pub fn basic(credential: &Credential) -> Option<HeaderValue> {
    let Credential::Basic { username, password } = credential else { return None };
    secret("Basic", &BASE64_STANDARD.encode(format!("{username}:{password}")))
}

pub fn bearer(token: &str) -> Option<HeaderValue> {
    secret("Bearer", token)
}

fn secret(scheme: &str, value: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("{scheme} {value}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

impl Tokens {
    /// A token from the server that the challenge names.
    pub async fn get(
        &self,
        clients: &Clients,
        credential: &Credential,
        ask: AskToken<'_>,
    ) -> Result<HeaderValue> {
        let AskToken { challenge, scope: default_scope, fresh } = ask;
        let realm = challenge.param("realm").unwrap_or_default();
        let url = reqwest::Url::parse(realm)
            .map_err(|e| Error::internal(format!("the registry names a token server {realm:?}: {e}")))?;
        let key = TokenKey {
            realm: realm.to_owned(),
            service: challenge.param("service").unwrap_or_default().to_owned(),
            scope: challenge.param("scope").filter(|s| !s.is_empty()).unwrap_or(default_scope).to_owned(),
            credential: credential.fingerprint(),
        };
        if !fresh && let Some(token) = self.cached(&key) {
            return Ok(token);
        }
        if !credential.is_anonymous() && !clients.may_carry_secret(&url) {
            let url = super::host::shown(&url);
            return Err(Error::internal(format!("credentials are not sent to {url} in plain HTTP")));
        }
        let client = clients.for_url(&url).await?;
        let request = request(&client, url.clone(), &key, credential);
        let server = url.host_str().unwrap_or_default();
        let answer = fetch(request).await.map_err(|e| e.during(format!("asking {server} for a token")))?;
        let life = answer.life();
        let mut tokens = [answer.token, answer.access_token].into_iter().flatten();
        let token = tokens.find(|token| !token.is_empty());
        let header = token.and_then(|token| bearer(&token));
        let header = header.ok_or_else(|| Error::internal(format!("{server} answered without a token")))?;
        self.keep(key, header.clone(), life);
        Ok(header)
    }

    fn cached(&self, key: &TokenKey) -> Option<HeaderValue> {
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.get(key).filter(|(_, until)| *until > Instant::now()).map(|(token, _)| token.clone())
    }

    fn keep(&self, key: TokenKey, token: HeaderValue, life: Duration) {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if cached.len() >= MAX_TOKENS {
            cached.retain(|_, (_, until)| *until > now);
        }
        if cached.len() < MAX_TOKENS {
            cached.insert(key, (token, now + life));
        }
    }
}

/// GET with basic authentication, or OAuth2's POST where there is a refresh token.
fn request(
    client: &reqwest::Client,
    mut url: reqwest::Url,
    key: &TokenKey,
    credential: &Credential,
) -> reqwest::RequestBuilder {
    if let Credential::Identity(token) = credential {
        let fields = [
            ("grant_type", "refresh_token"),
            ("refresh_token", token),
            ("client_id", CLIENT),
            ("service", &key.service),
            ("scope", &key.scope),
        ];
        let mut form = url.clone();
        form.query_pairs_mut().clear().extend_pairs(fields);
        let body = form.query().unwrap_or_default().to_owned();
        return client
            .post(url)
            .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body);
    }
    if !key.service.is_empty() {
        url.query_pairs_mut().append_pair("service", &key.service);
    }
    // Several scopes come separated by spaces and go as one parameter each.
    for scope in key.scope.split(' ').filter(|s| !s.is_empty()) {
        url.query_pairs_mut().append_pair("scope", scope);
    }
    let request = client.get(url);
    match basic(credential) {
        Some(header) => request.header(http::header::AUTHORIZATION, header),
        None => request,
    }
}

async fn fetch(request: reqwest::RequestBuilder) -> Result<TokenAnswer> {
    let response = request.send().await.map_err(super::client::transport)?;
    let status = response.status();
    if !status.is_success() {
        return Err(super::host::refusal(response).await);
    }
    let body = super::host::small_body(response, 1 << 20).await?;
    serde_json::from_slice(&body)
        .map_err(|e| Error::internal(format!("the answer ({status}) is not a token: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth() -> Auth {
        Auth::default()
    }

    #[test]
    fn all_forms_of_a_credential_are_read() {
        let basic = |u: &str, p: &str| Credential::Basic { username: u.into(), password: p.into() };
        let of = |auth: &Auth| Credential::of(auth, "a.b").unwrap();
        assert_eq!(of(&auth()), Credential::Anonymous);
        assert_eq!(of(&Auth { username: "u".into(), password: "p".into(), ..auth() }), basic("u", "p"));
        assert_eq!(of(&Auth { auth: BASE64_STANDARD.encode("u:p:q"), ..auth() }), basic("u", "p:q"));
        assert_eq!(of(&Auth { identity_token: "t".into(), ..auth() }), Credential::Identity("t".into()));
        assert_eq!(of(&Auth { registry_token: "t".into(), ..auth() }), Credential::Registry("t".into()));
        let error = Credential::of(&Auth { auth: "secret!".into(), ..auth() }, "a.b").unwrap_err();
        assert!(!error.message.contains("secret"));
    }

    #[test]
    fn a_credential_for_another_registry_is_not_used() {
        let of = |server: &str, host| {
            let auth = Auth { username: "u".into(), server_address: server.into(), ..auth() };
            Credential::of(&auth, host).unwrap().is_anonymous()
        };
        assert!(!of("https://index.docker.io/v1/", "docker.io"));
        assert!(!of("a.b:5000", "a.b:5000"));
        assert!(of("a.b", "a.b:5000"));
        assert!(of("https://evil.b/", "a.b"));
    }

    #[test]
    fn fingerprints_tell_credentials_apart() {
        let basic = |u: &str, p: &str| Credential::Basic { username: u.into(), password: p.into() };
        assert_ne!(basic("ab", "c").fingerprint(), basic("a", "bc").fingerprint());
        assert_ne!(
            Credential::Identity("t".into()).fingerprint(),
            Credential::Registry("t".into()).fingerprint()
        );
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", Credential::Registry("hunter2".into()));
        assert!(!shown.contains("hunter2"));
    }
}
