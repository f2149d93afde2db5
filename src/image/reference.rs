//! Image references: `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`, and IDs.
//!
//! The grammar is that of the distribution project's reference package, with what Docker made of
//! it: a first component without dot, colon or capital that is not `localhost` belongs to the
//! repository, whose host is then docker.io; a lone component there lies under `library/`.

use std::fmt;

use super::digest::Digest;
use crate::{Error, Result};

const DEFAULT_HOST: &str = "docker.io";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A normalised name of an image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// With the port, if one was given; an IPv6 address in brackets.
    pub host: String,
    pub repository: String,
    pub version: Version,
}

/// A reference with both a tag and a digest means the digest; the tag is dropped (BEHAVIOUR 7).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Version {
    Tag(String),
    Digest(Digest),
}

/// What a client may mean by an image's name in ImageStatus, ListImages and RemoveImage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    pub name: Option<Reference>,
    /// Hexadecimal digits that the image's ID may begin with.
    pub id_prefix: Option<String>,
}

impl Reference {
    /// Parses the reference of a pull. INVALID_ARGUMENT says what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self> {
        parse(text).map_err(|cause| {
            Error::invalid(format!("image reference {:?}: {cause}", String::from_utf8_lossy(text)))
        })
    }

    /// `HOST/REPOSITORY`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.host, self.repository),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.host, self.repository),
        }
    }
}

impl Query {
    /// Never fails: what is neither a name nor an ID means no image.
    pub fn parse(text: &str) -> Self {
        let is_hex = |s: &str| {
            (1..=64).contains(&s.len()) && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        if let Some(hex) = text.strip_prefix("sha256:").filter(|hex| is_hex(hex)) {
            return Self { name: None, id_prefix: Some(hex.to_owned()) };
        }
        let id_prefix = is_hex(text).then(|| text.to_owned());
        Self { name: parse(text.as_bytes()).ok(), id_prefix }
    }
}

/// Whether a name has no registry's host in it. IDs and what is no name at all are none.
pub fn is_short(text: &str) -> bool {
    let name = text.split('@').next().unwrap_or_default();
    let named = name.split_once('/').is_some_and(|(first, _)| is_host(first));
    !named && !text.starts_with("sha256:") && parse(text.as_bytes()).is_ok()
}

fn is_host(first: &str) -> bool {
    first == "localhost" || first.bytes().any(|b| b".:[".contains(&b) || b.is_ascii_uppercase())
}

fn parse(text: &[u8]) -> Result<Reference, String> {
    let text = std::str::from_utf8(text).map_err(|_| "not UTF-8".to_owned())?;
    if text.is_empty() {
        return Err("empty".into());
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(Digest::parse(digest).map_err(|e| e.message)?)),
        None => (text, None),
    };
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest[slash..].find(':') {
        Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
        None => (rest, None),
    };
    if digest.is_none() && tag.is_none() && name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("64 hexadecimal digits are an image ID, not a name".into());
    }
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (host, repository) = split_host(name);
    check_host(&host)?;
    check_repository(&repository)?;
    if host.len() + 1 + repository.len() > MAX_NAME {
        return Err(format!("the name is longer than {MAX_NAME} bytes"));
    }
    let version = match digest {
        Some(digest) => Version::Digest(digest),
        None => Version::Tag(tag.unwrap_or("latest").to_owned()),
    };
    Ok(Reference { host, repository, version })
}

fn split_host(name: &str) -> (String, String) {
    let (host, repository) = match name.split_once('/') {
        Some((first, rest)) if is_host(first) => (first, rest),
        _ => (DEFAULT_HOST, name),
    };
    let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
    if host == DEFAULT_HOST && !repository.contains('/') {
        return (host.to_owned(), format!("library/{repository}"));
    }
    (host.to_owned(), repository.to_owned())
}

fn check_host(host: &str) -> Result<(), String> {
    let wrong = || format!("{host:?} is not a registry's host");
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or_else(wrong)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            match rest {
                "" => ("", None),
                _ => ("", Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    if let Some(port) = port {
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        port.parse::<u16>().ok().filter(|&p| p > 0 && digits).ok_or_else(wrong)?;
    }
    let label_is_right = |label: &str| {
        let bytes = label.as_bytes();
        let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
        first.is_ascii_alphanumeric()
            && last.is_ascii_alphanumeric()
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    if host.starts_with('[') || name.split('.').all(label_is_right) { Ok(()) } else { Err(wrong()) }
}

fn check_repository(repository: &str) -> Result<(), String> {
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!("repository {repository:?} must be in lower case"));
    }
    match repository.split('/').all(|component| is_component(component.as_bytes())) {
        true => Ok(()),
        false => Err(format!("{repository:?} is not a repository's name")),
    }
}

/// Runs of letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn is_component(bytes: &[u8]) -> bool {
    let is_word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    is_word(first)
        && is_word(last)
        && bytes
            .split(is_word)
            .all(|joint| matches!(joint, b"" | b"." | b"_" | b"__") || joint.iter().all(|b| *b == b'-'))
}

fn check_tag(tag: &str) -> Result<(), String> {
    let bytes = tag.as_bytes();
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let right = bytes.first().is_some_and(|b| is_word(*b))
        && bytes.len() <= MAX_TAG
        && bytes.iter().all(|b| is_word(*b) || b".-".contains(b));
    if right { Ok(()) } else { Err(format!("{tag:?} is not a tag")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> String {
        Reference::parse(text.as_bytes()).unwrap().to_string()
    }

    fn refused(text: &str) -> String {
        Reference::parse(text.as_bytes()).unwrap_err().message
    }

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn behaviour_7_short_names_normalise() {
        assert_eq!(shown("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(shown("busybox:1.36"), "docker.io/library/busybox:1.36");
        assert_eq!(shown("grafana/loki"), "docker.io/grafana/loki:latest");
        assert_eq!(shown("index.docker.io/busybox"), "docker.io/library/busybox:latest");
        assert_eq!(shown("docker.io/a/b/c:d"), "docker.io/a/b/c:d");
        assert_eq!(shown("localhost/busybox"), "localhost/busybox:latest");
        assert_eq!(shown("Host/busybox"), "Host/busybox:latest");
    }

    #[test]
    fn hosts_have_ports_and_addresses() {
        assert_eq!(shown("127.0.0.1:5055/a/b:c"), "127.0.0.1:5055/a/b:c");
        assert_eq!(shown("localhost:5000/a"), "localhost:5000/a:latest");
        assert_eq!(shown("[::1]:5000/a:b"), "[::1]:5000/a:b");
        assert_eq!(shown("[2001:db8::7]/a"), "[2001:db8::7]/a:latest");
        assert_eq!(shown("registry.k8s.io/pause:3.10"), "registry.k8s.io/pause:3.10");
        assert!(refused("[::1/a").contains("host"));
        assert!(refused("[::g]:1/a").contains("host"));
        assert!(refused("host:0/a").contains("host"));
        assert!(refused("host:+80/a").contains("host"));
        assert!(refused("host:65536/a").contains("host"));
        assert!(refused("-host.x/a").contains("host"));
        assert!(refused("a..b/c").contains("host"));
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        assert_eq!(shown(&format!("a.b/c:d@{DIGEST}")), format!("a.b/c@{DIGEST}"));
        assert_eq!(shown(&format!("busybox@{DIGEST}")), format!("docker.io/library/busybox@{DIGEST}"));
        assert!(refused("busybox@sha256:abc").contains("64 hex"));
        assert!(refused(&format!("busybox@{DIGEST}@{DIGEST}")).contains("digest"));
        assert!(refused(&format!("a.b/c:/d@{DIGEST}")).contains("repository"));
    }

    #[test]
    fn wrong_names_are_refused_with_the_reason() {
        assert!(refused("").contains("empty"));
        assert!(refused("a.b/Upper").contains("lower case"));
        assert!(refused("a.b/c:").contains("tag"));
        assert!(refused("a.b/c:-x").contains("tag"));
        assert!(refused(&format!("a.b/c:{}", "x".repeat(129))).contains("tag"));
        for name in
            ["a.b/", "a.b//c", "a.b/_c", "a.b/c_", "a.b/c___d", "a.b/c..d", "a.b/c._d", "a.b/../c", "a b"]
        {
            assert!(refused(name).contains("repository"), "{name}");
        }
        assert_eq!(shown("a.b/c--d__e.f_g"), "a.b/c--d__e.f_g:latest");
        assert!(refused(&format!("a.b/{}", "x".repeat(300))).contains("longer"));
        assert!(refused(&"a".repeat(64)).contains("ID"));
        assert!(Reference::parse(b"a.b/\xff").unwrap_err().message.contains("UTF-8"));
    }

    #[test]
    fn ids_and_their_prefixes_are_queries() {
        assert_eq!(Query::parse(DIGEST).id_prefix.as_deref(), Some(&DIGEST[7..]));
        assert_eq!(Query::parse("sha256:e3b0").id_prefix.as_deref(), Some("e3b0"));
        let both = Query::parse("e3b0");
        assert_eq!(both.id_prefix.as_deref(), Some("e3b0"));
        assert_eq!(both.name.unwrap().to_string(), "docker.io/library/e3b0:latest");
        let id = Query::parse(&DIGEST[7..]);
        assert!(id.name.is_none() && id.id_prefix.is_some());
        assert_eq!(Query::parse("!"), Query { name: None, id_prefix: None });
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Reference::parse(&bytes);
        }

        #[test]
        fn what_is_shown_parses_to_the_same(text in "[a-zA-Z0-9.:/@_\\-\\[\\]]{0,60}") {
            if let Ok(reference) = Reference::parse(text.as_bytes()) {
                prop_assert_eq!(Reference::parse(reference.to_string().as_bytes()).unwrap(), reference);
            }
        }

        #[test]
        fn well_formed_names_are_taken(
            host in "[a-z]{1,8}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}([._-][a-z0-9]{1,8})?){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
        ) {
            let reference = Reference::parse(format!("{host}/{path}:{tag}").as_bytes()).unwrap();
            prop_assert_eq!(reference.host, host);
            prop_assert_eq!(reference.version, Version::Tag(tag));
        }
    }
}
