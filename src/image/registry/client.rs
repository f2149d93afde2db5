//! HTTP clients, and which scheme a registry speaks.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use reqwest::{Client, ClientBuilder, Url};

use super::dns::Resolver;
use crate::{Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// No byte for this long is an error.
const STALL: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(15);
/// Docker Hub's API is not where its images' names point to.
const DOCKER: (&str, &str) = ("docker.io", "registry-1.docker.io");

#[derive(Clone)]
pub struct Clients {
    shared: Arc<Shared>,
    /// For loopback: no proxy, no certificates to load.
    local: Arc<OnceLock<Client>>,
    remote: Arc<OnceLock<Client>>,
}

struct Shared {
    insecure: Vec<String>,
    resolver: Resolver,
    /// The root URL that answered, by the reference's host.
    roots: Mutex<HashMap<String, Url>>,
}

impl Clients {
    pub fn new(insecure: &[String]) -> Self {
        // A second installation fails, which leaves the first: also ring, or the embedder's choice.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let shared =
            Shared { insecure: insecure.to_vec(), resolver: Resolver::default(), roots: Mutex::default() };
        Self { shared: Arc::new(shared), local: Arc::default(), remote: Arc::default() }
    }

    /// The same with connections of its own.
    pub fn fresh(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), local: Arc::default(), remote: Arc::default() }
    }

    pub async fn for_url(&self, url: &Url) -> Result<Client> {
        let local = url.scheme() == "http" && is_loopback(url.host_str().unwrap_or_default());
        let slot = if local { &self.local } else { &self.remote };
        if let Some(client) = slot.get() {
            return Ok(client.clone());
        }
        let builder = self.builder();
        let client = if local {
            builder.no_proxy().tls_certs_only([]).build()
        } else {
            // Reads the host's certificates.
            let built = tokio::task::spawn_blocking(move || builder.build()).await;
            built.map_err(|e| Error::internal(format!("making an HTTPS client: {e}")))?
        };
        let client = client.map_err(|e| transport(e).during("making an HTTP client"))?;
        Ok(slot.get_or_init(|| client).clone())
    }

    fn builder(&self) -> ClientBuilder {
        Client::builder()
            .user_agent(concat!("podwright/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .dns_resolver(self.shared.resolver.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(STALL)
            .pool_idle_timeout(IDLE)
            // Layers come over several connections at once: one HTTP/2 connection has one window.
            .http1_only()
    }

    /// `SCHEME://HOST[:PORT]/` of a registry's API: HTTPS, but HTTP first on loopback, and HTTP as
    /// a second choice where the configuration says insecure.
    pub async fn root(&self, host: &str) -> Result<Url> {
        if let Some(url) = self.shared.roots.lock().unwrap_or_else(PoisonError::into_inner).get(host) {
            return Ok(url.clone());
        }
        let api = if host == DOCKER.0 { DOCKER.1 } else { host };
        let schemes: &[&str] = match (is_loopback(host), self.is_insecure(host)) {
            (true, _) => &["http", "https"],
            (false, true) => &["https", "http"],
            (false, false) => &["https"],
        };
        let mut first_error = None;
        for scheme in schemes {
            let url = Url::parse(&format!("{scheme}://{api}/"));
            let url = url.map_err(|e| Error::invalid(format!("registry {host}: {e}")))?;
            // With one choice there is nothing to find out.
            match if schemes.len() == 1 { Ok(()) } else { self.speaks(&url).await } {
                Ok(()) => {
                    let mut roots = self.shared.roots.lock().unwrap_or_else(PoisonError::into_inner);
                    roots.insert(host.to_owned(), url.clone());
                    return Ok(url);
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| Error::unavailable("no scheme to try")))
    }

    /// Whether anything at `url` speaks its scheme. A TLS server answers plain HTTP with 400.
    async fn speaks(&self, url: &Url) -> Result<()> {
        let probe = url.join("v2/").map_err(|e| Error::internal(e.to_string()))?;
        let response = self.for_url(url).await?.get(probe).send().await.map_err(transport)?;
        match response.status().as_u16() {
            400 => Err(Error::unavailable(format!("it does not speak {}", url.scheme()))),
            _ => Ok(()),
        }
    }

    /// Whether a credential for `host`'s registry may go to `url`.
    pub fn may_carry_secret(&self, url: &Url, host: &str) -> bool {
        url.scheme() == "https" || is_loopback(url.host_str().unwrap_or_default()) || self.is_insecure(host)
    }

    fn is_insecure(&self, host: &str) -> bool {
        self.shared.insecure.iter().any(|name| name == host)
    }
}

/// Whether a registry's host, with or without a port, is this machine.
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// An error on the way: no answer, or not a whole one. It may pass.
pub fn transport(error: reqwest::Error) -> Error {
    let mut words = Vec::new();
    let error = error.without_url();
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = cause {
        let text = error.to_string();
        if words.last() != Some(&text) {
            words.push(text);
        }
        cause = error.source();
    }
    Error::unavailable(words.join(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_recognised_with_and_without_port() {
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.8.9.1:80", "[::1]", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["127.0.0.1.evil.com", "localhost.evil.com", "10.0.0.1", "[::2]:1", "a:127", "128.0.0.1"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
