//! What a cgroup has used, in one shape for both versions. A controller that is not there leaves zeros.

use super::hierarchy::Version;
use super::{Cgroup, Error, file};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu: CpuStats,
    pub memory: MemoryStats,
    pub pids: PidsStats,
    /// By device number.
    pub io: Vec<IoDeviceStats>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuStats {
    pub usage_ns: u64,
    pub user_ns: u64,
    pub system_ns: u64,
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_ns: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    pub usage_bytes: u64,
    /// Usage without page cache that can go at once: what Kubernetes calls the working set.
    pub working_set_bytes: u64,
    pub limit_bytes: Option<u64>,
    pub swap_usage_bytes: u64,
    pub swap_limit_bytes: Option<u64>,
    /// Anonymous memory.
    pub anonymous_bytes: u64,
    pub file_bytes: u64,
    pub inactive_file_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub oom_kills: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PidsStats {
    pub current: u64,
    pub limit: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoDeviceStats {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub read_operations: u64,
    pub write_operations: u64,
}

/// One controller's directory.
struct Source {
    directory: PathBuf,
    version: Version,
}

impl Source {
    fn text(&self, name: &str) -> Result<String, Error> {
        Ok(file::read_if_present(&self.directory.join(name))?.unwrap_or_default())
    }

    /// A file of one number; "max", or v1's huge number that stands for it, is `None`.
    fn number(&self, name: &str) -> Result<Option<u64>, Error> {
        // v1 says "no limit" as the largest page-aligned signed number.
        const UNLIMITED: u64 = 1 << 62;
        Ok(self.text(name)?.trim().parse().ok().filter(|&value| value < UNLIMITED))
    }
}

pub(super) fn read(cgroup: &Cgroup) -> Result<Stats, Error> {
    let source = |controller: &str| {
        let (place, version) = cgroup.hierarchy.locate(controller)?;
        Some(Source { directory: place.join(&cgroup.path), version })
    };
    let mut stats = Stats::default();
    if let Some(cpu) = source("cpu") {
        stats.cpu = match cpu.version {
            Version::Unified => cpu_unified(&cpu)?,
            Version::Legacy => cpu_legacy(&cpu, source("cpuacct").as_ref())?,
        };
    }
    if let Some(memory) = source("memory") {
        stats.memory = self::memory(&memory)?;
    }
    if let Some(pids) = source("pids") {
        let current = pids.number("pids.current")?.unwrap_or(0);
        stats.pids = PidsStats { current, limit: pids.number("pids.max")? };
    }
    if let Some(io) = source("blkio") {
        stats.io = match io.version {
            Version::Unified => io_unified(&io.text("io.stat")?),
            Version::Legacy => io_legacy(
                &io.text("blkio.throttle.io_service_bytes_recursive")?,
                &io.text("blkio.throttle.io_serviced_recursive")?,
            ),
        };
    }
    Ok(stats)
}

fn cpu_unified(source: &Source) -> Result<CpuStats, Error> {
    let text = source.text("cpu.stat")?;
    let get = |key| file::keyed(&text, key).unwrap_or(0);
    Ok(CpuStats {
        usage_ns: get("usage_usec") * 1000,
        user_ns: get("user_usec") * 1000,
        system_ns: get("system_usec") * 1000,
        periods: get("nr_periods"),
        throttled_periods: get("nr_throttled"),
        throttled_ns: get("throttled_usec") * 1000,
    })
}

fn cpu_legacy(source: &Source, accounting: Option<&Source>) -> Result<CpuStats, Error> {
    let text = source.text("cpu.stat")?;
    let get = |key| file::keyed(&text, key).unwrap_or(0);
    let used = |name| match accounting {
        Some(accounting) => accounting.number(name).map(Option::unwrap_or_default),
        None => Ok(0),
    };
    Ok(CpuStats {
        usage_ns: used("cpuacct.usage")?,
        user_ns: used("cpuacct.usage_user")?,
        system_ns: used("cpuacct.usage_sys")?,
        periods: get("nr_periods"),
        throttled_periods: get("nr_throttled"),
        throttled_ns: get("throttled_time"),
    })
}

fn memory(source: &Source) -> Result<MemoryStats, Error> {
    let text = source.text("memory.stat")?;
    let get = |key| file::keyed(&text, key).unwrap_or(0);
    let mut memory = match source.version {
        Version::Unified => MemoryStats {
            usage_bytes: source.number("memory.current")?.unwrap_or(0),
            limit_bytes: source.number("memory.max")?,
            swap_usage_bytes: source.number("memory.swap.current")?.unwrap_or(0),
            swap_limit_bytes: source.number("memory.swap.max")?,
            anonymous_bytes: get("anon"),
            file_bytes: get("file"),
            inactive_file_bytes: get("inactive_file"),
            page_faults: get("pgfault"),
            major_page_faults: get("pgmajfault"),
            oom_kills: file::keyed(&source.text("memory.events")?, "oom_kill").unwrap_or(0),
            working_set_bytes: 0,
        },
        Version::Legacy => {
            let usage = source.number("memory.usage_in_bytes")?.unwrap_or(0);
            let limit = source.number("memory.limit_in_bytes")?;
            let both = source.number("memory.memsw.usage_in_bytes")?;
            let both_limit = source.number("memory.memsw.limit_in_bytes")?;
            MemoryStats {
                usage_bytes: usage,
                limit_bytes: limit,
                swap_usage_bytes: both.map_or(0, |both| both.saturating_sub(usage)),
                swap_limit_bytes: both_limit.zip(limit).map(|(both, limit)| both.saturating_sub(limit)),
                anonymous_bytes: get("total_rss"),
                file_bytes: get("total_cache"),
                inactive_file_bytes: get("total_inactive_file"),
                page_faults: get("total_pgfault"),
                major_page_faults: get("total_pgmajfault"),
                oom_kills: file::keyed(&source.text("memory.oom_control")?, "oom_kill").unwrap_or(0),
                working_set_bytes: 0,
            }
        }
    };
    memory.working_set_bytes = memory.usage_bytes.saturating_sub(memory.inactive_file_bytes);
    Ok(memory)
}

fn device(numbers: &str) -> Option<(u32, u32)> {
    let (major, minor) = numbers.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn io_unified(text: &str) -> Vec<IoDeviceStats> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = device(words.next()?)?;
        let mut stats = IoDeviceStats { major, minor, ..IoDeviceStats::default() };
        for word in words {
            let Some((key, value)) = word.split_once('=') else { continue };
            let value = value.parse().unwrap_or(0);
            match key {
                "rbytes" => stats.read_bytes = value,
                "wbytes" => stats.write_bytes = value,
                "rios" => stats.read_operations = value,
                "wios" => stats.write_operations = value,
                _ => {}
            }
        }
        Some(stats)
    };
    text.lines().filter_map(line).collect()
}

fn io_legacy(bytes: &str, operations: &str) -> Vec<IoDeviceStats> {
    let mut devices: BTreeMap<(u32, u32), IoDeviceStats> = BTreeMap::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(numbers), Some(kind), Some(value)) = (words.next(), words.next(), words.next()) else { continue };
            let (Some((major, minor)), Ok(value)) = (device(numbers), value.parse::<u64>()) else { continue };
            let stats =
                devices.entry((major, minor)).or_insert(IoDeviceStats { major, minor, ..IoDeviceStats::default() });
            match (kind, is_bytes) {
                ("Read", true) => stats.read_bytes = value,
                ("Write", true) => stats.write_bytes = value,
                ("Read", false) => stats.read_operations = value,
                ("Write", false) => stats.write_operations = value,
                _ => {}
            }
        }
    }
    devices.into_values().collect()
}
