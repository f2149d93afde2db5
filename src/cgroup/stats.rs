//! Use and pressure, by few system calls: each list of stats reads this for every container.

use std::time::{SystemTime, UNIX_EPOCH};

use super::file;
use super::layout::{Layout, Place};
use crate::Result;
use crate::error::Error;

/// Use and pressure at one moment; None where the host lacks the controller.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Nanoseconds since the epoch.
    pub timestamp: i64,
    /// Cumulative nanoseconds.
    pub cpu_usage: Option<u64>,
    pub memory: Option<MemoryStats>,
    pub swap_usage: Option<u64>,
    pub swap_available: Option<u64>,
    pub pids: Option<u64>,
    pub cpu_psi: Option<Psi>,
    pub memory_psi: Option<Psi>,
    pub io_psi: Option<Psi>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MemoryStats {
    pub usage: u64,
    /// usage − inactive_file (BEHAVIOUR 36).
    pub working_set: u64,
    /// limit − working set; None without a limit.
    pub available: Option<u64>,
    pub rss: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Psi {
    pub some: PsiLine,
    pub full: PsiLine,
}

/// avg*: per cent; total: microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PsiLine {
    pub total: u64,
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
}

/// NOT_FOUND if the cgroup is gone.
pub(super) fn read(layout: &Layout, path: &str) -> Result<Stats> {
    let mut reader = Reader::new(layout, path);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
    let mut stats = Stats { timestamp: now, cpu_usage: reader.cpu(), ..Stats::default() };
    reader.memory(&mut stats);
    stats.pids = reader.number(layout.place("pids"), "pids.current");
    stats.cpu_psi = reader.pressure("cpu.pressure");
    stats.memory_psi = reader.pressure("memory.pressure");
    stats.io_psi = reader.pressure("io.pressure");
    if stats.cpu_usage.is_none() && stats.memory.is_none() {
        return Err(Error::not_found(format!("cgroup {path} is gone")));
    }
    Ok(stats)
}

/// OOM kills in it and below since it was made (BEHAVIOUR 10).
pub(super) fn oom_kills(layout: &Layout, path: &str) -> Option<u64> {
    let place = layout.place("memory")?;
    let name = if place == Place::V2 { "memory.events" } else { "memory.oom_control" };
    let mut buffer = [0; 512];
    let text = file::read(&format!("{}{path}/{name}", layout.mount(place)), &mut buffer).ok()?;
    value(text, "oom_kill")
}

pub(super) struct Reader<'a> {
    pub layout: &'a Layout,
    path: &'a str,
    buffer: [u8; file::BUFFER],
    /// The path of the file that is read, reused.
    name: String,
}

impl<'a> Reader<'a> {
    pub fn new(layout: &'a Layout, path: &'a str) -> Self {
        Self { layout, path, buffer: [0; file::BUFFER], name: String::with_capacity(256) }
    }

    pub fn text(&mut self, place: Option<Place>, file: &str) -> Option<&str> {
        self.name.clear();
        for part in [self.layout.mount(place?), self.path, "/", file] {
            self.name.push_str(part);
        }
        file::read(&self.name, &mut self.buffer).ok()
    }

    pub fn number(&mut self, place: Option<Place>, file: &str) -> Option<u64> {
        self.text(place, file).and_then(file::parse_limit)
    }

    /// A limit as metrics have it: zero where there is a file but no limit.
    pub fn limit(&mut self, place: Option<Place>, file: &str) -> Option<u64> {
        self.text(place, file).map(|text| file::parse_limit(text).unwrap_or(0))
    }

    /// Nanoseconds. Without a CPU controller cgroup2 still counts time.
    fn cpu(&mut self) -> Option<u64> {
        if let Some(index) = self.layout.v1_index("cpuacct") {
            return self.number(Some(Place::V1(index)), "cpuacct.usage");
        }
        let unified = self.layout.unified.as_ref().map(|_| Place::V2);
        self.text(unified, "cpu.stat").and_then(|text| value(text, "usage_usec")).map(|usec| usec * 1000)
    }

    fn memory(&mut self, stats: &mut Stats) {
        let place = self.layout.place("memory");
        let v2 = place == Some(Place::V2);
        let name = |v1: &'static str, v2_name: &'static str| if v2 { v2_name } else { v1 };
        let Some(usage) = self.number(place, name("memory.usage_in_bytes", "memory.current")) else { return };
        let limit = self.number(place, name("memory.limit_in_bytes", "memory.max"));
        let keys = if v2 {
            ["inactive_file", "anon", "pgfault", "pgmajfault", ""]
        } else {
            ["total_inactive_file", "total_rss", "total_pgfault", "total_pgmajfault", "total_swap"]
        };
        let Some(text) = self.text(place, "memory.stat") else { return };
        let [inactive_file, rss, page_faults, major_page_faults, swap] = values(text, keys);
        let working_set = usage.saturating_sub(inactive_file);
        stats.memory = Some(MemoryStats {
            usage,
            working_set,
            available: limit.map(|limit| limit.saturating_sub(working_set)),
            rss,
            page_faults,
            major_page_faults,
        });
        if v2 {
            stats.swap_usage = self.number(place, "memory.swap.current");
            let limit = stats.swap_usage.and_then(|_| self.number(place, "memory.swap.max"));
            stats.swap_available = limit.map(|max| max.saturating_sub(stats.swap_usage.unwrap_or(0)));
        } else {
            // v1 limits memory and swap together.
            stats.swap_usage = Some(swap);
            let both = limit.and_then(|_| self.number(place, "memory.memsw.limit_in_bytes"));
            let swap_limit = both.zip(limit).map(|(both, memory)| both.saturating_sub(memory));
            stats.swap_available = swap_limit.map(|limit| limit.saturating_sub(swap));
        }
    }

    fn pressure(&mut self, file: &str) -> Option<Psi> {
        let unified = self.layout.unified.as_ref().map(|_| Place::V2);
        self.text(unified, file).map(parse_psi)
    }
}

pub(super) fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

/// The values of `keys` in a flat keyed file, in one pass; zero for what is not there.
pub(super) fn values<const N: usize>(text: &str, keys: [&str; N]) -> [u64; N] {
    let mut found = [0; N];
    for (key, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        if let Some(at) = keys.iter().position(|k| *k == key) {
            found[at] = value.parse().unwrap_or(0);
        }
    }
    found
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`.
fn parse_psi(text: &str) -> Psi {
    let mut psi = Psi::default();
    for line in text.lines() {
        let mut fields = line.split(' ');
        let target = match fields.next() {
            Some("some") => &mut psi.some,
            Some("full") => &mut psi.full,
            _ => continue,
        };
        *target = fields.fold(PsiLine::default(), |mut parsed, field| {
            match field.split_once('=') {
                Some(("avg10", v)) => parsed.avg10 = v.parse().unwrap_or(0.0),
                Some(("avg60", v)) => parsed.avg60 = v.parse().unwrap_or(0.0),
                Some(("avg300", v)) => parsed.avg300 = v.parse().unwrap_or(0.0),
                Some(("total", v)) => parsed.total = v.parse().unwrap_or(0),
                _ => {}
            }
            parsed
        });
    }
    psi
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_files_are_read_by_whole_keys() {
        let text = "oom 3\noom_kill 2\noom_group_kill 1";
        assert_eq!(value(text, "oom_kill"), Some(2));
        assert_eq!(value(text, "oom_"), None);
        assert_eq!(values(text, ["oom", "oom_group_kill", "x"]), [3, 1, 0]);
        assert_eq!(value("oom_kill_disable 0\nunder_oom 0\noom_kill 5", "oom_kill"), Some(5));
    }

    #[test]
    fn b36_pressure_has_two_lines() {
        let psi = parse_psi(
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=12\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=7",
        );
        assert_eq!(psi.some, PsiLine { total: 12, avg10: 1.5, avg60: 0.25, avg300: 0.0 });
        assert_eq!((psi.full.total, psi.full.avg10), (7, 0.1));
    }
}
