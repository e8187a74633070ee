//! What the host is: processors, memory, disk, names. Reads /proc, /sys and /etc; changes nothing.

use std::path::Path;

use nix::sys::statvfs::statvfs;

/// Facts that do not change while the kubelet runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub cpus: u64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    pub machine_id: String,
    pub boot_id: String,
    pub system_uuid: String,
    pub kernel: String,
    pub os_image: String,
    pub architecture: &'static str,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// One line of /proc/meminfo, in bytes.
fn meminfo(name: &str) -> u64 {
    let text = read("/proc/meminfo");
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

impl Machine {
    /// Reads the host. What cannot be read is empty.
    #[must_use]
    pub fn detect(data_dir: &Path) -> Machine {
        let os_release = read("/etc/os-release");
        let pretty = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
        let machine_id = read("/etc/machine-id");
        let system_uuid = read("/sys/class/dmi/id/product_uuid").to_lowercase();
        Machine {
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            memory_bytes: meminfo("MemTotal"),
            disk_bytes: disk(data_dir).total_bytes,
            system_uuid: if system_uuid.is_empty() { machine_id.clone() } else { system_uuid },
            machine_id,
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel: read("/proc/sys/kernel/osrelease"),
            os_image: pretty.map(|p| p.trim_matches('"').to_owned()).unwrap_or_else(|| "Linux".into()),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
        }
    }
}

/// Whether SELinux is on; its file system is mounted only then.
#[must_use]
pub fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// Room on a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    pub total_bytes: u64,
    pub available_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// The file system that `path`, or its nearest parent that exists, is on.
#[must_use]
pub fn disk(path: &Path) -> Disk {
    for place in path.ancestors() {
        if let Ok(stat) = statvfs(place) {
            let unit = stat.fragment_size();
            return Disk {
                total_bytes: stat.blocks() * unit,
                available_bytes: stat.blocks_available() * unit,
                inodes: stat.files(),
                inodes_free: stat.files_free(),
            };
        }
    }
    Disk::default()
}

/// Memory that can be given to new work, by /proc/meminfo.
#[must_use]
pub fn memory_available_bytes() -> u64 {
    meminfo("MemAvailable")
}

/// Processes in use and how many there may be.
#[must_use]
pub fn pids() -> (u64, u64) {
    // The last field but one of /proc/loadavg is running/total.
    let used =
        read("/proc/loadavg").split_whitespace().nth(3).and_then(|f| f.split('/').nth(1)?.parse().ok()).unwrap_or(0);
    (used, read("/proc/sys/kernel/pid_max").parse().unwrap_or(32768))
}

/// Processor time used by everything since boot, in nanoseconds.
#[must_use]
pub fn cpu_used_nanos() -> u64 {
    let text = read("/proc/stat");
    let fields: Vec<u64> =
        text.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal, in hundredths of a second; proc(5).
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|i| fields.get(*i)).sum();
    busy * 10_000_000
}
