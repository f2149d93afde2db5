//! Proportional set sizes, from smaps_rollup (proc_pid_smaps_rollup(5)).

use std::collections::BTreeMap;

/// KiB per process name of every process whose name begins with one of `names`.
pub fn pss(names: &[String]) -> BTreeMap<String, u64> {
    let mut sizes = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(comm) = std::fs::read_to_string(path.join("comm")) else { continue };
        let comm = comm.trim().to_owned();
        if !names.iter().any(|name| comm.starts_with(name.as_str())) {
            continue;
        }
        let Ok(rollup) = std::fs::read_to_string(path.join("smaps_rollup")) else { continue };
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let size = line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<u64>().ok());
        *sizes.entry(comm).or_default() += size.unwrap_or_default();
    }
    sizes
}
