//! What only the metrics tell, read when they are asked for: a dozen files more than for the stats.

use super::layout::{Layout, Place};
use super::stats::{Reader, value, values};

/// None, or empty: this host does not tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    pub cpu_time: Option<CpuTime>,
    pub throttling: Option<Throttling>,
    pub memory: Option<MemoryDetails>,
    /// Zero: none.
    pub pids_limit: Option<u64>,
    pub oom_kills: Option<u64>,
    pub huge_pages: Vec<HugePages>,
    pub io: Vec<DeviceIo>,
}

/// Cumulative nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuTime {
    pub user: u64,
    pub system: u64,
}

/// By the CPU quota, since the cgroup was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttling {
    pub periods: u64,
    pub throttled_periods: u64,
    /// Nanoseconds.
    pub throttled: u64,
}

/// Bytes, but for `limit_hits`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryDetails {
    pub cache: u64,
    pub mapped_file: u64,
    pub kernel: Option<u64>,
    /// The highest use since the cgroup was made.
    pub peak: Option<u64>,
    /// How often its use ran into the limit.
    pub limit_hits: Option<u64>,
    /// What reclaim spares: v1's soft limit, v2's memory.low. Zero: none.
    pub reservation: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugePages {
    /// As the kernel writes it, e.g. `2MB`.
    pub size: String,
    pub usage: u64,
    /// v2 does not keep it.
    pub peak: Option<u64>,
}

/// Since the cgroup was made, in bytes and requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceIo {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Of a cgroup and all below it; one that is gone has none.
pub(super) fn read(layout: &Layout, path: &str) -> Details {
    let mut reader = Reader::new(layout, path);
    let pids = layout.place("pids");
    Details {
        cpu_time: cpu_time(&mut reader),
        throttling: throttling(&mut reader),
        memory: memory(&mut reader),
        pids_limit: reader.limit(pids, "pids.max"),
        oom_kills: None,
        huge_pages: huge_pages(&mut reader),
        io: io(&mut reader),
    }
}

fn cpu_time(reader: &mut Reader) -> Option<CpuTime> {
    if let Some(index) = reader.layout.v1_index("cpuacct") {
        let text = reader.text(Some(Place::V1(index)), "cpuacct.stat")?;
        // In clock ticks, which divide a second.
        let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
        return Some(CpuTime { user: value(text, "user")? * tick, system: value(text, "system")? * tick });
    }
    let unified = reader.layout.unified.as_ref().map(|_| Place::V2);
    let text = reader.text(unified, "cpu.stat")?;
    Some(CpuTime { user: value(text, "user_usec")? * 1000, system: value(text, "system_usec")? * 1000 })
}

fn throttling(reader: &mut Reader) -> Option<Throttling> {
    let text = reader.text(reader.layout.place("cpu"), "cpu.stat")?;
    let throttled = value(text, "throttled_time").or_else(|| Some(value(text, "throttled_usec")? * 1000))?;
    let (periods, throttled_periods) = (value(text, "nr_periods")?, value(text, "nr_throttled")?);
    Some(Throttling { periods, throttled_periods, throttled })
}

fn memory(reader: &mut Reader) -> Option<MemoryDetails> {
    let place = reader.layout.place("memory");
    if place != Some(Place::V2) {
        let [cache, mapped_file] =
            values(reader.text(place, "memory.stat")?, ["total_cache", "total_mapped_file"]);
        return Some(MemoryDetails {
            cache,
            mapped_file,
            kernel: reader.number(place, "memory.kmem.usage_in_bytes"),
            peak: reader.number(place, "memory.max_usage_in_bytes"),
            limit_hits: reader.number(place, "memory.failcnt"),
            reservation: reader.limit(place, "memory.soft_limit_in_bytes"),
        });
    }
    let text = reader.text(place, "memory.stat")?;
    let [cache, mapped_file] = values(text, ["file", "file_mapped"]);
    // Since Linux 5.18, and the peak since 5.19.
    let kernel = value(text, "kernel");
    Some(MemoryDetails {
        cache,
        mapped_file,
        kernel,
        peak: reader.number(place, "memory.peak"),
        limit_hits: reader.text(place, "memory.events").and_then(|text| value(text, "max")),
        reservation: reader.limit(place, "memory.low"),
    })
}

fn huge_pages(reader: &mut Reader) -> Vec<HugePages> {
    let place = reader.layout.place("hugetlb");
    if place.is_none() {
        return Vec::new();
    }
    // One directory for each size: `hugepages-2048kB`.
    let directories = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let sizes = directories.filter_map(|d| page_size(d.file_name().to_str()?));
    let usage = |size: String| {
        let suffix = if place == Some(Place::V2) { "current" } else { "usage_in_bytes" };
        let usage = reader.number(place, &format!("hugetlb.{size}.{suffix}"))?;
        let peak = reader.number(place, &format!("hugetlb.{size}.max_usage_in_bytes"));
        Some(HugePages { size, usage, peak })
    };
    sizes.filter_map(usage).collect()
}

/// `hugepages-2048kB` as the files of cgroups have it: `2MB`.
fn page_size(directory: &str) -> Option<String> {
    let kib: u64 = directory.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(match kib {
        kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        kib => format!("{kib}KB"),
    })
}

fn io(reader: &mut Reader) -> Vec<DeviceIo> {
    let mut devices = Vec::new();
    if let Some(index) = reader.layout.v1_index("blkio") {
        let place = Some(Place::V1(index));
        // Without the suffix these count what is below only on a host with the option of v2.
        if let Some(text) = reader.text(place, "blkio.throttle.io_service_bytes_recursive") {
            parse_blkio(text, &mut devices, |io| (&mut io.read_bytes, &mut io.written_bytes));
        }
        if let Some(text) = reader.text(place, "blkio.throttle.io_serviced_recursive") {
            parse_blkio(text, &mut devices, |io| (&mut io.reads, &mut io.writes));
        }
    } else if let Some(text) = reader.text(reader.layout.place("io"), "io.stat") {
        devices.extend(text.lines().filter_map(parse_io_stat));
    }
    devices
}

/// `8:0 Read 4096`, and so on for each device; last the total of all.
fn parse_blkio(text: &str, into: &mut Vec<DeviceIo>, fields: impl Fn(&mut DeviceIo) -> (&mut u64, &mut u64)) {
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(device), Some(operation), Some(count)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let Some((major, minor)) = device_number(device) else { continue };
        let Ok(count) = count.parse() else { continue };
        let at = into.iter().position(|io| (io.major, io.minor) == (major, minor)).unwrap_or_else(|| {
            into.push(DeviceIo { major, minor, ..DeviceIo::default() });
            into.len() - 1
        });
        let (read, write) = fields(&mut into[at]);
        match operation {
            "Read" => *read = count,
            "Write" => *write = count,
            _ => {}
        }
    }
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`; a device that did nothing may have
/// its number alone.
fn parse_io_stat(line: &str) -> Option<DeviceIo> {
    let mut words = line.split(' ');
    let (major, minor) = device_number(words.next()?)?;
    let mut io = DeviceIo { major, minor, ..DeviceIo::default() };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let field = match key {
            "rbytes" => &mut io.read_bytes,
            "wbytes" => &mut io.written_bytes,
            "rios" => &mut io.reads,
            "wios" => &mut io.writes,
            _ => continue,
        };
        *field = value.parse().ok()?;
    }
    Some(io)
}

fn device_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_tells_bytes_and_requests_in_two_files() {
        let mut devices = Vec::new();
        let bytes = "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 1\n8:0 Total 12288\n254:16 Read 5\nTotal 12293";
        parse_blkio(bytes, &mut devices, |io| (&mut io.read_bytes, &mut io.written_bytes));
        parse_blkio("8:0 Read 1\n8:0 Write 2\nTotal 3", &mut devices, |io| (&mut io.reads, &mut io.writes));
        let first =
            DeviceIo { major: 8, read_bytes: 4096, written_bytes: 8192, reads: 1, writes: 2, minor: 0 };
        let second = DeviceIo { major: 254, minor: 16, read_bytes: 5, ..Default::default() };
        assert_eq!(devices, [first, second]);
    }

    #[test]
    fn v2_tells_a_device_in_one_line() {
        let line = "254:0 rbytes=4096 wbytes=9 rios=1 wios=2 dbytes=7 dios=8";
        let io = DeviceIo { major: 254, minor: 0, read_bytes: 4096, written_bytes: 9, reads: 1, writes: 2 };
        assert_eq!(parse_io_stat(line), Some(io));
        assert_eq!(parse_io_stat("8:0"), Some(DeviceIo { major: 8, ..Default::default() }));
        assert_eq!(parse_io_stat(""), None);
    }

    #[test]
    fn page_sizes_are_named_as_the_files_of_cgroups_are() {
        let sizes = ["hugepages-64kB", "hugepages-2048kB", "hugepages-1048576kB", "x"].map(page_size);
        assert_eq!(sizes, [Some("64KB".into()), Some("2MB".into()), Some("1GB".into()), None]);
    }
}
