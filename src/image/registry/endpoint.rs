//! Which hosts are asked for an image, in which order: mirrors first, its own registry last.

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderMap;
use reqwest::Url;

use super::auth::DOCKER_HUB;
use super::client::is_loopback;
use super::hosts_toml::{self, Tls};
use super::registries_conf::{Place, RegistriesConf};
use crate::error::Kind;
use crate::image::reference::{Reference, Version};
use crate::{Error, Result};

/// Docker's API is not where its images' names point to.
const DOCKER_HUB_API: &str = "registry-1.docker.io";
const HTTPS: &[&str] = &["https"];
const HTTP_FIRST: &[&str] = &["http", "https"];
const HTTPS_FIRST: &[&str] = &["https", "http"];

/// What is set for all registries. A change of a file takes effect at the next pull.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directories like containerd's `certs.d`, searched in this order.
    pub certs_dirs: Vec<PathBuf>,
    /// containers' registries.conf, where it is to be read.
    pub registries_conf: Option<PathBuf>,
    /// The node's own credentials, for pulls that bring none.
    pub auth_files: Vec<PathBuf>,
    /// Registries (HOST or HOST:PORT) that may be plain HTTP; loopback always may.
    pub insecure: Vec<String>,
    /// None: as the environment says.
    pub proxy: Option<Proxy>,
    /// No byte for so long is an error.
    pub stall: Duration,
}

/// URLs of proxies, empty for none, and whom to speak to without one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxy {
    pub http: String,
    pub https: String,
    /// Host names, domains, addresses and networks, with commas between them.
    pub except: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            certs_dirs: Vec::new(),
            registries_conf: None,
            auth_files: Vec::new(),
            insecure: Vec::new(),
            proxy: None,
            stall: Duration::from_secs(30),
        }
    }
}

/// One host to ask.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub root: Root,
    pub repository: String,
    /// Whether it is asked what a tag means, and for content by digest.
    pub resolve: bool,
    pub pull: bool,
    pub tls: Tls,
    pub headers: HeaderMap,
    pub dial_timeout: Option<Duration>,
    /// The registry that a mirror stands in for: goes along as `?ns=`.
    pub namespace: Option<String>,
    /// The image's own registry: credentials for that are meant for it.
    pub own: bool,
}

/// The root of a host's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    Known(Url),
    /// HOST[:PORT], and the schemes that it may speak, the likelier first.
    Probe(String, &'static [&'static str]),
    /// No API: the URL of one blob.
    Blob(Url),
}

impl Root {
    /// HOST[:PORT].
    pub fn host(&self) -> String {
        match self {
            Self::Probe(host, _) => host.clone(),
            Self::Known(url) | Self::Blob(url) => {
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                format!("{}{port}", url.host_str().unwrap_or_default())
            }
        }
    }

    /// Whether files or settings allow plain HTTP there.
    pub fn may_be_plain(&self) -> bool {
        match self {
            Self::Probe(_, schemes) => schemes.contains(&"http"),
            Self::Known(url) | Self::Blob(url) => url.scheme() == "http",
        }
    }
}

impl Settings {
    /// # Errors
    /// FAILED_PRECONDITION for a blocked registry; INVALID_ARGUMENT names a file that is wrong.
    pub fn endpoints(&self, reference: &Reference, conf: &RegistriesConf) -> Result<Vec<Endpoint>> {
        let name = reference.name();
        let rule = conf.rule(&name);
        if rule.is_some_and(|rule| rule.blocked) {
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!("{name} is blocked by registries.conf"),
            ));
        }
        let hosts = hosts_toml::find(&self.certs_dirs, &reference.host)?;
        if let Some(hosts) = hosts {
            return self.by_hosts_toml(reference, hosts);
        }
        if let Some(rule) = rule {
            let by_digest = matches!(reference.version, Version::Digest(_));
            return rule.places(&name, by_digest).into_iter().map(|place| self.place(place)).collect();
        }
        Ok(vec![self.own(reference, Tls::default())?])
    }

    fn by_hosts_toml(&self, reference: &Reference, hosts: hosts_toml::Hosts) -> Result<Vec<Endpoint>> {
        let own = self.own(reference, hosts.server.tls.clone())?;
        let endpoint = |host: hosts_toml::Host, own: &Endpoint, is_own: bool| {
            let root = host.url.map_or_else(|| own.root.clone(), Root::Known);
            let elsewhere = root.host() != own.root.host();
            Endpoint {
                root,
                repository: reference.repository.clone(),
                resolve: host.resolve,
                pull: host.pull,
                tls: host.tls,
                headers: host.headers,
                dial_timeout: host.dial_timeout,
                namespace: elsewhere.then(|| reference.host.clone()),
                // The same host listed once more is no other host.
                own: is_own || !elsewhere,
            }
        };
        let mirrors = hosts.mirrors.into_iter().map(|host| endpoint(host, &own, false));
        let mut endpoints: Vec<_> = mirrors.collect();
        let server = endpoint(hosts.server, &own, true);
        if !endpoints.iter().any(|e| e.root == server.root && e.pull && e.resolve) {
            endpoints.push(server);
        }
        Ok(endpoints)
    }

    /// The registry as its images' names say.
    fn own(&self, reference: &Reference, tls: Tls) -> Result<Endpoint> {
        let host = &reference.host;
        let api = if host == DOCKER_HUB { DOCKER_HUB_API } else { host };
        let schemes = if tls != Tls::default() {
            // Whoever sets certificates wants TLS.
            HTTPS
        } else if is_loopback(host) {
            HTTP_FIRST
        } else if self.insecure.contains(host) {
            HTTPS_FIRST
        } else {
            HTTPS
        };
        Ok(Endpoint {
            root: root(api, schemes)?,
            repository: reference.repository.clone(),
            resolve: true,
            pull: true,
            tls,
            headers: HeaderMap::new(),
            dial_timeout: None,
            namespace: None,
            own: true,
        })
    }

    /// Where a foreign layer is, for whoever has its digest: nothing goes along that says who asks.
    pub fn foreign(&self, url: &str) -> Result<Endpoint> {
        let wrong = |cause: &dyn std::fmt::Display| Error::invalid(format!("its URL {url:?}: {cause}"));
        let url = Url::parse(url).map_err(|e| wrong(&e))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong(&"it is neither of http nor of https"));
        }
        let root = Root::Blob(url);
        Ok(Endpoint {
            tls: self.tls_of(&root.host())?,
            root,
            repository: String::new(),
            resolve: false,
            pull: true,
            headers: HeaderMap::new(),
            dial_timeout: None,
            namespace: None,
            own: false,
        })
    }

    fn place(&self, place: Place) -> Result<Endpoint> {
        let reference = Reference::parse(place.name.as_bytes()).map_err(|e| e.during("registries.conf"))?;
        let mut endpoint = self.own(&reference, self.tls_of(&reference.host)?)?;
        if place.insecure {
            endpoint.tls.skip_verify = true;
            let api = endpoint.root.host();
            endpoint.root = root(&api, if is_loopback(&api) { HTTP_FIRST } else { HTTPS_FIRST })?;
        }
        endpoint.own = place.own;
        Ok(endpoint)
    }

    /// What `certs.d` says about the certificates of a host that is not asked for an image by its
    /// own name: another location, a token server, the target of a redirect.
    pub fn tls_of(&self, host: &str) -> Result<Tls> {
        Ok(hosts_toml::find(&self.certs_dirs, host)?.map(|hosts| hosts.server.tls).unwrap_or_default())
    }
}

fn root(host: &str, schemes: &'static [&'static str]) -> Result<Root> {
    if let [scheme] = schemes {
        let url = Url::parse(&format!("{scheme}://{host}/v2/"));
        return url.map(Root::Known).map_err(|e| Error::invalid(format!("registry {host}: {e}")));
    }
    Ok(Root::Probe(host.to_owned(), schemes))
}

#[cfg(test)]
mod tests {
    use super::super::registries_conf::Files;
    use super::*;

    fn hosts(settings: &Settings, reference: &str) -> Vec<String> {
        let reference = Reference::parse(reference.as_bytes()).unwrap();
        let shown =
            |e: Endpoint| format!("{}/{}{}", e.root.host(), e.repository, if e.own { "" } else { "*" });
        let conf = Files::new(settings.registries_conf.clone()).read().unwrap();
        settings.endpoints(&reference, &conf).unwrap().into_iter().map(shown).collect()
    }

    #[test]
    fn without_files_a_registry_is_asked_itself() {
        let settings = Settings { insecure: vec!["plain.lan".into()], ..Settings::default() };
        assert_eq!(hosts(&settings, "busybox"), ["registry-1.docker.io/library/busybox"]);
        let root = |name: &str| {
            let reference = Reference::parse(name.as_bytes()).unwrap();
            settings.endpoints(&reference, &RegistriesConf::default()).unwrap().remove(0).root
        };
        assert!(matches!(root("a.lan/b"), Root::Known(url) if url.as_str() == "https://a.lan/v2/"));
        assert_eq!(root("plain.lan/b"), Root::Probe("plain.lan".into(), HTTPS_FIRST));
        assert_eq!(root("[::1]:5000/b"), Root::Probe("[::1]:5000".into(), HTTP_FIRST));
    }

    #[test]
    fn files_say_who_is_asked_first() {
        let directory = tempfile::tempdir().unwrap();
        let conf = directory.path().join("registries.conf");
        let text = "[[registry]]\nprefix = \"a.lan/x\"\nlocation = \"b.lan/y\"\n[[registry.mirror]]\n\
                    location = \"m.lan/z\"\n[[registry]]\nlocation = \"bad.lan\"\nblocked = true\n";
        std::fs::write(&conf, text).unwrap();
        let settings = Settings {
            certs_dirs: vec![directory.path().into()],
            registries_conf: Some(conf),
            ..Settings::default()
        };
        assert_eq!(hosts(&settings, "a.lan/x/i"), ["m.lan/z/i*", "b.lan/y/i"]);
        assert_eq!(hosts(&settings, "a.lan/other"), ["a.lan/other"]);
        let blocked = Reference::parse(b"bad.lan/x").unwrap();
        let conf = Files::new(settings.registries_conf.clone()).read().unwrap();
        assert_eq!(settings.endpoints(&blocked, &conf).unwrap_err().kind, Kind::FailedPrecondition);
        // A hosts.toml of the registry's own comes first, and is read at once.
        std::fs::create_dir(directory.path().join("a.lan")).unwrap();
        let text = "[host.\"http://h.lan\"]\n[host.\"https://a.lan\"]\n";
        std::fs::write(directory.path().join("a.lan/hosts.toml"), text).unwrap();
        assert_eq!(hosts(&settings, "a.lan/x/i"), ["h.lan/x/i*", "a.lan/x/i"]);
    }
}
