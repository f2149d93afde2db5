//! containerd's `certs.d/HOST/hosts.toml`: where a registry's images are really fetched from.
//!
//! ```toml
//! server = "https://registry-1.docker.io"        # the registry itself; asked last
//! [host."https://mirror.lan:5000"]               # asked before it, in the order of the file
//! capabilities = ["pull", "resolve"]             # resolve: which digest a tag means
//! ca = "ca.pem"                                  # or a list; paths are relative to the file's directory
//! client = [["client.pem", "client.key"]]        # or one file with both
//! skip_verify = false
//! override_path = false                          # the URL's path is the API's root: nothing is added
//! dial_timeout = "2s"
//! [host."https://mirror.lan:5000".header]
//! x-team = ["nodes"]
//! ```
//!
//! The fields of a host may also stand at the top: then they are the server's. A directory without
//! a hosts.toml may hold Docker's certificate files: `*.crt`, and `*.cert` beside `*.key`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::Url;
use toml::Value;
use toml::de::{DeTable, DeValue};

use crate::error::Step;
use crate::{Error, Result};

/// How a host's certificate is judged, and what we show it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM bundles that are trusted besides the node's own.
    pub ca: Vec<PathBuf>,
    /// Certificate and key, both in the first file where there is no second.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    pub skip_verify: bool,
}

/// One host of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// The root of its API, with a slash at its end. None: the registry's usual one.
    pub url: Option<Url>,
    pub pull: bool,
    pub resolve: bool,
    pub tls: Tls,
    pub headers: HeaderMap,
    pub dial_timeout: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Hosts {
    /// In the order of the file.
    pub mirrors: Vec<Host>,
    pub server: Host,
    /// Keys that mean nothing to us, for the log.
    pub unknown: Vec<String>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            url: None,
            pull: true,
            resolve: true,
            tls: Tls::default(),
            headers: HeaderMap::new(),
            dial_timeout: None,
        }
    }
}

/// The file for `registry` (HOST or HOST:PORT) in the first of `directories` that has one; a
/// `_default` counts only where none has one of its own. Read anew each time: it is small, and a
/// change must take effect.
pub fn find(directories: &[PathBuf], registry: &str) -> Result<Option<Hosts>> {
    let underscored = registry.replace(':', "_") + "_";
    let own: &[&str] = if registry.contains(':') { &[&underscored, registry] } else { &[registry] };
    for names in [own, &["_default"]] {
        for directory in directories {
            for name in names {
                if let Some(hosts) = read(&directory.join(name))? {
                    return Ok(Some(hosts));
                }
            }
        }
    }
    Ok(None)
}

fn read(directory: &Path) -> Result<Option<Hosts>> {
    let path = directory.join("hosts.toml");
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let hosts = parse(&text, directory).map_err(|e| e.during(path.display()))?;
            if !hosts.unknown.is_empty() {
                tracing::warn!(path = %path.display(), keys = hosts.unknown.join(", "), "unknown keys are ignored");
            }
            Ok(Some(hosts))
        }
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            certificates(directory)
        }
        Err(e) => Err(Error::io(format!("reading {}", path.display()), e)),
    }
}

/// Docker's certificate files; None where the directory has none.
fn certificates(directory: &Path) -> Result<Option<Hosts>> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(None) };
    let mut tls = Tls::default();
    for entry in entries {
        let path = entry.step(|| format!("reading {}", directory.display()))?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => tls.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                if !key.exists() {
                    return Err(Error::invalid(format!("{}: {} is missing", path.display(), key.display())));
                }
                tls.client.push((path, Some(key)));
            }
            _ => {}
        }
    }
    tls.ca.sort();
    tls.client.sort();
    let server = Host { tls: tls.clone(), ..Host::default() };
    Ok((tls != Tls::default()).then(|| Hosts { mirrors: Vec::new(), server, unknown: Vec::new() }))
}

/// Parses a file of `directory`. INVALID_ARGUMENT names the key that is wrong.
pub fn parse(text: &str, directory: &Path) -> Result<Hosts> {
    let wrong = |e: toml::de::Error| Error::invalid(e.message().replace('\n', ", "));
    let order = order(text).map_err(wrong)?;
    let mut table: toml::Table = toml::from_str(text).map_err(wrong)?;
    let mut unknown = Vec::new();
    let hosts = match table.remove("host") {
        None => toml::Table::new(),
        Some(Value::Table(hosts)) => hosts,
        Some(_) => return Err(Error::invalid("host is not a table")),
    };
    let server = table.remove("server").map(|v| text_of("server", &v)).transpose()?;
    let mut mirrors = Vec::new();
    for name in order {
        let Some(Value::Table(fields)) = hosts.get(&name) else {
            return Err(Error::invalid(format!("host.{name:?} is not a table")));
        };
        let mut host = fields_of(fields.clone(), directory, &mut unknown)
            .and_then(|(host, override_path)| Ok((url(&name, override_path)?, host)))
            .map_err(|e| e.during(format!("host.{name:?}")))?;
        host.1.url = Some(host.0);
        mirrors.push(host.1);
    }
    let (mut host, override_path) = fields_of(table, directory, &mut unknown)?;
    host.url = server
        .filter(|server| !server.is_empty())
        .map(|server| url(&server, override_path).map_err(|e| e.during("server")))
        .transpose()?;
    Ok(Hosts { mirrors, server: host, unknown })
}

/// The hosts' names in the order of the file, which a parsed table forgets.
fn order(text: &str) -> std::result::Result<Vec<String>, toml::de::Error> {
    let table = DeTable::parse(text)?;
    let Some(DeValue::Table(hosts)) = table.get_ref().get("host").map(|hosts| hosts.get_ref()) else {
        return Ok(Vec::new());
    };
    let mut names: Vec<_> =
        hosts.keys().map(|name| (name.span().start, name.get_ref().to_string())).collect();
    names.sort();
    Ok(names.into_iter().map(|(_, name)| name).collect())
}

/// A host's fields, and whether its URL is taken as it is.
fn fields_of(fields: toml::Table, directory: &Path, unknown: &mut Vec<String>) -> Result<(Host, bool)> {
    let mut host = Host::default();
    let mut override_path = false;
    for (key, value) in fields {
        match key.as_str() {
            "capabilities" => {
                let list = texts("capabilities", &value)?;
                let has = |name: &str| list.iter().any(|c| c.eq_ignore_ascii_case(name));
                if let Some(other) = list.iter().find(|c| {
                    !["pull", "resolve", "push", "referrers"].contains(&c.to_ascii_lowercase().as_str())
                }) {
                    return Err(Error::invalid(format!("capabilities: {other:?} is not known")));
                }
                (host.pull, host.resolve) = (has("pull"), has("resolve"));
            }
            "ca" => host.tls.ca = texts("ca", &value)?.iter().map(|ca| directory.join(ca)).collect(),
            "client" => host.tls.client = clients(&value, directory)?,
            "skip_verify" => host.tls.skip_verify = flag("skip_verify", &value)?,
            "override_path" => override_path = flag("override_path", &value)?,
            "header" => host.headers = headers(&value)?,
            "dial_timeout" => {
                let text = text_of("dial_timeout", &value)?;
                let stated = duration(&text).ok_or_else(|| {
                    Error::invalid(format!("dial_timeout: {text:?} is not a duration, such as \"2s\""))
                })?;
                // Zero is containerd's own, as to Go: nothing is said.
                host.dial_timeout = Some(stated).filter(|stated| !stated.is_zero());
            }
            _ => unknown.push(key),
        }
    }
    Ok((host, override_path))
}

/// `[SCHEME://]HOST[:PORT][/PATH]` → the root of the API.
fn url(text: &str, override_path: bool) -> Result<Url> {
    let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let mut url = Url::parse(&full).map_err(|e| Error::invalid(format!("{text:?} is not a URL: {e}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(Error::invalid(format!("{text:?} is not a URL of http or https")));
    }
    let path = url.path().trim_end_matches('/').to_owned();
    let path = if override_path || path.ends_with("/v2") { path } else { path + "/v2" };
    url.set_path(&format!("{path}/"));
    Ok(url)
}

fn text_of(key: &str, value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).ok_or_else(|| Error::invalid(format!("{key} is not a string")))
}

fn flag(key: &str, value: &Value) -> Result<bool> {
    value.as_bool().ok_or_else(|| Error::invalid(format!("{key} is neither true nor false")))
}

/// A string, or a list of them.
fn texts(key: &str, value: &Value) -> Result<Vec<String>> {
    match value {
        Value::Array(list) => list.iter().map(|v| text_of(key, v)).collect(),
        one => Ok(vec![text_of(key, one)?]),
    }
}

/// A file, a list of files, or a list of pairs.
fn clients(value: &Value, directory: &Path) -> Result<Vec<(PathBuf, Option<PathBuf>)>> {
    let one = |value: &Value| match texts("client", value)?.as_slice() {
        [both] => Ok((directory.join(both), None)),
        [certificate, key] if key.is_empty() => Ok((directory.join(certificate), None)),
        [certificate, key] => Ok((directory.join(certificate), Some(directory.join(key)))),
        _ => Err(Error::invalid("client: a pair is a certificate and a key")),
    };
    match value {
        Value::Array(list) => list.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

fn headers(value: &Value) -> Result<HeaderMap> {
    let table = value.as_table().ok_or_else(|| Error::invalid("header is not a table"))?;
    let mut headers = HeaderMap::new();
    for (name, value) in table {
        let wrong = || Error::invalid(format!("header {name:?} cannot be sent"));
        let key: HeaderName = name.parse().map_err(|_| wrong())?;
        for value in texts(name, value)? {
            let mut value: HeaderValue = value.parse().map_err(|_| wrong())?;
            value.set_sensitive(true);
            headers.append(&key, value);
        }
    }
    Ok(headers)
}

/// Go's notation of a duration: `1m30s`, `1.5s`, `300ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = 0.0_f64;
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number * seconds;
        rest = &rest[unit..];
    }
    (!text.trim().is_empty()).then(|| Duration::try_from_secs_f64(total).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Hosts {
        parse(text, Path::new("/certs.d/x")).unwrap()
    }

    fn refused(text: &str) -> String {
        parse(text, Path::new("/certs.d/x")).unwrap_err().message
    }

    #[test]
    fn every_field_is_read_and_the_order_is_the_files() {
        let hosts = parsed(
            r#"
            server = "registry-1.docker.io"
            skip_verify = true
            color = "blue"
            [host."https://z.lan:5000"]
            capabilities = ["pull"]
            ca = ["a.pem", "/etc/b.pem"]
            client = [["c.pem", "c.key"], ["d.pem", ""]]
            dial_timeout = "1m1.5s"
            [host."https://z.lan:5000".header]
            X-Team = "nodes"
            authorization = ["Basic eDp5"]
            [host."http://a.lan/proxy/docker"]
            override_path = true
            client = "both.pem"
            [host."m.lan"]
            "#,
        );
        let urls: Vec<_> = hosts.mirrors.iter().map(|h| h.url.as_ref().unwrap().to_string()).collect();
        assert_eq!(urls, ["https://z.lan:5000/v2/", "http://a.lan/proxy/docker/", "https://m.lan/v2/"]);
        let z = &hosts.mirrors[0];
        assert_eq!((z.pull, z.resolve, z.dial_timeout), (true, false, Some(Duration::from_millis(61_500))));
        assert_eq!(z.tls.ca, [PathBuf::from("/certs.d/x/a.pem"), "/etc/b.pem".into()]);
        let [pair, both] = &z.tls.client[..] else { panic!() };
        assert_eq!(*pair, ("/certs.d/x/c.pem".into(), Some("/certs.d/x/c.key".into())));
        assert_eq!(*both, ("/certs.d/x/d.pem".into(), None));
        assert_eq!((z.headers["x-team"].to_str().unwrap(), z.headers.len()), ("nodes", 2));
        assert!(!format!("{hosts:?}").contains("eDp5"), "headers may be secrets");
        assert_eq!(hosts.mirrors[1].tls.client, [("/certs.d/x/both.pem".into(), None)]);
        assert_eq!(hosts.server.url.unwrap().as_str(), "https://registry-1.docker.io/v2/");
        assert!(hosts.server.tls.skip_verify && !z.tls.skip_verify);
        assert_eq!(hosts.unknown, ["color"]);
        assert_eq!(parsed("").server, Host::default());
        assert_eq!(parsed("dial_timeout = \"0s\"").server.dial_timeout, None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(refused("[host.\"a.b\"]\nca = 1").contains("host.\"a.b\": ca is not a string"));
        assert!(refused("skip_verify = \"yes\"").contains("skip_verify"));
        assert!(refused("[host.\"a.b\"]\ncapabilities = [\"fetch\"]").contains("\"fetch\""));
        assert!(refused("server = \"ftp://a.b\"").contains("server"));
        assert!(refused("dial_timeout = \"soon\"").contains("\"soon\""));
        assert!(refused("[host.\"a.b\".header]\n\"x y\" = \"1\"").contains("x y"));
        assert!(refused("host = 1").contains("host"));
        assert!(!refused("server = ").is_empty());
    }

    #[test]
    fn the_most_specific_directory_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (root.path().join("a"), root.path().join("b"));
        let make = |directory: PathBuf, server: &str| {
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join("hosts.toml"), format!("server = \"{server}\"")).unwrap();
        };
        make(first.join("_default"), "default.lan");
        make(second.join("a.lan_5000_"), "port.lan");
        make(second.join("b.lan"), "b-real.lan");
        std::fs::create_dir_all(second.join("c.lan")).unwrap();
        std::fs::write(second.join("c.lan/ca.crt"), "").unwrap();
        let directories = [root.path().join("missing"), first, second.clone()];
        let server = |registry: &str| {
            let hosts = find(&directories, registry).unwrap().unwrap();
            hosts.server.url.map(|url| url.host_str().unwrap().to_owned())
        };
        assert_eq!(server("a.lan:5000").as_deref(), Some("port.lan"));
        assert_eq!(server("a.lan").as_deref(), Some("default.lan"));
        assert_eq!(server("b.lan").as_deref(), Some("b-real.lan"));
        let docker = find(&directories, "c.lan").unwrap().unwrap();
        assert_eq!(docker.server.tls.ca, [second.join("c.lan/ca.crt")]);
        std::fs::write(second.join("c.lan/client.cert"), "").unwrap();
        assert!(find(&directories, "c.lan").unwrap_err().message.contains("client.key"));
        assert_eq!(find(&directories[..1], "a.lan").unwrap(), None);
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in "\\PC{0,80}") {
            let _ = parse(&text, Path::new("/"));
        }

        #[test]
        fn any_duration_parses_or_is_refused(text in "[0-9.hmsnuµ-]{0,12}") {
            let _ = duration(&text);
        }
    }
}
