//! What the CRI's resources mean as files of cgroupfs, v1 and v2. Pure: nothing is written here.

use std::collections::BTreeMap;

use super::Warning;
use super::layout::{Layout, Place};
use super::weight::weight_of_shares;
use crate::Result;
use crate::container::spec::Resources;
use crate::error::Error;

/// One file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub place: Place,
    pub file: String,
    pub value: String,
    /// The field of the request, for errors.
    pub field: String,
    pub missing: Missing,
}

/// What a file that does not exist means for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// The value is what a host without the file does anyhow.
    Skip,
    /// A limit that degrades (BEHAVIOUR 38).
    Warn,
    /// A name that the request made up.
    Refuse,
}

/// Settings in the order in which they are best tried.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub settings: Vec<Setting>,
    pub warnings: Vec<Warning>,
}

/// What a file holds now; None where there is nothing yet.
pub(super) type Current<'a> = &'a dyn Fn(Place, &str) -> Option<String>;

/// Zero and empty mean not given, so nothing is planned for them.
pub(super) fn plan(layout: &Layout, resources: &Resources, current: Current<'_>) -> Result<Plan> {
    let mut plan = Plan::default();
    plan.cpu(layout, resources, current)?;
    plan.cpuset(layout, resources)?;
    plan.memory(layout, resources, current)?;
    plan.hugepages(layout, &resources.hugepage_limits)?;
    plan.unified(layout, &resources.unified)?;
    Ok(plan)
}

impl Plan {
    fn set(
        &mut self,
        place: Place,
        file: impl Into<String>,
        value: impl ToString,
        field: &str,
        missing: Missing,
    ) {
        let (file, value, field) = (file.into(), value.to_string(), field.to_owned());
        self.settings.retain(|s| s.place != place || s.file != file);
        self.settings.push(Setting { place, file, value, field, missing });
    }

    fn lacks(&mut self, field: &str, controller: &str) {
        self.warnings.push(format!("{field} has no effect: this host has no {controller} cgroup controller"));
    }

    fn cpu(&mut self, layout: &Layout, r: &Resources, current: Current<'_>) -> Result<()> {
        if r.cpu_shares < 0 || r.cpu_period < 0 {
            return Err(Error::invalid("cpu_shares and cpu_period cannot be negative"));
        }
        if r.cpu_shares == 0 && r.cpu_quota == 0 && r.cpu_period == 0 {
            return Ok(());
        }
        let Some(place) = layout.place("cpu") else {
            self.lacks("the CPU limit", "cpu");
            return Ok(());
        };
        let shares = r.cpu_shares.unsigned_abs();
        match place {
            Place::V1(_) => {
                if shares > 0 {
                    self.set(place, "cpu.shares", shares, "cpu_shares", Missing::Warn);
                }
                // A quota is refused when it exceeds the parent's at the old period, and the other
                // way round; whichever fails first is tried again after the other.
                // A new cgroup has the default period, and kubelet names it for every container.
                let old = || current(place, "cpu.cfs_period_us").unwrap_or_else(|| "100000".to_owned());
                if r.cpu_period > 0 && (r.cpu_quota != 0 || old() != r.cpu_period.to_string()) {
                    self.set(place, "cpu.cfs_period_us", r.cpu_period, "cpu_period", Missing::Warn);
                }
                if r.cpu_quota != 0 {
                    self.set(place, "cpu.cfs_quota_us", r.cpu_quota.max(-1), "cpu_quota", Missing::Warn);
                }
            }
            Place::V2 => {
                if shares > 0 {
                    self.set(place, "cpu.weight", weight_of_shares(shares), "cpu_shares", Missing::Warn);
                }
                if let Some(max) = cpu_max(r.cpu_quota, r.cpu_period, || current(place, "cpu.max")) {
                    self.set(place, "cpu.max", max, "cpu_quota", Missing::Warn);
                }
            }
        }
        Ok(())
    }

    fn cpuset(&mut self, layout: &Layout, r: &Resources) -> Result<()> {
        for (file, field, value) in
            [("cpuset.cpus", "cpuset_cpus", &r.cpuset_cpus), ("cpuset.mems", "cpuset_mems", &r.cpuset_mems)]
        {
            if value.is_empty() {
                continue;
            }
            if !value.chars().all(|c| c.is_ascii_digit() || c == ',' || c == '-') {
                return Err(Error::invalid(format!("{field} {value:?} is not a list such as 0-3,7")));
            }
            match layout.place("cpuset") {
                Some(place) => self.set(place, file, value, field, Missing::Warn),
                None => self.lacks(field, "cpuset"),
            }
        }
        Ok(())
    }

    fn memory(&mut self, layout: &Layout, r: &Resources, current: Current<'_>) -> Result<()> {
        let (limit, swap) = (r.memory_limit, r.memory_swap_limit);
        if limit == 0 && swap == 0 {
            return Ok(());
        }
        if limit > 0 && swap > 0 && swap < limit {
            return Err(Error::invalid(format!(
                "memory_swap_limit {swap} counts memory and swap together: it cannot be below memory_limit {limit}"
            )));
        }
        let Some(place) = layout.place("memory") else {
            self.lacks("the memory limit", "memory");
            return Ok(());
        };
        // Without swap is what most hosts are anyhow.
        let missing = if swap == 0 || swap == limit { Missing::Skip } else { Missing::Warn };
        match place {
            Place::V1(_) => {
                if limit != 0 {
                    let value = limit.max(-1);
                    self.set(place, "memory.limit_in_bytes", value, "memory_limit", Missing::Warn);
                }
                let number =
                    |file: &str| current(place, file).and_then(|text| super::file::parse_limit(&text));
                let old = || (number("memory.limit_in_bytes"), number("memory.memsw.limit_in_bytes"));
                if let Some(value) = memsw_v1(limit, swap, old) {
                    self.set(place, "memory.memsw.limit_in_bytes", value, "memory_swap_limit", missing);
                }
            }
            Place::V2 => {
                if limit != 0 {
                    self.set(place, "memory.max", max_or(limit), "memory_limit", Missing::Warn);
                }
                if let Some(value) = swap_max_v2(limit, swap, |file| current(place, file))? {
                    self.set(place, "memory.swap.max", value, "memory_swap_limit", missing);
                }
            }
        }
        Ok(())
    }

    /// kubelet sends a limit of 0 for each page size that a container did not ask for.
    fn hugepages(&mut self, layout: &Layout, limits: &[(String, u64)]) -> Result<()> {
        for (size, bytes) in limits {
            let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit)).unwrap_or("");
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(Error::invalid(format!(
                    "hugepage_limits: {size:?} is not a page size such as 2MB"
                )));
            }
            let field = format!("hugepage limit {size}");
            let missing = if *bytes == 0 { Missing::Skip } else { Missing::Warn };
            match layout.place("hugetlb") {
                Some(place) => {
                    let suffix = if place == Place::V2 { "max" } else { "limit_in_bytes" };
                    self.set(place, format!("hugetlb.{size}.{suffix}"), bytes, &field, missing);
                    // Reserved but not yet touched pages too; the file came with Linux 5.7.
                    let file = format!("hugetlb.{size}.rsvd.{suffix}");
                    self.set(place, file, bytes, &field, Missing::Skip);
                }
                None if missing == Missing::Warn => self.lacks(&field, "hugetlb"),
                None => {}
            }
        }
        Ok(())
    }

    /// Files of cgroup v2, as they are (BEHAVIOUR 29); they win over the fields of their own.
    fn unified(&mut self, layout: &Layout, unified: &BTreeMap<String, String>) -> Result<()> {
        for (file, value) in unified {
            let controller = check_unified(file)?;
            let field = format!("unified {file}");
            let unified_has = layout.v2(controller).is_some();
            if unified_has || (controller == "cgroup" && layout.unified.is_some()) {
                self.set(Place::V2, file, value, &field, Missing::Refuse);
            } else if let (Some(index), "pids.max") = (layout.v1_index("pids"), file.as_str()) {
                // The one limit that has no field of its own in the CRI, and v1 spells it alike.
                self.set(Place::V1(index), file, value, &field, Missing::Warn);
            } else {
                self.lacks(&field, &format!("v2 {controller}"));
            }
        }
        Ok(())
    }
}

/// The controller of a v2 file that a request may write.
fn check_unified(file: &str) -> Result<&str> {
    const CONTROLLERS: &[&str] =
        &["cgroup", "cpu", "cpuset", "dmem", "hugetlb", "io", "memory", "misc", "pids", "rdma"];
    // Who is in the cgroup, what it is and whether it runs are the runtime's business.
    const OURS: &[&str] = &[
        "cgroup.freeze",
        "cgroup.kill",
        "cgroup.procs",
        "cgroup.subtree_control",
        "cgroup.threads",
        "cgroup.type",
    ];
    let plain = file.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    match file.split_once('.') {
        Some((controller, rest))
            if plain && !rest.is_empty() && CONTROLLERS.contains(&controller) && !OURS.contains(&file) =>
        {
            Ok(controller)
        }
        _ => Err(Error::invalid(format!("unified: {file:?} is not a limit of cgroup v2"))),
    }
}

fn max_or(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// What goes into cpu.max, "$QUOTA $PERIOD" in microseconds. A lone quota leaves the period alone.
fn cpu_max(quota: i64, period: i64, current: impl Fn() -> Option<String>) -> Option<String> {
    match (quota, period) {
        (0, 0) => None,
        (0, period) => {
            let current = current().unwrap_or_else(|| "max 100000".to_owned());
            let (quota, old) = current.split_once(' ').unwrap_or(("max", "100000"));
            (old != period.to_string()).then(|| format!("{quota} {period}"))
        }
        (quota, 0) => Some(max_or(quota)),
        (quota, period) => Some(format!("{} {period}", max_or(quota))),
    }
}

/// memory.swap.max counts swap alone, the CRI's field memory and swap together.
fn swap_max_v2(limit: i64, swap: i64, current: impl Fn(&str) -> Option<String>) -> Result<Option<String>> {
    Ok(match (limit, swap) {
        (_, ..0) => Some("max".to_owned()),
        (..0, 0) => Some("max".to_owned()),
        // An allowance that was given before stays (zero: unchanged); no allowance stays none.
        (1.., 0) => match current("memory.swap.max").as_deref() {
            None | Some("max" | "0") => Some("0".to_owned()),
            Some(_) => None,
        },
        (0, 0) => None,
        (1.., 1..) => Some((swap - limit).to_string()),
        (_, 1..) => {
            let limit = (limit == 0).then(|| current("memory.max")).flatten();
            match limit.and_then(|text| text.parse::<i64>().ok()) {
                Some(limit) if limit <= swap => Some((swap - limit).to_string()),
                Some(limit) => {
                    let text = format!("memory_swap_limit {swap} is below the memory limit {limit}");
                    return Err(Error::invalid(text));
                }
                None => return Err(Error::invalid("memory_swap_limit needs a memory_limit")),
            }
        }
    })
}

/// memory.memsw.limit_in_bytes, which never is below the memory limit. `old` is (memory, memsw).
fn memsw_v1(limit: i64, swap: i64, old: impl Fn() -> (Option<u64>, Option<u64>)) -> Option<i64> {
    match (limit, swap) {
        (_, ..0) | (..0, 0) => Some(-1),
        (_, 1..) => Some(swap),
        (0, 0) => None,
        (1.., 0) => match old() {
            (Some(memory), Some(memsw)) if memsw > memory => (memsw < limit as u64).then_some(limit),
            _ => Some(limit),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::tests::{hybrid, unified};
    use super::*;
    use proptest::prelude::*;

    fn files(layout: &Layout, resources: Resources) -> Vec<String> {
        let plan = plan(layout, &resources, &|_, _| None).unwrap();
        plan.settings.iter().map(|s| format!("{}={}", s.file, s.value)).collect()
    }

    #[test]
    fn everything_given_on_v2() {
        let resources = Resources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 1024,
            memory_limit: 1000,
            memory_swap_limit: 1500,
            cpuset_cpus: "0-1".into(),
            hugepage_limits: vec![("2MB".into(), 0)],
            unified: [("memory.oom.group", "1"), ("pids.max", "7")].map(|(k, v)| (k.into(), v.into())).into(),
            ..Default::default()
        };
        assert_eq!(
            files(&unified(), resources),
            [
                "cpu.weight=100",
                "cpu.max=50000 100000",
                "cpuset.cpus=0-1",
                "memory.max=1000",
                "memory.swap.max=500",
                "hugetlb.2MB.max=0",
                "hugetlb.2MB.rsvd.max=0",
                "memory.oom.group=1",
                "pids.max=7",
            ]
        );
    }

    #[test]
    fn b29_zero_changes_nothing_and_negative_lifts() {
        for layout in [unified(), hybrid()] {
            assert!(files(&layout, Resources::default()).is_empty());
        }
        let lifted = Resources { cpu_quota: -1, memory_limit: -1, ..Default::default() };
        assert_eq!(
            files(&unified(), lifted.clone()),
            ["cpu.max=max", "memory.max=max", "memory.swap.max=max"]
        );
        assert_eq!(
            files(&hybrid(), lifted),
            ["cpu.cfs_quota_us=-1", "memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1"]
        );
    }

    #[test]
    fn b29_swap_unspecified_equals_the_memory_limit() {
        let limited = Resources { memory_limit: 4096, ..Default::default() };
        assert_eq!(files(&unified(), limited.clone()), ["memory.max=4096", "memory.swap.max=0"]);
        assert_eq!(
            files(&hybrid(), limited),
            ["memory.limit_in_bytes=4096", "memory.memsw.limit_in_bytes=4096"]
        );
    }

    #[test]
    fn a_swap_allowance_survives_an_update_that_names_none() {
        let limited = Resources { memory_limit: 4096, ..Default::default() };
        let with = |swap: &'static str| {
            let plan = plan(&unified(), &limited, &move |_, _| Some(swap.to_owned())).unwrap();
            plan.settings.len()
        };
        assert_eq!((with("512"), with("0"), with("max")), (1, 2, 2));
        assert_eq!(memsw_v1(4096, 0, || (Some(1000), Some(8192))), None);
        assert_eq!(memsw_v1(4096, 0, || (Some(1000), Some(2000))), Some(4096));
        assert_eq!(memsw_v1(4096, 0, || (Some(1000), Some(1000))), Some(4096));
        assert_eq!(memsw_v1(4096, 0, || (None, None)), Some(4096));
    }

    #[test]
    fn b29_unified_passes_through_and_wins() {
        let resources = Resources {
            memory_limit: 1000,
            unified: [("memory.swap.max".into(), "77".into())].into(),
            ..Default::default()
        };
        assert_eq!(files(&unified(), resources), ["memory.max=1000", "memory.swap.max=77"]);
    }

    #[test]
    fn unified_names_that_are_no_limits_are_refused() {
        let names =
            ["../x.max", "memory/max", "cgroup.procs", "cgroup.kill", "max", "foo.max", "memory.", ""];
        for name in names {
            let resources = Resources { unified: [(name.into(), "1".into())].into(), ..Default::default() };
            let error = plan(&unified(), &resources, &|_, _| None).unwrap_err();
            assert_eq!(error.kind, crate::error::Kind::InvalidArgument, "{name}");
        }
    }

    #[test]
    fn b38_limits_without_a_controller_degrade_with_a_warning() {
        let resources = Resources {
            hugepage_limits: vec![("2MB".into(), 0), ("1GB".into(), 1 << 30)],
            unified: [("memory.high", "1"), ("pids.max", "7")].map(|(k, v)| (k.into(), v.into())).into(),
            ..Default::default()
        };
        let plan = plan(&hybrid(), &resources, &|_, _| None).unwrap();
        assert_eq!(plan.warnings.len(), 2, "{:?}", plan.warnings);
        assert!(plan.warnings[0].starts_with("hugepage limit 1GB"));
        assert!(plan.warnings[1].starts_with("unified memory.high"));
        assert_eq!(plan.settings.len(), 1);
        assert_eq!(plan.settings[0].file, "pids.max");
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let refused = [
            Resources { cpu_shares: -1, ..Default::default() },
            Resources { memory_limit: 10, memory_swap_limit: 9, ..Default::default() },
            Resources { cpuset_cpus: "0;1".into(), ..Default::default() },
            Resources { hugepage_limits: vec![("2/../MB".into(), 0)], ..Default::default() },
            Resources { hugepage_limits: vec![("MB".into(), 0)], ..Default::default() },
        ];
        for resources in refused {
            assert!(plan(&unified(), &resources, &|_, _| None).is_err(), "{resources:?}");
        }
    }

    #[test]
    fn a_lone_period_keeps_the_quota() {
        assert_eq!(cpu_max(0, 50_000, || Some("20000 100000".into())).unwrap(), "20000 50000");
        assert_eq!(cpu_max(0, 100_000, || None), None);
        assert_eq!(cpu_max(5000, 0, || None).unwrap(), "5000");
        assert_eq!(cpu_max(-7, 1000, || None).unwrap(), "max 1000");
    }

    proptest! {
        #[test]
        fn swap_is_a_difference(limit in 1i64..1 << 50, extra in 0i64..1 << 50) {
            let value = swap_max_v2(limit, limit + extra, |_| None).unwrap();
            prop_assert_eq!(value, Some(extra.to_string()));
        }

        #[test]
        fn no_request_makes_the_plan_panic_or_leave_its_directory(
            numbers in proptest::array::uniform5(any::<i64>()), name in ".{0,20}", value in ".{0,20}",
        ) {
            let resources = Resources {
                cpu_period: numbers[0], cpu_quota: numbers[1], cpu_shares: numbers[2],
                memory_limit: numbers[3], memory_swap_limit: numbers[4],
                hugepage_limits: vec![(name.clone(), 1)],
                unified: [(name, value)].into(),
                ..Default::default()
            };
            for layout in [unified(), hybrid()] {
                if let Ok(plan) = plan(&layout, &resources, &|_, _| None) {
                    prop_assert!(plan.settings.iter().all(|s| !s.file.contains('/')));
                }
            }
        }
    }
}
