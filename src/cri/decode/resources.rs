//! Limits of pods, containers and updates.

use std::collections::BTreeMap;

use crate::container::spec::Resources;
use crate::cri::decode::text;
use crate::cri::wire;
use crate::error::{Error, Result};

/// Unset is as empty: nothing is given.
pub(in crate::cri) fn resources(
    field: &str,
    wire: Option<wire::LinuxContainerResources>,
) -> Result<Resources> {
    let wire = wire.unwrap_or_default();
    let number = |name: &str, value: i64, least: i64| match value < least {
        true => Err(Error::invalid(format!("{field}.{name} is out of range: {value}"))),
        false => Ok(value),
    };
    if !(-1000..=1000).contains(&wire.oom_score_adj) {
        let value = wire.oom_score_adj;
        return Err(Error::invalid(format!("{field}.oom_score_adj is not within -1000 and 1000: {value}")));
    }
    Ok(Resources {
        cpu_period: number("cpu_period", wire.cpu_period, 0)?,
        // -1 stands for "no limit" in these three.
        cpu_quota: number("cpu_quota", wire.cpu_quota, -1)?,
        memory_limit: number("memory_limit_in_bytes", wire.memory_limit_in_bytes, -1)?,
        memory_swap_limit: number("memory_swap_limit_in_bytes", wire.memory_swap_limit_in_bytes, -1)?,
        cpu_shares: number("cpu_shares", wire.cpu_shares, 0)?,
        oom_score_adj: wire.oom_score_adj,
        cpuset_cpus: list(&format!("{field}.cpuset_cpus"), wire.cpuset_cpus)?,
        cpuset_mems: list(&format!("{field}.cpuset_mems"), wire.cpuset_mems)?,
        hugepage_limits: text::each(&format!("{field}.hugepage_limits"), wire.hugepage_limits, hugepage)?,
        unified: unified(&format!("{field}.unified"), wire.unified)?,
    })
}

/// The kernel's list format, of which only the characters are checked here.
fn list(field: &str, list: String) -> Result<String> {
    match list.bytes().all(|b| b.is_ascii_digit() || b == b',' || b == b'-') {
        true => Ok(list),
        false => Err(Error::invalid(format!("{field} is no list such as \"0-3,7\": {list:?}"))),
    }
}

/// The size becomes a part of a file's name.
fn hugepage(field: &str, limit: wire::HugepageLimit) -> Result<(String, u64)> {
    let size = limit.page_size;
    let number = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
    match number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
        true => Ok((size, limit.limit)),
        false => Err(Error::invalid(format!("{field}.page_size is no size such as \"2MB\": {size:?}"))),
    }
}

/// File names and what is written to them. Those that move processes or hand out controllers are
/// the runtime's own: a container must not leave its cgroup, or freeze or kill it, by a limit.
fn unified(field: &str, files: BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    for (name, value) in &files {
        let controller = name.split_once('.').map(|(controller, _)| controller);
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !plain || controller.is_none_or(|c| c.is_empty() || c == "cgroup") {
            return Err(Error::invalid(format!("{field} must not name the file {name:?}")));
        }
        if value.contains('\0') {
            return Err(Error::invalid(format!("{field}[{name:?}] contains a NUL byte")));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cri::encode;

    fn decode(wire: wire::LinuxContainerResources) -> Result<Resources> {
        resources("linux", Some(wire))
    }

    fn refused(change: impl Fn(&mut wire::LinuxContainerResources)) -> String {
        let mut wire = wire::LinuxContainerResources::default();
        change(&mut wire);
        decode(wire).unwrap_err().message
    }

    #[test]
    fn behaviour_38_a_hugepage_limit_of_zero_is_neutral() {
        let hugepage_limits = vec![wire::HugepageLimit { page_size: "2MB".into(), limit: 0 }];
        let decoded = decode(wire::LinuxContainerResources { hugepage_limits, ..Default::default() });
        assert_eq!(decoded.unwrap().hugepage_limits, [("2MB".to_owned(), 0)]);
        assert_eq!(resources("linux", None).unwrap(), Resources::default());
    }

    #[test]
    fn what_cannot_be_a_limit_is_named() {
        assert!(refused(|r| r.memory_limit_in_bytes = -2).contains("memory_limit_in_bytes"));
        assert!(refused(|r| r.cpu_shares = -1).contains("cpu_shares"));
        assert!(refused(|r| r.cpu_period = -1).contains("cpu_period"));
        assert!(refused(|r| r.oom_score_adj = -1001).contains("oom_score_adj"));
        assert!(refused(|r| r.cpuset_cpus = "0\n1".into()).contains("cpuset_cpus"));
        for size in ["", "MB", "2mb", "../2MB", "2MB/x", "2MB.x"] {
            let limit = wire::HugepageLimit { page_size: size.into(), limit: 1 };
            assert!(refused(|r| r.hugepage_limits = vec![limit.clone()]).contains("page_size"), "{size}");
        }
    }

    #[test]
    fn unified_does_not_reach_beyond_limits() {
        for name in ["cgroup.procs", "../memory.max", "memory", "", ".x", "memory.max\0"] {
            let files = BTreeMap::from([(name.to_owned(), "1".to_owned())]);
            assert!(refused(|r| r.unified = files.clone()).contains("unified"), "{name:?}");
        }
        let files = BTreeMap::from([("memory.high".to_owned(), "1".to_owned())]);
        let decoded = decode(wire::LinuxContainerResources { unified: files.clone(), ..Default::default() });
        assert_eq!(decoded.unwrap().unified, files);
    }

    proptest! {
        #[test]
        fn behaviour_30_limits_come_back_as_they_were_given(
            (period, quota, shares) in (0i64.., -1i64.., 0i64..),
            (memory, swap, oom) in (-1i64.., -1i64.., -1000i64..=1000),
            cpus in "[0-9,-]{0,8}",
            pages in prop::collection::vec(("[0-9]{1,4}(KB|MB|GB)", any::<u64>()), 0..3),
        ) {
            let page = |(page_size, limit): (String, u64)| wire::HugepageLimit { page_size, limit };
            let wire = wire::LinuxContainerResources {
                cpu_period: period,
                cpu_quota: quota,
                cpu_shares: shares,
                memory_limit_in_bytes: memory,
                memory_swap_limit_in_bytes: swap,
                oom_score_adj: oom,
                cpuset_mems: cpus.clone(),
                cpuset_cpus: cpus,
                hugepage_limits: pages.into_iter().map(page).collect(),
                unified: BTreeMap::from([("cpu.idle".to_owned(), "1".to_owned())]),
            };
            let decoded = decode(wire.clone()).unwrap();
            prop_assert_eq!(encode::container::resources(&decoded), wire);
        }
    }
}
