//! Writing limits: in an order that works, and all or none.

use std::io;

use super::layout::{Layout, Place};
use super::limits::{self, Missing, Setting};
use super::{Warning, file, weight};
use crate::Result;
use crate::container::spec::Resources;
use crate::error::{Error, Kind};

fn file_path(layout: &Layout, path: &str, place: Place, file: &str) -> String {
    format!("{}{path}/{file}", layout.mount(place))
}

/// Into a cgroup that was just made: what fails is undone by removing it.
pub(super) fn create(layout: &Layout, path: &str, resources: &Resources) -> Result<Vec<Warning>> {
    let mut plan = limits::plan(layout, resources, &|_, _| None)?;
    write_all(layout, path, &plan.settings, &mut plan.warnings, None)?;
    Ok(plan.warnings)
}

/// Into a cgroup that is in use: on failure the old values are written back.
pub(super) fn update(layout: &Layout, path: &str, resources: &Resources) -> Result<Vec<Warning>> {
    let current = |place, name: &str| {
        let mut buffer = [0; 256];
        file::read(&file_path(layout, path, place, name), &mut buffer).ok().map(str::to_owned)
    };
    let mut plan = limits::plan(layout, resources, &current)?;
    refuse_to_kill(layout, path, &plan.settings)?;
    let mut undo = Vec::with_capacity(plan.settings.len());
    let result = write_all(layout, path, &plan.settings, &mut plan.warnings, Some(&mut undo));
    if let Err(error) = result {
        undo.reverse();
        return Err(match write_all(layout, path, &undo, &mut Vec::new(), None) {
            Ok(()) => error,
            Err(e) => error.during(format!("the limits are now a mixture of old and new ({e})")),
        });
    }
    Ok(plan.warnings)
}

/// Writes each setting, and once more those that failed if any other went through: some pairs
/// (limit and limit with swap, quota and period) can only be changed in one order, which depends
/// on whether they grow or shrink. What was there goes to `undo`.
fn write_all(
    layout: &Layout,
    path: &str,
    settings: &[Setting],
    warnings: &mut Vec<Warning>,
    mut undo: Option<&mut Vec<Setting>>,
) -> Result<()> {
    let mut pending: Vec<&Setting> = settings.iter().collect();
    loop {
        let before = pending.len();
        let mut failed = Vec::new();
        let mut first_error = None;
        for setting in pending {
            let target = file_path(layout, path, setting.place, &setting.file);
            let old = undo.as_ref().and_then(|_| old_value(&target, setting));
            match write_lines(&target, &setting.value) {
                Ok(()) => {
                    if let (Some(undo), Some(old)) = (undo.as_deref_mut(), old) {
                        undo.push(old);
                    }
                }
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) && in_place(layout, path, setting.place) => {
                    match setting.missing {
                        Missing::Skip => {}
                        Missing::Warn => warnings.push(format!(
                            "{} has no effect: this host has no {}",
                            setting.field, setting.file
                        )),
                        Missing::Refuse => {
                            return Err(Error::invalid(format!(
                                "{}: this host has no such file",
                                setting.field
                            )));
                        }
                    }
                }
                Err(e) => {
                    first_error.get_or_insert_with(|| refused(setting, &target, e));
                    failed.push(setting);
                }
            }
        }
        match first_error {
            None => return Ok(()),
            Some(error) if failed.len() == before => return Err(error),
            Some(_) => pending = failed,
        }
    }
}

/// Whether it is the file that is missing, not its cgroup.
fn in_place(layout: &Layout, path: &str, place: Place) -> bool {
    std::path::Path::new(&format!("{}{path}", layout.mount(place))).exists()
}

/// Files such as io.max take one line per write.
fn write_lines(target: &str, value: &str) -> io::Result<()> {
    if !value.trim_end().contains('\n') {
        return file::write(target, value);
    }
    value.lines().try_for_each(|line| file::write(target, line))
}

fn old_value(target: &str, setting: &Setting) -> Option<Setting> {
    let mut buffer = [0; file::BUFFER];
    let value = file::read(target, &mut buffer).ok()?;
    // An empty list of CPUs is written as a newline: an empty write never reaches the kernel.
    let value = if value.is_empty() { "\n".to_owned() } else { value.to_owned() };
    Some(Setting { value, ..setting.clone() })
}

fn refused(setting: &Setting, target: &str, cause: io::Error) -> Error {
    let kind = match cause.raw_os_error() {
        Some(libc::EINVAL | libc::ERANGE | libc::EACCES | libc::E2BIG) => Kind::InvalidArgument,
        Some(libc::EBUSY) => Kind::FailedPrecondition,
        Some(libc::ENOENT | libc::ENODEV) => Kind::NotFound,
        _ => Kind::Internal,
    };
    let step = format!("setting {} to {:?} in {target}", setting.field, setting.value);
    Error { kind, ..Error::io(step, cause) }
}

/// v1 answers EBUSY to a memory limit below what cannot be given back; v2 would OOM-kill instead.
fn refuse_to_kill(layout: &Layout, path: &str, settings: &[Setting]) -> Result<()> {
    let Some(setting) = settings.iter().find(|s| s.place == Place::V2 && s.file == "memory.max") else {
        return Ok(());
    };
    let Ok(limit) = setting.value.parse::<u64>() else { return Ok(()) };
    let mut buffer = [0; file::BUFFER];
    let directory = format!("{}{path}", layout.mount(Place::V2));
    let Ok(text) = file::read(&format!("{directory}/memory.stat"), &mut buffer) else { return Ok(()) };
    let pinned = stat(text, &["anon", "kernel_stack", "pagetables", "sock"]);
    let swappable = match file::read(&format!("{directory}/memory.swap.max"), &mut [0; 64]) {
        Ok("0") | Err(_) => 0,
        Ok(_) => u64::MAX,
    };
    if pinned.saturating_sub(swappable) > limit {
        return Err(Error::precondition(format!(
            "setting memory_limit to {limit}: the container uses {pinned} bytes that cannot be given back"
        )));
    }
    Ok(())
}

fn stat(text: &str, keys: &[&str]) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(key, _)| keys.contains(key))
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum()
}

/// The limits in force, in the CRI's terms, for status; zero where there is none to read.
pub(super) fn in_force(layout: &Layout, path: &str) -> Resources {
    let mut resources = Resources::default();
    let read = |controller: &str, v1: &str, v2: &str| {
        let place = layout.place(controller)?;
        let name = if place == Place::V2 { v2 } else { v1 };
        let mut buffer = [0; 256];
        file::read(&file_path(layout, path, place, name), &mut buffer).ok().map(str::to_owned)
    };
    let limit = |text: &str| super::file::parse_limit(text).map_or(-1, |n| n as i64);
    let v2 = layout.place("cpu") == Some(Place::V2);
    let shares = read("cpu", "cpu.shares", "cpu.weight").and_then(|text| text.parse::<u64>().ok());
    resources.cpu_shares = shares.map_or(0, |n| if v2 { weight::shares_of_weight(n) } else { n } as i64);
    let quota = read("cpu", "cpu.cfs_quota_us", "cpu.max").unwrap_or_default();
    let period = match quota.split_once(' ') {
        Some((_, period)) => Some(period.to_owned()),
        None => read("cpu", "cpu.cfs_period_us", "cpu.max"),
    };
    resources.cpu_period = period.and_then(|text| text.parse().ok()).unwrap_or_default();
    resources.cpu_quota = quota.split(' ').next().filter(|q| !q.is_empty()).map_or(0, limit);
    let memory = read("memory", "memory.limit_in_bytes", "memory.max").map_or(0, |text| limit(&text));
    let swap =
        read("memory", "memory.memsw.limit_in_bytes", "memory.swap.max").map_or(0, |text| limit(&text));
    resources.memory_limit = memory;
    resources.memory_swap_limit = match layout.place("memory") {
        Some(Place::V2) if swap >= 0 && memory > 0 => memory.saturating_add(swap),
        _ => swap,
    };
    resources.cpuset_cpus = read("cpuset", "cpuset.cpus", "cpuset.cpus").unwrap_or_default();
    resources.cpuset_mems = read("cpuset", "cpuset.mems", "cpuset.mems").unwrap_or_default();
    resources
}
