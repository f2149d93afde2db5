//! Names of cgroups: kubelet's cgroup_parent, systemd's slices, and our own.

use crate::Result;
use crate::error::Error;

/// A path below the root of each hierarchy: absolute, without `.`, `..`, empty or odd components.
pub(super) fn normalise(path: &str) -> Result<String> {
    let mut clean = String::with_capacity(path.len() + 1);
    for component in path.split('/').filter(|c| !c.is_empty()) {
        check_name(component).map_err(|e| e.during(format!("cgroup path {path:?}")))?;
        clean.push('/');
        clean.push_str(component);
    }
    Ok(clean)
}

/// One component of a path.
pub(super) fn check_name(name: &str) -> Result<()> {
    let odd = name.is_empty()
        || name == "."
        || name == ".."
        || name.len() > 255
        || name.contains(|c: char| c == '/' || c.is_control());
    if odd { Err(Error::invalid(format!("{name:?} cannot name a cgroup"))) } else { Ok(()) }
}

/// `/a/b/c` → `/a/b`; of a top-level path the empty one, which is the root.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

pub(super) fn base(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, base)| base)
}

/// The directories of a slice, by systemd.slice(5): a dash is a level, so `a-b.slice` is
/// `/a.slice/a-b.slice`. `-.slice` is the root.
pub(super) fn expand_slice(slice: &str) -> Result<String> {
    let refuse = || Error::invalid(format!("{slice:?} is not the name of a systemd slice"));
    check_name(slice)?;
    let stem = slice.strip_suffix(".slice").ok_or_else(refuse)?;
    if stem == "-" {
        return Ok(String::new());
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":_.\\@-".contains(c);
    if stem.split('-').any(str::is_empty) || !stem.chars().all(allowed) {
        return Err(refuse());
    }
    let mut path = String::new();
    let dashes = stem.match_indices('-').map(|(at, _)| at);
    for end in dashes.chain([stem.len()]) {
        path.push('/');
        path.push_str(&stem[..end]);
        path.push_str(".slice");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn b28_slices_expand_into_nested_directories() {
        assert_eq!(
            expand_slice("kubepods-burstable-pod1_2.slice").unwrap(),
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"
        );
        assert_eq!(expand_slice("system.slice").unwrap(), "/system.slice");
        assert_eq!(expand_slice("-.slice").unwrap(), "");
        for bad in
            ["", "a", ".slice", "-a.slice", "a-.slice", "a--b.slice", "a/b.slice", "a b.slice", "a\n.slice"]
        {
            assert!(expand_slice(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn parents_that_climb_are_refused() {
        for bad in ["/a/../b", "..", "/./a", "/a\nb", "/a\0"] {
            assert!(normalise(bad).is_err(), "{bad:?}");
        }
        assert_eq!(normalise("kubepods//pod1/").unwrap(), "/kubepods/pod1");
        assert_eq!(normalise("/").unwrap(), "");
        assert_eq!(parent("/a/b"), "/a");
        assert_eq!(parent("/a"), "");
        assert_eq!(base("/a/b"), "b");
    }

    proptest! {
        #[test]
        fn normalised_paths_stay_below_the_root(path in "[a-z./]{0,30}") {
            if let Ok(clean) = normalise(&path) {
                prop_assert!(clean.is_empty() || clean.starts_with('/'));
                prop_assert!(clean.split('/').skip(1).all(|c| !c.is_empty() && c != "." && c != ".."));
                prop_assert_eq!(normalise(&clean).unwrap(), clean);
            }
        }

        #[test]
        fn a_slice_ends_in_its_own_name(stem in "[a-z0-9]{1,8}(-[a-z0-9_]{1,8}){0,4}") {
            let slice = format!("{stem}.slice");
            let path = expand_slice(&slice).unwrap();
            prop_assert_eq!(base(&path), &slice);
            prop_assert_eq!(path.matches('/').count(), stem.matches('-').count() + 1);
        }
    }
}
