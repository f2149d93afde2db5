//! The node's own credentials: Docker's `config.json`, containers' `auth.json`, and the credential
//! helpers that both name (docker-credential-NAME).
//!
//! They serve pulls that bring none of their own, and thus every pod of the node: what must be kept
//! apart belongs into pull secrets.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::auth::{DOCKER_HUB, server_host};
use crate::error::Step;
use crate::image::Auth;
use crate::{Error, Result};

const HELPER_DEADLINE: Duration = Duration::from_secs(30);
const MAX_ANSWER: u64 = 64 << 10;
/// What helpers know Docker's registry by.
const DOCKER_HUB_URL: &str = "https://index.docker.io/v1/";

#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    auths: HashMap<String, Entry>,
    #[serde(rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Where a file says that a credential is.
enum Found {
    Here(Box<Entry>),
    Helper(String),
}

/// The credential for `HOST/REPOSITORY` of the first of `files` that has one.
pub async fn find(files: &[PathBuf], host: &str, repository: &str) -> Result<Option<Auth>> {
    for path in files {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
        };
        let Some(found) = parse(&text).map(|file| file.look_up(host, repository)).step(|| path.display())?
        else {
            continue;
        };
        let auth = match found {
            Found::Here(entry) => Some(entry.auth()),
            Found::Helper(name) => ask(&name, host).await.step(|| path.display())?,
        };
        if auth.is_some() {
            return Ok(auth);
        }
    }
    Ok(None)
}

/// The error must not show the text.
fn parse(text: &[u8]) -> Result<File> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(File::default());
    }
    serde_json::from_slice(text).map_err(|e| {
        Error::invalid(format!("it is not a file of credentials (line {}, column {})", e.line(), e.column()))
    })
}

impl File {
    /// The most specific entry: `HOST/NAMESPACE/NAME`, then `HOST/NAMESPACE`, then `HOST`.
    fn look_up(&self, host: &str, repository: &str) -> Option<Found> {
        let host = server_host(host);
        let full = format!("{host}/{repository}");
        let ends = full.rmatch_indices('/').map(|(at, _)| at);
        for name in std::iter::once(full.len()).chain(ends).map(|end| &full[..end]) {
            if let Some((_, helper)) = self.helpers.iter().find(|(key, _)| key_name(key) == name) {
                return Some(Found::Helper(helper.clone()));
            }
            if let Some((_, entry)) =
                self.auths.iter().find(|(key, e)| key_name(key) == name && !e.is_empty())
            {
                return Some(Found::Here(Box::new(entry.clone())));
            }
        }
        self.store.clone().filter(|store| !store.is_empty()).map(Found::Helper)
    }
}

/// Docker writes URLs, containers' tools names with a path.
fn key_name(key: &str) -> String {
    let bare = key.split_once("://").map_or(key, |(_, rest)| rest).trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    match bare.split_once('/') {
        Some((host, path)) => format!("{}/{path}", server_host(host)),
        None => server_host(bare),
    }
}

impl Entry {
    /// Docker leaves empty entries where a helper has the secret.
    fn is_empty(&self) -> bool {
        [&self.auth, &self.username, &self.identitytoken, &self.registrytoken].iter().all(|s| s.is_empty())
    }

    fn auth(&self) -> Auth {
        // With an identity token Docker leaves a user name without a password in `auth`.
        let identity = !self.identitytoken.is_empty();
        let text = |text: &String| if identity { String::new() } else { text.clone() };
        Auth {
            username: text(&self.username),
            password: text(&self.password),
            auth: text(&self.auth),
            identity_token: self.identitytoken.clone(),
            registry_token: self.registrytoken.clone(),
            server_address: String::new(),
        }
    }
}

/// Asks `docker-credential-NAME get`. None: it has no credential for the host.
async fn ask(name: &str, host: &str) -> Result<Option<Auth>> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || !name.chars().all(plain) {
        return Err(Error::invalid(format!("{name:?} is not a credential helper's name")));
    }
    let program = format!("docker-credential-{name}");
    let step = || format!("asking {program} for {host}'s credential");
    let mut child = tokio::process::Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .step(step)?;
    let server = if server_host(host) == DOCKER_HUB { DOCKER_HUB_URL } else { host };
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let talk = async {
        if let Some(mut stdin) = stdin {
            // One that does not read its input has gone, and says why below.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
        let mut answer = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        }
        Ok::<_, std::io::Error>((answer, child.wait().await?))
    };
    let talked = tokio::time::timeout(HELPER_DEADLINE, talk).await;
    let (answer, status) = talked
        .map_err(|_| Error::unavailable(format!("{}: no answer within {HELPER_DEADLINE:?}", step())))?
        .step(step)?;
    if !status.success() {
        let words = String::from_utf8_lossy(&answer);
        if words.contains("credentials not found") {
            return Ok(None);
        }
        let words: String = words.trim().chars().filter(|c| !c.is_control()).take(200).collect();
        return Err(Error::unavailable(format!("{}: {status}: {words}", step())));
    }
    let answer: HelperAnswer = serde_json::from_slice(&answer)
        .map_err(|_| Error::unavailable(format!("{}: the answer is not a credential", step())))?;
    let auth = match answer.username.as_str() {
        "<token>" => Auth { identity_token: answer.secret, ..Auth::default() },
        _ => Auth { username: answer.username, password: answer.secret, ..Auth::default() },
    };
    Ok(Some(auth))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    async fn found(text: &str, host: &str, repository: &str) -> Option<Auth> {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        let files = [root.path().join("missing"), path];
        find(&files, host, repository).await.unwrap()
    }

    #[tokio::test]
    async fn the_most_specific_entry_is_taken() {
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOmh1Yg=="},
            "a.lan:5000": {"username": "host", "password": "p"},
            "a.lan:5000/team": {"auth": "dGVhbTpw"},
            "b.lan": {"auth": "PHRva2VuPjo=", "identitytoken": "refresh"},
            "c.lan": {}
        }}"#;
        assert_eq!(found(text, "docker.io", "library/x").await.unwrap().auth, "aHViOmh1Yg==");
        assert_eq!(found(text, "a.lan:5000", "team/x").await.unwrap().auth, "dGVhbTpw");
        assert_eq!(found(text, "a.lan:5000", "teams/x").await.unwrap().username, "host");
        let identity = found(text, "b.lan", "x").await.unwrap();
        assert_eq!((identity.identity_token.as_str(), identity.auth.as_str()), ("refresh", ""));
        for host in ["c.lan", "a.lan", "d.lan"] {
            assert!(found(text, host, "x").await.is_none(), "{host}");
        }
        assert!(found("", "a.lan", "x").await.is_none());
    }

    #[tokio::test]
    async fn a_broken_file_is_named_but_not_shown() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("config.json");
        std::fs::write(&path, r#"{"auths": {"a.lan": {"auth": "c2VjcmV0", }}}"#).unwrap();
        let error = find(std::slice::from_ref(&path), "a.lan", "x").await.unwrap_err();
        assert!(error.message.contains("config.json") && !error.message.contains("c2Vj"), "{error}");
        std::fs::write(&path, r#"{"credsStore": "../../bin/sh"}"#).unwrap();
        let error = find(&[path], "a.lan", "x").await.unwrap_err();
        assert!(error.message.contains("helper's name"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&bytes).map(|file| file.look_up("a.lan", "b/c").is_some());
        }
    }
}
