//! Reads the files and merges them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::config::{Config, DEFAULT_PATH, message};
use crate::error::Step;
use crate::{Error, Result};

impl Config {
    /// The file, or the default one, with its drop-ins; not validated yet, since flags follow.
    ///
    /// # Errors
    /// INVALID_ARGUMENT with file and line for what does not parse, an unknown key or a wrong
    /// type; a `file` that is named and missing. The default one may be missing.
    pub fn load(file: Option<&Path>) -> Result<Config> {
        let path = file.unwrap_or(Path::new(DEFAULT_PATH));
        let mut merged = toml::Table::new();
        match std::fs::read_to_string(path) {
            Ok(text) => merged = parse(path, &text)?,
            Err(e) if e.kind() == ErrorKind::NotFound && file.is_none() => {}
            Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
        }
        for path in drop_ins(path)? {
            let text = std::fs::read_to_string(&path).step(|| format!("reading {}", path.display()))?;
            merge(&mut merged, parse(&path, &text)?);
        }
        // Every part of it was accepted alone, with its file and line.
        merged.try_into().map_err(|e| Error::invalid(format!("{}: {}", path.display(), e.message())))
    }
}

/// `config.toml.d/*.toml` in the order of their names; none where the directory is missing.
fn drop_ins(config: &Path) -> Result<Vec<PathBuf>> {
    let mut dir = config.as_os_str().to_owned();
    dir.push(".d");
    let dir = PathBuf::from(dir);
    let step = || format!("reading {}", dir.display());
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(step(), e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.step(step)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|e| e == "toml") && !hidden {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A file as a table, once it is known to be a valid configuration by itself.
fn parse(path: &Path, text: &str) -> Result<toml::Table> {
    let refuse = |error: toml::de::Error| Error::invalid(message::of(path, text, &error));
    toml::from_str::<Config>(text).map_err(refuse)?;
    toml::from_str(text).map_err(refuse)
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::DEFAULT;
    use crate::network::Mode;

    #[test]
    fn the_example_is_the_default_and_names_every_key() {
        let example = parse(Path::new("manifests/config.toml"), DEFAULT).unwrap();
        assert_eq!(example.clone().try_into::<Config>().unwrap(), Config::default());
        let default = toml::Table::try_from(Config::default()).unwrap();
        assert_eq!(example, default, "a key is missing in manifests/config.toml");
        // Those without a default are there as comments, and valid.
        let all = DEFAULT.replace("# mode =", "mode =").replace("# mtu =", "mtu =");
        let all: Config = toml::from_str(&all).unwrap();
        assert_eq!((all.network.mode, all.network.mtu), (Some(Mode::Builtin), Some(1450)));
    }

    #[test]
    fn drop_ins_merge_by_name_and_the_later_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, "log_level = 'warn'\n[network]\nbridge = 'a0'\ncni_bin_dirs = ['/a', '/b']\n")
            .unwrap();
        let drop_ins = dir.path().join("config.toml.d");
        fs::create_dir(&drop_ins).unwrap();
        fs::write(drop_ins.join("20-b.toml"), "[network]\nbridge = 'c0'\n").unwrap();
        fs::write(drop_ins.join("10-a.toml"), "[network]\nbridge = 'b0'\ncni_bin_dirs = ['/c']\n").unwrap();
        fs::write(drop_ins.join("30-c.toml.bak"), "nonsense").unwrap();
        fs::write(drop_ins.join(".40-d.toml"), "nonsense").unwrap();
        let config = Config::load(Some(&path)).unwrap();
        assert_eq!(config.log_level, "warn");
        assert_eq!(config.network.bridge, "c0");
        assert_eq!(config.network.cni_bin_dirs, [PathBuf::from("/c")]);
        assert_eq!(config.network.subnet, "10.88.0.0/16");
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let error = Config::load(Some(&dir.path().join("absent.toml"))).unwrap_err();
        assert!(error.message.contains("absent.toml: no such file"), "{error}");
    }

    #[test]
    fn drop_ins_are_named_in_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, "").unwrap();
        fs::create_dir(dir.path().join("config.toml.d")).unwrap();
        fs::write(dir.path().join("config.toml.d/x.toml"), "\n[network]\nbrigde = 'x'\n").unwrap();
        let error = Config::load(Some(&path)).unwrap_err();
        assert!(error.message.contains("config.toml.d/x.toml:3: "), "{error}");
        assert!(error.message.contains("did you mean \"bridge\"?"), "{error}");
    }
}
