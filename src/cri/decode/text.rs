//! Strings that end up in system calls, paths and configuration files.

use crate::error::{Error, Result};

/// Without NUL, at which the kernel would end it.
pub(super) fn plain(field: &str, text: String) -> Result<String> {
    match text.contains('\0') {
        true => Err(Error::invalid(format!("{field} contains a NUL byte"))),
        false => Ok(text),
    }
}

/// Without white space and control characters: an entry of a line in a file of ours.
pub(super) fn word(field: &str, text: String) -> Result<String> {
    match text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        true => Err(Error::invalid(format!("{field} contains white space or control characters: {text:?}"))),
        false => Ok(text),
    }
}

pub(super) fn words(field: &str, texts: Vec<String>) -> Result<Vec<String>> {
    each(field, texts, word)
}

/// `check` on each, under the field's name with the index.
pub(super) fn each<T, U>(field: &str, items: Vec<T>, check: impl Fn(&str, T) -> Result<U>) -> Result<Vec<U>> {
    items.into_iter().enumerate().map(|(i, item)| check(&format!("{field}[{i}]"), item)).collect()
}

/// An absolute path, as given.
pub(super) fn absolute(field: &str, path: String) -> Result<String> {
    let path = plain(field, path)?;
    match path.starts_with('/') {
        true => Ok(path),
        false => Err(Error::invalid(format!("{field} is not an absolute path: {path:?}"))),
    }
}

/// An absolute path inside a container in its shortest form. `..` is resolved by name and stops
/// at the root, as the peers do it: `/a/../../b/` is `/b`. What it leads to is resolved by the
/// kernel below the root filesystem, so symbolic links are of no concern here.
pub(super) fn clean(field: &str, path: String) -> Result<String> {
    let path = absolute(field, path)?;
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

/// A path whose parts all lead downwards. It may be empty.
pub(super) fn downward(field: &str, path: String) -> Result<String> {
    let path = plain(field, path)?;
    match path.split('/').any(|part| part == "..") {
        true => Err(Error::invalid(format!("{field} contains \"..\": {path:?}"))),
        false => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_in_a_container_are_cleaned() {
        let clean = |path: &str| clean("f", path.into()).unwrap();
        assert_eq!(clean("/data"), "/data");
        assert_eq!(clean("//a/./b/"), "/a/b");
        assert_eq!(clean("/a/../../b"), "/b");
        assert_eq!(clean("/.."), "/");
        assert!(super::clean("f", "a/b".into()).is_err());
    }

    #[test]
    fn a_line_cannot_be_broken() {
        assert!(word("f", "10.0.0.1\nnameserver 6.6.6.6".into()).is_err());
        assert!(word("f", "ndots:5".into()).is_ok());
    }

    proptest! {
        #[test]
        fn a_clean_path_leads_down_from_the_root(path in "/([a.]{0,3}/){0,6}[a.]{0,3}") {
            let clean = clean("f", path).unwrap();
            prop_assert!(clean.starts_with('/'));
            prop_assert!(clean == "/" || clean[1..].split('/').all(|p| !matches!(p, "" | "." | "..")));
            prop_assert_eq!(super::clean("f", clean.clone()).unwrap(), clean);
        }
    }
}
