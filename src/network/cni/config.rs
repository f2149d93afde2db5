//! Network configurations as libcni reads them: `*.conflist`, and `*.conf` and `*.json` with a
//! single plugin; sorted by name, the first valid one is used.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde_json::{Map, Value};

/// The versions of the specification that are spoken here, oldest first. Results before 0.3.0 have
/// another shape, and there is no chaining before that.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// From here on a plugin can be asked to drop what is stale (GC).
pub const WITH_GC: &str = "1.1.0";

/// A network: plugins that are run in turn.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkList {
    pub name: String,
    /// Those that the configuration allows, best first: never empty, all of [`VERSIONS`].
    pub versions: Vec<String>,
    pub disable_gc: bool,
    pub plugins: Vec<PluginConfig>,
    /// As it was read, for the cache.
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct PluginConfig {
    /// The name of the executable.
    pub kind: String,
    /// What of `runtimeConfig` it wants.
    pub capabilities: BTreeSet<String>,
    /// All of its keys, for the plugin to read.
    pub keys: Map<String, Value>,
}

/// Parses a configuration list, or a single plugin's configuration (which has a `type`).
///
/// # Errors
/// What is wrong, to follow the file's name.
pub fn parse(bytes: &[u8]) -> Result<NetworkList, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| format!("not JSON: {e}"))?;
    let Value::Object(keys) = value else { return Err("not a JSON object".into()) };
    let name = match keys.get("name") {
        Some(Value::String(name)) if is_network_name(name) => name.clone(),
        Some(other) => return Err(format!("{other} is not a name for a network")),
        None => return Err("no \"name\"".into()),
    };
    let versions = versions(&keys)?;
    let disable_gc = matches!(keys.get("disableGC"), Some(Value::Bool(true)));
    let plugins = match keys.get("plugins") {
        Some(Value::Array(plugins)) if plugins.is_empty() => return Err("\"plugins\" is empty".into()),
        Some(Value::Array(plugins)) => plugins.iter().map(plugin).collect::<Result<_, _>>()?,
        Some(_) => return Err("\"plugins\" is not a list".into()),
        None if keys.contains_key("type") => vec![plugin(&Value::Object(keys))?],
        None => return Err("neither \"plugins\" nor \"type\"".into()),
    };
    Ok(NetworkList { name, versions, disable_gc, plugins, bytes: bytes.to_vec() })
}

fn versions(keys: &Map<String, Value>) -> Result<Vec<String>, String> {
    let mut named: Vec<&str> = Vec::new();
    named.extend(keys.get("cniVersion").and_then(Value::as_str));
    let list = keys.get("cniVersions").and_then(Value::as_array);
    named.extend(list.into_iter().flatten().filter_map(Value::as_str));
    if named.is_empty() {
        return Err("no \"cniVersion\"".into());
    }
    let known: Vec<_> =
        VERSIONS.iter().rev().filter(|v| named.contains(v)).map(|v| (*v).to_owned()).collect();
    if known.is_empty() {
        let (asked, ours) = (named.join(", "), VERSIONS.join(", "));
        return Err(format!("CNI version {asked} is none of those spoken here: {ours}"));
    }
    Ok(known)
}

fn plugin(value: &Value) -> Result<PluginConfig, String> {
    let Value::Object(keys) = value else { return Err("a plugin is not a JSON object".into()) };
    let kind = match keys.get("type") {
        Some(Value::String(kind)) if is_file_name(kind) => kind.clone(),
        Some(other) => return Err(format!("{other} is not a name for a plugin")),
        None => return Err("a plugin has no \"type\"".into()),
    };
    let capabilities = keys.get("capabilities").and_then(Value::as_object).into_iter().flatten();
    let capabilities = capabilities.filter(|(_, v)| **v == Value::Bool(true)).map(|(k, _)| k.clone());
    Ok(PluginConfig { kind, capabilities: capabilities.collect(), keys: keys.clone() })
}

/// The specification's: it becomes part of file names.
fn is_network_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    name.bytes().all(plain) && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\0']) && !matches!(name, "." | "..")
}

/// The configurations of a directory, read again when it changes.
pub struct ConfigDir {
    dir: PathBuf,
    read: Mutex<Option<(Vec<Stamp>, Outcome)>>,
}

/// The configuration in use, or the reason why there is none.
type Outcome = Result<Arc<Loaded>, String>;

#[derive(Debug)]
pub struct Loaded {
    pub path: PathBuf,
    pub list: NetworkList,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    modified: Option<SystemTime>,
    length: u64,
}

impl ConfigDir {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, read: Mutex::new(None) }
    }

    /// Whether there is anything that would be a configuration, valid or not.
    pub fn has_any(&self) -> bool {
        !self.stamps().is_empty()
    }

    /// The first valid configuration. Err: why there is none, naming the file at fault.
    pub fn current(&self) -> Outcome {
        let stamps = self.stamps();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((earlier, outcome)) = &*read
            && *earlier == stamps
        {
            return outcome.clone();
        }
        let outcome = self.load(&stamps);
        *read = Some((stamps, outcome.clone()));
        outcome
    }

    fn load(&self, stamps: &[Stamp]) -> Outcome {
        let mut wrong = Vec::new();
        for Stamp { path, .. } in stamps {
            let parsed = fs::read(path).map_err(|e| e.to_string()).and_then(|bytes| parse(&bytes));
            match parsed {
                Ok(list) => return Ok(Arc::new(Loaded { path: path.clone(), list })),
                Err(reason) => {
                    tracing::warn!(path = %path.display(), reason, "a CNI configuration is passed over");
                    wrong.push(format!("{}: {reason}", path.display()));
                }
            }
        }
        match wrong.is_empty() {
            true => Err(format!("no CNI configuration in {}", self.dir.display())),
            false => Err(format!("no valid CNI configuration: {}", wrong.join("; "))),
        }
    }

    fn stamps(&self) -> Vec<Stamp> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut stamps: Vec<_> = entries.filter_map(|e| stamp(&e.path())).collect();
        stamps.sort_by(|a, b| a.path.cmp(&b.path));
        stamps
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let extension = path.extension()?.to_str()?;
    if !matches!(extension, "conflist" | "conf" | "json") {
        return None;
    }
    // A link is followed: ConfigMaps are mounted as links.
    let metadata = fs::metadata(path).ok().filter(|m| m.is_file())?;
    Some(Stamp { path: path.into(), modified: metadata.modified().ok(), length: metadata.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_and_single_plugins_are_read() {
        let list = parse(
            br#"{"cniVersion":"1.0.0","name":"net","plugins":[
                {"type":"bridge","x":1},
                {"type":"portmap","capabilities":{"portMappings":true,"no":false}}]}"#,
        )
        .unwrap();
        assert_eq!((list.name.as_str(), list.versions.clone()), ("net", vec!["1.0.0".to_owned()]));
        assert_eq!(list.plugins.iter().map(|p| p.kind.as_str()).collect::<Vec<_>>(), ["bridge", "portmap"]);
        assert_eq!(list.plugins[1].capabilities.iter().collect::<Vec<_>>(), ["portMappings"]);
        let one = parse(br#"{"cniVersion":"0.3.1","name":"net","type":"ptp"}"#).unwrap();
        assert_eq!(one.plugins[0].kind, "ptp");
    }

    #[test]
    fn of_several_versions_the_best_known_comes_first() {
        let text =
            br#"{"cniVersion":"0.4.0","cniVersions":["0.4.0","1.1.0","9.0.0"],"name":"n","type":"ptp"}"#;
        assert_eq!(parse(text).unwrap().versions, ["1.1.0", "0.4.0"]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, reason) in [
            ("{", "not JSON"),
            ("[]", "not a JSON object"),
            (r#"{"cniVersion":"1.0.0"}"#, "no \"name\""),
            (r#"{"cniVersion":"1.0.0","name":"../x","type":"a"}"#, "not a name for a network"),
            (r#"{"name":"n","type":"a"}"#, "no \"cniVersion\""),
            (r#"{"cniVersion":"2.0.0","name":"n","type":"a"}"#, "CNI version 2.0.0 is none"),
            (r#"{"cniVersion":"1.0.0","name":"n"}"#, "neither"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "is empty"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#, "no \"type\""),
            (r#"{"cniVersion":"1.0.0","name":"n","type":"../../bin/sh"}"#, "not a name for a plugin"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_valid_file_is_used_and_changes_are_seen() {
        let tmp = tempfile::tempdir().unwrap();
        let configs = ConfigDir::new(tmp.path().join("net.d"));
        assert!(configs.current().unwrap_err().contains("no CNI configuration in"));
        fs::create_dir(tmp.path().join("net.d")).unwrap();
        let write = |name: &str, text: &str| fs::write(tmp.path().join("net.d").join(name), text).unwrap();
        write("10-bad.conflist", "{}");
        let reason = configs.current().unwrap_err();
        assert!(reason.contains("10-bad.conflist: no \"name\""), "{reason}");
        write("30-b.conf", r#"{"cniVersion":"1.0.0","name":"b","type":"x"}"#);
        write("20-a.json", r#"{"cniVersion":"1.0.0","name":"a","type":"x"}"#);
        write("00-no.txt", r#"{"cniVersion":"1.0.0","name":"no","type":"x"}"#);
        assert_eq!(configs.current().unwrap().list.name, "a");
        fs::remove_file(tmp.path().join("net.d/20-a.json")).unwrap();
        assert_eq!(configs.current().unwrap().list.name, "b");
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
        }
    }
}
