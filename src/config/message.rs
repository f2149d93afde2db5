//! What is wrong with a configuration file, as a sentence with file, line and nearest key.

use std::path::Path;

/// `FILE:LINE: unknown key "brigde"; did you mean "bridge"?`
pub(super) fn of(path: &Path, text: &str, error: &toml::de::Error) -> String {
    let line = match error.span() {
        Some(span) => format!("{}:{}", path.display(), line(text, span.start)),
        None => path.display().to_string(),
    };
    format!("{line}: {}", sentence(error.message()))
}

/// Counted from one.
fn line(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
}

/// serde's "unknown field `a`, expected one of `b`, `c`" (or "unknown variant …"), in our words.
fn sentence(message: &str) -> String {
    let message = message.trim().replace('\n', ", ");
    let unknown = [("unknown field ", "key"), ("unknown variant ", "value")];
    for (prefix, what) in unknown {
        let Some((name, expected)) = message.strip_prefix(prefix).and_then(|m| m.split_once(", ")) else {
            continue;
        };
        let name = name.trim_matches('`');
        let known = quoted(expected);
        return match nearest(name, &known) {
            Some(nearest) => format!("unknown {what} {name:?}; did you mean {nearest:?}?"),
            None => format!("unknown {what} {name:?}; known here: {}", known.join(", ")),
        };
    }
    message
}

/// The words in backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The known word that `name` most likely was meant to be, if one is at all like it.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let plain = |word: &str| word.to_lowercase().replace('-', "_");
    let name = plain(name);
    let (distance, best) = known.iter().map(|word| (distance(&name, word), *word)).min()?;
    let contained = || known.iter().find(|word| word.contains(&name) || name.contains(*word)).copied();
    if distance <= 1 + name.chars().count() / 3 { Some(best) } else { contained() }
}

/// Insertions, deletions, changes, and swaps of neighbours that make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;

    fn message(text: &str) -> String {
        of(Path::new("/etc/x.toml"), text, &toml::from_str::<Config>(text).unwrap_err())
    }

    #[test]
    fn unknown_keys_name_file_line_and_nearest_key() {
        let cases = [
            ("\nlisten_ = '/x'", "/etc/x.toml:2: unknown key \"listen_\"; did you mean \"listen\"?"),
            ("[netwrok]\n", "/etc/x.toml:1: unknown key \"netwrok\"; did you mean \"network\"?"),
            (
                "[network]\n\ncni-conf-dir = '/x'",
                "/etc/x.toml:3: unknown key \"cni-conf-dir\"; did you mean \"cni_conf_dir\"?",
            ),
            (
                "[cgroup]\ndriver = 'systemD'",
                "/etc/x.toml:2: unknown value \"systemD\"; did you mean \"systemd\"?",
            ),
            ("[network]\nmode = 'x'", "/etc/x.toml:2: unknown value \"x\"; known here: builtin, cni"),
            ("network.brid = 'x'", "/etc/x.toml:1: unknown key \"brid\"; did you mean \"bridge\"?"),
            (
                "[image]\nmirrors = []",
                "/etc/x.toml:2: unknown key \"mirrors\"; known here: insecure_registries, certs_dirs, \
                 registries_conf, auth_files, pinned, stall_timeout, layer_bytes, layer_entries, \
                 layer_depth, proxy",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(message(text), expected);
        }
    }

    #[test]
    fn wrong_types_and_syntax_name_file_and_line() {
        let text = message("[network]\nmtu = 'big'");
        assert!(text.starts_with("/etc/x.toml:2: invalid type: string \"big\", expected u32"), "{text}");
        let text = message("a = 1\nb = ");
        assert!(text.starts_with("/etc/x.toml:2: "), "{text}");
        let text = message("log_level = 'info'\nlog_level = 'warn'");
        assert!(text.starts_with("/etc/x.toml:2: duplicate key"), "{text}");
    }

    proptest! {
        #[test]
        fn the_distance_is_symmetric_and_bounded(a in "[a-e]{0,8}", b in "[a-e]{0,8}") {
            let d = distance(&a, &b);
            prop_assert_eq!(d, distance(&b, &a));
            prop_assert!(d <= a.len().max(b.len()));
            prop_assert_eq!(d == 0, a == b);
        }

        #[test]
        fn any_text_gives_a_sentence(text in "\\PC{0,60}") {
            if let Err(error) = toml::from_str::<Config>(&text) {
                prop_assert!(of(Path::new("x"), &text, &error).starts_with('x'));
            }
        }
    }
}
