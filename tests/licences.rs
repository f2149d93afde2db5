//! What deny.toml says of licences, bans and sources, checked without a network and without
//! cargo-deny: both programs carry all of their dependencies with them.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    license: Option<String>,
    /// None: a path.
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
}

#[derive(Deserialize)]
struct Policy {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: HashSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: HashSet<String>,
}

fn policy() -> Policy {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml")).unwrap();
    toml::from_str(&text).unwrap()
}

/// The packages that are built for this target, ours among them.
fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--locked", "--format-version=1"])
        .arg("--filter-platform=x86_64-unknown-linux-gnu")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).unwrap();
    let built: HashSet<_> = metadata.resolve.nodes.into_iter().map(|node| node.id).collect();
    metadata.packages.into_iter().filter(|package| built.contains(&package.id)).collect()
}

/// Whether an SPDX expression (SPDX 2.3, annex D) can be met with the licences in `allow`.
fn is_met(expression: &str, allow: &HashSet<String>) -> bool {
    // Older manifests have a slash for OR.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let spaced = spaced.replace(" WITH ", "+WITH+");
    let mut words = spaced.split_ascii_whitespace().peekable();
    let met = alternatives(&mut words, allow);
    assert!(words.next().is_none(), "{expression:?} is no licence expression");
    met
}

type Words<'a> = std::iter::Peekable<std::str::SplitAsciiWhitespace<'a>>;

fn alternatives(words: &mut Words<'_>, allow: &HashSet<String>) -> bool {
    let mut met = all_of(words, allow);
    while words.next_if_eq(&"OR").is_some() {
        met |= all_of(words, allow);
    }
    met
}

fn all_of(words: &mut Words<'_>, allow: &HashSet<String>) -> bool {
    let mut met = one(words, allow);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allow);
    }
    met
}

fn one(words: &mut Words<'_>, allow: &HashSet<String>) -> bool {
    match words.next() {
        Some("(") => {
            let met = alternatives(words, allow);
            assert_eq!(words.next(), Some(")"));
            met
        }
        Some(name) => allow.contains(&name.replace("+WITH+", " WITH ")),
        None => false,
    }
}

#[test]
fn every_dependency_has_a_licence_that_we_may_link() {
    let policy = policy();
    let packages = packages();
    assert!(packages.len() > 100, "{} packages", packages.len());
    let wrong: Vec<_> = packages
        .iter()
        .filter(|p| !p.license.as_deref().is_some_and(|licence| is_met(licence, &policy.licenses.allow)))
        .map(|p| format!("{}: {:?}", p.name, p.license))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_dependency_is_banned_or_from_elsewhere() {
    let policy = policy();
    for package in packages() {
        assert!(!policy.bans.deny.contains(&package.name), "{} is banned by deny.toml", package.name);
        let known = match &package.source {
            Some(source) => source.starts_with("registry+"),
            None => package.name == "podwright",
        };
        assert!(known, "{} comes from {:?}", package.name, package.source);
    }
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    let allow = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for met in ["MIT", "GPL-3.0/MIT", "(GPL-2.0 OR MIT) AND ISC", "Apache-2.0 WITH LLVM-exception OR X"] {
        assert!(is_met(met, &allow), "{met}");
    }
    for unmet in ["GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0", "MIT AND (ISC AND GPL-2.0 OR X)", ""] {
        assert!(!is_met(unmet, &allow), "{unmet}");
    }
}
