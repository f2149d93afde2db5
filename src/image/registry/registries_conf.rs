//! containers' `registries.conf` (containers-registries.conf(5), version 2), as CRI-O reads it:
//! mirrors, other locations, blocked and insecure registries, aliases and the search of short names.
//!
//! Files of `FILE.d/*.conf` follow in the order of their names; a registry of theirs replaces the
//! one with the same prefix. All are read again only after one of them has changed: each question about
//! an image by a short name comes here.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::error::Step;
use crate::{Error, Result};

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct RegistriesConf {
    #[serde(default, rename = "unqualified-search-registries")]
    search: Option<Vec<String>>,
    #[serde(default, rename = "registry")]
    registries: Vec<Rule>,
    #[serde(default)]
    aliases: HashMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rule {
    /// HOST[/NAMESPACE…], or `*.DOMAIN`; where it is missing the location is it.
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    pub insecure: bool,
    #[serde(default)]
    pub blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default, rename = "mirror")]
    mirrors: Vec<Mirror>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: Option<PullFrom>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PullFrom {
    All,
    DigestOnly,
    TagOnly,
}

/// Where to ask for an image: `HOST/REPOSITORY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub name: String,
    pub insecure: bool,
    /// The image's own registry, not a mirror of it.
    pub own: bool,
}

/// A change this young may be followed by one that no stamp tells: file systems count time in ticks.
const YOUNG: Duration = Duration::from_millis(100);

/// The file and its drop-ins, as they were when they were read last.
#[derive(Debug, Default)]
pub struct Files {
    /// None: there is nothing to be read.
    path: Option<PathBuf>,
    last: Mutex<Option<(Vec<Stamp>, Arc<RegistriesConf>)>>,
}

/// What tells that a file or directory has changed, or come, or gone.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    /// Inode, size, and the times of the last change of content and of anything, in nanoseconds.
    of_it: Option<(u64, u64, i128, i128)>,
}

impl Stamp {
    fn of(path: PathBuf) -> Self {
        let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let of_it = std::fs::metadata(&path).ok().map(|meta| {
            let (mtime, ctime) =
                (time(meta.mtime(), meta.mtime_nsec()), time(meta.ctime(), meta.ctime_nsec()));
            (meta.ino(), meta.size(), mtime, ctime)
        });
        Self { path, of_it }
    }

    fn is_young(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = now.saturating_sub(YOUNG).as_nanos();
        self.of_it.is_some_and(|(.., ctime)| ctime > i128::try_from(since).unwrap_or(i128::MAX))
    }
}

impl Files {
    pub fn new(path: Option<PathBuf>) -> Self {
        Self { path, last: Mutex::default() }
    }

    /// What they say now. INVALID_ARGUMENT names the file that is wrong.
    pub fn read(&self) -> Result<Arc<RegistriesConf>> {
        let Some(path) = &self.path else { return Ok(Arc::default()) };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((stamps, conf)) = &*last
            && stamps.iter().all(|stamp| Stamp::of(stamp.path.clone()) == *stamp)
        {
            return Ok(Arc::clone(conf));
        }
        // Taken before reading: a change in between is found next time.
        let mut stamps = vec![Stamp::of(directory_of(path)), Stamp::of(path.clone())];
        let files = drop_ins(path)?;
        stamps.extend(files.iter().cloned().map(Stamp::of));
        let conf = Arc::new(RegistriesConf::read(path, files)?);
        *last = (!stamps.iter().any(Stamp::is_young)).then(|| (stamps, Arc::clone(&conf)));
        Ok(conf)
    }
}

impl RegistriesConf {
    /// Reads the file and its drop-ins; none of them needs to be there.
    fn read(path: &Path, drop_ins: Vec<PathBuf>) -> Result<Self> {
        let mut conf = Self::default();
        for path in std::iter::once(path.to_owned()).chain(drop_ins) {
            match std::fs::read_to_string(&path) {
                Ok(text) => conf.merge(parse(&text).map_err(|e| e.during(path.display()))?),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
            }
        }
        Ok(conf)
    }

    fn merge(&mut self, other: Self) {
        if other.search.is_some() {
            self.search = other.search;
        }
        for rule in other.registries {
            self.registries.retain(|old| old.prefix != rule.prefix);
            self.registries.push(rule);
        }
        self.aliases.extend(other.aliases);
    }

    /// The rule with the longest prefix of `name` (`HOST/REPOSITORY`).
    pub fn rule(&self, name: &str) -> Option<&Rule> {
        let fitting = self.registries.iter().filter(|rule| rule.rest(name).is_some());
        fitting.max_by_key(|rule| rule.prefix.len())
    }

    /// What a name without a registry's host may mean, the likeliest first. Empty: nothing is said.
    pub fn full_names(&self, text: &str) -> Vec<String> {
        let end = text.find(['@', ':']).unwrap_or(text.len());
        let (name, version) = text.split_at(end);
        if let Some(full) = self.aliases.get(name).filter(|full| !full.is_empty()) {
            return vec![format!("{full}{version}")];
        }
        let search = self.search.iter().flatten();
        search.map(|registry| format!("{}/{text}", registry.trim_end_matches('/'))).collect()
    }
}

impl Rule {
    /// What follows the prefix in `name`.
    fn rest<'a>(&self, name: &'a str) -> Option<&'a str> {
        if let Some(domain) = self.prefix.strip_prefix('*') {
            let slash = name.find('/').unwrap_or(name.len());
            let host = name[..slash].split(':').next().unwrap_or_default();
            return host.ends_with(domain).then(|| &name[slash..]);
        }
        let rest = name.strip_prefix(self.prefix.as_str())?;
        (rest.is_empty() || rest.starts_with('/')).then_some(rest)
    }

    /// Where to ask for `name`, which the rule is for, in order.
    pub fn places(&self, name: &str, by_digest: bool) -> Vec<Place> {
        let rest = self.rest(name).unwrap_or_default();
        let wanted = |mirror: &&Mirror| match mirror.pull_from_mirror {
            Some(PullFrom::All) => true,
            Some(PullFrom::DigestOnly) => by_digest,
            Some(PullFrom::TagOnly) => !by_digest,
            None => by_digest || !self.mirror_by_digest_only,
        };
        let mut places: Vec<_> = self
            .mirrors
            .iter()
            .filter(wanted)
            .map(|m| Place { name: format!("{}{rest}", m.location), insecure: m.insecure, own: false })
            .collect();
        let location = if self.location.is_empty() { name.to_owned() } else { self.location.clone() + rest };
        places.push(Place { name: location, insecure: self.insecure, own: true });
        places
    }
}

/// Parses one file. Version 1 of the format is refused by name.
pub fn parse(text: &str) -> Result<RegistriesConf> {
    let wrong = |e: toml::de::Error| Error::invalid(e.message().replace('\n', ", "));
    let table: toml::Table = toml::from_str(text).map_err(wrong)?;
    if table.contains_key("registries") {
        return Err(Error::invalid("this is version 1 of registries.conf; only version 2 is read"));
    }
    let mut conf: RegistriesConf = table.try_into().map_err(wrong)?;
    for rule in &mut conf.registries {
        if rule.prefix.is_empty() {
            rule.prefix.clone_from(&rule.location);
        }
        if rule.prefix.is_empty() {
            return Err(Error::invalid("a registry has neither prefix nor location"));
        }
        if rule.prefix.starts_with('*') && !rule.prefix.starts_with("*.") {
            return Err(Error::invalid(format!("prefix {:?}: a wildcard is `*.DOMAIN`", rule.prefix)));
        }
        for location in rule.mirrors.iter().map(|m| &m.location).chain([&rule.location]) {
            if location.contains("://") || location.ends_with('/') {
                return Err(Error::invalid(format!("location {location:?} is not HOST[:PORT][/PATH]")));
            }
        }
    }
    Ok(conf)
}

fn directory_of(path: &Path) -> PathBuf {
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    directory.into()
}

fn drop_ins(path: &Path) -> Result<Vec<PathBuf>> {
    let directory = directory_of(path);
    let Ok(entries) = std::fs::read_dir(&directory) else { return Ok(Vec::new()) };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.step(|| format!("reading {}", directory.display()))?.path();
        if path.extension().is_some_and(|e| e == "conf") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONF: &str = r#"
        unqualified-search-registries = ["a.lan", "docker.io"]
        short-name-mode = "enforcing"
        [aliases]
        "fedora" = "registry.fedoraproject.org/fedora"
        [[registry]]
        location = "docker.io"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "mirror.lan:5000/hub"
        insecure = true
        [[registry.mirror]]
        location = "tags.lan"
        pull-from-mirror = "tag-only"
        [[registry]]
        prefix = "docker.io/library"
        location = "inner.lan/lib"
        [[registry]]
        prefix = "*.bad.example"
        blocked = true
    "#;

    fn places(name: &str, by_digest: bool) -> Vec<(String, bool)> {
        let conf = parse(CONF).unwrap();
        let rule = conf.rule(name).unwrap();
        rule.places(name, by_digest).into_iter().map(|p| (p.name, p.insecure)).collect()
    }

    #[test]
    fn the_longest_prefix_decides() {
        assert_eq!(places("docker.io/library/busybox", false), [("inner.lan/lib/busybox".into(), false)]);
        let by_digest = [("mirror.lan:5000/hub/a/b".into(), true), ("docker.io/a/b".into(), false)];
        assert_eq!(places("docker.io/a/b", true), by_digest);
        let by_tag = [("tags.lan/a/b".into(), false), ("docker.io/a/b".into(), false)];
        assert_eq!(places("docker.io/a/b", false), by_tag);
        let conf = parse(CONF).unwrap();
        assert!(conf.rule("x.bad.example:5000/a").unwrap().blocked);
        assert!(conf.rule("bad.example/a").is_none() && conf.rule("docker.io.evil/a").is_none());
        assert_eq!(conf.rule("docker.io/library-x/a").unwrap().prefix, "docker.io");
    }

    #[test]
    fn short_names_have_aliases_or_are_searched() {
        let conf = parse(CONF).unwrap();
        assert_eq!(conf.full_names("fedora:41"), ["registry.fedoraproject.org/fedora:41"]);
        assert_eq!(conf.full_names("x/y"), ["a.lan/x/y", "docker.io/x/y"]);
        assert!(RegistriesConf::default().full_names("x").is_empty());
    }

    #[test]
    fn drop_ins_replace_by_prefix() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("registries.conf");
        let files = Files::new(Some(path.clone()));
        assert_eq!(*files.read().unwrap(), RegistriesConf::default());
        std::fs::write(&path, CONF).unwrap();
        std::fs::create_dir(root.path().join("registries.conf.d")).unwrap();
        let drop_in = "[[registry]]\nprefix = \"docker.io/library\"\nlocation = \"other.lan\"\n";
        std::fs::write(root.path().join("registries.conf.d/10.conf"), drop_in).unwrap();
        let conf = files.read().unwrap();
        let name = "docker.io/library/x";
        assert_eq!(conf.rule(name).unwrap().places(name, false)[0].name, "other.lan/x");
        assert_eq!(conf.full_names("x").len(), 2);
        std::fs::write(root.path().join("registries.conf.d/20.conf"), "[registries.search]").unwrap();
        assert!(files.read().unwrap_err().message.contains("20.conf: this is version 1"));
    }

    #[test]
    fn files_are_read_again_after_each_change_and_only_then() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("registries.conf");
        let drop_in = root.path().join("registries.conf.d/10.conf");
        let search = |host: &str| format!("unqualified-search-registries = [\"{host}\"]\n");
        let files = Files::new(Some(path.clone()));
        let names = || files.read().unwrap().full_names("x");
        std::fs::create_dir(drop_in.parent().unwrap()).unwrap();
        std::fs::write(&path, search("a.lan")).unwrap();
        assert_eq!(names(), ["a.lan/x"]);
        // As long and, perhaps, in the same tick.
        std::fs::write(&path, search("b.lan")).unwrap();
        assert_eq!(names(), ["b.lan/x"]);
        std::thread::sleep(2 * YOUNG);
        let first = files.read().unwrap();
        assert!(Arc::ptr_eq(&first, &files.read().unwrap()), "nothing has changed");
        std::fs::write(&drop_in, search("c.lan")).unwrap();
        assert_eq!(names(), ["c.lan/x"]);
        std::thread::sleep(2 * YOUNG);
        drop((names(), names()));
        std::fs::write(&drop_in, search("d.lan")).unwrap();
        assert_eq!(names(), ["d.lan/x"]);
        std::thread::sleep(2 * YOUNG);
        drop((names(), names()));
        std::fs::remove_file(&drop_in).unwrap();
        assert_eq!(names(), ["b.lan/x"]);
        std::fs::remove_file(&path).unwrap();
        assert!(names().is_empty());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("[[registry]]\ninsecure = true", "neither"),
            ("[[registry]]\nprefix = \"*x\"", "wildcard"),
            ("[[registry]]\nlocation = \"https://x\"", "https://x"),
            ("[[registry]]\nlocation = 1", "string"),
        ] {
            assert!(parse(text).unwrap_err().message.contains(word), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in "\\PC{0,80}") {
            let _ = parse(&text);
        }

        #[test]
        fn any_name_has_a_place_or_no_rule(name in "[a-z.*/:]{0,30}") {
            let conf = parse(CONF).unwrap();
            if let Some(rule) = conf.rule(&name) {
                prop_assert!(rule.places(&name, true).iter().any(|p| p.own));
            }
        }
    }
}
