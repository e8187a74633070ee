//! Everything that a cgroup counts, for who asks once (`events`); what is asked often is in `stats.rs`.
//!
//! Names are the kernel's own. A file that this host does not have leaves its part empty.

use super::hierarchy::Version;
use super::{Cgroup, Error, Stats, file};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A limit, what is used of it, the most that was, and how often it was hit; limits of none are `u64::MAX`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub limit: u64,
    pub usage: u64,
    pub max: u64,
    pub failures: u64,
}

/// One line of a pressure file: averages in percent of 10, 60 and 300 seconds, and all of it in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    pub averages: [f64; 3],
    pub total: u64,
}

/// How long some, and all, processes waited.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressures {
    pub some: Pressure,
    pub full: Pressure,
}

/// A line of a blkio or `io.stat` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoEntry {
    pub major: u64,
    pub minor: u64,
    /// `Read`, `Write` and so on; empty where the file has none.
    pub operation: String,
    pub value: u64,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Details {
    pub stats: Stats,
    pub per_cpu_ns: [Vec<u64>; 3],
    pub cpuset_cpus: Vec<u16>,
    pub cpuset_mems: Vec<u16>,
    /// v1's switches of cpuset, by file name without `cpuset.`.
    pub cpuset_flags: BTreeMap<String, i64>,
    pub memory_raw: BTreeMap<String, u64>,
    pub memory: Usage,
    /// v1: memory and swap together; v2: swap alone.
    pub swap: Usage,
    pub kernel: Usage,
    pub kernel_tcp: Usage,
    /// By page size.
    pub hugetlb: BTreeMap<String, Usage>,
    /// By v1's name of the file, without `blkio.`.
    pub io: BTreeMap<String, Vec<IoEntry>>,
    /// cpu, memory, io.
    pub pressure: [Option<Pressures>; 3],
}

/// The files of one controller.
struct Files {
    directory: PathBuf,
    version: Version,
}

impl Files {
    fn text(&self, name: &str) -> Result<String, Error> {
        Ok(file::read_if_present(&self.directory.join(name))?.unwrap_or_default())
    }

    fn number(&self, name: &str) -> Result<u64, Error> {
        let text = self.text(name)?;
        Ok(if text.trim() == "max" { u64::MAX } else { text.trim().parse().unwrap_or(0) })
    }

    fn numbers(&self, name: &str) -> Result<Vec<u64>, Error> {
        Ok(self.text(name)?.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect())
    }

    /// The four files of a v1 memory counter.
    fn legacy_usage(&self, prefix: &str) -> Result<Usage, Error> {
        Ok(Usage {
            limit: self.number(&format!("{prefix}.limit_in_bytes"))?,
            usage: self.number(&format!("{prefix}.usage_in_bytes"))?,
            max: self.number(&format!("{prefix}.max_usage_in_bytes"))?,
            failures: self.number(&format!("{prefix}.failcnt"))?,
        })
    }

    fn unified_usage(&self, prefix: &str) -> Result<Usage, Error> {
        let events = self.text(&format!("{prefix}.events"))?;
        Ok(Usage {
            limit: self.number(&format!("{prefix}.max"))?,
            usage: self.number(&format!("{prefix}.current"))?,
            max: self.number(&format!("{prefix}.peak"))?,
            failures: file::keyed(&events, "max").unwrap_or(0),
        })
    }
}

impl Cgroup {
    /// Quota (-1: none) and period of processor time in microseconds, where the host shares it out.
    pub fn cpu_quota(&self) -> Result<Option<(i64, u64)>, Error> {
        let Some((place, version)) = self.hierarchy.locate("cpu") else { return Ok(None) };
        let directory = place.join(&self.path);
        let read = |file: &str| file::read_if_present(&directory.join(file));
        let text = match version {
            Version::Unified => read("cpu.max")?,
            Version::Legacy => {
                read("cpu.cfs_quota_us")?.zip(read("cpu.cfs_period_us")?).map(|(a, b)| format!("{a} {b}"))
            }
        };
        let text = text.unwrap_or_default();
        let mut words = text.split_ascii_whitespace();
        // cgroup-v2.rst: "max" is none.
        let (quota, period) = (words.next(), words.next().and_then(|word| word.parse().ok()));
        Ok(quota.zip(period).map(|(quota, period)| (quota.parse().unwrap_or(-1), period)))
    }

    /// Everything that is counted here.
    pub fn details(&self) -> Result<Details, Error> {
        let files = |controller: &str| {
            let (place, version) = self.hierarchy.locate(controller)?;
            Some(Files { directory: place.join(&self.path), version })
        };
        let mut details = Details { stats: self.stats()?, ..Details::default() };
        if let Some(accounting) = files("cpuacct").filter(|files| files.version == Version::Legacy) {
            let names = ["cpuacct.usage_percpu", "cpuacct.usage_percpu_sys", "cpuacct.usage_percpu_user"];
            for (numbers, name) in details.per_cpu_ns.iter_mut().zip(names) {
                *numbers = accounting.numbers(name)?;
            }
        }
        if let Some(cpuset) = files("cpuset") {
            self::cpuset(&cpuset, &mut details)?;
        }
        if let Some(memory) = files("memory") {
            self::memory(&memory, &mut details)?;
        }
        if let Some(hugetlb) = files("hugetlb") {
            details.hugetlb = self::hugetlb(&hugetlb)?;
        }
        if let Some(io) = files("blkio") {
            details.io = self::io(&io)?;
        }
        if let Some(directory) = self.unified_directory() {
            for (pressure, name) in details.pressure.iter_mut().zip(["cpu", "memory", "io"]) {
                // ENOTSUPP where pressure is compiled in and switched off.
                let text = std::fs::read_to_string(directory.join(format!("{name}.pressure"))).unwrap_or_default();
                *pressure = pressures(&text);
            }
        }
        Ok(details)
    }
}

/// The files `cpuset.NAME` that hold 0 or 1; cgroup v1 alone has them.
pub const CPUSET_FLAGS: [&str; 9] = [
    "cpu_exclusive",
    "mem_hardwall",
    "mem_exclusive",
    "memory_migrate",
    "memory_spread_page",
    "memory_spread_slab",
    "memory_pressure",
    "sched_load_balance",
    "sched_relax_domain_level",
];

fn cpuset(files: &Files, details: &mut Details) -> Result<(), Error> {
    let suffix = if files.version == Version::Unified { ".effective" } else { "" };
    details.cpuset_cpus = list(&files.text(&format!("cpuset.cpus{suffix}"))?);
    details.cpuset_mems = list(&files.text(&format!("cpuset.mems{suffix}"))?);
    if files.version == Version::Legacy {
        for name in CPUSET_FLAGS {
            let value = files.text(&format!("cpuset.{name}"))?.trim().parse().unwrap_or(0);
            details.cpuset_flags.insert(name.to_owned(), value);
        }
    }
    Ok(())
}

/// `0-2,5` as its numbers.
fn list(text: &str) -> Vec<u16> {
    let mut all = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
            all.extend(first..=last);
        }
    }
    all
}

fn memory(files: &Files, details: &mut Details) -> Result<(), Error> {
    let text = files.text("memory.stat")?;
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    details.memory_raw = text.lines().filter_map(pair).collect();
    match files.version {
        Version::Unified => {
            details.memory = files.unified_usage("memory")?;
            details.swap = files.unified_usage("memory.swap")?;
        }
        Version::Legacy => {
            details.memory = files.legacy_usage("memory")?;
            details.swap = files.legacy_usage("memory.memsw")?;
            details.kernel = files.legacy_usage("memory.kmem")?;
            details.kernel_tcp = files.legacy_usage("memory.kmem.tcp")?;
        }
    }
    Ok(())
}

fn hugetlb(files: &Files) -> Result<BTreeMap<String, Usage>, Error> {
    let mut all = BTreeMap::new();
    // The page sizes are those that the cgroup has files for.
    for entry in std::fs::read_dir(&files.directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let suffix = if files.version == Version::Unified { ".current" } else { ".usage_in_bytes" };
        let size = name.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(suffix));
        let Some(size) = size.filter(|size| !size.contains('.')) else { continue };
        let prefix = format!("hugetlb.{size}");
        let usage = if files.version == Version::Unified {
            files.unified_usage(&prefix)?
        } else {
            files.legacy_usage(&prefix)?
        };
        all.insert(size.to_owned(), usage);
    }
    Ok(all)
}

fn io(files: &Files) -> Result<BTreeMap<String, Vec<IoEntry>>, Error> {
    let mut all = BTreeMap::new();
    if files.version == Version::Unified {
        let (mut bytes, mut operations) = (Vec::new(), Vec::new());
        for line in files.text("io.stat")?.lines() {
            for entry in unified_entries(line) {
                if entry.1 { bytes.push(entry.0) } else { operations.push(entry.0) }
            }
        }
        all.insert("io_service_bytes_recursive".to_owned(), bytes);
        all.insert("io_serviced_recursive".to_owned(), operations);
        return Ok(all);
    }
    let names = [
        "io_queued_recursive",
        "io_service_time_recursive",
        "io_wait_time_recursive",
        "io_merged_recursive",
        "time_recursive",
        "sectors_recursive",
    ];
    for name in names {
        let text = match files.text(&format!("blkio.bfq.{name}"))? {
            text if text.is_empty() => files.text(&format!("blkio.{name}"))?,
            text => text,
        };
        all.insert(name.to_owned(), text.lines().filter_map(legacy_entry).collect());
    }
    for name in ["io_service_bytes_recursive", "io_serviced_recursive"] {
        let text = files.text(&format!("blkio.throttle.{name}"))?;
        all.insert(name.to_owned(), text.lines().filter_map(legacy_entry).collect());
    }
    Ok(all)
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4`; true for bytes.
fn unified_entries(line: &str) -> Vec<(IoEntry, bool)> {
    let mut words = line.split_ascii_whitespace();
    let Some((major, minor)) = words.next().and_then(device) else { return Vec::new() };
    let entry = |word: &str| {
        let (key, value) = word.split_once('=')?;
        let (operation, is_bytes) = match key {
            "rbytes" => ("Read", true),
            "wbytes" => ("Write", true),
            "rios" => ("Read", false),
            "wios" => ("Write", false),
            _ => return None,
        };
        Some((IoEntry { major, minor, operation: operation.to_owned(), value: value.parse().ok()? }, is_bytes))
    };
    words.filter_map(entry).collect()
}

/// `8:0 Read 1`, or without the operation; a `Total` line is none.
fn legacy_entry(line: &str) -> Option<IoEntry> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (major, minor) = device(words.first()?)?;
    let value = words.last()?.parse().ok()?;
    let operation = if words.len() == 3 { words[1].to_owned() } else { String::new() };
    Some(IoEntry { major, minor, operation, value })
}

fn device(numbers: &str) -> Option<(u64, u64)> {
    let (major, minor) = numbers.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Documentation/accounting/psi.rst.
fn pressures(text: &str) -> Option<Pressures> {
    let line = |kind: &str| {
        let words = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let mut pressure = Pressure::default();
        for word in words.split_ascii_whitespace() {
            let (key, value) = word.split_once('=')?;
            match key {
                "avg10" => pressure.averages[0] = value.parse().ok()?,
                "avg60" => pressure.averages[1] = value.parse().ok()?,
                "avg300" => pressure.averages[2] = value.parse().ok()?,
                "total" => pressure.total = value.parse().ok()?,
                _ => {}
            }
        }
        Some(pressure)
    };
    Some(Pressures { some: line("some ")?, full: line("full ").unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        assert_eq!(list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(list("\n"), [0u16; 0]);
        let entry = legacy_entry("8:16 Read 7").expect("entry");
        assert_eq!((entry.major, entry.minor, entry.operation.as_str(), entry.value), (8, 16, "Read", 7));
        assert_eq!(legacy_entry("Total 7"), None);
        assert_eq!(unified_entries("8:0 rbytes=1 wios=4 dbytes=9").len(), 2);
        let text = "some avg10=1.50 avg60=0.00 avg300=0.25 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let read = pressures(text).expect("pressures");
        assert_eq!((read.some.averages, read.some.total, read.full.total), ([1.5, 0.0, 0.25], 42, 7));
        assert_eq!(pressures(""), None);
    }
}
