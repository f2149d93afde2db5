//! HTTP clients: one per kind of host, none shared between pulls.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder, Identity, NoProxy, Url};

use super::dns::Resolver;
use super::endpoint::{Endpoint, Proxy, Settings};
use super::hosts_toml::Tls;
use crate::error::Step;
use crate::{Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const IDLE: Duration = Duration::from_secs(15);

/// The clients that one endpoint's requests need.
pub struct Clients {
    settings: Arc<Settings>,
    resolver: Resolver,
    /// The endpoint's host, without its port.
    host: String,
    /// It may be spoken to in plain HTTP.
    plain: bool,
    tls: Tls,
    dial_timeout: Option<Duration>,
    made: Mutex<HashMap<Peer, Client>>,
}

/// Whom a client speaks to.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Peer {
    /// Loopback in plain HTTP: no proxy, no certificates to load.
    Local,
    /// The endpoint's own host.
    Own,
    /// A token server, or where a redirect leads.
    Other(String),
}

impl Clients {
    pub fn new(settings: &Arc<Settings>, resolver: &Resolver, endpoint: &Endpoint) -> Self {
        // A second installation fails, which leaves the first: also ring, or the embedder's choice.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            settings: Arc::clone(settings),
            resolver: resolver.clone(),
            host: bare(&endpoint.root.host()).to_owned(),
            plain: endpoint.root.may_be_plain(),
            tls: endpoint.tls.clone(),
            dial_timeout: endpoint.dial_timeout,
            made: Mutex::default(),
        }
    }

    pub async fn for_url(&self, url: &Url) -> Result<Client> {
        let host = url.host_str().unwrap_or_default();
        let peer = match (url.scheme(), bare(host) == self.host) {
            ("http", _) if is_loopback(host) => Peer::Local,
            (_, true) => Peer::Own,
            (_, false) => Peer::Other(bare(host).to_owned()),
        };
        if let Some(client) = self.made.lock().unwrap_or_else(PoisonError::into_inner).get(&peer) {
            return Ok(client.clone());
        }
        let mut builder = self.builder();
        if is_loopback(host) {
            builder = builder.no_proxy();
        } else if let Some(proxy) = &self.settings.proxy {
            builder = with_proxy(builder, proxy)?;
        }
        let client = if peer == Peer::Local {
            builder.tls_certs_only([]).build()
        } else {
            let tls = self.tls_for(&peer, url)?;
            // Reads the host's certificates.
            let build = move || Ok::<_, Error>(with_tls(builder, &tls)?.build());
            let built = tokio::task::spawn_blocking(build).await;
            built.map_err(|e| Error::internal(format!("making an HTTPS client: {e}")))??
        };
        let client = client.map_err(|e| transport(e).during("making an HTTP client"))?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(made.entry(peer).or_insert(client).clone())
    }

    /// Another host is trusted by the endpoint's CA, which often signs its token server too. It gets
    /// no client certificate that was meant for the endpoint, and is verified unless its own
    /// `certs.d` says otherwise.
    fn tls_for(&self, peer: &Peer, url: &Url) -> Result<Tls> {
        let Peer::Other(host) = peer else { return Ok(self.tls.clone()) };
        let name = url.port().map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
        let mut tls = self.settings.tls_of(&name)?;
        tls.ca.extend_from_slice(&self.tls.ca);
        Ok(tls)
    }

    fn builder(&self) -> ClientBuilder {
        Client::builder()
            .user_agent(concat!("podwright/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .dns_resolver(self.resolver.clone())
            .connect_timeout(self.dial_timeout.unwrap_or(CONNECT_TIMEOUT))
            .read_timeout(self.settings.stall)
            .pool_idle_timeout(IDLE)
            // Layers come over several connections at once: one HTTP/2 connection has one window.
            .http1_only()
    }

    /// Whether anything at `url` speaks its scheme. A TLS server answers plain HTTP with 400.
    pub async fn speaks(&self, url: &Url) -> Result<()> {
        let response = self.for_url(url).await?.get(url.clone()).send().await.map_err(transport)?;
        match response.status().as_u16() {
            400 => Err(Error::unavailable(format!("it does not speak {}", url.scheme()))),
            _ => Ok(()),
        }
    }

    /// Whether a credential may go to the token server at `url`: not in plain HTTP, but where the
    /// registry itself was set up to be plain and is the same host.
    pub fn may_carry_secret(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        let insecure = |name: &String| bare(name) == bare(host);
        let own = self.plain && bare(host) == self.host;
        url.scheme() == "https" || is_loopback(host) || own || self.settings.insecure.iter().any(insecure)
    }
}

fn with_proxy(builder: ClientBuilder, proxy: &Proxy) -> Result<ClientBuilder> {
    let except = NoProxy::from_string(&proxy.except);
    let mut builder = builder.no_proxy();
    type Make = fn(&str) -> reqwest::Result<reqwest::Proxy>;
    let all: [(&str, Make); 2] =
        [(&proxy.http, |url| reqwest::Proxy::http(url)), (&proxy.https, |url| reqwest::Proxy::https(url))];
    for (url, make) in all.into_iter().filter(|(url, _)| !url.is_empty()) {
        // The URL may have a password in it.
        let proxy = make(url).map_err(|_| Error::invalid("image.proxy is not a URL"))?;
        builder = builder.proxy(proxy.no_proxy(except.clone()));
    }
    Ok(builder)
}

fn with_tls(mut builder: ClientBuilder, tls: &Tls) -> Result<ClientBuilder> {
    let read = |path: &Path| std::fs::read(path).step(|| format!("reading {}", path.display()));
    let wrong = |path: &Path, e: reqwest::Error| transport(e).during(path.display());
    for path in &tls.ca {
        let certificates = Certificate::from_pem_bundle(&read(path)?).map_err(|e| wrong(path, e))?;
        if certificates.is_empty() {
            return Err(Error::invalid(format!("{} has no certificate in PEM", path.display())));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    // A client shows one certificate; of several pairs it is the first, as no server asks for more.
    if let Some((certificate, key)) = tls.client.first() {
        let mut pem = read(certificate)?;
        if let Some(key) = key {
            pem.push(b'\n');
            pem.extend(read(key)?);
        }
        builder = builder.identity(Identity::from_pem(&pem).map_err(|e| wrong(certificate, e))?);
    }
    if tls.skip_verify {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    Ok(builder)
}

/// A host without its port, an IPv6 address without its brackets.
fn bare(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    }
}

/// Whether a registry's host, with or without a port, is this machine.
pub fn is_loopback(host: &str) -> bool {
    let name = bare(host);
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
    fn secrets_go_in_plain_http_only_to_hosts_that_are_set_up_so() {
        let settings = Arc::new(Settings { insecure: vec!["old.lan:5000".into()], ..Settings::default() });
        let url = |text: &str| Url::parse(text).unwrap();
        let of = |root: &str| {
            let mut endpoint = settings.foreign("https://x.lan/").unwrap();
            endpoint.root = super::super::endpoint::Root::Known(url(root));
            Clients::new(&settings, &Resolver::default(), &endpoint)
        };
        let (plain, secure) = (of("http://plain.lan:5000/v2/"), of("https://secure.lan/v2/"));
        for (server, from_plain, from_secure) in [
            ("https://anywhere.lan/token", true, true),
            ("http://anywhere.lan/token", false, false),
            ("http://old.lan/token", true, true),
            ("http://127.0.0.1/token", true, true),
            ("http://plain.lan/token", true, false),
            ("http://secure.lan/token", false, false),
        ] {
            let may = (plain.may_carry_secret(&url(server)), secure.may_carry_secret(&url(server)));
            assert_eq!(may, (from_plain, from_secure), "{server}");
        }
    }

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
