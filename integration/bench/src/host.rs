//! What the figures were measured on, in one line: figures without their machine say nothing.

use std::fs;

/// Processors, memory, kernel, cgroups and the load of the moment.
pub(crate) fn describe() -> String {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned();
    format!(
        "{processors} CPUs ({}), {} GiB, kernel {kernel}, {} cgroups, load {load}",
        model(),
        memory_gib(),
        cgroups()
    )
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn model() -> String {
    let text = read("/proc/cpuinfo");
    let named = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    named.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

fn memory_gib() -> u64 {
    let text = read("/proc/meminfo");
    let kib =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().split(' ').next()?.parse::<u64>().ok());
    kib.map_or(0, |kib| (kib + (1 << 19)) >> 20)
}

fn cgroups() -> &'static str {
    let is_there = |path: &str| fs::exists(path).unwrap_or(false);
    if is_there("/sys/fs/cgroup/cgroup.controllers") {
        "v2"
    } else if is_there("/sys/fs/cgroup/unified/cgroup.controllers") {
        "hybrid"
    } else {
        "v1"
    }
}
